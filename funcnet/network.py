"""`Network`: all that is static about a network, in one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from funcnet.activations import Activation, identity, relu
from funcnet.losses import Loss, softmax_cross_entropy

__all__ = ["Masks", "Network", "Params"]

Params = list[tuple[Array, Array]]  # [(W_1, b_1), ..., (W_L, b_L)]
Masks = Sequence[Array | None]  # L of them: masks[l] multiplies a_l, l = 0 .. L-1


@jax.tree_util.register_static
@dataclass(frozen=True, repr=False)
class Network:
    """All that is static about a network: one value, passed to every function that needs any of it.

    It is compared and hashed by value, and has no leaves. So you can pass it to a function under `jit`, `vmap`, `grad`
    or `scan` like any argument, and equal networks share one trace. It can be pickled if its activations and loss can.

    Attributes:
      hidden: one `Activation` for all hidden layers, or a sequence of `L - 1`, kept as a tuple.
      output: the `Activation` of the last layer. Softmax is not one: it is in the loss, on logits.
      loss: the `Loss`.
      compute_dtype: the dtype of the factors of matrix products, e.g. bfloat16, kept as its name; by default that of
        the computation. Sums, deltas and parameters keep their dtypes.

    Raises:
      ValueError: a field is not an `Activation`, `Loss` or floating dtype.

    >>> Network(hidden=[relu, identity]), Network() == Network(relu)
    (Network(hidden=(relu, identity)), True)
    """

    hidden: Activation | Sequence[Activation] = relu
    output: Activation = identity
    loss: Loss = softmax_cross_entropy
    compute_dtype: DTypeLike | None = None

    def __post_init__(self):
        """Check the fields; convert lists to tuples and dtypes to names, so that equal networks compare equal."""
        named = [("hidden", self.hidden)]
        if isinstance(self.hidden, (list, tuple)):
            object.__setattr__(self, "hidden", tuple(self.hidden))
            named = [(f"hidden[{l}]", f) for l, f in enumerate(self.hidden)]
        for name, f in [*named, ("output", self.output)]:
            check_is_activation(name, f)
        check_is_loss(self.loss)
        if self.compute_dtype is not None:  # kept by its name: NumPy's float64 is equal to None
            object.__setattr__(self, "compute_dtype", floating(self.compute_dtype, "compute_dtype").name)

    def __repr__(self) -> str:
        """The fields that differ from the defaults, as Python code."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        told = [f"{field.name}={values[field.name]!r}" for field in fields(self) if values[field.name] != field.default]
        return f"Network({', '.join(told)})"

    def activations(self, L: int) -> tuple[Activation, ...]:
        """The activations of `L` layers, in order.

        Raises:
          ValueError: `hidden` does not hold `L - 1` activations.

        >>> Network().activations(3)
        (relu, relu, identity)
        """
        hidden = (self.hidden,) * (L - 1) if isinstance(self.hidden, Activation) else tuple(self.hidden)
        if len(hidden) != L - 1:
            raise ValueError(
                f"hidden is {describe(hidden)}, expected an Activation or {L - 1} of them, one for each "
                f"hidden layer of {L} layers"
            )
        return (*hidden, self.output)


def check_is_activation(name: str, f: Any) -> None:
    """Check that `f` is an `Activation`."""
    if not isinstance(f, Activation):
        hint = (
            ": a function alone has no derivative (and leaky_relu is called: leaky_relu(0.01))" if callable(f) else ""
        )
        raise ValueError(f"{name} is {describe(f)}, expected an Activation{hint}")


def check_is_loss(loss: Any) -> None:
    """Check that `loss` is a `Loss`."""
    if not isinstance(loss, Loss):
        raise ValueError(f"loss is {describe(loss)}, expected a Loss")


def floating(dtype: Any, name: str) -> np.dtype:
    """`dtype` as a NumPy dtype, checked to be floating."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = repr(dtype)
    if isinstance(found, str) or not jnp.issubdtype(found, jnp.floating):
        raise ValueError(f"{name} is {found}, expected a floating dtype, e.g. 'bfloat16'")
    return found


def describe(value: Any) -> str:
    """A short description of a wrong value, for an error message."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if hasattr(value, "shape"):
        return f"an array of shape {value.shape}"
    return f"{value!r:.80} of type {type(value).__name__}"
