"""Checks of the derivative rules of any JAX function: `custom_vjp`, `custom_jvp`, kernels, implicit solvers.

A reverse rule is judged as the gradient of the number `<v, fn(args)>` for a cotangent `v`: by the same ladder as a
network's. Without a reference, the differences of the function judge alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.testing.behaviour import behaviour
from funcnet.testing.differences import DIFFERENCE_TOLERANCE, central_difference, jacobian, judge_by_differences
from funcnet.testing.ladder import FLOAT64_TOLERANCE, NOISE_ALLOWANCE, judge
from funcnet.testing.point import Point
from funcnet.testing.report import (
    Report,
    Row,
    error_in_eps,
    leaf_row,
    name_of,
    nan_is_wrong,
    relative,
    structure_rows,
    verdict,
)  # fmt: skip
from funcnet.testing.suspects import suspects
from funcnet.testing.trees import (
    as_arrays,
    as_one_program,
    cast_like,
    cast_to,
    enable_x64,
    eps_of,
    is_floating,
    narrowest,
    whatever_the_numbers,
)  # fmt: skip

SPARSE = 4  # cotangents, or tangents of an argument, with a single 1
ROUNDINGS, IN_HALF = 64.0, 4.0  # eps that are allowed in any case; fewer where an eps is 0.1% or 1%


@whatever_the_numbers
def check_vjp(
    fn: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    order: int = 1,
    stopped: Sequence[str] = (),
    accuracy: float | None = None,
    seed: int = 0,
) -> Report:
    """Check the reverse-mode derivative of a JAX function, with a rule of its own or not.

    `J^T v` for a dense random cotangent `v`, and for cotangents with a single 1. It is compared with `jax.vjp` of the
    reference, in the dtype of the arguments and in float64, and with differences. The rest holds for every rule: the
    forward pass gives the value of the function, the result is linear in `v`, the same bits in each call, and the same
    under `jit`, `vmap` and `jax.checkpoint`; and `<v, J u> = <J^T v, u>`, if the function has a forward mode.

    Args:
      fn: a function of trees of arrays to a tree of arrays. Bind static arguments with `functools.partial`.
      *args: where to check. The floating arrays are checked, one row each; integers, booleans, keys and `None` are only
        passed on. Use dense inputs: where an input is zero, a wrong gradient may be zero, too.
      reference: the same function in plain JAX, without the rule. It is needed if `fn` computes in float32 or less
        inside, as kernels do: differences need float64. What rounding may cost is then measured from the reference.
      order: 2 also checks the derivative of the derivative.
      stopped: names of arguments (as in the report) that change the value, but have no gradient on purpose.
      accuracy: how accurate `fn` is by itself, e.g. 1e-6 for an iterative solver, relative to the largest entry.
      seed: of the cotangents and directions.

    Returns:
      The report, with a row for each floating argument, and for each property.

    Raises:
      TypeError: `fn` or `reference` is not a function.
      ValueError: no argument is floating, an argument is not an array, the value has no floating leaves, is not finite,
        or differs in a second call; a name in `stopped` is not that of an argument.

    >>> @jax.custom_vjp
    ... def scale(x, w):
    ...     return x * w
    >>> scale.defvjp(lambda x, w: (x * w, (x, w)), lambda kept, v: (v * kept[1], v * kept[0]))
    >>> x, w = jnp.arange(1.0, 4.0), jnp.array([0.5, 2.0, 3.0])
    >>> check_vjp(scale, x, w).ok
    True
    >>> scale.defvjp(lambda x, w: (x * w, (x, w)), lambda kept, v: (v * kept[1], v))
    >>> print(str(check_vjp(scale, x, w)).splitlines()[-1])
    args[1]: exactly the expected value divided by args[0]
    """
    point = Point.of(fn, reference, args, stopped)
    rows, notes = _check_reverse(fn, reference, point, stopped, accuracy, seed)
    if order > 1 and all(row.ok for row in rows):
        settings = {"order": order - 1, "stopped": stopped, "accuracy": accuracy, "seed": seed}
        gradient_of = partial(_gradient_of, point, seed)
        more = check_vjp(gradient_of(fn), *args, reference=reference and gradient_of(reference), **settings)
        rows += tuple(row._replace(leaf=f"second order, {row.leaf}") for row in more.rows)
        notes += more.notes
    return Report(f"vjp of {name_of(fn)}", rows, notes)


def assert_vjp(fn: Callable[..., Any], *args: Any, **settings: Any) -> None:
    """Raise an error if `check_vjp` is not ok. Args as there.

    Raises:
      AssertionError: its message is the report.

    >>> assert_vjp(jnp.sin, jnp.arange(3.0))
    """
    __tracebackhide__ = True
    report = check_vjp(fn, *args, **settings)
    if not report.ok:
        raise AssertionError(str(report))


@whatever_the_numbers
def check_jvp(
    fn: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    accuracy: float | None = None,
    seed: int = 0,
) -> Report:
    """Check the forward-mode derivative of a JAX function, with a rule of its own or not.

    `J u` for tangents `u` of one argument at a time, dense ones and some with a single 1. Compared and judged as in
    `check_vjp`.

    Args:
      fn: as in `check_vjp`.
      *args: as in `check_vjp`.
      reference: as in `check_vjp`.
      accuracy: as in `check_vjp`.
      seed: of the tangents.

    Returns:
      The report, with a row for each floating argument, and for each property.

    Raises:
      TypeError: as in `check_vjp`.
      ValueError: as in `check_vjp`.

    >>> check_jvp(jnp.sin, jnp.arange(3.0)).ok
    True
    """
    point = Point.of(fn, reference, args, ())
    return Report(f"jvp of {name_of(fn)}", *_check_forward(fn, reference, point, accuracy, seed))


def assert_jvp(fn: Callable[..., Any], *args: Any, **settings: Any) -> None:
    """Raise an error if `check_jvp` is not ok. Args as there.

    Raises:
      AssertionError: its message is the report.

    >>> assert_jvp(jnp.sin, jnp.arange(3.0))
    """
    __tracebackhide__ = True
    report = check_jvp(fn, *args, **settings)
    if not report.ok:
        raise AssertionError(str(report))


def _check_reverse(fn, reference, point, stopped, accuracy, seed) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    f, rng = point.call(fn), np.random.default_rng(seed)
    v, w = _random_like(point.value, rng), _random_like(point.value, rng)
    try:
        value, pullback = jax.vjp(f, point.floating)
        pullback(cast_like(v, value))
    except Exception as error:  # any error of a user's rule
        return (verdict("backward pass", (), False, "", _in_words(error)),), ()
    rows = _values_agree(value, reference, point)
    if not all(row.ok for row in rows):
        return tuple(rows), ()
    judge_with = _Reverse.of(f, reference and point.call(reference), point, v, stopped, accuracy, seed)
    dense, notes = judge_with.rows(v)
    dense = nan_is_wrong(dense, as_arrays(_reverse(f)(point.floating, v)))
    rows = [*dense, *rows]
    if all(row.ok for row in dense):
        rows += judge_with.sparse(rng)
    else:
        notes += suspects(point, _reverse(f), judge_with.expected, v)
    more, about = behaviour("vjp", _reverse(f), f, point.floating, (v, w), dense, judge_with.wide, accuracy)
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
    settings: dict[str, Any]

    @classmethod
    def of(cls, f, reference, point, v, stopped, accuracy, seed) -> _Reverse:
        wide, why = _in_float64_all_the_way(_reverse, f, reference, (point.floating, v))
        with enable_x64(True):
            floating64 = cast_to(point.floating, np.float64)
        return cls(
            point, as_one_program(_reverse(f)), reference and as_one_program(_reverse(reference)),
            _weighted(f if wide or reference is None else reference), wide, why,
            functools.cache(partial(jacobian, f, floating64)), accuracy or 0.0,
            {"seed": seed, "stopped": stopped, "names": point.names},
        )  # fmt: skip

    def rows(self, v, *, rounding=True) -> tuple[tuple[Row, ...], tuple[str, ...]]:
        """A row for each floating argument."""
        args, accuracy = (self.point.floating, v), self.accuracy
        if self.by_reference is None and not self.wide:
            fault = _without_reference(self.why)
            named = zip(self.point.names, self.point.floating, strict=True)
            return tuple(verdict(name, np.shape(leaf), False, "", fault) for name, leaf in named), ()
        if self.by_reference is None:
            accuracy = max(DIFFERENCE_TOLERANCE, accuracy)
            settings = {"accuracy": accuracy, "rounding": rounding, **self.settings}
            return judge_by_differences(self.weighted, self.by_rule, args, **settings), ()
        eps = max(eps_of(jnp.result_type(leaf)) for leaf in self.point.floating)
        rows, notes = judge(
            self.weighted, self.by_reference, self.by_rule, args,
            tolerance=max(_roundings(eps), accuracy / eps), in_float64=max(FLOAT64_TOLERANCE, accuracy),
            narrow=not self.wide, called="reference", **self.settings,
        )  # fmt: skip
        return rows, notes if self.wide else (*notes, f"{self.why}: judged in the dtype of the arguments")

    def sparse(self, rng) -> list[Row]:
        """A row for cotangents with a single 1: in a sum over all outputs, an error in a few may be small."""
        places = _places(self.point.value, rng)
        for j, index in places:
            rows, _ = self.rows(_single(self.point.value, j, index), rounding=False)  # one output may be saturated
            if wrong := [row for row in rows if not row.ok]:
                fault = f"for output {j} at {index}: {wrong[0].leaf}: {wrong[0].fault}"
                return [verdict("cotangents of one 1", (), False, f"{len(places)} of them", fault)]
        return [verdict("cotangents of one 1", (), True, f"{len(places)} of them", "")] if places else []

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


def _check_forward(fn, reference, point, accuracy, seed) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    f, rng = point.call(fn), np.random.default_rng(seed)
    u, w = _random_like(point.floating, rng), _random_like(point.floating, rng)
    try:
        value, _ = jax.jvp(f, (point.floating,), (u,))
    except Exception as error:  # any error of a user's rule
        return (verdict("forward mode", (), False, "", _in_words(error)),), ()
    rows = _values_agree(value, reference, point)
    if not all(row.ok for row in rows):
        return tuple(rows), ()
    push = _forward(f)
    by_reference = reference and point.call(reference)
    wide, why = _in_float64_all_the_way(_forward, f, by_reference, (point.floating, u))
    if reference is None and not wide:
        fault = _without_reference(why)
        return (verdict("tangents", (), False, "", fault),), ()
    by_reference = by_reference and _forward(by_reference)
    judged = []
    for i, (name, leaf) in enumerate(zip(point.names, point.floating, strict=True)):
        tangents = {"dense": u[i]} | {
            f"a single 1 at {index}": _single([leaf], 0, index)[0] for _, index in _places([leaf], rng)
        }
        for kind, tangent in tangents.items():
            alone = [tangent if k == i else np.zeros_like(other) for k, other in enumerate(u)]
            row = _tangent_row(name, f, push, by_reference, point.floating, alone, wide, accuracy or 0.0)
            row = row._replace(shape=np.shape(leaf))
            if kind == "dense":
                judged.append(row)
            elif not row.ok and judged[-1].ok:
                judged[-1] = row._replace(fault=f"for {kind}: {row.fault}")
    more, about = behaviour("jvp", push, f, point.floating, (u, w), judged, wide, accuracy)
    return (*judged, *rows, *more), about if wide else (*about, f"{why}: judged in the dtype of the arguments")


def _tangent_row(name, f, push, by_reference, floating, u, wide, accuracy) -> Row:
    """A row for the tangent of one argument: the worst of the outputs, against the reference and differences."""
    got, program = as_arrays(push(floating, u)), as_one_program(push)
    with enable_x64(True):
        args64 = cast_to((floating, u), np.float64)
        got64 = as_arrays(program(*args64)) if wide else [np.asarray(g, np.float64) for g in got]
        want64 = None if by_reference is None else as_arrays(as_one_program(by_reference)(*args64))
    rows = []
    for j, own in enumerate(got):
        eps = eps_of(own.dtype)
        if want64 is not None:
            with enable_x64(own.dtype == np.float64):
                narrow = np.asarray(as_one_program(by_reference)(floating, u)[j])
            allowed = max(_roundings(eps), NOISE_ALLOWANCE * error_in_eps(narrow, want64[j], eps), accuracy / eps)
            rows.append(leaf_row(name, own, want64[j], allowed, eps, "reference"))
            if wide:
                double = max(FLOAT64_TOLERANCE, accuracy) / eps_of(np.float64)
                rows.append(leaf_row(name, got64[j], want64[j], double, eps_of(np.float64), "reference in float64"))
    if wide:
        rows += _by_slopes(name, f, got64, args64, max(DIFFERENCE_TOLERANCE, accuracy))
        for own, exact in zip(got, got64, strict=True):
            eps = eps_of(own.dtype)
            if want64 is None and error_in_eps(own, exact, eps) > eps**-0.5:
                fault = f"in {own.dtype} it is {relative(error_in_eps(own, exact, eps) * eps)} from itself in float64"
                rows.append(verdict(name, (), False, "", fault))
    worst = min(rows, key=lambda row: (row.ok, -row.error * (row.eps or 1.0)))
    rungs = ", ".join(dict.fromkeys(row.rungs for row in rows if row.rungs))
    return worst._replace(rungs=rungs)


def _by_slopes(name, f, got64, args64, accuracy) -> list[Row]:
    """A row for each output: the tangent against the difference along it, or at a kink between its two sides."""
    (floating, u), program, eps = args64, as_one_program(f), eps_of(np.float64)

    def at(t, j):
        with enable_x64(True):
            return np.asarray(program([leaf + t * by for leaf, by in zip(floating, u, strict=True)])[j])

    rows = []
    for j, got in enumerate(got64):
        slope, noise = central_difference(partial(at, j=j))
        size = max(np.abs(slope).max(initial=0.0), np.abs(got).max(initial=0.0), 1e-300)
        h, doubt = 1e-7, noise > accuracy * size  # near a kink: between the two sides
        sides = (at(0.0, j) - at(-h, j)) / h, (at(h, j) - at(0.0, j)) / h
        low, high = np.minimum(*sides) - 1e-5 * size, np.maximum(*sides) + 1e-5 * size
        want = np.where(doubt, np.clip(got, low, high), slope)
        row = leaf_row(name, got, want, accuracy / eps, eps, "")
        rungs = f"differences {relative(row.error * eps)}" + (
            f" ({doubt.sum()} between the sides of a kink)" if doubt.any() else ""
        )
        rows.append(row._replace(rungs=rungs))
    return rows


def _without_reference(why) -> str:
    return f"cannot be judged: {why}, and differences need float64: pass the same function in plain JAX as reference="


def _roundings(eps) -> float:
    return ROUNDINGS if eps < 1e-4 else IN_HALF


def _values_agree(value, reference, point) -> list[Row]:
    """A row for the value of the forward pass, and one for that of the reference."""
    rows = [*_compared("forward pass", value, point.value, "the value without differentiation")]
    if reference is not None:
        rows += _compared("value", point.value, point.call(reference)(point.floating), "reference")
    return rows


def _reverse(f):
    """`(floating, v) -> J^T v`."""

    def pull(floating, v):
        value, pullback = jax.vjp(f, floating)
        return pullback(cast_like(v, value))[0]

    return pull


def _forward(f):
    """`(floating, u) -> J u`."""
    return lambda floating, u: jax.jvp(f, (floating,), (u,))[1]


def _weighted(f):
    """`(floating, v) -> <v, f>`, of which the reverse rule is the gradient."""
    return lambda floating, v: sum(
        jnp.sum(part * leaf.astype(part.dtype)) for part, leaf in zip(v, f(floating), strict=True)
    )


def _gradient_of(point, seed, fn):
    """The reverse rule of `fn` for one cotangent, as a function of the same arguments."""
    v = _random_like(point.value, np.random.default_rng(seed))

    def gradient(*args):
        floating = [leaf for leaf in jax.tree.leaves(args) if is_floating(leaf)]
        return _reverse(point.call(fn))(floating, v)

    return gradient


def _in_float64_all_the_way(kind, f, reference, args) -> tuple[bool, str]:
    """Whether function and reference compute in float64 alone, if their arguments are float64, and if not, why."""
    wide, why = _computes_in_float64(kind(f), args)
    if reference is None:
        return wide, why
    exact, cause = _computes_in_float64(kind(reference), args)
    if "does not run" in cause:
        raise ValueError(f"reference: {cause}, expected plain JAX for arrays of any floating dtype")
    return wide and exact, why or f"the reference: {cause}"


def _computes_in_float64(operator, args) -> tuple[bool, str]:
    """Whether it does, if its arguments are float64, and if not, why."""
    with enable_x64(True):
        try:
            eps = narrowest(operator, *cast_to(args, np.float64))
        except Exception as error:  # any error of a user's function in another dtype
            return False, f"it does not run in float64 ({_in_words(error)})"
    wide = eps <= eps_of(np.float64)
    return wide, "" if wide else "it computes in less than float64 inside"


def _compared(name, got, want, with_what) -> tuple[Row, ...]:
    """A row if two values differ by more than rounding, or in structure."""
    if rows := structure_rows(list(got), list(want)):
        return tuple(row._replace(leaf=f"{name}, {row.leaf}") for row in rows)
    wrong = []
    for j, (g, w) in enumerate(zip(as_arrays(list(got)), as_arrays(list(want)), strict=True)):
        eps = eps_of(w.dtype)
        row = leaf_row(f"{name}, output {j}", g, w, max(64.0, eps**-0.5), eps, with_what)
        wrong += [] if row.ok else [row]
    return tuple(wrong) or (verdict(name, (), True, f"equals {with_what}", ""),)


def _random_like(leaves, rng) -> list[np.ndarray]:
    return [rng.normal(size=np.shape(leaf)).astype(jnp.result_type(leaf)) for leaf in leaves]


def _places(leaves, rng) -> list[tuple[int, tuple[int, ...]]]:
    """A few entries of a list of arrays; none if there is only one."""
    sizes = np.array([np.size(leaf) for leaf in leaves])
    if sizes.sum() <= 1:
        return []
    flat = rng.choice(sizes.sum(), min(SPARSE, sizes.sum()), replace=False)
    ends = sizes.cumsum()
    js = np.searchsorted(ends, flat, side="right")
    offsets = flat - (ends - sizes)[js]
    return [
        (int(j), tuple(map(int, np.unravel_index(k, np.shape(leaves[j]))))) for j, k in zip(js, offsets, strict=True)
    ]


def _single(leaves, j, index) -> list[np.ndarray]:
    """Zeros, and a single 1."""
    zeros = [np.zeros(np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    zeros[j][index] = 1
    return zeros


def _in_words(error) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    remedy = (
        "; check_gradients takes functions in NumPy" if isinstance(error, jax.errors.TracerArrayConversionError) else ""
    )
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:400] + remedy
