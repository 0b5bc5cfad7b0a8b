"""Differences of a function: independent of autodiff, and the only reference if JAX cannot differentiate it."""

import contextlib
import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.testing.derivatives import IN_FLOAT64_ALONE, in_words, roundings
from funcnet.testing.report import Row, also, at_kink, error_in_eps, fault_of, relative, structure_rows, verdict
from funcnet.testing.subgradients import is_subgradient
from funcnet.testing.trees import as_arrays, as_one_program, cast_to, enable_x64, eps_of, leaf_names, quick_jit

DIFFERENCE_TOLERANCE = 1e-6  # relative; a sixth-order difference in float64 is accurate to 1e-9
COARSELY = 1e-3  # relative: what is enough beside the edge of the domain, where steps are short
CLEARLY = 1e4  # times the noise of a difference: a slope that is not 0
MOVES_ALLOWED = 32.0  # times the change if each number moves by its eps: what rounding in a narrow dtype may cost
SHOWN_BY_ENTRY = 4096  # the largest leaf for which a mistake is located by the difference of each entry
ENTRY_BY_ENTRY = 256  # if differences alone judge: the largest leaf of which each entry is differentiated
ROUNDING_FLOOR = 1024.0  # eps of the function's value: smaller than that, a gradient is only rounding


def differences(at, leaf, gradients, seed, accuracy=0.0, terms=1.0) -> tuple[bool | None, bool, str]:
    """Whether differences of `at(moved leaf)` agree with a gradient, whether all of them can tell, and words.

    `None` if none can tell. `gradients` is that one, and others that it may be as large as. The steps are the same for
    all entries; where these cannot tell, each is relative to its entry, which may be of any size.
    """
    worst, judged, sure, allowed = 0.0, 0, True, max(DIFFERENCE_TOLERANCE, accuracy)
    each = leaf.size <= 16
    if each:
        directions = np.eye(leaf.size).reshape(-1, *leaf.shape)
    else:
        directions = [random_direction(seed + k, leaf.shape) for k in range(3)]
    norm = max(float(np.linalg.norm(g)) for g in gradients)
    for v in directions:
        slope, noise = map(float, central_difference(lambda t, v=v: at(leaf + t * v), terms))
        expected = float(np.sum(gradients[0] * v))
        scale = max(abs(expected), norm / math.sqrt(leaf.size), 1e-300)
        if not norm and abs(slope) > CLEARLY * noise:  # a gradient of zero, but the function changes
            scale, noise = abs(slope), 0.0
        if norm and not noise <= allowed * scale / 10:  # the difference itself is in doubt
            by = sizes_of(leaf) * v
            slope, noise = map(float, central_difference(lambda t, by=by: at(leaf + t * by), terms))
            expected = float(np.sum(gradients[0] * by))
            scale = max(abs(slope), 1e-300)  # no slope may only be a step too small for a narrow dtype
            sure = sure and each  # some entries are lost beside others
        if noise <= allowed * scale / 10:
            judged += 1
            worst = max(worst, abs(slope - expected) / scale)
    doubt = f" ({len(directions) - judged} of {len(directions)} noisy or at a kink)" if judged < len(directions) else ""
    if not judged:
        return None, False, f"no differences{doubt}"
    return worst <= allowed, sure and not doubt, f"differences {relative(worst)}{doubt}"


def sizes_of(leaf) -> np.ndarray:
    """The size of each entry; 1 for zeros."""
    return np.where(leaf, np.abs(leaf), 1.0)


def terms_of(f) -> float:
    """How large the terms are that the values `f(0)` are sums of, as rounding shows; 1, unless they are tiny or zero.

    A value of 1e-16 may be what is left of terms that cancel, or an energy in SI units. Along the smallest moves a
    function is linear, and the rest is the rounding of its terms.
    """
    here = np.abs(f(0.0)).max(initial=0.0)
    if not here < 1e-6:
        return 1.0
    steps = np.arange(-4.0, 5.0)
    values = np.array([np.ravel(f(1e-9 * k)) for k in steps])
    if not values.any() or not np.isfinite(values).all():  # smaller moves than these are lost in the terms
        return 1.0
    line = np.stack([np.ones_like(steps), steps], 1)
    rounding = np.abs(values - line @ np.linalg.pinv(line) @ values).max()
    return float(min(1.0, max(here, 64 * rounding / np.finfo(np.float64).eps)))


