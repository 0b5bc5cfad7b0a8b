"""Gradients you can trust: a hand-written gradient against a ladder of references, leaf by leaf, entry by entry.

    assert_backward(params, x, y, hidden=my_activation, loss=my_loss)       # in a pytest test
    check_gradients(fn, grad_fn, (params, x, y))                            # any scalar function of a tree
    python -m funcnet.testing                                               # all that ships, on this device

**The measure** of a leaf is `max|d| / (eps max|leaf|)`, with the eps of the leaf's dtype. An elementwise relative
tolerance rejects right gradients (where terms cancel, an entry is small and its error is not), and a tolerance on a
norm, or one that grows with the size, accepts wrong ones.

**The ladder.** Each row of a report says what it stands on:

1. `jax.grad` in the dtype of the arguments;
2. `jax.grad` in float64, with the hand-written gradient run in float64 too, also from a float32 process;
3. sixth-order central differences of the function itself in float64, which know nothing of autodiff, along each entry
   of a small leaf and along random directions of a large one;
4. the order of the Taylor remainder, `|f(p + h v) - f(p) - h g.v| ~ h^2`: 2.00 for a right gradient, whatever the
   scale, over five halvings of h.

**The tolerance** is 16 eps up to 4 layers and 64 eps up to 32 (a right float32 backward measures 1 to 3, and up to 13),
64 eps for a function that is no network. Where rounding costs more than that (terms cancel, a tanh saturates), it is
said: the distance of `jax.grad` itself from float64 is measured, and eight times it allowed. And the gradient run in
float64 must be right to one part in 10^9 of the leaf's largest entry: so no mistake hides behind float32's rounding.
Only where units are saturated is more allowed in float64, too: there the slopes in `jax.grad` are all rounding
(`1 - a^2` for tanh), and what an error of eps in every slope makes of the gradient is measured.

**Kinks.** Where a sample's `z` lies within its own rounding error of a kink, either one-sided derivative is right. Such
samples are found, counted, taken out of the batch, and judged one at a time between the gradients on the two sides.
"""

import functools
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from funcnet import activations, losses, mlp, validation
from funcnet.activations import Activation
from funcnet.initializers import standard_normal
from funcnet.kinks import JUDGED_AT_KINKS, judge_at_kinks, near_kinks, rows_of, slope_floors, slope_of
from funcnet.kinks import find_kinks as find_kinks
from funcnet.ladder import (
    DIFFERENCE_TOLERANCE,
    FLOAT64_TOLERANCE,
    ROUNDING_FLOOR,
    as_arrays,
    cast_to,
    central_difference,
    eps_of,
    error_in_eps,
    judge,
    leaf_names,
    leaf_row,
    structure_rows,
    verdict,
)
from funcnet.ladder import Row as Row  # as: these are the reader's, too
from funcnet.ladder import enable_x64 as enable_x64
from funcnet.losses import Loss
from funcnet.mlp import Params, backward, objective


class Report(NamedTuple):
    """What a check found. `str(report)` is a table; its truth value is `ok`."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every row is."""
        return all(row.ok for row in self.rows)

    def __bool__(self) -> bool:
        """A tuple would always be true, and `assert check_backward(...)` with it."""
        return self.ok

    @property
    def worst(self) -> float:
        """The largest error, in eps."""
        return max((row.error for row in self.rows), default=0.0)

    def __str__(self) -> str:
        """One line per leaf, then what is wrong with those that are, then the notes."""
        cells = [
            (row.leaf, str(row.shape), f"{row.error:.3g} eps", "ok" if row.ok else "WRONG", row.rungs)
            for row in self.rows
        ]
        widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
        align = (str.ljust, str.ljust, str.rjust, str.ljust, str.ljust)
        lines = [
            "  ".join(pad(cell, width) for pad, cell, width in zip(align, line, widths, strict=True)).rstrip()
            for line in cells
        ]
        faults = [f"{row.leaf}: {row.fault}" for row in self.rows if row.fault]
        return "\n".join([f"{self.title}: {'ok' if self.ok else 'WRONG'}", *lines, *faults, *self.notes])


