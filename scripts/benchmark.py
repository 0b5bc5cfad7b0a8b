"""How fast, and against whom: each suite prints a table in Markdown, and all of it goes into one JSON file.

python scripts/benchmark.py                             # all suites; needs pip install -e ".[train,bench]"
python scripts/benchmark.py epoch step --out figures.json

How candidates are timed stands in `timing.py`, the frameworks that are compared with in `peers.py`; those that are not
installed are left out.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import peers
import tyro
from programs import bfloat16_is_faster
from recipes import RECIPES
from timing import PAUSE, Row, call, compare, compiled, interleaved, machine, markdown, peak_memory, rows_of, shown

import funcnet
from funcnet import datasets, distortions, per_sample, plotting, sharding, training

SMALL, WIDE, LARGE = (784, 128, 10), (784, 800, 10), (784, 1024, 1024, 10)
RATE = 0.1
OURS: dict[str, Callable[[peers.Task], peers.Trainer]] = {
    "funcnet": peers.funcnet_epoch,
    "funcnet, bfloat16 products": partial(peers.funcnet_epoch, compute_dtype=jnp.bfloat16),
    "funcnet's epoch, jax.grad, optax": peers.funcnet_with_optax,
}


def batch_of(sizes, n=128, seed=0) -> tuple[Any, jax.Array, jax.Array]:
    """A network and a batch of dense data: `(params, x, y)`."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.uniform(keys[1], (n, sizes[0]))
    return funcnet.init(keys[0], sizes), x, jax.random.randint(keys[2], (n,), 0, sizes[-1])


def task_of(sizes, batch_size, seed=0, images=60_000) -> peers.Task:
    """Plain SGD on MNIST, from the same start for all."""
    x, y = datasets.load_mnist().train
    params = [(np.asarray(W), np.asarray(b)) for W, b in funcnet.init(jax.random.key(seed), sizes)]
    return peers.Task(params, np.asarray(x)[:images], np.asarray(y)[:images], batch_size, RATE, seed)


def name_of(sizes) -> str:
    """The widths, 784-128-10."""
    return "-".join(map(str, sizes))


def step_flops(sizes, batch_size) -> int:
    """Of the products of one training step: forward, dW, and the delta of every layer but the first."""
    products = [n_in * n_out for n_in, n_out in pairwise(sizes)]
    return 2 * batch_size * (2 * products[0] + 3 * sum(products[1:]))


def contestants(only: str) -> dict[str, Callable[[peers.Task], peers.Trainer]]:
    """Who takes part: funcnet, and those by that name or, if none is asked for, all that are at their best here."""
    try:
        re.compile(only)
    except re.error as error:
        raise re.error(f"--only {only!r} is no regular expression: {error}") from None
    makers = OURS | peers.PEERS | peers.PEERS_IN_BFLOAT16
    if not only and not bfloat16_is_faster():
        print("without products of bfloat16, which are no faster here; --only bfloat16 times them", file=sys.stderr)
        only = "^((?!bfloat16).)*$"
    return {name: make for name, make in makers.items() if name == "funcnet" or re.search(only, name)}


def start_all(makers: Mapping[str, Callable[[peers.Task], peers.Trainer]], task) -> dict[str, peers.Trainer]:
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


# Suites: each yields rows, and may draw pictures.


def step_suite(seconds: float) -> Iterator[Row]:
    """Value and gradient of one batch, against `jax.value_and_grad` of the same objective."""
    for sizes in ((784, 32, 10), SMALL, WIDE, LARGE):
        for n in (1, 8, 32, 128, 1024):
            args = batch_of(sizes, n)
            candidates = {
                "jax.value_and_grad": call(compiled(jax.value_and_grad(funcnet.objective), *args), *args),
                "value_and_backward": call(compiled(funcnet.value_and_backward, *args), *args),
            }
            yield from compare(f"{name_of(sizes)}, batch {n}", candidates, seconds)


