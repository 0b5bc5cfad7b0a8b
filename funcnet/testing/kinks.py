"""Kinks and saturated units, where several gradients are correct, or a gradient is less accurate.

At a kink either one-sided derivative is correct; in the far tail of a tanh or an elu the slopes of `jax.grad` are all
rounding. Both are measured here, from the functions alone, so that the ladder can allow for them.
"""

import contextlib
import functools
import itertools
import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.activations import Activation
from funcnet.arguments import computed_in
from funcnet.mlp import backward, forward_trace
from funcnet.network import Network
from funcnet.testing.derivatives import ROUNDINGS, roundings
from funcnet.testing.ladder import NOISE_ALLOWANCE
from funcnet.testing.report import Row, error_in_eps
from funcnet.testing.trees import as_arrays, cast_to, enable_x64, eps_of, quick_jit

SLOPE_ERROR = 1e-8  # small beside a slope, large beside eps
JUDGED_AT_KINKS = 32  # samples: each takes up to 64 gradients


@functools.cache
def find_kinks(activation: Activation, low: float = -32.0, high: float = 32.0) -> tuple[float, ...]:
    """The points where the slope of an activation jumps, to 1e-9: from a grid and bisection, from `fn` alone.

    A point within 1e-9 of a number of six decimals is set to that number: a rule may be wrong exactly there.

    >>> from funcnet import gelu, relu
    >>> [round(kink, 6) for kink in find_kinks(relu)], find_kinks(gelu)
    ([0.0], ())
    """
    with enable_x64(True):
        derivative = jax.jit(partial(slope_of, activation.fn))

        def slope(*z):
            return np.asarray(derivative(np.array(z)))

        grid = np.linspace(low, high, 1 + int(100 * (high - low))) + 1e-4  # avoids whole numbers
        jumps = np.abs(np.diff(slope(*grid)))
        bends = np.maximum(np.roll(jumps, 2), np.roll(jumps, -2))  # at a kink the slope jumps, beside it it does not
        kinks = []
        for i in np.flatnonzero(jumps > 4 * bends + 1e-6):
            left, right = grid[i], grid[i + 1]
            while right - left > 1e-10 * max(1, abs(left)):
                before, at, after = slope(left, middle := (left + right) / 2, right)
                left, right = (middle, right) if abs(after - at) > abs(at - before) else (left, middle)
            before, after = slope(left, right)
            if abs(after - before) > jumps[i] / 2:  # a bend shrinks with the interval, a kink does not
                kink = (left + right) / 2
                kinks.append(float(round(kink, 6) + 0.0 if abs(kink - round(kink, 6)) < 1e-9 else kink))  # 0, not 3e-11
    return tuple(kinks)


def slope_of(fn, z):
    """The derivative of an elementwise function, by JAX."""
    return jax.jvp(fn, (z,), (jnp.ones_like(z),))[1]


def near_kinks(args, network) -> list[np.ndarray]:
    """For each layer `(N, n_l)`: how far to move a `z` that is within its rounding of a kink; 0 for all others."""
    params, x, _, masks, _ = args
    trace = forward_trace(params, x, network, masks=masks)
    layers = zip(network.activations(len(params)), params, trace.pre_activations, strict=True)
    eps = eps_of(network.compute_dtype or computed_in(params))
    reaches = []
    for l, (f, (W, b), z) in enumerate(layers):
        z = np.asarray(z, np.float64)
        a = np.asarray(trace.activations[l], np.float64)
        if masks is not None and masks[l] is not None:
            a = a * np.asarray(masks[l], np.float64)
        rounding = _rounding(a, np.asarray(W, np.float64), np.asarray(b, np.float64), eps)
        clear = 2 * np.maximum(rounding, roundings(eps) * eps * (np.abs(z).max() or 1.0))
        reach = np.zeros(z.shape)
        for kink in find_kinks(f):
            distance = np.abs(z - kink)
            reach = np.where(distance <= rounding, distance + clear, reach)
        reaches.append(reach)
    return reaches


def _rounding(a, W, b, eps) -> np.ndarray:
    """How large the rounding error of `z` may be: `(N, n_l)`.

    Some eps of `|a| |W| + |b|`. In half precision that is more than most `z` are, so there the errors are added as
    random ones are, by their squares.
    """
    if eps < 1e-4:
        return roundings(eps) * eps * (np.abs(a) @ np.abs(W) + np.abs(b))
    return roundings(eps) * eps * np.sqrt(a**2 @ W**2 + b**2)


