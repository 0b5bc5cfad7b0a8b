"""Checkpoints that are damaged: told apart from those that cannot be read for other reasons, and put aside."""

import errno
import gc
import sys
import warnings
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

import jax
from jax.experimental.multihost_utils import sync_global_devices

# What a damaged file makes of an attempt to read it; other errors of the system tell of the system.
_ERRORS_OF_FILES = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)


def as_damage(manager, number, error) -> Exception:
    """The error, if the files are at fault; one of memory, rights or the file system is raised instead."""
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
    """Move damaged checkpoints out of the way: nothing is lost, and their numbers can be written again."""
    if not damaged:
        return
    for number, error in damaged.items() if jax.process_index() == 0 else ():
        path = Path(manager.directory) / str(number)
        aside = path.parent.with_name(f"{path.parent.name}-damaged") / path.name
        while aside.exists():
            aside = aside.with_name(f"{aside.name}x")
        warnings.warn(f"checkpoint {path} is damaged ({reason(error)}): it is moved to {aside}, and one before "
                      "is taken", stacklevel=3)  # fmt: skip
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
    """Keep pages of traces, of threads that read a damaged file in vain, off the screen: the exception says enough."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with redirect_stderr(StringIO()):
            yield
    except Exception as error:
        error.__traceback__ = None  # it holds those threads' coroutines, which complain when they go
        gc.collect()
        raise
    finally:
        sys.unraisablehook = hook
