"""Activations: elementwise functions, each with its derivative.

A derivative takes `(z, a)` with `a = fn(z)`, so that a rule can use whichever of the two is cheaper or
more accurate. At a kink every function here takes the derivative **from the left**: `relu'(0) = 0`, as in
`jax.nn.relu`, and `leaky_relu'(0) = slope`, as in PyTorch. The functions are written with `where` rather than
`maximum` so that `jax.grad` takes the same side (the gradient of `jnp.maximum(z, 0)` at 0 is 1/2), and so that
NaN stays NaN. To add an activation, make a value: `Activation("square", lambda z: z * z, lambda z, a: 2 * z)`.
Make it once, at module level, because JAX traces again for every new function.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

__all__ = [
    "SHIPPED",
    "Activation",
    "elu",
    "from_name",
    "gelu",
    "gelu_tanh",
    "identity",
    "is_shipped",
    "leaky_relu",
    "relu",
    "sigmoid",
    "silu",
    "softplus",
    "tanh",
]  # fmt: skip


@jax.tree_util.register_static
@dataclass(frozen=True)
class Activation:
    """An elementwise function with its hand-written derivative: a static value, compared by its fields.

    A shipped one is pickled by its name. Any other is pickled with its functions, so `pickle` needs functions that can
    be imported; `cloudpickle` also takes lambdas, which are loaded as new functions.

    Attributes:
      name: its name in errors, summaries and files.
      fn: `z -> a`, elementwise.
      deriv: `(z, a) -> da/dz`, elementwise, `a` being `fn(z)`.

    >>> relu.fn(jnp.array([-1.0, 0.0, 2.0]))
    Array([0., 0., 2.], dtype=float32)
    >>> relu.deriv(jnp.array([-1.0, 0.0, 2.0]), None)
    Array([0., 0., 1.], dtype=float32)
    """

    name: str
    fn: Callable[[Array], Array]
    deriv: Callable[[Array, Array], Array]

    def __post_init__(self):
        """Check that both are functions."""
        if not (callable(self.fn) and callable(self.deriv)):
            raise ValueError(f"{self.name}: fn is {self.fn!r} and deriv {self.deriv!r}, expected two functions")

    def __repr__(self) -> str:
        """The name of a shipped one, so that signatures and reports stay readable."""
        return self.name if is_shipped(self) else f"Activation({self.name!r}, ...)"

    def __reduce__(self):
        """How to pickle it."""
        return (from_name, (self.name,)) if is_shipped(self) else (Activation, (self.name, self.fn, self.deriv))


def _clip_infinities(z: Array) -> Array:
    """Replace ±inf by the largest finite numbers, so that `z * 0` in a far tail is 0 and not NaN."""
    limits = jnp.finfo(z.dtype)
    return jnp.clip(z, limits.min, limits.max)


def _gated(z: Array, gate: Array) -> Array:
    """`z * gate`, and its limits at infinite `z`: 0 at minus infinity, infinity at infinity."""
    return jnp.where(z == jnp.inf, z, _clip_infinities(z) * gate)


identity = Activation("identity", lambda z: z, lambda z, a: jnp.ones_like(z))
"""`a = z`. The default output: a loss takes logits."""

relu = Activation(
    "relu",
    lambda z: jnp.where(z <= 0, 0.0, z),
    lambda z, a: jnp.where(z <= 0, 0.0, jnp.ones_like(z)),
)
"""`a = max(z, 0)`; Nair and Hinton, ICML 2010. `relu'(0) = 0`."""


def leaky_relu(slope: float = 0.01) -> Activation:
    """`a = z` for `z > 0`, else `slope * z`; Maas, Hannun and Ng, ICML 2013.

    Cached, so that two calls with the same slope give the same static value, and share one trace.

    Args:
      slope: a finite Python number.

    Returns:
      The activation, named `leaky_relu(slope)`; its derivative at 0 is `slope`.

    Raises:
      ValueError: the slope is not a finite number.

    >>> leaky_relu(0.1).fn(jnp.array([-1.0, 2.0]))
    Array([-0.1,  2. ], dtype=float32)
    >>> leaky_relu(0.01) is leaky_relu()
    True
    """
    return _leaky_relu(float(slope))


@functools.cache  # here, so that leaky_relu(), leaky_relu(0.01) and leaky_relu(slope=0.01) share one entry
def _leaky_relu(slope: float) -> Activation:
    if not math.isfinite(slope):
        raise ValueError(f"leaky_relu: slope is {slope}, expected a finite number")
    return Activation(
        f"leaky_relu({slope!r})",
        lambda z: jnp.where(z <= 0, slope * z, z),
        lambda z, a: jnp.where(z <= 0, slope, jnp.ones_like(z)),
    )


sigmoid = Activation(
    "sigmoid",
    jax.nn.sigmoid,
    lambda z, a: a * jax.nn.sigmoid(-z),  # a (1 - a) is already 0 at z = 17, where the slope is 4e-8
)
"""`a = 1 / (1 + exp(-z))`, with `a' = s(z) s(-z)`."""

tanh = Activation(
    "tanh",
    jnp.tanh,
    lambda z, a: 4 * jax.nn.sigmoid(2 * z) * jax.nn.sigmoid(-2 * z),  # = sech^2 z; 1 - a^2 loses the tails
)
"""`a = tanh z`, with `a' = 1 - a^2 = 4 s(2z) s(-2z)`, `s` the sigmoid."""


def _softplus(z: Array) -> Array:
    # With two smooth branches, jax.grad is correct at 0 to all orders, and accurate at large z. Through logaddexp it is
    # not accurate there: the rule of logaddexp subtracts z from log(1 + exp z).
    minus_abs = jnp.where(z > 0, -z, z)
    return jnp.where(z > 0, z, 0.0) + jnp.log1p(jnp.exp(minus_abs))


softplus = Activation("softplus", _softplus, lambda z, a: jax.nn.sigmoid(z))
"""`a = log(1 + exp z)`; Dugas et al., NIPS 2000."""


def _elu(z: Array) -> Array:
    return jnp.where(z > 0, z, jnp.expm1(jnp.where(z > 0, 0.0, z)))  # the inner `where`: expm1(89) is inf


elu = Activation("elu", _elu, lambda z, a: jnp.exp(jnp.where(z > 0, 0.0, z)))
"""`a = z` for `z > 0`, else `exp(z) - 1`; Clevert, Unterthiner and Hochreiter, ICLR 2016, with alpha = 1."""


def _silu(z: Array) -> Array:
    return _gated(z, jax.nn.sigmoid(z))


def _silu_deriv(z: Array, a: Array) -> Array:
    s = jax.nn.sigmoid(z)
    return s + _clip_infinities(z) * s * jax.nn.sigmoid(-z)


silu = Activation("silu", _silu, _silu_deriv)
"""`a = z s(z)`, `s` the sigmoid; Elfwing, Uchibe and Doya, Neural Networks 2018."""


def _normal_cdf(z: Array) -> Array:
    return jax.lax.erfc(z * -math.sqrt(0.5)) / 2


def _gelu(z: Array) -> Array:
    return _gated(z, _normal_cdf(z))


def _gelu_deriv(z: Array, a: Array) -> Array:
    z = _clip_infinities(z)
    normal_pdf = jnp.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return _normal_cdf(z) + z * normal_pdf


gelu = Activation("gelu", _gelu, _gelu_deriv)
"""`a = z P(Z <= z)`, `Z` standard normal: the exact form, not the tanh one; Hendrycks and Gimpel, 2016."""


def _gelu_tanh_u(z: Array) -> Array:
    z = jnp.clip(z, -50, 50)  # beyond, s(2u) is 0 or 1; z^3 cannot overflow
    return math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)


def _gelu_tanh(z: Array) -> Array:
    return _gated(z, jax.nn.sigmoid(2 * _gelu_tanh_u(z)))


def _gelu_tanh_deriv(z: Array, a: Array) -> Array:
    u = _gelu_tanh_u(z)
    z = jnp.clip(z, -50, 50)
    u_slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * z**2)
    s = jax.nn.sigmoid(2 * u)
    return s + z * s * jax.nn.sigmoid(-2 * u) * 2 * u_slope


gelu_tanh = Activation("gelu_tanh", _gelu_tanh, _gelu_tanh_deriv)
"""`a = z s(2u)`, `u = sqrt(2 / pi) (z + 0.044715 z^3)`, `s` the sigmoid: `z (1 + tanh u) / 2` without its cancellation.

