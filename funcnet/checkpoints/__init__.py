"""Checkpoints of a run: written behind its back, whole or not at all, and believed only after a check.

    with checkpoints.open_folder("run/checkpoints", keep=3) as folder:
        found = checkpoints.restore(folder, like=state)  # None, or the newest that is sound
        ...
        checkpoints.save(folder, epoch, state, {"history": history})  # returns at once

Orbax stores the arrays (each process its own shards, in the background) and takes care that a checkpoint appears in one
step. What it does not notice is a flipped bit; so each checkpoint holds a fingerprint of its arrays, taken where they
lie.
"""

import json
import operator
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from funcnet.checkpoints import leaves
from funcnet.checkpoints.damage import as_damage, put_aside, quiet_stderr, reason
from funcnet.checkpoints.fingerprints import fingerprint, fingerprints
from funcnet.checkpoints.notes import check_notes, sealed, unsealed
from funcnet.extras import import_extra
from funcnet.files import as_path

__all__ = ["Checkpoint", "fingerprint", "open_folder", "restore", "save", "wait"]

_TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of unfinished checkpoints, which orbax sweeps away

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
    The folder is for checkpoints alone, since older ones are deleted: one with numbered folders of yours is refused.

    Args:
      path: the folder.
      keep: how many checkpoints stay; older ones are deleted.

    Raises:
      ImportError: orbax is not installed.
      OSError: the folder cannot be made or written; also, on leaving, the last checkpoint could not be (a note on the
        block's own exception, if it ends with one).
      ValueError: something in the folder has a name that a checkpoint could have, and is none.

    >>> import tempfile
    >>> state = [jax.numpy.arange(3.0)]
    >>> with open_folder(tempfile.mkdtemp()) as folder:
    ...     save(folder, 5, state, {"epochs": 5})
    ...     wait(folder)
    ...     restore(folder, like=state)
    Checkpoint(number=5, tree=[Array([0., 1., 2.], dtype=float32)], notes={'epochs': 5})
    """
    ocp = import_extra("orbax.checkpoint")
    path = as_path(path).resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
        _check_own(path)
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
      tree: arrays, of any sharding, random keys of either style among them, and Python numbers.
      notes: what JSON can hold, in dictionaries whose keys are text, and lists.

    Raises:
      OSError: it cannot be written, or the one before could not be.
      TypeError: a leaf is something else; says which.
      ValueError: the number is not larger than those before, or no whole number; the notes would come back as something
        else (a tuple as a list, a key that is no text as text); two leaves have one name, or one is masked.

    >>> import tempfile
    >>> with open_folder(tempfile.mkdtemp(), keep=1) as folder:
    ...     for number in (1, 2):
    ...         save(folder, number, [jax.numpy.zeros(3)])
    """
    ocp = import_extra("orbax.checkpoint")
    wait(manager)  # so that a failure of the one before goes by its own number; orbax would wait, too
    try:
        number = operator.index(number)
    except TypeError as error:
        raise ValueError(f"number is {number!r}, expected a whole number: no other is found again") from error
    newest = manager.latest_step()
    if number < 0:
        raise ValueError(f"number is {number}, expected a whole number >= 0")
    if newest is not None and number <= newest:
        raise ValueError(
            f"checkpoint {number} in {manager.directory}: expected a number above {newest}, the newest there"
        )
    check_notes(notes or {})
    shapes, named = leaves.shapes(tree), leaves.named(tree)
    numbers = {name: leaf for name, leaf in named.items() if leaves.is_number(leaf)}
    tree = jax.tree.map(leaves.stored, tree)
    prints = fingerprints(jax.tree.leaves(tree))
    content = json.dumps({"shapes": shapes, "fingerprint": _total(prints), "numbers": numbers, "notes": notes or {},
                          "parts": dict(zip(named, np.asarray(prints).tolist(), strict=True))})  # fmt: skip
    if not hasattr(jax, "set_mesh") and any(
        isinstance(leaf, Array) and len(leaf.sharding.device_set) > 1 for leaf in jax.tree.leaves(tree)
    ):
        raise OSError(
            f"checkpoint {number} in {manager.directory}: cannot be written: its arrays lie on several "
            f"devices, and orbax needs a newer jax for that than {jax.__version__}"
        )
    args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), sealed=ocp.args.JsonSave(sealed(content)))
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