# What a user calls.


def check_gradients(
    fn: Callable[..., Array],
    grad_fn: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    tolerance: float = 64.0,
    seed: int = 0,
) -> Report:
    """Check a hand-written gradient of any scalar function with respect to its first argument, a tree of arrays.

    Args:
      fn: `fn(*args) -> scalar`.
      grad_fn: `grad_fn(*args) -> tree` like `args[0]`.
      args: the point to check at; floating leaves of one dtype. Use dense inputs: where an input is always zero, a
        wrong gradient may be too.
      tolerance: in eps.
      seed: of the random directions.

    Returns:
      The report.

    >>> fn = lambda p: jnp.sum(jnp.sin(p["w"]))
    >>> check_gradients(fn, lambda p: {"w": jnp.cos(p["w"])}, ({"w": jnp.arange(4.0)},)).ok
    True
    >>> check_gradients(fn, lambda p: {"w": 1.0001 * jnp.cos(p["w"])}, ({"w": jnp.arange(4.0)},)).ok
    False
    """
    rows, notes = judge(fn, jax.grad(fn), grad_fn, args, tolerance=tolerance, seed=seed)
    return Report(f"gradient of {_name(fn)}", rows, notes)


def check_backward(
    params: Params,
    x: Any,
    y: Any,
    *,
    backward: Callable[..., Params] = backward,
    masks: Any = None,
    sample_weight: Any = None,
    seed: int = 0,
    **statics: Any,
) -> Report:
    """Check `backward` against `jax.grad(objective)` and the rest of the ladder, at one point.

    Beside the gradient: the same bits when run again, the same without jit, and the batch as the mean of its samples.

    Args:
      params: the network; in float64 too if that is enabled.
      x: `(..., n_0)`; dense inputs show more than MNIST's zeros.
      y: class ids or targets.
      backward: the function to check, in place of funcnet's own, with its signature.
      masks: as in `backward`.
      sample_weight: as in `backward`.
      seed: of the random directions.
      **statics: `hidden`, `output`, `loss`, `compute_dtype`, as in `backward`.

    Returns:
      The report, with a row per leaf.

    >>> params = mlp.init(jax.random.key(0), (4, 5, 3))
    >>> x, y = jax.random.normal(jax.random.key(1), (7, 4)), jnp.array([0, 1, 2, 0, 1, 2, 0])
    >>> check_backward(params, x, y, hidden=activations.tanh).ok
    True
    """
    args = _as_rows(params, x, y, masks, sample_weight)
    fn, reference = partial(_objective, **statics), partial(_jax_gradient, **statics)
    by_hand = _hand_written(backward, tuple(statics.items()))
    compute_dtype = statics.get("compute_dtype")
    settings = {"tolerance": _tolerance(len(params)), "seed": seed, "compute_dtype": compute_dtype}

    near = near_kinks(args, statics)
    at_kink = np.asarray(np.concatenate(near, 1).any(1))
    rows, notes = judge(fn, reference, by_hand, args, floors=slope_floors(args, statics), **settings)
    if at_kink.any():
        count = f"{at_kink.sum()} of {len(at_kink)} samples lie within rounding of a kink"
        if all(row.ok for row in rows):
            notes += (f"{count}; there it takes the side that jax.grad takes",)
        else:
            judged = "they" if at_kink.sum() <= JUDGED_AT_KINKS else f"the first {JUDGED_AT_KINKS} of them"
            rows, notes = (), (f"{count}; {judged} are judged one by one, between the gradients on either side",)
            if not at_kink.all():
                clear = rows_of(args, ~at_kink)
                rows, more = judge(fn, reference, by_hand, clear, floors=slope_floors(clear, statics), **settings)
                notes += more
            rows += judge_at_kinks(reference, by_hand, args, near, statics)
    if not at_kink.all():
        rows += _judge_behaviour(by_hand, rows_of(args, ~at_kink), compute_dtype)
    if not all(row.ok for row in rows):
        notes += _suspects(by_hand, args, statics)
    return Report(_name(backward), rows, notes)


