"""Checkpoints: back bit for bit, on any mesh; damaged ones never believed."""

import gc
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet
from funcnet import checkpoints, sharding, training
from funcnet.optimizers import averaged


def a_state(sizes=(6, 8, 4), dtype=jnp.float32, step=0):
    """Of Adam with an average, filled with noise from NumPy, so that nothing is compiled."""

    def start():
        optimizer = averaged(funcnet.adam(1e-3), 0.9)
        return training.init_state(funcnet.init(jax.random.key(0), sizes, dtype=dtype), optimizer)

    rng = np.random.default_rng(0)
    noise = jax.tree.map(lambda leaf: jnp.asarray(8 * rng.normal(size=leaf.shape), leaf.dtype), jax.eval_shape(start))
    return noise._replace(step=jnp.asarray(np.int32(step)))


def saved(path, numbers=(1, 2, 3), keep=3):
    with checkpoints.open_folder(path, keep=keep) as folder:
        for number in numbers:
            checkpoints.save(folder, number, a_state(step=number), {"history": [number, 0.1]})
    return path


def restored(path, like=None):
    with checkpoints.open_folder(path) as folder:
        return checkpoints.restore(folder, a_state() if like is None else like)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (p.dtype, p.shape) == (q.dtype, q.shape)
        assert np.asarray(p).tobytes() == np.asarray(q).tobytes()


def test_back_bit_for_bit(tmp_path):
    found = restored(saved(tmp_path / "run" / "checkpoints"))
    assert found.number == 3
    assert found.notes == {"history": [3, 0.1]}
    assert isinstance(found.tree, training.TrainState)
    assert_same_bits(found.tree, a_state(step=3))


@pytest.mark.parametrize("half", [jnp.bfloat16, jnp.float16])
def test_back_in_half_precision(tmp_path, half):
    state = a_state(dtype=half)
    with checkpoints.open_folder(tmp_path) as folder:
        checkpoints.save(folder, 0, state)
    assert_same_bits(restored(tmp_path, state).tree, state)


def test_back_in_double_precision(tmp_path, x64):
    state = a_state(dtype=jnp.float64)
    with checkpoints.open_folder(tmp_path) as folder:
        checkpoints.save(folder, 0, state)
    assert_same_bits(restored(tmp_path, state).tree, state)


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="orbax writes arrays on several devices by jax.set_mesh")
def test_back_on_another_mesh(tmp_path):
    state = a_state()
    here, there = (sharding.make_mesh(text) for text in ("data=2,model=4", "data=4,model=2"))
    with checkpoints.open_folder(tmp_path) as folder:
        checkpoints.save(folder, 7, sharding.put(state, sharding.state_shardings(state, here)))
    expected = sharding.put(state, sharding.state_shardings(state, there))
    found = restored(tmp_path, expected).tree
    assert_same_bits(found, state)
    for leaf, like in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
    assert_same_bits(restored(tmp_path, state).tree, state)


def test_the_last_ones_are_kept(tmp_path):
    saved(tmp_path, numbers=range(1, 7), keep=2)
    assert {path.name for path in tmp_path.iterdir()} == {"5", "6"}


def test_an_empty_folder(tmp_path):
    assert restored(tmp_path / "new") is None


