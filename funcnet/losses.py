"""Losses: functions of the network's output and the target, each with its delta.

Targets with an integer dtype are class ids of shape `(...)`; targets with a floating dtype are shaped like the
output, `(..., K)`. Under jit an id outside `[0, K)` cannot raise an error: it gives a NaN loss **and** a NaN gradient.
JAX's indexing would silently take a neighbouring class instead.

The field `takes` of a loss decides what an output means: the logits of `K` classes, of which one is true; the logits of
`K` labels, each true or not; or values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from funcnet.activations import softplus

__all__ = [
    "SHIPPED",
    "Loss",
    "from_name",
    "is_class_ids",
    "one_hot",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
    "squared_error",
]  # fmt: skip


@jax.tree_util.register_static
@dataclass(frozen=True)
class Loss:
    """A loss per sample with its hand-written derivative: a static value, pickled as an `Activation` is.

    Attributes:
      name: its name in errors, summaries and files.
      fn: `(out, y) -> loss`, from `(..., K)` to `(...)`, without the mean over samples, which `objective` takes.
      delta: `(out, y) -> d fn / d out`, shaped like `out`.
      predict: `out -> prediction`: probabilities, or `out` itself for regression.
      takes: the meaning of `out`: "class logits", "label logits", or "values". It decides which predictions count as
        correct, and which networks raise an error.

    >>> out, y = jnp.array([[2.0, 1.0]]), jnp.array([0])
    >>> softmax_cross_entropy.fn(out, y)
    Array([0.31326], dtype=float32)
    >>> softmax_cross_entropy.delta(out, y).tolist()
    [[-0.26894, 0.26894]]
    """

    name: str
    fn: Callable[[Array, Array], Array]
    delta: Callable[[Array, Array], Array]
    predict: Callable[[Array], Array]
    takes: Literal["class logits", "label logits", "values"] = "values"

    def __post_init__(self):
        """Check the functions and `takes`."""
        for name in ("fn", "delta", "predict"):
            if not callable(getattr(self, name)):
                raise ValueError(f"{self.name}: {name} is {getattr(self, name)!r}, expected a function")
        if self.takes not in ("class logits", "label logits", "values"):
            raise ValueError(f"takes is {self.takes!r}, expected 'class logits', 'label logits' or 'values'")

    def __repr__(self) -> str:
        """The name of a shipped one, as for an `Activation`."""
        return self.name if self in SHIPPED else f"Loss({self.name!r}, ...)"

    def __reduce__(self):
        """How to pickle it."""
        if self in SHIPPED:
            return from_name, (self.name,)
        return Loss, (self.name, self.fn, self.delta, self.predict, self.takes)


def is_class_ids(y: Array) -> bool:
    """Whether targets are class ids, of an integer dtype, rather than values, of a floating one.

    >>> is_class_ids(jnp.array([0, 2])), is_class_ids(jnp.array([0.0, 1.0]))
    (True, False)
    """
    return jnp.issubdtype(y.dtype, jnp.integer)


def one_hot(y: Array, K: int, dtype: DTypeLike) -> Array:
    """`(...) -> (..., K)`: class ids as targets; a row of NaN for an id outside `[0, K)`.

    >>> one_hot(jnp.array([1, 2]), 2, jnp.float32)
    Array([[ 0.,  1.],
           [nan, nan]], dtype=float32)
    """
    y = _countable(y)
    in_range = (y >= 0) & (y < K)
    return jnp.where(in_range[..., None], jax.nn.one_hot(y, K, dtype=dtype), jnp.nan)


def _countable(y: Array) -> Array:
    return y if y.dtype.itemsize >= 4 else y.astype(jnp.int32)  # K may not fit in an int8


def _times(y: Array, v: Array) -> Array:
    """`y v`, where 0 times infinity is 0."""
    return y * jnp.where((y == 0) & jnp.isinf(v), 0.0, v)


def _below_largest(out: Array) -> tuple[Array, Array, Array, Array]:
    """A mask of the (first) largest logit; `below = out - largest`; `exp(below)`; `rest`, its sum over the others.

    So `log p = below - log1p(rest)`. A plain `log(sum(exp))` loses a small rest: for the logits 20, 0 and 0 its loss
    and its delta are 0 in float32, while the true values are 4e-9.
    """
    largest = jax.nn.one_hot(jnp.argmax(out, -1), out.shape[-1], dtype=bool)
    top = jnp.sum(jnp.where(largest, out, 0.0), -1, keepdims=True)
    below = jnp.where(largest, 0.0, out - top)
    rest = jnp.sum(jnp.where(largest, 0.0, jnp.exp(below)), -1, keepdims=True)
    return largest, below, jnp.exp(below), rest


def _softmax(out: Array) -> Array:
    *_, exp, rest = _below_largest(out)
    return exp / (1 + rest)


def _class_against_others(out: Array, y: Array) -> tuple[Array, Array, Array, Array]:
    """A mask of the class's own output; `exp(out - largest)`; its sum over the other outputs; the own `out - largest`.

    As accurate in the tails as `_below_largest`, at the cost of a plain softmax: it needs no argmax.
    """
    own = jax.nn.one_hot(_countable(y), out.shape[-1], dtype=bool)
    largest = jnp.max(out, -1, keepdims=True)
    is_infinite = jnp.isposinf(out)
    alone = jnp.sum(is_infinite, -1, keepdims=True) == 1  # of two infinite logits neither is the largest
    below = jnp.where(is_infinite & alone, 0.0, out - largest)
    exp = jnp.exp(below)
    others = jnp.sum(jnp.where(own, 0.0, exp), -1, keepdims=True)
    below = jnp.sum(jnp.where(own, below, 0.0), -1, keepdims=True)
    return own, exp, others, below


def _nan_if_out_of_range(own: Array) -> Array:
    """A factor `(..., 1)`: 1, or NaN if the id has no output."""
    return jnp.where(jnp.any(own, -1, keepdims=True), 1.0, jnp.nan)


def _softmax_cross_entropy(out: Array, y: Array) -> Array:
    if is_class_ids(y):
        own, _, others, below = _class_against_others(out, y)
        return ((jnp.log1p(others + (jnp.exp(below) - 1)) - below) * _nan_if_out_of_range(own))[..., 0]
    _, below, _, rest = _below_largest(out)
    return -jnp.sum(_times(y, below - jnp.log1p(rest)), -1)


def _softmax_cross_entropy_delta(out: Array, y: Array) -> Array:
    if is_class_ids(y):  # p, and p - 1 for the class
        own, exp, others, below = _class_against_others(out, y)
        return jnp.where(own, -others, exp) / (others + jnp.exp(below)) * _nan_if_out_of_range(own)
    largest, _, exp, rest = _below_largest(out)
    others = jnp.where(largest, rest, 1 + rest - exp)  # the sum of exp over all but k
    # sum(y) p - y, without cancellation where p is near 1
    return ((jnp.sum(y, -1, keepdims=True) - y) * exp - y * others) / (1 + rest)


softmax_cross_entropy = Loss(
    "softmax_cross_entropy", _softmax_cross_entropy, _softmax_cross_entropy_delta, _softmax, takes="class logits"
)
"""`-sum_k y_k log softmax(out)_k`, `delta = sum(y) softmax(out) - y`: multi-class, `out` being logits.

