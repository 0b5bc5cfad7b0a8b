"""The IDX format in all its dtypes, MNIST from wherever it is, and files that are not what they say."""

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import pickle
import re
import runpy
import struct
import sys
import threading
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mnist.data import load
from mnist.settings import Config
from numpy.dtypes import StringDType
from train_mnist import train

import funcnet
from funcnet import datasets, evaluation, training

CODES = {0x08: np.uint8, 0x09: np.int8, 0x0B: np.int16, 0x0C: np.int32, 0x0D: np.float32, 0x0E: np.float64}


def idx(array):
    code = next(code for code, dtype in CODES.items() if dtype == array.dtype)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 3, 4), (0, 3), (1,) * 7])
@pytest.mark.parametrize("code", CODES)
def test_every_dtype_and_rank(tmp_path, code, shape, pack):
    array = np.random.default_rng(0).integers(-100, 100, shape).astype(CODES[code])
    path = tmp_path / "some.idx"  # the name does not say whether it is gzipped
    path.write_bytes(pack(idx(array)))
    read = datasets.read_idx(path)
    assert (read.dtype, read.shape, read.flags.writeable) == (array.dtype, array.shape, True)
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, array)


GOOD = idx(np.arange(6, dtype=np.uint8).reshape(2, 3))
ZIPPED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with bytes (none), expected an IDX header: 00 00, a dtype code (0x08, 0x09"),
        (b"\x89PNG", "starts with bytes 89 50 4e 47, expected an IDX header"),
        (b"\0\0\x07\x01" + GOOD[4:], "starts with bytes 00 00 07 01, expected an IDX header"),
        (GOOD[:9], "cut short inside the header: 5 bytes of sizes, expected 8"),
        (GOOD[:-1], "the header announces uint8 (2, 3), so 6 bytes, but there are only 5"),
        (GOOD + b"x", "the header announces uint8 (2, 3), so 6 bytes, but there are more"),
        (ZIPPED[:-9], "the gzip stream is corrupt or cut short"),
        (ZIPPED[:10] + b"\xff" * 9, "the gzip stream is corrupt or cut short"),
        (ZIPPED[:-6] + b"\0" * 6, "the gzip stream is corrupt or cut short: CRC check failed"),
        (b"\0\0\x08\x03" + b"\xff" * 12, ", expected at most 1,073,741,824 bytes; raise max_bytes if you trust it"),
        (b"\0\0\x08\x03" + b"\0" * 4 + b"\xff" * 8, ", expected at most 1,073,741,824 bytes; raise max_bytes"),
        (b"\0\0\x08\xff" + b"\0" * 1020, "the header announces 255 axes, expected at most 32"),
    ],
)
def test_what_is_no_idx_file_is_named(tmp_path, content, message):
    path = tmp_path / "bad.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        datasets.read_idx(path)


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(300 << 20), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(ValueError, match="so 6 bytes, but there are more"):
        datasets.read_idx(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("read", [datasets.read_idx, datasets.load_arrays])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.npz")  # which nobody writes to
    (tmp_path / "link.npz").symlink_to("gone")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    (tmp_path / "empty").mkdir()
    for name, error, message in (
        ("pipe.npz", ValueError, "is a pipe, expected a regular file"),
        ("zero.npz", ValueError, "is a device, expected a regular file"),
        ("empty", ValueError, "is a folder, expected a regular file|expected x.npy and y.npy, or IDX files"),
        ("link.npz", FileNotFoundError, "a link to .*/gone"),
        ("none.npz", FileNotFoundError, "No such file"),
    ):
        with pytest.raises(error, match=message):
            read(tmp_path / name)
    (tmp_path / "train-images-idx3-ubyte").symlink_to("pipe.npz")
    with pytest.raises(ValueError, match="train-images-idx3-ubyte: is a pipe, expected"):
        datasets.load_mnist(tmp_path)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.gz"):
        datasets.read_idx(tmp_path / "nothing.gz")


@pytest.fixture
def small_mnist(monkeypatch, tmp_path):
    """A data set of MNIST's form, a few images large, with hashes to match; no cache and no mirror in reach."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (5, 28, 28)).astype(np.uint8),
        "train_labels": rng.integers(0, 10, 5).astype(np.uint8),
        "test_images": rng.integers(0, 256, (3, 28, 28)).astype(np.uint8),
        "test_labels": rng.integers(0, 10, 3).astype(np.uint8),
    }
    files, gzipped = {}, {}
    for part, file in datasets._MNIST.items():
        content = idx(arrays[part])
        gzipped[f"{file.name}.gz"] = gzip.compress(content, mtime=0)
        hashes = (hashlib.sha256(data).hexdigest() for data in (gzipped[f"{file.name}.gz"], content))
        files[part] = datasets._MnistFile(file.name, *hashes)
    monkeypatch.setattr(datasets, "_MNIST", files)
    monkeypatch.setattr(datasets, "MIRRORS", ())
    monkeypatch.delenv("FUNCNET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return arrays, gzipped


def fill(folder, gzipped, unpack=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in gzipped.items():
        (folder / (name.removesuffix(".gz") if unpack else name)).write_bytes(gzip.decompress(data) if unpack else data)
    return folder


def assert_is(dataset, arrays):
    np.testing.assert_array_equal(dataset.train[0], arrays["train_images"].reshape(5, 784))
    np.testing.assert_array_equal(dataset.test[1], arrays["test_labels"])
    assert [a.dtype for part in dataset for a in part] == [np.uint8, np.int32] * 2


@pytest.mark.parametrize("unpack", [False, True])
def test_mnist_is_found_in_the_folder_then_in_the_environment_s(small_mnist, tmp_path, monkeypatch, unpack):
    arrays, gzipped = small_mnist
    folder = fill(tmp_path / "data", gzipped, unpack)
    assert_is(datasets.load_mnist(folder), arrays)
    monkeypatch.setenv("FUNCNET_DATA", str(folder))
    assert_is(datasets.load_mnist(), arrays)


def test_a_folder_that_is_named_is_not_passed_by(small_mnist, tmp_path, monkeypatch):
    """Not for another one, and not for the cache or a download."""
    arrays, gzipped = small_mnist
    monkeypatch.setenv("FUNCNET_DATA", str(fill(tmp_path / "data", gzipped)))
    fill(tmp_path / "cache" / "funcnet" / "mnist", gzipped)
    half = fill(tmp_path / "half", dict(list(gzipped.items())[:2]))
    assert_is(datasets.load_mnist(), arrays)
    with pytest.raises(
        datasets.MnistNotFoundError, match=rf"MNIST: there is no folder {tmp_path}/nope; without a folder"
    ):
        datasets.load_mnist(tmp_path / "nope")
    with pytest.raises(datasets.MnistNotFoundError, match=rf"no t10k-images-idx3-ubyte\[\.gz\] in {half}; without a"):
        datasets.load_mnist(half)
    monkeypatch.setenv("FUNCNET_DATA", "/nope")
    monkeypatch.setattr(datasets, "MIRRORS", ("http://127.0.0.1:9/",))  # refuses
    with pytest.warns(
        UserWarning, match="FUNCNET_DATA is /nope, which is not a folder: other places are tried for MNIST"
    ):
        assert_is(datasets.load_mnist(), arrays)


@pytest.mark.parametrize("unpack", [False, True])
@pytest.mark.parametrize(
    "place",
    [
        lambda name: name.replace("-idx", ".idx"),  # 7-Zip, Kaggle
        lambda name: f"{name.removesuffix('.gz')}/{name}",  # WinZip, Kaggle
        lambda name: f"{name.removesuffix('.gz')}/{name.replace('-idx', '.idx')}",
        lambda name: f"MNIST/raw/{name}",  # torchvision's root
        lambda name: f"raw/{name}",
    ],
)
def test_mnist_under_the_names_that_people_have_it_under(small_mnist, tmp_path, monkeypatch, place, unpack):
    """Named in full, with a tilde, or by the environment with a tilde."""
    arrays, gzipped = small_mnist
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, data in gzipped.items():
        path = tmp_path / "data" / place(name.removesuffix(".gz") if unpack else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.decompress(data) if unpack else data)
    assert_is(datasets.load_mnist("~/data"), arrays)
    monkeypatch.setenv("FUNCNET_DATA", "~/data")
    assert_is(datasets.load_mnist(), arrays)
    if unpack:
        file = next(iter(sorted((tmp_path / "data").rglob("train-images*ubyte"), key=lambda path: path.is_dir())))
        assert datasets.read_idx(f"~/{file.relative_to(tmp_path)}").shape == (5, 28, 28)


@pytest.fixture
def small_fashion(monkeypatch, small_mnist):
    """The same for Fashion-MNIST, with other images."""
    mnist, _ = small_mnist
    arrays = {part: array[::-1].copy() for part, array in mnist.items()}
    files, gzipped = {}, {}
    for part, file in datasets._FASHION_MNIST.items():
        content = idx(arrays[part])
        gzipped[f"{file.name}.gz"] = data = gzip.compress(content, mtime=0)
        files[part] = datasets._MnistFile(file.name, *(hashlib.sha256(d).hexdigest() for d in (data, content)))
    monkeypatch.setattr(datasets, "_FASHION_MNIST", files)
    monkeypatch.setattr(datasets, "FASHION_MIRRORS", ())
    return arrays, gzipped


def test_fashion_mnist_is_told_from_mnist(small_mnist, small_fashion, tmp_path, monkeypatch, mirror):
    """Its files carry the same names. Beside MNIST, alone, from a mirror; and MNIST is not taken for it."""
    arrays, gzipped = small_fashion
    root = tmp_path / "torchvision"
    mnist = fill(root / "MNIST" / "raw", small_mnist[1], unpack=True)
    fashion = fill(root / "FashionMNIST" / "raw", gzipped, unpack=True)
    for folder in (root, fashion, fashion.parent):
        assert_is(datasets.load_fashion_mnist(folder), arrays)
    assert_is(datasets.load_mnist(root), small_mnist[0])
    with pytest.raises(
        ValueError, match=r"not Fashion-MNIST's .* \(that of train-images-idx3-ubyte of MNIST\), expected"
    ):
        datasets.load_fashion_mnist(mnist)
    with pytest.raises(ValueError, match=r"not MNIST's .* \(that of train-images-idx3-ubyte of Fashion-MNIST\), exp"):
        datasets.load_mnist(fashion)
    monkeypatch.setenv("FUNCNET_DATA", str(mnist))  # where MNIST is, which is no fault
    with pytest.raises(datasets.MnistNotFoundError, match=r"(?s)Fashion-MNIST was neither .* is of another data set"):
        datasets.load_fashion_mnist()
    monkeypatch.setattr(datasets, "FASHION_MIRRORS", (mirror(gzipped),))
    assert_is(datasets.load_fashion_mnist(), arrays)
    monkeypatch.setattr(datasets, "FASHION_MIRRORS", ("http://127.0.0.1:9/",))
    assert_is(datasets.load_fashion_mnist(), arrays)  # from the cache
    assert len(datasets.FASHION_MNIST_NAMES) == 10


def test_a_regzipped_copy_is_as_good(small_mnist, tmp_path):
    arrays, gzipped = small_mnist
    again = {name: gzip.compress(gzip.decompress(data), 1, mtime=1) for name, data in gzipped.items()}
    assert_is(datasets.load_mnist(fill(tmp_path / "data", again)), arrays)


def test_other_content_is_refused_by_its_hash(small_mnist, tmp_path):
    _, gzipped = small_mnist
    folder = fill(tmp_path / "data", gzipped)
    images, labels = folder / "train-images-idx3-ubyte.gz", folder / "t10k-labels-idx1-ubyte.gz"
    images.write_bytes(gzip.compress(idx(np.zeros((5, 28, 28), np.uint8))))
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte\.gz: the content is not MNIST's .* expected [0-9a-f]{64}"
    ):
        datasets.load_mnist(folder)
    images.write_bytes(gzipped["train-images-idx3-ubyte.gz"])
    labels.write_bytes(gzipped["train-labels-idx1-ubyte.gz"])
    with pytest.raises(ValueError, match=r"sha256 [0-9a-f]{64} \(that of train-labels-idx1-ubyte\), expected"):
        datasets.load_mnist(folder)


@pytest.fixture
def mirror():
    """A server on the loopback interface; `mirror(files)` starts one and gives its URL."""
    servers = []

    def serve(files):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                data = files.get(self.path.lstrip("/"))
                self.send_response(200 if data is not None else 404)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, format, *args):  # noqa: A002  its name there
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_next_mirror_serves_where_one_fails(small_mnist, tmp_path, monkeypatch, mirror):
    arrays, gzipped = small_mnist
    nowhere = "http://127.0.0.1:9/"  # refuses
    wrong = mirror(dict.fromkeys(gzipped, b"something else"))
    half = mirror({name: data[: len(data) // 2] for name, data in gzipped.items()})
    monkeypatch.setattr(datasets, "MIRRORS", (nowhere, mirror({}), wrong, half, mirror(gzipped)))
    assert_is(datasets.load_mnist(), arrays)
    cache = tmp_path / "cache" / "funcnet" / "mnist"
    assert sorted(path.name for path in cache.iterdir()) == sorted(gzipped)  # nothing half-written

    monkeypatch.setattr(datasets, "MIRRORS", (nowhere,))
    assert_is(datasets.load_mnist(), arrays)  # from the cache


def test_a_corrupt_cache_is_filled_again(small_mnist, tmp_path, monkeypatch, mirror):
    arrays, gzipped = small_mnist
    cache = fill(tmp_path / "cache" / "funcnet" / "mnist", gzipped)
    (cache / "train-images-idx3-ubyte.gz").write_bytes(b"corrupt")
    monkeypatch.setattr(datasets, "MIRRORS", (mirror(gzipped),))
    assert_is(datasets.load_mnist(), arrays)


def test_where_mnist_is_nowhere_all_that_was_tried_is_said(small_mnist, tmp_path, monkeypatch, mirror):
    _, gzipped = small_mnist
    wrong = mirror(dict.fromkeys(gzipped, b"something else"))
    monkeypatch.setattr(datasets, "MIRRORS", ("http://127.0.0.1:9/", wrong))
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("FUNCNET_DATA", str(tmp_path / "data"))
    with pytest.raises(datasets.MnistNotFoundError) as error:
        datasets.load_mnist()
    file = datasets._MNIST["train_images"]
    for part in (
        f"no {file.name}[.gz] in {tmp_path / 'data'}",
        f"http://127.0.0.1:9/{file.name}.gz: ConnectionError",
        f"{wrong}{file.name}.gz: ValueError: SHA256 hash",
        f"expected sha256 {file.gz_sha256} (gzipped), {file.sha256} (unpacked)",
    ):
        assert part in str(error.value)
    cache = tmp_path / "cache" / "funcnet" / "mnist"
    assert list(cache.iterdir()) == []


def test_digits_are_there_without_a_download():
    (x, y), (x_test, y_test) = datasets.load_digits()
    assert (x.shape, x_test.shape, y.shape, y_test.shape) == ((1437, 64), (360, 64), (1437,), (360,))
    assert (x.dtype, y.dtype, x.min(), x.max()) == (np.uint8, np.int32, 0, 255)
    assert set(y) == set(y_test) == set(range(10))
    rows = {row.tobytes() for row in x}
    assert sum(row.tobytes() in rows for row in x_test) == 0


# One's own.

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (20, 4, 4)).astype(np.uint8), np.arange(20) % 3
IDS = Y.tolist()


def own(path, form, **arrays):
    """The arrays in files of a form."""
    if form == "npz":
        np.savez(path.with_suffix(".npz"), **arrays)
        return path.with_suffix(".npz")
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)
    return path


@pytest.mark.parametrize("form", ["npz", "folder"])
def test_own_arrays_from_files(tmp_path, monkeypatch, form):
    """In parts, or cut into them: a fifth for the test, every sample once, and the same the next time."""
    monkeypatch.setenv("HOME", str(tmp_path))
    parts = {"x_train": X[:15], "y_train": Y[:15], "x_test": X[15:], "y_test": Y[15:]}
    (train, test), names = datasets.load_arrays(own(tmp_path / "parts", form, **parts))
    for (x, y), part in ((train, "train"), (test, "test")):
        assert (x.dtype, y.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(x, parts[f"x_{part}"].reshape(-1, 16))
        np.testing.assert_array_equal(y, parts[f"y_{part}"])
    assert names == ("0", "1", "2")

    path = own(tmp_path / "whole", form, x=X, y=Y)
    (train, test), _ = datasets.load_arrays(f"~/{path.name}")
    assert (len(train[0]), len(test[0])) == (16, 4)
    rows = [(*x, y) for x, y in zip(np.r_[train[0], test[0]], np.r_[train[1], test[1]], strict=True)]
    assert sorted(rows) == sorted((*x, y) for x, y in zip(X.reshape(20, 16), Y, strict=True))
    np.testing.assert_array_equal(datasets.load_arrays(path)[0].test[0], test[0])


TEXT = ["bee", "ant", "cow"]


@pytest.mark.parametrize(
    ("y", "expected", "names"),
    [
        (Y, IDS, "012"),
        (Y.astype(float), IDS, "012"),
        (Y.astype(np.uint64), IDS, "012"),
        (Y[:, None], IDS, "012"),
        (Y.tolist(), IDS, "012"),
        (np.eye(3)[Y], IDS, "012"),
        (np.eye(4, dtype=int)[Y], IDS, "0123"),  # a class that no sample has
        (2 * Y, [2 * k for k in IDS], "01234"),  # ids stay what they are
        (Y > 0, [int(k > 0) for k in IDS], ("False", "True")),
        ([TEXT[k] for k in IDS], [(1, 0, 2)[k] for k in IDS], ("ant", "bee", "cow")),
        (np.array(TEXT, object)[Y], [(1, 0, 2)[k] for k in IDS], ("ant", "bee", "cow")),
        (np.array(TEXT, "S3")[Y], [(1, 0, 2)[k] for k in IDS], ("ant", "bee", "cow")),
        (np.array(TEXT, StringDType())[Y], [(1, 0, 2)[k] for k in IDS], ("ant", "bee", "cow")),
        ([" ant"[k % 2 :] if k < 2 else "none" for k in IDS], [k // 2 for k in IDS], ("ant", "none")),
        (np.ma.masked_array(Y, mask=False), IDS, "012"),
    ],
)
def test_labels_that_people_have(y, expected, names):
    dataset, got = datasets.from_arrays(X, y, X, y)
    assert got == tuple(names)
    for _, labels in dataset:
        assert labels.dtype == np.int32
        assert labels.tolist() == expected


def with_one(value, dtype=None):
    y = Y.astype(dtype or type(value))
    y[7] = value
    return y


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (with_one(2**32), r"y\[7\] is 4294967296, expected one of at most 31 bits"),
        (with_one(2**32 + 1, np.uint64), r"y\[7\] is 4294967297, expected one of at most 31 bits"),
        (with_one(2.0**32), r"y\[7\] is 4294967296.0, expected one of at most 31 bits"),
        (with_one(-1), r"y\[7\] is -1, expected a number from 0: np.unique\(y, return_inverse=True\)"),
        (with_one(0.5), r"y\[7\] is 0.5, expected a whole number, since labels are class ids"),
        (with_one(np.nan), r"y\[7\] is nan, expected a label"),
        (with_one(120_000), "class ids up to 120000 for 20 samples: are they values, or identifiers"),
        (with_one(None, object), r"y holds Python objects such as 0, expected numbers or text: y.astype\(int\), or"),
        (np.zeros(20, int), "all labels are '0', expected at least two classes"),
        (["one", "two", "", "one"] * 5, r"y\[2\] is empty, expected a label for each sample"),
        (["one"] * 20, "all labels are 'one', expected at least two classes"),
        *(
            (["one", "two", missing, "one"] * 5, rf"y\[2\] is {missing.strip() or 'empty'}, expected a label for each")
            for missing in ("nan", "NaN", " NA", "<NA>", "null", "None", " ")
        ),
        (["one", np.nan] * 10, r"y\[1\] is nan, expected a label for each sample: drop samples without"),
        (np.array(["one", None] * 10, object), r"y\[1\] is None, expected a label for each sample"),
        (np.array(["one", None] * 10, StringDType(na_object=None)), r"y\[1\] is None, expected a label for each"),
        (np.array(["one", np.nan] * 10, StringDType(na_object=np.nan)), r"y\[1\] is nan, expected a label for each"),
        (np.ma.masked_array(Y, np.arange(20) == 7), r"y\[7\] is masked, expected values: fill them in by .filled"),
        (np.eye(3)[Y] / 2, r"y has shape \(20, 3\), expected one label per sample, \(N,\), or one-hot rows"),
        (Y.reshape(5, 4), r"y has shape \(5, 4\), expected one label per sample"),
        (Y.reshape(5, 4, 1), r"y has shape \(5, 4, 1\), expected \(N,\)"),
        (np.int64(3), r"y has shape \(\), expected \(N,\)"),
        (Y.astype(complex), "y has dtype complex128, expected numbers or text"),
        (Y.astype("M8[D]"), "y has dtype datetime64"),
        (Y[:19], "x has 20 samples and y 19, expected the same number"),
    ],
)
def test_labels_that_mean_nothing_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        datasets.from_arrays(X, y)


def test_classes_are_those_of_both_parts():
    dataset, names = datasets.from_arrays(X[:10], ["a", "b"] * 5, X[10:], ["b", "c"] * 5)
    assert names == ("a", "b", "c")
    assert dataset.test[1].tolist() == [1, 2] * 5
    with pytest.raises(ValueError, match="y and y_test: some labels are text and some are numbers"):
        datasets.from_arrays(X, Y, X, [TEXT[k] for k in IDS])
    with pytest.raises(ValueError, match="x_test or y_test is missing"):
        datasets.from_arrays(X, Y, X)


@pytest.mark.parametrize(
    ("x", "scaled"),  # `scaled`: what the default transform makes of it, as NumPy computes it
    [
        (X, X / 255),
        (X.astype(int), X / 255),
        (X.astype(float), X / 255),
        (X + np.where(X < 255, 0.5, 0), (X + np.where(X < 255, 0.5, 0)) / 255),
        (X / 255, X / 255),
        (X % 17, (X % 17) / 255),  # uint8 is pixels
        ((X % 17).astype(float), X % 17),
        (X.astype(int) - 128, X.astype(int) - 128),
        (X.astype(int) * 7, X.astype(int) * 7),
        (X > 99, X > 99),
        (X[..., None], X / 255),
        (np.asfortranarray(X), X / 255),
        (X.astype(">f8"), X / 255),
    ],
)
def test_inputs_that_people_have(x, scaled):
    dataset, _ = datasets.from_arrays(x, Y, x, Y)
    for got, _ in dataset:
        seen = evaluation.scale_pixels(None, jnp.asarray(got))
        assert seen.dtype == jnp.float32
        np.testing.assert_allclose(seen, np.asarray(scaled, np.float32).reshape(20, 16), rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "x_test", "message"),
    [
        (
            np.ma.masked_array(X, np.broadcast_to(np.arange(4) == 3, X.shape)),
            None,
            r"x\[0, 0, 3\] is masked, expected values: fill them in by .filled\(value\)",
        ),
        (X, np.ma.masked_greater(X, 99), r"x_test\[0, 0, 0\] is masked, expected values"),
        (np.ones(20), None, r"x has shape \(20,\), expected \(N, ...\), one row per sample: x\[:, None\], if each"),
        (np.ones((20, 0)), None, r"x has shape \(20, 0\), expected \(N, ...\)"),
        (X.astype(object), None, "x has dtype object, expected numbers"),
        (X.astype(str), None, "x has dtype <U3, expected numbers"),
        (X.astype(complex), None, "x has dtype complex128, expected numbers"),
        (
            np.where(np.arange(16) == 5, np.inf, 1) * np.ones((20, 1)),
            None,
            r"x\[0, 5\] is inf, expected finite numbers",
        ),
        (1e300 * X, None, "x: beyond what float32 can hold"),
        (X, X[:, :3], r"a sample has the shape x \(4, 4\) and x_test \(3, 4\), expected the same"),
        (X, X / 255, "x uint8 up to 255 and x_test float64 up to 1: expected the same scale"),
        (X.astype(float), X / 255, "x float64 up to 255 and x_test float64 up to 1: expected the same scale"),
    ],
)
def test_inputs_that_cannot_be_trained_on_are_refused(x, x_test, message):
    with pytest.raises(ValueError, match=message):
        datasets.from_arrays(x, Y, x_test, None if x_test is None else Y)


IMAGES = RNG.integers(0, 256, (30, 5, 5)).astype(np.uint8)


def idx_files(folder, names, images, labels, pack=bytes):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, (images, labels), strict=True):
        (folder / name).write_bytes(pack(idx(array)))


@pytest.mark.parametrize("place", ["", "raw"])
@pytest.mark.parametrize(("dot", "pack", "ending"), [("-", gzip.compress, ".gz"), (".", bytes, "")])
def test_any_folder_of_idx_files(tmp_path, dot, pack, ending, place):
    """KMNIST, say, as it comes or unpacked."""
    labels = (np.arange(30) % 4).astype(np.uint8)
    for part, cut in (("train", np.s_[:20]), ("t10k", np.s_[20:])):
        names = f"{part}-images{dot}idx3-ubyte{ending}", f"{part}-labels{dot}idx1-ubyte{ending}"
        idx_files(tmp_path / place, names, IMAGES[cut], labels[cut], pack)
    (train, test), names = datasets.load_arrays(tmp_path)
    np.testing.assert_array_equal(np.r_[train[0], test[0]], IMAGES.reshape(30, 25))
    np.testing.assert_array_equal(np.r_[train[1], test[1]], labels)
    assert (len(train[0]), names) == (20, ("0", "1", "2", "3"))
    (tmp_path / place / f"t10k-labels{dot}idx1-ubyte{ending}").unlink()
    with pytest.raises(ValueError, match=r"holds t10k-images.*, but no t10k-labels-idx1-ubyte\[.gz\]"):
        datasets.load_arrays(tmp_path)


def test_emnist(tmp_path):
    """Its images are transposed, and its letters count from 1; a folder of several data sets wants a name."""
    for kind, start, count in (("letters", 1, 26), ("digits", 0, 10)):
        labels = (np.arange(30) % count + start).astype(np.uint8)
        for part, cut in (("train", np.s_[:26]), ("test", np.s_[26:])):
            names = (f"emnist-{kind}-{part}-images-idx3-ubyte.gz", f"emnist-{kind}-{part}-labels-idx1-ubyte.gz")
            idx_files(tmp_path, names, IMAGES[cut].transpose(0, 2, 1), labels[cut], gzip.compress)
        (train, test), names = datasets.load_arrays(tmp_path / f"emnist-{kind}")
        np.testing.assert_array_equal(np.r_[train[0], test[0]], IMAGES.reshape(30, 25))
        np.testing.assert_array_equal(np.r_[train[1], test[1]], np.arange(30) % count)
        assert "".join(names) == ("abcdefghijklmnopqrstuvwxyz" if kind == "letters" else "0123456789")
    for path in (tmp_path, tmp_path / "emnist"):
        with pytest.raises(ValueError, match=r"holds several data sets, .*/emnist-digits, .*/emnist-letters$"):
            datasets.load_arrays(path)
    with pytest.raises(FileNotFoundError, match=r"emnist-balanced: no such file or folder, and no IDX file's name"):
        datasets.load_arrays(tmp_path / "emnist-balanced")


def npz(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return out.getvalue()


def npy(array, **changes):
    """In NumPy's format, with a header that may say something else."""
    out = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | changes
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue() + array.tobytes()


SMALL = npy(X[:6]), npy(Y[:6])


class Evil:
    def __reduce__(self):
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole .npz file: BadZipFile"),
        (npz(x=SMALL[0], y=SMALL[1])[:-30], "not a whole .npz file: BadZipFile"),
        (npz(x=SMALL[0], y=npy(Y[:6].astype(object), descr="|O") + pickle.dumps(Evil())), "y holds Python objects"),
        (npz(x=SMALL[0], y=pickle.dumps(Evil())), ""),
        (
            npz(x=npy(X[:6], shape=(1 << 40,)), y=SMALL[1]),
            r"x: the header announces uint8 \(1099511627776,\), expected",
        ),
        (npz(x=npy(X[:6], shape=(0, 1 << 40)), y=SMALL[1]), r"x: the header announces uint8 \(0, 1099511627776\), exp"),
        (npz(x=npy(X[:6], shape=(7, 4, 4)), y=SMALL[1]), ""),
        (npz(x=SMALL[0] + bytes(1 << 20), y=SMALL[1]), "x: has more data than its header announces"),
        (npz(x=SMALL[0]), r"holds the arrays \['x'\], expected x and y, or x_train, y_train, x_test and y_test"),
        (npz(x=SMALL[0], y=SMALL[1], x_val=SMALL[0]), r"holds the arrays \['x', 'x_val', 'y'\], expected x and y"),
        (npz(**{"../x": SMALL[0], "y": SMALL[1]}), r"holds the arrays \['../x', 'y'\], expected x and y"),
        (npz(x=SMALL[0], y=SMALL[1][:50]), ""),
    ],
)
def test_files_of_arrays_that_are_damaged_or_meant_to_harm(tmp_path, content, message):
    path = tmp_path / "own.npz"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"^{path}: .*{message}"):
        datasets.load_arrays(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_mutated_file_of_arrays_is_one_clear_error(tmp_path):
    """Or it is read; 300 of them, packed and not."""
    rng, path = np.random.default_rng(0), tmp_path / "own.npz"
    for trial in range(300):
        (np.savez if trial % 2 else np.savez_compressed)(path, x=X[:9], y=Y[:9])
        content = bytearray(path.read_bytes())
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            content[at] ^= 1 << rng.integers(8)
        path.write_bytes(content[: rng.integers(len(content))] if trial % 5 == 0 else content)
        with contextlib.suppress(ValueError):
            datasets.load_arrays(path)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (IDS, "012"),
        ([float(k) for k in IDS], "012"),
        ([f'"{TEXT[k]}, the"' for k in IDS], [f"{t}, the" for t in sorted(TEXT)]),
        ([f"{k}_0" for k in IDS], ["0_0", "1_0", "2_0"]),  # to Python numbers
    ],
)
@pytest.mark.parametrize("start", ["", "\ufeff"])  # a spreadsheet's mark
def test_a_table_of_text(tmp_path, labels, names, start):
    """As Kaggle has MNIST; the column of the labels may be anywhere."""
    rows = [
        ",".join([str(row[0]), str(k), *map(str, row[1:])]) for row, k in zip(X.reshape(20, 16), labels, strict=True)
    ]
    header = ",".join(["a", "Label", *(f"pixel{i}" for i in range(15))])
    (tmp_path / "own.csv").write_text("\n".join([start + header, *rows]), encoding="utf-8")
    (train, test), got = datasets.load_arrays(tmp_path / "own.csv")
    expected = datasets.from_arrays(X, labels if names == "012" else [t.strip('"') for t in labels])[0]
    assert got == tuple(names)
    for part, (x, y) in zip((train, test), expected, strict=True):
        np.testing.assert_array_equal(part[0], x)
        np.testing.assert_array_equal(part[1], y)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "own.csv",
            "1,2,3\n4,5,6\n",
            "the first line is '1, 2, 3', expected names of columns, one of them label, class",
        ),
        ("own.csv", "y,label,a\n0,0,1\n", "the first line is 'y, label, a', expected names of columns"),
        ("own.csv", "", "the first line is '', expected names of columns"),
        ("own.csv", "y,a\n", "holds no samples"),
        ("own.csv", "y,a\n0,1\n1,x\n", "could not convert string 'x' to float64 at row 1, column 2"),
        ("own.csv", "y,a,b\n0,1,2\n1,2\n", "line 3: the number of fields is 2, expected 3 as in the first line"),
        (
            "own.csv",
            "a,b,y\n1,5,0,7,0\n2,5,0,8,1\n",
            "line 2: the number of fields is 5, expected 3 as in the first line: write decimal",
        ),
        ("own.csv", 'a,b,y\n1,5,"0\n1"\n\n2,5,0,1\n', "line 5: the number of fields is 4, expected 3"),
        ("own.csv", ",a,y\n0,7,0\n1,8,1\n", r"column 1 of the first line is '', .*to_csv\(path, index=False\)"),
        (
            "own.csv",
            "Unnamed: 0,a,y\n0,7,0\n1,8,1\n",
            "column 1 of the first line is 'Unnamed: 0', expected a name: was",
        ),
        ("own.csv", "a, a,y\n0,7,0\n1,8,1\n", "the first line has 'a' twice, expected another name for each column"),
        ("own.csv", "a,b,y\n1,3,nan\n1,2,0\n", r"y\[0\] is nan, expected a label for each sample"),
        ("own.csv", f"a,y\n1,{'x' * 200_000}\n", "line 2: field larger than field limit"),
        ("own.csv", "y,a\n0,1\n1,\n", "could not convert string '' to float64"),
        ("own.csv", b"y,a\n0,\xff\n", ""),
        (
            "own.parquet",
            "PAR1",
            r"expected a \.npz or \.csv file, or a folder .* pass the arrays to from_arrays\(x, y\), or",
        ),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
        datasets.load_arrays(tmp_path / name)


