"""A fingerprint of arrays, computed on their own devices."""

from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


@jax.jit
def fingerprint(tree: Any) -> Array:
    """Two words that change whenever any bit of a single number of the arrays changes, `(2,)` uint32.

    Each word of the arrays is mixed with its position by invertible steps (Appleby's finalizer of MurmurHash3), and the
    sum modulo 2^32 is taken. The result is the same bit for bit on every mesh, since the order does not change such
    sums, and no array leaves its devices. It detects accidents, not forgery.

    >>> a = jnp.arange(3.0)
    >>> bool((fingerprint([a]) == fingerprint([a])).all()), bool((fingerprint([a]) == fingerprint([-a])).any())
    (True, False)
    """
    return fingerprints(jax.tree.leaves(tree)).sum(0, dtype=jnp.uint32)


@partial(jax.jit, static_argnames="numbers")
def fingerprints(leaves, numbers: tuple[int, ...] | None = None) -> Array:
    """The part of each leaf in the fingerprint of its tree; `numbers` are the leaves' positions there."""
    total = jnp.zeros((len(leaves), 2), jnp.uint32)
    for row, (number, leaf) in enumerate(zip(numbers or range(len(leaves)), leaves, strict=True)):
        words = _words(leaf)
        place = jnp.zeros(words.shape, jnp.uint32)
        for axis in range(words.ndim):
            stride = prod(words.shape[axis + 1 :]) % 2**32
            place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
        for lane, seed in enumerate((0x9E3779B9, 0x85EBCA77)):
            salt = _mixed(place + jnp.uint32(seed * (number + 1) % 2**32))
            total = total.at[row, lane].set(jnp.sum(_mixed(words ^ salt), dtype=jnp.uint32))
    return total


def _words(leaf) -> Array:
    """The bits of an array, 32 at a time."""
    leaf = jnp.asarray(leaf)
    if jnp.iscomplexobj(leaf):
        return _words(jnp.stack([leaf.real, leaf.imag]))
    if leaf.dtype == jnp.bool_ or leaf.dtype.itemsize < 4:
        narrow = jnp.uint8 if leaf.dtype.itemsize == 1 else jnp.uint16
        bits = leaf.astype(narrow) if leaf.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(leaf, narrow)
        return bits.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(leaf, jnp.uint32)


def _mixed(h):
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> shift)) * jnp.uint32(factor)
    return h ^ (h >> 16)
