"""Regularizers: arguments of a pass, additional samples, or wrappers of an optimizer.

Dropout gives masks, label smoothing gives targets, virtual adversarial training gives more samples. A limit on weights
or on the gradient wraps an `Optimizer` in another one. So `backward` has no special case for any of them. For weight
decay use `adamw`, with `mask=weights_only` for `W` alone.

Every rate and limit is a Python or NumPy number within its range, or a traced scalar, e.g. to `vmap` over; a traced one
out of range gives NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from funcnet.arguments import check_input, check_key, check_params, computed_in
from funcnet.losses import is_class_ids, label_targets, one_hot
from funcnet.mlp import predict
from funcnet.network import Network, Params
from funcnet.optimizers import Optimizer, update_with, wide
from funcnet.per_sample import input_backward
from funcnet.sweeps import norm_of

__all__ = [
    "clip_by_global_norm", "dropout_masks", "limit_weights", "smooth_labels", "virtual_adversarial", "weights_only",
]  # fmt: skip


def dropout_masks(
    key: Array, params: Params, batch_shape: tuple[int, ...], rate: ArrayLike, *, input_rate: ArrayLike = 0.0
) -> tuple[Array | None, ...]:
    """Dropout as data: masks for `forward`, `objective` and `backward`, already scaled by `1 / (1 - rate)`.

    `mask ~ Bernoulli(1 - rate) / (1 - rate)`, drawn for every unit of every sample. Pass the same masks to the forward
    and the backward pass, and none in evaluation. Srivastava et al., JMLR 2014.

    Args:
      key: a JAX random key.
      params: for the widths and the dtype.
      batch_shape: the leading axes of `x`: `(N,)` for a batch, `()` for one sample.
      rate: the fraction of the hidden units to drop, in `[0, 1)`; the number 0 gives no masks.
      input_rate: the same for the inputs.

    Returns:
      `L` masks, `masks[l]` of shape `(*batch_shape, n_l)`, or `None` where nothing is dropped.

    Raises:
      ValueError: a rate is outside `[0, 1)`, `key` is not a random key, or `batch_shape` is not a tuple.

    >>> import funcnet
    >>> params = funcnet.init(jax.random.key(0), (4, 1000, 3))
    >>> masks = dropout_masks(jax.random.key(1), params, (64,), 0.5)
    >>> masks[0] is None, masks[1].shape, sorted(set(masks[1].ravel().tolist()))
    (True, (64, 1000), [0.0, 2.0])
    """
    check_key(key)
    check_params(params)
    if not isinstance(batch_shape, (tuple, list)):
        raise ValueError(f"dropout_masks: batch_shape is {batch_shape!r:.80}, expected a tuple, e.g. x.shape[:-1]")
    dtype = computed_in(params)  # in bfloat16, 1 / 0.9 would be off by 0.2%
    rate, input_rate = (
        _number(f"dropout_masks: {name}", value, "in [0, 1)", lambda rate: (rate >= 0) & (rate < 1), dtype)
        for name, value in (("rate", rate), ("input_rate", input_rate))
    )

    def mask(key, n, rate):
        if isinstance(rate, float) and rate == 0:
            return None
        kept = jax.random.bernoulli(key, 1 - rate, (*batch_shape, n))
        scaled = kept.astype(dtype) / (1 - rate)
        if isinstance(rate, float):
            return scaled
        return jnp.where(jnp.isnan(rate), rate, scaled)  # compiled, 0 / NaN may be 0: it would silently drop all

    keys = jax.random.split(key, len(params))
    rates = (input_rate, *[rate] * (len(params) - 1))
    return tuple(mask(key, W.shape[0], rate) for key, (W, _), rate in zip(keys, params, rates, strict=True))


def smooth_labels(y: ArrayLike, classes: int, amount: ArrayLike) -> Array:
    """Soft targets, `(1 - amount) onehot(y) + amount / K`. Szegedy et al., CVPR 2016, section 7.

    Args:
      y: class ids, `(...)`.
      classes: `K`.
      amount: between 0 and 1.

    Returns:
      float32, `(..., K)`. An id out of range gives NaN.

    Raises:
      ValueError: `y` does not hold class ids, `classes` is below 2, or `amount` is out of range.

    >>> smooth_labels(jnp.array([1]), 4, 0.2)
    Array([[0.05, 0.85, 0.05, 0.05]], dtype=float32)
    """
    y = jnp.asarray(y)
    if not is_class_ids(y):
        raise ValueError(f"smooth_labels: y has dtype {y.dtype}, expected an integer dtype (class ids)")
    if isinstance(classes, bool) or not isinstance(classes, Integral) or classes < 2:
        raise ValueError(f"smooth_labels: classes is {classes!r:.80}, expected a whole number >= 2")
    part = _number("smooth_labels: amount", amount, "in [0, 1]", lambda part: (part >= 0) & (part <= 1))
    return (1 - part) * one_hot(y, int(classes), jnp.float32) + part / int(classes)


def limit_weights(optimizer: Optimizer, limit: ArrayLike) -> Optimizer:
    """An optimizer that limits the norm of each unit's incoming weights to `limit` after each update.

    `W[:, j] <- W[:, j] min(1, limit / |W[:, j]|)`; biases are not limited. Called max-norm regularization in Srivastava
    et al., JMLR 2014, section 5.1.

    Args:
      optimizer: an `Optimizer`, or any optax transformation, for `[(W, b), ...]`, or any tree in which each leaf with
        two axes is a `W`.
      limit: positive; infinite for no limit.

    Returns:
      The optimizer, with the same state; its `update` needs `params`.

    Raises:
      ValueError: the limit is not positive; from `update`, if there are no `params`.

    >>> from funcnet import apply_updates, sgd
    >>> optimizer = limit_weights(sgd(1.0), 5.0)
    >>> params = [(jnp.array([[3.0, 3.0], [0.0, 4.0]]), jnp.zeros(2))]
    >>> grads = [(jnp.array([[0.0, -3.0], [0.0, -4.0]]), jnp.zeros(2))]
    >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
    >>> apply_updates(params, updates)[0][0]
    Array([[3., 3.],
           [0., 4.]], dtype=float32)
    """
    limit = _number("limit_weights: limit", limit, "above 0 (inf for none)", lambda limit: limit > 0)

    def update(grads, state, params=None, **extra):
        if params is None:
            raise ValueError("limit_weights: update needs params, whose norm is limited: update(grads, state, params)")
        updates, state = update_with(optimizer, grads, state, params, **extra)

        def shortened(W, dW):
            if jnp.ndim(W) != 2:
                return dW
            old = wide(W)
            new = old + dW.astype(old.dtype)
            factor = _factor(norm_of(new.T)[None, :], limit)  # (1, n_out)
            return jnp.where(factor == 1, dW, (new * factor - old).astype(dW.dtype))

        return jax.tree.map(shortened, params, updates), state

    return Optimizer(optimizer.init, update)


def clip_by_global_norm(optimizer: Optimizer, max_norm: ArrayLike) -> Optimizer:
    """An optimizer that first clips the gradient, all leaves as one vector, to a norm of `max_norm`.

    `g <- g min(1, max_norm / |g|)`. Pascanu, Mikolov and Bengio, ICML 2013, algorithm 1. If the gradient is not finite,
    all of it becomes NaN, so that you notice. To clip each sample's gradient, use `funcnet.clipped_backward`.

    Args:
      optimizer: an `Optimizer`, or any optax transformation, for any tree.
      max_norm: positive; infinite for no limit.

    Returns:
      The optimizer, with the same state.

    Raises:
      ValueError: `max_norm` is not positive.

    >>> from funcnet import sgd
    >>> optimizer = clip_by_global_norm(sgd(1.0), 1.0)
    >>> optimizer.update({"w": jnp.array([30.0]), "b": jnp.array([40.0])}, optimizer.init({}))[0]
    {'b': Array([-0.8], dtype=float32), 'w': Array([-0.6], dtype=float32)}
    """
    max_norm = _number("clip_by_global_norm: max_norm", max_norm, "above 0 (inf for none)", lambda limit: limit > 0)

    def update(grads, state, params=None, **extra):
        norm = _global_norm(jax.tree.leaves(grads))
        factor = _factor(jnp.where(jnp.isfinite(norm), norm, jnp.nan), max_norm)
        grads = jax.tree.map(lambda g: (wide(g) * factor.astype(wide(g).dtype)).astype(g.dtype), grads)
        return update_with(optimizer, grads, state, params, **extra)

    return Optimizer(optimizer.init, update)


def weights_only(params: Any) -> Any:
    """Which leaves are weights (two axes or more), not biases: the `mask` of `adamw`, also of optax's.

    >>> weights_only([(jnp.ones((3, 2)), jnp.ones(2))])
    [(True, False)]
    """
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


def virtual_adversarial(
    key: Array,
    params: Params,
    x: Array,
    y: Array,
    sample_weight: Array | None = None,
    network: Network = Network(),
    *,
    radius: ArrayLike,
    probe: ArrayLike = 0.1,
    iterations: int = 1,
) -> tuple[Array, Array, Array | None]:
    """Virtual adversarial training by twice the samples: `(x, y)` and `(x + r, p)`; `p` is the prediction for `x`.

    `r` is about the step of length `radius` that changes `p` most. The power method finds it, from a random `d`: `d <-`
    the gradient of `KL(p || p(x + probe d))` with respect to `x`, which is that of the loss with `p` as the target. The
    objective over both halves is half the paper's `loss + KL(p || p(x + r))`, plus half the entropy of `p`, which is
    constant. Use it as an `augment` for `make_epoch`. Miyato, Maeda, Koyama and Ishii, PAMI 2018, algorithm 1.

    Args:
      key: a JAX random key.
      params: the network that predicts `p`; `p` is a constant, not differentiated.
      x: floating, `(N, n_0)`.
      y: class ids `(N,)` or targets `(N, K)`.
      sample_weight: `(N,)` or `None`.
      network: static; its loss takes its own predictions as targets.
      radius: the length of `r`, not negative.
      probe: the length of the step in the power method, positive.
      iterations: of the power method; 0 keeps the random direction.

    Returns:
      `x` `(2N, n_0)`, targets `(2N, K)`, and weights `(2N,)`, or `None` for none.

    Raises:
      ValueError: as in `funcnet.objective`; a number is out of range.

    >>> from funcnet import init
    >>> params, x, y = init(jax.random.key(0), (4, 8, 3)), jnp.ones((5, 4)), jnp.array([0, 1, 2, 0, 1])
    >>> x2, y2, _ = virtual_adversarial(jax.random.key(1), params, x, y, radius=0.5)
    >>> x2.shape, y2.shape, jnp.linalg.norm(x2[5:] - x, axis=1).round(3).tolist()
    ((10, 4), (10, 3), [0.5, 0.5, 0.5, 0.5, 0.5])
    """
    check_key(key)
    x, y = jnp.asarray(x), jnp.asarray(y)
    check_params(params)
    check_input(params, x)
    radius = _number("virtual_adversarial: radius", radius, "in [0, inf)", lambda r: (r >= 0) & (r < np.inf), x.dtype)
    probe = _number("virtual_adversarial: probe", probe, "in (0, inf)", lambda r: (r > 0) & (r < np.inf), x.dtype)
    if isinstance(iterations, bool) or not isinstance(iterations, Integral) or iterations < 0:
        raise ValueError(f"virtual_adversarial: iterations is {iterations!r:.80}, expected a whole number >= 0")
    p = predict(params, x, network)
    d = _unit(jax.random.normal(key, x.shape, x.dtype))
    for _ in range(iterations):
        d = _unit(input_backward(params, x + probe * d, p, network))
    targets = label_targets(p, y) if is_class_ids(y) else y.astype(p.dtype)
    weights = None if sample_weight is None else jnp.concatenate([sample_weight, sample_weight])
    return jnp.concatenate([x, x + radius * d]), jnp.concatenate([targets, p]), weights


def _unit(d):
    """Each row divided by its norm; a row of zeros is unchanged."""
    norm = norm_of(d)[..., None]
    return d / jnp.where(norm > 0, norm, 1)


def _global_norm(leaves) -> Array:
    """The norm of all leaves as one vector, scaled by its largest entry: a square could underflow or overflow."""
    leaves = [wide(leaf) for leaf in leaves]
    dtype = jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in leaves) else jnp.float32
    leaves = [leaf.astype(dtype) for leaf in leaves]
    largest = jnp.max(jnp.stack([jnp.zeros((), dtype), *(jnp.max(jnp.abs(g), initial=0.0) for g in leaves)]))
    scale = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1.0)
    return scale * jnp.sqrt(sum((jnp.sum((g / scale) ** 2) for g in leaves), jnp.zeros((), dtype)))


def _factor(norm, limit) -> Array:
    """`min(1, limit / norm)`; NaN if the norm is NaN, and 1 without a limit."""
    limit = jnp.asarray(limit, norm.dtype)
    within = (norm <= limit) | (limit == jnp.inf)
    return jnp.where(within, 1.0, limit / jnp.where(within, 1.0, norm))


def _number(name: str, value: Any, expected: str, is_in_range: Callable[[Any], Any], dtype: Any = jnp.float32) -> Any:
    """A number, checked to be in range, as a float; or a traced one in `dtype`, NaN if it is out of range."""
    known = not isinstance(value, (Tracer, bool, str, bytes))
    real = hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.number) and not jnp.iscomplexobj(value)
    if np.shape(value) != () or not (real or (known and isinstance(value, (int, float)))):
        raise ValueError(f"{name} is {value!r:.80}, expected a number {expected}")
    if known:
        value = float(value)
        if not is_in_range(value):
            raise ValueError(f"{name} is {value:g}, expected a number {expected}")
        return value
    traced = jnp.asarray(value, dtype)
    return jnp.where(is_in_range(traced), traced, jnp.nan)
