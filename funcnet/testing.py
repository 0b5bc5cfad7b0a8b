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

import contextlib
import functools
import itertools
import math
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
from funcnet.losses import Loss
from funcnet.mlp import Params, backward, objective

NOISE_ALLOWANCE = 8.0  # times jax.grad's own rounding error
DIFFERENCE_TOLERANCE = 1e-6  # relative; a sixth-order difference in float64 is good for 1e-9
FLOAT64_TOLERANCE = 1e-9  # relative to the largest entry: no mistake is as small, and rounding seldom as large
ROUNDING_FLOOR = 1024.0  # eps of the function's value: an ill-conditioned leaf smaller than that cannot be judged
KINK_DISTANCE = 64.0  # in eps of |a| |W| + |b|, the rounding error of z


class Row(NamedTuple):
    """The verdict on one leaf."""

    leaf: str  # layer 2 W
    shape: tuple[int, ...]
    error: float  # max|d| / (eps max|leaf|), on the rung where it is largest over its tolerance
    ok: bool
    rungs: str  # what the verdict stands on
    fault: str = ""  # where it is worst, how much is wrong, what it looks like


class Report(NamedTuple):
    """What a check found. `str(report)` is a table; as a truth value it is a tuple, so ask `report.ok`."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every row is."""
        return all(row.ok for row in self.rows)

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
    rows, notes = _judge(fn, jax.grad(fn), grad_fn, args, tolerance=tolerance, seed=seed)
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

    near = _near_kinks(args, statics)
    at_kink = np.asarray(np.concatenate(near, 1).any(1))
    rows, notes = _judge(fn, reference, by_hand, args, floors=_slope_floors(args, statics), **settings)
    if at_kink.any():
        count = f"{at_kink.sum()} of {len(at_kink)} samples lie within rounding of a kink"
        if all(row.ok for row in rows):
            notes += (f"{count}; there it takes the side that jax.grad takes",)
        else:
            rows, notes = (), (f"{count}; they are judged one by one, between the gradients on either side",)
            if not at_kink.all():
                clear = _rows_of(args, ~at_kink)
                rows, more = _judge(fn, reference, by_hand, clear, floors=_slope_floors(clear, statics), **settings)
                notes += more
            rows += _judge_at_kinks(reference, by_hand, args, near, statics)
    if not at_kink.all():
        rows += _judge_behaviour(by_hand, _rows_of(args, ~at_kink), compute_dtype)
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
            rows.append(_compare_slopes(dtype, z, slopes, _slope(activation.fn, z), tolerance))
    with enable_x64(True):
        z = jnp.asarray(grid[np.abs(grid) <= 4])
        slope, noise = _central_difference(lambda t: np.asarray(activation.fn(z + t)))
        off = np.abs(np.asarray(activation.deriv(z, activation.fn(z))) - slope) / np.maximum(1, np.abs(slope))
        good = bool(off.max() <= DIFFERENCE_TOLERANCE + 10 * noise)
        rungs = f"of fn in float64, {off.max():.0e}, good to {noise:.0e}"
        rows.append(_verdict("differences", z.shape, good, rungs, f"worst at z = {z[off.argmax()]:.6g}"))
        for kink in kinks:
            left, right = (float(_slope(activation.fn, jnp.float64(kink + side * 1e-9))) for side in (-1, 1))
            got = float(activation.deriv(jnp.float64(kink), activation.fn(jnp.float64(kink))))
            good = min(left, right) - 1e-6 <= got <= max(left, right) + 1e-6
            rungs = f"{got:.6g}, from the left {left:.6g}, from the right {right:.6g}"
            rows.append(_verdict(f"kink at {kink:.6g}", (), good, rungs, "not between the two sides"))
    z = jnp.asarray(grid[:6], jnp.float32).reshape(2, 3)
    a = activation.fn(z)
    slopes = activation.deriv(z, a)
    good = a.shape == slopes.shape == z.shape and a.dtype == slopes.dtype == z.dtype
    good = good and bool(jnp.allclose(slopes[0], activation.deriv(z[0], a[0])))
    rungs = f"{z.shape} {z.dtype} to {a.shape} {a.dtype} and {slopes.shape} {slopes.dtype}"
    rows.append(_verdict("elementwise", (), good, rungs, "shape or dtype changes, or entries depend on each other"))
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
            judged, _ = _judge(total, jax.grad(total), loss.delta, args, tolerance=tolerance, seed=seed)
            rows += [row._replace(leaf=f"delta, {kind}, {dtype}") for row in judged]
            value, alone = loss.fn(*args), loss.fn(args[0][:1], args[1][:1])
            good = value.shape == (50,) and bool(jnp.allclose(value[:1], alone))
            fault = "not one value per sample, or it depends on the others"
            rows.append(_verdict(f"loss, {kind}, {dtype}", value.shape, good, "a value per sample", fault))
    if class_ids:
        bad = jnp.asarray(out[:2], jnp.float32), jnp.array([-1, K])
        good = bool(jnp.isnan(loss.fn(*bad)).all() and jnp.isnan(loss.delta(*bad)).all())
        rows.append(_verdict("ids out of range", (), good, "NaN in loss and delta", "they pass for other classes"))
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
    rows = _structure_rows(a, b)
    if not rows:
        rows = tuple(
            _row(name, got, want, eps_multiple, _eps(want.dtype), f"allowed {eps_multiple:g} eps")
            for name, got, want in zip(_leaf_names(b), _as_arrays(a), _as_arrays(b), strict=True)
        )
    report = Report("trees", rows)
    if not report.ok:
        raise AssertionError(str(report))