def assert_backward(params: Params, x: Any, y: Any, **settings: Any) -> None:
    """`check_backward`, raising where it is not ok. Args as there.

    Raises:
      AssertionError: with the report as its message, and the path of a folder with the arguments (`case.npz`) and a
        script of five lines (`reproduce.py`) that runs the check on them again.

    >>> params = mlp.init(jax.random.key(0), (4, 5, 3))
    >>> assert_backward(params, jnp.ones((2, 4)), jnp.array([0, 2]))
    """
    __tracebackhide__ = True  # pytest then points at the caller
    report = check_backward(params, x, y, **settings)
    if not report.ok:
        raise AssertionError(f"{report}\nto reproduce: python {save_case(params, x, y, **settings)}")


def check_activation(activation: Activation, *, tolerance: float = 16.0) -> Report:
    """Check an activation's `deriv` against `jax.grad` of its `fn`, and that both are elementwise.

    On a grid from -30 to 30 in float32 and float64, by differences on [-4, 4], and at the kinks, which are found, not
    told: there a derivative between the two sides is right. Error: `|d| / (eps max(1, |z|, |da/dz|))`.

    Args:
      activation: the `Activation`.
      tolerance: in eps.

    Returns:
      The report: a row for float32, float64, differences, kinks and shapes.

    >>> check_activation(activations.gelu).ok
    True
    >>> check_activation(Activation("sine", jnp.sin, lambda z, a: jnp.sin(z))).ok
    False
    """
    kinks = find_kinks(activation)
    grid = np.linspace(-30, 30, 1501)
    grid = grid[(np.abs(grid[:, None] - np.array([*kinks, np.inf])) > 1e-3).all(1)]
    rows = []
    for dtype in ("float32", "float64"):
        with enable_x64(dtype == "float64"):
            z = jnp.asarray(grid, dtype)
            slopes = activation.deriv(z, activation.fn(z))
            rows.append(_compare_slopes(dtype, z, slopes, slope_of(activation.fn, z), tolerance))
    with enable_x64(True):
        z = jnp.asarray(grid[np.abs(grid) <= 4])
        slope, noise = central_difference(lambda t: np.asarray(activation.fn(z + t)))
        off = np.abs(np.asarray(activation.deriv(z, activation.fn(z))) - slope) / np.maximum(1, np.abs(slope))
        good = bool(off.max() <= DIFFERENCE_TOLERANCE + 10 * noise)
        rungs = f"of fn in float64, {off.max():.0e}, good to {noise:.0e}"
        rows.append(verdict("differences", z.shape, good, rungs, f"worst at z = {z[off.argmax()]:.6g}"))
        for kink in kinks:
            left, right = (float(slope_of(activation.fn, jnp.float64(kink + side * 1e-9))) for side in (-1, 1))
            got = float(activation.deriv(jnp.float64(kink), activation.fn(jnp.float64(kink))))
            good = min(left, right) - 1e-6 <= got <= max(left, right) + 1e-6
            rungs = f"{got:.6g}, from the left {left:.6g}, from the right {right:.6g}"
            rows.append(verdict(f"kink at {kink:.6g}", (), good, rungs, "not between the two sides"))
    z = jnp.asarray(grid[:6], jnp.float32).reshape(2, 3)
    a = activation.fn(z)
    slopes = activation.deriv(z, a)
    good = a.shape == slopes.shape == z.shape and a.dtype == slopes.dtype == z.dtype
    good = good and bool(jnp.allclose(slopes[0], activation.deriv(z[0], a[0])))
    rungs = f"{z.shape} {z.dtype} to {a.shape} {a.dtype} and {slopes.shape} {slopes.dtype}"
    rows.append(verdict("elementwise", (), good, rungs, "shape or dtype changes, or entries depend on each other"))
    return Report(activation.name, tuple(rows))


