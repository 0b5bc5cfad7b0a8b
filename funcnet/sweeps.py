"""Both sweeps over a batch, and norms and weighted sums of the samples' gradients from their deltas alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from funcnet import mlp
from funcnet.arguments import prepared, targets_and_shares
from funcnet.mlp import backward_sweep, forward_sweep, gradients
from funcnet.network import Params
from funcnet.products import times_transposed

__all__ = ["norm_of", "sweeps"]


def sweeps(params, x, y, network, masks, sample_weight) -> tuple[list[mlp.Layer], list[Array], Array]:
    """Both sweeps: the layers, `[delta_1, ..., delta_L]` of each sample's own loss, and its share in the mean.

    >>> import funcnet
    >>> params = funcnet.init(jax.random.key(0), (4, 8, 3))
    >>> _, deltas, share = sweeps(params, jnp.ones((2, 4)), jnp.array([0, 2]), funcnet.Network(), None, None)
    >>> [delta.shape for delta in deltas], share.tolist()
    ([(2, 8), (2, 3)], [0.5, 0.5])
    """
    layers = forward_sweep(*prepared(params, x, network, masks))
    out = layers[-1].a
    y, share = targets_and_shares(y, out, network, sample_weight)
    return layers, backward_sweep(layers, network.loss.delta(out, y) * layers[-1].slope), share


def weighted_sum(layers, deltas, weight) -> Params:
    """`sum_n weight[n] g[n]`, in the dtype of the computation."""
    return gradients(layers, [weight[..., None] * delta for delta in deltas])


def norms_of(layers, deltas) -> Array:
    """`(...)`, the norm of each sample's gradient."""
    by_layer = [
        norm_of(delta) * jnp.hypot(norm_of(layer.a_in), 1.0) for layer, delta in zip(layers, deltas, strict=True)
    ]
    return norm_of(jnp.stack(by_layer, -1))


def norm_of(v) -> Array:
    """`(..., n) -> (...)`, the norm of each row, scaled by its largest entry: a square could underflow or overflow.

    >>> norm_of(jnp.array([[3e30, 4e30], [0.0, 0.0]]))
    Array([5.e+30, 0.e+00], dtype=float32)
    """
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(v), axis=-1, keepdims=True, initial=0.0))
    scale = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1.0)
    square = jnp.sum((v / scale) ** 2, axis=-1)
    zero = square == 0  # the square root has no derivative at 0
    return scale[..., 0] * jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def group_norms_of(layers, deltas, share, groups) -> Array:
    """`(...)`, for each sample the norm of the gradient of its group's loss, `sum w g / sum w` over the group.

    `|sum_n dW[n]|^2 = sum_nm (a[n] . a[m]) (delta[n] . delta[m])` needs the matrix of all pairs, but no gradient.
    """
    shape, groups, share = share.shape, groups.ravel(), share.ravel()
    same = groups[:, None] == groups[None, :]  # (N, N)

    def of_group(values, by):  # (N,) -> (N,)
        return by(jnp.where(same, values[None, :], 0.0), axis=1)

    def scaled(rows):  # by the group's largest entry: a product of two could underflow or overflow
        size = jax.lax.stop_gradient(of_group(jnp.abs(rows).max(1, initial=0.0), jnp.max))
        size = jnp.where((size > 0) & (size < jnp.inf), size, 1.0)
        return rows / size[:, None], size

    total = of_group(share, jnp.sum)
    part = jnp.where(total == 0, 0.0, share / jnp.where(total == 0, 1.0, total))
    by_layer = []
    for layer, delta in zip(layers, deltas, strict=True):
        a, delta = (v.reshape(len(share), -1) for v in (layer.a_in, delta))
        a, a_size = scaled(jnp.concatenate([a, jnp.ones_like(a[:, :1])], 1))  # the column of ones is for the bias
        delta, delta_size = scaled(part[:, None] * delta)
        with jax.default_matmul_precision("highest"):  # so that max_norm is a true bound
            pairs = times_transposed(delta, delta) * times_transposed(a, a)
        square = of_group(jnp.sum(jnp.where(same, pairs, 0.0), 1), jnp.sum)
        zero = square <= 0  # below 0 by rounding, if a group's gradients cancel
        by_layer.append(delta_size * a_size * jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square))))
    return norm_of(jnp.stack(by_layer, -1)).reshape(shape)
