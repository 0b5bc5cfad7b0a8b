"""How a training step scales: what moves between devices, from the compiled program; what each keeps; and the time.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python scripts/scaling.py           # on the devices at hand
python scripts/scaling.py --pod                                                         # on others, by calculation

The time of a step is predicted from what one device does, at three rates: its products (or the memory that they read
and write, whichever takes longer), then the update, which is all memory, then the sum over devices:

    max(FLOPs / f, product bytes / m) + update bytes / m + 2 (D - 1) / D * bytes reduced / l

The rates f, m and l of the devices at hand are measured in the same run, on a product, a copy and a sum of such sizes,
with all devices at work at once, since forced CPU devices share one processor; those of a pod are its maker's.
"""

import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import funcnet
from funcnet import count_parameters, sharding, training

BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u8": 1, "s8": 1, "pred": 1}
KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
COLLECTIVE = re.compile(rf"= (?P<shape>\(.*?\)|\S+) (?P<kind>{KINDS})(?:-start)?\(")


class Rates(NamedTuple):
    """What a device can do, per second."""

    flops: float
    memory: float  # bytes
    link: float  # bytes that it sends in a ring


class Collective(NamedTuple):
    """One operation between devices in a compiled program."""

    kind: str
    bytes: int  # of what it returns on one device


V5E = Rates(flops=197e12, memory=819e9, link=200e9)  # "TPU v5e", Google Cloud documentation: bfloat16, HBM, 1600 Gbit/s


def collectives(compiled: Any) -> list[Collective]:
    """What moves between devices, from the text of a compiled program."""
    found = [COLLECTIVE.search(line) for line in compiled.as_text().splitlines()]
    return [Collective(match["kind"], size(match["shape"])) for match in found if match]


def size(shape: str) -> int:
    """The bytes of a shape, or a tuple of them, as XLA writes it: `(f32[784,512]{1,0}, f32[])`."""
    arrays = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shape)
    return sum(BYTES[dtype] * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in arrays)


def compile_step(
    sizes: Sequence[int], batch: int, mesh: Mesh, compute_dtype: str | None
) -> tuple[Any, tuple[Any, ...]]:
    """The step with Adam over a mesh, compiled, and its arguments."""
    optimizer = funcnet.adam(1e-3)
    state = training.init_state(funcnet.init(jax.random.key(0), sizes), optimizer)
    shardings = sharding.state_shardings(state, mesh)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = sharding.put(np.full((batch, sizes[0]), 100, np.uint8), rows)
    y = sharding.put(np.zeros(batch, np.int32), rows)
    step = jax.jit(training.make_step(optimizer, compute_dtype=compute_dtype), out_shardings=(shardings, None))
    arguments = sharding.put(state, shardings), jax.random.key(1), x, y
    return step.lower(*arguments).compile(), arguments


class Work(NamedTuple):
    """What one device does in a step."""

    kept: float  # bytes
    flops: float
    product_bytes: float
    update_bytes: float
    reduced: float  # bytes


def work(sizes: Sequence[int], batch: int, data: int, model: int, half: bool, reduced: float) -> Work:
    """A step with Adam over `data` x `model` devices; `half`: the inputs of its products take two bytes.

    A weight takes two forwards' FLOPs for a sample, and as many for its gradient and for the delta below, except the
    first layer's. It is read forward and backward, and its gradient is written; `z` and `a` go there and back. The
    update reads the weight, its gradient and two moments, and writes all but the gradient. These four are kept, and `z`
    and `a`.
    """
    weights = [n * m for n, m in pairwise(sizes)]
    P, rows = sum(weights) / model, batch / data
    size = 2 if half else 4
    return Work(
        kept=4 * (4 * P + 2 * rows * sum(sizes)),
        flops=rows * (6 * sum(weights) - 2 * weights[0]) / model,
        product_bytes=size * (2 * P + 4 * rows * sum(sizes)) + 4 * P,
        update_bytes=4 * 7 * P,
        reduced=reduced,
    )


def predicted(work: Work, devices: int, rates: Rates) -> tuple[float, float, float]:
    """Seconds of the products, the update and the sum over devices; see the top."""
    products = max(work.flops / rates.flops, work.product_bytes / rates.memory)
    return products, work.update_bytes / rates.memory, 2 * (devices - 1) / devices * work.reduced / rates.link


def seconds(call: Callable[[], Any], rounds: int = 31) -> float:
    """The median time of a call, after two untimed ones."""
    times = []
    for turn in range(rounds + 2):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times += [time.perf_counter() - began] if turn >= 2 else []
    return statistics.median(times)


