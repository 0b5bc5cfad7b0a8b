"""The IDX format, and the names under which its files are found."""

import gzip
import os
import re
import zlib
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from funcnet.files import open_regular

_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str], *, max_bytes: int = 1 << 30) -> np.ndarray:
    """Read an array of any rank and dtype from a file in the IDX format, gzipped or plain.

    The format: two zero bytes, a dtype code, the rank, the sizes as big-endian uint32, the big-endian data. LeCun,
    Cortes and Burges, The MNIST database. The first bytes of the file tell whether it is gzipped, not its name.

    Args:
      path: the file.
      max_bytes: the largest size of the data. At most one byte more than the header announces is unpacked.

    Returns:
      A new, writable array in the machine's byte order.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a regular file or not an IDX file, is too short, too long or too large, or its gzip stream
        is corrupt; the message names the file, what was found and what was expected.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "idx"
    >>> _ = path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))  # uint8, rank 2, 2 x 3
    >>> read_idx(path).tolist()
    [[1, 2, 3], [4, 5, 6]]
    """
    try:
        with open_regular(path) as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            return _parse_idx(gzip.GzipFile(fileobj=file) if zipped else file, path, max_bytes)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: the gzip stream is corrupt or cut short: {error}") from error


def _parse_idx(file: BinaryIO | gzip.GzipFile, path, max_bytes: int) -> np.ndarray:
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
    if prod(max(n, 1) for n in shape) * dtype.itemsize > max_bytes:  # also for (0, 2^32, 2^32), which has no bytes
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


# A part of a data set: 7-Zip unpacks "-images-idx3-ubyte.gz" as "-images.idx3-ubyte".
_FILE = re.compile(r"(?P<prefix>|.+(?=-))-?(?P<part>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte(\.gz)?")


def find(folder: Path, name: str) -> Path | None:
    """The file of this name, e.g. `train-images-idx3-ubyte`, as archivers, Kaggle and torchvision store it.

    It may be gzipped, have `.idx` for `-idx`, and be in a folder of the same name.
    """
    dotted = name.replace("-idx", ".idx")
    names = [f"{stem}{ending}" for stem in (name, dotted) for ending in (".gz", "")]
    paths = [folder / n for n in names] + [folder / outer / n for outer in (name, dotted) for n in names]
    return next((path for path in paths if os.path.lexists(path) and not path.is_dir()), None)


def find_parts(folder: Path, prefix: str) -> tuple[str, dict[str, tuple[Path, Path]]]:
    """The prefix of the IDX files whose names begin with `prefix`, and their images and labels of `train` and `test`.

    Raises:
      ValueError: the files are of several data sets, or one file of a pair is missing.
    """
    found = [match for entry in sorted(folder.iterdir()) if (match := _FILE.fullmatch(entry.name))]
    prefixes = {match["prefix"] for match in found if match["prefix"].startswith(prefix)}
    if len(prefixes) > 1 and prefix not in prefixes:
        several = ", ".join(str(folder / other) for other in sorted(prefixes))
        raise ValueError(f"{folder}: holds several data sets, expected the name of one: {several}")
    whose = prefix if prefix in prefixes else next(iter(prefixes), prefix)
    parts = {}
    for match in found:
        if match["prefix"] == whose:
            stem = f"{whose}-{match['part']}".removeprefix("-")
            names = f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"
            images, labels = find(folder, names[0]), find(folder, names[1])
            if images is None or labels is None:
                raise ValueError(f"{folder}: holds {match[0]}, but no {names[images is not None]}[.gz]")
            parts["train" if match["part"] == "train" else "test"] = images, labels
    return whose, parts
