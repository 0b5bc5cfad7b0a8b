"""How a training step scales: what moves between devices, from the compiled program; what each keeps; and the time.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python scripts/benchmarks/scaling.py    # on the devices at hand
python scripts/benchmarks/scaling.py --pod                                                 # on others, by calculation

The time of a step is predicted from what one device does, at three rates: its products (or the memory that they read
and write, whichever takes longer), then the update, which is all memory, then the sum over devices:

    max(FLOPs / f, product bytes / m) + update bytes / m + 2 (D - 1) / D * bytes reduced / l

The rates f, m and l of the devices at hand are measured in the same run, on a product, a copy and a sum of such sizes,
with all devices at work at once, since forced CPU devices share one processor; those of a pod are its maker's.
"""

import math
import re
from collections import namedtuple
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from timing import BYTES, call, compiled, readable, seconds_of, table

import funcnet
from funcnet import sharding, training

WIDTHS = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u8": 1, "s8": 1, "pred": 1}
KINDS = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
COLLECTIVE = re.compile(rf"= (\(.*?\)|\S+) ({KINDS})(?:-start)?\(")


Rates = namedtuple("Rates", "flops memory link")  # of a device, per second; in bytes but for FLOPs, a link in a ring
Work = namedtuple("Work", "kept flops product_bytes update_bytes reduced")  # of a device in a step, in bytes but FLOPs
V5E = Rates(flops=197e12, memory=819e9, link=200e9)  # "TPU v5e", Google Cloud documentation: bfloat16, HBM, 1600 Gbit/s


def collectives(compiled: Any) -> list[tuple[str, int]]:
    """What moves between devices, from the text of a compiled program: kinds, and the bytes that a device gets."""
    return [(kind, size(shape)) for shape, kind in COLLECTIVE.findall(compiled.as_text())]


def size(shape: str) -> int:
    """The bytes of a shape, or a tuple of them, as XLA writes it: `(f32[784,512]{1,0}, f32[])`."""
    arrays = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shape)
    return sum(WIDTHS[dtype] * math.prod(map(int, filter(None, dims.split(",")))) for dtype, dims in arrays)


def work(sizes: Sequence[int], batch: int, data: int, model: int, half: bool, reduced: float) -> Work:
    """A step with Adam over `data` x `model` devices; `half`: the inputs of its products take two bytes.

    A weight takes two forwards' FLOPs for a sample, and as many for its gradient and for the delta below, except the
    first layer's. It is read forward and backward, and its gradient is written; `z` and `a` go there and back. The
    update reads the weight, its gradient and two moments, and writes all but the gradient. All these are kept.
    """
    weights = [n * m for n, m in pairwise(sizes)]
    P, rows = sum(weights) / model, batch / data
    return Work(kept=4 * (4 * P + 2 * rows * sum(sizes)), flops=rows * (6 * sum(weights) - 2 * weights[0]) / model,
                product_bytes=(2 if half else 4) * (2 * P + 4 * rows * sum(sizes)) + 4 * P, update_bytes=4 * 7 * P,
                reduced=reduced)  # fmt: skip


def predicted(work: Work, devices: int, rates: Rates) -> tuple[float, float, float]:
    """Seconds of the products, the update and the sum over devices; see the top."""
    products = max(work.flops / rates.flops, work.product_bytes / rates.memory)
    return products, work.update_bytes / rates.memory, 2 * (devices - 1) / devices * work.reduced / rates.link


def seconds(fn: Any, *args: Any) -> float:
    """The median time of 31 calls, after two untimed ones."""
    return float(np.median([seconds_of(call(fn, *args)) for _ in range(33)][2:]))