# In the script.


def train_on(dataset, tmp_path, **settings):
    return train(
        Config(dataset=str(dataset), epochs=1, hidden_sizes=(4,), batch_size=8, run_dir=tmp_path / "run", **settings)
    )


def test_fashion_mnist_trains_by_one_command(small_fashion, tmp_path, monkeypatch, capsys):
    """From a folder that is named, and from the cache."""
    folder = fill(tmp_path / "mine", small_fashion[1])
    monkeypatch.setattr("train_mnist.draw", lambda *_: None)
    result = train_on("fashion", tmp_path, data_dir=folder, validation=2)
    assert result.confusion.shape == (10, 10)
    assert "Fashion-MNIST, 3 training images" in capsys.readouterr().err
    monkeypatch.setattr(datasets, "FASHION_MIRRORS", ("http://127.0.0.1:9/",))  # refuses
    folder.rename(fill(tmp_path / "cache" / "funcnet" / "fashion-mnist", {}))
    assert load(Config(dataset="fashion", validation=2)).parts["train"].images.shape == (3, 784)


@pytest.mark.slow
def test_own_arrays_train_by_one_command(tmp_path, capsys):
    """Rows of 3 numbers, which are no images, with text for labels."""
    x = RNG.normal(size=(60, 3)) + 4 * np.arange(60)[:, None] % 3
    result = train_on(own(tmp_path / "own", "npz", x=x, y=np.array(TEXT)[np.arange(60) % 3]), tmp_path)
    assert result.confusion.shape == (3, 3)
    assert "own.npz: 3 classes, in this order: ant, bee, cow" in capsys.readouterr().err
    assert {path.name for path in result.run_dir.glob("*.png")} == {"confusion.png", "curves.png"}


