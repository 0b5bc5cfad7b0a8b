"""`J^T v` and `J u` as functions, and what the checks of both have in common."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.testing.report import Row, leaf_row, structure_rows, verdict
from funcnet.testing.trees import as_arrays, cast_like, cast_to, coarsest_eps, enable_x64, eps_of

TOO_ROUGH = 0.25  # relative: with such a rounding of its own a reference cannot judge
AT_MOST = 0.5  # relative: what may be allowed for rounding, where float64 cannot judge
IN_FLOAT64_ALONE = "in float64 alone: there the value is another one (random numbers drawn without a dtype?)"
SPARSE = 4  # cotangents, or tangents of an argument, with a single 1
ROUNDINGS, IN_HALF = 64.0, 4.0  # eps that are allowed in any case; fewer where an eps is 0.1% or 1%


def reverse(f):
    """`(floating, v) -> J^T v`."""

    def pull(floating, v):
        value, pullback = jax.vjp(f, floating)
        return pullback(cast_like(v, value))[0]

    return pull


def forward(f):
    """`(floating, u) -> J u`."""
    return lambda floating, u: jax.jvp(f, (floating,), (u,))[1]


def values_agree(value, reference, point, accuracy) -> list[Row]:
    """A row for the value of the forward pass, and one for that of the reference."""
    rows = [*_compared("forward pass", value, point.value, "the value without differentiation")]
    if reference is not None:
        rows += _compared("value", point.value, point.call(reference)(point.floating), "reference", accuracy or 0.0)
    return rows


def _compared(name, got, want, with_what, accuracy=0.0) -> tuple[Row, ...]:
    """A row for each output that differs by more than rounding, or in structure; else a single one, which is ok."""
    if rows := structure_rows(list(got), list(want)):
        return tuple(row._replace(leaf=f"{name}, {row.leaf}") for row in rows)
    wrong = []
    for j, (g, w) in enumerate(zip(as_arrays(list(got)), as_arrays(list(want)), strict=True)):
        eps = eps_of(w.dtype)
        row = leaf_row(f"{name}, output {j}", g, w, max(eps**-0.5, accuracy / eps), eps, with_what)
        wrong += [] if row.ok else [row]
    return tuple(wrong) or (verdict(name, (), True, f"equals {with_what}", ""),)


@contextlib.contextmanager
def in_float64(wide):
    """A block in float64, with the cast to it; if not `wide`, neither."""
    with enable_x64(True) if wide else contextlib.nullcontext():
        yield lambda tree: cast_to(tree, np.float64) if wide else tree


def in_float64_all_the_way(kind, f, reference, args) -> tuple[bool, str]:
    """Whether function and reference compute in float64 alone, if their arguments are float64, and if not, why."""
    wide, why = _computes_in_float64(kind(f), args)
    if reference is None:
        return bool(wide), why
    exact, cause = _computes_in_float64(kind(reference), args)
    if exact is None:
        raise ValueError(f"reference: {cause}, expected plain JAX that can be traced in any floating dtype")
    return bool(wide and exact), why or f"the reference: {cause}"


def draws_other_numbers(f, point) -> bool:
    """Whether the value in float64 is another one, as where `jax.random` draws in its default dtype."""
    with enable_x64(True):
        there = as_arrays(f(cast_to(point.floating, np.float64)))
    for here, wide in zip(point.value, there, strict=True):
        eps = eps_of(here.dtype)
        rounding = roundings(eps) * eps  # a value of zero may be no more than that
        if np.abs(here - wide).max(initial=0.0) > TOO_ROUGH * np.abs(wide).max(initial=rounding):
            return True
    return False


def _computes_in_float64(operator, args) -> tuple[bool | None, str]:
    """Whether it does, if its arguments are float64, and if not, why; None if it cannot be traced there."""
    with enable_x64(True):
        try:
            eps = coarsest_eps(operator, *cast_to(args, np.float64))
        except Exception as error:  # any error of a user's function in another dtype
            return None, f"it cannot be traced in float64 ({in_words(error)})"
    wide = eps <= eps_of(np.float64)
    return wide, "" if wide else "it computes in less than float64 inside"


def random_like(leaves, rng) -> list[np.ndarray]:
    """Dense random numbers."""
    return [rng.normal(size=np.shape(leaf)).astype(jnp.result_type(leaf)) for leaf in leaves]


def places(leaves, rng) -> list[tuple[int, tuple[int, ...]]]:
    """A few entries of a list of arrays, some of each; none if there is only one."""
    sizes = np.array([np.size(leaf) for leaf in leaves])
    if sizes.sum() <= 1:
        return []
    ends = sizes.cumsum()
    one_each = [end - 1 - rng.integers(size) for end, size in zip(ends, sizes, strict=True) if size][: 2 * SPARSE]
    more = rng.choice(sizes.sum(), min(SPARSE, sizes.sum()), replace=False)
    flat = np.array([*dict.fromkeys([*one_each, *more])][: max(SPARSE, len(one_each))])
    js = np.searchsorted(ends, flat, side="right")
    offsets = flat - (ends - sizes)[js]
    return [
        (int(j), tuple(map(int, np.unravel_index(k, np.shape(leaves[j]))))) for j, k in zip(js, offsets, strict=True)
    ]


def single(leaves, j, index) -> list[np.ndarray]:
    """Zeros, and a single 1."""
    zeros = [np.zeros(np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    zeros[j][index] = 1
    return zeros


def roundings(eps) -> float:
    """How many eps are allowed before it is measured what rounding costs."""
    return ROUNDINGS if eps < 1e-4 else IN_HALF


def without_reference(why) -> str:
    """What a report says if differences cannot judge either."""
    return f"cannot be judged: {why}, and differences need float64: pass the same function in plain JAX as reference="


def unlike_itself(error, dtype) -> str:
    """What a report says if a reference is so inaccurate that it cannot judge a function in that dtype."""
    why = f"the reference in {dtype} is {error:.0%} from itself in float64"
    return f"cannot be judged: {why}: is it at a kink, or does it draw random numbers without a dtype?"


def in_words(error) -> str:
    """The first lines of a user's error."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    remedy = (
        "; check_gradients takes functions in NumPy" if isinstance(error, jax.errors.TracerArrayConversionError) else ""
    )
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:400] + remedy
