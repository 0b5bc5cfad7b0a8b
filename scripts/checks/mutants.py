"""Test which checkers notice gradients that are wrong on purpose.

    python scripts/checks/mutants.py         # every mutant, two sizes, float32 and float64, three checkers

Each mutant is a correct backward pass with one mistake in it; funcnet, JAX and chex each have a checker.
"""

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

import funcnet
from funcnet import testing


def backward(
    params, x, y, masks, w, *,
    inputs=lambda x: x, labels=lambda y: y, share=lambda w: w / w.sum(),
    delta_L=lambda p, y: y.sum(1, keepdims=True) * p - y,
    transpose=lambda delta, W: delta @ W.T, mask_delta=lambda delta, mask: delta * mask,
    slope=lambda a, l: 1 - a[l] ** 2, stored=lambda delta: delta,
    mask_dW=lambda a, mask: a * mask, dW=lambda a, delta: a.T @ delta, db=lambda delta: delta.sum(0),
    finish=lambda grads: grads,
):  # fmt: skip
    """The four equations for tanh and softmax cross-entropy on soft labels; each step can be replaced by a mistake."""
    a = [inputs(x)]
    for l, ((W, b), mask) in enumerate(zip(params, masks, strict=True), 1):
        z = (a[-1] * mask) @ W + b[None]
        a.append(jnp.tanh(z) if l < len(params) else z)
    delta = delta_L(jax.nn.softmax(a[-1]), labels(y)) * share(w)[:, None]
    grads = []
    for l in reversed(range(len(params))):
        grads.insert(0, (dW(mask_dW(a[l], masks[l]), delta), db(delta)))
        if l > 0:
            delta = stored(mask_delta(transpose(delta, params[l][0]), masks[l]) * slope(a, l))
    return finish(grads)


def edit(i, change):
    """A mistake in one leaf of the finished gradient `dW_1, db_1, dW_2, db_2`, counted from 0."""

    def finish(grads):
        leaves, tree = jax.tree.flatten(grads)
        return jax.tree.unflatten(tree, [*leaves[:i], change(leaves[i]), *leaves[i + 1 :]])

    return {"finish": finish}


MUTANTS: dict[str, dict[str, Callable]] = {
    "dW of layer 1 times 1.0001": edit(0, lambda g: g * 1.0001),
    "db of layer 2 times 0.9999": edit(3, lambda g: g * 0.9999),
    "1/N missing": {"share": lambda w: w},
    "1/N twice": {"share": lambda w: w / w.sum() / len(w)},
    "all signs wrong": {"finish": lambda grads: jax.tree.map(jnp.negative, grads)},
    "sign of db of layer 1 wrong": edit(1, jnp.negative),
    "W not transposed": {"transpose": lambda delta, W: delta @ (W if W.shape[0] == W.shape[1] else W.T)},
    "activation's derivative missing": {"slope": lambda a, l: jnp.ones_like(a[l])},
    "sigmoid's derivative for tanh's": {"slope": lambda a, l: a[l] * (1 - a[l])},
    "derivative taken at z as if at a": {"slope": lambda a, l: 1 - jnp.arctanh(a[l]) ** 2},
    "derivative not squared": {"slope": lambda a, l: 1 - a[l]},
    "derivative of another layer": {"slope": lambda a, l: 1 - a[3 - l] ** 2},
    "dW from z in place of a": {"dW": lambda a, delta: jnp.arctanh(jnp.clip(a, -0.999, 0.999)).T @ delta},
    "dW transposed": edit(2, jnp.transpose),
    "db summed over the units": {"db": lambda delta: jnp.full(delta.shape[1], delta.sum())},
    "db of the first sample": {"db": lambda delta: delta[0]},
    "db a mean, not a sum": {"db": lambda delta: delta.mean(0)},
    "one entry of dW zero": edit(0, lambda g: g.at[1, 2].set(0)),
    "one entry of db zero": edit(3, lambda g: g.at[1].set(0)),
    "two rows of dW swapped": edit(0, lambda g: g.at[jnp.array([0, 1])].set(g[jnp.array([1, 0])])),
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
    "stale activations": {"inputs": lambda x: jnp.roll(x, 1, 0)},
    "last sample left out": {"dW": lambda a, delta: a[:-1].T @ delta[:-1]},
    "first layer left at zero": edit(0, jnp.zeros_like),
    "first layer without the mean": edit(0, lambda g: g * 16),  # the number of samples in `case`
    "deltas rounded to bfloat16": {"stored": lambda delta: delta.astype(jnp.bfloat16).astype(delta.dtype)},
    "deltas clipped at 0.01": {"stored": lambda delta: jnp.clip(delta, -0.01, 0.01)},
}  # fmt: skip
SQUARE = {"W not transposed", "derivative of another layer", "dW transposed"}  # need two hidden layers of one width


