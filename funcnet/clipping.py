"""Clip the gradients of samples, or of groups of samples, before they are summed; `funcnet.per_sample` exports all.

This reweights the deltas of one sweep, so no gradient of a single sample is ever in memory.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from funcnet.arguments import check_key, like, losses_of
from funcnet.calls import array_function
from funcnet.losses import is_class_ids
from funcnet.network import Masks, Network, Params, describe
from funcnet.sweeps import group_norms_of, norms_of, sweeps, weighted_sum

__all__ = ["Clipped", "clipped_backward", "clipped_value_and_backward", "private_sum"]


class Clipped(NamedTuple):
    """The mean of clipped gradients, with norms, losses and counts."""

    grads: Params  # as from `clipped_backward`
    norms: Array  # (...), of each sample's gradient, or of its group's, before clipping
    losses: Array  # (...), of each sample
    clipped: Array  # (), int32: the number of samples, or groups, with a norm above max_norm
    counted: Array  # (), int32: the number of all samples, or groups, without those of weight 0


@array_function
def clipped_backward(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    max_norm: ArrayLike,
    groups: ArrayLike | None = None,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
) -> Params:
    """The mean of the samples' gradients, each clipped: `1/N sum_n g[n] min(1, max_norm / |g[n]|)`.

    With weights it is `sum(w * clipped) / sum(w)`. It takes one pass: the deltas of the sweep are kept and reweighted.

    With `groups`, e.g. the rows of one user or sequence, or the views of one image, a group counts as one sample: its
    gradient `g[k]` is that of the (weighted) mean loss of its rows, and its weight `w[k]` is the sum of theirs. So a
    larger group weighs more; to make groups equal, set `sample_weight` to one over the number of rows of the group.

    Args and errors as in `funcnet.objective`, and:
      max_norm: a number or a scalar array, not negative (a negative one gives NaN); infinite for no limit.
      groups: integers `(...)`, equal within a group; any integers in any order. They take `N^2` numbers of memory.

    Returns:
      The tree of `params`.

    >>> from funcnet import init
    >>> params = init(jax.random.key(0), (4, 3))
    >>> grads = clipped_backward(params, jnp.ones((1, 4)), jnp.array([0]), max_norm=0.1)
    >>> jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    Array(0.1, dtype=float32)
    """
    arrays = {"groups": groups, "masks": masks, "sample_weight": sample_weight}
    return clipped_value_and_backward(params, x, y, network, max_norm=max_norm, **arrays).grads


@array_function
def clipped_value_and_backward(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    max_norm: ArrayLike,
    groups: ArrayLike | None = None,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
) -> Clipped:
    """`clipped_backward` with the norms, the losses and the number of clipped samples, in the same pass.

    Adaptive clipping needs this number: each step multiplies the limit by `exp(-rate (within - quantile))`, so that it
    tends to a quantile of the norms. Andrew, Thakkar, McMahan and Ramaswamy, Differentially private learning
    with adaptive clipping, NeurIPS 2021, section 2.

    Args and errors as in `clipped_backward`.

    Returns:
      `Clipped(grads, norms, losses, clipped, counted)`.

    >>> from funcnet import init
    >>> params, x = init(jax.random.key(0), (4, 3)), jax.random.normal(jax.random.key(1), (64, 4))
    >>> limit = jnp.array(10.0)
    >>> for _ in range(100):
    ...     found = clipped_value_and_backward(params, x, jnp.argmax(x[:, :3], 1), max_norm=limit)
    ...     within = 1 - found.clipped / found.counted
    ...     limit = limit * jnp.exp(-0.2 * (within - 0.5))
    >>> bool(30 <= found.clipped <= 34), bool(abs(limit / jnp.median(found.norms) - 1) < 0.1)
    (True, True)
    """
    layers, deltas, share = sweeps(params, x, y, network, masks, sample_weight)
    norms, first = _norms(layers, deltas, share, groups)
    grads = weighted_sum(layers, deltas, share * _clip_factors(norms, max_norm))
    out, y = layers[-1].a, jnp.asarray(y)
    losses = losses_of(out, y if is_class_ids(y) else y.astype(out.dtype), network)
    clipped = first & ~(norms <= jnp.asarray(max_norm, norms.dtype))
    counts = [jnp.sum(chosen, dtype=jnp.int32) for chosen in (clipped, first)]
    return Clipped(like(params, grads), norms, losses, *counts)


@array_function
def private_sum(
    key: Array,
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    max_norm: ArrayLike,
    noise_multiplier: ArrayLike,
    included: ArrayLike | None = None,
    masks: Masks | None = None,
) -> Params:
    """The differentially private sum, `sum_n clip(g[n], max_norm) + noise_multiplier * max_norm * N(0, 1)`.

    The gradient of DP-SGD: Abadi et al., Deep learning with differential privacy, CCS 2016, algorithm 1. To add or
    remove a sample changes the sum by `max_norm` at most, for any sample: a gradient that is not finite counts as zero.
    Divide the sum by the *expected* batch size, and use a library to compute the privacy spent, for neighbours that
    differ by adding or removing a sample. Floating-point noise is not ideal Gaussian noise (Mironov, CCS 2012).

    Args:
      key: a JAX random key, new for every step, and secret: whoever knows it can subtract the noise.
      params: as in `funcnet.objective`, like the arguments up to `network`.
      x: `(..., n_0)`.
      y: class ids `(...)` or targets `(..., K)`.
      network: static; with a `compute_dtype` the bound holds up to its rounding.
      max_norm: the bound of a sample's influence, not negative.
      noise_multiplier: the noise's standard deviation divided by `max_norm`.
      included: boolean `(...)`, which samples take part, by default all: Poisson sampling draws batches of varying
        size, and with `included` you can pad them to one shape.
      masks: dropout masks.

    Returns:
      The tree of `params`: a sum, not a mean.

    Raises:
      ValueError: as in `funcnet.objective`; `key` is not a random key; `included` is not boolean or does not have one
        entry per sample; `max_norm` or `noise_multiplier` is not a scalar.

    >>> from funcnet import init
    >>> params, x, y = init(jax.random.key(0), (4, 3)), jnp.ones((5, 4)), jnp.array([0, 1, 2, 0, 1])
    >>> taken = jnp.array([True, True, False, False, True])
    >>> grads = private_sum(jax.random.key(1), params, x, y, max_norm=1.0, noise_multiplier=1.1, included=taken)
    >>> [(dW.shape, db.shape) for dW, db in grads]
    [((4, 3), (3,))]
    """
    check_key(key)
    layers, deltas, share = sweeps(params, x, y, network, masks, None)
    norms = norms_of(layers, deltas)
    counts = jnp.isfinite(norms)  # infinity times 0 would not be 0
    if included is not None:
        included = jnp.asarray(included)
        if included.dtype != jnp.bool_ or included.shape != share.shape:
            raise ValueError(
                f"included has dtype {included.dtype} and shape {included.shape}, expected bool and "
                f"{share.shape}, one per sample"
            )
        counts = counts & included
    layers = [layer._replace(a_in=jnp.where(counts[..., None], layer.a_in, 0.0)) for layer in layers]
    deltas = [jnp.where(counts[..., None], delta, 0.0) for delta in deltas]
    weight = _clip_factors(jnp.where(counts, norms, 0.0), max_norm)
    leaves, tree = jax.tree.flatten(weighted_sum(layers, deltas, weight))
    scale = _scalar("noise_multiplier", noise_multiplier, share.dtype) * jnp.asarray(max_norm, share.dtype)
    keys = jax.random.split(key, len(leaves))
    noisy = [g + scale * jax.random.normal(key, g.shape, g.dtype) for g, key in zip(leaves, keys, strict=True)]
    return like(params, jax.tree.unflatten(tree, noisy))


def _norms(layers, deltas, share, groups) -> tuple[Array, Array]:
    """The norm of each sample's gradient, or of its group's; and which samples to count, one per group with weight."""
    if groups is None:
        return norms_of(layers, deltas), share != 0
    groups = jnp.asarray(groups)
    if not jnp.issubdtype(groups.dtype, jnp.integer) or groups.shape != share.shape:
        raise ValueError(
            f"groups has dtype {groups.dtype} and shape {groups.shape}, expected integers and {share.shape}, the group "
            "of each sample: `names, groups = np.unique(groups, return_inverse=True)` numbers other values"
        )
    same = (groups.ravel()[:, None] == groups.ravel()[None, :]) & (share != 0).ravel()[None, :]
    first = jnp.any(same, 1) & (jnp.argmax(same, 1) == jnp.arange(len(same)))
    return group_norms_of(layers, deltas, share, groups), first.reshape(share.shape)


def _clip_factors(norms, max_norm) -> Array:
    """`min(1, max_norm / |g[n]|)`, 1 for a gradient of zero, NaN for one that is not a number."""
    max_norm = _scalar("max_norm", max_norm, norms.dtype)
    within = norms <= max_norm
    factors = jnp.where(within, 1.0, max_norm / jnp.where(within, 1.0, norms))
    return jnp.where(max_norm >= 0, factors, jnp.nan)


def _scalar(name, value, dtype) -> Array:
    if value is None or isinstance(value, (str, list, tuple)) or np.shape(value) != ():
        raise ValueError(f"{name} is {describe(value)}, expected a number")
    return jnp.asarray(value, dtype)
