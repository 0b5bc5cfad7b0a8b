"""The leaves of a tree: under which names, as what they are stored, and whether they are those that are expected."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_flatten_with_path

from funcnet.arguments import check_unmasked


def is_number(leaf) -> bool:
    """Whether it is a Python number, which is kept as text, exactly."""
    return type(leaf) in (bool, int, float)


def is_empty(leaf) -> bool:
    """Whether it is an array of no numbers, of which orbax stores none."""
    return getattr(leaf, "size", None) == 0


def is_key(leaf) -> bool:
    """Whether it is a random key with a dtype of its own."""
    return isinstance(leaf, Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def stored(leaf) -> Any:
    """What every orbax can store: of a random key its integers; for a Python number, or no numbers, a zero."""
    if is_number(leaf) or is_empty(leaf):
        return np.zeros(1, np.uint8)
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def as_before(tree, like, numbers: dict[str, Any]):
    """The other way round."""

    def one(name, leaf, like):
        if is_number(like):
            return numbers[name]
        if is_empty(like):
            return like.copy()
        return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(like)) if is_key(like) else leaf

    leaves = map(one, named(like), jax.tree.leaves(tree), jax.tree.leaves(like))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def abstract(leaf):
    """What orbax is to read, and where to put it."""
    if is_number(leaf):
        return stored(leaf)
    if not isinstance(leaf, Array):
        raise TypeError(
            f"like has a {type(leaf).__name__} for a leaf, expected JAX arrays, which say where to put what is read, "
            "or Python numbers"
        )
    leaf = stored(leaf)
    if not isinstance(leaf, Array):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def named(tree) -> dict[str, Any]:
    """Each leaf under a name in which fields, keys and places look alike: `params/0/1`.

    >>> named({"params": [(1, 2)]})
    {'params/0/0': 1, 'params/0/1': 2}
    """
    found = {}
    for path, leaf in tree_flatten_with_path(tree)[0]:
        if (name := "/".join(map(_plain, path))) in found:
            raise ValueError(
                f"tree{keystr(path)} has the name {name}, and so has another leaf: expected keys without /"
            )
        found[name] = leaf
    return found


def _plain(key) -> str:
    return str(next(getattr(key, name) for name in ("name", "key", "idx") if hasattr(key, name)))


def shapes(tree) -> dict[str, str]:
    """Each leaf's place in the tree, and what it is.

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
            "what else JSON can hold goes into the notes"
        )
    check_unmasked(f"tree{keystr(path)}", leaf)
    return f"{leaf.dtype}{list(leaf.shape)}"


def check_whole(path, content, like) -> None:
    """Refuse a checkpoint that is not of the same leaves."""
    found, expected = content["shapes"], shapes(like)
    for name in [*expected, *found]:
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{path}: of another network or optimizer: {name} is {found.get(name, 'not there')}, "
                f"expected {expected.get(name, 'no such array')}"
            )


def check_part(path, content, like) -> None:
    """Refuse a checkpoint that has not all of the leaves."""
    if "parts" not in content:
        raise ValueError(f"{path}: of an older version, whose checkpoints are restored whole")
    found = dict(zip(content["parts"], content["shapes"].values(), strict=True))
    for name, expected in zip(named(like), shapes(like).values(), strict=True):
        if found.get(name) != expected:
            there = ", ".join(f"{name} {kind}" for name, kind in found.items())
            raise ValueError(
                f"{path}: {name} is {found.get(name, 'not there')}, expected {expected}; there is: {there}"
            )
