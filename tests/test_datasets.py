"""The IDX format in all its dtypes, MNIST from wherever it is, and files that are not what they say."""

import gzip
import hashlib
import http.server
import re
import runpy
import struct
import sys
import threading
import tracemalloc

import numpy as np
import pytest

from funcnet import datasets

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
    assert_is(datasets.load_mnist(tmp_path / "elsewhere"), arrays)


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
    with pytest.raises(datasets.MnistNotFoundError) as error:
        datasets.load_mnist(tmp_path / "data")
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


@pytest.mark.mnist
def test_the_real_mnist(mnist):
    (x, y), (x_test, y_test) = mnist
    assert (x.shape, x_test.shape) == ((60_000, 784), (10_000, 784))
    assert (y[:5].tolist(), y_test[:5].tolist()) == ([5, 0, 4, 1, 9], [7, 2, 1, 0, 4])
    assert x.mean() == pytest.approx(33.318, abs=1e-3)


@pytest.mark.parametrize("command", ["forward_pass", "ten_hidden_units", "deformations", "benchmark epoch --only x"])
def test_a_script_without_mnist_ends_in_a_sentence(tmp_path, monkeypatch, command):
    monkeypatch.delenv("FUNCNET_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "MIRRORS", ("http://127.0.0.1:9/",))
    monkeypatch.setattr(sys, "argv", command.split())
    name = sys.argv[0]
    with pytest.raises(SystemExit, match=f"^{name}: MNIST was neither found nor downloaded:\n  no train-images"):
        runpy.run_module(name, run_name="__main__")
