"""`jax.jit` for the functions that users call: it converts lists to arrays, and errors name the argument."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from funcnet.arguments import check_network
from funcnet.network import Network

__all__ = ["array_function", "as_array"]

# Arguments that are one array, so that a list of numbers is converted.
_ARRAYS = frozenset({"x", "y", "out", "sample_weight", "groups", "included"})
_HELD_BY_HOST = (list, tuple, np.ndarray)  # checked before JAX would trace or truncate them in silence
_SETTINGS = frozenset({*(field.name for field in fields(Network)), "activation", "activations", "dtype"})


def array_function(fn: Callable[..., Any] | None = None, *, static_argnames: str | tuple[str, ...] = ()) -> Any:
    """`jax.jit` for a function that users call with `params`, `x`, `y`, ....

    JAX would trace a list number by number, so it is converted to an array first. An error names the argument that JAX
    cannot take.

    Args:
      fn: the function.
      static_argnames: as in `jax.jit`.

    Returns:
      The function, with `lower`, `trace`, `eval_shape` and `clear_cache` as from `jax.jit`.

    >>> array_function(lambda x: x.sum())([[1.0, 2.0], [3.0, 4.0]])
    Array(10., dtype=float32)
    """
    if fn is None:
        return functools.partial(array_function, static_argnames=static_argnames)
    compiled = jax.jit(fn, static_argnames=static_argnames)
    names = list(inspect.signature(fn).parameters)
    places = [i for i, name in enumerate(names) if name in _ARRAYS]

    @functools.wraps(fn)
    def call(*args, **kwargs):
        for i in places:
            if i < len(args) and isinstance(args[i], _HELD_BY_HOST):
                args = (*args[:i], as_array(names[i], args[i]), *args[i + 1 :])
        for name in kwargs:
            if name in _ARRAYS and isinstance(kwargs[name], _HELD_BY_HOST):
                kwargs[name] = as_array(name, kwargs[name])
        try:
            return compiled(*args, **kwargs)
        except TypeError as error:
            _explain(fn, names, args, kwargs, error)

    for name in ("lower", "trace", "eval_shape", "clear_cache", "_cache_size"):
        setattr(call, name, getattr(compiled, name))
    return call


def as_array(name: str, value: Any) -> Any:
    """The argument `name` as an array that JAX takes: lists of numbers are converted, other values are returned as is.

    Raises:
      ValueError: it holds strings, objects or integers beyond 32 bits, or is an array of another library. The message
        says how to convert it.

    >>> as_array("y", [0, 1, 2])
    array([0, 1, 2])
    >>> as_array("y", np.array(["cat", "dog"]))
    Traceback (most recent call last):
    ValueError: y holds strings, expected numbers: for class ids, `names, y = np.unique(y, return_inverse=True)`
    """
    if isinstance(value, (list, tuple)):
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
            raise ValueError(
                f"{name} is a {type(value).__name__}, traced number by number: convert it to an array before jit"
            )
        try:
            value = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{name} is a {type(value).__name__} that is not an array: {error}") from error
    if value is None or isinstance(value, (Array, bool, int, float, np.generic)):
        return value
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} is a {_type_name(value)}, expected an array of JAX or NumPy: np.asarray({name})")
    if value.dtype.kind in "US":
        raise ValueError(
            f"{name} holds strings, expected numbers: for class ids, `names, {name} = np.unique({name}, "
            "return_inverse=True)`"
        )
    if value.dtype.kind not in "biufc" and not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"{name} has dtype {value.dtype}, expected numbers: {name}.astype('float32'), or 'int32' for class ids"
        )
    if not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    if value.dtype.kind in "iu" and value.dtype.itemsize == 8 and value.size and jnp.result_type(int) == np.int32:
        largest = max(value.max(), -int(value.min()) - 1)
        if largest > np.iinfo(np.int32).max:
            raise ValueError(
                f"{name} holds {largest}, which JAX would cut to 32 bits: set jax_enable_x64, or use smaller ones"
            )
    return value


def _explain(fn, names, args, kwargs, error) -> NoReturn:
    """Raise an error that says more than JAX's TypeError, or else that one."""
    if odd := sorted(kwargs.keys() - set(names)):
        hint = f": Network({odd[0]}=...) holds it" if odd[0] in _SETTINGS else ""
        raise TypeError(f"{fn.__name__} has no argument {odd[0]!r}, expected {', '.join(names)}{hint}") from error
    given = dict(zip(names, args, strict=False)) | kwargs
    if "network" in given:
        check_network(given["network"])
    for name in sorted(given.keys() & _ARRAYS):
        as_array(name, given[name])
    for name, value in given.items():
        if isinstance(value, str):
            raise ValueError(f"{name} is {value!r}, expected numbers") from error
    for path, leaf in jax.tree_util.tree_leaves_with_path(given.get("params")):
        as_array(f"params{jax.tree_util.keystr(path)}", leaf)
    raise error


def _type_name(value) -> str:
    library = type(value).__module__.partition(".")[0]
    return type(value).__name__ if library == "builtins" else f"{library}.{type(value).__name__}"
