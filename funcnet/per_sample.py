"""Per-sample gradients from the hand-written backward: the norms, clipping and moments of every sample's gradient.

The two sweeps over a batch hold each sample's `a_{l-1}` and `delta_l`, and a sample's gradient is their outer product.
So its norm is `|dW_l|^2 = |a_{l-1}|^2 |delta_l|^2`, `|db_l|^2 = |delta_l|^2`, and a weighted sum of gradients is one
matrix product with weighted deltas. Norms, clipped sums and variances take about the time of one pass, and no gradient
of a single sample is in memory. Goodfellow, Efficient per-example gradient computations, 2015.

A sample's gradient is that of its own loss, without `1 / N` or a weight; `sample_weight` weighs samples in a mean.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from funcnet import mlp
from funcnet.arguments import like
from funcnet.calls import array_function
from funcnet.clipping import Clipped, clipped_backward, clipped_value_and_backward, private_sum
from funcnet.network import Masks, Network, Params
from funcnet.products import outer, times_transposed
from funcnet.sweeps import norm_of, norms_of, sweeps, weighted_sum

__all__ = [
    "Clipped", "Moments", "NoiseScale", "clipped_backward", "clipped_value_and_backward", "gradient_moments",
    "gradient_noise_scale", "input_backward", "per_sample_backward", "per_sample_norms", "private_sum",
]  # fmt: skip


class Moments(NamedTuple):
    """The mean of the samples' gradients and their variance around it, entry by entry."""

    mean: Params  # equal to `backward`
    variance: Params  # not negative


class NoiseScale(NamedTuple):
    """How noisy the gradient of one sample is, estimated without bias from one batch."""

    ratio: Array  # (), trace / squared_norm: the batch size at which signal and noise are equal
    trace: Array  # (), of the covariance of a sample's gradient
    squared_norm: Array  # (), of the expected gradient; an estimate, so it may be negative


@array_function
def per_sample_backward(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    masks: Masks | None = None,
) -> Params:
    """The gradient of every sample's own loss, `dW_l[n] = a_{l-1}[n]^T delta_l[n]`, `db_l[n] = delta_l[n]`.

    Their mean over the samples is `backward`. It takes `N` times the memory of the parameters; the functions below do
    not.

    Args and errors as in `funcnet.objective`, except that there is no `sample_weight`.

    Returns:
      The tree of `params`, each leaf with the leading axes `(...)` of `x` in front.

    >>> params = mlp.init(jax.random.key(0), (4, 8, 3))
    >>> grads = per_sample_backward(params, jnp.ones((5, 4)), jnp.array([0, 1, 2, 0, 1]))
    >>> [(dW.shape, db.shape) for dW, db in grads]
    [((5, 4, 8), (5, 8)), ((5, 8, 3), (5, 3))]
    """
    layers, deltas, _ = sweeps(params, x, y, network, masks, None)
    return like(
        params, [(outer(layer.a_in, delta, like=layer.W), delta) for layer, delta in zip(layers, deltas, strict=True)]
    )


@array_function(static_argnames="per_leaf")
def per_sample_norms(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    masks: Masks | None = None,
    per_leaf: bool = False,
) -> Array | Params:
    """The norm of every sample's gradient, `|g[n]|^2 = sum_l |delta_l[n]|^2 (|a_{l-1}[n]|^2 + 1)`.

    Args and errors as in `per_sample_backward`, and `per_leaf`, static: one norm for each `W` and `b` instead of one
    for all.

    Returns:
      `(...)`, the leading axes of `x`; with `per_leaf` the tree of `params`, each leaf of that shape. The dtype is that
      of the computation: float32 at least.

    >>> from funcnet import zeros
    >>> params = mlp.init(jax.random.key(0), (4, 3), weights=zeros)
    >>> per_sample_norms(params, jnp.ones((2, 4)), jnp.array([0, 2]))  # |softmax - y| sqrt(4 + 1)
    Array([1.8257, 1.8257], dtype=float32)
    """
    layers, deltas, _ = sweeps(params, x, y, network, masks, None)
    if per_leaf:
        pairs = zip(layers, deltas, strict=True)
        norms = [(norm_of(delta) * norm_of(layer.a_in), norm_of(delta)) for layer, delta in pairs]
        return jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(norms))
    return norms_of(layers, deltas)


