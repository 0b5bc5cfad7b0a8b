"""Train a multilayer perceptron on MNIST, with a hand-written backward pass.

python scripts/train_mnist.py                       # MNIST, or the bundled digits where there is none
python scripts/train_mnist.py --hidden-sizes 800 400 --epochs 20
python scripts/train_mnist.py --recipe distort      # --help lists the recipes
"""

import sys
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from processes import (
    INTERRUPTED,
    PREEMPTED,
    Preempted,
    agreed,
    check_same,
    give_up,
    is_writer,
    join,
    leave,
    say,
    told_to_stop,
)
from programs import Program, build, decided, make_transform, prepared
from recipes import OF_ONE_PROCESS, Config, check, described, from_command_line, in_words
from run_folder import (
    CHECKPOINTS,
    SCORES,
    check_free,
    checkpoint,
    members,
    open_run_dir,
    save_weights,
    take_up,
    write_json,
    write_metrics,
)
from tqdm import tqdm

from funcnet import checkpoints, datasets, plotting, summary, training
from funcnet.losses import softmax_cross_entropy
from funcnet.mlp import Params
from funcnet.regularizers import smooth_labels


@dataclass(frozen=True)
class Result:
    """What a run leaves behind; the files in `run_dir` say the same."""

    params: Params
    history: list[dict[str, float]]  # one row per epoch, as in metrics.jsonl
    scores: dict[str, dict[str, float]]  # train, validation, test: samples, loss, accuracy
    confusion: np.ndarray  # (K, K): test images of a class (rows) taken for a class (columns)
    seconds: dict[str, float]  # compile, run
    run_dir: Path
    interrupted: bool


def train(config: Config, asked_to_stop: Callable[[int], bool] = lambda done: False) -> Result:
    """Train, then look at the test set once, and leave everything in the run folder.

    Args:
      config: the settings.
      asked_to_stop: called before each epoch, with how many there were.

    Raises:
      Preempted: it was told to stop; there is a checkpoint.
      ValueError: a setting that makes no sense, or a corrupt data file.
      OSError: MNIST cannot be had, or the run folder cannot be written.
      FloatingPointError: the loss became NaN or infinite; the last good weights are saved.
    """
    check(config)
    if config.run_dir is not None and config.resume is None and is_writer():
        check_free(config.run_dir)
    name, sets = load(config)
    x, y = sets["train"]
    settings = {name: value for name, value in asdict(config).items() if name not in OF_ONE_PROCESS}
    check_same(settings | {"data": (name, x.shape, zlib.crc32(x), zlib.crc32(y))})
    config = decided(config)
    K = int(y.max()) + 1
    targets = np.asarray(smooth_labels(y, K, config.label_smoothing)) if config.label_smoothing else y
    key_init, key_epochs = jax.random.split(jax.random.key(config.seed))
    seen = {part: (prepared(config, x), y) for part, (x, y) in sets.items()}
    data = seen["train"][0], targets
    program = build(config, key_init, (x.shape[1], *config.hidden_sizes, K), data)
    introduce(config, name, len(x), program)
    seen = {part: program.place(seen[part]) for part in seen if part != "train"}

    began = time.perf_counter()
    first = key_epochs, np.float32(1), *program.feed(key_epochs)
    outputs = (program.shardings, None) if program.shardings else None
    epoch = jax.jit(program.epoch, donate_argnums=0, out_shardings=outputs).lower(program.state, *first).compile()
    program = program._replace(epoch=epoch)
    if "validation" in seen:
        evaluate(program, program.weights(program.state), seen["validation"])  # compiles
    run_dir = open_run_dir(config, name)  # so late that Ctrl-C before leaves nothing behind
    compiled = time.perf_counter()
    with checkpoints.open_folder(run_dir / CHECKPOINTS, keep=config.keep) as folder:
        fitted = fit(config, program, key_epochs, data, seen.get("validation"), run_dir, folder, asked_to_stop)
    state, history, interrupted = fitted
    seconds = {"compile": compiled - began, "run": sum(row["seconds"] for row in history)}
    if is_writer() and not any((run_dir / CHECKPOINTS).iterdir()):
        (run_dir / CHECKPOINTS).rmdir()  # of a short run
    params = program.weights(state)
    save_weights(params, config, run_dir)
    write_metrics(run_dir, history)  # Ctrl-C may have come between an epoch and its line
    say(f"weights saved in {run_dir}")

    if not config.test:
        seen.pop("test")
    seen = {"train": program.place((data[0], y)), **seen}
    scores = {part: {"samples": len(seen[part][1]), **evaluate(program, params, seen[part])} for part in seen}
    part, (x_last, y_last) = list(seen.items())[-1]  # the test images, or without them those held out
    logits = program.logits(params, x_last)
    if config.views > 1:
        logits = views_logits(config, program, params, x_last)
        scores[f"{part}, averaged"] = {"samples": len(y_last), **as_floats(training.score(logits, y_last))}
    p = np.asarray(softmax_cross_entropy.predict(logits))
    x_last, y_last = sets[part]  # as they are
    confusion = np.zeros((K, K), int)
    np.add.at(confusion, (y_last, p.argmax(1)), 1)
    final = {"scores": scores, "seconds": seconds, "device": jax.devices()[0].device_kind, "interrupted": interrupted}
    write_json(run_dir / SCORES, final)
    result = Result(params, history, scores, confusion, seconds, run_dir, interrupted)
    if is_writer():
        draw(result, x_last, y_last, p, config.committee)
    return result


