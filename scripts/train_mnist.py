"""Train a multilayer perceptron on MNIST, with a hand-written backward pass.

python scripts/train_mnist.py                       # MNIST, or the bundled digits if MNIST is not available
python scripts/train_mnist.py --hidden-sizes 800 400 --epochs 20
python scripts/train_mnist.py --recipe distort      # --help lists the recipes

Its parts are in `mnist/`: settings, recipes, data, program, run folder, processes, environment.
"""

import math
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from mnist import run_folder
from mnist.data import Data, as_seen, load
from mnist.environment import differences
from mnist.processes import (
    INTERRUPTED,
    PREEMPTED,
    Preempted,
    agreed,
    check_same,
    give_up,
    is_writer,
    join,
    leave,
    quiet_libraries,
    say,
    told_to_stop,
    unfailing_streams,
)
from mnist.program import Program, build, compiled, decided, logits_over_views
from mnist.recipes import described
from mnist.settings import (
    DATA,
    ENVIRONMENT,
    OF_ONE_PROCESS,
    Config,
    at_home,
    check,
    facts_of,
    from_command_line,
    in_words,
    read,
    with_paths,
)
from tqdm import tqdm

from funcnet import Params, checkpoints, evaluation, plotting, softmax_cross_entropy, summary, weights


@dataclass(frozen=True)
class Result:
    """The results of a run; the files in `run_dir` have the same content."""

    params: Params
    history: list[dict[str, float]]  # one row per epoch, as in metrics.jsonl
    scores: dict[str, dict[str, float]]  # train, validation, test: samples, loss, accuracy
    confusion: np.ndarray  # (K, K): test images of a class (rows) predicted as a class (columns)
    seconds: dict[str, float]  # compile, run
    run_dir: Path
    interrupted: bool
    epoch: int  # the epoch of these weights
    networks: int = 1


def train(
    config: Config,
    asked_to_stop: Callable[[int], bool] = lambda done: False,
    all_saved: Callable[[], None] = lambda: None,
) -> Result:
    """Train, then evaluate on the test set once, and write everything to the run folder.

    Args:
      config: the settings.
      asked_to_stop: called before each epoch, with the number of finished epochs.
      all_saved: called when the weights are in the run folder.

    Raises:
      Preempted: it was told to stop; there is a checkpoint.
      ValueError: a setting makes no sense, or a data file is corrupt.
      OSError: MNIST was not found and not downloaded, the run folder cannot be written, or another run uses it.
      FloatingPointError: the loss became NaN or infinite; the last finite weights are saved.
    """
    config = with_paths(config)
    check(config)
    if config.run_dir is not None and config.resume is None and is_writer():
        run_folder.check_free(config.run_dir)
    data = load(config)
    settings = {name: value for name, value in asdict(config).items() if name not in OF_ONE_PROCESS}
    facts = data.facts()
    check_same(settings | {"data": facts})
    if config.resume is not None:
        run_folder.check_data(config.resume, facts)
    config = decided(config)
    key_start, key_epochs, key_views = jax.random.split(jax.random.key(config.seed), 3)
    program = build(config, data, key_start)
    introduce(config, data, program)

    began = time.perf_counter()
    placed = {part: program.place(data.parts[part][1:]) for part in data.parts if part != "train"}
    program = compiled(program, key_epochs)
    if "validation" in placed:
        evaluate(program, program.weights(program.state), placed["validation"])  # compiles
    with run_folder.opened(config, facts) as run_dir:  # only now, so that an earlier Ctrl-C leaves nothing behind
        seconds = {"compile": time.perf_counter() - began}
        with checkpoints.open_folder(run_dir / run_folder.CHECKPOINTS, keep=config.keep) as folder:
            params, history, interrupted = fit(
                config, data, program, key_epochs, placed.get("validation"), run_dir, folder, asked_to_stop
            )
        seconds["run"] = sum(row["seconds"] for row in history)
        run_folder.save_weights(program.members(params), program.network, config, run_dir)
        run_folder.write_metrics(run_dir, history)  # Ctrl-C may have come between an epoch and its line
        run_folder.remove_if_empty(run_dir / run_folder.CHECKPOINTS)  # after a short run
        all_saved()
        say(f"weights saved in {run_dir}")

        if not config.test:
            placed.pop("test")
        placed = {"train": program.place(data.parts["train"][1:]), **placed}
        scores = {part: evaluate(program, params, placed[part]) for part in placed}
        part, (x, y) = list(placed.items())[-1]  # the test images, or without them the validation images
        logits = program.logits(params, x)
        if config.views > 1:
            logits = logits_over_views(config, program, params, x, key_views)
            scores[f"{part}, averaged"] = as_scores(logits, y)
        p = np.asarray(softmax_cross_entropy.predict(logits))
        images, _, labels = data.parts[part]
        confusion = np.zeros((data.classes, data.classes), int)
        np.add.at(confusion, (labels, p.argmax(1)), 1)
        device, epoch = jax.devices()[0].device_kind, best_epoch(config, history)
        final = {"scores": scores, "epoch": epoch, "seconds": seconds, "device": device, "interrupted": interrupted}
        run_folder.write_json(run_dir / run_folder.SCORES, final)
        result = Result(params, history, scores, confusion, seconds, run_dir, interrupted, epoch, config.ensemble)
        if is_writer():
            try:
                draw(result, program.members(params)[0], images, labels, p)
            except Exception as error:  # a run does not fail because of its pictures
                say(f"pictures are missing: {error or type(error).__name__}")
    return result


