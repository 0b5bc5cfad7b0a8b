"""Checks of every import and export: valid parameters, a network that both sides know, the same outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import activations
from funcnet.activations import Activation, relu
from funcnet.arguments import check_meaning, check_network, check_params, check_unmasked, computed_in
from funcnet.losses import squared_error
from funcnet.mlp import forward
from funcnet.network import Network, Params


def check_exported(params: Any, network: Any, *, exact: bool = True) -> None:
    """Check an export: NumPy or JAX arrays, a network of as many layers, and, if exact, no rounded products."""
    if isinstance(params, str):
        raise ValueError(f"params is the string {params!r:.80}, expected a list [(W, b), ...] of at least one layer")
    for l, layer in enumerate(params if isinstance(params, Sequence) else (), 1):
        pair = layer if isinstance(layer, Sequence) and not isinstance(layer, str) else ()
        for name, leaf in zip("Wb", pair, strict=False):
            if not isinstance(leaf, (np.ndarray, jax.Array)):
                kind = f"{type(leaf).__module__.partition('.')[0]}.{type(leaf).__name__}".removeprefix("builtins.")
                raise ValueError(
                    f"layer {l}: {name} is a {kind}, expected an array of JAX or NumPy: use numpy.asarray(...), "
                    "or read a whole network by from_torch, from_sklearn or from_onnx"
                )
            check_unmasked(f"layer {l}: {name}", leaf)
        if isinstance(layer, str):
            raise ValueError(f"layer {l}: params[{l - 1}] is the string {layer!r:.80}, expected a pair (W, b)")
    check_params(params)
    check_network(network)
    network.activations(len(params))
    if exact and network.compute_dtype not in (None, computed_in(params).name):
        raise ValueError(
            f"the network computes products in {network.compute_dtype}, which cannot be exported: pass "
            "dataclasses.replace(network, compute_dtype=None)"
        )


def check_read(params: Params, network: Network) -> None:
    """Check an import: a chain of layers, and a network of as many layers that `predict` accepts."""
    check_params(params)
    network.activations(len(params))
    check_meaning(network, params[-1][0].shape[1])


def known(f: Activation, where: str, names: dict[str, Any], library: str) -> tuple[Any, float | None]:
    """A library's name for a shipped activation, and its slope if it has one."""
    kind, _, slope = f.name.rstrip(")").partition("(")
    if kind not in names or not activations.is_shipped(f):
        raise ValueError(
            f"{where}: the activation is {f.name}, which {library} does not have; expected one of the shipped "
            f"{', '.join(names)}"
        )
    return names[kind], float(slope) if slope else None


def shipped(name: str) -> Activation | None:
    """The shipped activation of that name, or None."""
    try:
        return activations.from_name(name)
    except ValueError:
        return None


def read_network(layers: Sequence[Activation], **settings: Any) -> Network:
    """The network of these activations, with one for all hidden layers if they are equal."""
    *hidden, output = layers
    return Network(tuple(hidden) if len(set(hidden)) > 1 else hidden[0] if hidden else relu, output, **settings)


def random_inputs(n_in: int) -> np.ndarray:
    """`(61, n_in)`, small and large. The number of rows is prime, so that a reshape of them is noticed."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(61, n_in)) * np.geomspace(0.1, 10, 61)[:, None]


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """JAX in float64 and full precision, whatever the settings are."""
    new = hasattr(jax, "enable_x64")
    enable_x64 = jax.enable_x64 if new else jax.experimental.enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    with enable_x64(True), jax.default_matmul_precision("highest"):
        yield


def outputs(params: Params, network: Network, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The results of `forward` and `predict`, in float64."""
    plain = replace(network, loss=squared_error, compute_dtype=None)
    with float64():
        wide = jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf, np.float64)), params)
        out = forward(wide, jnp.array(x, jnp.float64), plain)
        return np.asarray(out), np.asarray(network.loss.predict(out))


def largest_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, in each row relative to its largest entry; equal NaNs and infinities do not differ."""
    if ours.shape != theirs.shape:
        return np.inf
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    with np.errstate(all="ignore"):
        scale = np.where(np.isfinite(theirs), np.abs(theirs), 0).max(-1, keepdims=True, initial=0)
        errors = np.where(same, 0, np.abs(ours - theirs) / scale)
    return float(np.where(np.isnan(errors), np.inf, errors).max(initial=0))