def fit(
    config: Config, program: Program, key, data, validation, run_dir, folder, asked_to_stop
) -> tuple[training.TrainState, list[dict[str, float]], bool]:
    """Run the epochs; the state after the last whole one, a row for each, and whether Ctrl-C ended it."""
    key_data = program.place(np.asarray(jax.random.key_data(key)))  # the order of the data follows from it

    def save(state, history):
        checkpoint(folder, config, {"state": state, "key": key_data}, history)

    start, history = take_up(folder, config, {"state": program.state, "key": key_data})
    state = start["state"]
    saved_at = time.monotonic()
    n = len(data[1]) * config.committee
    whole = copy(state)  # the epoch takes `state` over; this stays if it does not come back
    with tqdm(
        total=config.epochs, initial=len(history), unit="epoch", dynamic_ncols=True, disable=not is_writer()
    ) as progress:
        try:
            first = len(history) + 1
            epoch_key = jax.random.fold_in(key, first)
            fed = program.feed(epoch_key)
            for number in range(first, config.epochs + 1):
                if asked_to_stop(number - 1):
                    save(whole, history)
                    checkpoints.wait(folder)
                    raise Preempted(f"told to stop after {number - 1} epochs; go on with --resume {run_dir}")
                began = time.perf_counter()
                state, metrics = program.epoch(state, epoch_key, strength(config, number), *fed)
                next_key = jax.random.fold_in(key, number + 1)
                if number < config.epochs:
                    fed = program.feed(next_key)  # while the devices are at work
                row = {"epoch": number, **as_floats(metrics, "train_")}
                rate = n / (time.perf_counter() - began)
                if not (np.isfinite(row["train_loss"]) and all_finite(state.params)):
                    at, good = find_fault(config, program, whole, epoch_key, data, strength(config, number))
                    save_weights(program.weights(good), config, run_dir)
                    raise FloatingPointError(
                        f"the loss is {row['train_loss']} in epoch {number}"
                        + (", and then weights are not finite" if np.isfinite(row["train_loss"]) else "")
                        + ("" if at is None else f", first at its step {at}, counted from 0")
                        + f"; the last good weights are in {run_dir}; try a smaller --lr than {config.lr:g}"
                    )
                if validation is not None:
                    scores = evaluate(program, program.weights(state), validation)
                    row |= {f"validation_{name}": value for name, value in scores.items()}
                row |= {"samples_per_second": round(rate), "seconds": round(time.perf_counter() - began, 3)}
                whole, history, epoch_key = copy(state), [*history, row], next_key
                write_metrics(run_dir, history)
                progress.set_postfix_str(f"loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.2%}, "
                                         f"{rate:,.0f} samples/s")  # fmt: skip
                progress.update()
                if agreed(number < config.epochs and time.monotonic() - saved_at >= config.checkpoint_every):
                    save(whole, history)
                    saved_at = time.monotonic()
        except KeyboardInterrupt:
            save(whole, history)
            return whole, history, True
    return whole, history, False


def strength(config: Config, number: int) -> np.float32:
    """Of the deformations in an epoch, counted from 1."""
    return np.float32(0.5 if number > (1 - config.soft_finish) * config.epochs else 1.0)


def find_fault(config, program, state, key, data, strength) -> tuple[int | None, training.TrainState]:
    """The first step whose loss is not finite, and the last good state; of a committee, the one before the epoch."""
    if jax.process_count() > 1:
        return None, state
    replay = partial(training.first_nonfinite_step, program.step(strength), batch_size=config.batch_size)
    if config.committee == 1:
        return replay(state, key, *data)
    x, y = data
    keys = jax.random.split(key, config.committee)
    images = x if x.ndim == 3 else [x] * config.committee
    committee = zip(members(state, config.committee), keys, images, strict=True)
    steps = [replay(member, k, x, y)[0] for member, k, x in committee]
    return min((at for at in steps if at is not None), default=None), state


def views_logits(config, program, params, x) -> Array:
    """The committee of deformed views of each image: what the network says of all of them together."""
    half = make_transform(config, x.shape[-1], 0.5) or training.scale_pixels

    def view(key):  # of a committee with widths of its own, each network's images, deformed alike
        return half(key, x) if x.ndim == 2 else jax.lax.map(partial(half, key), x)

    keys = jax.random.split(jax.random.key(config.seed), config.views)
    return training.committee(jnp.stack([program.logits(params, view(key)) for key in keys]))


def evaluate(program: Program, params: Params, data: tuple[Array, Array]) -> dict[str, float]:
    """Loss and accuracy on a part of the data."""
    return as_floats(training.score(program.logits(params, data[0]), data[1]))


