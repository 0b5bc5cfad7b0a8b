"""Weights and their network to a file and back, bit for bit, and files that are something else."""

import json
import os
import pickle
import stat
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from safetensors.numpy import load_file, save

import funcnet
from funcnet import Activation, Loss, Network, activations, files, losses, weights

PARAMS = oracle.network(0, (6, 9, 8, 4), np.float32)
SQUARE = Activation("square", lambda z: z * z, lambda z, a: 2 * z)
ABSOLUTE_ERROR = Loss(
    "absolute_error", lambda out, y: jnp.abs(out - y).sum(-1), lambda out, y: jnp.sign(out - y), lambda out: out
)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_round_trip_is_bit_exact(tmp_path, dtype, x64):
    path = tmp_path / "weights.safetensors"
    params = [(W.astype(dtype), b.astype(dtype)) for W, b in oracle.network(0, (6, 9, 4))]
    weights.save(path, params, metadata={"run": "7"})
    loaded, network = weights.load(path)
    assert network == Network()
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == b.tobytes()
    described = {"hidden": "relu", "output": "identity", "loss": "softmax_cross_entropy"}
    assert weights.load_metadata(path) == {"format": "funcnet 1", "run": "7"} | described


def test_fortran_order_and_strides_are_not_scrambled(tmp_path):
    params = oracle.network(0, (6, 9, 4), np.float32)
    weights.save(tmp_path / "w", [(np.asfortranarray(W), np.repeat(b, 2)[::2]) for W, b in params])
    assert oracle.errors_in_eps(weights.load(tmp_path / "w")[0], params) == [0.0] * 4


def test_float64_is_not_rounded_silently(tmp_path):
    weights.save(tmp_path / "w", oracle.network(0, (6, 4), np.float64))
    with pytest.raises(ValueError, match=r"layer1\.W is float64, which JAX would round to float32: set jax_enable_x64"):
        weights.load(tmp_path / "w")


def test_equal_weights_make_equal_files(tmp_path):
    """Whatever the order of the metadata, of the axes and of the bytes; safetensors by itself shuffles metadata."""
    metadata = {letter: letter * 3 for letter in "abcdefgh"} | {"ü": "ß"}
    same = [
        PARAMS,
        [(np.asfortranarray(W), np.repeat(b, 2)[::2]) for W, b in PARAMS],
        [(W.astype(">f4"), b.astype(">f4")) for W, b in PARAMS],
        jax.tree.map(jnp.asarray, PARAMS),
    ]
    for i, params in enumerate(same):
        order = dict(sorted(metadata.items(), key=lambda item: hash((item, i))))
        weights.save(tmp_path / f"{i}", params, Network(activations.tanh), metadata=order)
    assert len({(tmp_path / f"{i}").read_bytes() for i in range(len(same))}) == 1
    read = load_file(tmp_path / "0")  # by the library itself
    assert {name: a.tobytes() for name, a in read.items()} == {
        f"layer{l}.{n}": a.tobytes() for l, layer in enumerate(PARAMS, 1) for n, a in zip("Wb", layer, strict=True)
    }
    assert weights.load_metadata(tmp_path / "0").items() >= metadata.items()


def test_what_is_no_number_and_what_is_none_comes_back(tmp_path):
    """NaN with its payload, infinities, -0.0, and a hidden layer of no units."""
    odd = np.array([[0x7FC01234, 0xFF800000, 0x80000000]], np.uint32).view(np.float32)
    params = [(odd, odd[0]), (np.ones((3, 0), np.float32), np.ones(0, np.float32)), (np.ones((0, 2), np.float32), B)]
    weights.save(tmp_path / "w", params)
    loaded = weights.load(tmp_path / "w", sizes=(1, 3, 0, 2))[0]
    assert [np.asarray(a).tobytes() for a in jax.tree.leaves(loaded)] == [a.tobytes() for a in jax.tree.leaves(params)]


# The network.

NETWORKS = [
    *(Network(f, output=f) for f in activations.SHIPPED),
    *(Network(loss=loss) for loss in losses.SHIPPED),
    *(Network(activations.tanh, compute_dtype=dtype) for dtype in ("bfloat16", "float16", "float32")),
    Network((activations.relu, activations.leaky_relu(0.2))),
    Network([activations.leaky_relu(-1e-30), activations.gelu], activations.sigmoid, losses.squared_error, "bfloat16"),
]


