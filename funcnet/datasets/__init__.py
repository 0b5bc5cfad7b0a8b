"""Data sets as plain NumPy arrays: MNIST, Fashion-MNIST, the digits bundled with scikit-learn, and your own.

Every file is checked before it is used: the header against the length, and the content of known files by its hash.
"""

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from funcnet.datasets.arrays import Dataset, from_arrays, split
from funcnet.datasets.idx import find, read_idx
from funcnet.datasets.own_files import load_arrays
from funcnet.extras import import_extra
from funcnet.files import as_path, open_regular

__all__ = [
    "FASHION_MNIST_NAMES",
    "Dataset",
    "MnistNotFoundError",
    "from_arrays",
    "load_arrays",
    "load_digits",
    "load_fashion_mnist",
    "load_mnist",
    "load_mnist_or_digits",
    "read_idx",
]

MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)


class _MnistFile(NamedTuple):
    name: str  # without .gz
    gz_sha256: str  # of the file that the mirrors serve
    sha256: str  # of its content: this hash decides, since re-gzipped copies exist


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


# By Zalando Research. Its README and torchvision publish MD5 hashes of these files, others publish both kinds.
FASHION_MIRRORS = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)

_FASHION_MNIST = {
    "train_images": _MnistFile(
        "train-images-idx3-ubyte",
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train_labels": _MnistFile(
        "train-labels-idx1-ubyte",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "test_images": _MnistFile(
        "t10k-images-idx3-ubyte",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "test_labels": _MnistFile(
        "t10k-labels-idx1-ubyte",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}

FASHION_MNIST_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class MnistNotFoundError(FileNotFoundError):
    """MNIST, or Fashion-MNIST, was not found and not downloaded; the message lists the places that were tried."""


def load_mnist(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """The MNIST database of handwritten digits: 60,000 training and 10,000 test images of 28 x 28 pixels.

    If `data_dir` is given, the four files must be in it. Otherwise they are looked for in the folder in the environment
    variable `FUNCNET_DATA` (with a warning if there is no such folder), then in the user's cache. Missing files are
    downloaded into the cache; if a mirror fails, the next one is tried. Files may be gzipped or not, and have the names
    that archivers, Kaggle and torchvision give them: `train-images.idx3-ubyte`, each in a folder of the same name, all
    in `MNIST/raw`. LeCun, Bottou, Bengio and Haffner, Proceedings of the IEEE, 1998.

    Args:
      data_dir: the folder with the files.

    Returns:
      uint8 images `(N, 784)` and int32 labels `(N,)`.

    Raises:
      MnistNotFoundError: a file is not in the given folder; or it was not found and all mirrors failed. The message
        names the paths, URLs and hashes tried.
      ValueError: the content of a file is not MNIST's; the message names the file and both hashes.
      ImportError: a download is needed and pooch is not installed; the message names the extra to install.
    """
    return _load(_Known("MNIST", "mnist", ("MNIST/raw", "mnist"), _MNIST, MIRRORS), data_dir)


def load_fashion_mnist(data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """Fashion-MNIST: articles of clothing in the form of MNIST, and under the same file names.

    Found or downloaded as by `load_mnist`, also in `FashionMNIST/raw` and similar folders; hashes tell it from MNIST.
    The names of the classes are `FASHION_MNIST_NAMES`. Xiao, Rasul and Vollgraf, arXiv:1708.07747, 2017.

    Args:
      data_dir: the folder with the files.

    Returns:
      uint8 images `(N, 784)` and int32 labels `(N,)`.

    Raises:
      MnistNotFoundError, ValueError, ImportError: as `load_mnist`.
    """
    places = ("FashionMNIST/raw", "fashion-mnist", "fashion")
    return _load(_Known("Fashion-MNIST", "fashion-mnist", places, _FASHION_MNIST, FASHION_MIRRORS), data_dir)


def load_digits() -> Dataset:
    """The digits bundled with scikit-learn: 1,797 images of 8 x 8 pixels, no download; a fifth is for testing.

    The test set of Alpaydin and Kaynak's Optical Recognition of Handwritten Digits, UCI, 1998. Pixels from 0 to 16 are
    scaled to 0 to 255, as in MNIST. The split is random, and always the same.

    Returns:
      uint8 images `(N, 64)` and int32 labels `(N,)`: 1,437 for training, 360 for testing.

    Raises:
      ImportError: scikit-learn is not installed; the message names the extra to install.

    >>> (x, y), (x_test, y_test) = load_digits()
    >>> x.shape, x.dtype, y.shape, x_test.shape
    ((1437, 64), dtype('uint8'), (1437,), (360, 64))
    """
    digits = import_extra("sklearn.datasets").load_digits()
    x = np.round(digits.data * (255 / 16)).astype(np.uint8)
    y = digits.target.astype(np.int32)
    return split(x, y, held_out=len(x) // 5 + 1)


def load_mnist_or_digits(
    data_dir: str | os.PathLike[str] | None = None, *, say: Callable[[str], object] = print
) -> tuple[str, Dataset]:
    """MNIST as `load_mnist` finds it; where it is nowhere, the digits of `load_digits`, and a line that says so.

    Args:
      data_dir: the folder that holds the files of MNIST. If you give one, they must be there.
      say: is called with the line.

    Returns:
      `("MNIST", dataset)` or `("digits", dataset)`.

    Raises:
      MnistNotFoundError: a file is not in the folder that was given.
      ValueError: as `load_mnist`.
      ImportError: as `load_digits`.

    >>> load_mnist_or_digits("none")
    Traceback (most recent call last):
    funcnet.datasets.MnistNotFoundError: MNIST: there is no folder none; without a folder, other places are tried
    """
    try:
        return "MNIST", load_mnist(data_dir)
    except MnistNotFoundError as error:
        if data_dir is not None:
            raise
        places = len(str(error).splitlines()) - 2
        why = f"was neither found nor downloaded ({places} places tried; funcnet.datasets.load_mnist() lists them)"
    except ImportError as error:
        why = f"cannot be downloaded ({error})"
    say(f"MNIST {why}: the small digits of scikit-learn take its place")
    return "digits", load_digits()


class _Known(NamedTuple):
    """A data set with known hashes."""

    title: str
    cache: str  # its folder in the user's cache
    places: tuple[str, ...]  # subfolders in which it may be
    files: dict[str, _MnistFile]
    mirrors: tuple[str, ...]


def _load(known: _Known, data_dir) -> Dataset:
    arrays = {part: _read(known, file, data_dir) for part, file in known.files.items()}

    def pair(part):
        images = arrays[f"{part}_images"]
        return images.reshape(len(images), -1), arrays[f"{part}_labels"].astype(np.int32)

    return Dataset(pair("train"), pair("test"))


def _read(known: _Known, file: _MnistFile, data_dir) -> np.ndarray:
    """A file's array, from the given folder, or else from any of the usual places."""
    if data_dir is not None:
        folder = as_path(data_dir)
        if (path := _find(known, file, folder)) is None:
            what = f"no {file.name}[.gz] in {folder}" if folder.is_dir() else f"there is no folder {folder}"
            raise MnistNotFoundError(f"{known.title}: {what}; without a folder, other places are tried")
        return _believed(known, file, path)
    tried = []
    if os.environ.get("FUNCNET_DATA"):
        folder = as_path(os.environ["FUNCNET_DATA"])
        if not folder.is_dir():
            warnings.warn(
                f"FUNCNET_DATA is {folder}, which is not a folder: other places are tried for {known.title}",
                stacklevel=5,
            )
        path = _find(known, file, folder)
        if path is not None and (array := _believed(known, file, path, others_pass=True)) is not None:
            return array
        tried = [f"no {file.name}[.gz] in {folder}" if path is None else f"{path} is of another data set"]
    return _believed(known, file, _cached_or_downloaded(known, file, tried))


def _find(known: _Known, file: _MnistFile, folder: Path) -> Path | None:
    found = (find(folder / place, file.name) for place in (*known.places, "raw", ""))
    return next((path for path in found if path), None)


def _believed(known: _Known, file: _MnistFile, path: Path, others_pass: bool = False) -> Any:
    """The array, if its hash is correct; `None` if it is of the other data set and `others_pass`."""
    array = read_idx(path, max_bytes=1 << 26)
    header = bytes((0, 0, 0x08, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    got = hashlib.sha256(header + array.tobytes()).hexdigest() if array.dtype == np.uint8 else f"of {array.dtype} data"
    if got == file.sha256:
        return array
    tables = {"MNIST": _MNIST, "Fashion-MNIST": _FASHION_MNIST}
    owners = [(title, f.name) for title, files in tables.items() for f in files.values() if f.sha256 == got]
    if others_pass and any(title != known.title for title, _ in owners):
        return None
    told = "".join(f" (that of {name}{f' of {title}' * (title != known.title)})" for title, name in owners)
    raise ValueError(
        f"{path}: the content is not {known.title}'s {file.name}: sha256 {got}{told}, expected {file.sha256}; remove "
        "the file to have it downloaded again"
    )


def _cached_or_downloaded(known: _Known, file: _MnistFile, tried: list[str]) -> Path:
    pooch = import_extra("pooch")
    cache = Path(pooch.os_cache("funcnet")) / known.cache
    tried = [*tried, f"no {file.name}[.gz] in {cache}"]
    if (cached := cache / f"{file.name}.gz").exists():
        open_regular(cached).close()  # pooch would wait for ever on a pipe
    for mirror in known.mirrors:
        url = f"{mirror}{file.name}.gz"
        try:  # looks in the cache first; downloads to a temporary file, checks the hash, then moves the file
            return Path(pooch.retrieve(url, file.gz_sha256, fname=f"{file.name}.gz", path=cache, progressbar=False))
        except Exception as error:  # any error of a network or mirror: try the next mirror
            tried.append(f"{url}: {type(error).__name__}: {error}"[:300])
    tried.append(f"expected sha256 {file.gz_sha256} (gzipped), {file.sha256} (unpacked)")
    raise MnistNotFoundError(f"{known.title} was neither found nor downloaded:\n  " + "\n  ".join(tried))
