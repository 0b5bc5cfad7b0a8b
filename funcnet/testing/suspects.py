"""Mistakes that give exactly the gradient under test: each is made on purpose, and compared with it."""

from collections.abc import Iterator

import numpy as np

from funcnet.testing.causes import alike
from funcnet.testing.trees import eps_of


def equal(got, made, within) -> bool:
    """Whether a gradient is the one that a mistake gives."""
    got, made = np.asarray(got, np.float64), np.asarray(made, np.float64)
    if got.shape != made.shape or not (np.isfinite(got).all() and np.isfinite(made).all()):
        return False
    return bool(np.abs(got - made).max(initial=0.0) <= within * np.abs(made).max(initial=0.0))


def suspects(point, pull, expected, v) -> tuple[str, ...]:
    """What is wrong with a reverse rule, for each argument whose gradient is.

    `pull(floating, v)` is the rule, and `expected(v)` gives the correct gradients in float64.
    """
    got, want = [np.asarray(g) for g in pull(point.floating, v)], expected(v)
    within = [alike(eps_of(g.dtype)) for g in got]
    wrong = [
        i for i, g in enumerate(got) if g.any() and np.isfinite(want[i]).all() and not equal(g, want[i], within[i])
    ]
    by_ones, notes = pull(point.floating, [np.ones_like(part) for part in v]), []
    for i in wrong:
        if np.array_equal(got[i], np.asarray(by_ones[i])):
            notes.append(f"{point.names[i]}: the same for another cotangent: it is ignored")
            continue
        notes += [f"{point.names[i]}: {text}" for text in _made(i, point, got[i], want, expected, v, within[i])][:1]
    return tuple(notes)


def _made(i, point, got, want, expected, v, within) -> Iterator[str]:
    """The mistakes that give the gradient of argument `i`."""
    for j, other in enumerate(want):
        if j != i and equal(got, other, within) and not equal(want[i], other, within):
            yield f"exactly the gradient of {point.names[j]}"
    values = [*zip(point.names, point.floating, strict=True), *((f"output {j}", o) for j, o in enumerate(point.value))]
    for name, a in values:
        a = np.asarray(a, np.float64)
        for shaped in _fitting(a, want[i].shape):
            if equal(got, want[i] * shaped, within):
                yield f"exactly the expected value times {name}"
            if shaped.all() and equal(got, want[i] / shaped, within):
                yield f"exactly the expected value divided by {name}"
    for j, part in enumerate(v):
        for axis in range(part.ndim):
            for index in (0, -1) if part.shape[axis] > 1 else ():
                only = np.zeros_like(part)
                at = tuple(index if k == axis else slice(None) for k in range(part.ndim))
                only[at] = part[at]
                if equal(got, expected([*v[:j], only, *v[j + 1 :]])[i], within):
                    where = "first" if index == 0 else "last"
                    yield f"exactly the part of the {where} entry of output {j} along axis {axis}: is a sum missing?"


def _fitting(a, shape) -> Iterator[np.ndarray]:
    """An array in the forms in which it can be multiplied with one of that shape."""
    forms = [a] + ([a[..., None]] if a.ndim and a.ndim < len(shape) else [])
    for form in forms:
        if form.ndim <= len(shape) and all(n in (1, m) for n, m in zip(form.shape[::-1], shape[::-1], strict=False)):
            yield form
