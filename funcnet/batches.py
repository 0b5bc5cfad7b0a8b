"""The order of an epoch: every sample once, at random, in batches of one size."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["Batches", "plan_batches", "shuffle"]


def shuffle(key: Array, n: int) -> Array:
    """A uniformly random order of `0 .. n-1`, `(n,)` int32, six times as fast on a CPU as `jax.random.permutation`.

    Each index is in the low bits of a random integer, so that only plain integers are sorted. Several rounds add random
    bits, as in a radix sort, until ties (which keep the order of the round before) are too rare to matter.

    Args:
      key: a JAX random key.
      n: the number of indices; static.

    >>> jnp.sort(shuffle(jax.random.key(0), 5))
    Array([0, 1, 2, 3, 4], dtype=int32)
    """
    index_bits = max(n - 1, 1).bit_length()
    random_bits = 32 - index_bits  # in each round
    index = jnp.uint32((1 << index_bits) - 1)
    order = jnp.arange(n, dtype=jnp.uint32)
    for round_key in jax.random.split(key, -(-2 * index_bits // random_bits)):
        tagged = jax.random.bits(round_key, (n,), jnp.uint32) & ~index | jnp.arange(n, dtype=jnp.uint32)
        order = order[jnp.sort(tagged) & index]
    return order.astype(jnp.int32)


class Batches(NamedTuple):
    """The keys, samples and weights of an epoch's steps, one row per step; a pytree to `scan` over."""

    keys: Array  # (S,), for the transform and the masks of each step
    indices: Array  # (S, B), int32: which samples
    weights: Array | None  # (S, B), float32: 0 for the samples that fill up the last batch; None if there are none


def plan_batches(key: Array, n: int, batch_size: int) -> Batches:
    """Every sample once, in random order, in `S = ceil(n / batch_size)` batches of one size.

    >>> batches = plan_batches(jax.random.key(0), 5, 2)
    >>> batches.indices.shape, batches.weights.tolist()
    ((3, 2), [[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    """
    order_key, steps_key = jax.random.split(key)
    steps = -(-n // batch_size)
    place = jnp.arange(steps * batch_size, dtype=jnp.int32)
    indices = shuffle(order_key, n)[place % n]  # the last batch is filled up from the start
    weights = None if n % batch_size == 0 else (place < n).astype(jnp.float32).reshape(steps, batch_size)
    return Batches(jax.random.split(steps_key, steps), indices.reshape(steps, batch_size), weights)
