"""How fast, and against whom: each suite prints a table in Markdown, and all of it goes into one JSON file.

python scripts/benchmarks/benchmark.py                  # all suites; needs pip install -e ".[train,bench]"
python scripts/benchmarks/benchmark.py epoch step --out scripts/benchmarks/results/step-NAME_OF_MACHINE.json

How candidates are timed stands in `timing.py`, the frameworks that are compared with in `peers.py`; those that are not
installed are left out. Each suite here is a generator of rows.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from itertools import accumulate, pairwise, product
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import peers
import timing
import tyro
from timing import Row, call, candidate, compare, compiled, interleaved, rows_of

import funcnet
from funcnet import Network, datasets, objective, per_sample, plotting, sharding, training, value_and_backward
from funcnet.distortions import Distortion, distort
from funcnet.products import bfloat16_is_faster

SMALL, WIDE, LARGE = (784, 128, 10), (784, 800, 10), (784, 1024, 1024, 10)
RATE = 0.1
DISTORTION = Distortion(rotation=12.0, shear=12.0, scale=0.12, shift=1.0, alpha=36.0, sigma=5.0)
BY_JAX = jax.value_and_grad(objective)
GRADIENTS = {"jax.value_and_grad": BY_JAX, "value_and_backward": value_and_backward}
OURS: dict[str, peers.Maker] = {
    "funcnet": peers.funcnet_epoch,
    "funcnet, bfloat16 products": partial(peers.funcnet_epoch, network=Network(compute_dtype=jnp.bfloat16)),
    "funcnet's epoch, jax.grad, optax": lambda task: peers.funcnet_epoch(  # what the loop costs, and what the rest
        task, optimizer=import_module("optax").sgd(task.rate), value_and_gradient=BY_JAX)}  # fmt: skip


def batch_of(sizes, n=128) -> tuple[Any, jax.Array, jax.Array]:
    """A network and a batch of dense data: `(params, x, y)`."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.uniform(keys[1], (n, sizes[0]))
    return funcnet.init(keys[0], sizes), x, jax.random.randint(keys[2], (n,), 0, sizes[-1])


def task_of(sizes, batch_size, seed=0, images=60_000, rate=RATE) -> peers.Task:
    """Plain SGD on MNIST, from the same start for all."""
    x, y = datasets.load_mnist().train
    params = [(np.asarray(W), np.asarray(b)) for W, b in funcnet.init(jax.random.key(seed), sizes)]
    return peers.Task(params, np.asarray(x)[:images], np.asarray(y)[:images], batch_size, rate, seed)


def name_of(sizes, batch_size=None) -> str:
    """The widths, and the batch if it is given: 784-128-10, batch 32."""
    return "-".join(map(str, sizes)) + (f", batch {batch_size}" if batch_size else "")


def step_flops(sizes, batch_size) -> int:
    """Of the products of one training step: forward, dW, and the delta of every layer but the first."""
    products = [n_in * n_out for n_in, n_out in pairwise(sizes)]
    return 2 * batch_size * (2 * products[0] + 3 * sum(products[1:]))


def contestants(only: str) -> dict[str, peers.Maker]:
    """Who takes part: funcnet, and those by that name or, if none is asked for, all that are at their best here."""
    makers = OURS | peers.PEERS | peers.PEERS_IN_BFLOAT16
    if not only and not bfloat16_is_faster():
        print("without products of bfloat16, which are no faster here; --only bfloat16 times them", file=sys.stderr)
        only = "^((?!bfloat16).)*$"
    return {name: make for name, make in makers.items() if name == "funcnet" or re.search(only, name)}


def started(makers: Mapping[str, peers.Maker], task) -> dict[str, peers.Trainer]:
    """A trainer from each maker whose framework is installed."""
    trainers = {}
    for name, make in makers.items():
        try:
            trainers[name] = make(task)
        except ImportError as error:
            print(f"without {name}: {error}", file=sys.stderr)
    return trainers


def test_accuracy(trainer: peers.Trainer) -> float:
    """On MNIST's test set, whoever trained the network."""
    params = [(jnp.asarray(W), jnp.asarray(b)) for W, b in trainer.params()]
    return float(training.evaluate(params, *datasets.load_mnist().test).accuracy)


