"""Your own data set from files: NumPy, CSV and IDX."""

import csv
import errno
import io
import os
import re
import string
import zipfile
from collections.abc import Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from funcnet.datasets.arrays import Dataset, from_arrays
from funcnet.datasets.idx import find_parts, read_idx
from funcnet.files import as_path, open_regular

_LABEL = ("label", "class", "target", "y")

_NAMES = ("x", "y"), ("x_train", "y_train", "x_test", "y_test")


def load_arrays(path: str | os.PathLike[str], *, max_bytes: int = 1 << 32) -> tuple[Dataset, tuple[str, ...]]:
    """Your own data set from files, with the names of its classes; see `from_arrays` for the arrays.

    - `FILE.npz` with the arrays `x` and `y`, or `x_train`, `y_train`, `x_test` and `y_test`;
    - a folder with these as `x.npy` and `y.npy`, and so on;
    - `FILE.csv` with a first line of names, one of them `label`, `class`, `target` or `y`, as Kaggle has MNIST;
    - a folder with four IDX files, under names such as `train-images-idx3-ubyte.gz` or `train-images.idx3-ubyte`, as
      for MNIST, Fashion-MNIST, KMNIST and EMNIST; `FOLDER/emnist-letters` selects the files whose names begin with
      `emnist-letters`. The images of EMNIST (files with this name) are stored transposed, and are transposed back; its
      letters, which count from 1, get the class ids 0 to 25 and the names a to z.

    Nothing is unpickled. LeCun, Cortes and Burges, The MNIST database; Cohen, Afshar, Tapson and van Schaik, EMNIST,
    2017.

    Args:
      path: the file or the folder.
      max_bytes: the largest size of all arrays together.

    Returns:
      The data set, and a name for each class, as many as the network needs outputs.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not such a file or folder, or holds other arrays, too large ones, or Python objects; also as in
        `from_arrays`.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/mine.npz"
    >>> np.savez(path, x=np.zeros((10, 28, 28), np.uint8), y=["cat", "dog"] * 5)
    >>> ((x, y), (x_test, y_test)), names = load_arrays(path)
    >>> x.shape, x_test.shape, names
    ((8, 784), (2, 784), ('cat', 'dog'))
    """
    path = as_path(path)
    try:
        if path.is_dir() and not any((path / f"{name}.npy").exists() for name in ("x", "x_train")):
            return _from_idx(path, "", max_bytes)
        if path.is_dir():
            names = [name for names in _NAMES for name in names if os.path.lexists(path / f"{name}.npy")]
            arrays = {name: _read_npy(path / f"{name}.npy", max_bytes) for name in _expected(names)}
        elif path.suffix.lower() == ".npz":
            arrays = _read_npz(path, max_bytes)
        elif path.suffix.lower() == ".csv":
            arrays = _read_csv(path, max_bytes)
        elif not os.path.lexists(path) and path.parent.is_dir():
            return _from_idx(path.parent, path.name, max_bytes)
        else:
            open_regular(path).close()  # raises if the path is not a file
            raise ValueError(
                "expected a .npz or .csv file, or a folder of .npy or IDX files; read other files by their own "
                "library, and pass the arrays to from_arrays(x, y), or save them by np.savez(FILE, x=x, y=y)"
            )
        return from_arrays(*(arrays[name] for names in _NAMES for name in names if name in arrays))
    except ValueError as error:
        raise error if str(error).startswith(str(path)) else ValueError(f"{path}: {error}") from error


def _expected(names: Sequence[str]) -> Sequence[str]:
    """The names, checked to be those of a data set."""
    if {*names} not in ({*_NAMES[0]}, {*_NAMES[1]}, {*_NAMES[1][:2]}):
        raise ValueError(
            f"holds the arrays {sorted(names)}, expected x and y, or x_train, y_train, x_test and y_test, and no others"
        )
    return names


def _read_npz(path, max_bytes) -> dict[str, np.ndarray]:
    with _whole(".npz"), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = archive.namelist()
        names = _expected([name.removesuffix(".npy") for name in members])
        if len({*names}) < len(names):
            raise ValueError(f"holds the arrays {sorted(names)}, expected each once")
        arrays = {}
        for name, member in zip(names, members, strict=True):
            arrays[name] = _read(name, lambda member=member: archive.open(member), max_bytes)
            max_bytes -= arrays[name].nbytes
        return arrays


def _read_npy(path, max_bytes) -> np.ndarray:
    with _whole(".npy"):
        return _read(path.name, lambda: open_regular(path), max_bytes)