def products_alone(sizes, batch_size, steps) -> Callable[[], Any]:
    """The matrix products of an epoch's steps and the updates, and nothing else: what XLA can do at these shapes."""
    params, x, _ = batch_of(sizes, batch_size)

    def step(Ws, _):
        inputs, a = [], x + Ws[0][0, 0]  # differs from step to step, or XLA would compute it once
        for W in Ws:
            inputs.append(a)
            a = a @ W
        delta, grads = a, []
        for l in reversed(range(len(Ws))):
            grads.append(jnp.einsum("ni,nj->ij", inputs[l], delta))
            delta = jnp.einsum("nj,ij->ni", delta, Ws[l]) if l else delta
        return [W - 1e-9 * dW for W, dW in zip(Ws, reversed(grads), strict=True)], None

    Ws = [0.01 * W for W, _ in params]
    return call(compiled(lambda Ws: jax.lax.scan(step, Ws, length=steps)[0], Ws), Ws)


def products_suite(seconds: float) -> Iterator[Row]:
    """The three products of a layer, each added up over 32 batches as within an epoch; and dW with `a^T` at hand."""
    for n, n_in, n_out in ((128, 784, 128), (128, 784, 800), (128, 784, 1024), (128, 1024, 1024)):
        keys = jax.random.split(jax.random.key(0), 3)
        shapes = (32, n, n_in), (n_in, n_out), (32, n, n_out)
        a, W, delta = map(jax.random.normal, keys, shapes)
        products = {
            "a W": (lambda W, a: a @ W, a),
            "delta W^T": (lambda W, delta: delta @ W.T, delta),
            "dW = a^T delta": (lambda W, a, delta: a.T @ delta, a, delta),
            "dW, a^T being there": (lambda W, a_T, delta: a_T @ delta, jnp.array(a.mT), delta),
        }
        candidates = {}
        for name, (product, *batches) in products.items():

            def added_up(W, *batches, product=product):
                start = jnp.zeros_like(product(W, *(b[0] for b in batches)))
                return jax.lax.scan(lambda total, b: (total + product(W, *b), None), start, batches)[0]

            candidates[name] = call(compiled(added_up, W, *batches), W, *batches)
        times = {name: t / 32 for name, t in interleaved(candidates, seconds).items()}
        flops = 2 * n * n_in * n_out
        more = {name: {"GFLOP/s": f"{flops / np.median(t) / 1e9:.0f}"} for name, t in times.items()}
        yield from rows_of(f"batch {n}, {n_in} to {n_out}", times, more)


