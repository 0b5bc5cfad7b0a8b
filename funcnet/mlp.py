"""The heart: a multilayer perceptron as pure functions, with its gradient written by hand.

    z_l = a_{l-1} W_l + b_l,   a_l = f_l(z_l),   a_0 = x,   l = 1 .. L

Samples are rows: `x` is `(..., n_0)` with any number of leading axes, `W_l` is `(n_{l-1}, n_l)`, `b_l` is `(n_l,)`.
`backward` is no custom derivative rule: `jax.grad(objective)` differentiates the forward pass by itself, so that
comparing the two says something.

Precision: the dtype of the parameters decides, whatever that of `x` and `y`. All is computed in it, but in float32
at least, and a gradient has the dtype of its parameter; so half-precision parameters cost no more accuracy than
their own rounding. `compute_dtype` (bfloat16, say) casts the inputs of the matrix products, and nothing else: they
accumulate in float32.
"""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import optimization_barrier
from jax.typing import ArrayLike, DTypeLike

from funcnet import validation
from funcnet.activations import Activation, identity, relu
from funcnet.initializers import Initializer, he_normal, zeros
from funcnet.losses import Loss, is_class_ids, softmax_cross_entropy

Params = list[tuple[Array, Array]]  # [(W_1, b_1), ..., (W_L, b_L)]
Hidden = Activation | tuple[Activation, ...]  # one for all hidden layers, or one for each
Masks = Sequence[Array | None]  # L of them: masks[l] multiplies a_l, l = 0 .. L-1

FORWARD_STATICS = ("hidden", "output", "compute_dtype")
STATICS = (*FORWARD_STATICS, "loss")