@contextmanager
def _whole(kind):
    """Raise any error of a damaged file as a `ValueError`."""
    try:
        yield
    except Exception as error:
        of_the_system = isinstance(error, OSError) and error.errno not in (
            None,
            errno.EINVAL,
        )  # EINVAL: a bad seek
        if of_the_system or isinstance(error, (ValueError, MemoryError)):
            raise
        raise ValueError(f"not a whole {kind} file: {type(error).__name__}: {error}") from error


def _read(name, opened, max_bytes) -> np.ndarray:
    """An array in NumPy's format; its header is checked first."""
    with opened() as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in header:
            raise ValueError(f"{name} is in version {version} of NumPy's format, expected a plain array")
        shape, _, dtype = header[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, and reading them could run code: save numbers or text")
    if prod(max(n, 1) for n in shape) * dtype.itemsize > max_bytes:
        raise ValueError(
            f"{name}: the header announces {dtype} {shape}, expected at most {max_bytes:,} bytes in all; raise "
            "max_bytes if you trust it"
        )
    with opened() as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{name}: has more data than its header announces")
    return array


def _read_csv(path, max_bytes) -> dict[str, np.ndarray]:
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > max_bytes:
            raise ValueError(f"it is larger than {max_bytes:,} bytes; raise max_bytes if you trust it")
        names = next(csv.reader([file.readline(1 << 20).decode("utf-8-sig")]), [])
        labels = [place for place, name in enumerate(names) if name.strip().lower() in _LABEL]
        if len(labels) != 1 or len(names) < 2:
            raise ValueError(
                f"the first line is {', '.join(names)!r:.80}, expected names of columns, one of them "
                f"{', '.join(_LABEL)}; read other files by np.loadtxt, and pass the arrays to from_arrays(x, y)"
            )
        stripped = [name.strip() for name in names]
        for place, name in enumerate(stripped):
            if re.fullmatch(r"|Unnamed: \d+", name):
                raise ValueError(
                    f"column {place + 1} of the first line is {name!r}, expected a name: was the table written with "
                    "its index? DataFrame.to_csv(path, index=False) omits it"
                )
            if name in stripped[:place]:
                raise ValueError(f"the first line has {name!r} twice, expected another name for each column")
        columns = [place for place in range(len(names)) if place != labels[0]]
        if not file.read(1):
            raise ValueError("holds no samples")
        y = _column(file, labels[0], len(names))
        file.seek(0)
        x = np.loadtxt(file, delimiter=",", skiprows=1, quotechar='"', comments=None, encoding="utf-8-sig",
                       usecols=columns, ndmin=2)  # fmt: skip
    return {"x": x, "y": y.astype(float) if all(map(_is_number, np.unique(y))) else y}


def _column(file, place, width) -> np.ndarray:
    """A column as text; it checks that all rows are as long as the first, which `np.loadtxt` does not."""
    file.seek(0)
    text, column = io.TextIOWrapper(file, "utf-8-sig", newline=""), []
    rows = csv.reader(text)
    try:
        for row in rows:
            if len(row) not in (0, width):  # an empty line is not a row
                hint = ": write decimal points, not commas, and text with commas in quotation marks"
                raise ValueError(
                    f"line {rows.line_num}: the number of fields is {len(row)}, expected {width} as in the first line"
                    f"{hint if len(row) > width else ''}"
                )
            column += row[place : place + 1]
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from error
    text.detach()  # otherwise it would close the file
    return np.array(column[1:])


def _is_number(text: str) -> bool:
    try:
        return "_" not in text and bool(np.isfinite(float(text)))  # 1_0 is a number only in Python
    except ValueError:
        return False


def _from_idx(folder: Path, prefix: str, max_bytes) -> tuple[Dataset, tuple[str, ...]]:
    whose, parts = find_parts(folder, prefix)
    if not parts and (folder / "raw").is_dir():  # as torchvision stores them
        whose, parts = find_parts(folder / "raw", prefix)
    if "train" not in parts:
        if prefix:
            raise FileNotFoundError(f"{folder / prefix}: no such file or folder, and no IDX file's name begins with it")
        raise ValueError(f"{folder}: expected x.npy and y.npy, or IDX files such as train-images-idx3-ubyte.gz")
    letters = whose == "emnist-letters"
    arrays: list[Any] = []
    for part in sorted(parts, reverse=True):  # train, test
        images, labels = (read_idx(path, max_bytes=max_bytes) for path in parts[part])
        arrays += [images.swapaxes(1, 2) if whose.startswith("emnist") and images.ndim == 3 else images]
        arrays += [labels.astype(np.int64) - 1 if letters else labels]
    dataset, names = from_arrays(*arrays)
    return dataset, tuple(string.ascii_lowercase) if letters else names
