"""Trees of arrays and their dtypes, for the checks."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np


def leaf_names(tree) -> list[str]:
    """`layer 1 W`, `layer 1 b`, ... for a list of pairs; the path for any other tree."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    indices = [tuple(getattr(key, "idx", None) for key in path) for path in paths]
    if indices == [(i // 2, i % 2) for i in range(len(indices))]:
        return [f"layer {1 + i // 2} {'Wb'[i % 2]}" for i in range(len(indices))]
    return [jax.tree_util.keystr(path) or "value" for path in paths]


# The checks compute everything except the function under test in NumPy, and use `jax.device_put`: JAX would compile a
# program for each operation and shape, also for `jnp.asarray` of a NumPy array.


# A gradient under test may have NaN and infinities: the report shows them, so NumPy need not warn.
whatever_the_numbers = np.errstate(all="ignore")


def as_arrays(tree) -> list[np.ndarray]:
    """The leaves, on the host."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def cast_to(args, dtype):
    """A tree with its floating arrays in another dtype; NumPy arrays stay NumPy arrays, other leaves are unchanged."""

    def cast(leaf):
        if not jnp.issubdtype(getattr(leaf, "dtype", int), jnp.floating):
            return leaf
        cast = np.asarray(leaf).astype(dtype)
        return jax.device_put(cast) if isinstance(leaf, jax.Array) else cast

    return jax.tree.map(cast, args)


def eps_of(dtype) -> float:
    """The distance from 1 to the next number."""
    return float(jnp.finfo(dtype).eps)


def enable_x64(on: bool) -> contextlib.AbstractContextManager:
    """Float64 on or off within a `with` block, in every version of JAX.

    >>> with enable_x64(True):
    ...     print(jnp.ones(1).dtype)
    float64
    """
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)
    return jax.experimental.enable_x64(on)  # pyright: ignore[reportAttributeAccessIssue]
