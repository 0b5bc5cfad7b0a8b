"""Train a multilayer perceptron on MNIST, with a hand-written backward pass.

python scripts/train_mnist.py                       # MNIST, or the bundled digits where there is none
python scripts/train_mnist.py --hidden-sizes 800 400 --epochs 20
python scripts/train_mnist.py --recipe distort      # --help lists the recipes
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from recipes import NO_DISTORTION, RECIPES, Config, as_json, check, from_command_line
from tqdm import tqdm

from funcnet import activations, datasets, init, io, optimizers, plotting, softmax_cross_entropy, summary, training
from funcnet.distortions import distort
from funcnet.mlp import Params
from funcnet.regularizers import averaged, dropout_masks, max_norm, smooth_labels, virtual_adversarial


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


class Program(NamedTuple):
    """What a configuration amounts to: where to start, and pure functions; for a committee, with an axis in front."""

    state: training.TrainState
    step: Callable[..., Any]  # of one network, as from `make_step`
    epoch: Callable[..., Any]  # (state, key, x, y) -> (state, metrics)
    weights: Callable[[training.TrainState], Params]  # what is evaluated and saved
    logits: Callable[[Params, ArrayLike], Array]  # (weights, x) -> (N, K), of the whole committee


def train(config: Config) -> Result:
    """Train, then look at the test set once, and leave everything in the run folder.

    Raises:
      ValueError: a setting that makes no sense, or a corrupt data file.
      OSError: MNIST cannot be had, or the run folder cannot be written.
      FloatingPointError: the loss became NaN or infinite; the last good weights are saved.
    """
    check(config)
    if config.run_dir is not None:
        check_free(config.run_dir)
    name, sets = load(config)
    x, y = sets["train"]
    K = int(y.max()) + 1
    data = x, smooth_labels(y, K, config.label_smoothing) if config.label_smoothing else y
    key_init, key_epochs = jax.random.split(jax.random.key(config.seed))
    program = build(config, key_init, (x.shape[1], *config.hidden_sizes, K), len(x))
    introduce(config, name, len(x), program)

    began = time.perf_counter()
    epoch = jax.jit(program.epoch, donate_argnums=0).lower(program.state, key_epochs, *data).compile()
    program = program._replace(epoch=epoch)
    if "validation" in sets:
        evaluate(program, program.weights(program.state), sets["validation"])  # compiles
    run_dir = make_run_dir(config, name)  # so late that Ctrl-C before leaves nothing behind
    compiled = time.perf_counter()
    state, history, interrupted = fit(config, program, key_epochs, data, sets.get("validation"), run_dir)
    seconds = {"compile": compiled - began, "run": time.perf_counter() - compiled}
    params = program.weights(state)
    save_weights(params, config, run_dir)
    write_metrics(run_dir, history)  # Ctrl-C may have come between an epoch and its line
    say(f"weights saved in {run_dir}")

    scores = {part: {"samples": len(sets[part][0]), **evaluate(program, params, sets[part])} for part in sets}
    x_test, y_test = map(np.asarray, sets["test"])
    p = np.asarray(softmax_cross_entropy.predict(program.logits(params, x_test)))
    confusion = np.zeros((K, K), int)
    np.add.at(confusion, (y_test, p.argmax(1)), 1)
    final = {"scores": scores, "seconds": seconds, "device": jax.devices()[0].device_kind, "interrupted": interrupted}
    write_json(run_dir / SCORES, final)
    result = Result(params, history, scores, confusion, seconds, run_dir, interrupted)
    draw(result, x_test, y_test, p, config.committee)
    return result


def build(config: Config, key: Array, sizes: tuple[int, ...], samples: int) -> Program:
    """The program of a configuration, for one network, or for a committee by `vmap`."""
    optimizer = make_optimizer(config, steps_per_epoch=-(-samples // config.batch_size))
    network = {"hidden": activations.from_name(config.activation), "compute_dtype": config.compute_dtype}
    regularized = {
        "transform": make_transform(config, pixels=sizes[0]),
        "augment": make_augment(config),
        "masks": make_masks(config),
    }
    step = training.make_step(optimizer, **regularized, **network)
    epoch = training.make_epoch(optimizer, batch_size=config.batch_size, **regularized, **network)

    def start(key):
        return training.init_state(init(key, sizes), optimizer)

    def weights(state):
        return state.opt_state.average if config.average else state.params

    def logits(params, x):
        return training.outputs(params, x, **network)

    if config.committee == 1:
        return Program(start(key), step, epoch, weights, logits)

    def each_epoch(state, key, x, y):
        return jax.vmap(epoch, (0, 0, None, None))(state, jax.random.split(key, config.committee), x, y)

    @jax.jit
    def joint_logits(params, x):
        return training.committee(jax.lax.map(lambda params: logits(params, x), params))

    state = jax.vmap(start)(jax.random.split(key, config.committee))
    return Program(state, step, each_epoch, weights, joint_logits)


def members(tree: Any, committee: int) -> list[Any]:
    """One tree for each network."""
    return [tree] if committee == 1 else [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(committee)]


def fit(config, program, key, data, validation, run_dir) -> tuple[training.TrainState, list[dict[str, float]], bool]:
    """Run the epochs; the state after the last whole one, a row for each, and whether Ctrl-C ended it."""
    history: list[dict[str, float]] = []
    n = len(data[0]) * config.committee
    state = program.state
    whole = copy(state)  # the epoch takes `state` over; this stays if it does not come back
    with tqdm(total=config.epochs, unit="epoch", dynamic_ncols=True) as progress:
        try:
            for number in range(1, config.epochs + 1):
                epoch_key, began = jax.random.fold_in(key, number), time.perf_counter()
                state, metrics = program.epoch(state, epoch_key, *data)
                row = {"epoch": number, **as_floats(metrics, "train_")}
                rate = n / (time.perf_counter() - began)
                if not np.isfinite(row["train_loss"]):
                    at, good = find_fault(config, program, whole, epoch_key, data)
                    save_weights(program.weights(good), config, run_dir)
                    raise FloatingPointError(
                        f"the loss is {row['train_loss']} in epoch {number}, first at its step {at}, counted from 0; "
                        f"the last good weights are in {run_dir}; try a smaller --lr than {config.lr:g}"
                    )
                if validation is not None:
                    scores = evaluate(program, program.weights(state), validation)
                    row |= {f"validation_{name}": value for name, value in scores.items()}
                row["samples_per_second"] = round(rate)
                whole, history = copy(state), [*history, row]
                write_metrics(run_dir, history)
                progress.set_postfix_str(f"loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.2%}, "
                                         f"{rate:,.0f} samples/s")  # fmt: skip
                progress.update()
        except KeyboardInterrupt:
            return whole, history, True
    return whole, history, False


def find_fault(config, program, state, key, data) -> tuple[int | None, training.TrainState]:
    """The first step whose loss is not finite, and the last good state; of a committee, the one before the epoch."""
    replay = partial(training.first_nonfinite_step, program.step, batch_size=config.batch_size)
    if config.committee == 1:
        return replay(state, key, *data)
    keys = jax.random.split(key, config.committee)
    steps = [replay(member, k, *data)[0] for member, k in zip(members(state, config.committee), keys, strict=True)]
    return min((at for at in steps if at is not None), default=None), state


def evaluate(program: Program, params: Params, data: tuple[Array, Array]) -> dict[str, float]:
    """Loss and accuracy on a part of the data."""
    return as_floats(training.score(program.logits(params, data[0]), data[1]))


def load(config: Config) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """The data set's name, and its parts on the device: `train`, maybe `validation`, `test`."""
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
    kept = len(x) - held_out
    sets = {"train": (x[:kept], y[:kept]), "validation": (x[kept:], y[kept:]), "test": data.test}
    return name, {part: jax.device_put(arrays) for part, arrays in sets.items() if len(arrays[0])}


