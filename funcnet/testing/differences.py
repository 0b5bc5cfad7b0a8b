"""Differences of a function: independent of autodiff, and the only reference if JAX cannot differentiate it."""

import functools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.testing.report import Row, error_in_eps, structure_rows
from funcnet.testing.subgradients import is_subgradient
from funcnet.testing.trees import as_arrays, cast_to, enable_x64, eps_of, leaf_names

DIFFERENCE_TOLERANCE = 1e-6  # relative; a sixth-order difference in float64 is accurate to 1e-9
CLEARLY = 1e4  # times the noise of a difference: a slope that is not 0
ENTRY_BY_ENTRY = 256  # if differences alone judge: the largest leaf of which each entry is differentiated
AT_KINKS = "at a kink: between the gradients of points around it"


def differences(move, gradient, norm, seed) -> tuple[bool | None, str]:
    """Whether differences along a leaf agree with its gradient (None: cannot tell), and the text for the report."""
    worst, judged = 0.0, 0
    if gradient.size <= 16:
        directions = np.eye(gradient.size).reshape(-1, *gradient.shape)
    else:
        directions = [random_direction(seed + k, gradient.shape) for k in range(3)]
    for v in directions:
        slope, noise = central_difference(move(v))
        expected = float(np.sum(gradient * v))
        scale = max(abs(expected), norm / math.sqrt(gradient.size), 1e-300)
        if not norm and abs(slope) > CLEARLY * noise:  # a gradient of zero, but the function changes
            scale, noise = abs(slope), 0.0
        if noise <= DIFFERENCE_TOLERANCE * scale / 10:  # otherwise the difference itself is in doubt
            judged += 1
            worst = max(worst, abs(slope - expected) / scale)
    doubt = (
        "" if judged == len(directions) else f" ({len(directions) - judged} of {len(directions)} noisy or at a kink)"
    )
    if not judged:
        return None, f"no differences{doubt}"
    return worst <= DIFFERENCE_TOLERANCE, f"differences {worst:.0e}{doubt}"


def central_difference(f) -> tuple[Any, float]:
    """The slope of `f` at 0 to sixth order, and its noise: how far two step sizes, or the two sides, are apart."""

    def slope(h):
        return (45 * (f(h) - f(-h)) - 9 * (f(2 * h) - f(-2 * h)) + (f(3 * h) - f(-3 * h))) / (60 * h)

    f = functools.cache(f)
    here = f(0.0)
    rounding = 8 * np.finfo(np.float64).eps * max(1.0, float(np.max(np.abs(here))))  # terms may have cancelled
    tried = []
    for h in (1e-3, 1e-2, 1e-4, 1e-5, 1e-6):
        coarse, fine = slope(h), slope(h / 2)
        tried.append((max(float(np.max(np.abs(coarse - fine))), rounding / h), h, fine))
        if tried[-1][0] <= 1e-9 * float(np.max(np.abs(fine))):
            break
    noise, best_h, best = min(tried, key=lambda estimate: estimate[0])
    for its_noise, h, fine in tried:  # if only the larger step reaches a kink, trust the smaller
        apart = float(np.max(np.abs(fine - best)))
        if h < best_h and apart > 2 * its_noise:
            noise = max(noise, apart)
    for h in (1e-3, 1e-5):
        # g(h) = (f(h) - 2 f(0) + f(-h)) / h is the jump of the slope at 0, and odd powers of h: two are eliminated.
        g = [(f(t) - 2 * here + f(-t)) / t for t in (h, h / 2, h / 4)]
        jump = float(np.max(np.abs(g[0] - 10 * g[1] + 16 * g[2]))) / 7
        if h == 1e-3 or jump > 12 * rounding / h:
            noise = max(noise, jump)
    return best, noise


def taylor_order(f, gradient, seed) -> str:
    """The order of `|f(h) - f(0) - h g.v|` in h, the median over five halvings."""
    v = random_direction(seed, gradient.shape)
    here, slope = f(0.0), float(np.sum(gradient * v))
    for h in (1e-3, 1e-2, 1e-1, 1.0):
        steps = h * 0.5 ** np.arange(6)
        remainders = np.array([abs(f(t) - here - t * slope) for t in steps])
        if remainders[-1] > 1e3 * np.finfo(np.float64).eps * max(abs(here), 1.0):
            return f"Taylor order {np.median(np.log2(remainders[:-1] / remainders[1:])):.2f}"
    return "no visible Taylor remainder"


def random_direction(seed, shape) -> np.ndarray:
    """A direction of length 1."""
    v = np.random.default_rng(seed).normal(size=shape)
    return v / max(np.linalg.norm(v), 1e-300)