def test_another_network_is_refused_by_name(tmp_path):
    saved(tmp_path)
    for sizes, message in (
        ((6, 9, 4), r"of another network or optimizer: .params\[0\]\[0\] is float32\[6, 8\], expected float32\[6, 9\]"),
        ((6, 8, 4, 4), r".params\[2\]\[0\] is not there, expected float32\[4, 4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            restored(tmp_path, a_state(sizes))
    with pytest.raises(ValueError, match=r".params\[0\]\[0\] is float32\[6, 8\], expected bfloat16\[6, 8\]"):
        restored(tmp_path, a_state(dtype=jnp.bfloat16))
    state = training.init_state(funcnet.init(jax.random.key(0), (6, 8, 4)), funcnet.sgd(0.1))
    with pytest.raises(ValueError, match=r"opt_state.step is not there, expected int32"):
        restored(tmp_path, state)
    assert restored(tmp_path).number == 3  # refusing has moved nothing


def test_random_keys_and_complex_numbers(tmp_path):
    tree = {"key": jax.random.split(jax.random.key(5), 3), "z": jnp.array([1 + 2j, -3j], jnp.complex64)}
    with checkpoints.open_folder(tmp_path) as folder:
        checkpoints.save(folder, 0, tree)
        found = checkpoints.restore(folder, like=jax.tree.map(lambda leaf: leaf.copy(), tree)).tree
        assert found["key"].dtype == tree["key"].dtype
        assert_same_bits(jax.random.key_data(found["key"]), jax.random.key_data(tree["key"]))
        assert_same_bits(found["z"], tree["z"])
        with pytest.raises(ValueError, match=r"\['key'\] is key<fry>\[3\], expected key<rbg>\[3\]"):
            checkpoints.restore(folder, like=tree | {"key": jax.random.split(jax.random.key(5, impl="rbg"), 3)})
    assert (checkpoints.fingerprint(tree["z"]) != checkpoints.fingerprint(tree["z"].conj())).any()


def test_numbers_and_keys_of_every_kind_come_back(tmp_path):
    """Python numbers as such, exactly, beyond 32 bits too; keys of the old style and of another generator."""
    tree = {"epochs": 2**40, "best": 0.1, "worst": float("inf"), "done": True, "nested": [(-1, jnp.ones(2))],
            "old": jax.random.PRNGKey(3), "rbg": jax.random.key(5, impl="rbg")}  # fmt: skip
    start = tree | {"epochs": 0, "best": 0.0, "done": False, "old": jax.random.PRNGKey(0)}
    with checkpoints.open_folder(tmp_path) as folder:
        checkpoints.save(folder, 0, tree)
        found = checkpoints.restore(folder, like=start).tree
        with pytest.raises(ValueError, match=r"\['best'\] is a Python float, expected a Python int"):
            checkpoints.restore(folder, like=start | {"best": 0})
        with pytest.raises(TypeError, match=r"tree\['name'\] is 'x' of type str, expected an array or a Python number"):
            checkpoints.save(folder, 1, {"name": "x"})
    for name in ("epochs", "best", "worst", "done"):
        assert (type(found[name]), found[name]) == (type(tree[name]), tree[name])
    assert found["nested"][0][0] == -1
    assert found["old"].dtype == jnp.uint32
    draw = [jax.random.normal(key, (3,)).tolist() for t in (tree, found) for key in (t["old"], t["rbg"])]
    assert draw[:2] == draw[2:]


def test_arrays_of_no_numbers_come_back(tmp_path):
    """Orbax stores none: a hidden layer of no units."""
    tree = {"params": [(jnp.ones((4, 0)), jnp.ones(0)), (jnp.ones((0, 3)), jnp.arange(3.0))]}
    with checkpoints.open_folder(tmp_path) as folder:
        checkpoints.save(folder, 0, tree | {"keys": jax.random.split(jax.random.key(0), 0), "n": 7})
        like = jax.tree.map(jnp.zeros_like, tree)
        found = checkpoints.restore(folder, like | {"keys": jax.random.split(jax.random.key(1), 0), "n": 0}).tree
        part = checkpoints.restore(folder, like, number=0, part=True).tree
        with pytest.raises(ValueError, match=r"params/0/0 is float32\[4, 0\], expected bfloat16\[4, 0\]"):
            checkpoints.restore(folder, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), like), number=0, part=True)
    assert (found.pop("n"), found.pop("keys").shape) == (7, (0,))
    assert_same_bits(found, tree)
    assert_same_bits(part, tree)