def test_three_lines_train_on_own_arrays(tmp_path):
    x = np.eye(3)[np.arange(60) % 3] + RNG.normal(size=(60, 3)) / 9
    path = own(tmp_path / "own", "npz", x=x, y=np.array(TEXT)[np.arange(60) % 3])

    ((x, y), test), names = datasets.load_arrays(path)
    state = training.init_state(funcnet.init(jax.random.key(0), (x.shape[1], len(names))), funcnet.adam(0.1))
    state, _ = jax.jit(training.make_epoch(funcnet.adam(0.1), batch_size=1))(state, jax.random.key(1), x, y)

    assert [names[k] for k in funcnet.predict(state.params, jnp.eye(3)).argmax(1)] == TEXT
    np.testing.assert_array_equal(funcnet.predict(state.params, test[0]).argmax(1), test[1])


def test_the_classes_of_the_script_are_those_of_the_whole_data_set(small_fashion, tmp_path, monkeypatch):
    """One image is left to train on; before, its class was taken for the last one."""
    for smoothing in (0.0, 0.1):
        data = load(Config(dataset="digits", validation=1436, label_smoothing=smoothing))
        assert (data.classes, len(data.targets)) == (10, 1)
    assert data.targets.shape == (1, 10)
    fill(tmp_path / "mine", small_fashion[1])
    assert load(Config(dataset="fashion", data_dir=tmp_path / "mine")).names == datasets.FASHION_MNIST_NAMES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "mnist", "data_dir": "/nope"}, "MNIST: there is no folder /nope"),
        ({"dataset": "auto", "data_dir": "/nope"}, "MNIST: there is no folder /nope"),
        (
            {"dataset": "digits", "data_dir": "/nope"},
            "--data-dir is for MNIST and Fashion-MNIST, and --dataset is 'digits'",
        ),
        ({"dataset": "minst"}, "--dataset is 'minst', expected auto, mnist, fashion, digits, or a file or folder: "),
    ],
)
def test_a_setting_for_data_is_not_passed_by(small_mnist, tmp_path, monkeypatch, settings, message):
    monkeypatch.setenv("FUNCNET_DATA", str(fill(tmp_path / "data", small_mnist[1])))
    with pytest.raises((OSError, ValueError), match=message):
        load(Config(**settings))


@pytest.mark.mnist
def test_the_real_mnist(mnist):
    (x, y), (x_test, y_test) = mnist
    assert (x.shape, x_test.shape) == ((60_000, 784), (10_000, 784))
    assert (y[:5].tolist(), y_test[:5].tolist()) == ([5, 0, 4, 1, 9], [7, 2, 1, 0, 4])
    assert x.mean() == pytest.approx(33.318, abs=1e-3)


def test_the_benchmark_without_mnist_ends_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("FUNCNET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "MIRRORS", ("http://127.0.0.1:9/",))
    monkeypatch.setattr(sys, "argv", ["benchmark", "epoch", "--only", "x"])
    with pytest.raises(SystemExit, match=r"^benchmark: MNIST was neither found nor downloaded:\n  no train-images"):
        runpy.run_module("benchmark", run_name="__main__")
