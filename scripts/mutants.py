"""Wrong gradients on purpose: which checker notices?

    python scripts/mutants.py                # every mutant, two sizes, float32 and float64, three checkers

Each mutant is a right backward pass with one mistake in it. The checkers: `funcnet.testing.check_gradients`,
`jax.test_util.check_grads` with its defaults (the mutant behind a `custom_vjp`, as that function needs it), and
`chex.assert_trees_all_close` against `jax.grad`, with its defaults.
"""

import itertools
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnet
from funcnet import tanh, testing

Hooks = dict[str, Callable[..., Any]]


def backward(params, x, y, masks, w, hooks: Hooks):
    """The four equations for tanh and softmax cross-entropy on soft labels, each step open to a mistake."""
    step = RIGHT | hooks
    a, activations = step["input"](x), []
    for l, ((W, b), mask) in enumerate(zip(params, masks, strict=True)):
        activations.append(a)
        z = (a * mask) @ W + b[None]
        a = jnp.tanh(z) if l < len(params) - 1 else z
    share = step["share"](w)[:, None]
    y = step["labels"](y)
    delta = step["delta_L"](jax.nn.softmax(a), y) * share
    grads = []
    for l in reversed(range(len(params))):
        (W, _), mask = params[l], masks[l]
        dW = step["dW"](step["mask_dW"](activations[l], mask), delta)
        grads.insert(0, (step["scale_dW"](dW, l), step["db"](delta)))
        if l > 0:
            slope = step["slope"](activations, l)
            delta = step["delta"](step["mask_delta"](step["transpose"](delta, W), mask) * slope)
    return step["finish"](grads)


RIGHT: Hooks = {
    "input": lambda x: x,
    "share": lambda w: w / w.sum(),
    "labels": lambda y: y,
    "delta_L": lambda p, y: y.sum(1, keepdims=True) * p - y,
    "dW": lambda a, delta: a.T @ delta,
    "scale_dW": lambda dW, l: dW,
    "db": lambda delta: delta.sum(0),
    "mask_dW": lambda a, mask: a * mask,
    "mask_delta": lambda delta, mask: delta * mask,
    "transpose": lambda delta, W: delta @ W.T,
    "slope": lambda a, l: 1 - a[l] ** 2,
    "delta": lambda delta: delta,
    "finish": lambda grads: grads,
}


def edit(l, leaf, change):
    """A mistake in one leaf of the finished gradient."""

    def finish(grads):
        grads = [list(layer) for layer in grads]
        grads[l][leaf] = change(grads[l][leaf])
        return [tuple(layer) for layer in grads]

    return {"finish": finish}


MUTANTS: dict[str, Hooks] = {
    "dW of layer 1 times 1.0001": edit(0, 0, lambda g: g * 1.0001),
    "db of layer 2 times 0.9999": edit(1, 1, lambda g: g * 0.9999),
    "1/N missing": {"share": lambda w: w},
    "1/N twice": {"share": lambda w: w / w.sum() / len(w)},
    "all signs wrong": {"finish": lambda grads: jax.tree.map(jnp.negative, grads)},
    "sign of db of layer 1 wrong": edit(0, 1, jnp.negative),
    "W not transposed": {"transpose": lambda delta, W: delta @ (W if W.shape[0] == W.shape[1] else W.T)},
    "activation's derivative missing": {"slope": lambda a, l: jnp.ones_like(a[l])},
    "sigmoid's derivative for tanh's": {"slope": lambda a, l: a[l] * (1 - a[l])},
    "derivative taken at z as if at a": {"slope": lambda a, l: 1 - jnp.arctanh(a[l]) ** 2},
    "derivative not squared": {"slope": lambda a, l: 1 - a[l]},
    "derivative of another layer": {"slope": lambda a, l: 1 - a[3 - l] ** 2},
    "dW from z in place of a": {"dW": lambda a, delta: jnp.arctanh(jnp.clip(a, -0.999, 0.999)).T @ delta},
    "dW transposed": edit(1, 0, jnp.transpose),
    "db summed over the units": {"db": lambda delta: jnp.full(delta.shape[1], delta.sum())},
    "db of the first sample": {"db": lambda delta: delta[0]},
    "db a mean, not a sum": {"db": lambda delta: delta.mean(0)},
    "one entry of dW zero": edit(0, 0, lambda g: g.at[1, 2].set(0)),
    "one entry of db zero": edit(1, 1, lambda g: g.at[1].set(0)),
    "two rows of dW swapped": edit(0, 0, lambda g: g.at[jnp.array([0, 1])].set(g[jnp.array([1, 0])])),
    "mask forgotten in dW": {"mask_dW": lambda a, mask: a},
    "mask forgotten in delta": {"mask_delta": lambda delta, mask: delta},
    "mask not scaled": {"mask_delta": lambda delta, mask: delta * (mask > 0).astype(delta.dtype)},
    "weights forgotten": {"share": lambda w: jnp.full_like(w, 1 / len(w))},
    "weights twice": {"share": lambda w: w**2 / w.sum()},
    "weights not normalised": {"share": lambda w: w / len(w)},
    "label one off": {"labels": lambda y: jnp.roll(y, 1, 1)},
    "labels of the next sample": {"labels": lambda y: jnp.roll(y, 1, 0)},
    "soft labels taken to sum to one": {"delta_L": lambda p, y: p - y},
    "delta without the label": {"delta_L": lambda p, y: y.sum(1, keepdims=True) * p},
    "softmax's derivative twice": {"delta_L": lambda p, y: (y.sum(1, keepdims=True) * p - y) * p * (1 - p)},
    "stale activations": {"input": lambda x: jnp.roll(x, 1, 0)},
    "last sample left out": {"dW": lambda a, delta: a[:-1].T @ delta[:-1]},
    "first layer left at zero": edit(0, 0, jnp.zeros_like),
    "first layer without the mean": {"scale_dW": lambda dW, l: dW * 16 if l == 0 else dW},
    "deltas rounded to bfloat16": {"delta": lambda delta: delta.astype(jnp.bfloat16).astype(delta.dtype)},
    "deltas clipped at 0.01": {"delta": lambda delta: jnp.clip(delta, -0.01, 0.01)},
}  # fmt: skip
SQUARE = {"W not transposed", "derivative of another layer", "dW transposed"}
SIZES = ((4, 5, 3), (784, 256, 10))


