"""Checks of single functions: any scalar function's gradient, an activation's slope, a loss's delta, two trees."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from funcnet.activations import Activation
from funcnet.losses import Loss
from funcnet.network import check_is_activation, check_is_loss
from funcnet.testing.differences import DIFFERENCE_TOLERANCE, central_difference, judge_by_differences
from funcnet.testing.kinks import find_kinks, slope_of
from funcnet.testing.ladder import judge
from funcnet.testing.report import Report, Row, leaf_row, name_of, nan_is_wrong, raise_if_wrong, structure_rows, verdict
from funcnet.testing.trees import (
    as_arrays,
    as_one_program,
    cast_to,
    enable_x64,
    eps_of,
    is_floating,
    leaf_names,
    whatever_the_numbers,
)


@whatever_the_numbers
def check_gradients(
    fn: Callable[..., Array],
    grad_fn: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    stopped: Sequence[str] = (),
    tolerance: float = 64.0,
    seed: int = 0,
) -> Report:
    """Check a hand-written gradient of any scalar function with respect to its first argument, a tree of arrays.

    At a kink every mixture of the gradients on its sides is correct. A function that JAX cannot differentiate, e.g. one
    in NumPy, is judged by its differences alone, to 1e-6, and the report says so. Both functions are called twice, and
    must return the same bits.

    Args:
      fn: `fn(*args) -> scalar`.
      grad_fn: `grad_fn(*args) -> tree` like `args[0]`.
      args: the point to check at. `args[0]` is a tree of floating arrays or numbers, the others are anything. Use dense
        inputs: if an input is always zero, a wrong gradient may be zero, too.
      stopped: names (as in the report) of leaves of `args[0]` that change the value, but have no gradient because of a
        `stop_gradient`: they are compared with `jax.grad`, not with differences.
      tolerance: in eps.
      seed: of the random directions.

    Returns:
      The report, with a row per leaf.

    Raises:
      ValueError: `args` is not a tuple, or has no floating leaves to differentiate; `fn` does not return a scalar; a
        name in `stopped` is not that of a leaf.

    >>> fn = lambda p: jnp.sum(jnp.sin(p["w"]))
    >>> check_gradients(fn, lambda p: {"w": jnp.cos(p["w"])}, ({"w": jnp.arange(4.0)},)).ok
    True
    >>> check_gradients(fn, lambda p: {"w": 1.0001 * jnp.cos(p["w"])}, ({"w": jnp.arange(4.0)},)).ok
    False
    """
    names = _check_call(fn, args, stopped)
    args = (jax.tree.map(_as_array, args[0]), *args[1:])
    try:
        reference = as_one_program(jax.grad(fn))
        reference(*args)
    except Exception as error:  # any error that a function raises under tracing; it may run without
        why = f"{type(error).__name__}: {str(error).splitlines()[0]}"[:200] if str(error) else type(error).__name__
        rows = judge_by_differences(fn, grad_fn, args, seed=seed, stopped=stopped, names=names)
        notes = (f"jax.grad cannot differentiate it ({why}): differences alone judge",)
    else:
        rows, notes = judge(fn, reference, grad_fn, args, tolerance=tolerance, seed=seed, stopped=stopped, names=names)
    rows = nan_is_wrong(rows, as_arrays(grad_fn(*args)))
    return Report(f"gradient of {name_of(fn)}", (*rows, *_run_again(fn, grad_fn, args)), notes)


def _as_array(leaf):
    """A Python number as a float32 array, so that it can be judged in float64, too; other leaves unchanged."""
    return np.asarray(leaf, np.float32) if type(leaf) is float else leaf


@whatever_the_numbers
def check_activation(activation: Activation, *, tolerance: float = 16.0) -> Report:
    """Check an activation's `deriv` against `jax.grad` of its `fn`, and that both are elementwise.

    On a grid from -30 to 30 in float32 and float64, by differences on [-4, 4], and at the kinks, which it finds itself:
    there a derivative between the two sides is correct. Error: `|d| / (eps max(1, |z|, |da/dz|))`.

    Args:
      activation: the `Activation`.
      tolerance: in eps.

    Returns:
      The report: a row for float32, float64, differences, kinks and shapes.

    >>> from funcnet import gelu
    >>> check_activation(gelu).ok
    True
    >>> check_activation(Activation("sine", jnp.sin, lambda z, a: jnp.sin(z))).ok
    False
    """
    check_is_activation("activation", activation)
    kinks = find_kinks(activation)
    slopes_at = jax.jit(lambda z: (activation.deriv(z, activation.fn(z)), slope_of(activation.fn, z)))
    grid = np.linspace(-30, 30, 1501)
    grid = grid[(np.abs(grid[:, None] - np.array([*kinks, np.inf])) > 1e-3).all(1)]
    rows = []
    for dtype in ("float32", "float64"):
        with enable_x64(dtype == "float64"):
            z = grid.astype(dtype)
            got, want = slopes_at(z)
            rows.append(_compare_slopes(dtype, z, got, want, tolerance))
    with enable_x64(True):
        z = grid[np.abs(grid) <= 4]
        fn = jax.jit(activation.fn)
        slope, noise = central_difference(lambda t: np.asarray(fn(z + t)))
        off = np.abs(np.asarray(slopes_at(z)[0]) - slope) / np.maximum(1, np.abs(slope))
        good = bool((off <= DIFFERENCE_TOLERANCE + 10 * noise).all())
        rungs = f"of fn in float64, {off.max():.0e}, good to {noise.max():.0e}"
        rows.append(verdict("differences", z.shape, good, rungs, f"worst at z = {z[off.argmax()]:.6g}"))
        for kink in kinks:
            left, right = slopes_at(np.array([kink - 1e-9, kink + 1e-9]))[1].tolist()
            at = [float(slopes_at(np.array([kink], dtype))[0][0]) for dtype in ("float64", "float32")]
            good = all(min(left, right) - 1e-6 <= got <= max(left, right) + 1e-6 for got in at)
            rungs = f"{at[0]:.6g}, in float32 {at[1]:.6g}, from the left {left:.6g}, from the right {right:.6g}"
            rows.append(verdict(f"kink at {kink:.6g}", (), good, rungs, "not between the two sides"))
    z = jnp.asarray(grid[:6], jnp.float32).reshape(2, 3)
    a = activation.fn(z)
    slopes = activation.deriv(z, a)
    good = a.shape == slopes.shape == z.shape and a.dtype == slopes.dtype == z.dtype
    good = good and bool(jnp.allclose(slopes[0], activation.deriv(z[0], a[0])))
    rungs = f"{z.shape} {z.dtype} to {a.shape} {a.dtype} and {slopes.shape} {slopes.dtype}"
    rows.append(verdict("elementwise", (), good, rungs, "shape or dtype changes, or entries depend on each other"))
    return Report(activation.name, tuple(rows))


@whatever_the_numbers
def check_loss(loss: Loss, *, K: int = 5, class_ids: bool = True, tolerance: float = 16.0, seed: int = 0) -> Report:
    """Check a loss's `delta` against `jax.grad` of its `fn`, for targets and class ids, in float32 and float64.

    Also by differences, and at points where losses may have kinks: equal outputs, outputs on a margin or equal to the
    targets; there each mixture of the sides is correct. It also checks that a sample's loss depends only on that
    sample, and that under jit a class id out of range gives a loss and delta of NaN.

    Args:
      loss: the `Loss`.
      K: the number of outputs.
      class_ids: whether the loss takes class ids.
      tolerance: in eps of the largest entry of the delta.
      seed: of the outputs and targets.

    Returns:
      The report, with a row for each check.

    >>> from funcnet import softmax_cross_entropy
    >>> check_loss(softmax_cross_entropy).ok
    True
    """
    check_is_loss(loss)
    rng = np.random.default_rng(seed)
    fn, delta, total = jax.jit(loss.fn), jax.jit(loss.delta), jax.jit(lambda out, y: loss.fn(out, y).sum())
    gradient = jax.jit(jax.grad(total))
    out = 2 * rng.normal(size=(50, K))
    targets = {"targets": rng.uniform(size=(50, K))} | ({"class ids": rng.integers(0, K, 50)} if class_ids else {})
    rows = []
    for (kind, y), dtype in itertools.product(targets.items(), ("float32", "float64")):
        with enable_x64(dtype == "float64"):
            args = jnp.asarray(out, dtype), jnp.asarray(y, dtype if kind == "targets" else "int32")
            judged, _ = judge(total, gradient, delta, args, tolerance=tolerance, seed=seed)
            rows += [row._replace(leaf=f"delta, {kind}, {dtype}") for row in judged]
            if dtype == "float32":  # `judge` also runs them in float64
                rows += _at_ties(total, gradient, delta, args, kind, tolerance, seed)
            value, alone = np.asarray(fn(*args)), np.asarray(fn(*(jax.device_put(np.asarray(a)[:1]) for a in args)))
            good = value.shape == (50,) and np.allclose(value[:1], alone)
            fault = "not one value per sample, or a value depends on other samples"
            rows.append(verdict(f"loss, {kind}, {dtype}", value.shape, good, "one value per sample", fault))
    if class_ids:
        bad = jnp.asarray(out[:2], jnp.float32), jnp.array([-1, K])
        good = bool(np.isnan(fn(*bad)).all() and np.isnan(delta(*bad)).all())
        rows.append(verdict("ids out of range", (), good, "NaN in loss and delta", "they count as other classes"))
    return Report(loss.name, tuple(rows))


@whatever_the_numbers
def assert_tree_close(a: Any, b: Any, eps_multiple: float = 16.0) -> None:
    """Assert that two trees have equal structure, shapes and dtypes, and equal values, floating ones up to some eps.

    Args:
      a: a tree of arrays.
      b: the expected tree.
      eps_multiple: the tolerance, in eps of the leaf's dtype times the largest entry of `b`'s leaf.

    Raises:
      AssertionError: they differ; the message is a table, with one row per leaf.

    >>> assert_tree_close({"w": jnp.ones(3)}, {"w": jnp.ones(3)})
    """
    __tracebackhide__ = True
    rows = structure_rows(a, b)
    if not rows:
        leaves = zip(leaf_names(b), jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        rows = tuple(_closeness(name, got, want, eps_multiple) for name, got, want in leaves)
    raise_if_wrong(Report("trees", rows))


def _closeness(name, got, want, eps_multiple) -> Row:
    """A row for two leaves: equal up to rounding, or exactly if they are not floating: integers, booleans, keys."""
    if is_floating(want):
        eps = eps_of(jnp.result_type(want))
        return leaf_row(name, got, np.asarray(want), eps_multiple, eps, f"allowed {eps_multiple:g} eps")
    same = bool(jnp.all(jnp.asarray(got == want)))
    return verdict(name, jnp.shape(want), same, "equal", f"{got}, expected {want}"[:300])


def _at_ties(total, gradient, delta, args, kind, tolerance, seed) -> list[Row]:
    """A row for outputs at which losses have kinks, or none if the gradient is not finite there; same shapes."""
    out, y = args
    ties = [jnp.full_like(out[:8], value) for value in (0, 1, -1)]
    ties += [] if jnp.issubdtype(y.dtype, jnp.integer) else [y[24:32]]
    tied = out.at[: 8 * len(ties)].set(jnp.concatenate(ties))
    if not np.isfinite(gradient(tied, y)).all():
        return []
    rows, _ = judge(total, gradient, delta, (tied, y), tolerance=tolerance, seed=seed)
    return [row._replace(leaf=f"at ties, {kind}") for row in rows]


def _check_call(fn, args, stopped) -> list[str]:
    """Check the arguments of `check_gradients`, and return the names of the leaves of the first one."""
    if not isinstance(args, (tuple, list)) or not args:
        raise ValueError(f"args is {type(args).__name__}, expected a tuple of all arguments of the function, e.g. (p,)")
    names, leaves = leaf_names(args[0], "args[0]"), jax.tree.leaves(args[0])
    if not leaves:
        raise ValueError(
            f"args[0] is {args[0]!r}, which has no leaves, expected a tree of arrays to differentiate with respect to"
        )
    for name, leaf in zip(names, leaves, strict=True):
        dtype = getattr(leaf, "dtype", type(leaf))
        if not (isinstance(leaf, float) or (hasattr(leaf, "dtype") and jnp.issubdtype(dtype, jnp.floating))):
            remedy = "its real and imaginary parts as two leaves" if np.iscomplexobj(leaf) else "it as another argument"
            raise ValueError(
                f"{name} has dtype {getattr(dtype, '__name__', dtype)}, expected a floating one, since the "
                f"gradient is with respect to all of args[0]: convert it, or pass {remedy}"
            )
    if unknown := set(stopped) - set(names):
        raise ValueError(f"stopped has {', '.join(sorted(unknown))}, expected names of leaves: {', '.join(names)}")
    value = fn(*args)
    if jax.tree.structure(value) != jax.tree.structure(0) or jnp.shape(value) != ():
        shapes = jax.tree.map(jnp.shape, value)
        raise ValueError(f"{name_of(fn)} returns {shapes}, expected a scalar, of shape (): sum it, or take one value")
    return names


def _run_again(fn, grad_fn, args) -> tuple[Row, ...]:
    """A row if a second call of either function gives other bits, in the arguments' dtype or in float64."""

    def bits(args):
        return [leaf.tobytes() for leaf in as_arrays((fn(*args), grad_fn(*args)))]

    same = bits(args) == bits(args)
    with enable_x64(True), contextlib.suppress(Exception):  # another note says if it cannot run in float64
        args = cast_to(args, np.float64)
        same = same and bits(args) == bits(args)
    fault = "other bits: it is random, or depends on earlier calls"
    return () if same else (verdict("run again", (), False, "bit for bit", fault),)


def _compare_slopes(name, z, got, want, tolerance) -> Row:
    """A row for an elementwise derivative: each error relative to the entry, to z or to 1, whichever is largest."""
    z, got, want = (np.asarray(a, np.float64) for a in (z, got, want))
    eps = eps_of(name)
    errors = np.abs(got - want) / (eps * np.maximum(1, np.maximum(np.abs(z), np.abs(want))))
    errors = np.where(np.isnan(errors), np.inf, errors)
    i = int(errors.argmax())
    ok = bool(errors[i] <= tolerance)
    values = f"at z = {z[i]:.6g}: {got[i]:.8g}, expected {want[i]:.8g}"
    fault = f"{values}; {(errors > tolerance).mean():.2%} of the points are wrong"
    return Row(name, z.shape, float(errors[i]), ok, "jax.grad of fn", "" if ok else fault)