@pytest.mark.parametrize(
    ("tree", "notes", "message"),
    [
        ([jnp.ones(2)], {1: "a", "1": "b"}, "notes has the key 1, expected text: JSON would convert it"),
        ([jnp.ones(2)], {"a": [{None: 1}]}, r"notes\['a'\]\[0\] has the key None, expected text"),
        (
            [jnp.ones(2)],
            {"sizes": (4, 3)},
            r"notes\['sizes'\] is the tuple \(4, 3\), which JSON would convert to a list",
        ),
        (
            {"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}},
            {},
            r"tree\['a/b'\] has the name a/b, which another leaf also has",
        ),
        ([np.ma.masked_array([1.0, 2.0], [0, 1])], {}, r"tree\[0\]\[1\] is masked, expected values"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused(tmp_path, tree, notes, message):
    with checkpoints.open_folder(tmp_path) as folder:
        with pytest.raises(ValueError, match=message):
            checkpoints.save(folder, 0, tree, notes)
        checkpoints.save(folder, 0, [jnp.ones(2)], {"loss": [float("nan"), True, None, 0.1, "x"]})
        checkpoints.wait(folder)
        found = checkpoints.restore(folder, [jnp.zeros(2)]).notes["loss"]
    assert np.isnan(found[0])
    assert found[1:] == [True, None, 0.1, "x"]


def test_a_part_or_an_older_one(tmp_path):
    saved(tmp_path)
    params = a_state().params
    with checkpoints.open_folder(tmp_path) as folder:
        assert checkpoints.restore(folder, like=a_state(), number=2).number == 2
        found = checkpoints.restore(folder, like={"params": params, "step": jnp.int32(0)}, number=1, part=True)
        assert (found.number, int(found.tree["step"]), found.notes) == (1, 1, {"history": [1, 0.1]})
        assert_same_bits(found.tree["params"], params)
        second = a_state()._replace(params=[(), params[1]], step=None, opt_state=None)  # fewer leaves, same names
        assert_same_bits(checkpoints.restore(folder, like=second, part=True).tree.params, second.params)
        for like, message in (
            ({"weights": params}, r"weights/0/0 is not there, expected float32\[6, 8\]; there is: params/0/0 float32"),
            ({"params": params[::-1]}, r"params/0/0 is float32\[6, 8\], expected float32\[8, 4\]; there is: "),
        ):
            with pytest.raises(ValueError, match=message):
                checkpoints.restore(folder, like=like, part=True)
        with pytest.raises(ValueError, match=r"there is no checkpoint 7, only \[1, 2, 3\]"):
            checkpoints.restore(folder, like=a_state(), number=7)


@pytest.mark.parametrize("part", [True, False])
def test_a_damaged_one_asked_for_by_number_is_an_error(tmp_path, part):
    """Another than the one that is asked for is not given, and nothing is moved."""
    saved(tmp_path / "c")
    shutil.rmtree(tmp_path / "c" / "3" / "tree")
    shutil.copytree(tmp_path / "c" / "2" / "tree", tmp_path / "c" / "3" / "tree")  # `step` differs
    like = {"step": jnp.int32(0)} if part else a_state()
    with checkpoints.open_folder(tmp_path / "c") as folder:
        with pytest.raises(ValueError, match=r"checkpoint 3 is damaged .*arrays have changed.*; it is left there"):
            checkpoints.restore(folder, like=like, number=3, part=part)
        assert folder.latest_step() == 3


@pytest.mark.parametrize("name", ["2024", "my.orbax-checkpoint-tmp"])
def test_a_folder_of_the_user_s_is_not_taken_for_checkpoints(tmp_path, name):
    """Orbax deletes the oldest of what has a number for a name, and all that looks unfinished."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=f"{name} is not a checkpoint"), checkpoints.open_folder(tmp_path, keep=1):
        pass
    assert (tmp_path / name / "thesis.tex").read_text() == "years of work"


def test_a_tilde_is_the_user_s_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    saved("~/run", numbers=[1])
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize("number", [1.0, "best", None, np.float64(4), -1])
def test_a_number_that_would_not_be_found_again_is_refused(tmp_path, number):
    with (
        checkpoints.open_folder(tmp_path / "c", keep=2) as folder,
        pytest.raises(ValueError, match=r"number is .*, expected a whole number"),
    ):
        checkpoints.save(folder, number, [jnp.zeros(2)])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux lists them")
def test_many_saves_leave_no_files_open(tmp_path):
    def count():
        gc.collect()
        return len([*Path("/proc/self/fd").iterdir()])

    with checkpoints.open_folder(tmp_path, keep=1) as folder:
        counts = []
        for number in range(8):
            checkpoints.save(folder, number, [jnp.zeros(3)])
            checkpoints.wait(folder)
            counts.append(count())
    assert counts[-1] <= counts[3] + 2, counts


def files_of(path):
    return sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of orbax's reading threads, too late
@pytest.mark.parametrize("harm", ["flip", "truncate"])
def test_damage_is_never_believed(tmp_path, harm):
    """In each file of the newest checkpoint: what is given back is right, or the one before with a warning."""
    whole = saved(tmp_path / "whole")
    rng, path = random.Random(0), tmp_path / "checkpoints"
    gc.collect()
    gc.freeze()  # what there is already need not be looked through again and again
    noticed, names = set(), [file.relative_to(whole) for file in files_of(whole / "3")]
    for name in names:
        shutil.copytree(whole, path)
        content = bytearray((path / name).read_bytes())
        at = rng.randrange(len(content))
        content[at] ^= 1 << rng.randrange(8)
        (path / name).write_bytes(content[:at] if harm == "truncate" else content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.filterwarnings("ignore", r"coroutine '\S+' was never awaited", RuntimeWarning)  # orbax gave up
            found = restored(path)
            gc.collect()  # what orbax left behind speaks up here, not in a later test
        assert found.number == (2 if caught else 3)
        assert found.notes == {"history": [found.number, 0.1]}
        assert_same_bits(found.tree, a_state(step=found.number))
        for warning in caught:
            assert f"checkpoint {path / '3'} is damaged" in str(warning.message)
            assert (tmp_path / "checkpoints-damaged" / "3").is_dir()
        if caught:
            noticed.add(name.as_posix().rpartition("/")[0])
        shutil.rmtree(path)
        shutil.rmtree(tmp_path / "checkpoints-damaged", ignore_errors=True)
    gc.unfreeze()
    assert {"3/sealed", "3/tree", "3/tree/d"} <= noticed  # the rest are markers, and what orbax does not read again


@pytest.mark.parametrize("inside", ["notes", "arrays"])
def test_what_reads_well_and_is_not_what_was_written(tmp_path, inside):
    """One number changed to another: in the notes, and in arrays that orbax has no reason to doubt."""
    saved(tmp_path / "c")
    newest = tmp_path / "c" / "3"
    if inside == "notes":
        (file,) = (newest / "sealed").glob("meta*")
        file.write_text(file.read_text().replace("[3, 0.1]", "[3, 0.7]"))
    else:
        shutil.rmtree(newest / "tree")
        shutil.copytree(tmp_path / "c" / "2" / "tree", newest / "tree")
    with pytest.warns(UserWarning, match="have changed since they were written"):
        found = restored(tmp_path / "c")
    assert found.number == 2
    assert_same_bits(found.tree, a_state(step=2))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as above
def test_all_damaged(tmp_path):
    """An error, since to begin again is not to go on; and nothing is moved."""
    for file in files_of(saved(tmp_path / "c")):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"all 3 checkpoints are damaged \(3: .*; 2: .*; 1: .*left there"):
        restored(tmp_path / "c")
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"1", "2", "3"}
    assert not (tmp_path / "c-damaged").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as above
def test_damaged_twice(tmp_path):
    """What was put aside stays, the warning says where the next one went, and the number is free again."""
    for aside in ("3", "3x"):
        for file in files_of(saved(tmp_path / "c", numbers=(1, 2, 3) if aside == "3" else (3,)) / "3"):
            file.write_bytes(b"")
        with pytest.warns(UserWarning, match=rf"is moved to \S+/c-damaged/{aside}, "):
            assert restored(tmp_path / "c").number == 2
    assert {path.name for path in (tmp_path / "c-damaged").iterdir()} == {"3", "3x"}


@pytest.mark.parametrize(
    "error", [MemoryError(), PermissionError(13, "Permission denied"), OSError(5, "Input/output error"),
              ValueError("RESOURCE_EXHAUSTED: out of memory")]
)  # fmt: skip
def test_what_is_no_damage_moves_nothing(tmp_path, monkeypatch, error):
    """Memory, rights, a failing file system: the checkpoint may be sound."""
    saved(tmp_path / "c")

    def fail(*_, **__):
        raise RuntimeError("of another layer") from error

    with checkpoints.open_folder(tmp_path / "c") as folder:
        with monkeypatch.context() as patch:
            patch.setattr(folder, "restore", fail)
            with pytest.raises((MemoryError, OSError, RuntimeError)):
                checkpoints.restore(folder, a_state())
        assert checkpoints.restore(folder, a_state()).number == 3
    assert not (tmp_path / "c-damaged").exists()


def test_numpy_does_not_say_where_to_put_it(tmp_path):
    saved(tmp_path / "c")
    with pytest.raises(TypeError, match="like has a ndarray for a leaf, expected JAX arrays"):
        restored(tmp_path / "c", jax.tree.map(np.asarray, a_state()))
    assert restored(tmp_path / "c").number == 3


def test_numbers_go_up(tmp_path):
    message = r"checkpoint 3 in \S+: expected a number above 3"
    with checkpoints.open_folder(saved(tmp_path)) as folder, pytest.raises(ValueError, match=message):
        checkpoints.save(folder, 3, a_state())


def test_a_half_written_one_is_swept_away(tmp_path):
    saved(tmp_path)
    shutil.copytree(tmp_path / "3", tmp_path / "4.orbax-checkpoint-tmp-1700000000")
    shutil.rmtree(tmp_path / "4.orbax-checkpoint-tmp-1700000000" / "tree")
    assert restored(tmp_path).number == 3
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "3"}


def test_any_single_bit_changes_the_fingerprint():
    rng = np.random.default_rng(0)
    tree = [rng.normal(size=(5, 3)).astype(np.float32), np.arange(4, dtype=np.uint8), jnp.ones(3, jnp.bfloat16)]
    seen = {tuple(np.asarray(checkpoints.fingerprint(tree)).tolist())}
    changes = 0
    for number, leaf in enumerate(tree):
        raw = np.asarray(leaf).view(np.uint8).reshape(-1)
        for byte in range(raw.size):
            for bit in range(8):
                other = raw.copy()
                other[byte] ^= 1 << bit
                changed = other.view(np.asarray(leaf).dtype).reshape(leaf.shape)
                seen.add(
                    tuple(np.asarray(checkpoints.fingerprint([*tree[:number], changed, *tree[number + 1 :]])).tolist())
                )
                changes += 1
    assert len(seen) == changes + 1


def test_swapped_entries_change_the_fingerprint():
    a = jnp.arange(6.0).reshape(2, 3)
    prints = [np.asarray(checkpoints.fingerprint(t)).tolist() for t in ([a], [a.reshape(3, 2).T], [a[::-1]], [a, a])]
    assert len({tuple(p) for p in prints}) == 4


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="the folder cannot be written"), checkpoints.open_folder(tmp_path / "file"):
        pass


FULL = """
import resource, sys
import jax, numpy as np
from funcnet import checkpoints
small, large = np.zeros(10, np.float32), np.random.default_rng(0).normal(size=100_000).astype(np.float32)
like = [jax.numpy.asarray(small)]
with checkpoints.open_folder(sys.argv[1]) as folder:
    checkpoints.save(folder, 1, like)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    with checkpoints.open_folder(sys.argv[1]) as folder:
        checkpoints.save(folder, 2, [jax.numpy.asarray(large)])
except OSError as error:
    print(error)
try:
    with checkpoints.open_folder(sys.argv[1]) as folder:
        checkpoints.save(folder, 2, [jax.numpy.asarray(large)])
        checkpoints.save(folder, 3, like)
except OSError as error:
    print(error)
try:
    with checkpoints.open_folder(sys.argv[1]) as folder:
        checkpoints.save(folder, 2, [jax.numpy.asarray(large)])
        raise KeyboardInterrupt
except KeyboardInterrupt as error:
    print(*error.__notes__)
with checkpoints.open_folder(sys.argv[1]) as folder:
    print("found", checkpoints.restore(folder, like).number)
"""


def test_no_room_left(tmp_path):
    """A limit on the size of files needs no file system of its own. Noticed at the end, by the next, or by the way."""
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path / "c"], capture_output=True, text=True, check=True)
    *lines, found = done.stdout.splitlines()
    errors = [line for line in lines if line.startswith(f"checkpoint 2 in {tmp_path / 'c'}: cannot be written")]
    assert len(errors) == 3, done.stdout
    assert found == "found 1"
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"1"}