def fit(
    config: Config, data: Data, program: Program, key, validation, run_dir, folder, asked_to_stop
) -> tuple[Params, list[dict[str, float]], bool]:
    """Run the epochs; return the last or best weights, a row per epoch, and whether Ctrl-C ended the run."""
    key_data = program.place(np.asarray(jax.random.key_data(key)))  # it determines the order of the data

    def to_keep(state, best):
        return {"state": state, "key": key_data} | ({"best": best} if config.patience else {})

    def save():
        run_folder.checkpoint(folder, config, to_keep(whole, best), history)

    def kept():
        return best if config.patience else program.weights(whole)

    start, history = run_folder.take_up(folder, config, to_keep(program.state, program.weights(program.state)))
    state = start["state"]
    saved_at = time.monotonic()
    samples = len(data.targets) * config.ensemble
    whole = copy(state)  # `state` is donated to the epoch; this copy remains if the epoch fails
    best: Params = copy(start["best"]) if config.patience else []
    interrupted = False
    progress = tqdm(
        total=config.epochs, initial=len(history), unit="epoch", dynamic_ncols=True, disable=not is_writer()
    )
    try:
        try:
            first = len(history) + 1
            epoch_key = jax.random.fold_in(key, first)
            fed = program.feed(epoch_key)
            for number in range(first, config.epochs + 1):
                if config.patience and len(history) - best_epoch(config, history) >= config.patience:
                    break
                if asked_to_stop(number - 1):
                    save()
                    checkpoints.wait(folder)
                    raise Preempted(f"told to stop after {number - 1} epochs; go on with --resume {run_dir}")
                began = time.perf_counter()
                state, metrics = program.epoch(state, epoch_key, strength(config, number), *fed)
                next_key = jax.random.fold_in(key, number + 1)
                if number < config.epochs:
                    fed = program.feed(next_key)  # while the devices compute
                row = {"epoch": number, **as_floats(metrics, "train_")}
                row["samples_per_second"] = round(samples / (time.perf_counter() - began))
                if not (np.isfinite(row["train_loss"]) and all_finite(state.params)):
                    at, good = program.replay(whole, epoch_key, strength(config, number))
                    members = program.members(best if config.patience else program.weights(good))
                    run_folder.save_weights(members, program.network, config, run_dir)
                    raise FloatingPointError(
                        f"the loss is {row['train_loss']} in epoch {number}"
                        + (", and then weights are not finite" if np.isfinite(row["train_loss"]) else "")
                        + ("" if at is None else f", first at its step {at}, counted from 0")
                        + f"; the last good weights are in {run_dir}; try a smaller --lr than {config.lr:g}"
                    )
                if validation is not None:
                    scores = evaluate(program, program.weights(state), validation)
                    row |= {f"validation_{name}": scores[name] for name in ("loss", "accuracy") if name in scores}
                row["seconds"] = round(time.perf_counter() - began, 3)
                newest, rows = copy(state), [*history, row]
                better = config.patience and best_epoch(config, rows) == number
                best = program.weights(newest) if better else best
                whole, history, epoch_key = newest, rows, next_key
                run_folder.write_metrics(run_dir, history)
                progress.set_postfix_str(
                    f"loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.2%}, "
                    f"{row['samples_per_second']:,} samples/s"
                )
                progress.update()
                if agreed(number < config.epochs and time.monotonic() - saved_at >= config.checkpoint_every):
                    save()
                    saved_at = time.monotonic()
        except KeyboardInterrupt:
            interrupted = True
            save()
        checkpoints.wait(folder)
    except OSError as error:  # a full disk may have room for the weights, if not for a checkpoint
        if jax.process_count() == 1:
            run_folder.remove_half_checkpoints(run_dir)
            with suppress(OSError):
                run_folder.save_weights(program.members(kept()), program.network, config, run_dir)
                error.add_note(f"the weights of epoch {best_epoch(config, history)} are in {run_dir}")
        raise
    finally:
        progress.close()
    return kept(), history, interrupted


