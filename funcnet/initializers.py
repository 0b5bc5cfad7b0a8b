"""Initializers: pure functions `(key, shape, dtype) -> array`.

A weight has shape `(n_in, n_out)`. The scaled initializers keep the variance of a signal constant from layer to layer:
He for ReLU-like activations, Glorot (a compromise of forwards and backwards) for tanh, LeCun for identity and
selu-like.

>>> W = he_normal(jax.random.key(0), (400, 500), jnp.float32)
>>> round(float(W.var()) * 400, 1)
2.0
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

__all__ = [
    "Initializer", "glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "lecun_normal", "standard_normal",
    "uniform", "zeros",
]  # fmt: skip

Initializer = Callable[[Array, tuple[int, ...], DTypeLike], Array]  # (key, shape, dtype) -> array of that shape


def zeros(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """All zeros; the key is not used.

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
      An initializer, the same object for equal bounds.

    Raises:
      ValueError: the bounds are not finite numbers with `low < high`.

    >>> w = uniform(-0.5, 0.5)(jax.random.key(0), (100, 100), jnp.float32)
    >>> bool((-0.5 <= w).all() and (w < 0.5).all())
    True
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"uniform: low={low!r}, high={high!r}, expected finite numbers with low < high")
    return _uniform(float(low), float(high))


@functools.cache  # here, so that positional and keyword bounds share one entry
def _uniform(low: float, high: float) -> Initializer:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, low, high)


def _scaled(about: str, name: str, draw: Callable[..., Array], numerator: int, both: bool = False) -> Initializer:
    """An initializer of weights with variance `numerator / n_in`, or `/ (n_in + n_out)`."""

    def initializer(key, shape, dtype=jnp.float32):
        if len(shape) != 2:
            raise ValueError(
                f"{name} has shape {shape}, expected that of a weight, (n_in, n_out); for biases take zeros, "
                "standard_normal or uniform(low, high)"
            )
        n_in, n_out = (max(n, 1) for n in shape)  # no division by 0 for an empty array
        return draw(key, shape, dtype, math.sqrt(numerator / (n_in + n_out if both else n_in)))

    initializer.__name__ = initializer.__qualname__ = name
    initializer.__doc__ = about
    return initializer


def _normal(key, shape, dtype, std) -> Array:
    return jax.random.normal(key, shape, dtype) * std


def _bounded(key, shape, dtype, std) -> Array:
    return jax.random.uniform(key, shape, dtype, -math.sqrt(3) * std, math.sqrt(3) * std)


_about = "Normal with variance `2 / n_in`; He et al., ICCV 2015, equation 10."
he_normal = _scaled(_about, "he_normal", _normal, 2)
_about = "Uniform with the same variance, so within `±sqrt(6 / n_in)`; He et al., ICCV 2015."
he_uniform = _scaled(_about, "he_uniform", _bounded, 2)
_about = "Normal with variance `2 / (n_in + n_out)`; Glorot and Bengio, AISTATS 2010, equation 12."
glorot_normal = _scaled(_about, "glorot_normal", _normal, 2, both=True)
_about = "Uniform within `±sqrt(6 / (n_in + n_out))`; Glorot and Bengio, AISTATS 2010, equation 16."
glorot_uniform = _scaled(_about, "glorot_uniform", _bounded, 2, both=True)
_about = "Normal with variance `1 / n_in`; LeCun et al., Efficient BackProp, 1998, section 4.6."
lecun_normal = _scaled(_about, "lecun_normal", _normal, 1)
