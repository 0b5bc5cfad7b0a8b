"""How good a network is: outputs over many samples, their loss and accuracy, and what several networks say together."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from funcnet.losses import is_class_ids, softmax_cross_entropy
from funcnet.mlp import forward
from funcnet.network import Network, Params, check_labels, check_network, targets_and_shares

__all__ = ["Metrics", "Transform", "ensemble", "evaluate", "forward_in_batches", "is_correct", "scale_pixels", "score"]

Transform = Callable[[Array | None, Array], Array]  # (key, x) -> floating batch; the key is None in evaluation


class Metrics(NamedTuple):
    """Means over the samples seen."""

    loss: Array  # (), the objective
    accuracy: Array  # (), see `is_correct`


def evaluate(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    batch_size: int = 1000,
    transform: Transform | None = None,
) -> Metrics:
    """Mean loss and accuracy over a data set. Arguments as in `forward_in_batches`, `y` as in `objective`.

    Raises:
      ValueError: `x` and `y` of different lengths, no samples, and, outside jit, a class id out of range.

    >>> import funcnet
    >>> params = funcnet.init(jax.random.key(0), (4, 3), weights=funcnet.zeros)
    >>> evaluate(params, jnp.ones((5, 4)), jnp.array([0, 1, 2, 0, 1])).loss
    Array(1.0986, dtype=float32)
    """
    count_samples(params, x, y, network)
    return score(forward_in_batches(params, x, network, batch_size=batch_size, transform=transform), y, network)


@jax.jit
def score(out: Array, y: ArrayLike, network: Network = Network()) -> Metrics:
    """Mean loss and accuracy of outputs that are already there, `(N, K)`. Other arguments as in `objective`.

    >>> score(jnp.zeros((5, 3)), jnp.array([0, 1, 2, 0, 1]))
    Metrics(loss=Array(1.0986, dtype=float32), accuracy=Array(0.4, dtype=float32))
    """
    check_network(network)
    y, share = targets_and_shares(y, out, None)
    return Metrics(jnp.sum(share * network.loss.fn(out, y)), is_correct(out, y).astype(out.dtype).mean())


def is_correct(out: Array, y: Array) -> Array:
    """Whether each sample's output says what its target says, `(..., K), y -> (...)`.

    With several outputs: the largest output is the class, or the largest target. With one output, a logit: output and
    target are on the same side of 0 and of 1/2. For regression this means nothing.

    >>> is_correct(jnp.array([[2.0, 1.0], [0.0, 3.0]]), jnp.array([0, 0]))
    Array([ True, False], dtype=bool)
    """
    if out.shape[-1] > 1:
        return jnp.argmax(out, -1) == (y if is_class_ids(y) else jnp.argmax(y, -1))
    return (out[..., 0] > 0) == (y > 0 if is_class_ids(y) else y[..., 0] > 0.5)


@partial(jax.jit, static_argnames=("batch_size", "transform"))
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
      batch_size: static; samples at a time.
      transform: static; as in `make_epoch`, called with the key `None`.

    Returns:
      `(N, K)`.

    Raises:
      ValueError: a batch size below 1, or what `forward` raises.

    >>> import funcnet
    >>> forward_in_batches(funcnet.init(jax.random.key(0), (4, 3)), jnp.zeros((2500, 4), jnp.uint8)).shape
    (2500, 3)
    """
    check_batch_size(batch_size)
    x = jnp.asarray(x)
    n, batch_size = len(x), min(batch_size, len(x))
    transform = transform or scale_pixels

    def of_batch(start):
        batch = transform(None, jax.lax.dynamic_slice_in_dim(x, start, batch_size))
        return forward(params, batch, network)

    def fill(i, out):
        start = jnp.minimum(i * batch_size, n - batch_size)  # the last batch goes over some samples again
        return jax.lax.dynamic_update_slice_in_dim(out, of_batch(start), start, 0)

    shape = jax.eval_shape(of_batch, 0)
    return jax.lax.fori_loop(0, -(-n // batch_size), fill, jnp.zeros((n, *shape.shape[1:]), shape.dtype))


def scale_pixels(key: Array | None, x: Array) -> Array:
    """The default transform: uint8 pixels to `[0, 1]` float32; anything floating as it is.

    >>> scale_pixels(None, jnp.array([0, 51, 255], jnp.uint8)).tolist()
    [0.0, 0.2, 1.0]
    """
    del key
    return x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x


def ensemble(logits: Array) -> Array:
    """What several networks say together: the log of the mean of their probabilities, which is logits again.

    Args:
      logits: of `M` networks, or of one for `M` views of the same samples, `(M, ..., K)`.

    Returns:
      `(..., K)`, for `softmax_cross_entropy`.

    >>> sure, unsure = jnp.array([0.0, 9.0]), jnp.array([0.0, 0.0])
    >>> jax.nn.softmax(ensemble(jnp.stack([sure, unsure])))
    Array([0.25006, 0.74994], dtype=float32)
    """
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - math.log(len(logits))


def count_samples(params, x, y, network) -> int:
    """How many samples there are: as many in `x` as in `y`, at least one, and no class id out of range."""
    check_network(network)
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"x has {len(x)} samples and y {len(y)}, expected as many in both, and at least one")
    if not isinstance(y, Tracer):
        K = params[-1][0].shape[1]
        check_labels(y, 2 if K == 1 and network.loss != softmax_cross_entropy else K)  # one logit tells two apart
    return len(x)


def check_batch_size(batch_size) -> None:
    """Check that it is a whole number of at least 1."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}, expected a whole number of at least 1")