def test_a_network_comes_back_equal(tmp_path):
    for network in NETWORKS:
        weights.save(tmp_path / "w", PARAMS, network)
        assert weights.load(tmp_path / "w")[1] == network
        assert weights.load(tmp_path / "w", network)[1] == network
    weights.save(tmp_path / "w", PARAMS[:1], Network([]))  # no hidden layer
    assert weights.load(tmp_path / "w")[1] == Network([])


@pytest.mark.parametrize("key", ["format", "hidden", "output", "loss", "compute_dtype"])
def test_text_under_a_name_of_the_network_s_is_refused(tmp_path, key):
    """It would be lost, or taken for the network; what the file says itself may be handed on."""
    with pytest.raises(
        ValueError, match=rf"metadata\['{key}'\] is '0.0123', but format, .* are reserved for the network"
    ):
        weights.save(tmp_path / "w", PARAMS, metadata={key: "0.0123"})
    network = Network(activations.tanh, compute_dtype="bfloat16")
    weights.save(tmp_path / "w", PARAMS, network, metadata={"run": "7"})
    read = weights.load_metadata(tmp_path / "w")
    weights.save(tmp_path / "again", PARAMS, network, metadata=read)
    assert weights.load_metadata(tmp_path / "again") == read
    assert weights.load(tmp_path / "again")[1] == network


def test_a_path_may_be_bytes(tmp_path):
    path = bytes(tmp_path / "ü")
    weights.save(path, PARAMS)
    assert oracle.errors_in_eps(weights.load(path)[0], PARAMS) == [0.0] * 6
    assert [p.name for p in tmp_path.iterdir()] == ["ü"]


def test_a_new_process_predicts_the_same_bits(tmp_path):
    x = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    want = b""
    networks = [Network(), Network(activations.tanh, compute_dtype="bfloat16"), NETWORKS[-2], NETWORKS[-1]]
    for i, network in enumerate(networks):
        weights.save(tmp_path / f"{i}", PARAMS, network)
        want += np.asarray(funcnet.predict(PARAMS, x, network)).tobytes()
    code = (
        "import sys, numpy as np, funcnet; from funcnet import weights; x = np.load('x.npy')\n"
        f"for i in range({len(networks)}):\n"
        "    params, network = weights.load(str(i))\n"
        "    sys.stdout.buffer.write(np.asarray(funcnet.predict(params, x, network)).tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    assert len(want) == len(networks) * 3 * 4 * 4
    assert done.stdout == want


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Network(SQUARE), "unknown activation 'square', expected one of elu, .*"),
        (Network((activations.relu, SQUARE)), "unknown activation 'square', expected one of elu, .*"),
        (Network(output=SQUARE), "unknown activation 'square', expected one of elu, .*"),
        (Network(loss=ABSOLUTE_ERROR), "unknown loss 'absolute_error', expected one of softmax_cross_entropy, .*"),
    ],
)
def test_what_is_one_s_own_is_kept_by_name_and_has_to_be_brought(tmp_path, network, message):
    weights.save(tmp_path / "w", PARAMS, network)
    with pytest.raises(ValueError, match=rf"w: {message}; pass your own function by load\(path, Network\(...\)\)"):
        weights.load(tmp_path / "w")
    params, brought = weights.load(tmp_path / "w", network)
    assert brought is network
    assert oracle.errors_in_eps(params, PARAMS) == [0.0] * 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": activations.relu}, "the file has the hidden tanh, but the given network has relu"),
        (
            {"hidden": (activations.tanh,) * 2},
            r'the file has the hidden tanh, but the given network has \["tanh", "tanh"\]',
        ),
        ({"output": activations.tanh}, "the file has the output identity, but the given network has tanh"),
        ({"loss": losses.squared_error}, "the file has the loss softmax_cross_entropy, but .* has squared_error"),
        ({"compute_dtype": "float16"}, "the file has the compute_dtype bfloat16, but .* has float16"),
        (
            {"compute_dtype": None},
            "the file has the compute_dtype bfloat16, but .* has None; to use another, load the",
        ),
    ],
)
def test_a_network_of_other_names_than_the_file_s_is_refused(tmp_path, changes, message):
    network = Network(activations.tanh, compute_dtype="bfloat16")
    weights.save(tmp_path / "w", PARAMS, network)
    with pytest.raises(ValueError, match=f"w: {message}"):
        weights.load(tmp_path / "w", replace(network, **changes))
    weights.save(tmp_path / "w", PARAMS, Network())
    with pytest.raises(ValueError, match=r"w: the file has the compute_dtype None, but .* has bfloat16"):
        weights.load(tmp_path / "w", Network(compute_dtype="bfloat16"))


