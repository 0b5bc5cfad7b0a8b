"""What a run of `train_mnist.py` leaves in its folder; of several processes, the first one writes."""

import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, sync_global_devices
from processes import is_writer, say
from recipes import FREE_TO_CHANGE, Config, as_json, in_words

from funcnet import checkpoints, io, softmax_cross_entropy
from funcnet.mlp import Params

CONFIG, METRICS, SCORES, WEIGHTS, CHECKPOINTS = (
    "config.json",
    "metrics.jsonl",
    "scores.json",
    "weights.safetensors",
    "checkpoints",
)


def check_free(run_dir: Path) -> None:
    """Refuse a folder in which a run could overwrite something."""
    if run_dir.exists() and (not run_dir.is_dir() or any(not _is_leftover(path) for path in run_dir.iterdir())):
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
            for path in filter(_is_leftover, run_dir.iterdir()):
                path.unlink()
            if config.resume is None:
                io.write_atomically(run_dir / CONFIG, as_json(config).encode())
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
            raise ValueError(f"{config.resume / CONFIG} was changed: {name} is {now[name]!r}, but the run was saved "
                             f"with {then.get(name)!r}")  # fmt: skip
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


def save_weights(params: Params, config: Config, run_dir: Path) -> None:
    """The weights, and what it takes to use them; of a committee, a file for each network."""
    if not is_writer():
        return
    metadata = {"hidden": config.activation, "output": "identity", "loss": softmax_cross_entropy.name}
    path = run_dir / WEIGHTS
    widths = list(map(in_words, config.upright)) or ["no"]
    if len(widths) == 1:
        widths *= config.committee
    for number, (member, width) in enumerate(zip(members(params, config.committee), widths, strict=True), 1):
        numbered = path if config.committee == 1 else path.with_stem(f"{path.stem}_{number}")
        io.save_params(numbered, member, metadata | {"upright": width})


def members(tree: Any, committee: int) -> list[Any]:
    """One tree for each network."""
    return [tree] if committee == 1 else [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(committee)]


def _write(path, text):
    if is_writer():
        io.write_atomically(path, text.encode())


def _is_leftover(path: Path) -> bool:
    """Whether a kill has left the file behind in the middle of `io.write_atomically`."""
    name, _, process = path.name.rpartition(".")
    return name.startswith(".") and process.isdecimal() and int(process) != os.getpid()