def case(sizes, dtype, seed=0, samples=16):
    """A network and dense data, with masks, weights and soft labels: `(params, x, y, masks, w)`."""
    rng = np.random.default_rng(seed)

    def array(a):
        return jnp.asarray(np.asarray(a, dtype))

    params = [
        (array(rng.normal(size=(i, o)) / np.sqrt(i)), array(rng.normal(size=o))) for i, o in itertools.pairwise(sizes)
    ]
    masks = [array((rng.uniform(size=(samples, n)) < 0.8) / 0.8) for n in sizes[:-1]]
    x, y = rng.normal(size=(samples, sizes[0])), rng.uniform(size=(samples, sizes[-1]))
    return params, array(x), array(y), masks, array(rng.uniform(0.5, 1, size=samples))


def sizes_for(mutant, sizes):
    """With a second hidden layer as wide, where the mistake fits no other network."""
    return (*sizes[:-1], sizes[-2], sizes[-1]) if mutant in SQUARE else sizes


def objective(params, x, y, masks, w):
    """What the mutants claim to be the gradient of."""
    return funcnet.objective(params, x, y, hidden=tanh, masks=masks, sample_weight=w)


def funcnet_notices(gradient, args) -> bool:
    """Whether `check_gradients` does."""
    return not testing.check_gradients(objective, gradient, args).ok


def check_grads_notices(gradient, args) -> bool:
    """Whether `jax.test_util.check_grads` does, with its defaults."""
    from jax.test_util import check_grads

    f = jax.custom_vjp(lambda params: objective(params, *args[1:]))
    f.defvjp(
        lambda params: (f(params), params),
        lambda params, ct: (jax.tree.map(lambda g: g * ct, gradient(params, *args[1:])),),
    )
    try:
        check_grads(f, args[:1], order=1, modes=["rev"])
    except AssertionError:
        return True
    return False


def chex_notices(gradient, args) -> bool:
    """Whether `chex.assert_trees_all_close` against `jax.grad` does, with its defaults."""
    import chex  # pyright: ignore[reportMissingImports]  (in the extra `bench`)

    try:
        chex.assert_trees_all_close(gradient(*args), jax.grad(objective)(*args))
    except AssertionError:
        return True
    return False


CHECKERS = {"funcnet": funcnet_notices, "check_grads": check_grads_notices, "chex": chex_notices}


def main() -> int:
    """Print the table, in Markdown; 1 if funcnet missed one or rejected the right gradient."""
    columns = [(sizes, dtype) for sizes in SIZES for dtype in ("float32", "float64")]
    print(f"noticed by: {', '.join(CHECKERS)}; jax {jax.__version__} on {jax.devices()[0].device_kind}\n")
    heads = ["-".join(map(str, sizes)) + f" {dtype}" for sizes, dtype in columns]
    print(f"| mistake | {' | '.join(heads)} |\n| --- |{' --- |' * len(heads)}")
    caught = dict.fromkeys(CHECKERS, 0)
    wrong = False
    for name, hooks in [("none: the right gradient", {}), *MUTANTS.items()]:
        cells = []
        for sizes, dtype in columns:
            with testing.enable_x64(dtype == "float64"):
                args = case(sizes_for(name, sizes), dtype)
                gradient = partial(backward, hooks=hooks)
                seen = {checker: notices(gradient, args) for checker, notices in CHECKERS.items()}
            wrong |= seen["funcnet"] != bool(hooks)
            cells.append(", ".join(checker for checker, noticed in seen.items() if noticed) or "nobody")
            for checker, noticed in seen.items():
                caught[checker] += noticed and bool(hooks)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    total = len(MUTANTS) * len(columns)
    print("\n" + "; ".join(f"{checker}: {count} of {total}" for checker, count in caught.items()))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