def best_epoch(config: Config, history: list[dict[str, float]]) -> int:
    """The epoch whose weights are kept: the last, or with patience the first of the smallest validation loss."""
    if not config.patience:
        return len(history)
    sound = [(row["validation_loss"], row["epoch"]) for row in history if row["validation_loss"] < math.inf]  # no NaN
    return int(min(sound, default=(math.inf, 0))[1])


def strength(config: Config, number: int) -> np.float32:
    """The strength of the deformations in an epoch, counted from 1."""
    return np.float32(0.5 if number > (1 - config.soft_finish) * config.epochs else 1.0)


def evaluate(program: Program, params: Params, part: tuple[Array, Array]) -> dict[str, float]:
    """The scores of the networks on a part of the data."""
    x, y = part
    return as_scores(program.logits(params, x), y)


def as_scores(logits: Array, y: Array) -> dict[str, float]:
    """The scores of some outputs."""
    return {"samples": len(y)} | as_floats(evaluation.score(logits, y))


def draw(result: Result, params: Params, images: np.ndarray, labels: np.ndarray, p: np.ndarray) -> None:
    """Write the pictures."""
    figures = {"confusion": plotting.confusion_matrix(result.confusion)}
    if math.isqrt(images.shape[1]) ** 2 == images.shape[1]:  # your own inputs need not be images
        figures["mistakes"] = plotting.worst_mistakes(images, labels, p, columns=6)
        figures["weights"] = plotting.first_layer_weights(params[0][0])
    if result.history:
        figures["curves"] = plotting.curves(result.history)
    for name, figure in figures.items():
        run_folder.write_picture(result.run_dir / f"{name}.png", figure)


def predict(run_dir: str | Path, images: np.ndarray) -> np.ndarray:
    """The predictions of a run's networks for images as stored; they are made upright and scaled as in training.

    Args:
      run_dir: the folder of the run.
      images: `(N, pixels)`, uint8, as from `funcnet.datasets`.

    Returns:
      Probabilities, `(N, K)`; for an ensemble, their mean.

    Raises:
      OSError: there is no such run, or it has no weights.
      ValueError: its files have been changed, or the images have another number of pixels.
    """
    run_dir = at_home(run_dir)
    config = read(run_dir / run_folder.CONFIG)
    networks = [weights.load(path) for path in run_folder.weight_files(run_dir, config.ensemble)]
    seen = as_seen(config, images)
    own = seen if seen.ndim == 3 else [seen] * len(networks)
    logits = [
        evaluation.forward_in_batches(params, x, network) for (params, network), x in zip(networks, own, strict=True)
    ]
    return np.asarray(softmax_cross_entropy.predict(evaluation.ensemble(jnp.stack(logits))))


def classes(run_dir: str | Path) -> tuple[str, ...]:
    """The names of a run's classes, in the order of the columns of `predict`; empty if the run did not store them."""
    return tuple(facts_of(at_home(run_dir) / run_folder.CONFIG, DATA).get("classes", ()))


