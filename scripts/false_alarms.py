"""Does `funcnet.testing` reject a right gradient? Random networks, until one is rejected or the count is reached.

    python scripts/false_alarms.py --cases 10000

Networks of 1 to 6 layers, 1 to 12 units wide, each with its activations, loss, leading axes, labels, dropout masks,
weights and dtype; then many draws of the numbers for each. A quarter of the draws has whole-numbered weights and
inputs, so that pre-activations are exactly at the kink, and an eighth has all-zero weights.
"""

import argparse
import collections
import itertools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import activations, losses, testing

DRAWS = 100  # of the numbers, for each architecture: compiling is what costs


def architectures(seed):
    """An endless stream of `(settings, draw)`; `draw(rng)` gives the arguments of `check_backward`."""
    rng = np.random.default_rng(seed)
    while True:
        depth = int(rng.integers(1, 7))
        sizes = [int(n) for n in rng.integers(1, 13, depth + 1)]
        loss = losses.SHIPPED[rng.integers(len(losses.SHIPPED))]
        sizes[-1] = max(sizes[-1], 2)
        settings = {
            "hidden": tuple(activations.SHIPPED[i] for i in rng.integers(len(activations.SHIPPED), size=depth - 1)),
            "output": activations.SHIPPED[rng.integers(len(activations.SHIPPED))]
            if rng.random() < 0.3
            else activations.identity,
            "loss": loss,
        }
        leading = [(), (1,), (7,), (2, 3)][rng.integers(4)]
        ids, masked, weighted = rng.random(3) < 0.5
        dtype = ["float32", "float64", "float16", "bfloat16"][rng.choice(4, p=[0.4, 0.4, 0.1, 0.1])]
        yield dtype, settings, (sizes, leading, bool(ids), bool(masked), bool(weighted))


def draw(rng, dtype, sizes, leading, ids, masked, weighted):
    """Numbers for one case: `(params, x, y)` and the masks and weights."""
    kind = rng.choice(["dense", "whole", "zero"], p=[0.625, 0.25, 0.125])

    def numbers(*shape, scale=1.0):
        if kind == "whole":
            return rng.integers(-2, 3, shape).astype(float)
        return rng.normal(size=shape) * scale

    def array(a):
        return jnp.asarray(np.asarray(a), dtype)

    params = [
        (array(numbers(i, o, scale=np.sqrt(2 / i)) * (kind != "zero")), array(numbers(o, scale=0.1) * (kind != "zero")))
        for i, o in itertools.pairwise(sizes)
    ]
    K = sizes[-1]
    y = jnp.asarray(rng.integers(0, K, leading), "int32") if ids else array(rng.uniform(size=(*leading, K)))
    arrays = {}
    if masked:
        arrays["masks"] = tuple(array((rng.uniform(size=(*leading, n)) < 0.7) / 0.7) for n in sizes[:-1])
    if weighted:
        arrays["sample_weight"] = array(rng.uniform(0.1, 1, leading))
    return (params, array(numbers(*leading, sizes[0])), y), arrays


def run(cases: int, seed: int = 0, draws: int = DRAWS, progress=lambda done, rejected: None):
    """Check `cases` cases; what was rejected, as texts, and how often each dtype came up.

    `progress(done, rejected)` is called after each architecture with the count so far and the new texts.
    """
    rejected, seen = [], collections.Counter()
    rng = np.random.default_rng(seed + 1)
    for dtype, settings, shape in architectures(seed):
        new = []
        with testing.enable_x64(dtype == "float64"):
            for _ in range(min(draws, cases - seen.total())):
                args, arrays = draw(rng, dtype, *shape)
                report = testing.check_backward(*args, **arrays, **settings)
                seen[dtype] += 1
                if not report.ok:
                    script = testing.save_case(*args, **arrays, **settings)
                    new.append(f"{dtype} {shape}\n{report}\nto reproduce: python {script}\n")
        jax.clear_caches()  # thousands of programs
        rejected += new
        progress(seen.total(), new)
        if seen.total() == cases:
            break
    return rejected, seen


def main() -> int:
    """Print what was rejected; 1 if anything was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()

    def progress(done, rejected):
        print(*rejected, sep="\n", end="")
        print(f"{done:6,} cases, {time.perf_counter() - start:6.0f} s", end="\r", file=sys.stderr, flush=True)

    rejected, seen = run(options.cases, options.seed, progress=progress)
    counts = ", ".join(f"{count:,} {dtype}" for dtype, count in sorted(seen.items()))
    print(f"{len(rejected)} of {seen.total():,} right gradients rejected (seed {options.seed}: {counts})")
    return int(bool(rejected))


if __name__ == "__main__":
    sys.exit(main())