class Trace(NamedTuple):
    """What a forward pass computes on its way, in the order of the layers.

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
      key: a JAX random key; each array gets a key of its own from it.
      sizes: the widths `n_0, ..., n_L`, at least two.
      weights: called with each `W_l`'s key, shape `(n_{l-1}, n_l)` and dtype.
      biases: called with each `b_l`'s key, shape `(n_l,)` and dtype.
      dtype: a floating dtype; it decides the precision of the network.

    Returns:
      `[(W_1, b_1), ..., (W_L, b_L)]`.

    Raises:
      ValueError: fewer than two sizes, or one that is not a whole number, or an empty input or output.

    >>> params = init(jax.random.key(0), (784, 128, 10))
    >>> [(W.shape, b.shape) for W, b in params]
    [((784, 128), (128,)), ((128, 10), (10,))]
    """
    validation.check_sizes(sizes)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is {jnp.dtype(dtype)}, expected a floating dtype")
    keys = jax.random.split(key, (len(sizes) - 1, 2))
    return [
        (weights(key_W, (n_in, n_out), dtype), biases(key_b, (n_out,), dtype))
        for (key_W, key_b), n_in, n_out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


@partial(jax.jit, static_argnames=FORWARD_STATICS)
def forward(
    params: Params,
    x: ArrayLike,
    *,
    hidden: Hidden = relu,
    output: Activation = identity,
    masks: Masks | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Array:
    """The output of the network, `a_L`.

    Args:
      params: `[(W_1, b_1), ..., (W_L, b_L)]`.
      x: floating, `(..., n_0)`.
      hidden: static; one `Activation` for all hidden layers, or a tuple (not a list) of `L - 1`.
      output: static; the `Activation` of the last layer. Softmax is not one: it lives in the loss, on logits.
      masks: `L` dropout masks or `None`s, `masks[l]` multiplying `a_l`; see `dropout_masks`.
      compute_dtype: static; the dtype of the inputs of matrix products, by default that of all the rest.

    Returns:
      `(..., n_L)`, in the parameters' dtype but float32 at least.

    Raises:
      ValueError: shapes or dtypes that do not fit, by argument and layer, while tracing.

    >>> params = init(jax.random.key(0), (4, 8, 3))
    >>> forward(params, jnp.ones((5, 4))).shape, forward(params, jnp.ones(4)).shape
    ((5, 3), (3,))
    """
    return forward_sweep(params, *prepare(params, x, hidden, output, masks, compute_dtype)).activations[-1]


@partial(jax.jit, static_argnames=FORWARD_STATICS)
def forward_trace(
    params: Params,
    x: ArrayLike,
    *,
    hidden: Hidden = relu,
    output: Activation = identity,
    masks: Masks | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Trace:
    """Everything on the way to the output: all `z_l` and all `a_l`. Arguments and errors as in `forward`.

    Returns:
      A `Trace`, `L` pre-activations and `L + 1` activations.

    >>> trace = forward_trace(init(jax.random.key(0), (4, 8, 3)), jnp.ones((5, 4)))
    >>> [z.shape for z in trace.pre_activations], [a.shape for a in trace.activations]
    ([(5, 8), (5, 3)], [(5, 4), (5, 8), (5, 3)])
    """
    return forward_sweep(params, *prepare(params, x, hidden, output, masks, compute_dtype))


@partial(jax.jit, static_argnames=STATICS)
def predict(
    params: Params,
    x: ArrayLike,
    *,
    hidden: Hidden = relu,
    output: Activation = identity,
    loss: Loss = softmax_cross_entropy,
    compute_dtype: DTypeLike | None = None,
) -> Array:
    """What the loss makes of the output: probabilities `(..., K)`, or the values themselves for regression.

    Arguments and errors as in `forward`, and `loss`, static: a `Loss`.

    Returns:
      `(..., K)`, in the parameters' dtype but float32 at least.

    >>> predict(init(jax.random.key(0), (4, 3), weights=zeros), jnp.ones(4))
    Array([0.33333, 0.33333, 0.33333], dtype=float32)
    """
    validation.check_loss(loss)
    return loss.predict(forward(params, x, hidden=hidden, output=output, compute_dtype=compute_dtype))


@partial(jax.jit, static_argnames=STATICS)
def objective(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    *,
    hidden: Hidden = relu,
    output: Activation = identity,
    loss: Loss = softmax_cross_entropy,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Array:
    """The mean loss over all leading axes, or the weighted mean `sum(w * loss) / sum(w)`.

    Args:
      params: `[(W_1, b_1), ..., (W_L, b_L)]`.
      x: floating, `(..., n_0)`.
      y: class ids, of an integer dtype and shape `(...)`, or targets, of a floating dtype and shape `(..., K)`.
      hidden: static; as in `forward`.
      output: static; as in `forward`.
      loss: static; a `Loss`.
      masks: as in `forward`.
      sample_weight: `(...)`, one weight per sample; weight 0 leaves a sample out, if its loss is finite (0 times NaN
        is NaN). Their sum must not be 0.
      compute_dtype: static; as in `forward`.

    Returns:
      A scalar. NaN where a class id is out of range.

    Raises:
      ValueError: shapes or dtypes that do not fit, by argument and layer, while tracing.

    >>> params = init(jax.random.key(0), (4, 3), weights=zeros)
    >>> objective(params, jnp.ones((2, 4)), jnp.array([0, 2]))  # log 3
    Array(1.0986, dtype=float32)
    """
    out = forward(params, x, hidden=hidden, output=output, masks=masks, compute_dtype=compute_dtype)
    y, share = targets_and_shares(y, out, loss, sample_weight)
    return jnp.sum(share * loss.fn(out, y))


@partial(jax.jit, static_argnames=STATICS)
def backward(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    *,
    hidden: Hidden = relu,
    output: Activation = identity,
    loss: Loss = softmax_cross_entropy,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Params:
    """The gradient of `objective` with respect to the parameters, written by hand.

        delta_L     = d loss / d a_L * f_L'(z_L, a_L) / N       (or w / sum(w) in place of 1 / N)
        delta_{l-1} = (delta_l W_l^T) * f_{l-1}'(z_{l-1}, a_{l-1})
        dW_l        = a_{l-1}^T delta_l
        db_l        = sum of delta_l over the samples

    Rumelhart, Hinton and Williams, Nature 1986; the four equations as in Nielsen, Neural Networks and Deep
    Learning, 2015, chapter 2. Equals `jax.grad(objective)`; see `funcnet.testing` for by how much.

    Args and errors as in `objective`.

    Returns:
      The gradient: the same tree, shapes and dtypes as `params`.

    >>> params, x, y = init(jax.random.key(0), (4, 8, 3)), jnp.ones((5, 4)), jnp.array([0, 1, 2, 0, 1])
    >>> by_hand, by_jax = backward(params, x, y), jax.grad(objective)(params, x, y)
    >>> all(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.allclose(a, b, atol=1e-6), by_hand, by_jax)))
    True
    """
    return value_and_backward(
        params, x, y, hidden=hidden, output=output, loss=loss, masks=masks, sample_weight=sample_weight,
        compute_dtype=compute_dtype,
    )[1]  # fmt: skip


@partial(jax.jit, static_argnames=STATICS)
def value_and_backward(
    params: Params,
    x: ArrayLike,
    y: ArrayLike,
    *,
    hidden: Hidden = relu,
    output: Activation = identity,
    loss: Loss = softmax_cross_entropy,
    masks: Masks | None = None,
    sample_weight: ArrayLike | None = None,
    compute_dtype: DTypeLike | None = None,
) -> tuple[Array, Params]:
    """`objective` and `backward` in one pass, as `jax.value_and_grad` gives them.

    Args and errors as in `objective`.

    Returns:
      The scalar, and the tree of `params`.

    >>> params = init(jax.random.key(0), (4, 3), weights=zeros)
    >>> value, grads = value_and_backward(params, jnp.ones((2, 4)), jnp.array([0, 2]))
    >>> value
    Array(1.0986, dtype=float32)
    """
    x, activations, masks, dtype = prepare(params, x, hidden, output, masks, compute_dtype)
    trace = forward_sweep(params, x, activations, masks, dtype)
    z_L, a_L = trace.pre_activations[-1], trace.activations[-1]
    y, share = targets_and_shares(y, a_L, loss, sample_weight)

    delta_L = loss.delta(a_L, y) * output.deriv(z_L, a_L) * share[..., None]
    deltas = backward_sweep(params, trace, delta_L, activations, masks, dtype)
    grads = [
        layer_gradient(W, a, delta, dtype)
        for (W, _), a, delta in zip(params, layer_inputs(trace, masks), deltas, strict=True)
    ]
    return jnp.sum(share * loss.fn(a_L, y)), like(params, grads)


def count_parameters(params: Params) -> int:
    """How many numbers there are in all `W` and `b`.

    >>> count_parameters(init(jax.random.key(0), (4, 8, 1)))
    49
    """
    validation.check_params(params)
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(params))


def summary(params: Params) -> str:
    """The network as a table, one row per layer.

    >>> print(summary(init(jax.random.key(0), (784, 128, 10))))
    layer           W        b  parameters
        1  (784, 128)   (128,)     100,480
        2   (128, 10)    (10,)       1,290
    total              float32     101,770
    """
    validation.check_params(params)
    rows = [(str(l), str(W.shape), str(b.shape), f"{W.size + b.size:,}") for l, (W, b) in enumerate(params, 1)]
    rows = [
        ("layer", "W", "b", "parameters"),
        *rows,
        ("total", "", str(params[0][0].dtype), f"{count_parameters(params):,}"),
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


# What the functions above share, un-jitted: the checks, the two sweeps, the products inside them.


def prepare(params, x, hidden, output, masks, compute_dtype):
    """Check the arguments of a pass: `x` as an array, an activation and a mask per layer, the dtype of products."""
    validation.check_params(params)
    x = jnp.asarray(x)
    validation.check_input(params, x)
    validation.check_compute_dtype(compute_dtype)
    x = x.astype(_at_least_float32(params[0][0].dtype))
    activations = validation.check_activations(hidden, output, len(params))
    masks = validation.check_masks(masks, [W.shape[0] for W, _ in params], x.shape[:-1])
    return x, activations, masks, x.dtype if compute_dtype is None else jnp.dtype(compute_dtype)


def targets_and_shares(y, out, loss, sample_weight) -> tuple[Array, Array]:
    """Check the arguments of the mean: `y` in the dtype of the output, and the part `(...)` of each sample in it."""
    batch_shape, K = out.shape[:-1], out.shape[-1]
    validation.check_loss(loss)
    y = jnp.asarray(y)
    validation.check_targets(y, batch_shape, K)
    y = y if is_class_ids(y) else y.astype(out.dtype)
    if sample_weight is None:
        return y, jnp.full(batch_shape, 1 / prod(batch_shape), out.dtype)
    w = jnp.asarray(sample_weight)
    validation.check_sample_weight(w, batch_shape)
    w = w.astype(out.dtype)
    return y, w / jnp.sum(w)


def forward_sweep(params, x, activations, masks, dtype) -> Trace:
    """From the first layer to the last: all `z_l` and all `a_l`."""
    trace = Trace([], [x])
    a = x
    for (W, b), f, mask in zip(params, activations, masks, strict=True):
        z = product("...i,ij->...j", masked(a, mask), W, dtype)  # (..., n_in) -> (..., n_out)
        z = z + jnp.broadcast_to(b.astype(z.dtype), z.shape)
        a = f.fn(z)
        trace.pre_activations.append(z)
        trace.activations.append(a)
    return trace


def backward_sweep(params, trace, delta, activations, masks, dtype) -> list[Array]:
    """From the last layer to the first: `delta_L` in, `[delta_1, ..., delta_L]` out."""
    deltas = [delta]
    hidden_layers = zip(activations[:-1], trace.pre_activations[:-1], trace.activations[1:-1], strict=True)
    ways_on = zip(params[1:], masks[1:], strict=True)  # from a hidden layer to the next: its mask, the next W
    for (f, z, a), ((W, _), mask) in reversed(list(zip(hidden_layers, ways_on, strict=True))):
        delta = product("...j,ij->...i", delta, W, dtype)  # (..., n_out) -> (..., n_in)
        delta = masked(delta, mask) * f.deriv(z, a)
        deltas.append(delta)
    return deltas[::-1]


def layer_inputs(trace, masks) -> list[Array]:
    """`[a_0, ..., a_{L-1}]` under their masks: what the layers multiply."""
    return [masked(a, mask) for a, mask in zip(trace.activations[:-1], masks, strict=True)]


def layer_gradient(W, a, delta, dtype) -> tuple[Array, Array]:
    """`dW[i, j] = sum a[..., i] delta[..., j]` and `db[j] = sum delta[..., j]`, summed over all samples."""
    if W.shape[1] > 16:
        dW = summed_products(a, delta, jax.typeof(W).sharding, dtype)
    else:  # as few columns as classes: XLA's CPU is two to seven times faster with dW^T, if kept from turning it back
        dW = optimization_barrier(summed_products(delta, a, jax.typeof(W.T).sharding, dtype)).T
    db = jnp.sum(delta, axis=tuple(range(delta.ndim - 1)))
    return dW, db


def summed_products(p, q, sharding, dtype) -> Array:
    """`sum p[..., i] q[..., j]` over all samples, in the dtype of `p`."""
    p_T = jnp.moveaxis(p.astype(dtype), -1, 0)  # (..., n) -> (n, ...)
    # Where a mesh's axes are explicit, a contraction over a sharded batch must say what comes out.
    einsum = partial(jnp.einsum, "i...,...j->ij", preferred_element_type=p.dtype, out_sharding=sharding)
    if dtype == p.dtype:
        return einsum(p_T, q)
    # Were these sums then transposed, XLA's CPU would do it to the factors, and find that it has no such product.
    return optimization_barrier(einsum(_row_by_row(p_T), q.astype(dtype)))


def product(spec, p, q, dtype) -> Array:
    """A matrix product of factors cast to `dtype`, accumulated in the dtype that `p`, an `a` or a `delta`, has."""
    return jnp.einsum(spec, p.astype(dtype), q.astype(dtype), preferred_element_type=p.dtype)


def _row_by_row(p) -> Array:
    """The same numbers written anew, row by row: as sums over windows of one.

    A transposition alone changes how a matrix is read, not how it lies; and of half-precision products XLA's CPU has
    only those whose left factor lies row by row. Otherwise it goes back to float32, at half the speed or less.
    """
    ones = (1,) * p.ndim
    return jax.lax.reduce_window(p, p.dtype.type(0), jax.lax.add, ones, ones, "VALID")


def _at_least_float32(dtype):
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def masked(a, mask) -> Array:
    """`a * mask`; `None` keeps all."""
    return a if mask is None else a * mask.astype(a.dtype)


def like(params, grads) -> Params:
    """`grads` as the very tree that `params` is (a layer may be a list, or a tuple with names), and of its dtype."""
    dtype = params[0][0].dtype
    return jax.tree.unflatten(jax.tree.structure(params), [g.astype(dtype) for g in jax.tree.leaves(grads)])