def measured_rates(one: Work, sizes: Sequence[int], batch: int, mesh: Mesh, compute_dtype: str | None) -> Rates:
    """The rates of each of the devices at hand while all of them are at work, at sizes like the step's."""
    everywhere, rows = sharding.replicated(mesh), NamedSharding(mesh, PartitionSpec(("data", "model")))
    D, n = mesh.size, max(sizes[1:])

    def own(shape, layout):
        return sharding.put(np.ones(shape, np.float32), layout)

    a, W = own((batch * mesh.shape["model"], n), rows), own((n, n // mesh.shape["model"]), everywhere)
    a, W = (v.astype(compute_dtype or v.dtype) for v in (a, W))
    multiply = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32), out_shardings=rows)
    vectors = own((D, int(one.update_bytes) // 8), rows)
    copy = jax.jit(lambda v: v + 1, out_shardings=rows)
    addends = own((D, int(one.reduced) // 4), rows)
    add = jax.jit(partial(jnp.sum, axis=0), out_shardings=everywhere)
    return Rates(
        flops=2 * a.size * W.shape[1] / D / seconds(lambda: multiply(a, W)),
        memory=2 * vectors.nbytes / D / seconds(lambda: copy(vectors)),
        link=2 * (D - 1) / D * one.reduced / seconds(lambda: add(addends)) if D > 1 else math.inf,
    )


def at_hand(sizes: tuple[int, ...], batch: int, compute_dtype: str | None) -> str:
    """A row for each way to lay the step out over the devices there are."""
    every = jax.device_count()
    texts = [f"data={d}" for d in (1, 2, 4, 8) if d <= every]
    texts += [f"data={every // 2},model=2"] if every > 2 else []
    texts += [f"model={every}"] if every > 1 else []
    lines = [
        "| mesh | kept per device | moved per step and device | measured | predicted |",
        "|" + " --- |" * 5,
    ]
    for text in texts:
        mesh = sharding.make_mesh(text)
        step, arguments = compile_step(sizes, batch, mesh, compute_dtype)
        moved = collectives(step)
        reduced = sum(c.bytes for c in moved)
        one = work(sizes, batch, mesh.shape["data"], mesh.shape["model"], compute_dtype is not None, reduced)
        rates = measured_rates(one, sizes, batch, mesh, compute_dtype)
        expected = sum(predicted(one, mesh.size, rates))
        took = seconds(lambda step=step, arguments=arguments: step(*arguments))
        kinds = [f"{c.kind} of {human(c.bytes)}" for c in moved if c.bytes > 64]
        cells = [text, human(one.kept), ", ".join(kinds) or "nothing", f"{1e3 * took:.1f} ms",
                 f"{1e3 * expected:.1f} ms"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def on_pod(sizes: tuple[int, ...], batch: int, rates: Rates) -> str:
    """What to expect of more devices than there are, data parallel, by calculation."""
    P = count_parameters(jax.eval_shape(lambda: funcnet.init(jax.random.key(0), sizes)))
    alone = math.nan
    lines = ["| devices | kept | products | update | all-reduce | step | samples/s | of ideal |", "|" + " --- |" * 8]
    for D in (1, 8, 64, 256):
        one = work(sizes, batch, D, 1, half=True, reduced=4 * P)
        parts = predicted(one, D, rates)
        took = sum(parts)
        alone = took if D == 1 else alone
        times = [f"{1e3 * part:.2f} ms" for part in (*parts, took)]
        cells = [f"{D}", human(one.kept), *times, f"{batch / took / 1e6:.1f} M", f"{alone / D / took:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def human(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def main(
    hidden_sizes: tuple[int, ...] | None = None,
    batch_size: int | None = None,
    pod: bool = False,
    compute_dtype: str | None = None,
) -> None:
    """Print how a training step with Adam scales.

    Args:
      hidden_sizes: widths of the hidden layers; by default 1024 1024, or four times 8192 for a pod.
      batch_size: by default 1024, or 65536 for a pod.
      pod: calculate for TPU v5e chips, in place of measuring on the devices at hand.
      compute_dtype: of the inputs of matrix products, on the devices at hand.
    """
    sizes = 784, *(hidden_sizes or ((8192,) * 4 if pod else (1024, 1024))), 10
    batch = batch_size or (65536 if pod else 1024)
    name = "-".join(map(str, sizes))
    if pod:
        print(f"{name}, batch {batch:,}, bfloat16 products, on TPU v5e, by calculation\n")
        print(on_pod(sizes, batch, V5E))
    else:
        kind = jax.devices()[0].device_kind
        print(f"{name}, batch {batch:,}, {compute_dtype or 'float32'} products, on {jax.device_count()} x {kind}\n")
        print(at_hand(sizes, batch, compute_dtype))


if __name__ == "__main__":
    tyro.cli(main)