def check_loss(loss: Loss, *, K: int = 5, class_ids: bool = True, tolerance: float = 16.0, seed: int = 0) -> Report:
    """Check a loss's `delta` against `jax.grad` of its `fn`, for targets and class ids, in float32 and float64.

    Also by differences; that a sample's loss depends on that sample alone; and that under jit a class id out of range
    makes loss and delta NaN.

    Args:
      loss: the `Loss`.
      K: the number of outputs.
      class_ids: whether the loss takes class ids.
      tolerance: in eps of the largest entry of the delta.
      seed: of the outputs and targets.

    Returns:
      The report, a row for each.

    >>> check_loss(losses.softmax_cross_entropy).ok
    True
    """
    rng = np.random.default_rng(seed)
    out = 2 * rng.normal(size=(50, K))
    targets = {"targets": rng.uniform(size=(50, K))} | ({"class ids": rng.integers(0, K, 50)} if class_ids else {})
    rows = []
    for (kind, y), dtype in itertools.product(targets.items(), ("float32", "float64")):
        with enable_x64(dtype == "float64"):
            args = jnp.asarray(out, dtype), jnp.asarray(y, dtype if kind == "targets" else "int32")
            total = lambda out, y: loss.fn(out, y).sum()  # noqa: E731
            judged, _ = judge(total, jax.grad(total), loss.delta, args, tolerance=tolerance, seed=seed)
            rows += [row._replace(leaf=f"delta, {kind}, {dtype}") for row in judged]
            value, alone = loss.fn(*args), loss.fn(args[0][:1], args[1][:1])
            good = value.shape == (50,) and bool(jnp.allclose(value[:1], alone))
            fault = "not one value per sample, or it depends on the others"
            rows.append(verdict(f"loss, {kind}, {dtype}", value.shape, good, "a value per sample", fault))
    if class_ids:
        bad = jnp.asarray(out[:2], jnp.float32), jnp.array([-1, K])
        good = bool(jnp.isnan(loss.fn(*bad)).all() and jnp.isnan(loss.delta(*bad)).all())
        rows.append(verdict("ids out of range", (), good, "NaN in loss and delta", "they pass for other classes"))
    return Report(loss.name, tuple(rows))


def assert_tree_close(a: Any, b: Any, eps_multiple: float = 16.0) -> None:
    """Assert that two trees are equal in structure, shapes and dtypes, and to so many eps of each leaf's maximum.

    Args:
      a: a tree of arrays.
      b: the tree that it should be.
      eps_multiple: how many eps, of the leaf's dtype, of the largest entry of `b`'s leaf.

    Raises:
      AssertionError: with a table, one row per leaf.

    >>> assert_tree_close({"w": jnp.ones(3)}, {"w": jnp.ones(3)})
    """
    __tracebackhide__ = True
    rows = structure_rows(a, b)
    if not rows:
        rows = tuple(
            leaf_row(name, got, want, eps_multiple, eps_of(want.dtype), f"allowed {eps_multiple:g} eps")
            for name, got, want in zip(leaf_names(b), as_arrays(a), as_arrays(b), strict=True)
        )
    report = Report("trees", rows)
    if not report.ok:
        raise AssertionError(str(report))


