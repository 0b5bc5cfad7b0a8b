"""The ladder of references on which a gradient is judged, leaf by leaf; `funcnet.testing` says what its rungs are.

It knows trees of arrays and scalar functions of them, and nothing of networks but how the leaves of one are called.
"""

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.testing.report import Row, error_in_eps, leaf_row, structure_rows, where_it_starts
from funcnet.testing.trees import as_arrays, cast_to, enable_x64, eps_of, leaf_names

NOISE_ALLOWANCE = 8.0  # times jax.grad's own rounding error
DIFFERENCE_TOLERANCE = 1e-6  # relative; a sixth-order difference in float64 is good for 1e-9
FLOAT64_TOLERANCE = 1e-9  # relative to the largest entry: no mistake is as small, and rounding seldom as large
ROUNDING_FLOOR = 1024.0  # eps of the function's value: an ill-conditioned leaf smaller than that cannot be judged


def judge(
    fn, reference, by_hand, args, *, tolerance, seed, compute_dtype=None, floors=None
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Rows, one per leaf of `args[0]`, and notes. A difference in float64 below a leaf's floor is `jax.grad`'s own."""
    notes = []
    with jax.default_matmul_precision("highest"):
        got, want = by_hand(*args), reference(*args)
        if rows := structure_rows(got, want):
            return rows, ()
        names, got, want = leaf_names(want), as_arrays(got), as_arrays(want)
        eps = [eps_of(leaf.dtype if compute_dtype is None else compute_dtype) for leaf in want]
        wide = None
        if compute_dtype is None:
            try:
                wide = _in_float64(fn, reference, by_hand, args)
            except Exception as error:  # whatever a function of the user's may do in another dtype than its own
                notes.append(f"not judged in float64: {type(error).__name__}: {error}"[:300])
    if jax.default_backend() != "cpu":
        fast = max(map(error_in_eps, as_arrays(by_hand(*args)), want, eps))
        notes.append(f"at the default precision of products on {jax.default_backend()}: {fast:.2g} eps")
    rows = []
    for i, name in enumerate(names):
        dtype = want[i].dtype.name if compute_dtype is None else np.dtype(compute_dtype).name
        here = leaf_row(name, got[i], want[i], tolerance, eps[i], f"jax.grad in {dtype}")
        if wide is not None:
            floor = 0.0 if floors is None else floors[i]
            here = _widen(here, i, wide, tolerance, seed, got[i], want[i], eps[i], floor)
        rows.append(here)
    return tuple(rows), (*notes, *where_it_starts(rows))


class _Wide(NamedTuple):
    """The gradients in float64, as lists of arrays, and the function as a leaf moves."""

    got: list[np.ndarray]
    want: list[np.ndarray]
    want32: list[np.ndarray]
    value: float
    move: Callable[[int, np.ndarray], Callable[[float], float]]


def _in_float64(fn, reference, by_hand, args) -> _Wide:
    with enable_x64(True):
        args64, args32 = cast_to(args, np.float64), cast_to(args, np.float32)
        value = fn(*args64)
        if value.dtype != np.float64:
            raise TypeError(f"the value is {value.dtype} where the arguments are float64")
        leaves, tree = jax.tree.flatten(args64[0])

    def move(i, v):
        def f(t):
            with enable_x64(True):
                moved = jnp.asarray(np.asarray(leaves[i]) + t * v)
                params = jax.tree.unflatten(tree, [*leaves[:i], moved, *leaves[i + 1 :]])
                return float(fn(params, *args64[1:]))

        return f

    with enable_x64(True):
        got, want = as_arrays(by_hand(*args64)), as_arrays(reference(*args64))
    return _Wide(got, want, as_arrays(reference(*args32)), float(value), move)


def _widen(here, i, wide, tolerance, seed, got, want, eps, floor) -> Row:
    """A row that stands on the whole ladder, from one that stands on its lowest rung."""
    got64, want64 = wide.got[i], wide.want[i]
    noise = error_in_eps(wide.want32[i], want64, eps_of(np.float32))
    allowed = max(tolerance, NOISE_ALLOWANCE * noise)
    double_eps = eps_of(np.float64)
    here = leaf_row(here.leaf, got, want, allowed, eps, here.rungs)
    double = leaf_row(here.leaf, got64, want64, max(allowed, FLOAT64_TOLERANCE / double_eps), double_eps, "")
    if noise > 100 or not want64.any():  # its terms cancel, or it is saturated: rounding is what is left of it
        floor = max(floor, ROUNDING_FLOOR * max(abs(wide.value), 1.0) * double_eps)
    if np.abs(np.asarray(got, np.float64) - want).max(initial=0) <= floor / double_eps * eps:
        here = here._replace(ok=True, fault="")
    if np.abs(got64 - want64).max(initial=0) <= floor:
        double = double._replace(ok=True, fault="")
    if not here.ok and error_in_eps(got, want64, eps) <= allowed:  # as near the truth as jax.grad is
        here = here._replace(ok=True, fault="")

    rungs = [] if want.dtype == np.float64 else [f"{here.rungs} {here.error:.2g} eps"]
    rungs.append(f"in float64 {double.error:.2g} eps")
    row = min((double, here), key=lambda row: (row.ok, -row.error))
    if want.dtype == np.float64:
        row = double
    complaint = ""
    if want64.size and np.isfinite(got64).all() and np.isfinite(want64).all():
        size = max(float(np.linalg.norm(g)) for g in (got64, want64))
        agrees, text = _differences(partial(wide.move, i), got64, size, seed)  # None: they cannot tell
        rungs += [text, _taylor(wide.move(i, _random_direction(seed, got64.shape)), got64, seed)]
        if row.ok and agrees is False:
            complaint = "equals jax.grad, but not the differences of the function: does that carry a derivative rule?"
        elif not row.ok and agrees:
            row = row._replace(
                fault=f"{row.fault}; yet the differences of the function side with it, not with jax.grad"
            )
    if allowed > tolerance:
        rungs.append(f"{allowed:.2g} eps allowed, jax.grad's own rounding being {noise:.2g}")
    return row._replace(ok=row.ok and not complaint, fault=row.fault or complaint, rungs=", ".join(filter(None, rungs)))


def _differences(move, gradient, norm, seed) -> tuple[bool | None, str]:
    """Whether differences along a leaf agree with its gradient where they can tell, and by how much of its norm."""
    worst, judged = 0.0, 0
    if gradient.size <= 16:
        directions = np.eye(gradient.size).reshape(-1, *gradient.shape)
    else:
        directions = [_random_direction(seed + k, gradient.shape) for k in range(3)]
    for v in directions:
        slope, noise = central_difference(move(v))
        expected = float(np.sum(gradient * v))
        scale = max(abs(expected), norm / math.sqrt(gradient.size), 1e-300)
        if noise <= DIFFERENCE_TOLERANCE * scale / 10:  # else it is the difference that is in doubt
            judged += 1
            worst = max(worst, abs(slope - expected) / scale)
    doubt = (
        "" if judged == len(directions) else f" ({len(directions) - judged} of {len(directions)} noisy or at a kink)"
    )
    if not judged:
        return None, f"no differences{doubt}"
    return worst <= DIFFERENCE_TOLERANCE, f"differences {worst:.0e}{doubt}"


def central_difference(f) -> tuple[Any, float]:
    """The slope of `f` at 0 to sixth order, and how far two step sizes, or the two sides, are apart."""

    def slope(h):
        return (45 * (f(h) - f(-h)) - 9 * (f(2 * h) - f(-2 * h)) + (f(3 * h) - f(-3 * h))) / (60 * h)

    f = functools.cache(f)
    here = f(0.0)
    rounding = 8 * np.finfo(np.float64).eps * max(1.0, float(np.max(np.abs(here))))  # of terms that may have cancelled
    tried = []
    for h in (1e-3, 1e-2, 1e-4, 1e-5, 1e-6):
        coarse, fine = slope(h), slope(h / 2)
        tried.append((max(float(np.max(np.abs(coarse - fine))), rounding / h), h, fine))
        if tried[-1][0] <= 1e-9 * float(np.max(np.abs(fine))):
            break
    noise, best_h, best = min(tried, key=lambda estimate: estimate[0])
    for its_noise, h, fine in tried:  # a kink within reach of the larger step alone: the smaller one knows better
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


def _taylor(f, gradient, seed) -> str:
    """The order of `|f(h) - f(0) - h g.v|` in h, the median over five halvings."""
    v = _random_direction(seed, gradient.shape)
    here, slope = f(0.0), float(np.sum(gradient * v))
    for h in (1e-3, 1e-2, 1e-1, 1.0):
        steps = h * 0.5 ** np.arange(6)
        remainders = np.array([abs(f(t) - here - t * slope) for t in steps])
        if remainders[-1] > 1e3 * np.finfo(np.float64).eps * max(abs(here), 1.0):
            return f"Taylor order {np.median(np.log2(remainders[:-1] / remainders[1:])):.2f}"
    return "no Taylor remainder to see"


def _random_direction(seed, shape) -> np.ndarray:
    v = np.random.default_rng(seed).normal(size=shape)
    return v / max(np.linalg.norm(v), 1e-300)