def make_optimizer(config: Config, steps_per_epoch: int) -> optimizers.Optimizer:
    """The update rule, with its schedule and what is wrapped around it."""
    lr = config.lr
    if config.schedule == "cosine" and config.epochs > 0:
        warmup = steps_per_epoch if config.epochs > 1 else 0
        lr = optimizers.cosine(lr, total_steps=config.epochs * steps_per_epoch, warmup_steps=warmup)
    settings = {"sgd": {"momentum": config.momentum}, "adamw": {"weight_decay": config.weight_decay}}
    optimizer = getattr(optimizers, config.optimizer)(lr, **settings.get(config.optimizer, {}))
    if config.max_norm:
        optimizer = max_norm(optimizer, config.max_norm)
    return averaged(optimizer, config.average) if config.average else optimizer


def make_transform(config: Config, pixels: int) -> training.Transform | None:
    """Deformations, if there are any."""
    if config.distortion == NO_DISTORTION:
        return None
    side = math.isqrt(pixels)
    return partial(distort, amounts=config.distortion, image_shape=(side, side))


def make_augment(config: Config) -> training.Augment | None:
    """Virtual adversaries, if there are any."""
    return partial(virtual_adversarial, radius=config.vat_radius) if config.vat_radius else None


def make_masks(config: Config) -> training.MakeMasks | None:
    """Dropout, if there is any."""
    if config.dropout == config.input_dropout == 0:
        return None
    return partial(dropout_masks, rate=config.dropout, input_rate=config.input_dropout)