The default of `jax.nn.gelu`; Hendrycks and Gimpel, 2016, section 2.
"""

SHIPPED = (identity, relu, leaky_relu(), sigmoid, tanh, softplus, elu, silu, gelu, gelu_tanh)


def from_name(name: str) -> Activation:
    """The shipped activation of that name, as a command line or a file gives it.

    Args:
      name: `relu`, `tanh`, ..., `leaky_relu` (slope 0.01) or `leaky_relu(0.2)`.

    Raises:
      ValueError: there is none of that name; the message lists the names.

    >>> from_name("leaky_relu(0.2)") is leaky_relu(0.2)
    True
    """
    by_name = {activation.name: activation for activation in SHIPPED} | {"leaky_relu": leaky_relu()}
    if isinstance(name, str) and name in by_name:
        return by_name[name]
    if isinstance(name, str) and name.startswith("leaky_relu(") and name.endswith(")"):
        try:
            return leaky_relu(float(name[len("leaky_relu(") : -1]))
        except ValueError:
            pass  # not a slope: the error below shows the form
    known = ", ".join(sorted(by_name.keys() - {leaky_relu().name}))
    raise ValueError(f"unknown activation {name!r}, expected one of {known} or leaky_relu(SLOPE)")


def is_shipped(activation: Activation) -> bool:
    """Whether `from_name` finds this very activation by its name.

    >>> is_shipped(leaky_relu(0.2)), is_shipped(Activation("relu", jnp.abs, lambda z, a: jnp.sign(z)))
    (True, False)
    """
    try:
        shipped = from_name(activation.name)
    except ValueError:
        return False
    return (shipped.fn, shipped.deriv) == (activation.fn, activation.deriv)
