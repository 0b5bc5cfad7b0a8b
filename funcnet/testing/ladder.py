"""The ladder of references with which a gradient is compared, leaf by leaf; `funcnet.testing` lists them.

It takes scalar functions of trees of arrays, and does not depend on networks, except for the names of their leaves.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from funcnet.testing.derivatives import HALF_WRONG, unlike_itself
from funcnet.testing.differences import (
    AT_KINKS,
    ROUNDING_FLOOR,
    Moves,
    along_entries,
    differences,
    random_direction,
    rounded_zero,
    taylor_order,
)
from funcnet.testing.report import Row, error_in_eps, leaf_row, relative, structure_rows, where_it_starts
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
        if rows := structure_rows(got, want):
            return rows, ()
        names, got, want = names or leaf_names(want), as_arrays(got), as_arrays(want)
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
        dtype = want[i].dtype.name if compute_dtype is None else np.dtype(compute_dtype).name
        here = leaf_row(name, got[i], want[i], tolerances[i], eps[i], f"{called} in {dtype}")
        if wide is not None:
            floor = 0.0 if floors is None else floors[i]
            settings = {"tolerance": tolerances[i], "seed": seed, "stopped": name in stopped, "kinks": kinks}
            settings |= {"in_float64": in_float64, "called": called}
            here = _widen(here, i, wide, got[i], want[i], eps[i], floor, **settings)
        elif not here.ok and kinks and compute_dtype is None:
            leaf = np.asarray(jax.tree.leaves(args[0])[i], want[i].dtype)
            here = _at_kinks(here, gradients_at(i), leaf, [(got[i], want[i], tolerances[i], eps[i])], seed)
        rows.append(here)
    if any(np.isnan(leaf).any() for leaf in want):
        notes.append(f"{called} has NaN: those entries of the gradient are only checked to be NaN, too")
    return tuple(rows), (*notes, *where_it_starts(rows))


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
    with enable_x64(True):
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
    for got, want, allowed, own_eps in pairs:
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        size = np.abs(want).max(initial=0.0, where=np.isfinite(want))
        wrong = ~(np.abs(got - want) <= allowed * own_eps * size)  # also where jax.grad has NaN, e.g. for a norm at 0
        accuracy = max(100 * eps ** (2 / 3), min(100 * own_eps, 0.05))
        settings = {"reach": eps ** (1 / 3), "accuracy": accuracy, "seed": seed}
        if wrong.any() and not is_subgradient(gradient_at, leaf, got, wrong, **settings):
            return row
    return row._replace(ok=True, error=0.0, fault="", rungs=f"{row.rungs}, {AT_KINKS}")


def _widen(here, i, wide, got, want, eps, floor, *, tolerance, in_float64, seed, stopped, kinks, called) -> Row:
    """A row for all references, from one for `jax.grad` in the arguments' dtype."""
    want64, narrow, got64 = wide.want[i], wide.narrow[i], got if wide.got is None else wide.got[i]
    if wide.got is None:
        got64, want64, narrow = (rounded_zero(a, want64, wide.value, wide.terms) for a in (got64, want64, narrow))
    narrow_eps, double_eps = eps_of(narrow.dtype), eps_of(got64.dtype)
    noise = min(error_in_eps(narrow, want64, narrow_eps), 1 / narrow_eps)  # at most 100% wrong
    allowed = max(tolerance, NOISE_ALLOWANCE * noise)
    here = leaf_row(here.leaf, got, want, allowed, eps, here.rungs)
    double_allowed = allowed if wide.got is None else max(allowed, in_float64 / double_eps)
    got64 = np.asarray(got64, np.float64)
    double = leaf_row(here.leaf, got64, want64, double_allowed, double_eps, "")
    if noise > 100 or not want64.any():  # its terms cancel, or it is saturated: only rounding is left
        floor = max(floor, ROUNDING_FLOOR * max(abs(wide.value), wide.terms) * eps_of(np.float64))
    if np.abs(np.asarray(got, np.float64) - want).max(initial=0) <= floor / eps_of(np.float64) * eps:
        here = here._replace(ok=True, fault="")
    if np.abs(got64 - want64).max(initial=0) <= floor:
        double = double._replace(ok=True, fault="")
    elif wide.got is None and noise * narrow_eps > HALF_WRONG:
        double = double._replace(ok=False, error=noise, fault=unlike_itself(noise * narrow_eps, want.dtype))
    if not here.ok and error_in_eps(got, want64, eps) <= allowed:  # as accurate as jax.grad is
        here = here._replace(ok=True, fault="")

    rungs = [] if want.dtype == np.float64 else [f"{here.rungs} {relative(here.error * eps)}"]
    rungs.append(f"in float64 {relative(double.error * double_eps)}")
    row = min((double, here), key=lambda row: (row.ok, -row.error))
    if want.dtype == np.float64:
        row = double
    if kinks and not row.ok:
        pairs = [] if here.ok else [(got, want, allowed, eps)]
        pairs += [] if double.ok else [(got64, want64, double_allowed, double_eps)]
        row = _at_kinks(row._replace(rungs=""), wide.gradients_at(i), wide.moves.leaf(i), pairs, seed)
        rungs.append(row.rungs.removeprefix(", "))
    complaint = ""
    if stopped:
        rungs.append("stopped on purpose: no differences")
    elif want64.size and np.isfinite(got64).all() and np.isfinite(want64).all():
        size = max(float(np.linalg.norm(g)) for g in (got64, want64))
        value_at, leaf = partial(wide.moves.at, i), wide.moves.leaf(i)
        exact = want64 if wide.got is None else got64
        agrees, text = differences(
            lambda v: lambda t: value_at(leaf + t * v), exact, size, seed, in_float64, wide.terms
        )
        rungs += [text, taylor_order(lambda t: value_at(leaf + t * random_direction(seed, leaf.shape)), exact, seed)]
        if (
            row.ok
            and agrees is False
            and kinks
            and along_entries(row.leaf, wide.moves, i, exact, seed, terms=wide.terms).ok
        ):
            agrees = None  # a kink that no single entry shows
            rungs += [] if AT_KINKS in rungs else [AT_KINKS]
        if row.ok and agrees is False:
            complaint = f"equals {called}, but not the differences of the function: has that its own derivative rule?"
        elif not row.ok and agrees and wide.got is not None:
            row = row._replace(
                fault=f"{row.fault}; but the differences of the function agree with it, not with {called}"
            )
    if allowed > tolerance:
        rungs.append(f"{relative(allowed * narrow_eps)} allowed, since the rounding of {called} is {noise:.2g} eps")
    return row._replace(ok=row.ok and not complaint, fault=row.fault or complaint, rungs=", ".join(filter(None, rungs)))
