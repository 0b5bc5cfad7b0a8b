"""The matrix products of a layer, with the dtypes, memory layouts, shardings and XLA workarounds that make them fast.

    a W,   delta W^T,   a^T delta summed over the samples

The factors have the dtype of `W`, the sums that of `a` or `delta`. `W` already has the dtype of products:
`arguments.prepared` casts it once. Only the dtype, the shape and the sharding of an array `like` are used.
"""

import timeit
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import optimization_barrier, platform_dependent
from jax.sharding import NamedSharding, PartitionSpec

__all__ = ["bfloat16_is_faster", "outer", "outer_sum", "second_moment", "times", "times_transposed"]


def times(a: Array, W: Array) -> Array:
    """`a W`, `(..., n_in) -> (..., n_out)`.

    >>> times(jnp.array([[1.0, 2.0]]), jnp.array([[1.0], [10.0]]))
    Array([[21.]], dtype=float32)
    """
    return jnp.einsum("...i,ij->...j", a.astype(W.dtype), W, preferred_element_type=a.dtype)


def times_transposed(delta: Array, W: Array) -> Array:
    """`delta W^T`, `(..., n_out) -> (..., n_in)`, as an einsum: `W.T` compiles to slower programs.

    >>> times_transposed(jnp.array([[2.0]]), jnp.array([[1.0], [10.0]]))
    Array([[ 2., 20.]], dtype=float32)
    """
    return jnp.einsum("...j,ij->...i", delta.astype(W.dtype), W, preferred_element_type=delta.dtype)


def outer_sum(a: Array, delta: Array, like: Array) -> Array:
    """`dW[i, j] = sum a[..., i] delta[..., j]` over all samples, sharded like `like`.

    >>> outer_sum(jnp.ones((5, 2)), jnp.ones((5, 3)), jnp.zeros((2, 3)))
    Array([[5., 5., 5.],
           [5., 5., 5.]], dtype=float32)
    """
    as_it_is = partial(_contracted, dtype=like.dtype, sharding=jax.typeof(like).sharding)
    on_cpu = partial(as_it_is, left_row_major=True)
    if like.shape[1] <= 16:
        # CPU: with at most 16 columns, dW^T is 2 to 7 times faster, if a barrier keeps XLA from transposing it back.
        transposed = partial(_contracted, dtype=like.dtype, sharding=jax.typeof(like.T).sharding, left_row_major=True)
        on_cpu = lambda a, delta: optimization_barrier(transposed(delta, a)).T  # noqa: E731
    return platform_dependent(a, delta, cpu=on_cpu, default=as_it_is)


def outer(a: Array, delta: Array, like: Array) -> Array:
    """`a[..., i] delta[..., j]`, a matrix for each sample, `(..., n_in), (..., n_out) -> (..., n_in, n_out)`.

    >>> outer(jnp.ones((5, 2)), jnp.ones((5, 3)), jnp.zeros((2, 3))).shape
    (5, 2, 3)
    """
    a, delta = (v.astype(like.dtype).astype(v.dtype) for v in (a, delta))
    return a[..., :, None] * delta[..., None, :]


def second_moment(v: Array, weight: Array, like: Array) -> Array:
    """`sum weight v^T v` over all samples, `(..., n) -> (n, n)`, symmetric, replicated on every device.

    >>> second_moment(jnp.array([[1.0, 2.0]]), jnp.ones(1), jnp.zeros((2, 3)))
    Array([[1., 2.],
           [2., 4.]], dtype=float32)
    """
    whole = NamedSharding(jax.typeof(like).sharding.mesh, PartitionSpec())
    as_it_is = partial(_contracted, dtype=like.dtype, sharding=whole)
    product = platform_dependent(v, weight[..., None] * v, cpu=partial(as_it_is, left_row_major=True), default=as_it_is)
    return (product + product.T) / 2  # the two factors are rounded separately


def _contracted(p, q, dtype, sharding, left_row_major=False) -> Array:
    """`sum p[..., i] q[..., j]` over all samples, in the dtype of `p`, from factors in `dtype`."""
    p_T = jnp.moveaxis(p.astype(dtype), -1, 0)  # (..., n) -> (n, ...)
    # With explicit mesh axes, a contraction over a sharded batch must name the sharding of its result.
    einsum = partial(jnp.einsum, "i...,...j->ij", preferred_element_type=p.dtype, out_sharding=sharding)
    if dtype == p.dtype or not left_row_major:
        return einsum(p_T, q.astype(dtype))
    # CPU: XLA has half-precision products only if the left factor is row-major in memory. Otherwise it uses float32,
    # at half the speed or less. `moveaxis` moves no memory; a sum over windows of one element does. The barrier keeps
    # XLA from moving a later transposition of the result into the factors.
    ones = (1,) * p_T.ndim
    p_T = jax.lax.reduce_window(p_T, p_T.dtype.type(0), jax.lax.add, ones, ones, "VALID")
    return optimization_barrier(einsum(p_T, q.astype(dtype)))


def bfloat16_is_faster() -> bool:
    """Whether bfloat16 products are faster on this device, by a measurement; some processors only emulate them.

    >>> bfloat16_is_faster() in (True, False)
    True
    """
    a, W = jnp.ones((256, 1024)), jnp.ones((1024, 1024))
    multiply = jax.jit(times)

    def seconds(W) -> float:
        return timeit.timeit(lambda: multiply(a, W).block_until_ready(), number=1)

    Ws = [W, W.astype(jnp.bfloat16)]
    rounds = [[seconds(W) for W in Ws] for _ in range(21)][1:]  # alternating; the first round compiles
    in_float32, in_bfloat16 = map(min, zip(*rounds, strict=True))
    return in_bfloat16 < 0.9 * in_float32