def measured_rates(one: Work, sizes: Sequence[int], batch: int, mesh: Mesh, compute_dtype: str | None) -> Rates:
    """The rates of each of the devices at hand while all of them are at work, at sizes like the step's."""
    everywhere, rows = sharding.replicated(mesh), NamedSharding(mesh, PartitionSpec(("data", "model")))
    D, M, n = mesh.size, mesh.shape["model"], max(sizes[1:])

    a = sharding.put(np.ones((batch * M, n), np.float32), rows).astype(compute_dtype or np.float32)
    W = sharding.put(np.ones((n, n // M), np.float32), everywhere).astype(compute_dtype or np.float32)
    vectors = sharding.put(np.ones((D, int(one.update_bytes) // 8), np.float32), rows)
    addends = sharding.put(np.ones((D, int(one.reduced) // 4), np.float32), rows)
    multiply = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32), out_shardings=rows)
    copy = jax.jit(lambda v: v + 1, out_shardings=rows)
    add = jax.jit(partial(jnp.sum, axis=0), out_shardings=everywhere)
    link = 2 * (D - 1) / D * one.reduced / seconds(add, addends) if D > 1 else math.inf
    flops = 2 * a.size * W.shape[1] / D / seconds(multiply, a, W)
    return Rates(flops, memory=2 * vectors.nbytes / D / seconds(copy, vectors), link=link)


def at_hand(sizes: tuple[int, ...], batch: int, compute_dtype: str | None) -> Iterator[list[str]]:
    """A row for each way to lay the step with Adam out over the devices there are."""
    yield ["mesh", "kept per device", "moved per step and device", "measured", "predicted"]
    optimizer, every, half = funcnet.adam(1e-3), jax.device_count(), compute_dtype is not None
    step = training.make_step(optimizer, funcnet.Network(compute_dtype=compute_dtype))
    meshes = [f"data={d}" for d in (1, 2, 4, 8) if d <= every]
    meshes += [f"data={every // 2},model=2"] * (every > 2) + [f"model={every}"] * (every > 1)
    for text in meshes:
        mesh = sharding.make_mesh(text)
        state = training.init_state(funcnet.init(jax.random.key(0), sizes), optimizer)
        shardings = sharding.state_shardings(state, mesh)
        data = np.full((batch, sizes[0]), 100, np.uint8), np.zeros(batch, np.int32)
        data = sharding.put(data, NamedSharding(mesh, PartitionSpec("data")))
        arguments = sharding.put(state, shardings), jax.random.key(1), *data
        program = compiled(step, *arguments, out_shardings=(shardings, None))
        moved = collectives(program)
        one = work(sizes, batch, mesh.shape["data"], mesh.shape["model"], half, sum(count for _, count in moved))
        expected = sum(predicted(one, mesh.size, measured_rates(one, sizes, batch, mesh, compute_dtype)))
        kinds = [f"{kind} of {readable(count, BYTES)}" for kind, count in moved if count > 64]
        times = [f"{1e3 * t:.1f} ms" for t in (seconds(program, *arguments), expected)]
        yield [text, readable(one.kept, BYTES), ", ".join(kinds) or "nothing", *times]


def on_pod(sizes: tuple[int, ...], batch: int, rates: Rates) -> Iterator[list[str]]:
    """What to expect of more devices than there are, data parallel, by calculation."""
    yield ["devices", "kept", "products", "update", "all-reduce", "step", "samples/s", "of ideal"]
    P = funcnet.count_parameters(jax.eval_shape(lambda: funcnet.init(jax.random.key(0), sizes)))
    ways = [(D, work(sizes, batch, D, 1, half=True, reduced=4 * P)) for D in (1, 8, 64, 256)]
    alone = sum(predicted(ways[0][1], 1, rates))
    for D, one in ways:
        parts = predicted(one, D, rates)
        took = sum(parts)
        times = [f"{1e3 * part:.2f} ms" for part in (*parts, took)]
        yield [f"{D}", readable(one.kept, BYTES), *times, f"{batch / took / 1e6:.1f} M", f"{alone / D / took:.0%}"]


def main(hidden_sizes: tuple[int, ...] | None = None, batch_size: int | None = None, pod: bool = False,
         compute_dtype: str | None = None) -> None:  # fmt: skip
    """Print how a training step with Adam scales.

    Args:
      hidden_sizes: widths of the hidden layers; by default 1024 1024, or four times 8192 for a pod.
      batch_size: by default 1024, or 65536 for a pod.
      pod: calculate for TPU v5e chips, in place of measuring on the devices at hand.
      compute_dtype: of the inputs of matrix products, on the devices at hand.
    """
    sizes = 784, *(hidden_sizes or ((8192,) * 4 if pod else (1024, 1024))), 10
    batch = batch_size or (65536 if pod else 1024)
    at = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    how = "bfloat16 products, on TPU v5e, by calculation" if pod else f"{compute_dtype or 'float32'} products, on {at}"
    print(f"{'-'.join(map(str, sizes))}, batch {batch:,}, {how}\n")
    print(table(on_pod(sizes, batch, V5E) if pod else at_hand(sizes, batch, compute_dtype)), end="")


if __name__ == "__main__":
    tyro.cli(main)