def of_its_name(f):
    """What carries the name of `f` and is another function."""
    return replace(f, fn=jnp.sin if isinstance(f, Activation) else ABSOLUTE_ERROR.fn)


@pytest.mark.parametrize(
    "network",
    [
        Network(of_its_name(activations.relu)),
        Network((activations.relu, of_its_name(activations.tanh))),
        Network(output=of_its_name(activations.sigmoid)),
        Network(loss=of_its_name(losses.squared_error)),
        Network(of_its_name(activations.leaky_relu())),
        Network(of_its_name(activations.leaky_relu(0.2))),
        Network(replace(SQUARE, name="leaky_relu")),  # which is short for that of slope 0.01
        Network(replace(activations.relu, deriv=SQUARE.deriv)),
    ],
    ids=str,
)
def test_what_has_the_name_of_a_shipped_one_is_not_saved(tmp_path, network):
    with pytest.raises(ValueError, match="is your own function with the name of a shipped one: give it another"):
        weights.save(tmp_path / "w", PARAMS, network)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_names_no_activations_needs_a_network(tmp_path):
    (tmp_path / "w").write_bytes(save({f"layer{l}.{n}": a for l, layer in enumerate(PARAMS, 1)
                                       for n, a in zip("Wb", layer, strict=True)}))  # fmt: skip
    message = r"w: the file does not name its activations and loss: pass them by load\(path, Network\(...\)\)"
    with pytest.raises(ValueError, match=message):
        weights.load(tmp_path / "w")
    network = Network([activations.tanh, SQUARE], loss=ABSOLUTE_ERROR, compute_dtype="bfloat16")
    params, brought = weights.load(tmp_path / "w", network)
    assert brought is network
    assert oracle.errors_in_eps(params, PARAMS) == [0.0] * 6
    with pytest.raises(ValueError, match="w: hidden is a tuple of 1, expected an Activation or 2 of them"):
        weights.load(tmp_path / "w", Network([activations.tanh]))


# What is no such file, and no such network.

W, B = np.ones((3, 2), np.float32), np.ones(2, np.float32)
GOOD = {"layer1.W": W, "layer1.b": B}
NAMES = {"hidden": "relu", "output": "identity", "loss": "squared_error"}


def raw(header, data_bytes=0):
    return len(header).to_bytes(8, "little") + header.encode() + bytes(data_bytes)


def sparse(path, layers):
    """A file that announces float32 layers and holds zeros, which take no room on the disk."""
    header, end = {}, 0
    for l, (n, m) in enumerate(layers, 1):
        for name, shape in (("W", [n, m]), ("b", [m])):
            start, end = end, end + 4 * int(np.prod(shape))
            header[f"layer{l}.{name}"] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    path.write_bytes(raw(json.dumps(header)))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + end)