def report(result: Result) -> str:
    """The final table."""
    wide = max(map(len, result.scores)) + 2
    lines = [f"{'':{wide}}{'images':>8}{'loss':>10}{'accuracy':>10}"]
    for part, row in result.scores.items():
        lines.append(f"{part:{wide}}{row['samples']:8,}{row['loss']:10.4g}{row['accuracy']:10.2%}")
    recall = np.diag(result.confusion) / np.maximum(result.confusion.sum(1), 1)
    lines += ["", f"recall, {list(result.scores)[-1]}  " + "  ".join(f"{k}: {r:.1%}" for k, r in enumerate(recall))]
    samples = result.scores["train"]["samples"] * len(result.history) * result.networks
    compile_seconds, run_seconds = result.seconds["compile"], result.seconds["run"]
    lines.append(
        f"time         compile {compile_seconds:.1f} s, run {run_seconds:.1f} s "
        f"({samples / max(run_seconds, 1e-9):,.0f} samples/s with validation)"
    )
    lines.append(f"saved in     {result.run_dir}: {', '.join(sorted(p.name for p in result.run_dir.iterdir()))}")
    lines.append(f'use it       train_mnist.predict("{result.run_dir}", images)')
    epochs = len(result.history)
    whose = "whose weights these are" if result.epoch == epochs else f"the weights are those of epoch {result.epoch}"
    if result.interrupted:
        lines.append(f"interrupted  after {epochs} whole epochs, {whose}")
    elif result.epoch != epochs:
        lines.append(f"best         of {epochs} epochs by its validation loss: {whose}")
    return "\n".join(lines)


def as_floats(metrics: evaluation.Metrics, prefix: str = "") -> dict[str, float]:
    """The metrics as floats, by name; for an ensemble, their means."""
    present = {name: value for name, value in metrics._asdict().items() if value is not None}
    return {f"{prefix}{name}": float(value.mean()) for name, value in present.items()}


def introduce(config: Config, data: Data, program: Program) -> None:
    """Print the data set, the device and the network."""
    say(f"{data.name}, {len(data.targets):,} training images, on {jax.devices()[0].device_kind}")
    if config.recipe != "default":
        say(f"{config.recipe}: {described(config.recipe)}")
    first, *others = program.members(program.state.params)
    say(summary(first))
    if config.compute_dtype != "float32":
        say(f"matrix products of {config.compute_dtype}")
    if others:
        say(f"{config.ensemble} such networks in one program")
    if config.batch_size > len(data.targets):
        say(f"--batch-size {config.batch_size:,} is more than the number of images: each batch has all of them")
    if config.repeat is not None and config.repeat.is_file():
        decisive, rounding = differences(facts_of(config.repeat, ENVIRONMENT))
        if changed := decisive + rounding:
            say(f"--repeat {config.repeat}: not the same to the last bit: since that run, {', '.join(changed)}")
    if config.upright:
        say(f"images made upright, their widths in pixels: {', '.join(map(in_words, config.upright))}")


@jax.jit
def all_finite(params: Params) -> Array:
    """Whether all entries of all leaves are finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


def copy(tree: Any) -> Any:
    """A copy, which remains when the original is donated."""
    return jax.tree.map(jnp.copy, tree)


def main() -> int:
    """Run the command line; return 0 for a whole run, 130 after Ctrl-C, 75 after SIGTERM, 1 after a failure."""
    with unfailing_streams(), quiet_libraries():
        return run()


def run() -> int:
    """The command, with standard streams that cannot fail."""
    try:
        config = from_command_line()
        join(config)
        result = train(config, *told_to_stop())
    except Preempted as told:
        say(f"train_mnist: {told}")
        return PREEMPTED
    except KeyboardInterrupt:
        leave()
    except (FloatingPointError, ImportError, MemoryError, OSError, ValueError) as error:
        said = str(error) or type(error).__name__
        print("\ntrain_mnist: ".join([f"train_mnist: {said}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return give_up()
    except Exception as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and re.search("RESOURCE_EXHAUSTED|Out of memory", str(error)):
            print(f"train_mnist: out of memory, try a smaller --batch-size: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        return give_up()
    if is_writer():
        print(report(result))
    return INTERRUPTED if result.interrupted else 0


if __name__ == "__main__":
    status = main()
    if status == PREEMPTED:  # while Python shuts down, a second SIGTERM would end it with another status
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(status)