def case(sizes, dtype, mutant="", seed=0, samples=16):
    """A network and dense data, with masks, weights and soft labels: `(params, x, y, masks, w)`."""
    sizes = (*sizes[:-1], *sizes[-2:]) if mutant in SQUARE else sizes
    rng = np.random.default_rng(seed)
    params = [(rng.normal(size=(i, o)) / np.sqrt(i), rng.normal(size=o)) for i, o in pairwise(sizes)]
    masks = [(rng.uniform(size=(samples, n)) < 0.8) / 0.8 for n in sizes[:-1]]
    x, y = rng.normal(size=(samples, sizes[0])), rng.uniform(size=(samples, sizes[-1]))
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, x, y, masks, rng.uniform(0.5, 1, size=samples)))


def objective(params, x, y, masks, w):
    """The function of which the mutants claim to be the gradient."""
    return funcnet.objective(params, x, y, funcnet.Network(funcnet.tanh), masks=masks, sample_weight=w)


def funcnet_notices(gradient, args) -> bool:
    """Whether `funcnet.testing.check_gradients` notices."""
    return not testing.check_gradients(objective, gradient, args).ok


def check_grads_notices(gradient, args) -> bool:
    """Whether `jax.test_util.check_grads` notices, with its defaults; it needs the mutant in a `custom_vjp`."""
    f = jax.custom_vjp(lambda params: objective(params, *args[1:]))
    f.defvjp(lambda params: (f(params), params),
             lambda params, ct: (jax.tree.map(lambda g: g * ct, gradient(params, *args[1:])),))  # fmt: skip
    with suppress(AssertionError):
        check_grads(f, args[:1], order=1, modes=["rev"])
        return False
    return True


def chex_notices(gradient, args) -> bool:
    """Whether `chex.assert_trees_all_close` against `jax.grad` notices, with its defaults."""
    import chex  # pyright: ignore[reportMissingImports]  (in the extra `bench`)

    with suppress(AssertionError):
        chex.assert_trees_all_close(gradient(*args), jax.grad(objective)(*args))
        return False
    return True


CHECKERS = {"funcnet": funcnet_notices, "check_grads": check_grads_notices, "chex": chex_notices}


def main() -> int:
    """Print the table in Markdown; return 1 if funcnet missed a mistake or rejected the correct gradient."""
    columns = list(product(((4, 5, 3), (784, 256, 10)), ("float32", "float64")))
    heads = ["-".join(map(str, sizes)) + f" {dtype}" for sizes, dtype in columns]
    print(f"noticed by: {', '.join(CHECKERS)}; jax {jax.__version__} on {jax.devices()[0].device_kind}\n")
    print(f"| mistake | {' | '.join(heads)} |\n| --- |{' --- |' * len(heads)}")
    caught, wrong = Counter(), False
    for name, hooks in {"none: the correct gradient": {}, **MUTANTS}.items():
        cells = []
        for sizes, dtype in columns:
            with testing.enable_x64(dtype == "float64"):
                args, gradient = case(sizes, dtype, name), partial(backward, **hooks)
                noticed = [checker for checker, notices in CHECKERS.items() if notices(gradient, args)]
            wrong |= ("funcnet" in noticed) != bool(hooks)
            cells.append(", ".join(noticed) or "nobody")
            caught.update(noticed if hooks else ())
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print("\n" + "; ".join(f"{checker}: {caught[checker]} of {len(MUTANTS) * len(columns)}" for checker in CHECKERS))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