WEIGHTS, SCORES = "weights.safetensors", "scores.json"


def check_free(run_dir: Path) -> None:
    """Refuse a folder in which a run could overwrite something."""
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise FileExistsError(f"run folder {run_dir}: already there and not an empty folder; give another --run-dir")


def make_run_dir(config: Config, name: str) -> Path:
    """A new folder with the configuration in it; it must be writable before anything is trained."""
    run_dir = config.run_dir or Path("runs") / f"{name.lower()}-{time.strftime('%Y%m%d-%H%M%S')}"
    check_free(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        io.write_atomically(run_dir / "config.json", as_json(config).encode())
    except OSError as error:
        raise OSError(f"run folder {run_dir}: cannot be written: {error}") from error
    return run_dir


def write_metrics(run_dir: Path, history: list[dict[str, float]]) -> None:
    """A line for each epoch."""
    io.write_atomically(run_dir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history).encode())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A small file, whole or not at all."""
    io.write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def save_weights(params: Params, config: Config, run_dir: Path) -> None:
    """The weights, and what it takes to use them; of a committee, a file for each network."""
    metadata = {"hidden": config.activation, "output": "identity", "loss": softmax_cross_entropy.name}
    path = run_dir / WEIGHTS
    for number, member in enumerate(members(params, config.committee), 1):
        numbered = path if config.committee == 1 else path.with_stem(f"{path.stem}_{number}")
        io.save_params(numbered, member, metadata)


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


def report(result: Result) -> str:
    """The final table."""
    lines = [f"{'':12}{'images':>8}{'loss':>10}{'accuracy':>10}"]
    for part, row in result.scores.items():
        lines.append(f"{part:12}{row['samples']:8,}{row['loss']:10.4g}{row['accuracy']:10.2%}")
    recall = np.diag(result.confusion) / np.maximum(result.confusion.sum(1), 1)
    lines += ["", "test recall  " + "  ".join(f"{k}: {r:.1%}" for k, r in enumerate(recall))]
    samples = result.scores["train"]["samples"] * len(result.history)
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
        say(f"{config.recipe}: {RECIPES[config.recipe].about}")
    first, *others = members(program.state.params, config.committee)
    say(summary(first))
    if others:
        say(f"{config.committee} such networks side by side")


def copy(state: training.TrainState) -> training.TrainState:
    """A copy that outlives the donation of the original."""
    return jax.tree.map(jnp.copy, state)


def say(line: str) -> None:
    """Tell the person; the standard output is for the result."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The command line; 0 for a whole run, 130 for one that Ctrl-C ended, 1 for one that failed."""
    try:
        config = from_command_line()
        result = train(config)
    except (FloatingPointError, ImportError, OSError, ValueError) as error:
        say(f"train_mnist: {error}")
        return 1
    except KeyboardInterrupt:
        say("train_mnist: interrupted")
        sys.stderr.flush()
        os._exit(130)  # XLA may be compiling in other threads, and does not survive an ordinary exit then
    print(report(result))
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