@functools.cache
def find_kinks(activation: Activation, low: float = -10.0, high: float = 10.0) -> tuple[float, ...]:
    """Where the slope of an activation jumps, to 1e-9: from a grid, by bisection, from `fn` alone.

    >>> [round(kink, 6) for kink in find_kinks(activations.relu)], find_kinks(activations.gelu)
    ([0.0], ())
    """
    with enable_x64(True):

        def slope(*z):
            return np.asarray(_slope(activation.fn, jnp.asarray(z, jnp.float64)))

        grid = np.linspace(low, high, 2001) + 1e-4  # not on a whole number
        jumps = np.abs(np.diff(slope(*grid)))
        bends = np.maximum(np.roll(jumps, 2), np.roll(jumps, -2))  # a kink jumps where its surroundings do not
        kinks = []
        for i in np.flatnonzero(jumps > 4 * bends + 1e-6):
            left, right = grid[i], grid[i + 1]
            while right - left > 1e-10 * max(1, abs(left)):
                before, at, after = slope(left, middle := (left + right) / 2, right)
                left, right = (middle, right) if abs(after - at) > abs(at - before) else (left, middle)
            before, after = slope(left, right)
            if abs(after - before) > jumps[i] / 2:  # a bend shrinks with the interval, a kink does not
                kinks.append(float(0.0 if abs(left) < 1e-8 else (left + right) / 2))
    return tuple(kinks)


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


# The ladder.