def epoch_suite(seconds: float, only: str = "") -> Iterator[Row]:
    """An epoch of MNIST by plain SGD, against other frameworks and against matrix products alone.

    The ceiling is the FLOPs of the epoch's products at the rate of a 1,024 x 1,024 product, XLA's or NumPy's, whichever
    is faster, measured in the same rounds.
    """
    makers = contestants(only)
    square = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    on_device = jnp.asarray(square)
    squares = {
        "XLA": call(compiled(jnp.matmul, square, square), on_device, on_device),
        "NumPy": lambda: square @ square,
    }
    for sizes, batch_size in ((SMALL, 32), (SMALL, 128), (WIDE, 128), (LARGE, 128)):
        task = task_of(sizes, batch_size)
        trainers = start_all(makers, task)
        steps = -(-len(task.x) // batch_size)
        candidates = {name: trainer.epoch for name, trainer in trainers.items()}
        candidates["the same products alone, XLA"] = products_alone(sizes, batch_size, steps)
        times = interleaved(candidates | squares, seconds)
        rate = 2 * 1024**3 / min(np.median(times.pop(name)) for name in squares)
        ceiling = steps * step_flops(sizes, batch_size) / rate
        more: dict[str, dict[str, Any]] = {
            name: {"of the ceiling": f"{ceiling / np.median(t):.0%}"} for name, t in times.items()
        }
        for name, trainer in trainers.items():
            more[name]["test accuracy"] = f"{test_accuracy(trainer):.2%}"
        times["the ceiling"] = np.full_like(times["funcnet"], ceiling)
        yield from rows_of(f"{name_of(sizes)}, batch {batch_size}", times, more | {
            "the ceiling": {"of the ceiling": f"{rate / 1e9:.0f} GFLOP/s"}})  # fmt: skip


def time_to_accuracy_suite(seconds: float) -> Iterator[Row]:
    """From nothing to 98% on the test set: compiling and all epochs, the tests of the accuracy not counted.

    784-256-10, plain SGD, batch 32, rate 0.2, from three starts each. Reading the test set after each epoch is what
    this contest is about, so its accuracy says nothing more than that it was reached.
    """
    del seconds
    makers = {"funcnet": peers.funcnet_epoch, **peers.PEERS}
    times: dict[str, list[float]] = {}
    epochs: dict[str, list[int]] = {}
    first: dict[str, list[float]] = {}
    for seed in range(3):
        task = task_of((784, 256, 10), 32, seed)._replace(rate=0.2)
        for name, make in list(makers.items())[:: 1 if seed % 2 == 0 else -1]:
            jax.clear_caches()
            time.sleep(PAUSE)
            spent, each = 0.0, []
            began = time.perf_counter()
            try:
                trainer = make(task)
            except ImportError as error:
                print(f"without {name}: {error}", file=sys.stderr)
                continue
            while True:
                trainer.epoch()
                each.append(time.perf_counter() - began)
                spent += each[-1]
                if test_accuracy(trainer) >= 0.98 or len(each) == 50:
                    break
                time.sleep(PAUSE)
                began = time.perf_counter()
            times.setdefault(name, []).append(spent)
            epochs.setdefault(name, []).append(len(each))
            first.setdefault(name, []).append(each[0] - float(np.median(each[1:])))
    arrays = {name: np.array(times[name]) for name in makers if name in times}
    more = {
        name: {"epochs": ", ".join(map(str, epochs[name])), "of it setting up": f"{np.median(first[name]):.2f} s"}
        for name in arrays
    }
    yield from rows_of("784-256-10, batch 32", arrays, more)


def distortion_suite(seconds: float) -> Iterator[Row]:
    """What fresh deformations of every image cost: an epoch of 784-1000-500-10 by Adam without them and with them.

    All kinds at once (rotation, shear, scale, shift, elastic), and the deformations of an epoch by themselves.
    """
    x, y = map(jnp.asarray, datasets.load_mnist().train)
    deform = partial(distortions.distort, amounts=RECIPES["distort"].settings["distortion"])
    optimizer, sizes, key = funcnet.adam(1e-3), (784, 1000, 500, 10), jax.random.key(0)
    state = training.init_state(funcnet.init(key, sizes), optimizer)
    for batch_size in (128, 256):

        def alone(key, x, batch_size=batch_size):
            batches = training.plan_batches(key, len(x), batch_size)
            return jax.lax.map(lambda row: deform(row[0], x[row[1]]).mean(), (batches.keys, batches.indices))

        candidates = {
            name: call(
                compiled(training.make_epoch(optimizer, batch_size=batch_size, transform=transform), state, key, x, y),
                state,
                key,
                x,
                y,
            )
            for name, transform in (("the images as they are", None), ("deformed anew", deform))
        } | {"the deformations alone": call(compiled(alone, key, x), key, x)}
        yield from compare(f"{name_of(sizes)}, batch {batch_size}", candidates, seconds)


def sweep_suite(seconds: float) -> Iterator[Row]:
    """Sixteen networks, an epoch of 15,000 images each: in turn, and as one program through `vmap`.

    All at once the weights of wide networks are more than the caches hold, and each step fetches them from memory; so
    also four at a time, by `jax.lax.map`.
    """
    x, y = (jnp.asarray(v[:15_000]) for v in datasets.load_mnist().train)
    optimizer = funcnet.sgd(RATE)
    epoch = training.make_epoch(optimizer, batch_size=128)

    def in_fours(states, keys, x, y):
        return jax.lax.map(lambda of: epoch(of[0], of[1], x, y), (states, keys), batch_size=4)

    for sizes in ((784, 32, 10), SMALL, WIDE):
        keys = jax.random.split(jax.random.key(0), 16)
        states = jax.vmap(lambda key, sizes=sizes: training.init_state(funcnet.init(key, sizes), optimizer))(keys)
        each = [jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(16)]
        one = compiled(epoch, each[0], keys[0], x, y)
        own_order = compiled(jax.vmap(epoch, (0, 0, None, None)), states, keys, x, y)
        one_order = compiled(jax.vmap(epoch, (0, None, None, None)), states, keys[0], x, y)
        by_fours = compiled(in_fours, states, keys, x, y)
        candidates = {
            "in turn": lambda one=one, each=each, keys=keys: [
                jax.block_until_ready(one(state, key, x, y)) for state, key in zip(each, keys, strict=True)
            ],
            "vmap, an order of the images for each": call(own_order, states, keys, x, y),
            "vmap, one order for all": call(one_order, states, keys[0], x, y),
            "vmap, four at a time": call(by_fours, states, keys, x, y),
        }
        yield from compare(f"16 x {name_of(sizes)}", candidates, seconds)


def mesh_suite(seconds: float) -> Iterator[Row]:
    """An epoch of 15,000 images over a mesh of one device, against none; and with its batches dealt by the host."""
    x, y = datasets.load_mnist().train
    data, mesh = (x[:15_000], y[:15_000]), sharding.make_mesh("data=1")
    here, there = jax.device_put(data), sharding.put(data, sharding.replicated(mesh))
    optimizer, key = funcnet.sgd(RATE), jax.random.key(0)
    for sizes, batch_size in ((SMALL, 128), (WIDE, 128), (LARGE, 128), (LARGE, 1024)):
        state = training.init_state(funcnet.init(key, sizes), optimizer)
        shardings = sharding.state_shardings(state, mesh)
        spread, outputs = sharding.put(state, shardings), (shardings, None)
        epoch = training.make_epoch(optimizer, batch_size=batch_size)
        without = compiled(epoch, state, key, *here)
        over = jax.jit(epoch, out_shardings=outputs).lower(spread, key, *there).compile()

        deal = partial(sharding.deal, key, *data, batch_size=batch_size, mesh=mesh)
        dealt = training.make_dealt_epoch(training.make_step(optimizer), samples=len(data[0]))
        next_up = [deal()]
        over_dealt = jax.jit(dealt, out_shardings=outputs).lower(spread, key, *next_up[0]).compile()

        def from_host(over_dealt=over_dealt, deal=deal, spread=spread, next_up=next_up):
            done = over_dealt(spread, key, *next_up.pop())
            next_up.append(deal())  # while the device is at work, as in the script
            jax.block_until_ready(done)

        candidates = {
            "no mesh": call(without, state, key, *here),
            "data=1": call(over, spread, key, *there),
            "data=1, dealt": from_host,
        }
        yield from compare(f"{name_of(sizes)}, batch {batch_size}", candidates, seconds)


IMPORT = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"


def compile_suite(seconds: float) -> Iterator[Row]:
    """Import; tracing and compiling a gradient, against `jax.value_and_grad`; how often a run is traced."""
    del seconds

    def import_seconds(module):
        out = subprocess.run([sys.executable, "-c", IMPORT.format(module)], capture_output=True, text=True, check=True)
        return float(out.stdout)

    imports = [[import_seconds(module) for module in ("jax", "funcnet")] for _ in range(9)]
    yield from rows_of("import, in a fresh process", dict(zip(("jax", "funcnet"), np.array(imports).T, strict=True)))

    for depth in (2, 3, 8, 32):
        sizes = (784, *[64] * (depth - 1), 10)
        args = batch_of(sizes)
        programs = {
            "jax.value_and_grad": jax.value_and_grad(funcnet.objective),
            "value_and_backward": funcnet.value_and_backward,
        }
        times = {name: [] for name in programs}
        for i in range(9):
            for name in list(programs)[:: 1 if i % 2 == 0 else -1]:
                jax.clear_caches()
                began = time.perf_counter()
                compiled(programs[name], *args)
                times[name].append(time.perf_counter() - began)
        yield from rows_of(f"trace and compile, {depth} layers", {name: np.array(t) for name, t in times.items()})

    task = task_of(SMALL, 128)  # with a ragged last batch
    jax.clear_caches()
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **about: str | int) -> None:
        del duration_secs
        if event.endswith("jaxpr_trace_duration"):
            seen.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    began = time.perf_counter()
    trainer = peers.funcnet_epoch(task)
    firsts = []
    for _ in range(5):
        trainer.epoch()
        test_accuracy(trainer)
        firsts.append(time.perf_counter() - began)
        began = time.perf_counter()
    count = {f"traces of {name}": sum(name == fun for fun in seen) for name in ("epoch", "outputs")}
    times = {"first epoch and evaluation": np.array(firsts[:1]), "later": np.array(firsts[1:])}
    yield from rows_of("a run of five epochs", times, {"first epoch and evaluation": count})