def rounded_zero(a, exact, value, terms) -> np.ndarray:
    """`a`, or zeros if the exact derivative of that value is only the rounding of zero, and `a` that in its dtype."""
    terms = max(terms, float(np.abs(value).max(initial=0.0)))
    eps, floor = eps_of(a.dtype), ROUNDING_FLOOR * eps_of(np.float64)
    small = np.abs(exact).max(initial=0.0) <= floor * terms
    small = small and np.abs(a).max(initial=0.0) <= max(floor, roundings(eps) * eps) * terms
    return np.zeros_like(a) if small else a


def central_difference(f, terms=1.0) -> tuple[np.ndarray, np.ndarray]:
    """The slopes of an array `f` at 0, to sixth order, and their noise: how far two steps or the two sides differ."""

    def slope(h):
        return (45 * (f(h) - f(-h)) - 9 * (f(2 * h) - f(-2 * h)) + (f(3 * h) - f(-3 * h))) / (60 * h)

    f = functools.cache(f)
    here = f(0.0)
    rounding = 8 * np.finfo(np.float64).eps * np.maximum(terms, np.abs(here))  # terms may have cancelled
    tried = []
    for h in (1e-3, 1e-2, 1e-4, 1e-5, 1e-6):
        coarse, fine = slope(h), slope(h / 2)
        its_noise = np.maximum(np.abs(coarse - fine), rounding / h)
        tried.append((np.where(np.isnan(its_noise), np.inf, its_noise), h, fine))  # NaN: the step leaves the domain
        if (tried[-1][0] <= 1e-9 * np.abs(fine)).all():
            break
    noise, best_h, best = tried[0]
    for its_noise, h, fine in tried[1:]:
        better = its_noise < noise
        noise, best_h, best = (np.where(better, *pair) for pair in ((its_noise, noise), (h, best_h), (fine, best)))
    for its_noise, h, fine in tried:  # if only the larger step reaches a kink, trust the smaller
        apart = np.abs(fine - best)
        noise = np.where((h < best_h) & (apart > 2 * its_noise), np.maximum(noise, apart), noise)
    for h in (1e-3, 1e-5):
        # g(h) = (f(h) - 2 f(0) + f(-h)) / h is the jump of the slope at 0, and odd powers of h: two are eliminated.
        g = [(f(t) - 2 * here + f(-t)) / t for t in (h, h / 2, h / 4)]
        jump = np.nan_to_num(np.abs(g[0] - 10 * g[1] + 16 * g[2]) / 7)
        noise = np.where((h == 1e-3) | (jump > 12 * rounding / h), np.maximum(noise, jump), noise)
    return best, noise


