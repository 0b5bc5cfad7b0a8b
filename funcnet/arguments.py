"""Checks of a call's arguments, and their casts to the dtypes of a pass.

Shapes and dtypes are checked while tracing, so the checks are free at run time. Every message names the argument, the
value and the expected one; for parameters also the layer. Values (labels in range, NaN) cannot be seen while tracing:
`losses` turns a bad label into NaN, and `check_labels` checks labels before training starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from funcnet.activations import Activation, sigmoid
from funcnet.losses import is_class_ids
from funcnet.network import Network, Params, describe, floating

__all__ = ["check_labels"]


def prepared(params, x, network, masks) -> tuple[Array, list[tuple[Array, Array, Activation, Array | None]]]:
    """A call's arguments, checked and cast: `a_0`, and the list of layers, `(W, b, f, mask)` each.

    `W` has the dtype of products, everything else that of the computation: float32 at least.
    """
    check_params(params)
    check_network(network)
    x = jnp.asarray(x)
    check_input(params, x)
    activations = network.activations(len(params))
    masks = check_masks(masks, [W.shape[0] for W, _ in params], x.shape[:-1])
    dtype = computed_in(params)
    weights = cast(params, network)
    masks = [None if mask is None else mask.astype(dtype) for mask in masks]
    chain = [(W, b, f, mask) for (W, b), f, mask in zip(weights, activations, masks, strict=True)]
    return x.astype(dtype), chain


def cast(params, network) -> list[tuple[Array, Array]]:
    """The parameters in the dtypes of a pass: `W` in that of products, `b` in that of sums."""
    dtype = computed_in(params)
    return [(W.astype(network.compute_dtype or dtype), b.astype(dtype)) for W, b in params]


def computed_in(params) -> np.dtype:
    """The dtype of a computation: that of the parameters, or float32 if that is narrower."""
    return np.dtype(np.float64 if params[0][0].dtype == np.float64 else np.float32)


def targets_and_shares(y, out, network, sample_weight) -> tuple[Array, Array]:
    """The targets, checked and in the dtype of the output, and the weight `(...)` of each sample in the mean."""
    batch_shape, K = out.shape[:-1], out.shape[-1]
    check_meaning(network, K)
    y = jnp.asarray(y)
    check_targets(y, batch_shape, K)
    y = y if is_class_ids(y) else y.astype(out.dtype)
    if sample_weight is None:
        return y, jnp.full(batch_shape, 1 / prod(batch_shape), out.dtype)
    w = jnp.asarray(sample_weight)
    check_sample_weight(w, batch_shape)
    w, total = summed(w.astype(out.dtype))
    return y, w / total


def summed(w: Array) -> tuple[Array, Array]:
    """The weights and their sum, both scaled if they are huge, so that it is finite; only ratios of weights matter.

    Neither sum waits for the other, so that a GPU needs one kernel for both.
    """
    scale = jnp.array(2.0**-64, w.dtype)
    total, scaled = jnp.sum(w), jnp.sum(scale * w)
    huge = ~(jnp.abs(total) < 1e30)  # or NaN, from two infinities
    return jnp.where(huge, scale * w, w), jnp.where(huge, scaled, total)


def losses_of(out: Array, y: Array, network: Network) -> Array:
    """The loss of each sample, `(...)`; checked, because a user's own loss may return another shape."""
    value = network.loss.fn(out, y)
    if value.shape != out.shape[:-1]:
        raise ValueError(
            f"loss {network.loss.name} gives shape {value.shape} for outputs {out.shape}, expected {out.shape[:-1]}: "
            "one number per sample, summed over the outputs, without a mean over samples"
        )
    return value


def like(params, grads) -> Params:
    """`grads` in the structure (a layer may be a list or a named tuple) and the dtype of `params`."""
    dtype = params[0][0].dtype
    return jax.tree.unflatten(jax.tree.structure(params), [g.astype(dtype) for g in jax.tree.leaves(grads)])


def _is_floating(a: Array) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)


def check_dtype(dtype: Any, name: str = "dtype") -> None:
    """Check that `dtype` is floating and enabled in JAX; `float` is float64 or float32, whichever JAX uses."""
    found = floating(dtype, name).name
    if dtype is not float and jax.dtypes.canonicalize_dtype(found).name != found:
        raise ValueError(f"{name} is {found}, which JAX would make float32: set jax_enable_x64 first")


def check_network(network: Any) -> None:
    """Check that `network` is a `Network`, and that its dtype is enabled in JAX."""
    if not isinstance(network, Network):
        several = isinstance(network, (list, tuple)) and network and all(isinstance(f, Activation) for f in network)
        hint = f": Network(hidden={network!r})" if several or isinstance(network, Activation) else ""
        raise ValueError(f"network is {describe(network)}, expected a Network{hint}")
    if network.compute_dtype is not None:
        check_dtype(network.compute_dtype, "compute_dtype")


