"""Regularizers: pure data that a pass takes, or pure functions around it."""

import jax
import jax.numpy as jnp
from jax import Array

from funcnet.mlp import Params
from funcnet.validation import check_params


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

    dtype = jnp.float64 if params[0][0].dtype == jnp.float64 else jnp.float32  # in bfloat16, 1 / 0.9 is off by 0.2%

    def mask(key, n, rate):
        kept = jax.random.bernoulli(key, 1 - rate, (*batch_shape, n))
        return kept.astype(dtype) / (1 - rate)

    keys = jax.random.split(key, len(params))
    rates = (input_rate, *[rate] * (len(params) - 1))
    return tuple(
        mask(key, W.shape[0], rate) if rate > 0 else None for key, (W, _), rate in zip(keys, params, rates, strict=True)
    )