def test_a_header_is_judged_before_an_array_is_read(tmp_path):
    """12 GB that are not there; neither memory nor time is spent on them."""
    path, network = tmp_path / "w", Network()
    sparse(path, [(30_000, 100_000)])
    tracemalloc.start()
    for call, message in (
        (lambda: weights.load(path, network, sizes=(6, 3)), "w: holds a network of 30000-100000, expected 6-3"),
        (lambda: weights.load(path, network), "network 30000-100000 of 12,000,400,000 bytes, expected at most 4,294,"),
        (
            lambda: weights.load(path),
            "network 30000-100000 of 12,000,400,000 bytes, .*; pass its sizes, or a larger max_bytes",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert weights.load_metadata(path) == {}
    sparse(path, [(2, 3)])
    with pytest.raises(ValueError, match="announces a network 2-3 of 36 bytes, expected at most 35"):
        weights.load(path, network, max_bytes=35)
    assert weights.load(path, network, sizes=(2, 3), max_bytes=0)[0][0][0].shape == (2, 3)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_one_copy_at_a_time_is_in_memory(tmp_path):
    """Of NumPy's: each array is read when the one before has gone to JAX; once the whole file was there as well."""
    layer = 1 << 18
    wide = np.ones((1, layer), np.float32), np.zeros(layer, np.float32)
    weights.save(tmp_path / "w", [wide, *[(wide[0].T, np.zeros(1, np.float32)), wide] * 3])
    weights.load(tmp_path / "w")  # imports
    tracemalloc.start()
    params, _ = weights.load(tmp_path / "w")
    kept, peak = tracemalloc.get_traced_memory()  # JAX keeps NumPy's memory, or copies it later
    tracemalloc.stop()
    assert peak - kept < 6 * layer * 4 < sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole safetensors file"),
        (b"junk" * 100, "not a whole safetensors file"),
        (save(GOOD)[:-1], "not a whole safetensors file"),
        (save(GOOD) + b"x", "not a whole safetensors file"),
        (b"\xff" * 8 + b"{}", "not a whole safetensors file"),
        (save({}), r"holds \[\], expected the tensors layer1.W, layer1.b"),
        (save({"weight": W, "bias": B}), r"holds \['bias', 'weight'\], expected the tensors layer1.W"),
        (save({"../../layer1.W": W, "layer1.b": B}), r"holds \['../../layer1.W', 'layer1.b'\], expected the tensors"),
        (save({"layer1.W": W, "layer2.b": B}), "expected the tensors layer1.W, .*; there is no layer1.b"),
        (
            save({"layer1.W": np.array(1.0, np.float32), "layer1.b": B}),
            r"layer 1: W has shape \(\) and b \(2,\), expected",
        ),
        (
            raw(
                '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
                4,
            ),
            "",
        ),
        (save({"layer1.W": W, "layer1.b": W}), r"layer 1: W has shape \(3, 2\) and b \(3, 2\), expected"),
        (save({"layer1.W": W.astype(np.int32), "layer1.b": B}), "layer1.W has dtype I32, expected one of F16"),
        (save(GOOD, {"format": "funcnet 9"}), "the format 'funcnet 9', expected 'funcnet 1'"),
        (pickle.dumps([(W, B)]), "not a whole safetensors file"),
        ((1 << 62).to_bytes(8, "little") + b"{" * 64, "not a whole safetensors file"),  # a huge header
        (save(GOOD, NAMES | {"hidden": "swish"}), "unknown activation 'swish', expected one of elu, gelu"),
        (save(GOOD, NAMES | {"hidden": "["}), ""),
        (save(GOOD, NAMES | {"hidden": "[1]"}), "unknown activation 1, expected one of elu, gelu"),
        (save(GOOD, NAMES | {"hidden": '[["relu"]]'}), "unknown activation .*, expected one of elu, gelu"),
        (save(GOOD, NAMES | {"hidden": '["relu"]'}), "hidden is a tuple of 1, expected an Activation or 0 of them"),
        (save(GOOD, NAMES | {"loss": "relu"}), "unknown loss 'relu', expected one of softmax_cross_entropy"),
        (save(GOOD, NAMES | {"compute_dtype": "int8"}), "compute_dtype is int8, expected a floating dtype"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "weights"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path}: .*{message}"):
        weights.load(path)


def test_another_architecture_is_refused_by_name(tmp_path):
    weights.save(tmp_path / "w", [(W, B)])
    assert len(weights.load(tmp_path / "w", sizes=(3, 2))[0]) == 1
    with pytest.raises(ValueError, match="holds a network of 3-2, expected 784-128-10"):
        weights.load(tmp_path / "w", sizes=(784, 128, 10))


def test_what_is_no_network_is_not_saved(tmp_path):
    params = oracle.network(0, (6, 4), np.float32)
    for message, call in {
        "params is a list of 0": lambda: weights.save(tmp_path / "w", []),
        r"metadata\['epochs'\] is 3, expected text": lambda: weights.save(
            tmp_path / "w", params, metadata={"epochs": 3}
        ),
        "metadata is a list of 1, expected a dictionary of text": lambda: weights.save(
            tmp_path / "w", params, metadata=[("run", "7")]
        ),
        r"layer 1: b\[3\] is masked, expected values: fill them in by .filled": lambda: weights.save(
            tmp_path / "w", [(params[0][0], np.ma.masked_array(params[0][1], np.arange(4) == 3))]
        ),
        "hidden is a tuple of 1, expected an Activation or 0 of them": lambda: weights.save(
            tmp_path / "w", params, Network([activations.tanh])
        ),
        r"network is tanh of type Activation, expected a Network: Network\(hidden=tanh\)": lambda: weights.save(
            tmp_path / "w", params, activations.tanh
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    assert list(tmp_path.iterdir()) == []
    weights.save(tmp_path / "w", params)
    with pytest.raises(
        ValueError, match=r"network is relu of type Activation, expected a Network: Network\(hidden=relu"
    ):
        weights.load(tmp_path / "w", activations.relu)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"/no/w: there is no folder .*/no$"):
        weights.save(tmp_path / "no" / "w", oracle.network(0, (6, 4), np.float32))


@pytest.mark.parametrize("read", [weights.load, weights.load_metadata])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")  # which nobody writes to
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    for path, error, message in (
        (tmp_path / "pipe", ValueError, "pipe: is a pipe, expected a regular file"),
        ("/dev/zero", ValueError, "/dev/zero: is a device, expected a regular file"),
        (tmp_path, ValueError, "is a folder, expected a regular file"),
        (tmp_path / "link", FileNotFoundError, "a link to .*/gone: '.*/link'"),
        (tmp_path / "loop", OSError, "loop"),
        (tmp_path / "none", FileNotFoundError, "No such file or directory: '.*/none'"),
    ):
        with pytest.raises(error, match=message):
            read(path)


def test_modes_and_links_are_kept(tmp_path):
    old = os.umask(0o027)
    try:
        weights.save(tmp_path / "new", PARAMS)
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640  # what the umask leaves
        (tmp_path / "new").chmod(0o604)
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "link").symlink_to("../new")
        (tmp_path / "folder" / "ahead").symlink_to("../later")
        weights.save(tmp_path / "folder" / "link", PARAMS[:1])
        weights.save(tmp_path / "folder" / "ahead", PARAMS[:1])
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o604
    for link, target in (("link", "new"), ("ahead", "later")):
        assert (tmp_path / "folder" / link).is_symlink()
        assert len(weights.load(tmp_path / target)[0]) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"new", "later", "folder"}


def test_a_device_a_pipe_or_a_read_only_file_is_not_replaced(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for path, message in (
        (tmp_path / "pipe", "cannot be written: there is a pipe: '.*/pipe'"),
        (tmp_path / "null", "cannot be written: there is a device: '.*/null'"),
        (tmp_path, f"cannot be written: there is a folder: '{tmp_path}'"),
    ):
        with pytest.raises(OSError, match=message):
            weights.save(path, PARAMS)
    weights.save(tmp_path / "w", PARAMS)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write everything
    with pytest.raises(PermissionError, match=r"cannot be written: the file there is read-only: '.*/w'"):
        weights.save(tmp_path / "w", PARAMS[:1])
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "null", "w"}


def test_a_tilde_is_the_user_s_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    weights.save("~/w", PARAMS)
    assert (tmp_path / "w").is_file()
    assert len(weights.load("~/w")[0]) == len(PARAMS)
    assert weights.load_metadata("~/w")["hidden"] == "relu"


def test_several_at_once_write_whole_files(tmp_path):
    """Threads, and processes of one number in other containers: no two share an unfinished file."""
    path, stop, failed = tmp_path / "w", threading.Event(), []
    weights.save(path, PARAMS)

    def write(l):
        while not stop.is_set():
            try:
                weights.save(path, PARAMS[:l])
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=write, args=[l]) for l in (1, 2, 3)]
    for thread in threads:
        thread.start()
    lengths = {len(weights.load(path)[0]) for _ in range(100)}
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert lengths <= {1, 2, 3}
    assert list(tmp_path.iterdir()) == [path]