@array_function
def input_backward(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
) -> Array:
    """The gradient of `objective` with respect to the input, `delta_1 W_1^T`: saliency, adversarial examples.

    It has a row per sample, which includes the `1 / N` of the mean. Simonyan, Vedaldi and Zisserman, 2014; Goodfellow,
    Shlens and Szegedy, ICLR 2015.

    Args and errors as in `funcnet.objective`.

    Returns:
      Shape and dtype of `x`.

    >>> params = mlp.init(jax.random.key(0), (4, 8, 3))
    >>> x, y = jnp.ones((5, 4)), jnp.array([0, 1, 2, 0, 1])
    >>> fooling = x + 0.1 * jnp.sign(input_backward(params, x, y))
    >>> bool(mlp.objective(params, fooling, y) > mlp.objective(params, x, y))
    True
    """
    layers, deltas, share = sweeps(params, x, y, network, masks, sample_weight)
    dx = times_transposed(deltas[0] * share[..., None], layers[0].W)  # (..., n_1) -> (..., n_0)
    return mlp.masked(dx, layers[0].mask).astype(jnp.asarray(x).dtype)


@array_function
def gradient_moments(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
) -> Moments:
    """Mean and variance of the samples' gradients, entry by entry: `E[g]` and `E[g^2] - E[g]^2`.

    `E[dW_l^2] = E[a_{l-1}^2^T delta_l^2]`: one more matrix product per layer. The variance is that of the batch, like
    NumPy's `var`; times `N / (N - 1)` it estimates that of the population. It is a difference, so its error is some eps
    (of `compute_dtype`, if there is one) times `E[g^2]`. Dangel, Kunstner and Hennig, BackPACK, ICLR 2020.

    Args and errors as in `funcnet.objective`.

    Returns:
      `Moments(mean, variance)`, two trees like `params`.

    >>> params = mlp.init(jax.random.key(0), (4, 3))
    >>> mean, variance = gradient_moments(params, jnp.ones((2, 4)), jnp.array([1, 1]))  # twice the same sample
    >>> max(leaf.max() for leaf in jax.tree.leaves(variance)) < 1e-7
    Array(True, dtype=bool)
    """
    layers, deltas, share = sweeps(params, x, y, network, masks, sample_weight)
    mean = weighted_sum(layers, deltas, share)
    squared = [layer._replace(a_in=layer.a_in * layer.a_in) for layer in layers]
    squares = weighted_sum(squared, [delta * delta for delta in deltas], share)
    variance = jax.tree.map(lambda square, m: jnp.maximum(square - m * m, 0.0), squares, mean)
    return Moments(like(params, mean), like(params, variance))


@array_function
def gradient_noise_scale(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
) -> NoiseScale:
    """The simple noise scale `tr(Sigma) / |G|^2`: about the largest batch size that is still efficient.

    `Sigma` is the covariance of a sample's gradient, `G` its expectation, both estimated without bias from `N` samples:
    `tr(Sigma) = (E|g|^2 - |E g|^2) N / (N - 1)` and `|G|^2 = |E g|^2 - tr(Sigma) / N`; with weights `w`, `N` is
    `sum(w)^2 / sum(w^2)`. McCandlish, Kaplan, Amodei et al., An empirical model of large-batch training, 2018,
    equation 2.9 and appendix A.1. Average the two estimates over several batches before you divide them: the ratio from
    one batch is noisy.

    Args and errors as in `funcnet.objective`. It needs at least two samples; one gives NaN.

    Returns:
      `NoiseScale(ratio, trace, squared_norm)`.

    >>> params, x = mlp.init(jax.random.key(0), (4, 3)), jax.random.normal(jax.random.key(1), (64, 4))
    >>> scale = gradient_noise_scale(params, x, jnp.argmax(x[:, :3], 1))
    >>> bool(scale.trace > 0), scale.ratio.shape
    (True, ())
    """
    layers, deltas, share = sweeps(params, x, y, network, masks, sample_weight)
    mean = weighted_sum(layers, deltas, share)
    norm_of_mean = sum(jnp.sum(g * g) for g in jax.tree.leaves(mean))
    mean_of_norms = jnp.sum(share * norms_of(layers, deltas) ** 2)
    one_over_N = jnp.sum(share * share)
    more_than_one = one_over_N < 1 - 8 * jnp.finfo(share.dtype).eps
    trace = jnp.where(more_than_one, (mean_of_norms - norm_of_mean) / (1 - one_over_N), jnp.nan)
    squared_norm = norm_of_mean - trace * one_over_N
    return NoiseScale(trace / squared_norm, trace, squared_norm)
