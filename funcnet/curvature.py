"""Curvature by hand: the Gauss-Newton matrix as a product with a vector, and a layer's Kronecker factors.

`H = E[J^T (d^2 loss / d out^2) J]`, `J = d out / d params`, is the part of the Hessian that is positive semi-definite
if the loss is convex. Here `out` is `a_L`, the network's output.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from funcnet.arguments import cast, like, prepared, targets_and_shares
from funcnet.calls import array_function
from funcnet.mlp import backward_sweep, forward_sweep, gradients, masked
from funcnet.network import Masks, Network, Params
from funcnet.products import second_moment, times
from funcnet.sweeps import sweeps

__all__ = ["KroneckerFactors", "gauss_newton_product", "kronecker_factors"]


class KroneckerFactors(NamedTuple):
    """Two second moments of a layer: `E[vec(dW) vec(dW)^T]`, by rows, is about `A` (x) `G`; `E[db^T db]` is `G`."""

    A: Array  # (n_{l-1}, n_{l-1}), E[a_{l-1}^T a_{l-1}]
    G: Array  # (n_l, n_l), E[delta_l^T delta_l], delta of a sample's own loss


@array_function
def gauss_newton_product(
    params: Params,
    direction: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
) -> Params:
    """The Gauss-Newton matrix times a vector, `H v`, in one more sweep forwards and one backwards.

        dz_l    = da_{l-1} W_l + a_{l-1} V_l + c_l,   da_l = f_l'(z_l, a_l) * dz_l,   da_0 = 0,   v = [(V_l, c_l)]
        delta_L = (d^2 loss / d a_L^2 da_L) * f_L'(z_L, a_L) / N

    and from `delta_L` on as in `backward`. Schraudolph, Neural Computation 2002, section 3; Pearlmutter 1994 for the
    forward half. For the second derivative of the loss, JAX differentiates its hand-written `delta`.

    Args:
      params: `[(W_1, b_1), ..., (W_L, b_L)]`.
      direction: the vector, a tree like `params`.
      x: floating, `(..., n_0)`.
      y: class ids `(...)` or targets `(..., K)`.
      network: static; this and the rest as in `funcnet.objective`.
      masks: dropout masks.
      sample_weight: `(...)`.

    Returns:
      The tree of `params`.

    Raises:
      ValueError: as in `funcnet.objective`; `direction` has another structure, shapes or dtypes than `params`.

    >>> import funcnet
    >>> params, x, y = funcnet.init(jax.random.key(0), (4, 8, 3)), jnp.ones((5, 4)), jnp.array([0, 1, 2, 0, 1])
    >>> v = funcnet.backward(params, x, y)
    >>> Hv = gauss_newton_product(params, v, x, y)
    >>> sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(v), jax.tree.leaves(Hv))) > 0
    Array(True, dtype=bool)
    """
    _check_direction(params, direction)
    layers = forward_sweep(*prepared(params, x, network, masks))
    out = layers[-1].a
    y, share = targets_and_shares(y, out, network, sample_weight)
    d_out = _tangent_sweep(layers, cast(direction, network))
    _, curved = jax.jvp(lambda out: network.loss.delta(out, y), (out,), (d_out,))
    delta_L = curved * layers[-1].slope * share[..., None]
    return like(params, gradients(layers, backward_sweep(layers, delta_L)))


@array_function
def kronecker_factors(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
) -> list[KroneckerFactors]:
    """For every layer `A = E[a_{l-1}^T a_{l-1}]` and `G = E[delta_l^T delta_l]`, the factors of K-FAC.

    With the data's labels they are those of the empirical Fisher matrix; with labels drawn from the network's own
    prediction, those of the Fisher matrix. Martens and Grosse, ICML 2015, section 3.

    Args and errors as in `funcnet.objective`; the expectations are its (weighted) means over samples.

    Returns:
      `L` pairs `(A, G)`, in the dtype of computation: float32 at least.

    >>> import funcnet
    >>> params, x = funcnet.init(jax.random.key(0), (4, 8, 3)), jax.random.normal(jax.random.key(1), (5, 4))
    >>> drawn = jax.random.categorical(jax.random.key(2), funcnet.forward(params, x))
    >>> [(A.shape, G.shape) for A, G in kronecker_factors(params, x, drawn)]
    [((4, 4), (8, 8)), ((8, 8), (3, 3))]
    """
    layers, deltas, share = sweeps(params, x, y, network, masks, sample_weight)
    return [
        KroneckerFactors(second_moment(layer.a_in, share, like=layer.W), second_moment(delta, share, like=layer.W))
        for layer, delta in zip(layers, deltas, strict=True)
    ]


def _tangent_sweep(layers, direction) -> Array:
    """The derivative of the output as the parameters move along `direction`, from the first layer to the last."""
    da: Any = None  # the input does not move
    for layer, (V, c) in zip(layers, direction, strict=True):
        dz = times(layer.a_in, V)  # (..., n_{l-1}) -> (..., n_l)
        dz = dz + jnp.broadcast_to(c, dz.shape)
        if da is not None:
            dz = dz + times(masked(da, layer.mask), layer.W)
        da = layer.slope * dz
    return da


def _check_direction(params, direction) -> None:
    def describe(tree):
        return [(leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(tree)]

    same_tree = jax.tree.structure(params) == jax.tree.structure(direction)
    if not same_tree or describe(params) != describe(direction):
        raise ValueError(
            f"direction is {describe(direction)} in {jax.tree.structure(direction)}, expected "
            f"{describe(params)} in {jax.tree.structure(params)}, like params"
        )
