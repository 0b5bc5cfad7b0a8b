"""What one GPU does: its ceilings, epochs against others, many networks at once, two recipes, and compilation.

python scripts/benchmarks/gpu.py --out scripts/benchmarks/results/gpu-NAME.json    # under 8 minutes on a GPU
python scripts/benchmarks/gpu.py --small                                           # at toy size, a minute on a CPU
python scripts/benchmarks/gpu.py tune --out tune.json                              # settings for the largest recipe

Suites do not depend on each other: one that fails says why, and the next one runs. Who is not installed is left out.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # this process and those that it starts share a GPU

import jax
import jax.numpy as jnp
import numpy as np
import peers
import tyro
from timing import Row, candidate, compiled, interleaved, report, rows_of, seconds_of

import funcnet
from funcnet import Network, datasets, objective, training

RATE = 0.1
SCRIPT = Path(__file__).parent.parent / "train_mnist.py"
HALF = partial(peers.funcnet_epoch, network=Network(compute_dtype=jnp.bfloat16))
CONTESTANTS: dict[str, peers.Maker] = (
    {"funcnet": peers.funcnet_epoch, "funcnet, bfloat16 products": HALF}
    | peers.SCANS
    | peers.SCANS_IN_BFLOAT16
    | {"jax.grad + optax, Python loop": peers.PEERS["jax.grad + optax, images on the device"]}
    | {"PyTorch, eager": peers.pytorch}
    | peers.ON_GPU
)


class Size(NamedTuple):
    """How large everything is."""

    cases: tuple[tuple[tuple[int, ...], int], ...]  # hidden widths, batch size
    images: int
    squares: tuple[int, ...]  # of matrix products
    copied: int  # bytes
    networks: tuple[int, ...]
    compiled: tuple[int, ...]  # hidden widths
    recipe: tuple[str, ...]  # of the single network
    committee: tuple[str, ...]  # what differs for a committee
    held_out: int  # training images, to choose settings by
    seconds: float  # for each candidate


LARGE = Size(
    cases=(((128,), 128), ((512,), 1024), ((800,), 128), ((1024, 1024), 128)), images=60_000,
    squares=(1024, 4096, 8192), copied=2**30, networks=(16, 128, 1024), compiled=(128,),
    recipe=("--recipe", "distort-large", "--epochs", "100"), committee=("--ensemble", "4", "--epochs", "50"),
    held_out=10_000, seconds=0.3)  # fmt: skip
SMALL = Size(
    cases=(((16,), 64),), images=500, squares=(128,), copied=2**20, networks=(2, 4), compiled=(16,),
    recipe=("--recipe", "distort-large", "--dataset", "digits", "--hidden-sizes", "32", "--views", "2", "--epochs",
            "1"), committee=("--ensemble", "2"), held_out=300, seconds=0.01)  # fmt: skip


TRIALS: tuple[tuple[str, ...], ...] = (  # of the largest recipe, which overfits, and is surer than it should be
    (),
    ("--lr", "1e-3"),
    ("--optimizer", "adamw", "--weight-decay", "0.3"),
    ("--label-smoothing", "0.1"),
    ("--average", "0.999"),
    ("--dropout", "0.2"),
    ("--soft-finish", "0.3"),
    ("--distortion.shear", "20"),
)


@cache
def data() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """MNIST, or the small digits where it is not to be had."""
    return datasets.load_mnist_or_digits(say=lambda text: print(text, file=sys.stderr))[1]


def task_of(hidden, batch_size, images) -> peers.Task:
    """Plain SGD, from the same start for all."""
    x, y = (np.asarray(part)[:images] for part in data()[0])
    params = funcnet.init(jax.random.key(0), (x.shape[1], *hidden, 10))
    return peers.Task([(np.asarray(W), np.asarray(b)) for W, b in params], x, y, batch_size, RATE, 0)


def name_of(task) -> str:
    """The widths and the batch size."""
    widths = len(task.params[0][0]), *(len(b) for _, b in task.params)
    return f"{'-'.join(map(str, widths))}, batch {task.batch_size:,}"


def ceilings_suite(size: Size) -> Iterator[Row]:
    """Products of two square matrices, a copy on the device, and a loop whose steps do nothing but start kernels."""
    for n in size.squares:
        times = {}
        for name, dtype, precision in (
            ("float32, full", jnp.float32, "highest"), ("float32, as by default", jnp.float32, "default"),
            ("bfloat16", jnp.bfloat16, "default")):  # fmt: skip
            a = jnp.full((n, n), 1 / n, dtype)

            def chain(a, precision=precision):
                b = a
                for _ in range(16):  # unrolled: a loop would copy each result
                    b = jnp.matmul(a, b, precision=precision)
                return b

            times[name] = interleaved({name: candidate(chain, a)}, size.seconds)[name] / 16
        rates = {name: {"TFLOP/s": float(2 * n**3 / np.median(t) / 1e12)} for name, t in times.items()}
        yield from rows_of(f"product of {n:,} x {n:,}", times, rates)

    v = jnp.zeros(size.copied // 4)
    times = interleaved({"copy": candidate(lambda v: v + 1, v)}, size.seconds)
    rate = {"copy": {"GB/s, read and written": float(2 * v.nbytes / np.median(times["copy"]) / 1e9)}}
    yield from rows_of(f"{v.nbytes / 2**20:,.0f} MB", times, rate)

    def steps(v, kernels):
        def step(v, _):
            for _ in range(kernels):
                v = jax.lax.optimization_barrier(v + 1)  # the barrier keeps each a kernel of its own
            return v, None

        return jax.lax.scan(step, v, length=1000)[0]

    loops = {f"{k} small kernels": candidate(partial(steps, kernels=k), jnp.zeros(128)) for k in (1, 16)}
    times = {name: t / 1000 for name, t in interleaved(loops, size.seconds).items()}
    yield from rows_of("a step of a loop on the device", times)


def epoch_suite(size: Size) -> Iterator[Row]:
    """An epoch by plain SGD; funcnet alone takes the smaller last batch, too, and computes the accuracy."""
    for hidden, batch_size in size.cases:
        task, trainers = task_of(hidden, batch_size, size.images), {}
        for name, make in CONTESTANTS.items():
            try:
                trainer = make(task)
                trainer.epoch()
                trainers[name] = trainer
            except Exception as error:  # it may be any of another library
                print(f"without {name}: {first_line(error)}", file=sys.stderr)
        times = interleaved({name: trainer.epoch for name, trainer in trainers.items()}, size.seconds)
        more = {name: {"a step": f"{1e6 * np.median(t) / (len(task.x) // batch_size):.1f} us",
                       "test accuracy": f"{accuracy(trainers[name]):.2%}"} for name, t in times.items()}  # fmt: skip
        yield from rows_of(name_of(task), times, more)


def accuracy(trainer: peers.Trainer) -> float:
    """On the test images."""
    params = [(jnp.asarray(W), jnp.asarray(b)) for W, b in trainer.params()]
    return float(training.evaluate(params, *data()[1]).accuracy)


def first_line(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def networks_suite(size: Size) -> Iterator[Row]:
    """An epoch of several networks in one program, `training.for_each`, each in an order of its own."""
    (hidden, batch_size), *_ = size.cases
    task, optimizer = task_of(hidden, batch_size, size.images), funcnet.sgd(RATE)
    x, y, widths = jnp.asarray(task.x), jnp.asarray(task.y), (task.x.shape[1], *hidden, 10)
    epoch = training.make_epoch(optimizer, batch_size=batch_size)

    def start(key):
        return training.init_state(funcnet.init(key, widths), optimizer)

    def each(states, keys, x, y):
        return training.for_each(lambda state, key: epoch(state, key, x, y))(states, keys)

    candidates = {"1": candidate(epoch, start(jax.random.key(0)), jax.random.key(1), x, y)}
    for n in size.networks:
        keys = jax.random.split(jax.random.key(0), n)
        candidates[f"{n:,}"] = candidate(each, jax.jit(jax.vmap(start))(keys), keys, x, y)
    times = interleaved(candidates, size.seconds)
    more = {n: {"each": f"{1e3 * np.median(t) / int(n.replace(',', '')):.3f} ms"} for n, t in times.items()}
    yield from rows_of(f"networks of {name_of(task)}", times, more)


def recipes_suite(size: Size) -> Iterator[Row]:
    """The script's largest recipe, shortened: one network, and a committee; test errors, also over deformed views."""
    for more in ((), size.committee):
        yield trained(size, *more)


