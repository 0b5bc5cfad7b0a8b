"""Damaged checkpoints: tell them from those that cannot be read for other reasons, and put them aside."""

import errno
import gc
import sys
import warnings
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

import jax
from jax.experimental.multihost_utils import sync_global_devices

# The error numbers that a damaged file can lead to; other ones are faults of the system.
_ERRORS_OF_FILES = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


def as_damage(manager, number, error) -> Exception:
    """Return the error if the files are at fault; raise it if it is one of memory, rights or the file system."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno not in _ERRORS_OF_FILES:
            raise OSError(link.errno, f"checkpoint {number} cannot be read: {link.strerror}", str(manager.directory))
        if isinstance(link, MemoryError) or "RESOURCE_EXHAUSTED" in str(link) or "PERMISSION_DENIED" in str(link):
            raise error
        link = link.__cause__ or link.__context__
    if jax.process_count() > 1:
        sync_global_devices(f"damaged checkpoint {number}")
    return error


def put_aside(manager, damaged: dict[int, Exception]) -> None:
    """Move damaged checkpoints to another folder: nothing is lost, and their numbers can be written again."""
    if not damaged:
        return
    for number, error in damaged.items() if jax.process_index() == 0 else ():
        path = Path(manager.directory) / str(number)
        aside = path.parent.with_name(f"{path.parent.name}-damaged") / path.name
        while aside.exists():
            aside = aside.with_name(f"{aside.name}x")
        warnings.warn(f"checkpoint {path} is damaged ({reason(error)}): it is moved to {aside}, and an earlier one "
                      "is used", stacklevel=3)  # fmt: skip
        aside.parent.mkdir(exist_ok=True)
        path.rename(aside)
    if jax.process_count() > 1:
        sync_global_devices("damaged checkpoints are put aside")
    manager.reload()


def reason(error) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def quiet_stderr():
    """Hide the long tracebacks of threads that fail to read a damaged file; the exception says enough."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with redirect_stderr(StringIO()):
            yield
    except Exception as error:
        error.__traceback__ = None  # it holds those threads' coroutines, which print warnings when they are deleted
        gc.collect()
        raise
    finally:
        sys.unraisablehook = hook
