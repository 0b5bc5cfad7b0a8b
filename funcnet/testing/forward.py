"""Forward mode: the tangents of one argument at a time, against a reference and differences."""

from functools import partial

import jax
import numpy as np

from funcnet.testing.behaviour import behaviour
from funcnet.testing.derivatives import (
    AT_MOST,
    IN_FLOAT64_ALONE,
    TOO_ROUGH,
    draws_other_numbers,
    forward,
    in_float64,
    in_float64_all_the_way,
    in_words,
    places,
    random_like,
    roundings,
    single,
    unlike_itself,
    values_agree,
    without_reference,
)
from funcnet.testing.differences import DIFFERENCE_TOLERANCE, rounded_zero, slopes_by, terms_of
from funcnet.testing.ladder import FLOAT64_TOLERANCE, NOISE_ALLOWANCE
from funcnet.testing.report import Row, also, error_in_eps, leaf_row, relative, verdict
from funcnet.testing.trees import as_arrays, as_one_program, cast_to, enable_x64, eps_of


def check_forward(fn, reference, point, accuracy, seed) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The rows and notes of `check_jvp`."""
    f, rng = point.call(fn), np.random.default_rng(seed)
    u, w = random_like(point.floating, rng), random_like(point.floating, rng)
    try:
        value, _ = jax.jvp(f, (point.floating,), (u,))
    except Exception as error:  # any error of a user's rule
        return (verdict("forward mode", (), False, "", in_words(error)),), ()
    rows = values_agree(value, reference, point, accuracy)
    if not all(row.ok for row in rows):
        return tuple(rows), ()
    push = forward(f)
    by_reference = reference and point.call(reference)
    wide, why = in_float64_all_the_way(forward, f, by_reference, (point.floating, u))
    if reference is None and not wide:
        fault = without_reference(why)
        return (verdict("tangents", (), False, "", fault),), ()
    by_reference = by_reference and forward(by_reference)
    alone = reference is None and draws_other_numbers(f, point)
    judged = []
    for i, (name, leaf) in enumerate(zip(point.names, point.floating, strict=True)):
        tangents = {"dense": u[i]} | {
            f"a single 1 at {index}": single([leaf], 0, index)[0] for _, index in places([leaf], rng)
        }
        for kind, tangent in tangents.items():
            by = [tangent if k == i else np.zeros_like(other) for k, other in enumerate(u)]
            # A single 1 in float64, where it can be: one output may be saturated, and rounding leaves it few digits.
            with in_float64(wide and kind != "dense") as widened:
                at = widened((point.floating, by))
                row = _tangent_row(name, f, push, by_reference, *at, point.value, wide, not alone, accuracy or 0.0)
            if alone:
                row = also(row, IN_FLOAT64_ALONE)
            row = row._replace(shape=np.shape(leaf))
            if kind == "dense":
                judged.append(row)
            elif not row.ok and judged[-1].ok:
                judged[-1] = row._replace(fault=f"for {kind}: {row.fault}")
    more, about = behaviour("jvp", push, f, point, (u, w), judged, wide, accuracy)
    return (*judged, *rows, *more), about if wide else (*about, f"{why}: judged in the dtype of the arguments")


def _tangent_row(name, f, push, by_reference, floating, u, value, wide, compare, accuracy) -> Row:
    """A row for the tangent of one argument: the worst of the outputs, against the reference and differences."""
    got, program = as_arrays(push(floating, u)), as_one_program(push)
    with enable_x64(True):
        args64 = cast_to((floating, u), np.float64)
        got64 = as_arrays(program(*args64)) if wide else [np.asarray(g, np.float64) for g in got]
        want64 = None if by_reference is None else as_arrays(as_one_program(by_reference)(*args64))
    at, nearest = _along(f, args64), _nearest(*args64)
    terms = [terms_of(partial(at, j=j)) if wide else 0.0 for j in range(len(got))]
    rows = []
    for j, own in enumerate(got):
        eps, exact = eps_of(own.dtype), (want64 or got64)[j]
        own, own64 = (rounded_zero(a, exact, value[j], terms[j]) for a in (own, got64[j]))
        if np.isnan(own).any():
            rows.append(verdict(name, (), False, "", "it is NaN, which a derivative never is"))
        if want64 is None:
            if compare and error_in_eps(own, own64, eps) > eps**-0.5:
                fault = f"in {own.dtype} it is {relative(error_in_eps(own, own64, eps) * eps)} from itself in float64"
                rows.append(verdict(name, (), False, "", fault))
            continue
        want = rounded_zero(want64[j], exact, value[j], terms[j])
        with enable_x64(own.dtype == np.float64):
            narrow = np.asarray(as_one_program(by_reference)(floating, u)[j])
        noise = min(
            error_in_eps(rounded_zero(narrow, exact, value[j], terms[j]), want, eps), 1 / eps
        )  # at most 100% wrong
        allowed = max(roundings(eps), NOISE_ALLOWANCE * noise, accuracy / eps)
        allowed = allowed if wide else min(allowed, AT_MOST / eps)
        rows.append(leaf_row(name, own, want, allowed, eps, "reference"))
        if wide:
            double = max(FLOAT64_TOLERANCE, accuracy) / eps_of(np.float64)
            rows.append(leaf_row(name, own64, want, double, eps_of(np.float64), "reference in float64"))
        elif noise * eps > TOO_ROUGH:
            rows.append(verdict(name, (), False, "", unlike_itself(noise * eps, own.dtype)))
    if wide:
        rows += _by_slopes(name, at, nearest, got64, terms, max(DIFFERENCE_TOLERANCE, accuracy))
    worst = min(rows, key=lambda row: (row.ok, -row.error * (row.eps or 1.0)))
    rungs = ", ".join(dict.fromkeys(row.rungs for row in rows if row.rungs))
    return worst._replace(rungs=rungs)


def _along(f, args64):
    """`at(t, j)`: output `j`, with the arguments moved by `t` along the tangent, in float64."""
    (floating, u), program = args64, as_one_program(f)

    def at(t, j):
        with enable_x64(True):
            return np.asarray(program([leaf + t * by for leaf, by in zip(floating, u, strict=True)])[j])

    return at


def _nearest(floating, u) -> float:
    """The smallest step along the tangent that moves an entry by its own size."""
    entries, by = (np.concatenate([*map(np.ravel, leaves)]) for leaves in (floating, u))
    moves = (entries != 0) & (by != 0)
    return float(np.abs(entries[moves] / by[moves]).min(initial=np.inf)) if moves.any() else 1.0


def _by_slopes(name, at, nearest, got64, terms, accuracy) -> list[Row]:
    """A row for each output: the tangent against the difference along it, or at a kink between its two sides."""
    eps = eps_of(np.float64)
    rows = []
    for j, got in enumerate(got64):
        slope, noise, used = slopes_by(lambda t, size, j=j: at(t * size, j), nearest, got, accuracy, terms[j])
        here, size = at(0.0, j), max(np.abs(a).max(initial=0.0, where=np.isfinite(a)) for a in (slope, got))
        scale = max(terms[j], np.abs(here).max(initial=0.0))
        h, doubt = 1e-7 * max(1.0, scale) ** 0.5, ~(noise <= accuracy * size)  # near a kink: between the two sides
        sides = (here - at(-h, j)) / h, (at(h, j) - here) / h
        slack = 1e-5 * size + 8 * eps * scale / h
        low, high = np.minimum(*sides) - slack, np.maximum(*sides) + slack
        low, high = (np.where(used == 1, side, slope + sign * 10 * noise) for side, sign in ((low, -1), (high, 1)))
        finite = np.isfinite(low) & np.isfinite(high)
        low, high = np.where(finite, low, -np.inf), np.where(finite, high, np.inf)  # at the edge of the domain
        want = np.where(doubt, np.clip(got, low, high), slope)
        row = leaf_row(name, got, want, accuracy / eps, eps, "")
        said = {"between the sides of a kink": doubt & finite, "not judged: a step leaves the domain": doubt & ~finite}
        rungs = [f" ({where.sum()} {what})" for what, where in said.items() if where.any()]
        rows.append(row._replace(rungs=f"differences {relative(row.error * eps)}{''.join(rungs)}"))
    return rows
