"""Evaluation: the outputs for many samples, their loss and accuracy, and the prediction of several networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from funcnet.activations import sigmoid
from funcnet.arguments import (
    check_labels,
    check_network,
    check_params,
    check_probabilities,
    check_targets,
    losses_of,
    summed,
    targets_and_shares,
)
from funcnet.calls import array_function, as_array
from funcnet.losses import is_class_ids
from funcnet.mlp import forward
from funcnet.network import Network, Params

__all__ = ["Metrics", "Transform", "ensemble", "evaluate", "forward_in_batches", "is_correct", "scale_pixels", "score"]

Transform = Callable[[Array | None, Array], Array]  # (key, x) -> floating batch; the key is None in evaluation


class Metrics(NamedTuple):
    """Means over the samples, all of shape `()`. A metric without a meaning for the loss is None."""

    loss: Array  # (), the objective
    accuracy: Any = None  # (), the fraction of samples, or of their labels, that are correct; see `is_correct`
    exact_match: Any = None  # (), for several labels: the fraction of samples with all labels correct
    r2: Any = None  # (), for values: the fraction of the targets' variance explained; not while training


def evaluate(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    batch_size: int = 1000,
    transform: Transform | None = None,
    sample_weight: ArrayLike | None = None,
) -> Metrics:
    """Mean loss and accuracy over a data set, or `R^2`.

    `y` and `sample_weight` are as in `objective`, the rest as in `forward_in_batches`.

    Raises:
      ValueError: `x` and `y` differ in length or are empty, or, outside jit, a class id is out of range.

    >>> import funcnet
    >>> params = funcnet.init(jax.random.key(0), (4, 3), weights=funcnet.zeros)
    >>> evaluate(params, jnp.ones((5, 4)), jnp.array([0, 1, 2, 0, 1])).loss
    Array(1.0986, dtype=float32)
    """
    x, y = checked_data(params, x, y, network)
    out = forward_in_batches(params, x, network, batch_size=batch_size, transform=transform)
    return score(out, y, network, sample_weight=sample_weight)


@array_function
def score(
    out: ArrayLike, y: ArrayLike, network: Network = Network(), *, sample_weight: ArrayLike | None = None
) -> Metrics:
    """`evaluate` for given outputs, `(N, K)`. Other arguments and errors as in `objective`.

    `R^2 = 1 - sum w |y - out|^2 / sum w |y - mean y|^2`, averaged over the outputs. If all targets are equal, it is 1
    where the outputs equal them, else 0, as in scikit-learn.

    >>> metrics = score(jnp.zeros((5, 3)), jnp.array([0, 1, 2, 0, 1]))
    >>> metrics.loss, metrics.accuracy
    (Array(1.0986, dtype=float32), Array(0.4, dtype=float32))
    >>> import funcnet
    >>> score(jnp.array([[1.0], [2.0]]), jnp.array([[1.0], [4.0]]), Network(loss=funcnet.squared_error))
    Metrics(loss=Array(2., dtype=float32), accuracy=None, exact_match=None, r2=Array(0.11111, dtype=float32))
    """
    check_network(network)
    out = jnp.asarray(out)
    if out.ndim == 0 or out.size == 0:
        raise ValueError(f"out has shape {out.shape}, expected (..., K), at least one row of outputs")
    out = out.astype(jnp.float64 if out.dtype == jnp.float64 else jnp.float32)
    y, share = targets_and_shares(y, out, network, sample_weight)
    weights = None if sample_weight is None else share
    metrics = Metrics(jnp.sum(share * losses_of(out, y, network)), *accuracies(out, y, network, weights))
    if network.loss.takes != "values" or is_class_ids(y):
        return metrics
    return metrics._replace(r2=_r2(out, y, share[..., None]))


def is_correct(out: ArrayLike, y: ArrayLike, network: Network = Network()) -> Array | None:
    """Whether the outputs agree with the targets.

    - Class ids, and logits of classes: the largest output is that of the class, or of the largest target.
    - Logits of labels: the output is above 0 and the target above 1/2, or neither; for one label or several.
    - Values from a sigmoid, as probabilities: both are above 1/2, or neither.
    - Other values: there is no correct or wrong, so the result is None.

    Args:
      out: the network's output, `(..., K)`.
      y: class ids `(...)`, or targets `(..., K)`.
      network: its loss and output activation decide which rule applies.

    Returns:
      bool, `(...)`, or `(..., K)` for several labels; or None. NaN is never correct, and neither is a row of equal
      targets, which means no class.

    Raises:
      ValueError: `y` is neither class ids nor targets for `out`.

    >>> is_correct(jnp.array([[2.0, 1.0], [0.0, 3.0]]), jnp.array([0, 0]))
    Array([ True, False], dtype=bool)
    """
    check_network(network)
    out, y = jnp.asarray(out), jnp.asarray(y)
    if out.ndim == 0:
        raise ValueError("out has shape (), expected (..., K)")
    takes, K = network.loss.takes, out.shape[-1]
    check_targets(y, out.shape[:-1], K)
    if takes == "class logits" or (is_class_ids(y) and K > 1):
        said = jnp.argmax(out, -1)
        right = said == y if is_class_ids(y) else (said == jnp.argmax(y, -1)) & (jnp.max(y, -1) > jnp.min(y, -1))
        return right & ~jnp.isnan(jnp.max(out, -1))  # NaN if any is; the loss computes this maximum, too
    if takes == "values" and network.output != sigmoid:
        return None
    yes = out > (0 if takes == "label logits" else 0.5)
    correct = (yes == (y[..., None] > 0 if is_class_ids(y) else y > 0.5)) & ~jnp.isnan(out)
    return correct[..., 0] if K == 1 else correct


def accuracies(out, y, network, weights) -> tuple[Array | None, Array | None]:
    """`accuracy` and `exact_match`, exactly 1 if all are correct; `weights` is None or one weight per sample."""
    correct = is_correct(out, y, network)
    if correct is None:
        return None, None

    def mean(of_each):  # (...)
        of_each = of_each.astype(out.dtype)
        if weights is None:
            return jnp.mean(of_each)
        w, total = summed(jnp.asarray(weights).astype(out.dtype))
        return jnp.sum(w * of_each) / total

    if correct.ndim < out.ndim:
        return mean(correct), None
    return mean(jnp.mean(correct.astype(out.dtype), -1)), mean(jnp.all(correct, -1))


def _r2(out, y, share):
    samples = tuple(range(out.ndim - 1))
    around = y - jnp.sum(share * y, samples, keepdims=True)
    around -= jnp.sum(share * around, samples, keepdims=True)  # the first sum is off by ulps of a large mean
    missed, variance = (jnp.sum(share * d**2, samples) for d in (y - out, around))
    lowest = jnp.min(y, samples, where=share != 0, initial=jnp.inf)
    highest = jnp.max(y, samples, where=share != 0, initial=-jnp.inf)
    return jnp.mean(jnp.where(lowest == highest, (missed == 0).astype(out.dtype), 1 - missed / variance))


@array_function(static_argnames=("batch_size", "transform"))
def forward_in_batches(
    params: Params,
    x: ArrayLike,
    network: Network = Network(),
    *,
    batch_size: int = 1000,
    transform: Transform | None = None,
) -> Array:
    """`forward` over many samples, batch by batch, in the memory of one batch.

    Args:
      params: the network.
      x: `(N, ...)`.
      network: static; as in `forward`.
      batch_size: static; the number of samples in one pass.
      transform: static; as in `make_epoch`, called with the key `None`.

    Returns:
      `(N, K)`.

    Raises:
      ValueError: the batch size is below 1; also as in `forward`.

    >>> import funcnet
    >>> forward_in_batches(funcnet.init(jax.random.key(0), (4, 3)), jnp.zeros((2500, 4), jnp.uint8)).shape
    (2500, 3)
    """
    check_count("batch_size", batch_size)
    x = jnp.asarray(x)
    n, batch_size = len(x), min(batch_size, len(x))
    transform = transform or scale_pixels

    def of_batch(start):
        batch = transform(None, jax.lax.dynamic_slice_in_dim(x, start, batch_size))
        return forward(params, batch, network)

    def fill(i, out):
        start = jnp.minimum(i * batch_size, n - batch_size)  # the last batch repeats some samples
        return jax.lax.dynamic_update_slice_in_dim(out, of_batch(start), start, 0)

    shape = jax.eval_shape(of_batch, 0)
    return jax.lax.fori_loop(0, -(-n // batch_size), fill, jnp.zeros((n, *shape.shape[1:]), shape.dtype))


def scale_pixels(key: Array | None, x: Array) -> Array:
    """The default transform: uint8 pixels to float32 in `[0, 1]`; other dtypes are unchanged.

    >>> scale_pixels(None, jnp.array([0, 51, 255], jnp.uint8)).tolist()
    [0.0, 0.2, 1.0]
    """
    del key
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def ensemble(logits: Array) -> Array:
    """The prediction of several networks: the log of the mean of their probabilities, which are logits again.

    Args:
      logits: of `M` networks, or of one for `M` views of the same samples, `(M, ..., K)`.

    Returns:
      `(..., K)`, for `softmax_cross_entropy`.

    Raises:
      ValueError: there is only one output.

    >>> sure, unsure = jnp.array([0.0, 9.0]), jnp.array([0.0, 0.0])
    >>> jax.nn.softmax(ensemble(jnp.stack([sure, unsure])))
    Array([0.25006, 0.74994], dtype=float32)
    """
    logits = as_array("logits", logits)
    if logits.ndim < 2 or logits.shape[-1] < 2:
        raise ValueError(
            f"ensemble: logits has shape {logits.shape}, expected (M, ..., K), two classes or more: for one logit "
            "take the mean of jax.nn.sigmoid(logits)"
        )
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - math.log(len(logits))


def checked_data(params, x, y, network) -> tuple[Any, Any]:
    """`x` and `y` as arrays, checked: the same number of samples, at least one, and class ids in range."""
    check_params(params)
    check_network(network)
    x, y = as_array("x", x), as_array("y", y)
    for name, a in (("x", x), ("y", y)):
        if jnp.ndim(a) == 0:
            raise ValueError(f"{name} has shape (), expected one entry for each sample")
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"x has {len(x)} samples and y {len(y)}, expected the same number, at least one")
    if not isinstance(y, Tracer):
        K = params[-1][0].shape[1]
        check_labels(y, 2 if K == 1 else K)  # one output separates two classes
        check_probabilities(y, network)
    return x, y


def check_count(name: str, value: Any) -> None:
    """Check that `value` is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least 1")
