"""What a run of `train_mnist.py` leaves in its folder; of several processes, the first one writes."""

import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, sync_global_devices
from mnist.processes import is_writer, say
from mnist.settings import FREE_TO_CHANGE, Config, as_json, in_words

from funcnet import Network, Params, checkpoints, files, weights

CONFIG, METRICS, SCORES, WEIGHTS, CHECKPOINTS = (
    "config.json",
    "metrics.jsonl",
    "scores.json",
    "weights.safetensors",
    "checkpoints",
)


def check_free(run_dir: Path) -> None:
    """Refuse a folder in which a run could overwrite something."""
    if run_dir.exists() and (not run_dir.is_dir() or any(not files.is_leftover(path) for path in run_dir.iterdir())):
        raise FileExistsError(f"run folder {run_dir}: already there and not an empty folder; give another --run-dir")


def open_run_dir(config: Config, name: str) -> Path:
    """The run's folder with the configuration in it: a new one, writable before anything is trained, or the old one."""
    now = int(broadcast_one_to_all(np.uint32(time.time()))) if jax.process_count() > 1 else time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    run_dir = config.resume or config.run_dir or Path("runs") / f"{name.lower()}-{stamp}"
    if is_writer():
        if config.resume is None:
            check_free(run_dir)
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            for path in filter(files.is_leftover, run_dir.iterdir()):
                path.unlink()
            if config.resume is None:
                files.write_atomically(run_dir / CONFIG, as_json(config).encode())
        except OSError as error:
            raise OSError(f"run folder {run_dir}: cannot be written: {error}") from error
    if jax.process_count() > 1:
        sync_global_devices("run folder")  # no process makes a folder in it before the first has looked
    return run_dir


def take_up(folder: Any, config: Config, whole: Any) -> tuple[Any, list[dict[str, float]]]:
    """Where the run starts, or goes on: `whole`, or what was saved of it, and a row for each epoch behind it.

    Raises:
      ValueError: no checkpoint is sound, or the run's settings are no longer those that it was saved with.
    """
    if config.resume is None:
        return whole, []
    found = checkpoints.restore(folder, like=whole)
    if found is None:
        say(f"no checkpoint in {config.resume}: from the beginning")
        return whole, []
    then, now = found.notes["config"], json.loads(as_json(config))
    for name in now.keys() - FREE_TO_CHANGE:
        if now[name] != then.get(name):
            raise ValueError(
                f"{config.resume / CONFIG} was changed: {name} is {now[name]!r}, but the run was saved "
                f"with {then.get(name)!r}"
            )
    say(f"going on after {found.number} epochs")
    return found.tree, found.notes["history"]


def checkpoint(folder: Any, config: Config, whole: Any, history: list[dict[str, float]]) -> None:
    """Save the run after its last whole epoch, in the background; nothing is done if that is there already."""
    if folder.latest_step() != len(history):
        notes = {"history": history, "config": json.loads(as_json(config))}
        checkpoints.save(folder, len(history), whole, notes)


def write_metrics(run_dir: Path, history: list[dict[str, float]]) -> None:
    """A line for each epoch."""
    _write(run_dir / METRICS, "".join(json.dumps(row) + "\n" for row in history))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A small file, whole or not at all."""
    _write(path, json.dumps(content, indent=2) + "\n")


def save_weights(members: list[Params], network: Network, config: Config, run_dir: Path) -> list[Path]:
    """The weights, and what it takes to use them, in a file for each network of an ensemble."""
    paths = [run_dir / WEIGHTS]
    if len(members) > 1:
        paths = [paths[0].with_stem(f"{paths[0].stem}_{number}") for number in range(1, len(members) + 1)]
    widths = [in_words(width) for width in config.upright] or ["no"]
    widths *= len(members) // len(widths)
    for path, params, width in zip(paths, members, widths, strict=True):
        if is_writer():
            weights.save(path, params, network, metadata={"upright": width})
    return paths


def _write(path, text):
    if is_writer():
        files.write_atomically(path, text.encode())
