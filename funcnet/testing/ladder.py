"""The ladder of references with which a gradient is compared, leaf by leaf; `funcnet.testing` lists them.

It takes scalar functions of trees of arrays, and does not depend on networks, except for the names of their leaves.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from funcnet.testing.derivatives import AT_MOST, TOO_ROUGH, unlike_itself
from funcnet.testing.differences import (
    ROUNDING_FLOOR,
    Moves,
    along_entries,
    differences,
    rounded_zero,
    taylor_order,
)
from funcnet.testing.report import (
    Row,
    also,
    at_kink,
    error_in_eps,
    leaf_row,
    relative,
    structure_rows,
    verdict,
    where_it_starts,
)
from funcnet.testing.subgradients import is_subgradient
from funcnet.testing.trees import (
    as_arrays,
    as_one_program,
    cast_to,
    enable_x64,
    eps_of,
    leaf_names,
)

NOISE_ALLOWANCE = 8.0  # times jax.grad's own rounding error
FLOAT64_TOLERANCE = 1e-9  # relative to the largest entry: mistakes are larger, and rounding is seldom as large


def judge(
    fn, reference, by_hand, args, *,
    tolerance, seed, in_float64=FLOAT64_TOLERANCE, compute_dtype=None, floors=None, stopped=(), kinks=True,
    names=None, narrow=False, called="jax.grad",
) -> tuple[tuple[Row, ...], tuple[str, ...]]:  # fmt: skip
    """Rows, one per leaf of `args[0]`, and notes. An error in float64 below a leaf's floor counts as `jax.grad`'s.

    For the leaves named in `stopped` no differences are taken. With `kinks`, a gradient that differs from `jax.grad` is
    also correct if it is another gradient at a kink. With `narrow`, `by_hand` computes in less than float64 inside, and
    its gradient in the dtype of the arguments is compared with the others in float64. `tolerance` is in eps, the same
    for all leaves, or a list with one for each.
    """
    notes = []
    with jax.default_matmul_precision("highest"):
        got, want = by_hand(*args), reference(*args)
        names = names or leaf_names(want)
        if rows := structure_rows(got, want, names):
            return rows, ()
        got, want = as_arrays(got), as_arrays(want)
        eps = [eps_of(leaf.dtype if compute_dtype is None else compute_dtype) for leaf in want]
        tolerances = np.broadcast_to(tolerance, len(want)).tolist()
        wide = None
        if compute_dtype is None:
            try:
                wide = _in_float64(fn, reference, None if narrow else by_hand, args, want)
            except Exception as error:  # any error of a user's function in another dtype
                notes.append(f"not judged in float64: {type(error).__name__}: {error}"[:300])
    if jax.default_backend() != "cpu":
        fast = max(map(error_in_eps, as_arrays(by_hand(*args)), want, eps))
        notes.append(f"at the default precision of products on {jax.default_backend()}: {fast:.2g} eps")
    rows, gradients_at = [], _gradients_at(reference, args)
    for i, name in enumerate(names):
        pair = _Pair(got[i], want[i], tolerances[i], eps[i])
        dtype = want[i].dtype.name if compute_dtype is None else np.dtype(compute_dtype).name
        if wide is not None:
            floor, settings = 0.0 if floors is None else floors[i], {"stopped": name in stopped, "kinks": kinks}
            settings |= {"in_float64": in_float64, "seed": seed, "called": called}
            rows.append(_by_all(name, pair, i, wide, floor=floor, **settings))
            continue
        row = pair.row(name, f"{called} in {dtype}")
        if not row.ok and kinks and compute_dtype is None:
            leaf = np.asarray(jax.tree.leaves(args[0])[i], want[i].dtype)
            row = _at_kinks(row, gradients_at(i), leaf, [pair], seed)
        rows.append(row)
    if any((np.isnan(g) & np.isnan(w)).any() for g, w in zip(got, want, strict=True)):
        notes.append(f"{called} has NaN: those entries of the gradient are only checked to be NaN, too")
    return tuple(rows), (*notes, *where_it_starts(rows))


class _Pair(NamedTuple):
    """The gradient of a leaf and that of `jax.grad`, in one dtype, and how far apart they may be."""

    got: np.ndarray
    want: np.ndarray
    allowed: float  # in eps
    eps: float
    floor: float = 0.0  # a difference as small as this is none

    def row(self, name, rungs) -> Row:
        """The verdict on it."""
        row = leaf_row(name, self.got, self.want, self.allowed, self.eps, rungs)
        return row._replace(ok=True, fault="") if self.below_floor() else row

    def below_floor(self) -> bool:
        """Whether the largest difference is."""
        return bool(np.abs(np.asarray(self.got, np.float64) - self.want).max(initial=0) <= self.floor)


class _Wide(NamedTuple):
    """The gradients in float64, as lists of arrays, and the function and its gradient with one leaf moved."""

    got: list[np.ndarray] | None  # None: it computes in less than float64 inside
    want: list[np.ndarray]
    narrow: list[np.ndarray]  # jax.grad in the arguments' dtype, or float32 for float64: what rounding costs it
    value: float
    terms: float  # how large those may be that it is the sum of
    moves: Moves
    gradients_at: Callable[[int], Callable[[np.ndarray, np.ndarray], np.ndarray]]


def _in_float64(fn, reference, by_hand, args, narrow) -> _Wide:
    """All of it in float64; `narrow` is `jax.grad` in the dtype of the arguments."""
    reference, value_of = as_one_program(reference), as_one_program(fn)
    with enable_x64(True):
        args64 = cast_to(args, np.float64)
        value = value_of(*args64)
        if value.dtype != np.float64:
            raise TypeError(f"the value is {value.dtype} where the arguments are float64")
        got = None if by_hand is None else as_arrays(by_hand(*args64))
        want = as_arrays(reference(*args64))
        if any(leaf.dtype == np.float64 for leaf in narrow):
            narrow = as_arrays(reference(*cast_to(args, np.float32)))
    gradients_at = _gradients_at(reference, args64)
    moves = Moves(value_of, args64)
    return _Wide(got, want, narrow, float(value), moves.terms(), moves, gradients_at)


def _gradients_at(reference, args) -> Callable[[int], Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """`of_leaf(i)(moved, entries)`: some entries of the gradient for leaf `i`, moved there; one program for all."""
    leaves, tree = jax.tree.flatten(args[0])

    def gradients(leaves):
        return jax.tree.leaves(reference(jax.tree.unflatten(tree, leaves), *args[1:]))

    program = as_one_program(gradients)

    def of_leaf(i):
        def at(moved, entries):
            with enable_x64(moved.dtype == np.float64):
                there = [*leaves[:i], jax.device_put(moved), *leaves[i + 1 :]]
                return np.asarray(program(there)[i]).ravel()[entries]

        return at

    return of_leaf


def _at_kinks(row, gradient_at, leaf, pairs, seed) -> Row:
    """A wrong row, judged again: correct if each gradient that differs from `jax.grad` is another one at a kink."""
    eps = eps_of(leaf.dtype)
    for pair in pairs:
        got, want = np.asarray(pair.got, np.float64), np.asarray(pair.want, np.float64)
        size = np.abs(want).max(initial=0.0, where=np.isfinite(want))
        wrong = ~(np.abs(got - want) <= pair.allowed * pair.eps * size)  # also where jax.grad has NaN, as a norm at 0
        accuracy = max(100 * eps ** (2 / 3), min(100 * pair.eps, 0.05))
        settings = {"reach": eps ** (1 / 3), "accuracy": accuracy, "seed": seed}
        if wrong.any() and not is_subgradient(gradient_at, leaf, got, wrong, **settings):
            return row
    return at_kink(row)


def _by_all(name, here, i, wide, *, floor, in_float64, seed, stopped, kinks, called) -> Row:
    """The row of leaf `i` by all references; `here` is its pair in the dtype of the arguments."""
    got, exact, narrow = here.got if wide.got is None else wide.got[i], wide.want[i], wide.narrow[i]
    if wide.got is None:
        got, exact, narrow = (rounded_zero(a, exact, wide.value, wide.terms) for a in (got, exact, narrow))
    narrow_eps, double_eps, tolerance = eps_of(narrow.dtype), eps_of(got.dtype), here.allowed
    noise = min(error_in_eps(narrow, exact, narrow_eps), 1 / narrow_eps)  # at most 100% wrong
    allowed = max(tolerance, NOISE_ALLOWANCE * noise)
    allowed = allowed if wide.got is not None else min(allowed, AT_MOST / narrow_eps)
    if noise > 100 or not exact.any():  # its terms cancel, or it is saturated: only rounding is left
        floor = max(floor, ROUNDING_FLOOR * max(abs(wide.value), wide.terms) * eps_of(np.float64))
    here = here._replace(allowed=allowed, floor=floor / eps_of(np.float64) * here.eps)
    in_double = allowed if wide.got is None else max(allowed, in_float64 / double_eps)
    double = _Pair(np.asarray(got, np.float64), exact, in_double, double_eps, floor)

    row, wrong = _by_jax_grad(name, here, double, called)
    if wide.got is None and noise * narrow_eps > TOO_ROUGH and not double.below_floor():
        row = verdict(name, row.shape, False, row.rungs, unlike_itself(noise * narrow_eps, here.want.dtype))
        wrong = [double._replace(allowed=tolerance)]  # unless the point is at a kink in the narrower dtype
    if wrong and kinks:
        row = _at_kinks(row, wide.gradients_at(i), wide.moves.leaf(i), wrong, seed)
    if stopped:
        row = also(row, "stopped on purpose: no differences")
    elif exact.size and np.isfinite(double.got).all():
        if np.isfinite(exact).all():
            row = _by_differences(row, double, i, wide, in_float64=in_float64, seed=seed, kinks=kinks, called=called)
        elif not row.ok and error_in_eps(here.got, double.got, here.eps) <= here.eps**-0.5:
            alone = along_entries(name, wide.moves, i, double.got, seed, terms=wide.terms)
            row = also(alone if alone.ok else row, f"{called} is not finite")
    if allowed > tolerance:
        rounding = f"since the rounding of {called} is {noise:.2g} eps"
        row = also(row, f"{relative(allowed * narrow_eps)} allowed, {rounding}")
    return row


def _by_jax_grad(name, here, double, called) -> tuple[Row, list[_Pair]]:
    """The worse of a leaf's rows in the two dtypes, and the pairs that are wrong."""
    row, row64 = here.row(name, ""), double.row(name, "")
    if error_in_eps(here.got, double.want, here.eps) <= here.allowed:  # as accurate as jax.grad is
        row = row._replace(ok=True, fault="")
    text = f"in float64 {relative(row64.error * row64.eps)}"
    if here.want.dtype == np.float64:
        return row64._replace(rungs=text), [] if row64.ok else [double]
    text = f"{called} in {here.want.dtype} {relative(row.error * row.eps)}, {text}"
    worse = min((row64, row), key=lambda row: (row.ok, -row.error))
    return worse._replace(rungs=text), [pair for pair, its in ((here, row), (double, row64)) if not its.ok]


def _by_differences(row, double, i, wide, *, in_float64, seed, kinks, called) -> Row:
    """A leaf's row, judged by differences of the function, too."""
    at, leaf = partial(wide.moves.at, i), wide.moves.leaf(i)
    gradient, other = (double.want, double.got) if wide.got is None else (double.got, double.want)
    agrees, _, text = differences(at, leaf, [gradient, other], seed, in_float64, wide.terms)
    row = also(row, text, taylor_order(at, leaf, gradient, seed))
    if not row.ok and agrees and wide.got is not None:
        but = f"but the differences of the function agree with it, not with {called}"
        return row._replace(fault=f"{row.fault}; {but}")
    if not row.ok or agrees is not False:
        return row
    if kinks and along_entries(row.leaf, wide.moves, i, gradient, seed, terms=wide.terms).ok:
        return at_kink(row)  # a kink that no single entry shows
    said = "between the gradients around a kink" if row.at_kink else f"equals {called}"
    fault = f"{said}, but not the differences of the function: has that its own derivative rule?"
    return row._replace(ok=False, fault=fault, at_kink=False)
