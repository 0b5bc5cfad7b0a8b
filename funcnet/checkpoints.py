"""Checkpoints of a run: written behind its back, whole or not at all, and believed only after a check.

    with checkpoints.open_folder("run/checkpoints", keep=3) as folder:
        found = checkpoints.restore(folder, like=state)  # None, or the newest that is sound
        ...
        checkpoints.save(folder, epoch, state, {"history": history})  # returns at once

Orbax stores the arrays (each process its own shards, in the background) and takes care that a checkpoint appears in one
step. What it does not notice is a flipped bit; so each checkpoint holds a fingerprint of its arrays, taken where they
lie.
"""

import errno
import gc
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import sync_global_devices

from funcnet.extras import import_extra

__all__ = ["Checkpoint", "fingerprint", "open_folder", "restore", "save", "wait"]

# What a damaged file makes of an attempt to read it; other errors of the system tell of the system.
_ERRORS_OF_FILES = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)

_WRITE_TIMEOUT = 30  # seconds that one of several processes waits for the others to have written their parts


class Checkpoint(NamedTuple):
    """What `restore` finds."""

    number: int  # as given to `save`: how many epochs were done, say
    tree: Any  # of arrays
    notes: dict[str, Any]


@contextmanager
def open_folder(path: str | os.PathLike[str], *, keep: int = 3) -> Iterator[Any]:
    """Open a folder of checkpoints, made if it is not there; what an interrupted write has left in it is removed.

    Leaving the block waits for what is still being written. Every process opens it, on a file system that all share.

    Args:
      path: the folder.
      keep: how many checkpoints stay; older ones are deleted.

    Raises:
      ImportError: orbax is not installed.
      OSError: the folder cannot be made or written; also, on leaving, the last checkpoint could not be (a note on the
        block's own exception, if it ends with one).

    >>> import tempfile
    >>> state = [jnp.arange(3.0)]
    >>> with open_folder(tempfile.mkdtemp()) as folder:
    ...     save(folder, 5, state, {"epochs": 5})
    ...     wait(folder)
    ...     restore(folder, like=state)
    Checkpoint(number=5, tree=[Array([0., 1., 2.], dtype=float32)], notes={'epochs': 5})
    """
    ocp = import_extra("orbax.checkpoint")
    path = Path(path).resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
        waits = ocp.options.AsyncOptions(timeout_secs=_WRITE_TIMEOUT) if jax.process_count() > 1 else None
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True, async_options=waits)
        manager = ocp.CheckpointManager(path, options=options)
    except OSError as error:
        raise OSError(f"checkpoints in {path}: the folder cannot be written: {error}") from error
    try:
        yield manager
        wait(manager)
    except BaseException as error:
        if jax.process_count() == 1:  # closing waits for the other processes, which may never come here
            try:
                _close(manager)
            except OSError as late:
                if not isinstance(error, OSError):
                    error.add_note(str(late))
        raise
    _close(manager)


def save(manager: Any, number: int, tree: Any, notes: dict[str, Any] | None = None) -> None:
    """Begin to write a checkpoint, and return as soon as the arrays may change.

    Args:
      manager: from `open_folder`.
      number: larger than those before.
      tree: arrays, of any sharding, random keys among them.
      notes: what JSON can hold.

    Raises:
      OSError: it cannot be written, or the one before could not be.
      ValueError: the number is not larger than those before.

    >>> import tempfile
    >>> with open_folder(tempfile.mkdtemp(), keep=1) as folder:
    ...     for number in (1, 2):
    ...         save(folder, number, [jnp.zeros(3)])
    """
    ocp = import_extra("orbax.checkpoint")
    wait(manager)  # so that a failure of the one before goes by its own number; orbax would wait, too
    newest = manager.latest_step()
    if newest is not None and number <= newest:
        raise ValueError(
            f"checkpoint {number} in {manager.directory}: expected a number above {newest}, the newest there"
        )
    shapes, tree = _shapes(tree), jax.tree.map(_without_key, tree)
    content = json.dumps({"shapes": shapes, "fingerprint": np.asarray(fingerprint(tree)).tolist(),
                          "notes": notes or {}})  # fmt: skip
    sealed = {"content": content, "sha256": hashlib.sha256(content.encode()).hexdigest()}
    if not hasattr(jax, "set_mesh") and any(len(leaf.sharding.device_set) > 1 for leaf in jax.tree.leaves(tree)):
        raise OSError(
            f"checkpoint {number} in {manager.directory}: cannot be written: its arrays lie on several "
            f"devices, and orbax needs a newer jax for that than {jax.__version__}"
        )
    args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), sealed=ocp.args.JsonSave(sealed))
    with _write_errors(manager, number):
        manager.save(number, args=args, force=True)


def wait(manager: Any) -> None:
    """Wait until everything is written.

    Raises:
      OSError: it could not be.

    >>> import tempfile
    >>> with open_folder(tempfile.mkdtemp()) as folder:
    ...     wait(folder)
    """
    with _write_errors(manager, manager.latest_step()):
        manager.wait_until_finished()


