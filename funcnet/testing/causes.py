"""What a wrong gradient looks like: the likely cause, read from its entries and those that were expected."""

import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np


def alike(eps) -> float:
    """How near two gradients are if it is no coincidence, relative to the largest entry."""
    return 1e-4 if eps < 1e-4 else 3e-2


def likely_cause(got: np.ndarray, want: np.ndarray, eps: float = 0.0) -> str:
    """The first cause that explains every entry, or an empty text."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if not np.isfinite(got).all():
        return "it is not finite" if np.isfinite(want).all() else ""
    if not got.any():
        return "all of it is zero"
    half = eps >= 1e-4
    if cause := next(_causes(got, want, alike(eps), half), ""):
        return cause
    rough = half and np.abs(got - want).max() < 100 * eps * np.abs(want).max()
    return "too inaccurate: are sums accumulated in half precision?" if rough else ""


def _causes(got, want, within, half) -> Iterator[str]:
    close = partial(np.allclose, rtol=within, atol=within * np.abs(want).max(initial=0.0))
    factor = float((got * want).sum() / (want * want).sum()) if want.any() else 0.0
    if factor and close(got / factor, want):
        yield (
            "the sign is wrong"
            if abs(factor + 1) < within
            else f"all of it is {_number(factor)} times the expected value"
        )
    if want.ndim == 2 and want.shape[0] == want.shape[1] and close(got.T, want):
        yield "it is transposed"
    if want.ndim == 1 and want.size > 1 and np.ptp(got) <= 1e-6 * np.abs(got).max() and np.ptp(want) > within:
        yield "all entries are the same: summed over the units too?"
    missing, extra = (got == 0) & (want != 0), (want == 0) & (got != 0)
    if missing.any() and close(got[~missing], want[~missing]):
        yield f"{missing.sum()} entries are zero"
    if extra.any() and close(got[~extra], want[~extra]):
        yield f"{extra.sum()} entries should be zero: a mask is forgotten?"
    if close(np.abs(got), np.abs(want)):
        yield f"the sign of {(got * want < 0).sum()} entries is wrong"
    for axis in range(want.ndim):
        if close(np.flip(got, axis), want):
            yield f"it is reversed along axis {axis}"
        if want.shape[axis] > 2 and (by := next((k for k in (1, -1) if close(np.roll(got, -k, axis), want)), 0)):
            yield f"it is shifted by {by} along axis {axis}"
    for axes in itertools.chain(((axis,) for axis in range(want.ndim)), itertools.combinations(range(want.ndim), 2)):
        if want.ndim > 1 and all(want.shape[axis] > 1 for axis in axes) and len(axes) < want.ndim:
            yield from _along(got, want, axes, close)
    if not half and close(np.sort(got, axis=None), np.sort(want, axis=None)):
        yield "the entries are correct, but in another order"
    low, high = got.min(), got.max()
    if high > low and (got == high).sum() + (got == low).sum() > 2 and close(got, np.clip(want, low, high)):
        yield f"it is clipped to [{low:.6g}, {high:.6g}]"


def _along(got, want, axes, close) -> Iterator[str]:
    """Causes that are the same all along some axes: a factor, or a term that is missing."""
    where = f"ax{'i' if len(axes) == 1 else 'e'}s {' and '.join(map(str, axes))}"
    size = (want * want).sum(axes, keepdims=True)
    factor = np.divide((got * want).sum(axes, keepdims=True), size, out=np.ones_like(size), where=size > 0)
    if close(factor * want, got):
        yield f"along {where} it is a constant times the expected value: a scale that varies over the other axes?"
    if close(got - (got - want).mean(axes, keepdims=True), want):
        yield f"along {where} it differs by a constant: is a term with a sum or mean over {where} missing?"


def _number(factor: float) -> str:
    """A factor, as a fraction of 1 where it is one."""
    inverse = round(1 / factor)
    fraction = abs(inverse) > 1 and abs(factor * inverse - 1) < 1e-5
    return f"1/{inverse}" if fraction and inverse > 0 else f"{factor:.6g}"
