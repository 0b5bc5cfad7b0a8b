"""Data sets as plain NumPy arrays: MNIST, the digits bundled with scikit-learn, and the IDX format.

Every file is checked before it is believed: the header against the length, and MNIST's content against its hash.
"""

import gzip
import hashlib
import os
import zlib
from math import prod
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from funcnet.extras import import_extra

__all__ = ["Dataset", "MnistNotFoundError", "load_digits", "load_mnist", "read_idx"]

Arrays = tuple[np.ndarray, np.ndarray]  # (x, y): uint8 (N, pixels), int32 (N,)


class Dataset(NamedTuple):
    """Images and class ids, as stored: pixels are converted on the device, batch by batch."""

    train: Arrays  # uint8 (N, pixels), int32 (N,)
    test: Arrays


MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)


class _MnistFile(NamedTuple):
    name: str  # without .gz
    gz_sha256: str  # of the file that the mirrors serve
    sha256: str  # of its content: this one decides, since re-gzipped copies exist


_MNIST = {
    "train_images": _MnistFile(
        "train-images-idx3-ubyte",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train_labels": _MnistFile(
        "train-labels-idx1-ubyte",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "test_images": _MnistFile(
        "t10k-images-idx3-ubyte",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "test_labels": _MnistFile(
        "t10k-labels-idx1-ubyte",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}


class MnistNotFoundError(FileNotFoundError):
    """MNIST is neither on this machine nor to be had from a mirror; the message says where was looked."""


def load_mnist(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """The MNIST database of handwritten digits: 60,000 training and 10,000 test images of 28 x 28 pixels.

    Looks in `data_dir`, then in the folder that the environment variable `FUNCNET_DATA` names, then in the user's
    cache, for the four files, gzipped or not; what it does not find it downloads into the cache, from the next mirror
    where one fails. LeCun, Bottou, Bengio and Haffner, Proceedings of the IEEE, 1998.

    Args:
      data_dir: a folder that may hold the files.

    Returns:
      uint8 images `(N, 784)` and int32 labels `(N,)`.

    Raises:
      MnistNotFoundError: a file is nowhere and no mirror gives it; names the paths, URLs and hashes tried.
      ValueError: a file is there but its content is not MNIST's; names the file and both hashes.
      ImportError: a download is needed and pooch is not installed; names the extra that brings it.
    """
    arrays = {part: _read_mnist_file(file, data_dir) for part, file in _MNIST.items()}

    def pair(images, labels) -> Arrays:
        return images.reshape(len(images), -1), labels.astype(np.int32)

    return Dataset(
        pair(arrays["train_images"], arrays["train_labels"]), pair(arrays["test_images"], arrays["test_labels"])
    )


def load_digits() -> Dataset:
    """The digits bundled with scikit-learn: 1,797 images of 8 x 8 pixels, no download; a fifth is for testing.

    The test set of Alpaydin and Kaynak's Optical Recognition of Handwritten Digits, UCI, 1998. Pixels come as 0 to 16
    and are stretched to 0 to 255, so that they convert as MNIST's do. The split is fixed and random.

    Returns:
      uint8 images `(N, 64)` and int32 labels `(N,)`: 1,437 for training, 360 for testing.

    Raises:
      ImportError: scikit-learn is not installed; names the extra that brings it.

    >>> (x, y), (x_test, y_test) = load_digits()
    >>> x.shape, x.dtype, y.shape, x_test.shape
    ((1437, 64), dtype('uint8'), (1437,), (360, 64))
    """
    digits = import_extra("sklearn.datasets").load_digits()
    x = np.round(digits.data * (255 / 16)).astype(np.uint8)
    y = digits.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[len(x) // 5 + 1 :], order[: len(x) // 5 + 1]
    return Dataset((x[train], y[train]), (x[test], y[test]))


_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str], *, max_bytes: int = 1 << 30) -> np.ndarray:
    """Read an array of any rank and dtype from a file in the IDX format, gzipped or plain.

    The format: two zero bytes, a dtype code, the rank, the sizes as big-endian uint32, the big-endian data. LeCun,
    Cortes and Burges, The MNIST database. Whether a file is gzipped is read from its first bytes, not from its name.

    Args:
      path: the file.
      max_bytes: the most data to accept. What is unpacked is never more than the header announces, and one byte.

    Returns:
      A new, writable array in the machine's byte order.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not an IDX file, is cut short, goes on too long, is too large, or its gzip is corrupt; names
        the file, what was found and what was expected.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "idx"
    >>> _ = path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))  # uint8, rank 2, 2 x 3
    >>> read_idx(path).tolist()
    [[1, 2, 3], [4, 5, 6]]
    """
    path = Path(path)
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            return _parse_idx(file, path, max_bytes)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: the gzip stream is corrupt or cut short: {error}") from error


def _parse_idx(file: BinaryIO | gzip.GzipFile, path: Path, max_bytes: int) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_DTYPES:
        known = ", ".join(f"{code:#04x}" for code in _IDX_DTYPES)
        raise ValueError(
            f"{path}: starts with bytes {magic.hex(' ') or '(none)'}, expected an IDX header: 00 00, a "
            f"dtype code ({known}), the rank"
        )
    dtype, rank = np.dtype(_IDX_DTYPES[magic[2]]), magic[3]
    if rank > 32:
        raise ValueError(f"{path}: the header announces {rank} axes, expected at most 32")
    header = file.read(4 * rank)
    if len(header) < 4 * rank:
        raise ValueError(f"{path}: cut short inside the header: {len(header)} bytes of sizes, expected {4 * rank}")
    shape = tuple(np.frombuffer(header, ">u4").tolist())
    expected = prod(shape) * dtype.itemsize
    if prod(max(n, 1) for n in shape) * dtype.itemsize > max_bytes:  # also (0, 2^32, 2^32), of no bytes at all
        raise ValueError(
            f"{path}: the header announces {dtype.name} {shape}, expected at most {max_bytes:,} "
            f"bytes; raise max_bytes if you trust it"
        )
    data = file.read(expected + 1)
    if len(data) != expected:
        got = f"only {len(data):,}" if len(data) < expected else "more"
        raise ValueError(
            f"{path}: the header announces {dtype.name} {shape}, so {expected:,} bytes, but there are {got}"
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _read_mnist_file(file: _MnistFile, data_dir: str | os.PathLike[str] | None) -> np.ndarray:
    path = _find_or_download(file, data_dir)
    array = read_idx(path, max_bytes=1 << 26)
    header = bytes((0, 0, 0x08, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    got = hashlib.sha256(header + array.tobytes()).hexdigest() if array.dtype == np.uint8 else f"of {array.dtype} data"
    if got != file.sha256:
        other = next((f" (that of {other.name})" for other in _MNIST.values() if other.sha256 == got), "")
        raise ValueError(
            f"{path}: the content is not MNIST's {file.name}: sha256 {got}{other}, expected "
            f"{file.sha256}; remove the file to have it downloaded again"
        )
    return array


def _find_or_download(file: _MnistFile, data_dir: str | os.PathLike[str] | None) -> Path:
    folders = [Path(folder) for folder in (data_dir, os.environ.get("FUNCNET_DATA")) if folder]
    for folder in folders:
        for name in (f"{file.name}.gz", file.name):
            if (folder / name).is_file():
                return folder / name

    pooch = import_extra("pooch")
    cache = Path(pooch.os_cache("funcnet")) / "mnist"
    tried = [f"no {file.name}[.gz] in {folder}" for folder in (*folders, cache)]
    for mirror in MIRRORS:
        url = f"{mirror}{file.name}.gz"
        try:  # looks into the cache first; writes to a temporary file, checks the hash, then moves it in place
            return Path(pooch.retrieve(url, file.gz_sha256, fname=f"{file.name}.gz", path=cache, progressbar=False))
        except Exception as error:  # whatever a network or a mirror can do: the next mirror may do better
            tried.append(f"{url}: {type(error).__name__}: {error}"[:300])
    tried.append(f"expected sha256 {file.gz_sha256} (gzipped), {file.sha256} (unpacked)")
    raise MnistNotFoundError("MNIST was neither found nor downloaded:\n  " + "\n  ".join(tried))