def restore(manager: Any, like: Any) -> Checkpoint | None:
    """The newest sound checkpoint; those after it, which are damaged, are put aside with a warning.

    Args:
      manager: from `open_folder`.
      like: the tree that is expected, of arrays; what is read lies on devices as they do.

    Returns:
      The checkpoint, or `None` if there is none.

    Raises:
      TypeError: a leaf of `like` is no JAX array.
      ValueError: there is one, of another tree; says of which array it has another shape or dtype. Or there are some,
        and none is sound; then they stay where they are.
      OSError, MemoryError: it could not be read, for no fault of its own.

    >>> import tempfile
    >>> with open_folder(tempfile.mkdtemp()) as folder:
    ...     print(restore(folder, like=[jnp.zeros(3)]))
    None
    """
    ocp = import_extra("orbax.checkpoint")
    abstract = jax.tree.map(_abstract, jax.tree.map(_without_key, like))
    damaged: dict[int, Exception] = {}
    for number in sorted(manager.all_steps(), reverse=True):
        try:
            with _quiet_stderr():
                sealed = manager.restore(number, args=ocp.args.Composite(sealed=ocp.args.JsonRestore())).sealed
            if hashlib.sha256(sealed["content"].encode()).hexdigest() != sealed["sha256"]:
                raise ValueError("its notes have changed since they were written")
            content = json.loads(sealed["content"])
        except Exception as error:  # a damaged file makes many kinds of them
            damaged[number] = _as_damage(manager, number, error)
            continue
        _check_shapes(manager.directory / str(number), content["shapes"], _shapes(like))
        try:
            with _quiet_stderr():
                tree = manager.restore(number, args=ocp.args.Composite(tree=ocp.args.StandardRestore(abstract))).tree
            if np.asarray(fingerprint(tree)).tolist() != content["fingerprint"]:
                raise ValueError("its arrays have changed since they were written")
        except Exception as error:
            damaged[number] = _as_damage(manager, number, error)
            continue
        _put_aside(manager, damaged)
        return Checkpoint(number, jax.tree.map(_with_key, tree, like), content["notes"])
    if damaged:
        reasons = "; ".join(f"{number}: {_reason(error)}" for number, error in damaged.items())
        raise ValueError(
            f"{manager.directory}: none of its {len(damaged)} checkpoints is sound ({reasons}); they are "
            "left as they are"
        )
    return None


@jax.jit
def fingerprint(tree: Any) -> Array:
    """Two words that change whenever a single number of the arrays does, in any bit, `(2,)` uint32.

    Each word of the arrays is mixed with its place by steps that lose nothing (Appleby's finalizer of MurmurHash3), and
    the sum modulo 2^32 is taken. It is the same on every mesh, to the bit, since such sums have no order, and no array
    leaves its devices. It guards against accidents, not against a forger.

    >>> a = jnp.arange(3.0)
    >>> bool((fingerprint([a]) == fingerprint([a])).all()), bool((fingerprint([a]) == fingerprint([-a])).any())
    (True, False)
    """
    total = jnp.zeros(2, jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        words = _words(leaf)
        place = jnp.zeros(words.shape, jnp.uint32)
        for axis in range(words.ndim):
            stride = prod(words.shape[axis + 1 :]) % 2**32
            place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
        for lane, seed in enumerate((0x9E3779B9, 0x85EBCA77)):
            salt = _mixed(place + jnp.uint32(seed * (number + 1) % 2**32))
            total = total.at[lane].add(jnp.sum(_mixed(words ^ salt), dtype=jnp.uint32))
    return total


def _words(leaf) -> Array:
    """The bits of an array, 32 at a time."""
    leaf = jnp.asarray(leaf)
    if jnp.iscomplexobj(leaf):
        return _words(jnp.stack([leaf.real, leaf.imag]))
    if leaf.dtype == jnp.bool_ or leaf.dtype.itemsize < 4:
        narrow = jnp.uint8 if leaf.dtype.itemsize == 1 else jnp.uint16
        bits = leaf.astype(narrow) if leaf.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(leaf, narrow)
        return bits.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, jnp.uint32)


def _mixed(h):
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> shift)) * jnp.uint32(factor)
    return h ^ (h >> 16)


def _is_key(leaf) -> bool:
    return isinstance(leaf, Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_key(leaf):
    """A random key as the integers that it is, which every orbax can store."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _with_key(leaf, like):
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if _is_key(like) else leaf


def _shapes(tree) -> dict[str, str]:
    """Each leaf's place in the tree, and what it is."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _check_shapes(path, found, expected):
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{path}: of another network or optimizer: {name} is {found.get(name, 'not there')}, "
                f"expected {expected.get(name, 'no such array')}"
            )


def _abstract(leaf) -> jax.ShapeDtypeStruct:
    if not isinstance(leaf, Array):
        raise TypeError(
            f"like has a {type(leaf).__name__} for a leaf, expected JAX arrays, which say where to put what is read"
        )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _as_damage(manager, number, error) -> Exception:
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


def _put_aside(manager, damaged: dict[int, Exception]) -> None:
    """Move damaged checkpoints out of the way: nothing is lost, and their numbers can be written again."""
    if not damaged:
        return
    for number, error in damaged.items() if jax.process_index() == 0 else ():
        path = Path(manager.directory) / str(number)
        aside = path.parent.with_name(f"{path.parent.name}-damaged") / path.name
        while aside.exists():
            aside = aside.with_name(f"{aside.name}x")
        warnings.warn(f"checkpoint {path} is damaged ({_reason(error)}): it is moved to {aside}, and one before "
                      "is taken", stacklevel=3)  # fmt: skip
        aside.parent.mkdir(exist_ok=True)
        path.rename(aside)
    if jax.process_count() > 1:
        sync_global_devices("damaged checkpoints are put aside")
    manager.reload()


def _reason(error) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _close(manager) -> None:
    with _write_errors(manager, manager.latest_step()):
        manager.close()


@contextmanager
def _quiet_stderr():
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


@contextmanager
def _write_errors(manager, number):
    """What goes wrong in writing, as one kind of error that says where."""
    try:
        yield
    except Exception as error:
        raise OSError(f"checkpoint {number} in {manager.directory}: cannot be written: {error}") from error
