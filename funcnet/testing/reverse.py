"""Reverse mode: a rule as the gradient of the number `<v, f>`, judged by the ladder or by differences alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.testing.behaviour import behaviour
from funcnet.testing.derivatives import (
    draws_other_numbers,
    in_float64,
    in_float64_all_the_way,
    in_words,
    places,
    random_like,
    reverse,
    roundings,
    single,
    values_agree,
    without_reference,
)
from funcnet.testing.differences import DIFFERENCE_TOLERANCE, jacobian, judge_by_differences
from funcnet.testing.ladder import FLOAT64_TOLERANCE, judge
from funcnet.testing.point import Point
from funcnet.testing.report import Row, nan_is_wrong, verdict
from funcnet.testing.suspects import suspects
from funcnet.testing.trees import as_arrays, as_one_program, cast_like, cast_to, enable_x64, eps_of, is_floating


def check_reverse(fn, reference, point, stopped, accuracy, seed) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The rows and notes of `check_vjp`."""
    f, rng = point.call(fn), np.random.default_rng(seed)
    v, w = random_like(point.value, rng), random_like(point.value, rng)
    try:
        value, pullback = jax.vjp(f, point.floating)
        pullback(cast_like(v, value))
    except Exception as error:  # any error of a user's rule
        return (verdict("backward pass", (), False, "", in_words(error)),), ()
    rows = values_agree(value, reference, point, accuracy)
    if not all(row.ok for row in rows):
        return tuple(rows), ()
    pull = reverse(f)  # one function, so that its programs are compiled once
    judge_with = _Reverse.of(f, pull, reference and point.call(reference), point, v, stopped, accuracy, seed)
    dense, notes = judge_with.rows(v)
    dense = nan_is_wrong(dense, as_arrays(pull(point.floating, v)))
    rows = [*dense, *rows]
    if all(row.ok for row in dense):
        rows += judge_with.sparse(rng)
    elif judge_with.wide or reference is not None:
        notes += suspects(point, pull, judge_with.expected, v)
    more, about = behaviour("vjp", pull, f, point, (v, w), dense, judge_with.wide, accuracy)
    return (*rows, *more), (*notes, *about)


class _Reverse(NamedTuple):
    """The references of a reverse rule, for any cotangent; each of its programs is compiled once."""

    point: Point
    by_rule: Callable[..., Any]  # (floating, v) -> J^T v
    by_reference: Callable[..., Any] | None
    weighted: Callable[..., Any]  # (floating, v) -> <v, f>, of what differences are taken of
    wide: bool  # whether all of it computes in float64, if the arguments are
    why: str  # and why not
    jacobian: Callable[[int], np.ndarray | None]
    accuracy: float
    in_float64_alone: bool
    settings: dict[str, Any]

    @classmethod
    def of(cls, f, pull, reference, point, v, stopped, accuracy, seed) -> _Reverse:
        wide, why = in_float64_all_the_way(reverse, f, reference, (point.floating, v))
        with enable_x64(True):
            floating64 = cast_to(point.floating, np.float64)
        return cls(
            point, as_one_program(pull), reference and as_one_program(reverse(reference)),
            _weighted(f if wide or reference is None else reference), wide, why,
            functools.cache(partial(jacobian, f, floating64)), accuracy or 0.0,
            reference is None and wide and draws_other_numbers(f, point),
            {"seed": seed, "stopped": stopped, "names": point.names},
        )  # fmt: skip

    def rows(self, v) -> tuple[tuple[Row, ...], tuple[str, ...]]:
        """A row for each floating argument."""
        args, accuracy = (self.point.floating, v), self.accuracy
        if self.by_reference is None and not self.wide:
            fault = without_reference(self.why)
            named = zip(self.point.names, self.point.floating, strict=True)
            return tuple(verdict(name, np.shape(leaf), False, "", fault) for name, leaf in named), ()
        if self.by_reference is None:
            accuracy = max(DIFFERENCE_TOLERANCE, accuracy)
            settings = self.settings | {"accuracy": accuracy, "in_float64_alone": self.in_float64_alone}
            return judge_by_differences(self.weighted, self.by_rule, args, **settings), ()
        eps = [eps_of(jnp.result_type(leaf)) for leaf in self.point.floating]
        rows, notes = judge(
            self.weighted, self.by_reference, self.by_rule, args,
            tolerance=[max(roundings(e), accuracy / e) for e in eps], in_float64=max(FLOAT64_TOLERANCE, accuracy),
            narrow=not self.wide, called="reference", **self.settings,
        )  # fmt: skip
        return rows, notes if self.wide else (*notes, f"{self.why}: judged in the dtype of the arguments")

    def sparse(self, rng) -> list[Row]:
        """A row for cotangents with a single 1: in a sum over all outputs, an error in a few may be small.

        In float64 where it can be: one output may be saturated, and rounding leaves it few digits.
        """
        tried, point = places(self.point.value, rng), self.point
        with in_float64(self.wide) as widened:
            exact = self._replace(point=point._replace(floating=widened(point.floating)))
            for j, index in tried:
                rows, _ = exact.rows(widened(single(point.value, j, index)))
                if wrong := [row for row in rows if not row.ok]:
                    fault = f"for output {j} at {index}: {wrong[0].leaf}: {wrong[0].fault}"
                    return [verdict("cotangents of one 1", (), False, f"{len(tried)} of them", fault)]
        return [verdict("cotangents of one 1", (), True, f"{len(tried)} of them", "")] if tried else []

    def expected(self, v) -> list[np.ndarray]:
        """The correct gradients in float64; NaN where there are too many entries for differences."""
        with enable_x64(True):
            floating, v = cast_to((self.point.floating, v), np.float64)
            if self.by_reference is not None:
                return as_arrays(self.by_reference(floating, v))
        flat = np.concatenate([np.ravel(part) for part in v])
        slopes = [self.jacobian(i) for i in range(len(floating))]
        return [
            np.full(np.shape(leaf), np.nan) if J is None else (J @ flat).reshape(np.shape(leaf))
            for leaf, J in zip(floating, slopes, strict=True)
        ]


def _weighted(f):
    """`(floating, v) -> <v, f>`, of which the reverse rule is the gradient."""
    return lambda floating, v: sum(
        jnp.sum(part * leaf.astype(part.dtype)) for part, leaf in zip(v, f(floating), strict=True)
    )


def gradient_of(point, seed, fn):
    """The reverse rule of `fn` for one cotangent, as a function of the same arguments."""
    v = random_like(point.value, np.random.default_rng(seed))

    def gradient(*args):
        floating = [leaf for leaf in jax.tree.leaves(args) if is_floating(leaf)]
        return reverse(point.call(fn))(floating, v)

    return gradient