def judge_by_differences(fn, by_hand, args, *, seed, stopped=()) -> tuple[Row, ...]:
    """Rows, one per leaf of `args[0]`, without `jax.grad` to compare with."""
    with enable_x64(True):
        args64 = cast_to(args, np.float64)
        value, got64 = np.asarray(fn(*args64)), by_hand(*args64)
        if rows := structure_rows(got64, args64[0]):
            return rows
        got64 = [np.asarray(g, np.float64) for g in as_arrays(got64)]
    got = by_hand(*args)
    if rows := structure_rows(got, args[0]):
        return rows
    leaves, tree = jax.tree.flatten(args64[0])

    def at(i, moved):
        with enable_x64(True):
            moved = jax.device_put(moved) if isinstance(leaves[i], jax.Array) else moved
            return float(fn(jax.tree.unflatten(tree, [*leaves[:i], moved, *leaves[i + 1 :]]), *args64[1:]))

    rows = []
    for i, (name, own) in enumerate(zip(leaf_names(args[0]), as_arrays(got), strict=True)):
        leaf = np.asarray(leaves[i])
        if name in stopped or not leaf.size:
            rows.append(Row(name, leaf.shape, 0.0, True, "stopped on purpose: not judged" if leaf.size else "empty"))
            continue
        if value.dtype != np.float64:
            fault = f"cannot be judged: the value is {value.dtype} where the arguments are float64: too inaccurate"
            row = Row(name, leaf.shape, math.inf, False, "", fault)
        else:
            row = along_entries(name, partial(at, i), leaf, got64[i], seed)
        eps = eps_of(jnp.result_type(own))
        error = error_in_eps(own, got64[i], eps)
        if row.ok and AT_KINKS not in row.rungs and error > eps**-0.5:  # the cost of rounding is unknown here
            fault = f"in {jnp.result_type(own)} it is {error:.3g} eps from itself in float64"
            row = row._replace(ok=False, error=error, fault=fault)
        rows.append(row)
    return tuple(rows)


def along_entries(name, at, leaf, gradient, seed) -> Row:
    """A row for a leaf: its gradient against differences along each entry, or for a large leaf random directions."""
    each = leaf.size <= ENTRY_BY_ENTRY
    directions = [random_direction(seed + k, leaf.shape) for k in range(8)]
    if each:
        directions = np.eye(leaf.size).reshape(-1, *leaf.shape)
    expected = np.array([np.sum(gradient * v) for v in directions])
    found = [central_difference(lambda t, v=v: at(leaf + t * v)) for v in directions]
    slopes, noise = np.array(found).T
    size = max(np.abs(slopes).max(), np.abs(expected).max())
    unsure = noise > max(DIFFERENCE_TOLERANCE * size, 1e-11 * max(1.0, abs(at(leaf))))
    off = ~(np.abs(slopes - expected) <= np.maximum(DIFFERENCE_TOLERANCE * size, 10 * noise))
    error = error_in_eps(expected, slopes, eps_of(np.float64))
    rungs = f"differences alone, {np.abs(slopes - expected).max() / (size or 1.0):.0e}"
    if not (off | unsure if each else off & ~unsure).any() and unsure.mean() <= 0.5:  # some random directions can tell
        return Row(name, leaf.shape, error, True, rungs)
    gradient_at = partial(_gradient_at, at)
    if each and is_subgradient(gradient_at, leaf, gradient, off | unsure, reach=1e-3, accuracy=1e-5, seed=seed):
        return Row(name, leaf.shape, 0.0, True, f"{rungs}, {AT_KINKS}")
    worst = int(np.argmax(np.where(off, np.abs(slopes - expected), -1.0) if off.any() else noise))
    where = f"at {tuple(map(int, np.unravel_index(worst, leaf.shape)))}" if each else f"along direction {worst}"
    if off[worst]:
        fault = f"worst {where}: {expected[worst]:.8g}, the difference is {slopes[worst]:.8g}"
    else:
        fault = f"cannot be judged: the difference {where} is good to {noise[worst]:.0e} only, or there is a kink"
    return Row(name, leaf.shape, error if off.any() else math.inf, False, rungs, fault)


def _gradient_at(at, moved, entries) -> np.ndarray:
    """Some entries of the gradient, by short differences; NaN where a kink is too near."""
    h = 1e-5 * max(1.0, float(np.abs(moved).max()))

    def slope(entry):
        by = np.zeros(moved.size)
        by[entry] = h
        here, left, right = at(moved), at(moved - by.reshape(moved.shape)), at(moved + by.reshape(moved.shape))
        rounding = 1e-14 * max(1.0, abs(here))
        kinked = abs(right - 2 * here + left) > 0.01 * max(abs(right - here), abs(here - left)) + rounding
        return np.nan if kinked else (right - left) / (2 * h)

    return np.array([slope(entry) for entry in entries])