def scaling_suite(seconds: float, pictures: Path | None = None) -> Iterator[Row]:
    """Time per sample of a step by width, depth and batch, and of an epoch by the number of images."""
    steps = [("one hidden layer, wider", (784, width, 10), 128) for width in (16, 64, 256, 1024, 4096)]
    steps += [("hidden layers of 256, more", (784, *[256] * depth, 10), 128) for depth in (1, 2, 4, 8, 16, 32)]
    steps += [("a step, by batch", SMALL, n) for n in (1, 4, 16, 64, 256, 1024, 4096)]
    lines: dict[str, list[str]] = {}
    at: dict[str, int] = {}
    candidates, more = {}, {}
    for line, sizes, n in steps:
        args = batch_of(sizes, n)
        shape = f"{sizes[1]} x {len(sizes) - 2}" if len(sizes) > 4 else name_of(sizes)
        name = f"{line}: {shape}, batch {n}"
        candidates[name] = call(compiled(funcnet.value_and_backward, *args), *args)
        parameters = funcnet.count_parameters(args[0])
        more[name] = {"samples": n, "parameters": parameters}
        at[name] = n if line == "a step, by batch" else parameters
        lines.setdefault(line, []).append(name)
    for n in (1_875, 3_750, 7_500, 15_000, 30_000, 60_000):
        name = f"an epoch, by number of images: {n:,}"
        candidates[name] = peers.funcnet_epoch(task_of(SMALL, 128, images=n)).epoch
        more[name], at[name] = {"samples": n}, n
        lines.setdefault("an epoch, by number of images", []).append(name)
    rows = {row.candidate: row for row in compare("all in turn", candidates, seconds, more)}
    for row in rows.values():
        row.more["per sample"] = row.seconds / row.more["samples"]
    yield from rows.values()

    for file, names, title, label in (
        (
            "scaling_parameters.png",
            list(lines)[:2],
            "From 256 units on, time is linear in the parameters",
            "parameters",
        ),
        ("scaling_samples.png", list(lines)[2:], "A sample costs the same in any number of full batches", "samples"),
    ):
        if pictures is not None:
            figure = plotting.lines(
                {line: [1e6 * rows[name].more["per sample"] for name in lines[line]] for line in names},
                x={line: [at[name] for name in lines[line]] for line in names},
                title=title, x_label=label, y_label="time per sample (microseconds)", log=True,
            )  # fmt: skip
            figure.savefig(pictures / file)