def back_and_forth(runs: Mapping[str, Callable[[int], Any]], rounds: int) -> dict[str, list[Any]]:
    """What each run returns in each round, given the round's number: for what is timed once, from scratch."""
    results = {name: [] for name in runs}
    for i in range(rounds):
        for name in list(runs)[:: (-1) ** i]:
            results[name].append(runs[name](i))
    return results


def step_suite(seconds: float) -> Iterator[Row]:
    """Value and gradient of one batch, against `jax.value_and_grad` of the same objective."""
    for sizes, n in product(((784, 32, 10), SMALL, WIDE, LARGE), (1, 8, 32, 128, 1024)):
        args = batch_of(sizes, n)
        yield from compare(name_of(sizes, n), {name: candidate(f, *args) for name, f in GRADIENTS.items()}, seconds)


def products_alone(sizes, batch_size, steps) -> Callable[[], Any]:
    """The matrix products of an epoch's steps and the updates, and nothing else: what XLA can do at these shapes."""
    params, x, _ = batch_of(sizes, batch_size)

    def step(Ws, _):
        updated = []
        # What comes in differs from step to step, or XLA would compute it once.
        *inputs, delta = accumulate(Ws, jnp.matmul, initial=x + Ws[0][0, 0])
        for W, a in zip(Ws[::-1], inputs[::-1], strict=True):
            updated.append(W - 1e-9 * jnp.einsum("ni,nj->ij", a, delta))
            delta = jnp.einsum("nj,ij->ni", delta, W)
        return updated[::-1], None

    return candidate(lambda Ws: jax.lax.scan(step, Ws, length=steps)[0], [0.01 * W for W, _ in params])


def products_suite(seconds: float) -> Iterator[Row]:
    """The three products of a layer, each added up over 32 batches as within an epoch; and dW with `a^T` at hand."""

    def added_up(of, W, *batches):
        start = jnp.zeros_like(of(W, *(b[0] for b in batches)))
        return jax.lax.scan(lambda total, b: (total + of(W, *b), None), start, batches)[0]

    for n, n_in, n_out in ((128, 784, 128), (128, 784, 800), (128, 784, 1024), (128, 1024, 1024)):
        keys = jax.random.split(jax.random.key(0), 3)
        a, W, delta = map(jax.random.normal, keys, ((32, n, n_in), (n_in, n_out), (32, n, n_out)))
        products = {
            "a W": (lambda W, a: a @ W, W, a), "delta W^T": (lambda W, delta: delta @ W.T, W, delta),
            "dW = a^T delta": (lambda W, a, delta: a.T @ delta, W, a, delta),
            "dW, a^T being there": (lambda W, a_T, delta: a_T @ delta, W, jnp.array(a.mT), delta)}  # fmt: skip
        candidates = {name: candidate(partial(added_up, of), *args) for name, (of, *args) in products.items()}
        times = {name: t / 32 for name, t in interleaved(candidates, seconds).items()}
        more = {name: {"GFLOP/s": f"{2 * n * n_in * n_out / np.median(t) / 1e9:.0f}"} for name, t in times.items()}
        yield from rows_of(f"batch {n}, {n_in} to {n_out}", times, more)