def restore(manager: Any, like: Any, *, number: int | None = None, part: bool = False) -> Checkpoint | None:
    """The newest sound checkpoint, or one by its number; newer ones that are damaged are put aside with a warning.

    Args:
      manager: from `open_folder`.
      like: the tree that is expected, of arrays and numbers; what is read lies on devices as they do.
      number: which checkpoint; by default the newest that is sound.
      part: whether `like` may be a part of the tree that was saved, such as `{"params": params}` of a `TrainState`. A
        field of a named tuple and a key of a dictionary are the same here.

    Returns:
      The checkpoint, or `None` if there is none.

    Raises:
      TypeError: a leaf of `like` is neither a JAX array nor a Python number.
      ValueError: there is one, of another tree; says of which array it has another shape or dtype, and of a part that
        is not there what is. There is none of that number, or it is damaged. Or there are some, and none is sound; then
        they stay where they are.
      OSError, MemoryError: it could not be read, for no fault of its own.

    >>> import tempfile
    >>> with open_folder(tempfile.mkdtemp()) as folder:
    ...     print(restore(folder, like=[jax.numpy.zeros(3)]))
    ...     save(folder, 1, {"params": [jax.numpy.zeros(3)], "epochs": 7})
    ...     wait(folder)
    ...     print(restore(folder, like={"epochs": 0}, number=1, part=True).tree)
    None
    {'epochs': 7}
    """
    jax.tree.map(leaves.abstract, like)  # a leaf that does not say what it is, is refused before anything is read
    damaged: dict[int, Exception] = {}
    for found in _numbers(manager, number):
        path = manager.directory / str(found)
        try:
            content = unsealed(manager, found)
        except Exception as error:  # a damaged file makes many kinds of them
            damaged[found] = as_damage(manager, found, error)
            continue
        (leaves.check_part if part else leaves.check_whole)(path, content, like)
        try:
            tree = _read(manager, found, content, like, part)
        except Exception as error:
            damaged[found] = as_damage(manager, found, error)
            continue
        if number is None:
            put_aside(manager, damaged)
        return Checkpoint(found, leaves.as_before(tree, like, content.get("numbers", {})), content["notes"])
    if damaged:
        reasons = "; ".join(f"{found}: {reason(error)}" for found, error in damaged.items())
        if number is not None:
            raise ValueError(f"{manager.directory}: checkpoint {number} is damaged ({reasons}); it stays as it is")
        raise ValueError(
            f"{manager.directory}: none of its {len(damaged)} checkpoints is sound ({reasons}); they are left as they "
            "are"
        )
    return None


def _numbers(manager, number) -> list[int]:
    """The checkpoints to try, in this order."""
    there = sorted(manager.all_steps(), reverse=True)
    if number is not None and number not in there:
        raise ValueError(f"{manager.directory}: there is no checkpoint {number!r}, only {there[::-1]}")
    return there if number is None else [number]


def _read(manager, number, content, like, part) -> Any:
    """The arrays, as they were stored and in the structure of `like`, if they are what was written."""
    ocp = import_extra("orbax.checkpoint")
    abstract = jax.tree.map(leaves.abstract, like)
    if part:
        return _read_part(manager.directory / str(number) / "tree", content["parts"], abstract)
    with quiet_stderr():
        tree = manager.restore(number, args=ocp.args.Composite(tree=ocp.args.StandardRestore(abstract))).tree
    if _total(fingerprints(jax.tree.leaves(tree))) != content["fingerprint"]:
        raise ValueError("its arrays have changed since they were written")
    return tree


def _read_part(path, prints: dict[str, list[int]], abstract) -> Any:
    """Some of the arrays; the manager itself reads a tree whole or not at all."""
    ocp = import_extra("orbax.checkpoint")
    wanted, order = leaves.named(abstract), list(prints)
    with quiet_stderr(), ocp.PyTreeCheckpointer() as reader:
        there = reader.metadata(path).item_metadata.tree  # of dictionaries and lists, whatever the tree was made of
        item = jax.tree.unflatten(
            jax.tree.structure(there), [wanted.get(name, ocp.PLACEHOLDER) for name in leaves.named(there)]
        )
        args = ocp.args.PyTreeRestore(item, ocp.checkpoint_utils.construct_restore_args(item))
        read = leaves.named(reader.restore(path, args=args))
    arrays = [read[name] for name in wanted]
    got = np.asarray(fingerprints(arrays, tuple(map(order.index, wanted)))).tolist()
    if got != [prints[name] for name in wanted]:
        raise ValueError("its arrays have changed since they were written")
    return jax.tree.unflatten(jax.tree.structure(abstract), arrays)


def _total(prints) -> list[int]:
    """The fingerprint of a tree from those of its leaves; not `fingerprint`, which would be compiled once more."""
    return np.asarray(prints).sum(0, dtype=np.uint32).tolist()


def _check_own(path) -> None:
    """Refuse a folder in which orbax would take something of the user's for its own, and in time delete it."""
    for entry in filter(Path.is_dir, path.iterdir()):
        checkpoint = entry.name.isdigit() and not (entry / "sealed").is_dir()
        unfinished = _TEMPORARY in entry.name and not re.match(rf"\d+{re.escape(_TEMPORARY)}", entry.name)
        if checkpoint or unfinished:
            raise ValueError(
                f"checkpoints in {path}: {entry.name} there is not one of them, and would be taken for one and "
                "deleted in time; give checkpoints a folder of their own"
            )


def _close(manager) -> None:
    with _write_errors(manager, manager.latest_step()):
        manager.close()


@contextmanager
def _write_errors(manager, number):
    """What goes wrong in writing, as one kind of error that says where."""
    try:
        yield
    except Exception as error:
        raise OSError(f"checkpoint {number} in {manager.directory}: cannot be written: {error}") from error