def load(config: Config) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """The data set's name, and its parts: `train`, maybe `validation`, `test`."""
    name = "MNIST"
    if config.dataset == "digits":
        name, data = "digits", datasets.load_digits()
    else:
        try:
            data = datasets.load_mnist(config.data_dir)
        except datasets.MnistNotFoundError as error:
            if config.dataset == "mnist":
                raise
            say(f"MNIST was neither found nor downloaded ({len(str(error).splitlines()) - 2} places tried; --dataset "
                "mnist lists them): training on the small digits bundled with scikit-learn instead")  # fmt: skip
            name, data = "digits", datasets.load_digits()
    x, y = data.train
    held_out = len(x) // 12 if config.validation is None else config.validation
    if held_out >= len(x):
        raise ValueError(f"--validation is {held_out}, expected fewer than the {len(x):,} training images")
    end = len(x) - config.fold * held_out
    start = end - held_out
    if start < 0:
        raise ValueError(f"--fold is {config.fold}, expected less than {len(x) // held_out}: so many times are there "
                         f"--validation {held_out:,} in the {len(x):,} training images")  # fmt: skip
    kept = [np.delete(part, np.s_[start:end], axis=0) for part in (x, y)]
    sets = {"train": tuple(kept), "validation": (x[start:end], y[start:end]), "test": data.test}
    return name, {part: arrays for part, arrays in sets.items() if len(arrays[0])}


def draw(result: Result, x_test: np.ndarray, y_test: np.ndarray, p: np.ndarray, committee: int) -> None:
    """The pictures."""
    first, *_ = members(result.params, committee)
    figures = {
        "confusion": plotting.confusion_matrix(result.confusion),
        "mistakes": plotting.worst_mistakes(x_test, y_test, p),
        "weights": plotting.first_layer_weights(first[0][0]),
    }
    if result.history:
        figures["curves"] = plotting.curves(result.history)
    for name, figure in figures.items():
        figure.savefig(result.run_dir / f"{name}.png", dpi=150)


def report(result: Result, committee: int = 1) -> str:
    """The final table."""
    wide = max(map(len, result.scores)) + 2
    lines = [f"{'':{wide}}{'images':>8}{'loss':>10}{'accuracy':>10}"]
    for part, row in result.scores.items():
        lines.append(f"{part:{wide}}{row['samples']:8,}{row['loss']:10.4g}{row['accuracy']:10.2%}")
    recall = np.diag(result.confusion) / np.maximum(result.confusion.sum(1), 1)
    lines += ["", f"recall, {list(result.scores)[-1]}  " + "  ".join(f"{k}: {r:.1%}" for k, r in enumerate(recall))]
    samples = result.scores["train"]["samples"] * len(result.history) * committee
    compile_seconds, run_seconds = result.seconds["compile"], result.seconds["run"]
    lines.append(f"time         compile {compile_seconds:.1f} s, run {run_seconds:.1f} s "
                 f"({samples / max(run_seconds, 1e-9):,.0f} samples/s with validation)")  # fmt: skip
    lines.append(f"saved in     {result.run_dir}: {', '.join(sorted(p.name for p in result.run_dir.iterdir()))}")
    if result.interrupted:
        lines.append(f"interrupted  after {len(result.history)} whole epochs, whose weights these are")
    return "\n".join(lines)


def as_floats(metrics: training.Metrics, prefix: str = "") -> dict[str, float]:
    """Metrics off the device, under names; of a committee, their means."""
    return {f"{prefix}{name}": float(value.mean()) for name, value in metrics._asdict().items()}


def introduce(config: Config, name: str, samples: int, program: Program) -> None:
    """Say what is about to be trained, and on what."""
    say(f"{name}, {samples:,} training images, on {jax.devices()[0].device_kind}")
    if config.recipe != "default":
        say(f"{config.recipe}: {described(config.recipe)}")
    first, *others = members(program.state.params, config.committee)
    say(summary(first))
    if config.compute_dtype != "float32":
        say(f"matrix products of {config.compute_dtype}")
    if others:
        say(f"{config.committee} such networks in one program")
    if config.upright:
        say(f"images made upright, their widths in pixels: {', '.join(map(in_words, config.upright))}")


@jax.jit
def all_finite(params: Params) -> Array:
    """Whether no leaf holds a NaN or an infinity."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()


def copy(state: training.TrainState) -> training.TrainState:
    """A copy that outlives the donation of the original."""
    return jax.tree.map(jnp.copy, state)


def main() -> int:
    """The command line; 0 for a whole run, or 130 after Ctrl-C, 75 after SIGTERM, 1 after a failure."""
    try:
        config = from_command_line()
        join(config)
        result = train(config, told_to_stop())
    except Preempted as told:
        say(f"train_mnist: {told}")
        return PREEMPTED
    except KeyboardInterrupt:
        leave()
    except (FloatingPointError, ImportError, OSError, ValueError) as error:
        print("\ntrain_mnist: ".join([f"train_mnist: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return give_up()
    except Exception:
        traceback.print_exc()
        return give_up()
    if is_writer():
        print(report(result, config.committee))
    return INTERRUPTED if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
