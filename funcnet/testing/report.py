"""The report of a check: for each leaf its error, where it is largest, and a likely cause."""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.testing.causes import likely_cause
from funcnet.testing.trees import leaf_names


class Row(NamedTuple):
    """The verdict on one leaf."""

    leaf: str  # layer 2 W
    shape: tuple[int, ...]
    error: float  # max|d| / (eps max|leaf|), for the worst reference
    ok: bool
    rungs: str  # the references
    fault: str = ""  # where the error is largest, how much is wrong, a likely cause
    eps: float | None = None  # of the leaf's dtype; None if there is no number to the verdict
    at_kink: bool = False  # correct as one of several gradients


class Report(NamedTuple):
    """The result of a check. `str(report)` is a table; its truth value is `ok`."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every row is ok."""
        return all(row.ok for row in self.rows)

    def __bool__(self) -> bool:
        """`ok`; a tuple would be true, and `assert check_backward(...)` would never fail."""
        return self.ok

    @property
    def worst(self) -> float:
        """The largest error, in eps."""
        return max((row.error for row in self.rows), default=0.0)

    def __str__(self) -> str:
        """One line per leaf, with its largest difference relative to its largest entry; the faults; the notes."""
        cells = [(row.leaf, str(row.shape), _size(row), "ok" if row.ok else "WRONG", row.rungs) for row in self.rows]
        widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
        align = (str.ljust, str.ljust, str.rjust, str.ljust, str.ljust)
        lines = [
            "  ".join(pad(cell, width) for pad, cell, width in zip(align, line, widths, strict=True)).rstrip()
            for line in cells
        ]
        faults = [f"{row.leaf}: {row.fault}" for row in self.rows if row.fault]
        return "\n".join([f"{self.title}: {'ok' if self.ok else 'WRONG'}", *lines, *faults, *self.notes])


def _size(row) -> str:
    """The error of a row, with eps in brackets where it is small."""
    if row.eps is None or not math.isfinite(row.error):
        return ""
    return relative(row.error * row.eps) + (f" ({row.error:.2g} eps)" if row.error < 1e5 else "")


def relative(error: float) -> str:
    """A relative error: a percentage if it is large.

    >>> relative(0.25), relative(1.5e-7), relative(0.0)
    ('25%', '1.5e-07', '0')
    """
    return "not finite" if not math.isfinite(error) else f"{error:.0%}" if error >= 0.01 else f"{error:.2g}"


def raise_if_wrong(report) -> None:
    """Raise an `AssertionError` with the report, if it is not ok."""
    __tracebackhide__ = True  # pytest then points at the caller
    if not report.ok:
        raise AssertionError(str(report))


def verdict(name, shape, ok, rungs, fault) -> Row:
    """A row that is either correct or wrong, without a size of the error."""
    return Row(name, shape, 0.0 if ok else math.inf, ok, rungs, "" if ok else fault)


def also(row, *rungs) -> Row:
    """A row with more references."""
    return row._replace(rungs=", ".join(filter(None, (row.rungs, *rungs))))


def at_kink(row) -> Row:
    """A row whose gradient is one of several that are correct at a kink."""
    row = row if row.at_kink else also(row, "at a kink: between the gradients of points around it")
    return row._replace(ok=True, error=0.0, fault="", at_kink=True)


def leaf_row(name, got, want, tolerance, eps, rungs) -> Row:
    """A row for a leaf against one reference."""
    error = error_in_eps(got, want, eps)
    ok = bool(error <= tolerance)
    return Row(name, want.shape, error, ok, rungs, "" if ok else fault_of(got, want, tolerance * eps, eps), eps)


def error_in_eps(got, want, eps) -> float:
    """`max|d| / (eps max|want|)`; NaN and infinities must be in the same places in both."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    finite = np.isfinite(want)
    if (np.isfinite(got) != finite).any() or not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return math.inf
    worst = np.abs(got[finite] - want[finite]).max(initial=0.0)
    scale = eps * np.abs(want)[finite].max(initial=0.0)
    return 0.0 if worst == 0 else float(worst / scale) if scale else math.inf


def fault_of(got, want, allowed, eps) -> str:
    """The entry with the largest error, the two values there, how much is wrong, and a likely cause."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    off = np.where(np.isnan(got - want), np.inf, np.abs(got - want))
    off = np.where((got == want) | (np.isnan(got) & np.isnan(want)), 0.0, off)  # infinities
    worst = np.unravel_index(off.argmax(), off.shape)
    bad = (off > allowed * np.abs(want).max(initial=0.0, where=np.isfinite(want))).mean()
    cause = likely_cause(got, want, eps)
    values = f"{got[worst]:.8g}, expected {want[worst]:.8g}"
    return f"worst at {tuple(map(int, worst))}: {values}; {bad:.2%} of the entries are wrong{cause and f'; {cause}'}"


def nan_is_wrong(rows, grads) -> tuple[Row, ...]:
    """The rows, wrong if the gradient is NaN, even if that of `jax.grad` is, too (e.g. a `where` hides a 0 / 0)."""
    bad = [bool(np.isnan(leaf).any()) for leaf in grads]
    if len(bad) != len(rows):  # of another structure
        return tuple(rows)
    wrong = {"ok": False, "error": np.inf, "fault": "it is NaN, which a gradient never is"}
    return tuple(row._replace(**wrong) if nan else row for row, nan in zip(rows, bad, strict=True))


def where_it_starts(rows) -> tuple[str, ...]:
    """The layer from which the deltas are wrong, if those of the layers after it are correct."""
    by_layer = {}
    for row in rows:
        if row.leaf.startswith("layer "):
            by_layer.setdefault(int(row.leaf.split()[1]), []).append(row.ok)
    right = [l for l, oks in by_layer.items() if all(oks)]
    wrong = [l for l in by_layer if l not in right]
    if wrong and right and max(wrong) < min(right) and not any(itertools.chain(*(by_layer[l] for l in wrong))):
        l = max(wrong)
        return (
            f"wrong up to layer {l}, correct after it: look at delta_{l} = (delta_{l + 1} W_{l + 1}^T) * f'(z_{l})",
        )
    return ()


def structure_rows(got, want, names=None) -> tuple[Row, ...]:
    """Rows for differences in structure, shape or dtype, with which two trees cannot be compared; none if equal."""
    if jax.tree.structure(got) != jax.tree.structure(want):
        fault = f"the tree is {jax.tree.structure(got)}, expected {jax.tree.structure(want)}"
        return (verdict("tree", (), False, "", fault),)
    rows = []
    for name, g, w in zip(names or leaf_names(want), jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if (jnp.shape(g), jnp.result_type(g)) != (jnp.shape(w), jnp.result_type(w)):
            fault = f"{jnp.result_type(g)} {jnp.shape(g)}, expected {jnp.result_type(w)} {jnp.shape(w)}"
            fault += ": transposed?" if jnp.shape(g) == jnp.shape(w)[::-1] != jnp.shape(w) else ""
            rows.append(verdict(name, jnp.shape(w), False, "", fault))
    return tuple(rows)


def name_of(fn) -> str:
    """The name of a function, also if it is wrapped in a `partial`."""
    return getattr(fn, "__name__", None) or name_of(getattr(fn, "func", type(fn)))
