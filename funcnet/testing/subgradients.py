"""Gradients at a kink of any function: correct if they are between those of the points around it.

At a kink every mixture of the gradients on its sides is correct (Clarke, Optimization and nonsmooth analysis, 1983). So
the point is pushed off its kinks in many directions, and the gradient is compared with those found there: each entry
must be between the smallest and the largest, and the vector must be in the plane that they span. At a tie of
`max(p, q)` they are (1, 0) and (0, 1): (0.5, 0.5) is a mixture of them, (0, 0) is not, though 0 is in [0, 1].
"""

import numpy as np

PUSHES = 32
BLOCK = 64  # entries that are pushed together; more, if there would be more than 32 blocks
KINK_SIZE = 1e-5  # relative to a slope: a smaller jump is not a kink


def is_subgradient(gradient_at, leaf, got, wrong, *, reach, accuracy, seed) -> bool:
    """Whether the entries of `got` that other measures call `wrong` are between the gradients around a kink.

    `gradient_at(moved, entries)` gives some entries (flat) of the function's gradient at a moved leaf. The length of a
    push is `reach`, relative to entries above 1; a gradient nearby, extrapolated to the point, is good to `accuracy`.
    """
    entries = np.arange(leaf.size) if leaf.size <= BLOCK else np.flatnonzero(wrong)  # a small leaf as one vector
    blocks = np.array_split(entries, min(32, -(-entries.size // BLOCK)))
    reach = reach * np.maximum(1.0, np.abs(leaf)).ravel()
    rng = np.random.default_rng(seed)
    got, wrong = got.ravel(), wrong.ravel()
    return all(_is_between(gradient_at, leaf, got[b], wrong[b], b, reach[b], accuracy, rng) for b in blocks)


def _is_between(gradient_at, leaf, got, wrong, block, reach, accuracy, rng) -> bool:
    """Whether a block of entries is a mixture of the gradients around it."""
    sides = _sides(gradient_at, leaf, block, reach, rng)
    if len(sides) < PUSHES / 2:  # at a kink, slopes neither grow without bound nor jump everywhere
        return False
    slack = accuracy * max(np.abs(sides).max(), 1e-300)
    low, high = sides.min(0), sides.max(0)
    if not (high - low > max(KINK_SIZE / accuracy, 2.0) * slack)[wrong].all():  # smooth: there is only one gradient
        return False
    if not ((low - slack <= got) & (got <= high + slack)).all():
        return False
    centre = sides.mean(0)
    _, sizes, axes = np.linalg.svd(sides - centre, full_matrices=False)
    spanned = axes[sizes > slack * np.sqrt(len(sides))]
    if len(spanned) >= len(sides) - 2:  # more kinks than the pushes can separate
        return True
    off = got - centre
    return bool(np.abs(off - (off @ spanned.T) @ spanned).max() <= 10 * slack)


def _sides(gradient_at, leaf, block, reach, rng) -> np.ndarray:
    """Gradients around the point, each extrapolated to it: `2 g(h) - g(2h)` is accurate to `h^2`."""
    n = block.size

    def random(k):
        return rng.choice((-1.0, 1.0), (k, n)) * rng.uniform(0.5, 1.5, (k, n))

    pushes = [*random(PUSHES)]
    if n <= BLOCK:  # both sides of each entry, if many kinks share it
        pushes += [*(np.concatenate([np.eye(n), -np.eye(n)]) + random(2 * n) / 8)]

    def pushed(by):
        moved = np.array(leaf)
        moved.flat[block] += (reach * by).astype(moved.dtype)
        return np.asarray(gradient_at(moved, block), np.float64)

    sides = [(pushed(push / 2), pushed(push)) for push in pushes]
    size = np.nanmax(np.abs([near for near, _ in sides]), initial=0.0)
    same = [(near, far) for near, far in sides if np.abs(near - far).max() <= 0.01 * size]
    return np.array([2 * near - far for near, far in same])