def test_only_what_this_program_made_is_a_leftover(tmp_path, monkeypatch):
    for name in (".thesis.2024", ".w.12345", ".funcnet-part", ".notes.funcnet-part", f"{'0' * 32}.funcnet-part"):
        assert not files.is_leftover(tmp_path / name)
    unfinished = []
    monkeypatch.setattr(os, "fsync", lambda _: unfinished.extend(tmp_path.iterdir()))  # just before the end
    for _ in range(2):
        files.write_atomically(tmp_path / "w", b"text")
    assert [files.is_leftover(path) for path in unfinished if path.name != "w"] == [True, True]
    assert len(set(unfinished)) == 3  # each has a name of its own


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "w"
    weights.save(path, oracle.network(0, (6, 4), np.float32))
    before = path.read_bytes()

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match=rf"cannot be written: No space left on device: '{path}'"):
        weights.save(path, oracle.network(1, (6, 4), np.float32))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_saved_is_what_predicts(tmp_path):
    params = funcnet.init(jax.random.key(0), (6, 9, 4))
    weights.save(tmp_path / "w", params)
    x = jnp.ones((3, 6))
    loaded, network = weights.load(tmp_path / "w")
    np.testing.assert_array_equal(funcnet.predict(loaded, x, network), funcnet.predict(params, x))
