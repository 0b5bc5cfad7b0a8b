"""What holds for the derivative of any function: linear, the same bits again, the same under each transformation."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.testing.derivatives import AT_MOST, ROUNDINGS, in_words, roundings
from funcnet.testing.differences import ROUNDING_FLOOR, terms_of
from funcnet.testing.report import Row, relative, verdict
from funcnet.testing.trees import as_arrays, cast_like, cast_to, enable_x64, eps_of, quick_jit

EXACT = 1e-9  # relative to the largest leaf, in float64


def behaviour(kind, operator, f, point, pair, rows, wide, accuracy) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """A row for each property of `operator(floating, v)`, and notes on what could not be tried.

    `pair` is two cotangents or tangents, `rows` the verdicts on the arguments, `wide` whether float64 is exact.
    """
    floating, terms = point.floating, _terms(f, point.floating) if wide else 0.0
    again = (_again(kind, operator, f, floating, pair[0]), *_under_jit(operator, floating, pair[0], accuracy, terms))
    # In a narrower dtype 64 eps, at most 5%, or 8 times what the rule itself is off, at most half.
    eps = [(row.eps or 0.0, row.error) for row in rows if row.ok]
    eps += [(eps_of(jnp.result_type(leaf)), 0.0) for leaf in floating]
    largest = max(max(min(ROUNDINGS * e, 0.05), min(8 * error * e, AT_MOST)) for e, error in eps)
    within = max(EXACT if wide else largest, accuracy or 0.0)
    with enable_x64(wide or any(jnp.result_type(leaf) == np.float64 for leaf in floating)):
        if wide:
            floating, pair = cast_to((floating, pair), np.float64)
        properties = _properties(kind, operator, f)
        if kind == "vjp" and wide:
            with contextlib.suppress(Exception):  # beside a `custom_vjp` there is no forward mode
                jax.jit(lambda x: jax.jvp(f, (x,), (x,))).lower(floating)
                properties["<v, J u> = <J^T v, u>"] = _paired(operator, f)
        found, notes = _run(properties, (floating, *pair))
    rounding = ROUNDING_FLOOR * eps_of(np.float64) if wide else within
    judged = [_judged(name, got, want, within, rounding, terms) for name, (got, want) in found.items()]
    return (*again, *judged), notes


def _terms(f, floating) -> float:
    """The size of the value, or of the terms that it may be the sum of."""
    with enable_x64(True):
        there = cast_to(floating, np.float64)

    def values(t):
        with enable_x64(True):
            return np.concatenate([np.ravel(leaf) for leaf in as_arrays(f([leaf + t for leaf in there]))])

    return max(terms_of(values), float(np.abs(values(0.0)).max(initial=0.0)))


def _properties(kind, operator, f) -> dict[str, Callable[..., Any]]:
    """Name to a function of the point and two cotangents that gives two trees that should be equal."""

    def linear(x, v, w):
        large = 2 if any(a.dtype == np.float16 for a in v) else 1024  # a rule may clip; and it may divide by a norm

        def mixed(v, w):
            return [(large * a - b / 2).astype(a.dtype) for a, b in zip(v, w, strict=True)]

        none = operator(x, [0 * a for a in v])
        return [*operator(x, mixed(v, w)), *none], [*mixed(operator(x, v), operator(x, w)), *map(jnp.zeros_like, none)]

    def over_v(x, v, w):
        return jax.vmap(operator, (None, 0))(x, _stack(v, w)), _stack(operator(x, v), operator(x, w))

    def over_arguments(x, v, w):
        draws = np.random.default_rng(0)  # each entry by another factor: a tie that stays one is a kink
        moved = [leaf * jnp.asarray(1 + 0.01 * draws.normal(size=leaf.shape)).astype(leaf.dtype) for leaf in x]
        return jax.vmap(operator)(_stack(x, moved), _stack(v, w)), _stack(operator(x, v), operator(moved, w))

    def one_by_one(x, v, _):
        def alone(i):
            return jax.vjp(lambda leaf: f([*x[:i], leaf, *x[i + 1 :]]), x[i])[1]

        v = cast_like(v, f(x))
        return [alone(i)(v)[0] for i in range(len(x))], operator(x, v)

    def checkpointed(x, v, _):
        value, pullback = jax.vjp(jax.checkpoint(f), x)
        return pullback(cast_like(v, value))[0], operator(x, v)

    said = "cotangents" if kind == "vjp" else "tangents"
    properties = {f"linear in {said}": linear, f"vmap over {said}": over_v, "vmap over arguments": over_arguments}
    if kind == "vjp":
        properties |= {"one argument at a time": one_by_one, "checkpoint": checkpointed}
    return properties


def _paired(operator, f):
    def paired(x, v, _):
        u = [jnp.cos(leaf + 1) for leaf in x]
        tangents, gradients = jax.jvp(f, (x,), (u,))[1], operator(x, v)
        return [[sum(jnp.sum(a * b) for a, b in zip(*both, strict=True))] for both in ((v, tangents), (gradients, u))]

    return paired


def _stack(a, b):
    return [jnp.stack(pair) for pair in zip(a, b, strict=True)]


def _run(properties, args):
    """What the properties give, and notes on those that cannot be tried."""
    together = quick_jit(lambda *args: {name: both(*args) for name, both in properties.items()})
    try:
        return together(*args), ()
    except Exception:  # of which, a program for each will show
        found, notes = {}, []
        for name, both in properties.items():
            try:
                found[name] = quick_jit(both)(*args)
            except Exception as error:  # e.g. no rule for batches
                notes.append(f"{name}: not tried, {in_words(error)}"[:200])
        return found, tuple(notes)


def _judged(name, got, want, within, rounding, terms) -> Row:
    """A row for two trees: each leaf `within` its own size, or to `rounding` of the largest leaf, or of the value."""
    pairs, apart = [*zip(as_arrays(got), as_arrays(want), strict=True)], [0.0]
    largest = max(terms, *(np.abs(w).max(initial=0.0, where=np.isfinite(w)) for _, w in pairs))
    for g, w in pairs:
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        outside = np.isnan(w)  # a moved point may be outside the domain
        size, off = (np.abs(a).max(initial=0.0, where=~outside) for a in (w, g - w))
        same = np.array_equal(outside, np.isnan(g)) and off <= max(within * size, rounding * largest)
        apart += [] if same else [off / (size or 1.0)]
    return verdict(name, (), len(apart) == 1, f"to {relative(within)}", f"{relative(max(apart))} apart")


def _again(kind, operator, f, floating, v) -> Row:
    """The same bits in a second call, and if another call comes between the two passes."""
    first, again = as_arrays(operator(floating, v)), as_arrays(operator(floating, v))
    same = all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
    if kind == "vjp":
        value, pullback = jax.vjp(f, floating)
        jax.vjp(f, [(np.asarray(leaf) * 1.01).astype(jnp.result_type(leaf)) for leaf in floating])
        late = as_arrays(pullback(cast_like(v, value))[0])
        if same and not all(a.tobytes() == b.tobytes() for a, b in zip(first, late, strict=True)):
            fault = "another call between the two passes changes it: the rule keeps residuals outside itself"
            return verdict("run again", (), False, "bit for bit", fault)
    return verdict("run again", (), same, "bit for bit", "other bits: it is random, or depends on earlier calls")


def _under_jit(operator, floating, v, accuracy, terms) -> tuple[Row, ...]:
    """A row if it can be traced: the same to half the digits, since rounding may differ, and conditions be bad."""
    try:
        compiled = quick_jit(operator)(floating, v)
    except Exception:  # it branches on values, and the other properties say so
        return ()
    eps = max(eps_of(jnp.result_type(leaf)) for leaf in floating)
    within = max(eps**0.5, accuracy or 0.0)
    return (_judged("jit", compiled, operator(floating, v), within, roundings(eps) * eps, terms),)
