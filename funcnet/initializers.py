"""Initializers: pure functions `(key, shape, dtype) -> array`.

A weight has shape `(n_in, n_out)`. The scaled ones keep the variance of a signal constant from layer to layer:
He for ReLU-like activations, Glorot (forwards and backwards at once) for tanh, LeCun for identity and selu-like.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

Initializer = Callable[[Array, tuple[int, ...], DTypeLike], Array]  # (key, shape, dtype) -> array of that shape


def _fans(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """`(n_in, n_out)` of a weight; a width of 0 counts as 1, since an empty array has nothing to scale."""
    if len(shape) != 2:
        raise ValueError(f"{name} needs a weight's shape (n_in, n_out), got {shape}; for biases take zeros, "
                         "standard_normal or uniform(low, high)")  # fmt: skip
    return max(shape[0], 1), max(shape[1], 1)


def zeros(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """All zeros; the key is not looked at.

    >>> zeros(jax.random.key(0), (2,))
    Array([0., 0.], dtype=float32)
    """
    del key
    return jnp.zeros(shape, dtype)


def standard_normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Normal with mean 0 and variance 1.

    >>> standard_normal(jax.random.key(0), (2, 3)).shape
    (2, 3)
    """
    return jax.random.normal(key, shape, dtype)


def uniform(low: float, high: float) -> Initializer:
    """Uniform on `[low, high)`.

    Args:
      low: finite.
      high: finite, above `low`.

    Returns:
      An initializer; one for each pair of bounds, so that it is one static value.

    Raises:
      ValueError: the bounds are not finite numbers with `low < high`.

    >>> w = uniform(-0.5, 0.5)(jax.random.key(0), (100, 100), jnp.float32)
    >>> bool((-0.5 <= w).all() and (w < 0.5).all())
    True
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"uniform: low={low!r}, high={high!r}, expected finite numbers with low < high")
    return _uniform(float(low), float(high))


@functools.cache  # by value: a keyword would be another key
def _uniform(low: float, high: float) -> Initializer:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, low, high)


def he_normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Normal with variance `2 / n_in`; He et al., ICCV 2015, equation 10.

    Raises:
      ValueError: the shape is not a weight's, `(n_in, n_out)`.

    >>> W = he_normal(jax.random.key(0), (400, 500))
    >>> round(float(W.var()) * 400, 1)
    2.0
    """
    n_in, _ = _fans("he_normal", shape)
    return jax.random.normal(key, shape, dtype) * math.sqrt(2 / n_in)


def he_uniform(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Uniform with variance `2 / n_in`, so within `±sqrt(6 / n_in)`; He et al., ICCV 2015.

    Raises:
      ValueError: the shape is not a weight's, `(n_in, n_out)`.

    >>> W = he_uniform(jax.random.key(0), (400, 500))
    >>> round(float(W.var()) * 400, 1), bool((abs(W) <= (6 / 400) ** 0.5).all())
    (2.0, True)
    """
    n_in, _ = _fans("he_uniform", shape)
    bound = math.sqrt(6 / n_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def glorot_normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Normal with variance `2 / (n_in + n_out)`; Glorot and Bengio, AISTATS 2010, equation 12.

    Raises:
      ValueError: the shape is not a weight's, `(n_in, n_out)`.

    >>> W = glorot_normal(jax.random.key(0), (400, 500))
    >>> round(float(W.var()) * (400 + 500), 1)
    2.0
    """
    return jax.random.normal(key, shape, dtype) * math.sqrt(2 / sum(_fans("glorot_normal", shape)))


def glorot_uniform(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Uniform within `±sqrt(6 / (n_in + n_out))`; Glorot and Bengio, AISTATS 2010, equation 16.

    Raises:
      ValueError: the shape is not a weight's, `(n_in, n_out)`.

    >>> W = glorot_uniform(jax.random.key(0), (400, 500))
    >>> round(float(W.var()) * (400 + 500), 1), bool((abs(W) <= (6 / 900) ** 0.5).all())
    (2.0, True)
    """
    bound = math.sqrt(6 / sum(_fans("glorot_uniform", shape)))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def lecun_normal(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Normal with variance `1 / n_in`; LeCun et al., Efficient BackProp, 1998, section 4.6.

    Raises:
      ValueError: the shape is not a weight's, `(n_in, n_out)`.

    >>> W = lecun_normal(jax.random.key(0), (400, 500))
    >>> round(float(W.var()) * 400, 1)
    1.0
    """
    n_in, _ = _fans("lecun_normal", shape)
    return jax.random.normal(key, shape, dtype) * math.sqrt(1 / n_in)
