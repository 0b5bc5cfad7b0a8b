"""Regularizers: data that a pass takes, samples that a batch gains, or functions around an optimizer.

Dropout is masks, label smoothing is targets, virtual adversarial training is more samples; a limit on weights wraps an
`Optimizer` and is one again. None of them is a case in `backward`. Weight decay is `adamw`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from funcnet.losses import is_class_ids, one_hot
from funcnet.mlp import predict
from funcnet.network import Network, Params, check_params, computed_in
from funcnet.optimizers import Optimizer
from funcnet.per_sample import input_backward

__all__ = ["dropout_masks", "limit_weights", "smooth_labels", "virtual_adversarial"]


def dropout_masks(
    key: Array, params: Params, batch_shape: tuple[int, ...], rate: float, *, input_rate: float = 0.0
) -> tuple[Array | None, ...]:
    """Dropout as data: masks for `forward`, `objective` and `backward`, already scaled by `1 / (1 - rate)`.

    `mask ~ Bernoulli(1 - rate) / (1 - rate)`, drawn for every unit of every sample. The same masks go to the forward
    and the backward pass; in evaluation there are none. Srivastava et al., JMLR 2014.

    Args:
      key: a JAX random key.
      params: for the widths and the dtype.
      batch_shape: the leading axes of `x`: `(N,)` for a batch, `()` for one sample.
      rate: the part of the hidden units to drop, in `[0, 1)`; 0 gives no masks.
      input_rate: the same for the inputs.

    Returns:
      `L` masks, `masks[l]` of shape `(*batch_shape, n_l)`, or `None` where nothing is dropped.

    Raises:
      ValueError: a rate outside `[0, 1)`.

    >>> import funcnet
    >>> params = funcnet.init(jax.random.key(0), (4, 1000, 3))
    >>> masks = dropout_masks(jax.random.key(1), params, (64,), 0.5)
    >>> masks[0] is None, masks[1].shape, sorted(set(masks[1].ravel().tolist()))
    (True, (64, 1000), [0.0, 2.0])
    """
    check_params(params)
    for name, value in (("rate", rate), ("input_rate", input_rate)):
        if not 0 <= value < 1:
            raise ValueError(f"dropout_masks: {name} is {value}, expected a number in [0, 1)")

    dtype = computed_in(params)  # in bfloat16, 1 / 0.9 would be off by 0.2%

    def mask(key, n, rate):
        kept = jax.random.bernoulli(key, 1 - rate, (*batch_shape, n))
        return kept.astype(dtype) / (1 - rate)

    keys = jax.random.split(key, len(params))
    rates = (input_rate, *[rate] * (len(params) - 1))
    return tuple(
        mask(key, W.shape[0], rate) if rate > 0 else None for key, (W, _), rate in zip(keys, params, rates, strict=True)
    )


def smooth_labels(y: Array, classes: int, amount: float) -> Array:
    """Soft targets, `(1 - amount) onehot(y) + amount / K`. Szegedy et al., CVPR 2016, section 7.

    Args:
      y: class ids, `(...)`.
      classes: `K`.
      amount: between 0 and 1.

    Returns:
      float32, `(..., K)`. An id out of range gives NaN.

    >>> smooth_labels(jnp.array([1]), 4, 0.2)
    Array([[0.05, 0.85, 0.05, 0.05]], dtype=float32)
    """
    return (1 - amount) * one_hot(y, classes, jnp.float32) + amount / classes


def limit_weights(optimizer: Optimizer, limit: ArrayLike) -> Optimizer:
    """An optimizer after whose updates no unit's incoming weights are longer than `limit`.

    `W[:, j] <- W[:, j] min(1, limit / |W[:, j]|)` after each update; biases are left alone. Srivastava et al., JMLR
    2014, section 5.1, who call it max-norm regularization.

    Args:
      optimizer: an `Optimizer`, or any optax transformation, for `[(W, b), ...]`.
      limit: positive.

    Returns:
      The optimizer, with the same state; its `update` needs `params`.

    >>> from funcnet import apply_updates, sgd
    >>> optimizer = limit_weights(sgd(1.0), 5.0)
    >>> params = [(jnp.array([[3.0, 3.0], [0.0, 4.0]]), jnp.zeros(2))]
    >>> grads = [(jnp.array([[0.0, -3.0], [0.0, -4.0]]), jnp.zeros(2))]
    >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
    >>> apply_updates(params, updates)[0][0]
    Array([[3., 3.],
           [0., 4.]], dtype=float32)
    """

    def update(grads, state, params):
        updates, state = optimizer.update(grads, state, params)

        def shortened(W, dW):
            new = W.astype(dW.dtype) + dW
            norm = jnp.linalg.norm(new, axis=0, keepdims=True)  # (1, n_out)
            return new * (limit / jnp.maximum(norm, limit)) - W.astype(dW.dtype)

        layers = zip(params, updates, strict=True)
        return [(shortened(W, dW), db) for (W, _), (dW, db) in layers], state

    return Optimizer(optimizer.init, update)


def virtual_adversarial(
    key: Array,
    params: Params,
    x: Array,
    y: Array,
    sample_weight: Array | None = None,
    network: Network = Network(),
    *,
    radius: float,
    probe: float = 0.1,
    iterations: int = 1,
) -> tuple[Array, Array, Array | None]:
    """Virtual adversarial training as twice the samples: `(x, y)`, and `(x + r, p)`, `p` being the prediction for `x`.

    `r` is the step of length `radius` that changes `p` most, by the power method: from a random direction `d`, `d <-`
    the gradient of `KL(p || p(x + probe d))` with respect to `x`, which is that of the loss with `p` as the target. The
    objective over both halves is half the paper's `loss + KL(p || p(x + r))`, but for the entropy of `p`, which is
    taken as given. An `augment` for `make_epoch`. Miyato, Maeda, Koyama and Ishii, PAMI 2018, algorithm 1.

    Args:
      key: a JAX random key.
      params: the network whose `p` it is; nothing is differentiated through it.
      x: floating, `(N, n_0)`.
      y: class ids `(N,)` or targets `(N, K)`.
      sample_weight: `(N,)` or `None`.
      network: static; its loss takes its own predictions as targets.
      radius: the length of `r`.
      probe: the length of the step along which the method looks.
      iterations: of the power method.

    Returns:
      `x` `(2N, n_0)`, targets `(2N, K)`, and weights `(2N,)`, or `None` for none.

    >>> from funcnet import init
    >>> params, x, y = init(jax.random.key(0), (4, 8, 3)), jnp.ones((5, 4)), jnp.array([0, 1, 2, 0, 1])
    >>> x2, y2, _ = virtual_adversarial(jax.random.key(1), params, x, y, radius=0.5)
    >>> x2.shape, y2.shape, jnp.linalg.norm(x2[5:] - x, axis=1).round(3).tolist()
    ((10, 4), (10, 3), [0.5, 0.5, 0.5, 0.5, 0.5])
    """
    p = predict(params, x, network)
    d = _unit(jax.random.normal(key, x.shape, x.dtype))
    for _ in range(iterations):
        d = _unit(input_backward(params, x + probe * d, p, network))
    targets = one_hot(y, p.shape[-1], p.dtype) if is_class_ids(y) else y.astype(p.dtype)
    weights = None if sample_weight is None else jnp.concatenate([sample_weight, sample_weight])
    return jnp.concatenate([x, x + radius * d]), jnp.concatenate([targets, p]), weights


def _unit(d):
    """Each row over its norm; a row of zeros, which leads nowhere, stays."""
    norm = jnp.linalg.norm(d, axis=-1, keepdims=True)
    return d / jnp.where(norm > 0, norm, 1)