class Moves(NamedTuple):
    """A scalar function in float64, with one leaf of its first argument moved."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]

    def leaf(self, i) -> np.ndarray:
        """Leaf `i` at the point."""
        return np.asarray(jax.tree.leaves(self.args[0])[i])

    def at(self, i, moved) -> float:
        """The value with leaf `i` there."""
        with enable_x64(True):
            moved = jax.device_put(moved) if isinstance(jax.tree.leaves(self.args[0])[i], jax.Array) else moved
            return float(self._with(i, moved))

    def terms(self) -> float:
        """How large the terms of the value may be."""
        return terms_of(lambda t: np.float64(self.at(0, self.leaf(0) + t)))

    def each_entry(self, i) -> Callable[..., np.ndarray]:
        """`f(t, size)`, the values with each entry of leaf `i` alone moved by `t` times its size, 1 or given."""
        leaf = self.leaf(i)
        ones = np.ones(leaf.size)

        def values(t, size):
            def moved(k):
                return jnp.ravel(leaf).at[k].add(t * size[k]).reshape(leaf.shape)

            return jax.lax.map(lambda k: self._with(i, moved(k)), jnp.arange(leaf.size))

        program = quick_jit(values)

        def f(t, size=ones):
            with enable_x64(True), contextlib.suppress(Exception):  # any error that a function raises under tracing
                return np.asarray(program(np.float64(t), size))
            steps = (t * np.diag(size)).reshape(-1, *leaf.shape)
            return np.array([self.at(i, leaf + step) for step in steps])

        return f

    def _with(self, i, moved):
        leaves, tree = jax.tree.flatten(self.args[0])
        return self.fn(jax.tree.unflatten(tree, [*leaves[:i], moved, *leaves[i + 1 :]]), *self.args[1:])


def taylor_order(at, leaf, gradient, seed) -> str:
    """The order of `|f(p + h v) - f(p) - h g.v|` in h, the median over five halvings."""
    v = random_direction(seed, leaf.shape)
    here, slope = at(leaf), float(np.sum(gradient * v))
    for h in (1e-3, 1e-2, 1e-1, 1.0):
        steps = h * 0.5 ** np.arange(6)
        remainders = np.array([abs(at(leaf + t * v) - here - t * slope) for t in steps])
        if not np.isfinite(remainders).all():
            return "no Taylor order: a step leaves the domain"
        if remainders[-1] > 1e3 * np.finfo(np.float64).eps * max(abs(here), 1.0):
            return f"Taylor order {np.median(np.log2(remainders[:-1] / remainders[1:])):.2f}"
    return "no visible Taylor remainder"


def random_direction(seed, shape) -> np.ndarray:
    """A direction of length 1."""
    v = np.random.default_rng(seed).normal(size=shape)
    return v / max(np.linalg.norm(v), 1e-300)


def judge_by_differences(
    fn, by_hand, args, *, seed, stopped=(), names=None, accuracy=DIFFERENCE_TOLERANCE, in_float64_alone=False
) -> tuple[Row, ...]:
    """Rows, one per leaf of `args[0]`, without `jax.grad` to compare with. In their own dtype, rounding may cost more.

    How much more is measured: by the change of the gradient if each number is moved by its eps.
    """
    value_of, names = as_one_program(fn), names or leaf_names(args[0])
    got = by_hand(*args)
    if rows := structure_rows(got, args[0], names):
        return rows
    with enable_x64(True):
        args64 = cast_to(args, np.float64)
        try:
            value, got64 = np.asarray(value_of(*args64)), by_hand(*args64)
            moved64 = as_arrays(by_hand(*_moved_by_eps(args, seed)))
        except Exception as error:  # any error of a user's function in another dtype
            fault = f"cannot be judged: differences need float64, where it raises {in_words(error)}"
            leaves = zip(names, jax.tree.leaves(args[0]), strict=True)
            return tuple(verdict(name, np.shape(leaf), False, "", fault) for name, leaf in leaves)
        if rows := structure_rows(got64, args64[0], names):
            return rows
        got64 = [np.asarray(g, np.float64) for g in as_arrays(got64)]
    moves, rows = Moves(value_of, args64), []
    terms = moves.terms()
    for i, (name, own) in enumerate(zip(names, as_arrays(got), strict=True)):
        leaf, eps = moves.leaf(i), eps_of(jnp.result_type(own))
        if name in stopped or not leaf.size:
            rows.append(Row(name, leaf.shape, 0.0, True, "stopped on purpose: not judged" if leaf.size else "empty"))
            continue
        if value.dtype != np.float64:
            fault = f"cannot be judged: the value is {value.dtype} where the arguments are float64: too inaccurate"
            row = Row(name, leaf.shape, math.inf, False, "", fault)
        else:
            row = _along_a_few(name, moves, i, got64[i], seed, accuracy, terms)
            row = row or along_entries(name, moves, i, got64[i], seed, accuracy, terms)
        if in_float64_alone:
            rows.append(also(row, IN_FLOAT64_ALONE))
            continue
        own, moved, exact = (rounded_zero(g, got64[i], value, terms) for g in (own, moved64[i], got64[i]))
        error, change = error_in_eps(own, exact, eps), error_in_eps(moved, exact, eps)
        if row.ok and not row.at_kink and error > max(eps**-0.5, accuracy / eps, MOVES_ALLOWED * change):
            fault = f"in {jnp.result_type(own)} it is {relative(error * eps)} from itself in float64; "
            fault += f"moving each number by its eps changes {relative(change * eps)}"
            row = row._replace(ok=False, error=error, fault=f"{fault}: are sums accumulated in it?", eps=eps)
        rows.append(row)
    return tuple(rows)


def _along_a_few(name, moves, i, gradient, seed, accuracy, terms) -> Row | None:
    """A row if the gradient agrees with the differences along a few directions; None: each entry must tell."""
    leaf = moves.leaf(i)
    agrees, sure, text = differences(partial(moves.at, i), leaf, [gradient], seed, accuracy, terms)
    return Row(name, leaf.shape, 0.0, True, f"{text} alone") if agrees and sure and gradient.any() else None


def _moved_by_eps(args, seed):
    """The floating arguments in float64, each number moved by the eps of its own dtype."""
    rng = np.random.default_rng(seed)

    def moved(leaf):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return leaf
        by = eps_of(jnp.result_type(leaf)) * rng.choice((-1.0, 1.0), jnp.shape(leaf))
        there = np.asarray(leaf, np.float64) * (1 + by)
        return jax.device_put(there) if isinstance(leaf, jax.Array) else there

    return jax.tree.map(moved, args)


def along_entries(name, moves, i, gradient, seed, accuracy=DIFFERENCE_TOLERANCE, terms=1.0) -> Row:
    """A row for a leaf: its gradient against differences along each entry, or for a large leaf random directions.

    If the directions cannot tell, as where an entry is at a kink, each entry does, but for the largest leaves.
    """
    size, arguments = moves.leaf(i).size, (name, moves, i, gradient, seed, accuracy, terms)
    row, sure = _along(*arguments, each=size <= ENTRY_BY_ENTRY)
    return row if sure or not ENTRY_BY_ENTRY < size <= SHOWN_BY_ENTRY else _along(*arguments, each=True)[0]


def _along(name, moves, i, gradient, seed, accuracy, terms, *, each) -> tuple[Row, bool]:
    """The row along each entry or random directions, and whether they can tell."""
    leaf, at = moves.leaf(i), partial(moves.at, i)
    if each:
        expected = gradient.ravel()
        slopes, noise, used = slopes_by(moves.each_entry(i), sizes_of(leaf).ravel(), expected, accuracy, terms)
    else:
        directions = [random_direction(seed + k, leaf.shape) for k in range(8)]
        expected, used = np.array([np.sum(gradient * v) for v in directions]), 1.0
        slopes, noise = np.array([central_difference(lambda t, v=v: at(leaf + t * v), terms) for v in directions]).T
    size = max(np.abs(a).max(initial=0.0, where=np.isfinite(a)) for a in (slopes, expected))
    precise = noise <= np.maximum(accuracy * size, np.where(used < 1, COARSELY * size, 0.0))
    drowned = np.where((slopes == 0) & (expected == 0), 1e-8, 1e-11)  # if nothing changes, steps may have been short
    unsure = ~precise & ~(noise <= drowned * max(terms, abs(at(leaf))) / np.maximum(used, 1.0))
    off = ~(np.abs(slopes - expected) <= np.maximum(accuracy * size, 10 * noise)) & ~np.isnan(slopes)
    off |= ~np.isfinite(expected)
    worst, double_eps = np.abs(slopes - expected).max(initial=0.0, where=~np.isnan(slopes)), eps_of(np.float64)
    rungs = f"differences alone, {relative(worst / (size or 1.0))}"
    row = Row(name, leaf.shape, error_in_eps(expected, slopes, double_eps), True, rungs, eps=double_eps)
    if not (off | unsure if each else off & ~unsure).any() and unsure.mean() <= 0.5:  # some random directions can tell
        return row, each or precise.mean() > 0.5
    smooth = each and not unsure.any() and _is_linear(at, leaf, slopes, size, seed)
    settings = {"reach": 1e-3, "accuracy": 1e-5, "seed": seed}
    if each and not smooth and is_subgradient(partial(_gradient_at, at), leaf, gradient, off | unsure, **settings):
        return at_kink(row), True
    if not off.any():
        fault = _in_doubt(leaf, slopes, noise, each)
        return row._replace(error=math.inf, ok=False, fault=fault), False
    if leaf.size <= SHOWN_BY_ENTRY:  # to say where it is wrong, and how
        slopes = slopes if each else _short_differences(moves.each_entry(i))
        fault = fault_of(gradient, slopes.reshape(leaf.shape), accuracy, double_eps)
    else:
        worst = int(np.argmax(np.where(off, np.abs(slopes - expected), -1.0)))
        fault = f"worst along direction {worst}: {expected[worst]:.8g}, the difference is {slopes[worst]:.8g}"
    return row._replace(ok=False, fault=fault), each or not unsure.any()


def _in_doubt(leaf, slopes, noise, each) -> str:
    """What a report says if differences cannot tell."""
    worst = int(np.argmax(noise))
    where = f"at {tuple(map(int, np.unravel_index(worst, leaf.shape)))}" if each else f"along direction {worst}"
    why = f"is good to {noise[worst]:.0e} only, or there is a kink"
    return f"cannot be judged: the difference {where} {'leaves the domain' if np.isnan(slopes[worst]) else why}"


def slopes_by(values, sizes, expected, accuracy, terms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The slopes of `values(t, size)` by `t * size`, their noise, and the sizes: 1, or where it cannot tell, others."""
    slopes, noise = central_difference(partial(values, size=np.ones_like(sizes)), terms)
    largest = max(np.abs(a).max(initial=0.0, where=np.isfinite(a)) for a in (slopes, expected))
    if not (doubt := ~(noise <= accuracy * largest)).any():
        return slopes, noise, np.ones_like(slopes)
    again, its_noise = central_difference(partial(values, size=sizes), terms)
    outside = np.isinf(noise) & (its_noise <= COARSELY * largest * sizes)
    better = doubt & ((its_noise <= accuracy * np.abs(again)) | outside)
    used = np.where(better, sizes, 1.0)
    return np.where(better, again / used, slopes), np.where(better, its_noise / used, noise), used