def inference_suite(seconds: float) -> Iterator[Row]:
    """Probabilities of one sample, and of a thousand."""
    for sizes in (SMALL, LARGE):
        for n in (1, 1000):
            params, x, _ = batch_of(sizes, n)
            host = np.asarray(x)
            predict = compiled(funcnet.predict, params, x)
            by_jax = compiled(lambda params, x: jax.nn.softmax(peers.plain_network(params, x)), params, x)
            candidates = {
                "funcnet.predict, compiled": call(predict, params, x),
                "funcnet.predict, as it is called": call(funcnet.predict, params, x),
                "jax.jit": call(by_jax, params, x),
            } | peers.predictions(params, host)
            yield from compare(f"{name_of(sizes)}, {n} at a time", candidates, seconds)


def per_sample_suite(seconds: float) -> Iterator[Row]:
    """Per-sample norms, clipping and gradients against one plain gradient, and against those who do it otherwise."""
    for sizes in (SMALL, LARGE):
        params, x, y = args = batch_of(sizes)
        max_norm = float(jnp.median(per_sample.per_sample_norms(*args)))
        rows_by_jax = jax.vmap(jax.grad(funcnet.objective), (None, 0, 0))

        def norms_by_jax(params, x, y, rows=rows_by_jax):
            squares = [jnp.sum(g**2, axis=range(1, g.ndim)) for g in jax.tree.leaves(rows(params, x, y))]
            return jnp.sqrt(sum(squares))

        def clipped_by_jax(params, x, y, rows=rows_by_jax, norms=norms_by_jax, max_norm=max_norm):
            factor = jnp.minimum(1, max_norm / norms(params, x, y))
            return jax.tree.map(lambda g: jnp.tensordot(factor, g, 1) / len(x), rows(params, x, y))

        programs = {
            "backward": funcnet.backward,
            "per_sample_norms": per_sample.per_sample_norms,
            "clipped_backward": partial(per_sample.clipped_backward, max_norm=max_norm),
            "per_sample_backward": per_sample.per_sample_backward,
            "norms: jit, vmap(jax.grad)": norms_by_jax,
            "clipped: jit, vmap(jax.grad)": clipped_by_jax,
            "rows: jit, vmap(jax.grad)": rows_by_jax,
        }
        ready = {name: compiled(program, *args) for name, program in programs.items()}
        candidates = {name: call(program, *args) for name, program in ready.items()}
        more = {name: {"memory in MB": peak_memory(program) / 1e6} for name, program in ready.items()}
        candidates |= peers.per_sample(params, x, y, max_norm)
        check_agreement(candidates)
        yield from compare(name_of(sizes), candidates, seconds, more)


