"""Atomic writes and safe reads of files: a reader finds the old content or the new, never a part."""

import errno
import os
import re
import stat
import uuid
from functools import partial
from pathlib import Path
from typing import BinaryIO

__all__ = ["as_path", "is_leftover", "open_regular", "write_atomically"]

_PART = re.compile(r"\.[0-9a-f]{32}\.funcnet-part")  # the name of an unfinished file; no other file has such a name

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def as_path(path: str | bytes | os.PathLike) -> Path:
    """A path from the user: `~` is the home folder; bytes are decoded.

    >>> as_path("~") == Path.home(), as_path("a/~b"), as_path(b"a")
    (True, PosixPath('a/~b'), PosixPath('a'))
    """
    return Path(os.path.expanduser(os.fsdecode(path)))  # noqa: PTH111  Path.expanduser fails for a user who is not there


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading, in bytes. It does not wait for a pipe, or read from a device.

    Raises:
      FileNotFoundError: there is no such file; for a broken link, the message names its target.
      OSError: it cannot be opened.
      ValueError: it is a folder, a pipe, a device or a socket.

    >>> open_regular("/dev/null")
    Traceback (most recent call last):
    ValueError: /dev/null: is a device, expected a regular file
    """
    path = as_path(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        if path.is_symlink():
            error.strerror = f"{error.strerror}: a link to {os.path.realpath(path)}"
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path}: is {_kind(mode)}, expected a regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds either the old content or the new.

    For a symbolic link, its target is written. A file that is replaced keeps its mode; the mode of a new one follows
    the umask.

    Raises:
      FileNotFoundError: there is no such folder.
      OSError: the file cannot be written, or is a folder, a pipe or a device; an existing file is unchanged.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note"
    >>> write_atomically(path, b"text")
    >>> path.read_bytes()
    b'text'
    """
    path = as_path(path)
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {target.parent if path.is_symlink() else path.parent}")
    temporary = target.with_name(f".{uuid.uuid4().hex}.funcnet-part")  # unique among threads, processes and containers
    try:
        mode = _mode_to_keep(target)
        at_first = partial(os.open, mode=0o666 if mode is None else mode)  # never wider than the final mode
        with open(temporary, "xb", opener=at_first) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(target)
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether the file is a remainder of a process that was killed during `write_atomically`.

    >>> is_leftover(Path(".thesis.2024")), is_leftover(Path(".thesis.funcnet-part"))
    (False, False)
    """
    return _PART.fullmatch(path.name) is not None


def _mode_to_keep(path: Path) -> int | None:
    """The mode of the file that is to be replaced, checked to be writable, or None if there is none."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"there is {_kind(mode)}")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "the file there is read-only")
    return stat.S_IMODE(mode)


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "something else")
