"""The leaves of a tree: their names, the form in which they are stored, and checks against the expected ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_flatten_with_path

from funcnet.arguments import check_unmasked


def is_number(leaf) -> bool:
    """Whether it is a Python number, which is stored exactly, as text."""
    return type(leaf) in (bool, int, float)


def is_empty(leaf) -> bool:
    """Whether it is an empty array, which orbax does not store."""
    return getattr(leaf, "size", None) == 0


def is_key(leaf) -> bool:
    """Whether it is a random key of the new style."""
    return isinstance(leaf, Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def stored(leaf) -> Any:
    """A leaf that every orbax can store: a random key as its integers; a Python number or an empty array as a zero."""
    if is_number(leaf) or is_empty(leaf):
        return np.zeros(1, np.uint8)
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def as_before(tree, like, numbers: dict[str, Any]):
    """The original leaves from the stored ones."""

    def one(name, leaf, like):
        if is_number(like):
            return numbers[name]
        if is_empty(like):
            return like.copy()
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if is_key(like) else leaf

    leaves = map(one, named(like), jax.tree.leaves(tree), jax.tree.leaves(like))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def abstract(leaf):
    """The shape, dtype and sharding that orbax is to read."""
    if is_number(leaf):
        return stored(leaf)
    if not isinstance(leaf, Array):
        raise TypeError(
            f"like has a {type(leaf).__name__} for a leaf, expected JAX arrays, which say on which devices to put the "
            "arrays, or Python numbers"
        )
    leaf = stored(leaf)
    if not isinstance(leaf, Array):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def named(tree) -> dict[str, Any]:
    """Each leaf under a name that does not tell fields, keys and indices apart: `params/0/1`.

    >>> named({"params": [(1, 2)]})
    {'params/0/0': 1, 'params/0/1': 2}
    """
    found = {}
    for path, leaf in tree_flatten_with_path(tree)[0]:
        if (name := "/".join(map(_plain, path))) in found:
            raise ValueError(
                f"tree{keystr(path)} has the name {name}, which another leaf also has: expected keys without /"
            )
        found[name] = leaf
    return found


def _plain(key) -> str:
    return str(next(getattr(key, name) for name in ("name", "key", "idx") if hasattr(key, name)))


def shapes(tree) -> dict[str, str]:
    """Each leaf's path in the tree, and its dtype and shape.

    >>> shapes([np.zeros(3), 7])
    {'[0]': 'float64[3]', '[1]': 'a Python int'}
    """
    return {keystr(path): _kind(path, leaf) for path, leaf in tree_flatten_with_path(tree)[0]}


def _kind(path, leaf) -> str:
    if is_number(leaf):
        return f"a Python {type(leaf).__name__}"
    if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")) or leaf.dtype == object:
        raise TypeError(
            f"tree{keystr(path)} is {leaf!r:.80} of type {type(leaf).__name__}, expected an array or a Python number; "
            "put other JSON values into the notes"
        )
    check_unmasked(f"tree{keystr(path)}", leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"


def check_whole(path, content, like) -> None:
    """Refuse a checkpoint whose leaves are not the same."""
    found, expected = content["shapes"], shapes(like)
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{path}: of another network or optimizer: {name} is {found.get(name, 'not there')}, "
                f"expected {expected.get(name, 'no such array')}"
            )


def check_part(path, content, like) -> None:
    """Refuse a checkpoint that does not have all of the leaves."""
    if "parts" not in content:
        raise ValueError(f"{path}: of an older version, whose checkpoints can only be restored whole")
    found = dict(zip(content["parts"], content["shapes"].values(), strict=True))
    for name, expected in zip(named(like), shapes(like).values(), strict=True):
        if found.get(name) != expected:
            there = ", ".join(f"{name} {kind}" for name, kind in found.items())
            raise ValueError(
                f"{path}: {name} is {found.get(name, 'not there')}, expected {expected}; there is: {there}"
            )
