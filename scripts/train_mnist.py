"""Train a multilayer perceptron on MNIST, with a hand-written backward pass.

python scripts/train_mnist.py                       # MNIST, or the bundled digits where there is none
python scripts/train_mnist.py --hidden-sizes 800 400 --epochs 20
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from funcnet import activations, datasets, init, io, optimizers, plotting, softmax_cross_entropy, summary, training
from funcnet.mlp import Params
from funcnet.regularizers import dropout_masks


@dataclass(frozen=True)
class Config:
    """Train a multilayer perceptron on MNIST, with a hand-written backward pass."""

    dataset: Literal["auto", "mnist", "digits"] = "auto"
    """`mnist` insists on MNIST; `auto` takes the digits bundled with scikit-learn where MNIST cannot be had."""
    data_dir: Path | None = None
    """Folder with the MNIST files; otherwise $FUNCNET_DATA, then the user's cache, then a download."""
    hidden_sizes: tuple[int, ...] = (512,)
    """Widths of the hidden layers; none at all makes it logistic regression."""
    activation: str = "relu"
    """Of the hidden layers: relu, leaky_relu(0.1), sigmoid, tanh, softplus, elu, silu, gelu or identity."""
    dropout: float = 0.0
    """Part of the hidden units dropped in training."""
    input_dropout: float = 0.0
    """Part of the pixels dropped in training."""
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    """Update rule."""
    lr: float = 2e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine` warms up over the first epoch, then goes down to 0."""
    momentum: float = 0.9
    """Of sgd."""
    weight_decay: float = 1e-4
    """Of adamw."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 128
    """Images per update."""
    validation: int | None = None
    """Training images held out, to watch while training; by default a twelfth (5,000 of MNIST)."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the inputs of matrix products."""
    seed: int = 0
    """Decides everything random: same seed and same device, same weights."""
    run_dir: Path | None = None
    """Folder for weights, metrics, config and pictures; by default a new one under runs/."""


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


def train(config: Config) -> Result:
    """Train, then look at the test set once, and leave everything in the run folder.

    Raises:
      ValueError: a setting that makes no sense, or a corrupt data file.
      OSError: MNIST cannot be had, or the run folder cannot be written.
      FloatingPointError: the loss became NaN or infinite; the last good weights are saved.
    """
    check(config)
    name, sets = load(config)
    x, y = sets["train"]
    key_init, key_epochs = jax.random.split(jax.random.key(config.seed))
    params = init(key_init, (x.shape[1], *config.hidden_sizes, int(y.max()) + 1))
    optimizer = make_optimizer(config, steps_per_epoch=-(-len(x) // config.batch_size))
    network = {"hidden": activations.from_name(config.activation), "compute_dtype": config.compute_dtype}
    step_settings = {**network, "masks": make_masks(config)}
    state = training.init_state(params, optimizer)
    say(f"{name}, {len(x):,} training images, on {jax.devices()[0].device_kind}")
    say(summary(params))

    began = time.perf_counter()
    epoch = jax.jit(training.make_epoch(optimizer, batch_size=config.batch_size, **step_settings), donate_argnums=0)
    epoch = epoch.lower(state, key_epochs, x, y).compile()

    def evaluate(params, part):
        return training.evaluate(params, *sets[part], **network)

    if "validation" in sets:
        evaluate(state.params, "validation")  # compiles
    run_dir = make_run_dir(config, name)  # so late that Ctrl-C before leaves nothing behind
    compiled = time.perf_counter()

    def find_fault(state, key):
        step = training.make_step(optimizer, **step_settings)
        return training.first_nonfinite_step(step, state, key, x, y, batch_size=config.batch_size)

    params, history, interrupted = fit(config, state, key_epochs, sets, epoch, evaluate, find_fault, run_dir)
    seconds = {"compile": compiled - began, "run": time.perf_counter() - compiled}
    save_weights(params, config, run_dir)
    write_metrics(run_dir, history)  # Ctrl-C may have come between an epoch and its line
    say(f"weights saved in {run_dir / WEIGHTS}")

    scores = {part: {"samples": len(sets[part][0]), **as_floats(evaluate(params, part))} for part in sets}
    x_test, y_test = map(np.asarray, sets["test"])
    p = np.asarray(softmax_cross_entropy.predict(training.outputs(params, x_test, **network)))
    confusion = np.zeros((p.shape[1], p.shape[1]), int)
    np.add.at(confusion, (y_test, p.argmax(1)), 1)
    result = Result(params, history, scores, confusion, seconds, run_dir, interrupted)
    draw(result, x_test, y_test, p)
    return result


def fit(config, state, key, sets, epoch, evaluate, find_fault, run_dir) -> tuple[Params, list[dict[str, float]], bool]:
    """Run the epochs; the parameters after the last whole one, a row for each, and whether Ctrl-C ended it."""
    history: list[dict[str, float]] = []
    n = len(sets["train"][0])
    whole = copy(state)  # the epoch takes `state` over; this stays if it does not come back
    with tqdm(total=config.epochs, unit="epoch", dynamic_ncols=True) as progress:
        try:
            for number in range(1, config.epochs + 1):
                epoch_key, began = jax.random.fold_in(key, number), time.perf_counter()
                state, metrics = epoch(state, epoch_key, *sets["train"])
                row = {"epoch": number, **as_floats(metrics, "train_")}
                rate = n / (time.perf_counter() - began)
                if not np.isfinite(row["train_loss"]):
                    at, good = find_fault(whole, epoch_key)
                    save_weights(good.params, config, run_dir)
                    raise FloatingPointError(
                        f"the loss is {row['train_loss']} in epoch {number}, first at its step {at}, counted from 0; "
                        f"the last good weights are in {run_dir / WEIGHTS}; try a smaller --lr than {config.lr:g}"
                    )
                if "validation" in sets:
                    row |= as_floats(evaluate(state.params, "validation"), "validation_")
                row["samples_per_second"] = round(rate)
                whole, history = copy(state), [*history, row]
                write_metrics(run_dir, history)
                progress.set_postfix_str(f"loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.2%}, "
                                         f"{rate:,.0f} samples/s")  # fmt: skip
                progress.update()
        except KeyboardInterrupt:
            return whole.params, history, True
    return whole.params, history, False


def check(config: Config) -> None:
    """Refuse settings that make no sense, before anything is loaded."""
    for name, least in (
        ("epochs", 0),
        ("batch_size", 1),
        ("lr", 0),
        ("weight_decay", 0),
        ("validation", 0),
        ("seed", 0),
    ):
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}, expected at least {least}")
    activations.from_name(config.activation)
    if config.run_dir is not None:
        check_free(config.run_dir)
    for width in config.hidden_sizes:
        if width < 1:
            raise ValueError(f"--hidden-sizes has {width}, expected at least 1")
    for name in ("dropout", "input_dropout", "momentum"):
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(config, name)}, expected a number in [0, 1)")


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
    """The update rule, with its schedule."""
    lr = config.lr
    if config.schedule == "cosine" and config.epochs > 0:
        warmup = steps_per_epoch if config.epochs > 1 else 0
        lr = optimizers.cosine(lr, total_steps=config.epochs * steps_per_epoch, warmup_steps=warmup)
    settings = {"sgd": {"momentum": config.momentum}, "adamw": {"weight_decay": config.weight_decay}}
    return getattr(optimizers, config.optimizer)(lr, **settings.get(config.optimizer, {}))


def make_masks(config: Config) -> training.MakeMasks | None:
    """Dropout, if there is any."""
    if config.dropout == config.input_dropout == 0:
        return None
    return partial(dropout_masks, rate=config.dropout, input_rate=config.input_dropout)


WEIGHTS = "weights.safetensors"


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
        io.write_atomically(run_dir / "config.json", json.dumps(asdict(config), indent=2, default=str).encode())
    except OSError as error:
        raise OSError(f"run folder {run_dir}: cannot be written: {error}") from error
    return run_dir


def write_metrics(run_dir: Path, history: list[dict[str, float]]) -> None:
    """A line for each epoch."""
    io.write_atomically(run_dir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in history).encode())


def save_weights(params: Params, config: Config, run_dir: Path) -> None:
    """The weights, and what it takes to use them."""
    metadata = {"hidden": config.activation, "output": "identity", "loss": softmax_cross_entropy.name}
    io.save_params(run_dir / WEIGHTS, params, metadata)


def draw(result: Result, x_test: np.ndarray, y_test: np.ndarray, p: np.ndarray) -> None:
    """The pictures."""
    figures = {
        "confusion": plotting.confusion_matrix(result.confusion),
        "mistakes": plotting.worst_mistakes(x_test, y_test, p),
        "weights": plotting.first_layer_weights(result.params[0][0]),
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
    """Metrics off the device, under names."""
    return {f"{prefix}{name}": float(value) for name, value in metrics._asdict().items()}


def copy(state: training.TrainState) -> training.TrainState:
    """A copy that outlives the donation of the original."""
    return jax.tree.map(jnp.copy, state)


def say(line: str) -> None:
    """Tell the person; the standard output is for the result."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The command line; 0 for a whole run, 130 for one that Ctrl-C ended, 1 for one that failed."""
    config = tyro.cli(Config)
    try:
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
