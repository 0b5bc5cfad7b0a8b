"""Checks of the derivative rules of any JAX function: `custom_vjp`, `custom_jvp`, kernels, implicit solvers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from funcnet.testing.forward import check_forward
from funcnet.testing.point import Point, check_settings
from funcnet.testing.report import Report, name_of, raise_if_wrong
from funcnet.testing.reverse import check_reverse, gradient_of
from funcnet.testing.trees import whatever_the_numbers


@whatever_the_numbers
def check_vjp(
    fn: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    order: int = 1,
    stopped: Sequence[str] = (),
    accuracy: float | None = None,
    seed: int = 0,
) -> Report:
    """Check the reverse-mode derivative of a JAX function, with a rule of its own or not.

    `J^T v` for a dense random cotangent `v`, and for cotangents with a single 1. It is compared with `jax.vjp` of the
    reference, in the dtype of the arguments and in float64, and with differences. The rest holds for every rule: the
    forward pass gives the value of the function, the result is linear in `v`, the same bits in each call, and the same
    under `jit`, `vmap` and `jax.checkpoint`; and `<v, J u> = <J^T v, u>`, if the function has a forward mode.

    Args:
      fn: a function of trees of arrays to a tree of arrays. Bind static arguments with `functools.partial`.
      *args: where to check. The floating arrays are checked, one row each; integers, booleans, keys and `None` are only
        passed on. A Python float is taken as an array of their narrowest dtype. Use dense inputs: where an input is
        zero, a wrong gradient may be zero, too.
      reference: the same function in plain JAX, without the rule. It is needed if `fn` cannot be traced, or computes in
        float32 or less inside, as kernels do: differences need float64. What rounding may cost is then measured from
        the reference.
      order: 2 also checks the derivative of the derivative.
      stopped: names of arguments (as in the report) whose gradient is on purpose not that of the value, as in a
        straight-through estimator: they are compared with the reference alone, and not judged without one.
      accuracy: how accurate `fn` is by itself, e.g. 1e-6 for an iterative solver, relative to the largest entry.
      seed: of the cotangents and directions.

    Returns:
      The report, with a row for each floating argument, and for each property.

    Raises:
      TypeError: `fn` or `reference` is not a function.
      ValueError: no argument is floating, an argument is not an array, the value has no floating leaves, is not finite,
        or differs in a second call; the reference cannot be traced; a setting is not one of those above.

    >>> import jax, jax.numpy as jnp
    >>> @jax.custom_vjp
    ... def scale(x, w):
    ...     return x * w
    >>> scale.defvjp(lambda x, w: (x * w, (x, w)), lambda kept, v: (v * kept[1], v * kept[0]))
    >>> x, w = jnp.arange(1.0, 4.0), jnp.array([0.5, 2.0, 3.0])
    >>> check_vjp(scale, x, w).ok
    True
    >>> scale.defvjp(lambda x, w: (x * w, (x, w)), lambda kept, v: (v * kept[1], v))
    >>> print(str(check_vjp(scale, x, w)).splitlines()[-1])
    args[1]: exactly the expected value divided by args[0]
    """
    check_settings(order, stopped, accuracy, seed)
    point = Point.of(fn, reference, args, stopped)
    rows, notes = check_reverse(fn, reference, point, stopped, accuracy, seed)
    if order > 1 and all(row.ok for row in rows):
        settings = {"order": order - 1, "stopped": stopped, "accuracy": accuracy, "seed": seed}
        first = partial(gradient_of, point, seed)
        more = check_vjp(first(fn), *args, reference=reference and first(reference), **settings)
        rows += tuple(row._replace(leaf=f"second order, {row.leaf}") for row in more.rows)
        notes += more.notes
    return Report(f"vjp of {name_of(fn)}", rows, notes)


def assert_vjp(fn: Callable[..., Any], *args: Any, **settings: Any) -> None:
    """Raise an error if `check_vjp` is not ok. Args as there.

    Raises:
      AssertionError: its message is the report.

    >>> import jax.numpy as jnp
    >>> assert_vjp(jnp.sin, jnp.arange(3.0))
    """
    __tracebackhide__ = True
    raise_if_wrong(check_vjp(fn, *args, **settings))


@whatever_the_numbers
def check_jvp(
    fn: Callable[..., Any],
    *args: Any,
    reference: Callable[..., Any] | None = None,
    accuracy: float | None = None,
    seed: int = 0,
) -> Report:
    """Check the forward-mode derivative of a JAX function, with a rule of its own or not.

    `J u` for tangents `u` of one argument at a time, dense ones and some with a single 1. Compared and judged as in
    `check_vjp`.

    Args:
      fn: as in `check_vjp`.
      *args: as in `check_vjp`.
      reference: as in `check_vjp`.
      accuracy: as in `check_vjp`.
      seed: of the tangents.

    Returns:
      The report, with a row for each floating argument, and for each property.

    Raises:
      TypeError: as in `check_vjp`.
      ValueError: as in `check_vjp`.

    >>> import jax.numpy as jnp
    >>> check_jvp(jnp.sin, jnp.arange(3.0)).ok
    True
    """
    check_settings(1, (), accuracy, seed)
    point = Point.of(fn, reference, args, ())
    return Report(f"jvp of {name_of(fn)}", *check_forward(fn, reference, point, accuracy, seed))


def assert_jvp(fn: Callable[..., Any], *args: Any, **settings: Any) -> None:
    """Raise an error if `check_jvp` is not ok. Args as there.

    Raises:
      AssertionError: its message is the report.

    >>> import jax.numpy as jnp
    >>> assert_jvp(jnp.sin, jnp.arange(3.0))
    """
    __tracebackhide__ = True
    raise_if_wrong(check_jvp(fn, *args, **settings))