def _is_linear(at, leaf, slopes, size, seed) -> bool:
    """Whether the slopes along two directions are those of the entries, so that there is a gradient, and no kink."""
    directions = [random_direction(seed + k, leaf.shape) for k in range(2)]
    found = [central_difference(lambda t, v=v: at(leaf + t * v))[0] for v in directions]
    return all(abs(s - np.sum(slopes * v.ravel())) <= 1e-5 * size for s, v in zip(found, directions, strict=True))


def _short_differences(f) -> np.ndarray:
    """The slopes of an array `f` at 0, to fourth order."""
    h = 1e-3
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def jacobian(f, leaves, i) -> np.ndarray | None:
    """`(entries of leaf i, entries of the value)`, by differences of a vector function of lists; None if too large."""
    leaf = np.asarray(leaves[i])
    vector = Moves(lambda leaves: jnp.concatenate([jnp.ravel(out) for out in f(leaves)]), (leaves,))
    with enable_x64(True):
        size = jax.eval_shape(vector.fn, leaves).size
    return _short_differences(vector.each_entry(i)) if leaf.size * size <= SHOWN_BY_ENTRY**2 else None


def _gradient_at(at, moved, entries) -> np.ndarray:
    """Some entries of the gradient, by short differences; NaN where a kink is too near."""

    def slope(entry):
        by, h = np.zeros(moved.size), 1e-5 * max(1.0, abs(moved.flat[entry]))
        by[entry] = h
        here, left, right = at(moved), at(moved - by.reshape(moved.shape)), at(moved + by.reshape(moved.shape))
        rounding = 1e-14 * max(1.0, abs(here))
        kinked = abs(right - 2 * here + left) > 0.01 * max(abs(right - here), abs(here - left)) + rounding
        return np.nan if kinked else (right - left) / (2 * h)

    return np.array([slope(entry) for entry in entries])