def epoch_suite(seconds: float, only: str = "") -> Iterator[Row]:
    """An epoch of MNIST by plain SGD, against other frameworks and against matrix products alone. The ceiling is the
    FLOPs of the epoch's products at the rate of a 1,024 x 1,024 product, XLA's or NumPy's, whichever is faster,
    measured in the same rounds.
    """
    makers, square = contestants(only), np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    on_device = jnp.asarray(square)
    squares = {"XLA": candidate(jnp.matmul, on_device, on_device), "NumPy": lambda: square @ square}
    for sizes, batch_size in ((SMALL, 32), (SMALL, 128), (WIDE, 128), (LARGE, 128)):
        task = task_of(sizes, batch_size)
        trainers = started(makers, task)
        steps = -(-len(task.x) // batch_size)
        candidates = {name: trainer.epoch for name, trainer in trainers.items()}
        candidates["the same products alone, XLA"] = products_alone(sizes, batch_size, steps)
        times = interleaved(candidates | squares, seconds)
        rate = 2 * 1024**3 / min(np.median(times.pop(name)) for name in squares)
        ceiling = steps * step_flops(sizes, batch_size) / rate
        more = {name: {"of the ceiling": f"{ceiling / np.median(t):.0%}"} for name, t in times.items()}
        for name, trainer in trainers.items():
            more[name]["test accuracy"] = f"{test_accuracy(trainer):.2%}"
        times["the ceiling"] = np.full_like(times["funcnet"], ceiling)
        more["the ceiling"] = {"of the ceiling": f"{rate / 1e9:.0f} GFLOP/s"}
        yield from rows_of(name_of(sizes, batch_size), times, more)


def scan_suite(seconds: float) -> Iterator[Row]:
    """A step of an epoch of funcnet against one of a `lax.scan` of `jax.grad` and optax, in float32 and in bfloat16.
    The scan takes float images, leaves the smaller last batch out and computes no accuracy; its images are put in order
    beforehand, or gathered in the step. Of a part of the images, so that turns are short: the time of such an epoch by
    the number of its steps. Ratios are to the first scan.
    """
    ours, scans = list(OURS.values()), list(peers.SCANS.items())[:2]
    precisions = ("funcnet", ours[0], scans), ("funcnet, bfloat16", ours[1], [*peers.SCANS_IN_BFLOAT16.items()])
    cases = (SMALL, 128, 12_000), ((784, 512, 10), 1024, 12_000), (WIDE, 128, 4_000), (LARGE, 128, 2_000)
    for (sizes, batch_size, images), (name, make, peers_of_it) in product(cases, precisions):
        trainers = started({**dict(peers_of_it), name: make}, task_of(sizes, batch_size, images=images))
        times = interleaved({who: trainer.epoch for who, trainer in trainers.items()}, seconds)
        times = {
            who: t / (-(-images // batch_size) if who == name else images // batch_size) for who, t in times.items()
        }
        faster = min((who for who in times if who != name), key=lambda who: float(np.median(times[who])))
        more = {name: {"to the faster": float(np.median(times[name] / times[faster]))}}
        yield from rows_of(name_of(sizes, batch_size), times, more)


def time_to_accuracy_suite(_: float) -> Iterator[Row]:
    """From nothing to 98% on the test set: compiling and all epochs, the tests of the accuracy not counted; 784-256-10,
    plain SGD, batch 32, rate 0.2, from three starts each. Reading the test set after each epoch is what this contest is
    about, so its accuracy says nothing more than that it was reached.
    """
    makers = {"funcnet": peers.funcnet_epoch, **peers.PEERS}
    tasks = [task_of((784, 256, 10), 32, seed, rate=0.2) for seed in range(3)]

    def one_run(name, start) -> tuple[float, int, float]:
        jax.clear_caches()
        time.sleep(timing.PAUSE)
        each, began = [], time.perf_counter()
        trainer = makers[name](tasks[start])
        while True:
            trainer.epoch()
            each.append(time.perf_counter() - began)
            if test_accuracy(trainer) >= 0.98 or len(each) == 50:
                return sum(each), len(each), each[0] - float(np.median(each[1:]))
            time.sleep(timing.PAUSE)
            began = time.perf_counter()

    times, more = {}, {}
    runs = {name: partial(one_run, name) for name in started(makers, tasks[0])}
    for name, results in back_and_forth(runs, rounds=len(tasks)).items():
        times[name], epochs, setting_up = zip(*results, strict=True)
        more[name] = {"epochs": ", ".join(map(str, epochs)), "of it setting up": f"{np.median(setting_up):.2f} s"}
    yield from rows_of(name_of((784, 256, 10), 32), times, more)


def distortion_suite(seconds: float) -> Iterator[Row]:
    """What fresh deformations of every image cost, of all kinds at once (rotation, shear, scale, shift, elastic): an
    epoch of 784-1000-500-10 by Adam without them and with them, and the deformations of an epoch by themselves.
    """
    x, y = map(jnp.asarray, datasets.load_mnist().train)
    deform = partial(distort, amounts=DISTORTION)
    optimizer, sizes, key = funcnet.adam(1e-3), (784, 1000, 500, 10), jax.random.key(0)
    state = training.init_state(funcnet.init(key, sizes), optimizer)

    def alone(batch_size, key, x):
        batches = training.plan_batches(key, len(x), batch_size)
        return jax.lax.map(lambda row: deform(row[0], x[row[1]]).mean(), (batches.keys, batches.indices))

    for batch_size in (128, 256):
        epoch = partial(training.make_epoch, optimizer, batch_size=batch_size)
        yield from compare(name_of(sizes, batch_size), {
            "the images as they are": candidate(epoch(), state, key, x, y),
            "deformed anew": candidate(epoch(transform=deform), state, key, x, y),
            "the deformations alone": candidate(partial(alone, batch_size), key, x)}, seconds)  # fmt: skip


def sweep_suite(seconds: float) -> Iterator[Row]:
    """Sixteen networks, an epoch of 15,000 images each: in turn, and as one program through `vmap`. All at once the
    weights of wide networks are more than the caches hold, and each step fetches them from memory; so also four at a
    time, by `jax.lax.map`, and by `training.for_each`, which does that with small ones on a CPU.
    """
    x, y = (jnp.asarray(v[:15_000]) for v in datasets.load_mnist().train)
    optimizer = funcnet.sgd(RATE)
    epoch = training.make_epoch(optimizer, batch_size=128)
    programs = {
        "vmap, an order of the images for each": jax.vmap(epoch, (0, 0, None, None)),
        "vmap, one order for all": lambda s, keys, x, y: jax.vmap(epoch, (0, None, None, None))(s, keys[0], x, y),
        "vmap, four at a time": lambda *of: jax.lax.map(lambda m: epoch(m[0], m[1], *of[2:]), of[:2], batch_size=4),
        "training.for_each": lambda s, k, x, y: training.for_each(lambda s, key: epoch(s, key, x, y))(s, k),
    }
    for sizes in ((784, 32, 10), SMALL, WIDE):
        keys = jax.random.split(jax.random.key(0), 16)
        states = jax.vmap(lambda key, sizes=sizes: training.init_state(funcnet.init(key, sizes), optimizer))(keys)
        each = [jax.tree.map(lambda leaf, i=i: leaf[i], (states, keys)) for i in range(16)]
        one = compiled(epoch, *each[0], x, y)
        candidates = {"in turn": lambda one=one, each=each: [call(one, *of, x, y)() for of in each]}
        candidates |= {name: candidate(program, states, keys, x, y) for name, program in programs.items()}
        yield from compare(f"16 x {name_of(sizes)}", candidates, seconds)


def mesh_suite(seconds: float) -> Iterator[Row]:
    """An epoch of 15,000 images over a mesh of one device, against none; and with its batches laid out by the host."""
    data, mesh = tuple(v[:15_000] for v in datasets.load_mnist().train), sharding.make_mesh("data=1")
    here, there = jax.device_put(data), sharding.put(data, sharding.replicated(mesh))
    optimizer, key = funcnet.sgd(RATE), jax.random.key(0)
    prebatched = training.make_prebatched_epoch(training.make_step(optimizer), samples=len(data[0]))

    def from_host(run, lay_out, state, next_up):
        done = run(state, key, *next_up.pop())
        next_up.append(lay_out())  # while the device is at work, as in the script
        jax.block_until_ready(done)

    for sizes, batch_size in ((SMALL, 128), (WIDE, 128), (LARGE, 128), (LARGE, 1024)):
        state = training.init_state(funcnet.init(key, sizes), optimizer)
        shardings = sharding.state_shardings(state, mesh)
        spread, jit = sharding.put(state, shardings), {"out_shardings": (shardings, None)}
        epoch = training.make_epoch(optimizer, batch_size=batch_size)
        lay_out = partial(sharding.shard_batches, key, *data, batch_size=batch_size, mesh=mesh)
        next_up = [lay_out()]
        run = compiled(prebatched, spread, key, *next_up[0], **jit)
        yield from compare(name_of(sizes, batch_size), {
            "no mesh": candidate(epoch, state, key, *here),
            "data=1": candidate(epoch, spread, key, *there, **jit),
            "data=1, batches from the host": partial(from_host, run, lay_out, spread, next_up)}, seconds)  # fmt: skip


def compile_suite(_: float) -> Iterator[Row]:
    """Import; tracing and compiling a gradient, against `jax.value_and_grad`; how often a run is traced."""

    def import_seconds(module, _):
        code = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
        return float(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout)

    imports = {module: partial(import_seconds, module) for module in ("jax", "funcnet")}
    yield from rows_of("import, in a fresh process", back_and_forth(imports, rounds=9))

    def compile_seconds(gradient, args, _):
        jax.clear_caches()
        return timing.seconds_of(lambda: compiled(gradient, *args))

    for depth in (2, 3, 8, 32):
        args = batch_of((784, *[64] * (depth - 1), 10))
        runs = {name: partial(compile_seconds, gradient, args) for name, gradient in GRADIENTS.items()}
        yield from rows_of(f"trace and compile, {depth} layers", back_and_forth(runs, rounds=9))
    jax.clear_caches()
    seen: list[tuple[str, Any]] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **about: seen.append((event.split("/")[-1], about.get("fun_name"))))  # fmt: skip
    task = task_of(SMALL, 128)  # with a ragged last batch
    marks = [time.perf_counter()]
    trainer = peers.funcnet_epoch(task)
    for _ in range(5):
        trainer.epoch()
        test_accuracy(trainer)
        marks.append(time.perf_counter())
    first, *later = np.diff(marks)
    traces = {f"traces of {f}": seen.count(("jaxpr_trace_duration", f)) for f in ("epoch", "forward_in_batches")}
    name = "first epoch and evaluation"
    yield from rows_of("a run of five epochs", {name: [first], "later": later}, {name: traces})


def scaling_suite(seconds: float, pictures: Path | None = None) -> Iterator[Row]:
    """Time per sample of a step by width, depth and batch, and of an epoch by the number of images."""
    steps = [("one hidden layer, wider", (784, width, 10), 128) for width in (16, 64, 256, 1024, 4096)]
    steps += [("hidden layers of 256, more", (784, *[256] * depth, 10), 128) for depth in (1, 2, 4, 8, 16, 32)]
    steps += [("a step, by batch", SMALL, n) for n in (1, 4, 16, 64, 256, 1024, 4096)]
    candidates, more = {}, {}
    for line, sizes, n in steps:
        args = batch_of(sizes, n)
        shape = f"{sizes[1]} x {len(sizes) - 2}" if len(sizes) > 4 else name_of(sizes)
        name = f"{line}: {shape}, batch {n}"
        candidates[name] = candidate(value_and_backward, *args)
        more[name] = {"samples": n, "parameters": funcnet.count_parameters(args[0])}
    for n in (1_875, 3_750, 7_500, 15_000, 30_000, 60_000):
        name = f"an epoch, by number of images: {n:,}"
        candidates[name], more[name] = peers.funcnet_epoch(task_of(SMALL, 128, images=n)).epoch, {"samples": n}
    rows = compare("all in turn", candidates, seconds, more)
    for row in rows:
        row.more["microseconds per sample"] = 1e6 * row.seconds / row.more["samples"]
    yield from rows
    lines = list(dict.fromkeys(row.candidate.split(":")[0] for row in rows))
    for label, names, title in (
            ("parameters", lines[:2], "From 256 units on, time is linear in the parameters"),
            ("samples", lines[2:], "A sample costs the same in any number of full batches")):  # fmt: skip
        on = {line: [row.more for row in rows if row.candidate.startswith(line)] for line in names}
        x, y = ({line: [more[of] for more in on[line]] for line in on} for of in (label, "microseconds per sample"))
        if pictures is not None:
            figure = plotting.lines(y, x=x, log=True, title=title, x_label=label, y_label="microseconds per sample")
            figure.savefig(pictures / f"scaling_{label}.png")


def inference_suite(seconds: float) -> Iterator[Row]:
    """Probabilities of one sample, and of a thousand."""
    for sizes, n in product((SMALL, LARGE), (1, 1000)):
        params, x, _ = batch_of(sizes, n)
        yield from compare(f"{name_of(sizes)}, {n} at a time", {
            "funcnet.predict, compiled": candidate(funcnet.predict, params, x),
            "funcnet.predict, as it is called": call(funcnet.predict, params, x),
            "jax.jit": candidate(lambda params, x: jax.nn.softmax(peers.plain_network(params, x)), params, x),
        } | peers.predictions(params, np.asarray(x)), seconds)  # fmt: skip


def per_sample_suite(seconds: float) -> Iterator[Row]:
    """Per-sample norms, clipping and gradients against one plain gradient, and against those who do it otherwise."""
    by_sample = jax.vmap(jax.grad(objective), (None, 0, 0))
    for sizes in (SMALL, LARGE):
        args = batch_of(sizes)
        max_norm = float(jnp.median(per_sample.per_sample_norms(*args)))
        programs = {
            "backward": funcnet.backward, "per_sample_norms": per_sample.per_sample_norms,
            "clipped_backward": partial(per_sample.clipped_backward, max_norm=max_norm),
            "per_sample_backward": per_sample.per_sample_backward}  # fmt: skip
        by_jax = peers.by_rows(lambda *args: jax.tree.leaves(by_sample(*args)), max_norm, jnp.tensordot)
        programs |= {f"{name}: jit, vmap(jax.grad)": program for name, program in by_jax.items()}
        programs = {name: compiled(program, *args) for name, program in programs.items()}
        more = {name: {"memory in MB": timing.peak_memory(program) / 1e6} for name, program in programs.items()}
        candidates = {name: call(run, *args) for name, run in programs.items()} | peers.per_sample(*args, max_norm)
        check_agreement(candidates)
        yield from compare(name_of(sizes), candidates, seconds, more)


def check_agreement(candidates) -> None:
    """All that claim to compute the same do, entry by entry, to 1e-4 of the largest."""
    ours = {"norms": ("per_sample_norms", 0), "clipped": ("clipped_backward", 2), "rows": ("per_sample_backward", 3)}

    def arrays(result):
        return [np.asarray(leaf.detach() if hasattr(leaf, "detach") else leaf) for leaf in jax.tree.leaves(result)]

    for name, run in candidates.items():
        if ":" in name:
            our_name, axes_of_W = ours[name.split(":")[0]]
            for got, want in zip(arrays(run()), arrays(candidates[our_name]()), strict=True):
                if want.ndim == axes_of_W and ("torch" in name or "Opacus" in name):
                    got = got.swapaxes(-1, -2)  # their `W` is `(n_out, n_in)`
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max(), err_msg=name)


Suite = Literal["step", "products", "epoch", "scan", "time-to-accuracy", "per-sample", "sweep", "mesh", "compile",
                "scaling", "inference", "distortion"]  # fmt: skip
SUITES = {name: globals()[f"{name.replace('-', '_')}_suite"] for name in get_args(Suite)}


def main(suites: tuple[Suite, ...] = (), /, seconds: float = 3.0, only: str = "", out: Path | None = None,
         pictures: Path | None = None) -> None:  # fmt: skip
    """Run suites and print their tables; and each row at once, since a suite may take half an hour.

    Args:
      suites: which of them; all, if none is named.
      seconds: for each candidate.
      only: in `epoch`, funcnet and those in whose names this regular expression is found, such as `NumPy|optax`.
      out: a JSON file for the figures, such as one in scripts/benchmarks/results, from which the documentation has its.
      pictures: a folder for the plots of `scaling`.
    """
    own = {"epoch": {"only": only}, "scaling": {"pictures": pictures}}
    runs = {
        name: (partial(SUITES[name], seconds, **own.get(name, {})), SUITES[name].__doc__) for name in suites or SUITES
    }
    timing.report(runs, out)


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except re.error as error:
        sys.exit(f"benchmark: --only {error.pattern!r} is no regular expression: {error}")
    except OSError as error:
        sys.exit(f"benchmark: {error}")