def _judge(
    fn, reference, by_hand, args, *, tolerance, seed, compute_dtype=None, floors=None
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Rows, one per leaf of `args[0]`, and notes. A difference in float64 below a leaf's floor is `jax.grad`'s own."""
    notes = []
    with jax.default_matmul_precision("highest"):
        got, want = by_hand(*args), reference(*args)
        if rows := _structure_rows(got, want):
            return rows, ()
        names, got, want = _leaf_names(want), _as_arrays(got), _as_arrays(want)
        eps = [_eps(leaf.dtype if compute_dtype is None else compute_dtype) for leaf in want]
        wide = None
        if compute_dtype is None:
            try:
                wide = _in_float64(fn, reference, by_hand, args)
            except Exception as error:  # whatever a function of the user's may do in another dtype than its own
                notes.append(f"not judged in float64: {type(error).__name__}: {error}"[:300])
    if jax.default_backend() != "cpu":
        fast = max(map(_error, _as_arrays(by_hand(*args)), want, eps))
        notes.append(f"at the default precision of products on {jax.default_backend()}: {fast:.2g} eps")
    rows = []
    for i, name in enumerate(names):
        dtype = want[i].dtype.name if compute_dtype is None else np.dtype(compute_dtype).name
        here = _row(name, got[i], want[i], tolerance, eps[i], f"jax.grad in {dtype}")
        if wide is not None:
            floor = 0.0 if floors is None else floors[i]
            here = _widen(here, i, wide, tolerance, seed, got[i], want[i], eps[i], floor)
        rows.append(here)
    return tuple(rows), (*notes, *_where_it_starts(rows))


class _Wide(NamedTuple):
    """The gradients in float64, as lists of arrays, and the function as a leaf moves."""

    got: list[np.ndarray]
    want: list[np.ndarray]
    want32: list[np.ndarray]
    value: float
    move: Callable[[int, np.ndarray], Callable[[float], float]]


def _in_float64(fn, reference, by_hand, args) -> _Wide:
    with enable_x64(True):
        args64, args32 = _cast(args, np.float64), _cast(args, np.float32)
        value = fn(*args64)
        if value.dtype != np.float64:
            raise TypeError(f"the value is {value.dtype} where the arguments are float64")
        leaves, tree = jax.tree.flatten(args64[0])

    def move(i, v):
        def f(t):
            with enable_x64(True):
                moved = jax.tree.unflatten(tree, [leaf + t * v if j == i else leaf for j, leaf in enumerate(leaves)])
                return float(fn(moved, *args64[1:]))

        return f

    with enable_x64(True):
        got, want = _as_arrays(by_hand(*args64)), _as_arrays(reference(*args64))
    return _Wide(got, want, _as_arrays(reference(*args32)), float(value), move)


def _widen(here, i, wide, tolerance, seed, got, want, eps, floor) -> Row:
    """A row that stands on the whole ladder, from one that stands on its lowest rung."""
    got64, want64 = wide.got[i], wide.want[i]
    noise = _error(wide.want32[i], want64, _eps(np.float32))
    allowed = max(tolerance, NOISE_ALLOWANCE * noise)
    double_eps = _eps(np.float64)
    here = _row(here.leaf, got, want, allowed, eps, here.rungs)
    double = _row(here.leaf, got64, want64, max(allowed, FLOAT64_TOLERANCE / double_eps), double_eps, "")
    if noise > 100 or not want64.any():  # its terms cancel, or it is saturated: rounding is what is left of it
        floor = max(floor, ROUNDING_FLOOR * max(abs(wide.value), 1.0) * double_eps)
    if np.abs(np.asarray(got, np.float64) - want).max(initial=0) <= floor / double_eps * eps:
        here = here._replace(ok=True, fault="")
    if np.abs(got64 - want64).max(initial=0) <= floor:
        double = double._replace(ok=True, fault="")
    if not here.ok and _error(got, want64, eps) <= allowed:  # as near the truth as jax.grad is
        here = here._replace(ok=True, fault="")

    rungs = [] if want.dtype == np.float64 else [f"{here.rungs} {here.error:.2g} eps"]
    rungs.append(f"in float64 {double.error:.2g} eps")
    row = min((double, here), key=lambda row: (row.ok, -row.error))
    if want.dtype == np.float64:
        row = double
    verdict = ""
    if want64.size and np.isfinite(got64).all() and np.isfinite(want64).all():
        size = max(float(np.linalg.norm(g)) for g in (got64, want64))
        agrees, text = _differences(partial(wide.move, i), got64, size, seed)  # None: they cannot tell
        rungs += [text, _taylor(wide.move(i, _random_direction(seed, got64.shape)), got64, seed)]
        if row.ok and agrees is False:
            verdict = "equals jax.grad, but not the differences of the function: does that carry a derivative rule?"
        elif not row.ok and agrees:
            row = row._replace(
                fault=f"{row.fault}; yet the differences of the function side with it, not with jax.grad"
            )
    if allowed > tolerance:
        rungs.append(f"{allowed:.2g} eps allowed, jax.grad's own rounding being {noise:.2g}")
    return row._replace(ok=row.ok and not verdict, fault=row.fault or verdict, rungs=", ".join(filter(None, rungs)))


def _differences(move, gradient, norm, seed) -> tuple[bool | None, str]:
    """Whether differences along a leaf agree with its gradient where they can tell, and by how much of its norm."""
    worst, judged = 0.0, 0
    if gradient.size <= 16:
        directions = np.eye(gradient.size).reshape(-1, *gradient.shape)
    else:
        directions = [_random_direction(seed + k, gradient.shape) for k in range(3)]
    for v in directions:
        slope, noise = _central_difference(move(v))
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


def _central_difference(f) -> tuple[Any, float]:
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


# Kinks.


def _near_kinks(args, statics) -> list[np.ndarray]:
    """For each layer `(N, n_l)`: how far to move a `z` that lies within its rounding of a kink; 0 for all others."""
    params, x, _, masks, _ = args
    passed = {name: statics[name] for name in ("hidden", "output", "compute_dtype") if name in statics}
    trace = mlp.forward_trace(params, x, masks=masks, **passed)
    chain = mlp.prepare(
        params, x, passed.get("hidden", activations.relu), passed.get("output", activations.identity), masks, None
    )[1]
    reaches = []
    for l, (f, (W, b), z) in enumerate(zip(chain, params, trace.pre_activations, strict=True)):
        z = np.asarray(z, np.float64)
        a = np.asarray(trace.activations[l], np.float64)
        if masks is not None and masks[l] is not None:
            a = a * np.asarray(masks[l], np.float64)
        size = np.abs(a) @ np.abs(np.asarray(W, np.float64)) + np.abs(np.asarray(b, np.float64))
        eps = _eps(passed.get("compute_dtype") or _computed_in(params))
        rounding = KINK_DISTANCE * eps * size
        clear = 2 * KINK_DISTANCE * eps * np.maximum(size, np.abs(z).max() or 1.0)
        reach = np.zeros(z.shape)
        for kink in find_kinks(f):
            distance = np.abs(z - kink)
            reach = np.where(distance <= rounding, distance + clear, reach)
        reaches.append(reach)
    return reaches


def _judge_at_kinks(reference, by_hand, args, near, statics, *, most=32) -> tuple[Row, ...]:
    """A row for each of the samples at a kink: between the gradients to either side of it."""
    rows = []
    for i in np.flatnonzero(np.concatenate(near, 1).any(1))[:most]:
        sample = _rows_of(args, np.array([i]))[:4]
        got = _as_arrays(by_hand(*sample, None))
        reach = [layer[i] for layer in near]
        floors = _slope_floors((*sample, None), statics)
        if floors is None:
            sides, noise, floors = _sides(reference, sample, reach, None), 0.0, [0.0] * len(got)
        else:
            sides, coarse = (_sides(reference, sample, reach, dtype) for dtype in (np.float64, np.float32))
            pairs = zip(itertools.chain(*coarse), itertools.chain(*sides), strict=True)
            noise = max(_error(at_32, at_64, _eps(np.float32)) for at_32, at_64 in pairs)
        error = 0.0
        for leaf, values, floor in zip(got, zip(*sides, strict=True), floors, strict=True):
            low, high = np.min(values, 0) - floor, np.max(values, 0) + floor
            outside = np.maximum(np.maximum(low - leaf, leaf - high), 0).max(initial=0)
            scale = _eps(leaf.dtype) * max(np.abs(low).max(initial=0), np.abs(high).max(initial=0))
            error = max(error, float(outside) / scale if scale else float(outside > 0) * math.inf)
        # The sides are taken 128 roundings away, and jax.grad has its own rounding error there.
        allowed = max(128 * KINK_DISTANCE, NOISE_ALLOWANCE * noise)
        ok = error <= allowed
        rungs = f"{sum(int((layer > 0).sum()) for layer in reach)} units at a kink, {allowed:.3g} eps allowed"
        fault = "" if ok else "outside the gradients on the two sides of its kinks"
        rows.append(Row(f"sample {i}", sample[1].shape[1:], error, ok, rungs, fault))
    return tuple(rows)


def _sides(reference, sample, reach, dtype) -> list[list[np.ndarray]]:
    """The reference's gradients, in `dtype`, with each unit at a kink pushed to one side of it or the other."""
    farther = 1.0 if dtype is None else max(1.0, _eps(dtype) / _eps(_computed_in(sample[0])))  # what it can resolve
    units = sum(int((layer > 0).sum()) for layer in reach)
    signs = itertools.product((-1, 1), repeat=units) if units <= 5 else [(-1,) * units, (1,) * units]
    sides = []
    with contextlib.nullcontext() if dtype is None else enable_x64(dtype == np.float64):
        params, x, y, masks = sample if dtype is None else _cast(sample, dtype)
        for sign in signs:
            sign = iter(sign)
            nudges = [np.array([next(sign) * r * farther if r > 0 else 0.0 for r in layer]) for layer in reach]
            moved = [(W, b + jnp.asarray(nudge, b.dtype)) for (W, b), nudge in zip(params, nudges, strict=True)]
            sides.append(_as_arrays(reference(moved, x, y, masks, None)))
    return sides


# How well `jax.grad` itself can be trusted.


def _slope_floors(args, statics) -> list[float] | None:
    """For each leaf, what an error of eps in every slope makes of the gradient in float64; None under a compute dtype.

    `jax.grad` takes `1 - a^2` for tanh and `1 + a` for elu: right to an eps of 1, and in the far tail a slope is no
    more than that. How it carries on is measured: random errors in the slopes, and the change scaled to an eps.
    """
    if statics.get("compute_dtype") is not None:
        return None
    hidden, output = statics.get("hidden", activations.relu), statics.get("output", activations.identity)
    loss, size = statics.get("loss", losses.softmax_cross_entropy), 1e-8
    with enable_x64(True):
        params, x, y, masks, w = _cast(args, np.float64)

        def gradient(draw):
            rough = partial(_rough, draw=draw, size=size)
            chain = rough(hidden) if isinstance(hidden, Activation) else tuple(map(rough, hidden))
            made = backward(params, x, y, hidden=chain, output=rough(output), loss=_rough_loss(loss, draw, size),
                            masks=masks, sample_weight=w)  # fmt: skip
            return _as_arrays(made)

        exact, *drawn = map(gradient, (None, 0, 1))
    changes = [max(np.abs(a - g).max(initial=0.0) for a in draws) for g, *draws in zip(exact, *drawn, strict=True)]
    return [NOISE_ALLOWANCE * _eps(np.float64) * change / size for change in changes]


@functools.lru_cache(256)
def _rough(f: Activation, draw, size) -> Activation:
    """The activation with random errors of that size in its slopes; as it is where there is no draw."""
    return Activation(f.name, f.fn, lambda z, a: f.deriv(z, a) + size * _signs(draw, z)) if draw is not None else f


@functools.lru_cache(256)
def _rough_loss(loss: Loss, draw, size) -> Loss:
    if draw is None:
        return loss
    return loss._replace(delta=lambda out, y: loss.delta(out, y) + size * _signs(draw, out))


def _signs(draw, like):
    return jax.random.rademacher(jax.random.key(draw), like.shape, like.dtype)


# How a gradient behaves.


def _judge_behaviour(by_hand, args, compute_dtype) -> tuple[Row, ...]:
    """The same bits again; and, in float64, the same without jit, and the batch as the mean of its samples."""
    first, again = _as_arrays(by_hand(*args)), _as_arrays(by_hand(*args))
    same = all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
    rows = [_verdict("run again", (), same, "bit for bit", "other bits")]
    if compute_dtype is not None:
        return tuple(rows)
    with enable_x64(True):
        params, x, y, masks, w = _cast(args, np.float64)
        batch = by_hand(params, x, y, masks, w)
        with jax.disable_jit():
            rows.append(_worst_row("without jit", by_hand(params, x, y, masks, w), batch))
        samples = _of_samples(by_hand, params, x, y, masks)
        share = np.full(len(x), 1 / len(x)) if w is None else np.asarray(w / w.sum())
        mean = [np.tensordot(share, g, 1) for g in _as_arrays(samples)]
        rows.append(_worst_row("mean of samples", mean, batch))
        loop = [by_hand(params, *jax.tree.map(lambda a, i=i: a[i], (x, y, masks)), None) for i in range(min(len(x), 4))]
        stacked = [np.stack(leaves) for leaves in zip(*map(_as_arrays, loop), strict=True)]
        rows.append(_worst_row("vmap and loop", [g[:4] for g in _as_arrays(samples)], stacked))
    return tuple(rows)


@partial(jax.jit, static_argnums=0)
def _of_samples(by_hand, params, x, y, masks):
    return jax.vmap(by_hand, (None, 0, 0, 0, None))(params, x, y, masks, None)


def _worst_row(name, got, want) -> Row:
    """A row for two gradients in float64, leaf by leaf; a leaf that is rounding beside the others cannot differ."""
    got, want, eps = _as_arrays(got), _as_arrays(want), _eps(np.float64)
    floor = ROUNDING_FLOOR * eps * max(np.abs(leaf).max(initial=0.0) for leaf in want)
    pairs = [pair for pair in zip(got, want, strict=True) if not np.abs(pair[0] - pair[1]).max(initial=0.0) <= floor]
    error = max((_error(g, w, eps) for g, w in pairs), default=0.0)
    ok = error <= FLOAT64_TOLERANCE / eps
    return Row(name, (), error, ok, f"in float64, to {FLOAT64_TOLERANCE:g}", "" if ok else "they differ")


# What it looks like.


def _verdict(name, shape, ok, rungs, fault) -> Row:
    """A row for what is right or wrong, with no size of error between."""
    return Row(name, shape, 0.0 if ok else math.inf, ok, rungs, "" if ok else fault)


def _row(name, got, want, tolerance, eps, rungs) -> Row:
    error = _error(got, want, eps)
    ok = error <= tolerance
    return Row(name, want.shape, error, ok, rungs, "" if ok else _fault(got, want, tolerance * eps))


def _error(got, want, eps) -> float:
    """`max|d| / (eps max|want|)`; where NaN or an infinity stands, it must stand in both."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    finite = np.isfinite(want)
    if (np.isfinite(got) != finite).any() or not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return math.inf
    worst = np.abs(got - want)[finite].max(initial=0.0)
    scale = eps * np.abs(want)[finite].max(initial=0.0)
    return 0.0 if worst == 0 else worst / scale if scale else math.inf


def _fault(got, want, relative) -> str:
    """Where it is worst, what is there, how much is wrong, and what that looks like."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    off = np.where(np.isnan(got - want), np.inf, np.abs(got - want))
    worst = np.unravel_index(off.argmax(), off.shape)
    bad = (off > relative * np.abs(want).max()).mean()
    cause = _likely_cause(got, want)
    values = f"{got[worst]:.8g}, expected {want[worst]:.8g}"
    return f"worst at {tuple(map(int, worst))}: {values}; {bad:.2%} of the entries are wrong{cause and f'; {cause}'}"


def _likely_cause(got, want) -> str:
    if not np.isfinite(got).all():
        return "it is not finite" if np.isfinite(want).all() else ""
    close = partial(np.allclose, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    if not got.any():
        return "it is zero throughout"
    factor = float((got * want).sum() / (want * want).sum()) if want.any() else 0.0
    if factor and close(got / factor, want):
        return (
            "the sign is wrong" if abs(factor + 1) < 1e-6 else f"throughout it is {factor:.6g} times what it should be"
        )
    if want.ndim == 2 and want.shape[0] == want.shape[1] and close(got.T, want):
        return "it is transposed"
    if want.ndim == 1 and np.ptp(got) <= 1e-6 * np.abs(got).max():
        return "all entries are the same: summed over the units too?"
    missing = (got == 0) & (want != 0)
    if missing.any() and close(got[~missing], want[~missing]):
        return f"{missing.sum()} entries are zero"
    if close(np.sort(got, axis=None), np.sort(want, axis=None)):
        return "the entries are right but in another order"
    return ""


def _where_it_starts(rows) -> tuple[str, ...]:
    """In which layer the deltas go wrong, where the layers after it are right."""
    by_layer = {}
    for row in rows:
        if row.leaf.startswith("layer "):
            by_layer.setdefault(int(row.leaf.split()[1]), []).append(row.ok)
    right = [l for l, oks in by_layer.items() if all(oks)]
    wrong = [l for l in by_layer if l not in right]
    if wrong and right and max(wrong) < min(right) and not any(itertools.chain(*(by_layer[l] for l in wrong))):
        l = max(wrong)
        return (f"wrong up to layer {l}, right after it: look at delta_{l} = (delta_{l + 1} W_{l + 1}^T) * f'(z_{l})",)
    return ()


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
    got, right = _as_arrays(by_hand(*args)), _as_arrays(backward(*args[:3], masks=masks, sample_weight=w, **statics))
    notes = []
    for name, (changed_statics, changed) in mistakes.items():
        call = {"y": y, "masks": masks, "w": w} | changed
        made = _as_arrays(
            backward(*args[:2], call["y"], masks=call["masks"], sample_weight=call["w"], **(statics | changed_statics))
        )
        if all(_error(m, r, 1e-5) <= 1 for m, r in zip(made, right, strict=True)):
            continue  # no mistake at all, here
        if all(g.shape == m.shape and _error(g, m, 1e-5) <= 1 for g, m in zip(got, made, strict=True)):
            notes.append(f"exactly what comes out where {name}")
    return tuple(notes)


# Trees, rows, dtypes.


def _structure_rows(got, want) -> tuple[Row, ...]:
    """Rows for what makes two trees impossible to compare; none if nothing does."""
    if jax.tree.structure(got) != jax.tree.structure(want):
        fault = f"the tree is {jax.tree.structure(got)}, expected {jax.tree.structure(want)}"
        return (_verdict("tree", (), False, "", fault),)
    rows = []
    for name, g, w in zip(_leaf_names(want), jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if (jnp.shape(g), jnp.result_type(g)) != (jnp.shape(w), jnp.result_type(w)):
            fault = f"{jnp.result_type(g)} {jnp.shape(g)}, expected {jnp.result_type(w)} {jnp.shape(w)}"
            fault += ": transposed?" if jnp.shape(g) == jnp.shape(w)[::-1] != jnp.shape(w) else ""
            rows.append(_verdict(name, jnp.shape(w), False, "", fault))
    return tuple(rows)


def _leaf_names(tree) -> list[str]:
    """`layer 1 W`, `layer 1 b`, ... for a list of pairs; the path for any other tree."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    indices = [tuple(getattr(key, "idx", None) for key in path) for path in paths]
    if indices == [(i // 2, i % 2) for i in range(len(indices))]:
        return [f"layer {1 + i // 2} {'Wb'[i % 2]}" for i in range(len(indices))]
    return [jax.tree_util.keystr(path) or "value" for path in paths]


def _as_arrays(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


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


def _rows_of(args, keep):
    """The same call on some of its samples."""
    return (args[0], *jax.tree.map(lambda a: a[keep], args[1:]))


def _cast(args, dtype):
    def cast(leaf):
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, args)


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
    eps = _eps(name)
    errors = np.abs(got - want) / (eps * np.maximum(1, np.maximum(np.abs(z), np.abs(want))))
    errors = np.where(np.isnan(errors), np.inf, errors)
    i = int(errors.argmax())
    ok = bool(errors[i] <= tolerance)
    values = f"at z = {z[i]:.6g}: {got[i]:.8g}, expected {want[i]:.8g}"
    fault = f"{values}; {(errors > tolerance).mean():.2%} of the points are wrong"
    return Row(name, z.shape, float(errors[i]), ok, "jax.grad of fn", "" if ok else fault)


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


def _slope(fn, z):
    """The derivative of an elementwise function, as JAX finds it."""
    return jax.jvp(fn, (z,), (jnp.ones_like(z),))[1]


def _tolerance(L: int) -> float:
    return 16.0 if L <= 4 else 64.0 if L <= 32 else 2.0 * L


def _computed_in(params):
    return np.float64 if params[0][0].dtype == np.float64 else np.float32


def _eps(dtype) -> float:
    return float(jnp.finfo(dtype).eps)


def enable_x64(on: bool) -> contextlib.AbstractContextManager:
    """Float64 on or off within a `with` block, in every version of JAX.

    >>> with enable_x64(True):
    ...     print(jnp.ones(1).dtype)
    float64
    """
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)
    return jax.experimental.enable_x64(on)  # pyright: ignore[reportAttributeAccessIssue]


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
                name: max(map(_error, _as_arrays(got), _as_arrays(want), itertools.repeat(_eps(dtype))))
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
