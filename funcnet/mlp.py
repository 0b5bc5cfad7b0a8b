"""A multilayer perceptron as pure functions, with its gradient written by hand.

With `delta_l = d objective / d z_l`, `N` samples over all leading axes, and `m_l` the dropout mask of `a_l`:

    z_l         = (m_{l-1} * a_{l-1}) W_l + b_l,   a_l = f_l(z_l),   a_0 = x
    delta_L     = d loss / d a_L * f_L'(z_L, a_L) / N
    dW_l        = (m_{l-1} * a_{l-1})^T delta_l
    db_l        = sum of delta_l over the samples
    delta_{l-1} = m_{l-1} * (delta_l W_l^T) * f_{l-1}'(z_{l-1}, a_{l-1}),   l = L .. 2

Samples are rows: `x` is `(..., n_0)` with any number of leading axes, `W_l` is `(n_{l-1}, n_l)`, `b_l` is `(n_l,)`.
`backward` is not registered with JAX as a derivative rule. So `jax.grad(objective)` is an independent check of it.

Precision: the dtype of the parameters decides, whatever the dtypes of `x` and `y`. The computation runs in that dtype,
or in float32 if it is narrower; `Network.compute_dtype` changes only the factors of matrix products. A gradient has the
dtype of its parameter, so half-precision parameters cost no more accuracy than their own rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from funcnet.activations import Activation
from funcnet.arguments import (
    check_dtype,
    check_key,
    check_meaning,
    check_sizes,
    like,
    losses_of,
    prepared,
    targets_and_shares,
)
from funcnet.calls import array_function
from funcnet.initializers import Initializer, he_normal, zeros
from funcnet.network import Masks, Network, Params
from funcnet.products import outer_sum, times, times_transposed

__all__ = [
    "Trace", "backward", "forward", "forward_trace", "init", "objective", "predict", "value_and_backward",
]  # fmt: skip


class Layer(NamedTuple):
    """A layer with its values in this pass."""

    W: Array  # (n_{l-1}, n_l), in the dtype of products
    f: Activation
    mask: Array | None  # (..., n_{l-1}), of a_{l-1}
    a_in: Array  # (..., n_{l-1}), a_{l-1} under its mask
    z: Array  # (..., n_l)
    a: Array  # (..., n_l)

    @property
    def slope(self) -> Array:
        """`f_l'(z_l, a_l)`."""
        return self.f.deriv(self.z, self.a)


@array_function
def value_and_backward(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
) -> tuple[Array, Params]:
    """`objective` and `backward` in one pass, as `jax.value_and_grad` returns them.

    Args and errors as in `objective`.

    Returns:
      The scalar, and the tree of `params`.

    >>> params = init(jax.random.key(0), (4, 3), weights=zeros)
    >>> value, grads = value_and_backward(params, jnp.ones((2, 4)), jnp.array([0, 2]))
    >>> value
    Array(1.0986, dtype=float32)
    """
    a_0, chain = prepared(params, x, network, masks)
    layers = forward_sweep(a_0, chain)
    out = layers[-1].a  # a_L
    y, share = targets_and_shares(y, out, network, sample_weight)  # share: 1 / N, or w / sum(w)
    delta_L = network.loss.delta(out, y) * layers[-1].slope * share[..., None]  # loss.delta is d loss / d a_L
    grads = gradients(layers, backward_sweep(layers, delta_L))
    return jnp.sum(share * losses_of(out, y, network)), like(params, grads)


def forward_sweep(a, chain) -> list[Layer]:
    """`z_l = (m_{l-1} * a_{l-1}) W_l + b_l`, `a_l = f_l(z_l)`, from the first layer to the last."""
    layers = []
    for W, b, f, mask in chain:
        a_in = masked(a, mask)
        z = times(a_in, W)  # (..., n_{l-1}) -> (..., n_l)
        z = z + jnp.broadcast_to(b, z.shape)
        a = f.fn(z)
        layers.append(Layer(W, f, mask, a_in, z, a))
    return layers


def backward_sweep(layers, delta) -> list[Array]:
    """`delta_{l-1} = m_{l-1} * (delta_l W_l^T) * f_{l-1}'(z_{l-1}, a_{l-1})`, from `delta_L` down to `delta_1`."""
    deltas = [delta]
    for above, here in pairwise(reversed(layers)):  # (L, L-1), ..., (2, 1): no delta for the input
        delta = masked(times_transposed(delta, above.W), above.mask) * here.slope  # (..., n_l) -> (..., n_{l-1})
        deltas.append(delta)
    return deltas[::-1]


def gradients(layers, deltas) -> Params:
    """`dW_l = (m_{l-1} * a_{l-1})^T delta_l` and `db_l = delta_l`, each summed over all samples."""
    samples = tuple(range(deltas[0].ndim - 1))
    pairs = zip(layers, deltas, strict=True)
    return [(outer_sum(layer.a_in, delta, like=layer.W), jnp.sum(delta, axis=samples)) for layer, delta in pairs]


def masked(a, mask) -> Array:
    """`a * mask`, or `a` if the mask is `None`."""
    return a if mask is None else a * mask


class Trace(NamedTuple):
    """All `z_l` and `a_l` of a forward pass, in the order of the layers.

    With masks, `activations` hold `a_l` before its mask.
    """

    pre_activations: list[Array]  # [z_1, ..., z_L], each (..., n_l)
    activations: list[Array]  # [a_0, ..., a_L], each (..., n_l), a_0 = x


def init(
    key: Array,
    sizes: Sequence[int],
    *,
    weights: Initializer = he_normal,
    biases: Initializer = zeros,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Draw the parameters of a network, `W_l ~ weights`, `b_l ~ biases`.

    Args:
      key: a JAX random key; each array gets its own key, split from it.
      sizes: the widths `n_0, ..., n_L`, at least two.
      weights: called for each `W_l` with a key, the shape `(n_{l-1}, n_l)` and the dtype.
      biases: called for each `b_l` with a key, the shape `(n_l,)` and the dtype.
      dtype: a floating dtype; it decides the precision of the network.

    Returns:
      `[(W_1, b_1), ..., (W_L, b_L)]`.

    Raises:
      ValueError: there are fewer than two sizes, a size is not a whole number, the input or output is empty, the dtype
        is not floating or not enabled in JAX, or `key` is not a random key.

    >>> params = init(jax.random.key(0), (784, 128, 10))
    >>> [(W.shape, b.shape) for W, b in params]
    [((784, 128), (128,)), ((128, 10), (10,))]
    """
    check_key(key)
    check_sizes(sizes)
    check_dtype(dtype)
    for name, initializer in (("weights", weights), ("biases", biases)):
        if not callable(initializer):
            raise ValueError(f"{name} is {initializer!r}, expected an initializer, e.g. funcnet.he_normal")
    keys = jax.random.split(key, (len(sizes) - 1, 2))
    return [
        (weights(key_W, (n_in, n_out), dtype), biases(key_b, (n_out,), dtype))
        for (key_W, key_b), n_in, n_out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


@array_function
def forward(params: Params, x: ArrayLike, network: Network = Network(), *, masks: Masks | None = None) -> Array:
    """The output of the network, `a_L`.

    Args:
      params: `[(W_1, b_1), ..., (W_L, b_L)]`.
      x: floating, `(..., n_0)`.
      network: static; the activations, and the dtype of products.
      masks: `L` dropout masks or `None`s; `masks[l]` multiplies `a_l`. See `dropout_masks`.

    Returns:
      `(..., n_L)`, in the parameters' dtype, or in float32 if that is narrower.

    Raises:
      ValueError: shapes or dtypes do not fit. The message names the argument and the layer; raised while tracing.

    >>> params = init(jax.random.key(0), (4, 8, 3))
    >>> forward(params, jnp.ones((5, 4))).shape, forward(params, jnp.ones(4)).shape
    ((5, 3), (3,))
    """
    return forward_sweep(*prepared(params, x, network, masks))[-1].a


@array_function
def forward_trace(params: Params, x: ArrayLike, network: Network = Network(), *, masks: Masks | None = None) -> Trace:
    """All `z_l` and all `a_l` on the way to the output. Args and errors as in `forward`.

    Returns:
      A `Trace`, `L` pre-activations and `L + 1` activations.

    >>> trace = forward_trace(init(jax.random.key(0), (4, 8, 3)), jnp.ones((5, 4)))
    >>> [z.shape for z in trace.pre_activations], [a.shape for a in trace.activations]
    ([(5, 8), (5, 3)], [(5, 4), (5, 8), (5, 3)])
    """
    a_0, chain = prepared(params, x, network, masks)
    layers = forward_sweep(a_0, chain)
    return Trace([layer.z for layer in layers], [a_0, *[layer.a for layer in layers]])


@array_function
def predict(params: Params, x: ArrayLike, network: Network = Network()) -> Array:
    """The prediction: probabilities, or the output itself for regression. The loss decides.

    Args and errors as in `forward`.

    Returns:
      `(..., K)`, in the parameters' dtype, or in float32 if that is narrower.

    >>> predict(init(jax.random.key(0), (4, 3), weights=zeros), jnp.ones(4))
    Array([0.33333, 0.33333, 0.33333], dtype=float32)
    """
    out = forward(params, x, network)
    check_meaning(network, out.shape[-1])
    return network.loss.predict(out)


@array_function
def objective(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
) -> Array:
    """The mean loss over all leading axes, or the weighted mean `sum(w * loss) / sum(w)`.

    Args:
      params: `[(W_1, b_1), ..., (W_L, b_L)]`.
      x: floating, `(..., n_0)`.
      y: class ids, of an integer dtype and shape `(...)`, or targets, of a floating dtype and shape `(..., K)`.
      network: static; the activations, the loss, and the dtype of products.
      masks: as in `forward`.
      sample_weight: `(...)`, one weight per sample; weight 0 leaves a sample out, if its loss is finite (0 times NaN
        is NaN). The sum of the weights must not be 0.

    Returns:
      A scalar; NaN if a class id is out of range.

    Raises:
      ValueError: shapes or dtypes do not fit. The message names the argument and the layer; raised while tracing.

    >>> params = init(jax.random.key(0), (4, 3), weights=zeros)
    >>> objective(params, jnp.ones((2, 4)), jnp.array([0, 2]))  # log 3
    Array(1.0986, dtype=float32)
    """
    out = forward(params, x, network, masks=masks)
    y, share = targets_and_shares(y, out, network, sample_weight)
    return jnp.sum(share * losses_of(out, y, network))


@array_function
def backward(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    network: Network = Network(),
    *,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
) -> Params:
    """The gradient of `objective` with respect to the parameters, written by hand.

        delta_L     = d loss / d a_L * f_L'(z_L, a_L) / N       (or w / sum(w) in place of 1 / N)
        dW_l        = a_{l-1}^T delta_l                         (a_{l-1} under its mask, if there is one)
        db_l        = sum of delta_l over the samples
        delta_{l-1} = (delta_l W_l^T) * f_{l-1}'(z_{l-1}, a_{l-1})

    Rumelhart, Hinton and Williams, Nature 1986; the four equations as in Nielsen, Neural Networks and Deep
    Learning, 2015, chapter 2. It equals `jax.grad(objective)` up to rounding; `funcnet.testing` says how closely.

    Args and errors as in `objective`.

    Returns:
      The gradient: the same tree, shapes and dtypes as `params`.

    >>> params, x, y = init(jax.random.key(0), (4, 8, 3)), jnp.ones((5, 4)), jnp.array([0, 1, 2, 0, 1])
    >>> by_hand, by_jax = backward(params, x, y), jax.grad(objective)(params, x, y)
    >>> all(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=1e-6), by_hand, by_jax)))
    True
    """
    return value_and_backward(params, x, y, network, masks=masks, sample_weight=sample_weight)[1]