def save_case(params: Params, x: Any, y: Any, *, masks: Any = None, sample_weight: Any = None, **settings: Any) -> Path:
    """Write a call of `check_backward` to a new folder: the arrays as `case.npz`, and `reproduce.py`, five lines.

    Args:
      params: as in `check_backward`.
      x: as in `check_backward`.
      y: as in `check_backward`.
      masks: as in `check_backward`.
      sample_weight: as in `check_backward`.
      **settings: the rest of them. What has no shipped name (a function, an `Activation` of your own) is left for you
        to fill in.

    Returns:
      The script.
    """
    folder = Path(tempfile.mkdtemp(prefix="funcnet-"))
    arrays = {f"params_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(params))} | {"x": x, "y": y}
    arrays |= {f"mask_{l}": mask for l, mask in enumerate(masks or ()) if mask is not None}
    arrays |= {} if sample_weight is None else {"sample_weight": sample_weight}
    # npz knows no bfloat16: it is kept as float32, exactly, and converted back.
    arrays = {name: np.asarray(a) for name, a in arrays.items()}
    bfloat16 = [name for name, a in arrays.items() if a.dtype == jnp.bfloat16]
    arrays |= {name: arrays[name].astype(np.float32) for name in bfloat16}
    np.savez(folder / "case.npz", allow_pickle=False, **arrays)

    x64 = any(a.dtype == np.float64 for a in arrays.values())
    keywords = "".join(f", {name}={_source(value)}" for name, value in settings.items())
    keywords += "" if sample_weight is None else ', sample_weight=case["sample_weight"]'
    if masks is not None:
        keywords += f', masks=[case.get(f"mask_{{l}}") for l in range({len(params)})]'
    (folder / "reproduce.py").write_text(
        "import jax, jax.numpy as jnp, numpy as np; from funcnet import activations, losses, testing; "
        f"jax.config.update('jax_enable_x64', {x64})\n"
        f"case = dict(np.load({str(folder / 'case.npz')!r}))\n"
        f"case |= {{name: jnp.asarray(case[name], jnp.bfloat16) for name in {bfloat16}}}\n"
        f'params = [(case[f"params_{{2 * l}}"], case[f"params_{{2 * l + 1}}"]) for l in range({len(params)})]\n'
        f'print(testing.check_backward(params, case["x"], case["y"]{keywords}))\n'
    )
    return folder / "reproduce.py"


def _source(value) -> str:
    """A setting as it is written in Python: shipped activations and losses by name, others left open."""
    if isinstance(value, (Activation, Loss)):
        module = "activations" if isinstance(value, Activation) else "losses"
        known = value.name in {shipped.name for shipped in sys.modules[f"funcnet.{module}"].SHIPPED}
        return f"{module}.from_name({value.name!r})" if known or value.name.startswith("leaky_relu(") else "..."
    if isinstance(value, tuple):
        return f"({', '.join(map(_source, value))},)"
    if callable(value) and not isinstance(value, type):
        return "..."
    return repr(np.dtype(value).name) if isinstance(value, (type, np.dtype)) else repr(value)


# How a gradient behaves.


def _judge_behaviour(by_hand, args, compute_dtype) -> tuple[Row, ...]:
    """The same bits again; and, in float64, the same without jit, and the batch as the mean of its samples."""
    first, again = as_arrays(by_hand(*args)), as_arrays(by_hand(*args))
    same = all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
    rows = [verdict("run again", (), same, "bit for bit", "other bits")]
    if compute_dtype is not None:
        return tuple(rows)
    with enable_x64(True):
        params, x, y, masks, w = cast_to(args, np.float64)
        batch = by_hand(params, x, y, masks, w)
        with jax.disable_jit():
            rows.append(_worst_row("without jit", by_hand(params, x, y, masks, w), batch))
        samples = _of_samples(by_hand, params, x, y, masks)
        share = np.full(len(x), 1 / len(x)) if w is None else np.asarray(w / w.sum())
        mean = [np.tensordot(share, g, 1) for g in as_arrays(samples)]
        rows.append(_worst_row("mean of samples", mean, batch))
        loop = [by_hand(params, *jax.tree.map(lambda a, i=i: a[i], (x, y, masks)), None) for i in range(min(len(x), 4))]
        stacked = [np.stack(leaves) for leaves in zip(*map(as_arrays, loop), strict=True)]
        rows.append(_worst_row("vmap and loop", [g[:4] for g in as_arrays(samples)], stacked))
    return tuple(rows)


@partial(jax.jit, static_argnums=0)
def _of_samples(by_hand, params, x, y, masks):
    return jax.vmap(by_hand, (None, 0, 0, 0, None))(params, x, y, masks, None)


def _worst_row(name, got, want) -> Row:
    """A row for two gradients in float64, leaf by leaf; a leaf that is rounding beside the others cannot differ."""
    got, want, eps = as_arrays(got), as_arrays(want), eps_of(np.float64)
    floor = ROUNDING_FLOOR * eps * max(np.abs(leaf).max(initial=0.0) for leaf in want)
    pairs = [pair for pair in zip(got, want, strict=True) if not np.abs(pair[0] - pair[1]).max(initial=0.0) <= floor]
    error = max((error_in_eps(g, w, eps) for g, w in pairs), default=0.0)
    ok = error <= FLOAT64_TOLERANCE / eps
    return Row(name, (), error, ok, f"in float64, to {FLOAT64_TOLERANCE:g}", "" if ok else "they differ")


# Known mistakes.


def _suspects(by_hand, args, statics) -> tuple[str, ...]:
    """Known mistakes, made on purpose: which of them gives the same wrong gradient?"""
    params, _, y, masks, w = args

    def without_slope(f):
        return Activation(f.name, f.fn, lambda z, a: jnp.ones_like(z))

    hidden, output = statics.get("hidden", activations.relu), statics.get("output", activations.identity)
    flat = without_slope(hidden) if isinstance(hidden, Activation) else tuple(map(without_slope, hidden))
    mistakes = {
        "the derivative of the hidden activation is missing": ({"hidden": flat}, {}),
        "the derivative of the output activation is missing": ({"output": without_slope(output)}, {}),
        "the masks are forgotten": ({}, {"masks": None}),
        "the sample weights are forgotten": ({}, {"w": None}),
    }
    if jnp.issubdtype(jnp.asarray(y).dtype, jnp.integer):
        K = params[-1][0].shape[1]
        mistakes |= {f"the class ids are {by:+d} off": ({}, {"y": (jnp.asarray(y) + by) % K}) for by in (1, -1)}
    got, right = as_arrays(by_hand(*args)), as_arrays(backward(*args[:3], masks=masks, sample_weight=w, **statics))
    notes = []
    for name, (changed_statics, changed) in mistakes.items():
        call = {"y": y, "masks": masks, "w": w} | changed
        made = as_arrays(
            backward(*args[:2], call["y"], masks=call["masks"], sample_weight=call["w"], **(statics | changed_statics))
        )
        if all(error_in_eps(m, r, 1e-5) <= 1 for m, r in zip(made, right, strict=True)):
            continue  # no mistake at all, here
        if all(g.shape == m.shape and error_in_eps(g, m, 1e-5) <= 1 for g, m in zip(got, made, strict=True)):
            notes.append(f"exactly what comes out where {name}")
    return tuple(notes)


# Calls, and what they are of.


def _as_rows(params, x, y, masks, sample_weight):
    """Arguments with one leading axis: what a sample is must be plain."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    validation.check_params(params)
    validation.check_input(params, x)
    n = x.shape[:-1]
    mlp.targets_and_shares(y, jnp.zeros((*n, params[-1][0].shape[1])), losses.softmax_cross_entropy, sample_weight)
    y = y.reshape(-1, *y.shape[len(n) :])
    masks = (
        masks if masks is None else tuple(m if m is None else jnp.asarray(m).reshape(-1, m.shape[-1]) for m in masks)
    )
    return (
        params,
        x.reshape(-1, x.shape[-1]),
        y,
        masks,
        None if sample_weight is None else jnp.asarray(sample_weight).reshape(-1),
    )


def _objective(params, x, y, masks, sample_weight, **statics):
    return objective(params, x, y, masks=masks, sample_weight=sample_weight, **statics)


_jax_gradient = partial(jax.jit, static_argnames=("hidden", "output", "loss", "compute_dtype"))(jax.grad(_objective))


@functools.lru_cache(64)
def _hand_written(backward, statics):
    """`by_hand(params, x, y, masks, sample_weight)`, one and the same function for the same settings."""

    def by_hand(params, x, y, masks, sample_weight):
        arrays = {"masks": masks, "sample_weight": sample_weight}
        given = {name: value for name, value in arrays.items() if value is not None}
        return backward(params, x, y, **given, **dict(statics))

    return by_hand


def _compare_slopes(name, z, got, want, tolerance) -> Row:
    """A row for an elementwise derivative: each entry by its own size, or that of z, or 1."""
    z, got, want = (np.asarray(a, np.float64) for a in (z, got, want))
    eps = eps_of(name)
    errors = np.abs(got - want) / (eps * np.maximum(1, np.maximum(np.abs(z), np.abs(want))))
    errors = np.where(np.isnan(errors), np.inf, errors)
    i = int(errors.argmax())
    ok = bool(errors[i] <= tolerance)
    values = f"at z = {z[i]:.6g}: {got[i]:.8g}, expected {want[i]:.8g}"
    fault = f"{values}; {(errors > tolerance).mean():.2%} of the points are wrong"
    return Row(name, z.shape, float(errors[i]), ok, "jax.grad of fn", "" if ok else fault)


def _tolerance(L: int) -> float:
    return 16.0 if L <= 4 else 64.0 if L <= 32 else 2.0 * L


def _name(fn) -> str:
    return getattr(fn, "__name__", None) or _name(getattr(fn, "func", type(fn)))


# python -m funcnet.testing


TRANSFORMS = ("jit", "vmap", "scan", "jvp")


def matrix(
    *, sizes: tuple[int, ...] = (6, 9, 8, 4), samples: int = 16, seed: int = 0
) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    """The shipped functions, each under each transformation: `backward` against `jax.grad`, in eps.

    Yields:
      `(activation, loss, dtype, {transform: worst error in eps})`, cell by cell.
    """
    for dtype, f, loss in itertools.product((jnp.float32, jnp.float64), activations.SHIPPED, losses.SHIPPED):
        with enable_x64(dtype == jnp.float64), jax.default_matmul_precision("highest"):
            keys = jax.random.split(jax.random.key(seed), 4)
            params = mlp.init(keys[0], sizes, biases=standard_normal, dtype=dtype)
            x = jax.random.normal(keys[1], (samples, sizes[0]), dtype)
            y = jax.random.randint(keys[2], (samples,), 0, sizes[-1])
            w = jax.random.uniform(keys[3], (samples,), dtype, 0.1, 1.0)
            statics = {"hidden": f, "loss": loss}
            both = [
                jax.jit(partial(_transformed, partial(gradient, **statics)))(params, x, y, w)
                for gradient in (backward, jax.grad(objective))
            ]
            cells = {
                name: max(map(error_in_eps, as_arrays(got), as_arrays(want), itertools.repeat(eps_of(dtype))))
                for name, got, want in zip(TRANSFORMS, *both, strict=True)
            }
        yield f.name, loss.name, jnp.dtype(dtype).name, cells


def _transformed(gradient, params, x, y, w):
    """A gradient under each of the `TRANSFORMS`."""
    tangent = jax.tree.map(jnp.cos, params)
    return (
        gradient(params, x, y, sample_weight=w),
        jax.vmap(gradient, (None, 0, 0))(params, x, y),
        jax.lax.scan(lambda carry, xy: (carry, gradient(params, *xy)), 0, (x, y))[1],
        jax.jvp(lambda params: gradient(params, x, y, sample_weight=w), (params,), (tangent,))[1],
    )


def main() -> int:
    """Print the whole matrix; 1 if a cell is over 16 eps."""
    say = print
    say(f"backward against jax.grad: max|d| / (eps max|leaf|), the worst leaf, on {jax.devices()[0].device_kind}")
    header = [f"{name} {dtype}" for dtype in ("float32", "float64") for name in TRANSFORMS]
    say(f"{'activation':18}{'loss':24}{''.join(f'{column:>14}' for column in header)}")
    cells = {}
    for f, loss, dtype, row in matrix():
        cells.setdefault((f, loss), {}).update({f"{name} {dtype}": error for name, error in row.items()})
    for (f, loss), row in cells.items():
        say(f"{f:18}{loss:24}{''.join(f'{row[column]:14.2f}' for column in header)}")
    worst = max(error for row in cells.values() for error in row.values())
    say(f"worst: {worst:.2f} eps")
    return int(not worst <= 16)


if __name__ == "__main__":
    sys.exit(main())
