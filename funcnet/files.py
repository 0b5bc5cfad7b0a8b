"""Files that are whole: a reader finds the old content or the new, whatever happens in between."""

import os
import uuid
from pathlib import Path

__all__ = ["is_leftover", "write_atomically"]

_PART = ".funcnet-part"  # how the name of an unfinished file ends: nobody else's does


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds either the old content or the new.

    Raises:
      OSError: the file cannot be written; what was there is left as it was.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note"
    >>> write_atomically(path, b"text")
    >>> path.read_bytes()
    b'text'
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    temporary = path.with_name(f".{uuid.uuid4().hex}{_PART}")  # shared with no other thread, process or container
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether the file is what a killed process left behind in the middle of `write_atomically`.

    >>> is_leftover(Path(".thesis.2024"))
    False
    """
    return path.name.startswith(".") and path.name.endswith(_PART)
