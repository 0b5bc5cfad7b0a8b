"""Checkpoints of a run: written in the background, whole or not at all, and checked before they are used.

    with checkpoints.open_folder("run/checkpoints", keep=3) as folder:
        found = checkpoints.restore(folder, like=state)  # None, or the newest undamaged one
        ...
        checkpoints.save(folder, epoch, state, {"history": history})  # returns at once

Orbax stores the arrays (each process stores its own shards, in the background), and a checkpoint appears in one atomic
step. But orbax does not notice a flipped bit, so each checkpoint holds a fingerprint of its arrays, computed on their
own devices.
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

_TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of unfinished checkpoints, which orbax deletes

_WRITE_TIMEOUT = 30  # seconds that one of several processes waits until the others have written their parts


class Checkpoint(NamedTuple):
    """The result of `restore`."""

    number: int  # as given to `save`, e.g. the number of epochs done
    tree: Any  # of arrays
    notes: dict[str, Any]


@contextmanager
def open_folder(path: str | os.PathLike[str], *, keep: int = 3) -> Iterator[Any]:
    """Open a folder of checkpoints, or create it; remains of an interrupted write are removed.

    The end of the block waits until everything is written. Every process opens the folder, on a shared file system. Use
    the folder for checkpoints only, since older ones are deleted: it must not hold your own folders with numbers as
    names.

    Args:
      path: the folder.
      keep: the number of checkpoints to keep; older ones are deleted.

    Raises:
      ImportError: orbax is not installed.
      OSError: the folder cannot be created or written; or, at the end, the last checkpoint could not be written (as a
        note, if the block itself ends with an exception).
      ValueError: an entry of the folder has a name like that of a checkpoint, but is not one.

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
      tree: of arrays of any sharding, random keys of either style, and Python numbers.
      notes: JSON values: dictionaries with text as keys, lists, text, numbers, booleans and None.

    Raises:
      OSError: the checkpoint cannot be written, or the one before could not be written.
      TypeError: a leaf is something else; the message says which.
      ValueError: the number is not a whole number, or not larger than those before; JSON would change the notes (a
        tuple to a list, or a key to text); two leaves have the same name, or one is masked.

    >>> import tempfile
    >>> with open_folder(tempfile.mkdtemp(), keep=1) as folder:
    ...     for number in (1, 2):
    ...         save(folder, number, [jax.numpy.zeros(3)])
    """
    ocp = import_extra("orbax.checkpoint")
    wait(manager)  # so that a failure of the one before is reported under its own number; orbax would wait, too
    try:
        number = operator.index(number)
    except TypeError as error:
        raise ValueError(f"number is {number!r}, expected a whole number: others are not found again") from error
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
            f"checkpoint {number} in {manager.directory}: cannot be written: its arrays are on several "
            f"devices, and for that orbax needs a newer jax than {jax.__version__}"
        )
    args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), sealed=ocp.args.JsonSave(sealed(content)))
    with _write_errors(manager, number):
        manager.save(number, args=args, force=True)


def wait(manager: Any) -> None:
    """Wait until everything is written.

    Raises:
      OSError: something could not be written.

    >>> import tempfile
    >>> with open_folder(tempfile.mkdtemp()) as folder:
    ...     wait(folder)
    """
    with _write_errors(manager, manager.latest_step()):
        manager.wait_until_finished()


def restore(manager: Any, like: Any, *, number: int | None = None, part: bool = False) -> Checkpoint | None:
    """The newest undamaged checkpoint, or one by its number; newer, damaged ones are put aside with a warning.

    Args:
      manager: from `open_folder`.
      like: the expected tree, of arrays and numbers; the arrays are read with the shardings of these.
      number: which checkpoint; by default the newest undamaged one.
      part: whether `like` may be a part of the tree that was saved, such as `{"params": params}` of a `TrainState`.
        Here a field of a named tuple and a key of a dictionary are the same.

    Returns:
      The checkpoint, or `None` if there is none.

    Raises:
      TypeError: a leaf of `like` is neither a JAX array nor a Python number.
      ValueError: the checkpoint is of another tree (the message names an array with another shape or dtype, or for a
        missing part lists those there are); there is none of that number, or it is damaged; or all are damaged, and
        then they stay where they are.
      OSError, MemoryError: an undamaged checkpoint could not be read.

    >>> import tempfile
    >>> with open_folder(tempfile.mkdtemp()) as folder:
    ...     print(restore(folder, like=[jax.numpy.zeros(3)]))
    ...     save(folder, 1, {"params": [jax.numpy.zeros(3)], "epochs": 7})
    ...     wait(folder)
    ...     print(restore(folder, like={"epochs": 0}, number=1, part=True).tree)
    None
    {'epochs': 7}
    """
    jax.tree.map(leaves.abstract, like)  # refuse a leaf of a wrong type before anything is read
    damaged: dict[int, Exception] = {}
    for found in _numbers(manager, number):
        path = manager.directory / str(found)
        try:
            content = unsealed(manager, found)
        except Exception as error:  # a damaged file leads to many kinds of errors
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
            raise ValueError(f"{manager.directory}: checkpoint {number} is damaged ({reasons}); it is left there")
        raise ValueError(
            f"{manager.directory}: all {len(damaged)} checkpoints are damaged ({reasons}); they are left there"
        )
    return None


def _numbers(manager, number) -> list[int]:
    """The numbers of the checkpoints to try, in this order."""
    there = sorted(manager.all_steps(), reverse=True)
    if number is not None and number not in there:
        raise ValueError(f"{manager.directory}: there is no checkpoint {number!r}, only {there[::-1]}")
    return there if number is None else [number]


def _read(manager, number, content, like, part) -> Any:
    """The arrays, as stored, in the structure of `like`, checked to be unchanged."""
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
    """Some of the arrays; the manager itself can only read a whole tree."""
    ocp = import_extra("orbax.checkpoint")
    wanted, order = leaves.named(abstract), list(prints)
    with quiet_stderr(), ocp.PyTreeCheckpointer() as reader:
        there = reader.metadata(path).item_metadata.tree  # of dictionaries and lists, whatever the saved tree was
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
    """The fingerprint of a tree from those of its leaves; calling `fingerprint` would compile once more."""
    return np.asarray(prints).sum(0, dtype=np.uint32).tolist()


def _check_own(path) -> None:
    """Refuse a folder with an entry of the user that orbax would mistake for a checkpoint, and later delete."""
    for entry in filter(Path.is_dir, path.iterdir()):
        checkpoint = entry.name.isdigit() and not (entry / "sealed").is_dir()
        unfinished = _TEMPORARY in entry.name and not re.match(rf"\d+{re.escape(_TEMPORARY)}", entry.name)
        if checkpoint or unfinished:
            raise ValueError(
                f"checkpoints in {path}: {entry.name} is not a checkpoint, but would be taken for one and later "
                "deleted; use a separate folder for checkpoints"
            )


def _close(manager) -> None:
    with _write_errors(manager, manager.latest_step()):
        manager.close()


@contextmanager
def _write_errors(manager, number):
    """Raise any error of writing as an `OSError` that says where."""
    try:
        yield
    except Exception as error:
        raise OSError(f"checkpoint {number} in {manager.directory}: cannot be written: {error}") from error
