"""Count how many correct gradients of random networks `funcnet.testing` rejects.

    python scripts/checks/false_alarms.py --cases 10000

The networks have 1 to 6 layers of 1 to 12 units, with random activations, loss, leading axes, labels, dropout masks,
weights and dtype. For each there are many draws of the numbers. A quarter of the draws has whole numbers as weights and
inputs, so that pre-activations are exactly at the kink, and an eighth has zero weights.
"""

import sys
import time
from collections import Counter
from contextlib import suppress
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from funcnet import Network, activations, losses, testing
from funcnet.arguments import check_meaning


def draw_network(rng):
    """A dtype, a network, and the shape of its data for `draw_arrays`."""
    fs, depth = activations.SHIPPED, int(rng.integers(1, 7))
    sizes = [int(n) for n in rng.integers(1, 13, depth + 1)]
    sizes[-1] = max(sizes[-1], 2)
    loss = losses.SHIPPED[rng.integers(len(losses.SHIPPED))]
    hidden = [fs[i] for i in rng.integers(len(fs), size=depth - 1)]
    output = fs[rng.integers(len(fs))] if rng.random() < 0.3 else activations.identity
    leading = [(), (1,), (7,), (2, 3)][rng.integers(4)]
    ids, masked, weighted = (rng.random(3) < 0.5).tolist()
    dtype = ["float32", "float64", "float16", "bfloat16"][rng.choice(4, p=[0.4, 0.4, 0.1, 0.1])]
    network = Network(hidden, output, loss)
    with suppress(ValueError):  # the output may not fit the loss
        check_meaning(network, sizes[-1])
        return dtype, network, (sizes, leading, ids, masked, weighted)
    return dtype, Network(hidden, loss=loss), (sizes, leading, ids, masked, weighted)


def draw_arrays(rng, dtype, sizes, leading, ids, masked, weighted):
    """Numbers for one case: `(params, x, y)`, and the masks and weights."""
    kind = rng.choice(["dense", "whole", "zero"], p=[0.625, 0.25, 0.125])

    def array(a):
        return jnp.asarray(np.asarray(a), dtype)

    def numbers(*shape, scale=1.0):
        return rng.integers(-2, 3, shape).astype(float) if kind == "whole" else rng.normal(size=shape) * scale

    some, K = kind != "zero", sizes[-1]
    params = [(array(some * numbers(i, o, scale=np.sqrt(2 / i))), array(some * numbers(o, scale=0.1)))
              for i, o in pairwise(sizes)]  # fmt: skip
    y = jnp.asarray(rng.integers(0, K, leading), "int32") if ids else array(rng.uniform(size=(*leading, K)))
    masks = tuple(array((rng.uniform(size=(*leading, n)) < 0.7) / 0.7) for n in sizes[:-1]) if masked else None
    weight = array(rng.uniform(0.1, 1, leading)) if weighted else None
    return (params, array(numbers(*leading, sizes[0])), y), {"masks": masks, "sample_weight": weight}


def main(*, cases: int = 10_000, seed: int = 0, draws: int = 100) -> int:
    """Print the rejected cases, with `draws` per network, since compiling takes the time; return 1 if there are any."""
    networks, numbers = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    rejected, seen, start = 0, Counter(), time.perf_counter()
    while seen.total() < cases:
        dtype, network, shape = draw_network(networks)
        with testing.enable_x64(dtype == "float64"):
            for _ in range(min(draws, cases - seen.total())):
                args, arrays = draw_arrays(numbers, dtype, *shape)
                report = testing.check_backward(*args, network, **arrays)
                seen[dtype] += 1
                if not report:
                    rejected += 1
                    script = testing.save_case(*args, network, **arrays)
                    print(f"{dtype} {shape}\n{report}\nto reproduce: python {script}\n")
        jax.clear_caches()  # thousands of programs
        print(f"{seen.total():6,} cases, {time.perf_counter() - start:6.0f} s", end="\r", file=sys.stderr, flush=True)
    counts = ", ".join(f"{count:,} {dtype}" for dtype, count in sorted(seen.items()))
    print(f"{rejected} of {cases:,} correct gradients rejected (seed {seed}: {counts})")
    return int(rejected > 0)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, description=__doc__))