def check_agreement(candidates) -> None:
    """All that claim to compute the same do, entry by entry, to 1e-4 of the largest."""
    ours = {"norms": "per_sample_norms", "clipped": "clipped_backward", "rows": "per_sample_backward"}

    def arrays(result):
        leaves = result.values() if isinstance(result, dict) else jax.tree.leaves(result)
        return [np.asarray(leaf.detach() if hasattr(leaf, "detach") else leaf) for leaf in leaves]

    for name, run in candidates.items():
        kind = name.split(":")[0]
        if kind in ours:
            for got, want in zip(arrays(run()), arrays(candidates[ours[kind]]()), strict=True):
                if want.ndim == {"norms": 0, "clipped": 2, "rows": 3}[kind] and ("torch" in name or "Opacus" in name):
                    got = got.swapaxes(-1, -2)  # their `W` is `(n_out, n_in)`
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max(), err_msg=name)


SUITES: dict[str, Callable[..., Iterator[Row]]] = {
    "step": step_suite,
    "products": products_suite,
    "epoch": epoch_suite,
    "time-to-accuracy": time_to_accuracy_suite,
    "per-sample": per_sample_suite,
    "sweep": sweep_suite,
    "mesh": mesh_suite,
    "compile": compile_suite,
    "scaling": scaling_suite,
    "inference": inference_suite,
    "distortion": distortion_suite,
}
Suite = Literal["step", "products", "epoch", "time-to-accuracy", "per-sample", "sweep", "mesh", "compile", "scaling",
                "inference", "distortion"]  # fmt: skip


def main(
    suites: tuple[Suite, ...] = (),
    /,
    seconds: float = 3.0,
    only: str = "",
    out: Path | None = None,
    pictures: Path | None = None,
):
    """Run suites and print their tables.

    Args:
      suites: which of them; all, if none is named.
      seconds: for each candidate.
      only: in `epoch`, funcnet and those in whose names this regular expression is found, such as `NumPy|optax`.
      out: a JSON file for the figures.
      pictures: a folder for the plots of `scaling`.
    """
    print(f"{machine()}\n")
    own_settings: dict[str, dict[str, Any]] = {"epoch": {"only": only}, "scaling": {"pictures": pictures}}
    results: dict[str, list[dict[str, Any]]] = {}
    for name in suites or SUITES:
        run = SUITES[name]
        rows: list[Row] = []
        for row in run(seconds, **own_settings.get(name, {})):
            rows.append(row)
            # A suite may take half an hour, so what there is already is said at once.
            print(f"{row.case}: {row.candidate} {shown(row)}", file=sys.stderr, flush=True)
        print(f"## {name}\n\n{' '.join((run.__doc__ or '').split())}\n\n{markdown(rows)}", flush=True)
        results[name] = [asdict(row) for row in rows]
        if out is not None:
            out.write_text(json.dumps({"machine": machine(), "suites": results}, indent=1) + "\n")


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (OSError, re.error) as error:
        sys.exit(f"benchmark: {error}")
