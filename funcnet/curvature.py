"""Curvature by hand: the Gauss-Newton matrix as a product with a vector, and a layer's Kronecker factors.

`H = E[J^T (d^2 loss / d out^2) J]`, `J = d out / d params`, is the part of the Hessian that a convex loss makes
positive semi-definite. Here `out` is `a_L`, so `H` is that of the loss on the network's output.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from funcnet import mlp, per_sample
from funcnet.activations import Activation, identity, relu
from funcnet.losses import Loss, softmax_cross_entropy
from funcnet.mlp import Hidden, Masks, Params


class KroneckerFactors(NamedTuple):
    """Two second moments of a layer: `E[vec(dW) vec(dW)^T]`, by rows, is about `A` (x) `G`, `E[db^T db]` is `G`."""

    A: Array  # (n_{l-1}, n_{l-1}), E[a_{l-1}^T a_{l-1}]
    G: Array  # (n_l, n_l), E[delta_l^T delta_l], delta of a sample's own loss


@partial(jax.jit, static_argnames=mlp.STATICS)
def gauss_newton_product(
    params: Params,
    direction: Params,
    x: ArrayLike,
    y: ArrayLike,
    *,
    hidden: Hidden = relu,
    output: Activation = identity,
    loss: Loss = softmax_cross_entropy,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Params:
    """The Gauss-Newton matrix times a vector, `H v`, in one more sweep forwards and one backwards.

        dz_l    = da_{l-1} W_l + a_{l-1} V_l + c_l,   da_l = f_l'(z_l, a_l) * dz_l,   da_0 = 0,   v = [(V_l, c_l)]
        delta_L = (d^2 loss / d a_L^2 da_L) * f_L'(z_L, a_L) / N

    and from `delta_L` on as in `backward`. Schraudolph, Neural Computation 2002, section 3; Pearlmutter 1994 for the
    forward half. The second derivative of the loss is the derivative of its hand-written `delta`, which JAX takes.

    Args:
      params: `[(W_1, b_1), ..., (W_L, b_L)]`.
      direction: the vector, a tree like `params`.
      x: floating, `(..., n_0)`.
      y: class ids `(...)` or targets `(..., K)`.
      hidden: static; this and the rest as in `funcnet.objective`.
      output: static.
      loss: static.
      masks: dropout masks.
      sample_weight: `(...)`.
      compute_dtype: static.

    Returns:
      The tree of `params`.

    Raises:
      ValueError: as in `funcnet.objective`; `direction` has another structure, shapes or dtypes than `params`.

    >>> params, x, y = mlp.init(jax.random.key(0), (4, 8, 3)), jnp.ones((5, 4)), jnp.array([0, 1, 2, 0, 1])
    >>> v = mlp.backward(params, x, y)
    >>> Hv = gauss_newton_product(params, v, x, y)
    >>> sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(v), jax.tree.leaves(Hv))) > 0
    Array(True, dtype=bool)
    """
    _check_direction(params, direction)
    x, activations, masks, dtype = mlp.prepare(params, x, hidden, output, masks, compute_dtype)
    trace = mlp.forward_sweep(params, x, activations, masks, dtype)
    z_L, a_L = trace.pre_activations[-1], trace.activations[-1]
    y, share = mlp.targets_and_shares(y, a_L, loss, sample_weight)

    da_L = _tangent_sweep(params, direction, trace, activations, masks, dtype)
    _, curved = jax.jvp(lambda out: loss.delta(out, y), (a_L,), (da_L,))
    delta_L = curved * output.deriv(z_L, a_L) * share[..., None]
    deltas = mlp.backward_sweep(params, trace, delta_L, activations, masks, dtype)
    return mlp.like(params, [
        mlp.layer_gradient(W, a, delta, dtype)
        for (W, _), a, delta in zip(params, mlp.layer_inputs(trace, masks), deltas, strict=True)
    ])  # fmt: skip


@partial(jax.jit, static_argnames=mlp.STATICS)
def kronecker_factors(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    *,
    hidden: Hidden = relu,
    output: Activation = identity,
    loss: Loss = softmax_cross_entropy,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
    compute_dtype: DTypeLike | None = None,
) -> list[KroneckerFactors]:
    """For every layer `A = E[a_{l-1}^T a_{l-1}]` and `G = E[delta_l^T delta_l]`, as K-FAC takes them.

    With the data's labels these are the factors of the empirical Fisher matrix, with labels drawn from the network's
    own prediction those of the Fisher matrix. Martens and Grosse, ICML 2015, section 3.

    Args and errors as in `funcnet.objective`; the expectations are its (weighted) means over samples.

    Returns:
      `L` pairs `(A, G)`, in the dtype of computation: float32 at least.

    >>> params, x = mlp.init(jax.random.key(0), (4, 8, 3)), jax.random.normal(jax.random.key(1), (5, 4))
    >>> drawn = jax.random.categorical(jax.random.key(2), mlp.forward(params, x))
    >>> [(A.shape, G.shape) for A, G in kronecker_factors(params, x, drawn)]
    [((4, 4), (8, 8)), ((8, 8), (3, 3))]
    """
    inputs, deltas, share, dtype = per_sample.sweeps(
        params, x, y, hidden, output, loss, masks, sample_weight, compute_dtype
    )

    # The same on every device, wherever the batch and the parameters are.
    everywhere = jax.sharding.NamedSharding(jax.typeof(params[0][0]).sharding.mesh, jax.sharding.PartitionSpec())

    def second_moment(v):
        product = mlp.summed_products(v, share[..., None] * v, everywhere, dtype)
        return (product + product.T) / 2  # the two factors are rounded each by itself

    return [KroneckerFactors(second_moment(a), second_moment(delta)) for a, delta in zip(inputs, deltas, strict=True)]


def _tangent_sweep(params, direction, trace, activations, masks, dtype) -> Array:
    """From the first layer to the last: how the output moves as the parameters move along `direction`."""
    da = jnp.zeros(())  # the input does not move
    layers = zip(params, direction, activations, masks, mlp.layer_inputs(trace, masks), trace.pre_activations,
                 trace.activations[1:], strict=True)  # fmt: skip
    for l, ((W, _), (V, c), f, mask, a_in, z, a) in enumerate(layers):
        dz = mlp.product("...i,ij->...j", a_in, V, dtype)  # (..., n_in) -> (..., n_out)
        dz = dz + jnp.broadcast_to(c.astype(dz.dtype), dz.shape)
        if l > 0:
            dz = dz + mlp.product("...i,ij->...j", mlp.masked(da, mask), W, dtype)
        da = f.deriv(z, a) * dz
    return da


def _check_direction(params, direction) -> None:
    def describe(tree):
        return [(leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(tree)]

    same_tree = jax.tree.structure(params) == jax.tree.structure(direction)
    if not same_tree or describe(params) != describe(direction):
        raise ValueError(f"direction is {describe(direction)} in {jax.tree.structure(direction)}, expected "
                         f"{describe(params)} in {jax.tree.structure(params)}, as params are")  # fmt: skip