def tune_suite(size: Size) -> Iterator[Row]:
    """Settings that may help the largest recipe, one at a time: errors on two folds of held-out training images."""
    for more in TRIALS:
        for fold in "01":
            yield trained(size, *more, "--no-test", "--validation", str(size.held_out), "--fold", fold)


def trained(size: Size, *more: str) -> Row:
    """A run of the recipe in a process of its own, with these arguments, too."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        asked = [*size.recipe, *more]
        command = [sys.executable, SCRIPT, *asked, "--run-dir", run_dir, "--checkpoint-every", "inf"]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if run.returncode:
            raise RuntimeError(f"train_mnist.py {' '.join(asked)}: {run.stdout.strip()[-500:]}")
        end = json.loads((run_dir / "scores.json").read_text())
    errors = {f"{part} error": f"{1 - score['accuracy']:.2%}" for part, score in end["scores"].items()}
    compiling = {"compiling": f"{end['seconds']['compile']:.1f} s"}
    return Row(" ".join(size.recipe[:2]), " ".join(asked[2:]), end["seconds"]["run"], None, 1.0, compiling | errors)


EPOCHS: dict[str, Callable[..., Callable]] = {
    "funcnet": partial(training.make_epoch, funcnet.sgd(RATE), batch_size=128),
    "funcnet's epoch, jax.grad": partial(
        training.make_epoch, funcnet.sgd(RATE), batch_size=128, value_and_gradient=jax.value_and_grad(objective)),
}  # fmt: skip


def compile_seconds(name: str, widths: list[int], images: int) -> float:
    """Tracing and compiling an epoch, in this process."""
    state = jax.eval_shape(
        lambda key: training.init_state(funcnet.init(key, widths), funcnet.sgd(RATE)), jax.random.key(0))  # fmt: skip
    x, y = jax.ShapeDtypeStruct((images, widths[0]), np.uint8), jax.ShapeDtypeStruct((images,), np.int32)
    return seconds_of(lambda: compiled(EPOCHS[name](), state, jax.random.key(0), x, y))


def compile_suite(size: Size) -> Iterator[Row]:
    """Tracing and compiling an epoch, each time in a fresh process, whose caches are empty."""
    widths, environment = [784, *size.compiled, 10], {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    times = {name: [] for name in EPOCHS}
    for names in (list(EPOCHS), list(EPOCHS)[::-1]):
        for name in names:
            code = f"import gpu; print(gpu.compile_seconds({name!r}, {widths}, {size.images}))"
            run = [sys.executable, "-c", code]
            out = subprocess.run(run, cwd=Path(__file__).parent, env=environment, stdout=subprocess.PIPE, check=True)
            times[name].append(float(out.stdout.split()[-1]))
    yield from rows_of("-".join(map(str, widths)), times)


Suite = Literal["ceilings", "epoch", "networks", "compile", "recipes", "tune"]
SUITES = {name: globals()[f"{name}_suite"] for name in get_args(Suite)}
FIGURES = get_args(Suite)[:-1]  # what is published


def main(suites: tuple[Suite, ...] = (), /, small: bool = False, out: Path | None = None) -> None:
    """Run the suites, and print each figure as it comes.

    Args:
      suites: which of them; all but `tune`, which takes six minutes alone, if none is named.
      small: at toy size, to see that all of it works.
      out: a JSON file for the figures, written anew at each figure.
    """
    size = SMALL if small else LARGE
    report({name: (partial(SUITES[name], size), SUITES[name].__doc__) for name in suites or FIGURES}, out, go_on=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
