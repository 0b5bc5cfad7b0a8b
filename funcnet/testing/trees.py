"""Trees of arrays and their dtypes, for the checks."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def leaf_names(tree, root="") -> list[str]:
    """`layer 1 W`, `layer 1 b`, ... for a list of pairs; the path, from `root`, for any other tree."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    indices = [tuple(getattr(key, "idx", None) for key in path) for path in paths]
    if indices == [(i // 2, i % 2) for i in range(len(indices))]:
        return [f"layer {1 + i // 2} {'Wb'[i % 2]}" for i in range(len(indices))]
    return [root + jax.tree_util.keystr(path) or "value" for path in paths]


@contextlib.contextmanager
def _quietly():
    with np.errstate(all="ignore"), jax.debug_nans(False):
        yield


# A gradient under test may have NaN and infinities: the report shows them, so NumPy need not warn, nor JAX end it.
whatever_the_numbers = _quietly()


# The checks compute everything except the function under test in NumPy, and use `jax.device_put`: JAX would compile a
# program for each operation and shape, also for `jnp.asarray` of a NumPy array.


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


def as_one_program(fn) -> Callable[..., Any]:
    """`fn` under jit, since the checks call it hundreds of times; without jit if it branches on values.

    Compiled without most optimizations, which take longer than they save here.
    """
    compiled, failed = quick_jit(fn), []

    def program(*args):
        if not failed:
            try:
                return compiled(*args)
            except Exception:  # any error that a function raises under tracing
                failed.append(True)
        return fn(*args)

    return program


def quick_jit(fn, **settings) -> Callable[..., Any]:
    """`jax.jit` that compiles quickly, for programs that run a few times."""
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(fn, compiler_options=quickly, **settings)


def coarsest_eps(fn, *args) -> float:
    """The largest eps of any floating number that `fn` computes on the way, in custom rules and kernels, too."""
    return max(map(eps_of, _dtypes_in(jax.make_jaxpr(fn)(*args).jaxpr)), default=0.0)


def _dtypes_in(jaxpr) -> Iterator[Any]:
    """The floating dtypes of what the equations of a program compute, and those of the programs in it."""
    for equation in jaxpr.eqns:
        for out in equation.outvars:
            if jnp.issubdtype(getattr(out.aval, "dtype", None) or int, jnp.floating):
                yield out.aval.dtype
        for inner in jax.tree.leaves(
            [*equation.params.values()], is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _dtypes_in(inner)


def is_floating(leaf) -> bool:
    """Whether a leaf is a floating number or array, of NumPy or JAX."""
    return jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.floating)


def cast_like(leaves, others):
    """Arrays of JAX, each in the dtype of its other; those of NumPy are cast before JAX sees them."""
    return [jnp.asarray(leaf.astype(other.dtype)) for leaf, other in zip(leaves, others, strict=True)]


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