Soft targets need not sum to one. Bishop, Pattern Recognition and Machine Learning, 2006, equations 4.108 and 4.109.
"""


def label_targets(out: Array, y: Array) -> Array:
    """The targets `(..., K)` for label logits: class ids become one-hot rows, or with one output are the target itself.

    >>> label_targets(jnp.zeros((2, 1)), jnp.array([0, 1])).tolist()
    [[0.0], [1.0]]
    """
    if not is_class_ids(y):
        return y
    K = out.shape[-1]
    return one_hot(y, 2, out.dtype)[..., 1:] if K == 1 else one_hot(y, K, out.dtype)  # 1: the id is the target


def _sigmoid_cross_entropy(out: Array, y: Array) -> Array:
    y = label_targets(out, y)
    return jnp.sum(_times(y, softplus.fn(-out)) + _times(1 - y, softplus.fn(out)), -1)


def _sigmoid_cross_entropy_delta(out: Array, y: Array) -> Array:
    y = label_targets(out, y)
    return (1 - y) * jax.nn.sigmoid(out) - y * jax.nn.sigmoid(-out)  # = s(out) - y, accurate in both tails


sigmoid_cross_entropy = Loss(
    "sigmoid_cross_entropy",
    _sigmoid_cross_entropy,
    _sigmoid_cross_entropy_delta,
    jax.nn.sigmoid,
    takes="label logits",
)
"""`-sum_k [y_k log s(out_k) + (1 - y_k) log(1 - s(out_k))]`, `delta = s(out) - y`: binary or multi-label logits.

With one output, class ids are 0 or 1; with more, they mean one-hot rows. Both logarithms are softplus,
`-log s(z) = log(1 + exp(-z))`. Bishop 2006, equations 4.90 and 4.91.
"""


def _squared_error_targets(out: Array, y: Array) -> Array:
    if not is_class_ids(y):
        return y
    if out.shape[-1] == 1:
        raise ValueError(
            f"squared_error: y has dtype {y.dtype}, so it holds class ids, but the network has one output; "
            "for regression pass floating targets of shape (..., 1)"
        )
    return one_hot(y, out.shape[-1], out.dtype)


def _squared_error(out: Array, y: Array) -> Array:
    return jnp.sum((out - _squared_error_targets(out, y)) ** 2, -1)


def _squared_error_delta(out: Array, y: Array) -> Array:
    return 2 * (out - _squared_error_targets(out, y))


squared_error = Loss("squared_error", _squared_error, _squared_error_delta, lambda out: out)
"""`|out - y|^2` per sample, the squared L2 norm without 1/2, `delta = 2 (out - y)`: regression.

Class ids mean one-hot rows.
"""

SHIPPED = (softmax_cross_entropy, sigmoid_cross_entropy, squared_error)


def from_name(name: str) -> Loss:
    """The shipped loss of that name.

    Raises:
      ValueError: there is none of that name; the message lists the names.

    >>> from_name("squared_error") is squared_error
    True
    """
    by_name = {loss.name: loss for loss in SHIPPED}
    if not isinstance(name, str) or name not in by_name:
        raise ValueError(f"unknown loss {name!r}, expected one of {', '.join(by_name)}")
    return by_name[name]
