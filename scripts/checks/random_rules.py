"""Count how many correct derivative rules `check_vjp` rejects.

    python scripts/checks/random_rules.py --cases 2000 --seed 0

A rule is a composition of one to four steps with a correct rule each, drawn by hypothesis, with random numbers, in
float32, float64 or bfloat16, and with or without a reference.
"""

import sys
import time
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from funcnet import testing


def elementwise(f, slope):
    """A step with the rule `v f'(x)`."""
    return lambda x, w: f(x), lambda kept, v: (v * slope(kept[0]), jnp.zeros_like(kept[1]))


def row_norm(x):
    """Each row divided by its norm, and one over the norm."""
    over = jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1)
    return x * over, over


def back_through_norm(kept, v):
    """The rule of `row_norm`."""
    y, over = row_norm(kept[0])
    return over * (v - y * (v * y).sum(-1, keepdims=True)), jnp.zeros_like(kept[1])


def back_through_softmax(kept, v):
    """The rule of a softmax."""
    p = jax.nn.softmax(kept[0])
    return p * (v - (v * p).sum(-1, keepdims=True)), jnp.zeros_like(kept[1])


ROWS = np.array([2, 0, 2, 1], np.int32)  # with one twice
STEPS = {  # f(x, w) of x (4, 5) and w (5, 5), and the rule
    "tanh": elementwise(jnp.tanh, lambda x: 1 - jnp.tanh(x) ** 2),
    "sine": elementwise(jnp.sin, jnp.cos),
    "square": elementwise(lambda x: x * x / 2, lambda x: x),
    "logistic": elementwise(jax.nn.sigmoid, lambda x: jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)),
    "softplus": elementwise(jax.nn.softplus, jax.nn.sigmoid),
    "bell": elementwise(lambda x: jnp.exp(-x * x), lambda x: -2 * x * jnp.exp(-x * x)),
    "relu": elementwise(jax.nn.relu, lambda x: (x > 0).astype(x.dtype)),
    "product": (lambda x, w: x @ w, lambda kept, v: (v @ kept[1].T, kept[0].T @ v)),
    "bias": (lambda x, w: x + w[:1], lambda kept, v: (v, jnp.zeros_like(kept[1]).at[0].set(v.sum(0)))),
    "scale": (
        lambda x, w: x * w[1][None],
        lambda kept, v: (v * kept[1][1][None], jnp.zeros_like(kept[1]).at[1].set((v * kept[0]).sum(0))),
    ),
    "row norm": (lambda x, w: row_norm(x)[0], back_through_norm),
    "softmax": (lambda x, w: jax.nn.softmax(x), back_through_softmax),
    "running sum": (
        lambda x, w: jnp.cumsum(x, 0),
        lambda kept, v: (jnp.cumsum(v[::-1], 0)[::-1], jnp.zeros_like(kept[1])),
    ),
    "rows": (
        lambda x, w: x[ROWS],
        lambda kept, v: (jnp.zeros_like(kept[0]).at[ROWS].add(v), jnp.zeros_like(kept[1])),
    ),
}


def with_rule(f, rule):
    """The step with its rule."""
    step = jax.custom_vjp(f)
    step.defvjp(lambda x, w: (f(x, w), (x, w)), rule)
    return step


def composed(steps, x, w):
    """One step after the other."""
    for step in steps:
        x = step(x, w)
    return x


def check(names, dtype, referred, numbers) -> testing.Report:
    """The report on a composition of `STEPS`, with or without a reference, at random numbers from that seed."""
    rng = np.random.default_rng(numbers)
    with testing.enable_x64(dtype == "float64"):
        x, w = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((4, 5), (5, 5)))
        fn = partial(composed, [with_rule(*STEPS[name]) for name in names])
        reference = partial(composed, [STEPS[name][0] for name in names]) if referred else None
        return testing.check_vjp(fn, x, w, reference=reference)


def main(*, cases: int = 2000, seed_of_all: int = 0) -> int:
    """Print the rejected rules; return 1 if there are any."""
    seen, rejected, start = Counter(), 0, time.perf_counter()

    @seed(seed_of_all)
    @settings(max_examples=cases, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
    @given(
        st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4),
        st.sampled_from(["float32", "float64", "bfloat16"]), st.booleans(), st.integers(0, 2**31),
    )  # fmt: skip
    def judged(names, dtype, referred, numbers):
        nonlocal rejected
        report = check(names, dtype, referred, numbers)
        seen[dtype] += 1
        if not report:
            rejected += 1
            print(f"{dtype}, {'with' if referred else 'without'} a reference, {names}, seed {numbers}\n{report}\n")
        if seen.total() % 50 == 0:
            jax.clear_caches()  # hundreds of programs
            print(f"{seen.total():6,} rules, {time.perf_counter() - start:6.0f} s", file=sys.stderr, flush=True)

    judged()
    counts = ", ".join(f"{count:,} {dtype}" for dtype, count in sorted(seen.items()))
    print(f"{rejected} of {seen.total():,} correct rules rejected (seed {seed_of_all}: {counts})")
    return int(rejected > 0)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
