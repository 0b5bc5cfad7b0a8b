"""Where a function is checked: its floating arguments, and how to call it with others in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.testing.report import name_of
from funcnet.testing.trees import is_floating


class Point(NamedTuple):
    """Where a function is checked: its floating arguments, and how to call it with others in their place."""

    names: list[str]  # args[0]['w']
    floating: list[Any]
    value: list[np.ndarray]  # the floating leaves of the value there
    with_floating: Callable[[list[Any]], tuple[Any, ...]]  # all arguments, with these floating ones

    @classmethod
    def of(cls, fn, reference, args, stopped) -> Point:
        """Check the arguments of `check_vjp` and `check_jvp`, and call the function twice."""
        for name, f in (("fn", fn), ("reference", reference)):
            if not callable(f) and not (name == "reference" and f is None):
                raise TypeError(f"{name} is {f!r}, of type {type(f).__name__}, expected a function")
        paths, tree = jax.tree_util.tree_flatten_with_path(tuple(args))
        names = [f"args{jax.tree_util.keystr(path)}" for path, _ in paths]
        leaves = _numbers_as_arrays([leaf for _, leaf in paths])
        for name, leaf in zip(names, leaves, strict=True):
            if not isinstance(leaf, (int, np.ndarray, np.generic, jax.Array)):
                raise ValueError(
                    f"{name} is {leaf!r}, of type {type(leaf).__name__}, expected an array: bind it with "
                    "functools.partial(fn, ...)"
                )
            if np.iscomplexobj(leaf):
                raise ValueError(
                    f"{name} has dtype {jnp.result_type(leaf)}, expected a real one: pass its parts as two arguments"
                )
        at = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]
        if not at:
            given = ", ".join(f"{name} {jnp.result_type(leaf)}" for name, leaf in zip(names, leaves, strict=True))
            raise ValueError(f"no argument is floating ({given or 'none given'}), expected one to differentiate by")
        if unknown := set(stopped) - {names[i] for i in at}:
            known = ", ".join(names[i] for i in at)
            raise ValueError(f"stopped has {', '.join(sorted(unknown))}, expected names of arguments: {known}")

        def with_floating(floating):
            changed = dict(zip(at, floating, strict=True))
            return jax.tree.unflatten(tree, [changed.get(i, leaf) for i, leaf in enumerate(leaves)])

        floating = [leaves[i] for i in at]
        first, again = fn(*with_floating(floating)), fn(*with_floating(floating))
        _check_value(fn, first, again)
        value = [np.asarray(leaf) for leaf in jax.tree.leaves(first) if is_floating(leaf)]
        return cls([names[i] for i in at], floating, value, with_floating)

    def call(self, fn) -> Callable[[list[Any]], list[Any]]:
        """`fn` as a function of the floating arguments to the floating leaves of its value."""
        return lambda floating: [
            leaf for leaf in jax.tree.leaves(fn(*self.with_floating(floating))) if is_floating(leaf)
        ]


def _numbers_as_arrays(leaves):
    """Python's floating numbers as arrays, which differences can move, in the narrowest dtype of the others."""
    dtypes = [jnp.result_type(leaf) for leaf in leaves if is_floating(leaf) and type(leaf) is not float]
    dtype = min(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.float32)
    return [np.asarray(leaf, dtype) if type(leaf) is float else leaf for leaf in leaves]


def check_settings(order, stopped, accuracy, seed) -> None:
    """Check the other arguments of `check_vjp` and `check_jvp`."""
    if not isinstance(order, int) or order < 1:
        raise ValueError(f"order is {order!r}, expected 1, or 2 for the derivative of the derivative, too")
    if isinstance(stopped, str):
        raise ValueError(f"stopped is {stopped!r}, expected a list of names of arguments: [{stopped!r}]")
    if accuracy is not None and not (isinstance(accuracy, (int, float)) and 0 < accuracy < 1):
        raise ValueError(f"accuracy is {accuracy!r}, expected a relative error between 0 and 1, such as 1e-6")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}, expected a whole number of at least 0")


def _check_value(fn, first, again) -> None:
    name, leaves = name_of(fn), jax.tree.leaves(first)
    for path, leaf in jax.tree_util.tree_leaves_with_path(first):
        if np.iscomplexobj(leaf):
            where = f"{name}(...){jax.tree_util.keystr(path)}"
            raise ValueError(f"{where} has dtype {leaf.dtype}, expected a real one: return its parts as two arrays")
    if not any(map(is_floating, leaves)):
        kinds = ", ".join(str(getattr(leaf, "dtype", type(leaf).__name__)) for leaf in leaves)
        raise ValueError(f"{name} returns {kinds or 'nothing'}, expected floating numbers: there is no derivative")
    both = zip(leaves, jax.tree.leaves(again), strict=True)
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in both if is_floating(a)]
    if any(a.tobytes() != b.tobytes() for a, b in pairs):
        raise ValueError(
            f"{name} returns other values when it is called again with the same arguments, expected the same bits: "
            "pass its random key, or what it keeps between calls, as an argument"
        )
    if bad := [a for a, _ in pairs if not np.isfinite(np.asarray(a, np.float64)).all()]:
        raise ValueError(
            f"{name} returns values that are not finite, expected a point where it has a derivative: {bad[0]}"[:300]
        )
