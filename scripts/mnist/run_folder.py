"""The files of a run of `train_mnist.py` in its folder; of several processes, the first one writes them."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, sync_global_devices
from mnist.environment import differences, environment
from mnist.processes import is_writer, say
from mnist.settings import DATA, ENVIRONMENT, FREE_TO_CHANGE, Config, as_json, facts_of, in_words

from funcnet import Network, Params, checkpoints, files, weights

try:
    import fcntl
except ImportError:  # only Unix has it
    fcntl = None

CONFIG, METRICS, SCORES, WEIGHTS, CHECKPOINTS, LOCK = (
    "config.json",
    "metrics.jsonl",
    "scores.json",
    "weights.safetensors",
    "checkpoints",
    ".train_mnist.lock",
)


def check_free(run_dir: Path) -> None:
    """Refuse a folder in which a run could overwrite something."""
    if run_dir.exists() and (not run_dir.is_dir() or any(not _is_leftover(path) for path in run_dir.iterdir())):
        raise FileExistsError(f"run folder {run_dir}: it exists and is not an empty folder; give another --run-dir")


def _is_leftover(path: Path) -> bool:
    """Whether the file is left over from a run that was killed."""
    return files.is_leftover(path) or path.name == LOCK


def check_data(run_dir: Path, data: dict[str, Any]) -> None:
    """Refuse to continue a run with other data than it began with."""
    for name, was in facts_of(run_dir / CONFIG, DATA).items():
        if name in data and data[name] != was:
            change = f"{name} was {was!s:.100} and is {data[name]!s:.100}"
            raise ValueError(f"--resume {run_dir}: that run began with other data: {change}")


@contextmanager
def opened(config: Config, data: dict[str, Any]) -> Iterator[Path]:
    """The run's folder, with the configuration in it: a new folder, checked to be writable, or that of an earlier run.

    No other run can open it at the same time.
    """
    now = int(broadcast_one_to_all(np.uint32(time.time()))) if jax.process_count() > 1 else time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    run_dir = config.resume or config.run_dir or Path("runs") / f"{data['name'].lower()}-{stamp}"
    if is_writer() and config.resume is None:
        check_free(run_dir)
    with _locked(run_dir) if is_writer() else nullcontext():
        if is_writer():
            _begin(config, run_dir, data)
        if jax.process_count() > 1:
            sync_global_devices("run folder")  # no process creates a folder in it before the first has checked it
        yield run_dir


def _begin(config: Config, run_dir: Path, data: dict[str, Any]) -> None:
    """Remove files of a run that was killed, and write the configuration of a new one."""
    if config.resume is None:
        check_free(run_dir)  # another run may have started and ended meanwhile
    with _errors_of(run_dir):
        for path in filter(files.is_leftover, run_dir.iterdir()):
            path.unlink()
        if config.resume is None:
            kept = json.loads(as_json(config)) | {ENVIRONMENT: environment(), DATA: data}
            files.write_atomically(run_dir / CONFIG, (json.dumps(kept, indent=2) + "\n").encode())


@contextmanager
def _errors_of(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"run folder {run_dir}: cannot be written: {error}") from error


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Lock the folder for this run; the lock ends with the process, however that ends.

    Raises:
      BlockingIOError: another run uses it.
    """
    path = run_dir / LOCK
    with _errors_of(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        try:
            if fcntl is None:
                raise OSError("this system has no locks")
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(lock, 200).decode(errors="replace").strip()
            raise BlockingIOError(f"run folder {run_dir}: another run uses it ({owner})") from error
        except OSError as error:
            say(f"run folder {run_dir}: {error}: a second run in this folder would not be noticed")
        if not path.exists() or not os.path.samestat(os.fstat(lock), path.stat()):
            raise BlockingIOError(f"run folder {run_dir}: another run in it is just ending; try again")
        with suppress(OSError):  # the owner
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()
    finally:
        os.close(lock)


def take_up(folder: Any, config: Config, whole: Any) -> tuple[Any, list[dict[str, float]]]:
    """The state from which the run starts, `whole` or that of a checkpoint, and a row for each epoch done.

    Raises:
      ValueError: all checkpoints are damaged, or the settings are not those with which the run was saved.
    """
    if config.resume is None:
        return whole, []
    found = checkpoints.restore(folder, like=whole)
    if found is None:
        say(f"no checkpoint in {config.resume}: starting from the beginning")
        return whole, []
    then, now = found.notes["config"], json.loads(as_json(config))
    for name in now.keys() - FREE_TO_CHANGE:
        if now[name] != then.get(name):
            raise ValueError(
                f"{config.resume / CONFIG} was changed: {name} is {now[name]!r}, but the run was saved "
                f"with {then.get(name)!r}"
            )
    _, rounding = differences(facts_of(config.resume / CONFIG, ENVIRONMENT))
    if rounding:
        say(f"not the same to the last bit: since the run began, {', '.join(rounding)}")
    say(f"continuing after {found.number} epochs")
    return found.tree, found.notes["history"]


def checkpoint(folder: Any, config: Config, whole: Any, history: list[dict[str, float]]) -> None:
    """Save the run after its last whole epoch, in the background, unless that is already saved."""
    if folder.latest_step() != len(history):
        notes = {"history": history, "config": json.loads(as_json(config))}
        checkpoints.save(folder, len(history), whole, notes)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder if it is empty."""
    if is_writer():
        with suppress(OSError):
            folder.rmdir()


def remove_half_checkpoints(run_dir: Path) -> None:
    """Remove the checkpoint that orbax was writing when the disk became full; only orbax writes there."""
    for half in (run_dir / CHECKPOINTS).glob("[0-9]*.orbax-checkpoint-tmp*"):
        shutil.rmtree(half, ignore_errors=True)


def write_picture(path: Path, figure: Any) -> None:
    """Write a picture, whole or not at all."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=150)
    files.write_atomically(path, content.getvalue())


def write_metrics(run_dir: Path, history: list[dict[str, float]]) -> None:
    """Write one line per epoch."""
    _write(run_dir / METRICS, "".join(json.dumps(row) + "\n" for row in history))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small file, whole or not at all."""
    _write(path, json.dumps(content, indent=2) + "\n")


def save_weights(members: list[Params], network: Network, config: Config, run_dir: Path) -> list[Path]:
    """Write the weights of each network of an ensemble to a file, with the settings that it needs."""
    paths = weight_files(run_dir, len(members))
    widths = [in_words(width) for width in config.upright] or ["no"]
    widths *= len(members) // len(widths)
    for path, params, width in zip(paths, members, widths, strict=True):
        if is_writer():
            weights.save(path, params, network, metadata={"upright": width})
    return paths


def weight_files(run_dir: Path, networks: int) -> list[Path]:
    """The files with the weights of each network."""
    one = run_dir / WEIGHTS
    return [one] if networks == 1 else [one.with_stem(f"{one.stem}_{number}") for number in range(1, networks + 1)]


def _write(path, text):
    if is_writer():
        files.write_atomically(path, text.encode())