def check_key(key: Any) -> None:
    """Check that `key` is one random key, of the new style or the old."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if (is_key and shape == ()) or (dtype == np.uint32 and len(shape or ()) == 1):
        return
    if isinstance(key, Integral):
        raise ValueError(f"key is {key}, expected a JAX random key: jax.random.key({key})")
    hint = ": use vmap for several keys" if is_key else ", e.g. jax.random.key(0)"
    raise ValueError(f"key is {describe(key)}, expected a JAX random key{hint}")


_SAY_NO_NO = ("relu", "leaky_relu(0.0)", "softplus", "elu", "silu", "gelu", "gelu_tanh")


def check_meaning(network: Network, K: int) -> None:
    """Refuse a loss on outputs that it is not meant for, which would train without an error but mean nothing."""
    loss, output = network.loss, network.output
    if loss.takes == "class logits" and K == 1:
        raise ValueError(
            f"{loss.name} over one output is always 0: for two classes take "
            "Network(loss=sigmoid_cross_entropy), or two outputs; for regression take loss=squared_error"
        )
    squashed = {"sigmoid"} if loss.takes == "class logits" else {"sigmoid", *_SAY_NO_NO}
    if loss.takes != "values" and output.name in squashed:
        because = "squashes them first" if output.name == "sigmoid" else "never gives any far below 0, which mean no"
        raise ValueError(
            f"{loss.name} takes logits, and output={output} {because}: leave output at identity (predict gives "
            "probabilities), or take loss=squared_error"
        )


def check_sizes(sizes: Any) -> None:
    """Check that `sizes` are the widths of at least one layer."""
    sizes = sizes.tolist() if isinstance(sizes, np.ndarray) else sizes
    if not isinstance(sizes, Sequence) or isinstance(sizes, str) or len(sizes) < 2:
        raise ValueError(f"sizes is {describe(sizes)}, expected at least two widths, e.g. (784, 128, 10)")
    for l, n in enumerate(sizes):
        smallest = 0 if 0 < l < len(sizes) - 1 else 1  # with a hidden layer of width 0, the output is a bias
        if isinstance(n, bool) or not isinstance(n, Integral) or n < smallest:
            raise ValueError(f"sizes[{l}] is {n!r}, expected a whole number >= {smallest}")


def check_params(params: Any) -> None:
    """Check that `params` is a chain of `(W, b)` of one floating dtype."""
    if not isinstance(params, Sequence) or not params:
        raise ValueError(f"params is {describe(params)}, expected a list [(W, b), ...] of at least one layer")
    for l, layer in enumerate(params, 1):
        if not isinstance(layer, Sequence) or len(layer) != 2:
            raise ValueError(f"layer {l}: params[{l - 1}] is {describe(layer)}, expected a pair (W, b)")
        for name, leaf in zip("Wb", layer, strict=True):
            if not hasattr(leaf, "dtype"):
                hint = "; a layer without a bias has b = zeros" if leaf is None else ""
                raise ValueError(f"layer {l}: {name} is {describe(leaf)}, expected an array{hint}")
    dtype, n_in = params[0][0].dtype, params[0][0].shape[:1]
    for l, (W, b) in enumerate(params, 1):
        if W.ndim != 2 or b.shape != W.shape[1:]:
            hint = ": (n_out, n_in) as in PyTorch? then W.T" if W.ndim == 2 and b.shape == W.shape[:1] else ""
            raise ValueError(
                f"layer {l}: W has shape {W.shape} and b {b.shape}, expected (n_in, n_out) and (n_out,){hint}"
            )
        if W.shape[:1] != n_in:
            hint = ": (n_out, n_in) as in PyTorch? then W.T" if W.shape[1:] == n_in else ""
            raise ValueError(f"layer {l}: W has {W.shape[0]} rows, but layer {l - 1} has {n_in[0]} outputs{hint}")
        for name, leaf in (("W", W), ("b", b)):
            if not _is_floating(leaf) or leaf.dtype != dtype:
                as_first = f", {dtype} as in layer 1" if jnp.issubdtype(dtype, jnp.floating) else ""
                raise ValueError(
                    f"layer {l}: {name} has dtype {leaf.dtype}, expected one floating dtype throughout{as_first}"
                )
        n_in = W.shape[1:]


def check_input(params: Any, x: Array) -> None:
    """Check that `x` is a floating, non-empty `(..., n_0)`."""
    if not _is_floating(x):
        raise ValueError(
            f"x has dtype {x.dtype}, expected a floating dtype: convert it first, e.g. "
            "x.astype('float32') / 255 for uint8 pixels"
        )
    n_in = params[0][0].shape[0]
    if x.ndim == 0 or x.shape[-1] != n_in:
        raise ValueError(f"x has shape {x.shape}, expected (..., {n_in}): layer 1 has {n_in} inputs")
    if 0 in x.shape[:-1]:
        raise ValueError(f"x has shape {x.shape}: the batch is empty, and the mean over no samples is not defined")


def check_masks(masks: Any, widths: Sequence[int], batch_shape: tuple[int, ...]) -> tuple[Array | None, ...]:
    """The `L` masks of `a_0 .. a_{L-1}`, checked: each is `None` or shaped like its activation."""
    L = len(widths)
    if masks is None:
        return (None,) * L
    if not isinstance(masks, Sequence) or len(masks) != L:
        raise ValueError(f"masks is {describe(masks)}, expected {L} of them, for a_0 to a_{L - 1}; None keeps all")
    for l, (mask, n) in enumerate(zip(masks, widths, strict=True)):
        if mask is not None and not hasattr(mask, "shape"):
            raise ValueError(f"masks[{l}] is {describe(mask)}, expected an array, or None to keep all entries")
        if mask is not None and not _is_floating(mask):
            raise ValueError(f"masks[{l}] has dtype {mask.dtype}, expected a floating dtype: 0, or 1 / (1 - rate)")
        if mask is not None and mask.shape != (*batch_shape, n):
            raise ValueError(f"masks[{l}] has shape {mask.shape}, expected {(*batch_shape, n)} as a_{l} has")
    return tuple(masks)


def check_targets(y: Array, batch_shape: tuple[int, ...], K: int) -> None:
    """Check that `y` is class ids `(...)` or targets `(..., K)`."""
    if is_class_ids(y):
        if y.shape != batch_shape:
            raise ValueError(
                f"y has dtype {y.dtype}, so it holds class ids, and shape {y.shape}, expected "
                f"{batch_shape}, one per sample; targets shaped like the output have a floating dtype"
            )
    elif not _is_floating(y):
        raise ValueError(f"y has dtype {y.dtype}, expected an integer dtype (class ids) or a floating one (targets)")
    elif y.shape != (*batch_shape, K):
        raise ValueError(
            f"y has dtype {y.dtype}, so it holds targets, and shape {y.shape}, expected "
            f"{(*batch_shape, K)}, like the output; class ids have an integer dtype"
        )


def check_labels(y: ArrayLike, classes: int) -> None:
    """Raise an error if a class id is outside `[0, classes)`. Under jit that is not possible.

    Args:
      y: class ids; targets of a floating dtype are not checked.
      classes: the number of classes.

    Raises:
      ValueError: a class id is out of range (the message names the first index and its value), or `y` does not hold
        numbers.

    >>> check_labels(np.array([0, 9, 10]), 10)
    Traceback (most recent call last):
    ValueError: y[2] is 10, expected a class id from 0 to 9
    """
    if not isinstance(classes, Integral) or classes < 1:
        raise ValueError(f"classes is {describe(classes)}, expected a whole number of at least 1")
    y = np.asarray(y)
    if y.dtype.kind not in "iufV":  # V: bfloat16
        raise ValueError(
            f"y has dtype {y.dtype}, expected an integer dtype (class ids) or a floating one (targets): convert "
            "booleans by y.astype(int), names by `names, y = np.unique(y, return_inverse=True)`"
        )
    if y.dtype.kind not in "iu":
        return
    bad = np.argwhere((y < 0) | (y >= classes))
    if len(bad):
        first = tuple(bad[0].tolist())
        raise ValueError(f"y[{', '.join(map(str, first))}] is {y[first]}, expected a class id from 0 to {classes - 1}")


def check_probabilities(y: ArrayLike, network: Network) -> None:
    """Check the values of floating targets, where they can be seen; some rounding is allowed.

    A loss on logits has no minimum for targets below 0, or on label logits for targets above 1. A sigmoid output with
    targets as values needs 0, not -1.
    """
    y, takes = np.asarray(y), network.loss.takes
    if np.issubdtype(y.dtype, np.integer) or (takes == "values" and network.output != sigmoid):
        return
    low, high = {"class logits": (0, np.inf), "label logits": (0, 1), "values": (-0.5, np.inf)}[takes]
    bad = np.argwhere((y < low - 0.01) | (y > high + 0.01))
    if len(bad):
        first = tuple(bad[0].tolist())
        expected = "0 to 1" if takes == "label logits" else "0 and above"
        whose = "the output sigmoid" if takes == "values" else network.loss.name
        hint = "; convert targets of -1 and 1 by (y + 1) / 2" if y[first] == -1 else ""
        raise ValueError(
            f"y[{', '.join(map(str, first))}] is {y[first]}, expected targets from {expected} for {whose}{hint}"
        )


def check_unmasked(name: str, a: ArrayLike) -> None:
    """Refuse an array with masked entries: the data under the mask would be used as values."""
    if np.ma.is_masked(a):
        first = tuple(np.argwhere(np.ma.getmaskarray(np.ma.asanyarray(a)))[0].tolist())
        raise ValueError(
            f"{name}[{', '.join(map(str, first))}] is masked, expected values: fill them in by .filled(value), or drop "
            "such rows"
        )


def check_sample_weight(sample_weight: Array, batch_shape: tuple[int, ...]) -> None:
    """Check that there is one real weight per sample."""
    if jnp.issubdtype(sample_weight.dtype, jnp.complexfloating):
        raise ValueError(f"sample_weight has dtype {sample_weight.dtype}, expected a real one")
    if sample_weight.shape != batch_shape:
        raise ValueError(f"sample_weight has shape {sample_weight.shape}, expected {batch_shape}, one per sample")
