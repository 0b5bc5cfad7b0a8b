"""How a training step scales: what each device computes, keeps and moves, read from the compiled program, and the time.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python scripts/scaling.py           # on the devices at hand
python scripts/scaling.py --pod                                                         # on others, by calculation

The time of a step is predicted from three rates, the products' (or memory's, whichever takes longer) and the links':

    max(FLOPs / products per second, bytes / memory per second) + 2 (D - 1) / D * bytes reduced / link per second

The rates of the devices at hand are measured in the same run on a product, a copy and a sum over devices of their own;
those of a pod are its maker's.
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
    shared: int = 1  # devices that share these rates of one processor


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


def flops(sizes: Sequence[int], batch: int) -> float:
    """Of a step's products: for a weight and a sample two forwards and four backwards, less the first layer's delta."""
    weights = [n * m for n, m in pairwise(sizes)]
    return batch * (6 * sum(weights) - 2 * weights[0])


def predicted(products: float, memory: float, reduced: float, devices: int, rates: Rates) -> float:
    """Seconds of a step, from what one device does; see the top."""
    busy = max(products / rates.flops, memory / rates.memory) * rates.shared
    return busy + 2 * (devices - 1) / devices * reduced / rates.link


def seconds(call: Callable[[], Any], rounds: int = 15) -> float:
    """The median time of a call, after two untimed ones."""
    times = []
    for turn in range(rounds + 2):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times += [time.perf_counter() - began] if turn >= 2 else []
    return statistics.median(times)


def measured_rates(sizes: Sequence[int], batch: int, mesh: Mesh) -> Rates:
    """The rates of one of the devices at hand, from a product like the step's, a copy, and a sum over devices."""
    n = max(sizes)
    a, W = jnp.ones((batch, n)), jnp.ones((n, n))
    product = seconds(lambda: jnp.matmul(a, W))
    vector = jnp.ones(2**24)
    copied = seconds(lambda: vector + 1)
    D = mesh.size
    spread = sharding.put(np.ones((D, 2**20), np.float32), NamedSharding(mesh, PartitionSpec(("data", "model"))))
    total = jax.jit(partial(jnp.sum, axis=0), out_shardings=sharding.replicated(mesh))
    summed = seconds(lambda: total(spread)) if D > 1 else float("inf")
    return Rates(
        flops=2 * batch * n * n / product,
        memory=2 * vector.nbytes / copied,
        link=2 * (D - 1) / D * 2**22 / summed if D > 1 else float("inf"),
        shared=D if jax.devices()[0].platform == "cpu" else 1,
    )


def at_hand(sizes: tuple[int, ...], batch: int, compute_dtype: str | None) -> str:
    """A row for each way to lay the step out over the devices there are."""
    every = jax.device_count()
    texts = [f"data={d}" for d in (1, 2, 4, 8) if d <= every]
    texts += [f"data={every // 2},model=2", f"model={every}"] if every > 1 else []
    lines = [
        "| mesh | arguments | temporaries | moved per step and device | measured | predicted |",
        "|" + " --- |" * 6,
    ]
    for text in texts:
        mesh = sharding.make_mesh(text)
        step, arguments = compile_step(sizes, batch, mesh, compute_dtype)
        moved = collectives(step)
        memory, cost = step.memory_analysis(), step.cost_analysis()
        rates = measured_rates(sizes, batch, mesh)
        reduced = sum(c.bytes for c in moved)
        expected = predicted(flops(sizes, batch) / mesh.size, cost["bytes accessed"], reduced, mesh.size, rates)
        took = seconds(lambda step=step, arguments=arguments: step(*arguments))
        kinds = [f"{c.kind} of {human(c.bytes)}" for c in moved if c.bytes > 64]
        cells = [text, human(memory.argument_size_in_bytes), human(memory.temp_size_in_bytes),
                 ", ".join(kinds) or "nothing", f"{1e3 * took:.1f} ms", f"{1e3 * expected:.1f} ms"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def on_pod(sizes: tuple[int, ...], batch: int, rates: Rates) -> str:
    """What to expect of more devices than there are, data parallel, by calculation."""
    P = count_parameters(jax.eval_shape(lambda: funcnet.init(jax.random.key(0), sizes)))
    alone = math.nan
    lines = ["| devices | products | memory | all-reduce | step | samples/s | of ideal |", "|" + " --- |" * 7]
    for D in (1, 8, 64, 256):
        products = flops(sizes, batch) / D
        # W forwards and backwards, dW, and Adam's reads and writes of W, mean and square; z and a there and back.
        memory = 4 * (9 * P + 4 * (batch / D) * sum(sizes))
        took = predicted(products, memory, 4 * P, D, rates)
        alone = took if D == 1 else alone
        parts = products / rates.flops, memory / rates.memory, 2 * (D - 1) / D * 4 * P / rates.link, took
        cells = [f"{D}", *(f"{1e3 * part:.2f} ms" for part in parts), f"{batch / took / 1e6:.1f} M",
                 f"{alone / D / took:.0%}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def human(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} MB"


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