def judge_at_kinks(reference, by_hand, args, near, network) -> tuple[Row, ...]:
    """A row for each of the first samples at a kink: whether its gradient is between those on the two sides."""
    rows = []
    for i in np.flatnonzero(np.concatenate(near, 1).any(1))[:JUDGED_AT_KINKS]:
        sample = rows_of(args, np.array([i]))[:4]
        got = as_arrays(by_hand(*sample, None))
        reach = [layer[i] for layer in near]
        floors = slope_floors((*sample, None), network)
        if floors is None:
            sides, noise, floors = _sides(reference, sample, reach, None), 0.0, [0.0] * len(got)
        else:
            sides, coarse = (_sides(reference, sample, reach, dtype) for dtype in (np.float64, np.float32))
            pairs = zip(itertools.chain(*coarse), itertools.chain(*sides), strict=True)
            noise = max(error_in_eps(at_32, at_64, eps_of(np.float32)) for at_32, at_64 in pairs)
        error = 0.0
        for leaf, values, floor in zip(got, zip(*sides, strict=True), floors, strict=True):
            low, high = np.min(values, 0) - floor, np.max(values, 0) + floor
            outside = np.maximum(np.maximum(low - leaf, leaf - high), 0).max(initial=0)
            scale = eps_of(leaf.dtype) * max(np.abs(low).max(initial=0), np.abs(high).max(initial=0))
            error = max(error, float(outside) / scale if scale else float(outside > 0) * math.inf)
        # The sides are taken 128 roundings away, and jax.grad has its own rounding error there.
        allowed = max(128 * ROUNDINGS, NOISE_ALLOWANCE * noise)
        ok = error <= allowed
        rungs = f"{sum(int((layer > 0).sum()) for layer in reach)} units at a kink, {allowed:.3g} eps allowed"
        fault = "" if ok else "outside the gradients on the two sides of its kinks"
        rows.append(Row(f"sample {i}", sample[1].shape[1:], error, ok, rungs, fault, at_kink=ok))
    return tuple(rows)


def _sides(reference, sample, reach, dtype) -> list[list[np.ndarray]]:
    """The reference's gradients, in `dtype`, with each unit at a kink pushed to one side or the other."""
    farther = (
        1.0 if dtype is None else max(1.0, eps_of(dtype) / eps_of(computed_in(sample[0])))
    )  # the resolution of `dtype`
    units = sum(int((layer > 0).sum()) for layer in reach)
    signs = itertools.product((-1, 1), repeat=units) if units <= 5 else [(-1,) * units, (1,) * units]
    sides = []
    with contextlib.nullcontext() if dtype is None else enable_x64(dtype == np.float64):
        params, x, y, masks = sample if dtype is None else cast_to(sample, dtype)
        for sign in signs:
            sign = iter(sign)
            nudges = [np.array([next(sign) * r * farther if r > 0 else 0.0 for r in layer]) for layer in reach]
            moved = [(W, np.asarray(b) + nudge.astype(b.dtype)) for (W, b), nudge in zip(params, nudges, strict=True)]
            sides.append(as_arrays(reference(moved, x, y, masks, None)))
    return sides


def slope_floors(args, network) -> list[float] | None:
    """For each leaf, the effect of an error of eps in every slope on its float64 gradient; None with a compute dtype.

    `jax.grad` computes `1 - a^2` for tanh and `1 + a` for elu, accurate to an eps of 1; in the far tail the slope is no
    larger. To measure the effect, add random errors to the slopes, and scale the change to one eps.
    """
    if network.compute_dtype is not None:
        return None
    with enable_x64(True):
        exact, *drawn = map(as_arrays, _with_rough_slopes(*cast_to(args, np.float64), network))
    changes = [max(np.abs(a - g).max(initial=0.0) for a in draws) for g, *draws in zip(exact, *drawn, strict=True)]
    return [NOISE_ALLOWANCE * eps_of(np.float64) * change / SLOPE_ERROR for change in changes]


@quick_jit
def _with_rough_slopes(params, x, y, masks, w, network):
    """The gradient, and the gradients for two draws of random errors in all slopes."""

    def gradient(draw):
        def rough(f):
            return Activation(f.name, f.fn, lambda z, a: f.deriv(z, a) + _errors(draw, z))

        hidden, loss = network.hidden, network.loss
        rough_loss = replace(loss, delta=lambda out, y: loss.delta(out, y) + _errors(draw, out))
        rough_hidden = tuple(map(rough, hidden)) if isinstance(hidden, tuple) else rough(hidden)
        roughened = Network(rough_hidden, rough(network.output), rough_loss)
        return backward(params, x, y, roughened, masks=masks, sample_weight=w)

    return backward(params, x, y, network, masks=masks, sample_weight=w), gradient(0), gradient(1)


def _errors(draw, like):
    signs = np.random.default_rng(draw).choice((-1.0, 1.0), like.shape)
    return jnp.asarray(SLOPE_ERROR * signs, like.dtype)


def rows_of(args, keep):
    """The arguments for some of the samples."""
    return (args[0], *jax.tree.map(lambda a: jax.device_put(np.asarray(a)[keep]), args[1:]))
