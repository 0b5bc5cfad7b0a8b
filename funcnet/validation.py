"""What a valid call looks like: shapes and dtypes, checked while tracing, so free at run time.

Every message names the argument, the layer, what came and what was expected. Values (labels in range, NaN)
cannot be seen while tracing: `losses` turns a bad label into NaN, and `training` looks at labels before it starts.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from funcnet.activations import Activation
from funcnet.losses import Loss, is_class_ids


def _is_floating(a: Array) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)


def check_sizes(sizes: Any) -> None:
    """Check that `sizes` are the widths of at least one layer."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, str) or len(sizes) < 2:
        raise ValueError(f"sizes is {_describe(sizes)}, expected at least two widths, e.g. (784, 128, 10)")
    for l, n in enumerate(sizes):
        smallest = 0 if 0 < l < len(sizes) - 1 else 1  # a hidden layer of width 0 is a network of biases
        if isinstance(n, bool) or not isinstance(n, Integral) or n < smallest:
            raise ValueError(f"sizes[{l}] is {n!r}, expected a whole number >= {smallest}")


def check_params(params: Any) -> None:
    """Check that `params` is a chain of `(W, b)` of one floating dtype."""
    if not isinstance(params, Sequence) or not params:
        raise ValueError(f"params is {_describe(params)}, expected a list [(W, b), ...] of at least one layer")
    for l, layer in enumerate(params, 1):
        if not isinstance(layer, Sequence) or len(layer) != 2:
            raise ValueError(f"layer {l}: params[{l - 1}] is {_describe(layer)}, expected a pair (W, b)")
    dtype, n_in = params[0][0].dtype, params[0][0].shape[:1]
    for l, (W, b) in enumerate(params, 1):
        if W.ndim != 2 or b.shape != W.shape[1:]:
            raise ValueError(f"layer {l}: W has shape {W.shape} and b {b.shape}, expected (n_in, n_out) and (n_out,)")
        if W.shape[:1] != n_in:
            raise ValueError(f"layer {l}: W has {W.shape[0]} rows, but layer {l - 1} has {n_in[0]} outputs")
        for name, leaf in (("W", W), ("b", b)):
            if not _is_floating(leaf) or leaf.dtype != dtype:
                as_first = f", {dtype} as in layer 1" if jnp.issubdtype(dtype, jnp.floating) else ""
                raise ValueError(f"layer {l}: {name} has dtype {leaf.dtype}, expected one floating dtype "
                                 f"throughout{as_first}")  # fmt: skip
        n_in = W.shape[1:]


def check_input(params: Any, x: Array) -> None:
    """Check that `x` is a floating, non-empty `(..., n_0)`."""
    if not _is_floating(x):
        raise ValueError(f"x has dtype {x.dtype}, expected a floating dtype: convert it first, e.g. "
                         "x.astype('float32') / 255 for uint8 pixels")  # fmt: skip
    n_in = params[0][0].shape[0]
    if x.ndim == 0 or x.shape[-1] != n_in:
        raise ValueError(f"x has shape {x.shape}, expected (..., {n_in}): layer 1 has {n_in} inputs")
    if 0 in x.shape[:-1]:
        raise ValueError(f"x has shape {x.shape}: the batch is empty, and the mean over no samples is not defined")


def check_compute_dtype(compute_dtype: Any) -> None:
    """Check that `compute_dtype` is a floating dtype that JAX has switched on."""
    if compute_dtype is None:
        return
    try:
        dtype = jnp.dtype(compute_dtype)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"compute_dtype is {compute_dtype!r}, expected a floating dtype, e.g. 'bfloat16'")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"compute_dtype is {dtype}, which JAX would make float32: set jax_enable_x64 first")


def check_activations(hidden: Any, output: Any, L: int) -> tuple[Activation, ...]:
    """The `L` activations of the layers, in order, from one hidden activation or a tuple of `L - 1`."""
    if isinstance(hidden, Activation) or not isinstance(hidden, tuple):
        hidden = (hidden,) * (L - 1)
    if len(hidden) != L - 1:
        raise ValueError(f"hidden is {_describe(hidden)}, expected an Activation or a tuple of {L - 1} of them, "
                         f"one for each hidden layer of {L} layers")  # fmt: skip
    for l, activation in enumerate((*hidden, output), 1):
        if not isinstance(activation, Activation):
            hint = ": a function alone has no derivative (and leaky_relu is called: leaky_relu(0.01))"
            raise ValueError(f"layer {l}: the activation is {_describe(activation)}, expected an Activation"
                             f"{hint if callable(activation) else ''}")  # fmt: skip
    return (*hidden, output)


def check_masks(masks: Any, widths: Sequence[int], batch_shape: tuple[int, ...]) -> tuple[Array | None, ...]:
    """The `L` masks of `a_0 .. a_{L-1}`, each `None` or shaped like its activation."""
    L = len(widths)
    if masks is None:
        return (None,) * L
    if not isinstance(masks, Sequence) or len(masks) != L:
        raise ValueError(f"masks is {_describe(masks)}, expected {L} of them, for a_0 to a_{L - 1}, None keeping all")
    for l, (mask, n) in enumerate(zip(masks, widths, strict=True)):
        if mask is not None and not _is_floating(mask):
            raise ValueError(f"masks[{l}] has dtype {mask.dtype}, expected a floating dtype: 0, or 1 / (1 - rate)")
        if mask is not None and mask.shape != (*batch_shape, n):
            raise ValueError(f"masks[{l}] has shape {mask.shape}, expected {(*batch_shape, n)} as a_{l} has")
    return tuple(masks)


def check_loss(loss: Any) -> None:
    """Check that `loss` is a `Loss`."""
    if not isinstance(loss, Loss):
        raise ValueError(f"loss is {_describe(loss)}, expected a Loss")


def check_targets(y: Array, batch_shape: tuple[int, ...], K: int) -> None:
    """Check that `y` is class ids `(...)` or targets `(..., K)`."""
    if is_class_ids(y):
        if y.shape != batch_shape:
            raise ValueError(f"y has dtype {y.dtype}, so it holds class ids, and shape {y.shape}, expected "
                             f"{batch_shape}, one per sample; targets shaped like the output are floating")  # fmt: skip
    elif not _is_floating(y):
        raise ValueError(f"y has dtype {y.dtype}, expected an integer dtype (class ids) or a floating one (targets)")
    elif y.shape != (*batch_shape, K):
        raise ValueError(f"y has dtype {y.dtype}, so it holds targets, and shape {y.shape}, expected "
                         f"{(*batch_shape, K)}, like the output; class ids have an integer dtype")  # fmt: skip


def check_sample_weight(sample_weight: Array | None, batch_shape: tuple[int, ...]) -> None:
    """Check that there is one real weight per sample."""
    if sample_weight is not None and jnp.issubdtype(sample_weight.dtype, jnp.complexfloating):
        raise ValueError(f"sample_weight has dtype {sample_weight.dtype}, expected a real one")
    if sample_weight is not None and sample_weight.shape != batch_shape:
        raise ValueError(f"sample_weight has shape {sample_weight.shape}, expected {batch_shape}, one per sample")


def _describe(value: Any) -> str:
    """A short, concrete account of a value that should have been something else."""
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    if hasattr(value, "shape"):
        return f"an array of shape {value.shape}"
    return f"{value!r:.80} of type {type(value).__name__}"
