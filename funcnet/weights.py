"""Weights in safetensors files, with their `Network`: plain arrays and text, no code.

weights.save("run.safetensors", params, network)
params, network = weights.load("run.safetensors")
predict(params, x, network)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.arguments import check_network, check_params, check_unmasked
from funcnet.described import described, from_described
from funcnet.extras import import_extra
from funcnet.files import as_path, open_regular, write_atomically
from funcnet.network import Network, Params, describe

__all__ = ["load", "load_metadata", "save"]

FORMAT = "funcnet 1"
_RESERVED = ("format", "hidden", "output", "loss", "compute_dtype")  # our own metadata
_DTYPES = {"F16": np.float16, "BF16": jnp.bfloat16, "F32": np.float32, "F64": np.float64}


def save(
    path: str | os.PathLike[str],
    params: Params,
    network: Network = Network(),
    *,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write the parameters as tensors `layer1.W`, `layer1.b`, ..., and the network's settings by name; all or nothing.

    Equal weights, settings and metadata make equal files, byte for byte.

    Args:
      path: the file; an existing one is replaced, and its mode is kept.
      params: float16, bfloat16, float32 or float64.
      network: the network of these parameters. Your own activation or loss is stored as its name alone: pass it again
        to `load`.
      metadata: more text to store, under other names than format, hidden, output, loss and compute_dtype.

    Raises:
      ValueError: `params` is not `[(W, b), ...]`, or has masked entries; the metadata is not text, or contradicts the
        network; or your own function has the name of a shipped one.
      OSError: the file cannot be written; an existing one is unchanged.
      ImportError: safetensors is not installed; the message names the extra to install.

    >>> import tempfile, funcnet
    >>> path = tempfile.mkdtemp() + "/weights.safetensors"
    >>> save(path, funcnet.init(jax.random.key(0), (4, 3)), Network(hidden=funcnet.tanh))
    >>> load(path)[1]
    Network(hidden=tanh)
    """
    check_params(params)
    check_network(network)
    network.activations(len(params))  # checks their number
    for l, layer in enumerate(params, 1):
        for name, leaf in zip("Wb", layer, strict=True):
            check_unmasked(f"layer {l}: {name}", leaf)
    metadata = _checked(metadata, described(network) | {"format": FORMAT})
    tensors = {
        f"layer{l}.{name}": np.ascontiguousarray(leaf)  # safetensors writes arrays in Fortran order wrongly
        for l, layer in enumerate(params, 1)
        for name, leaf in zip("Wb", layer, strict=True)
    }
    write_atomically(path, _in_order(import_extra("safetensors.numpy").save(tensors, metadata)))


def load(
    path: str | os.PathLike[str],
    network: Network | None = None,
    *,
    sizes: Sequence[int] | None = None,
    max_bytes: int = 1 << 32,
) -> tuple[Params, Network]:
    """Read a file of `save`: the parameters, bit for bit, and the network.

    A float64 file needs `jax_enable_x64`: the parameters are never rounded silently. Names, shapes and dtypes are
    checked in the header before any array is read.

    Args:
      path: the file.
      network: needed if the file names your own activations or loss, or none at all; its names and its `compute_dtype`
        must be those in the file.
      sizes: the widths `n_0, ..., n_L` that the network must have; by default any.
      max_bytes: the largest size of all arrays, if `sizes` is not given.

    Returns:
      `[(W, b), ...]` in the dtype in which they were saved, and the `Network`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a regular file, not a safetensors file, truncated, or of another format; or it does not hold
        a network, or holds one of other widths, one that is too large, or one with unknown functions.
      ImportError: safetensors is not installed; the message names the extra to install.

    >>> import tempfile, funcnet
    >>> path = tempfile.mkdtemp() + "/weights.safetensors"
    >>> save(path, funcnet.init(jax.random.key(0), (4, 8, 3)))
    >>> params, network = load(path, sizes=(4, 8, 3))
    >>> [(W.shape, b.shape) for W, b in params], network
    ([((4, 8), (8,)), ((8, 3), (3,))], Network())
    """
    with _opened(path) as file:
        try:
            names, metadata = _names(file), file.metadata() or {}
            shapes = [file.get_slice(name) for name in names]
            params = _pairs([_announced(name, tensor) for name, tensor in zip(names, shapes, strict=True)])
            check_params(params)
            _check_size(params, sizes, max_bytes)
            network = from_described(metadata, network)
            network.activations(len(params))
            return _pairs([jnp.asarray(file.get_tensor(name)) for name in names]), network
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text stored with the parameters, `{"format": "funcnet 1", ...}`. Errors as in `load`.

    Args:
      path: the file.

    Returns:
      A dictionary from names to text.

    >>> import tempfile, funcnet
    >>> path = tempfile.mkdtemp() + "/weights.safetensors"
    >>> save(path, funcnet.init(jax.random.key(0), (4, 3)), metadata={"run": "7"})
    >>> load_metadata(path)["run"], load_metadata(path)["hidden"]
    ('7', 'relu')
    """
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path) -> Iterator[Any]:
    """The open file; its header has been read and compared with its length, but no array has been read."""
    safetensors = import_extra("safetensors")
    open_regular(path).close()  # its errors are clearer than those of safetensors, and it never waits
    try:
        with safetensors.safe_open(as_path(path), framework="np") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error


def _in_order(data: bytes) -> bytes:
    """The same file with a sorted header: the order in which safetensors writes metadata differs between calls."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)  # in safetensors, tensors begin at a multiple of 8
    return b"".join([len(header).to_bytes(8, "little"), header, memoryview(data)[start:]])


def _names(file) -> list[str]:
    """The names of the tensors, layer by layer, checked to be those of a network in this format."""
    held = sorted(file.keys())
    if (got := (file.metadata() or {}).get("format", FORMAT)) != FORMAT:
        raise ValueError(f"written in the format {got!r}, expected {FORMAT!r}")
    names = [f"layer{l}.{name}" for l in range(1, len(held) // 2 + 1) for name in "Wb"]
    if not names or sorted(names) != held:
        told = ", ".join(map(repr, held[:6])) + (", ..." if len(held) > 6 else "")
        missing = next((f"; there is no {name}" for name in names if name not in held), "")
        raise ValueError(f"holds [{told}], expected the tensors layer1.W, layer1.b, layer2.W, ...{missing}")
    return names


def _announced(name, tensor) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a tensor, from the header."""
    dtype = tensor.get_dtype()
    if dtype not in _DTYPES:
        raise ValueError(f"{name} has dtype {dtype}, expected one of {', '.join(_DTYPES)}")
    if jax.dtypes.canonicalize_dtype(_DTYPES[dtype]) != _DTYPES[dtype]:
        raise ValueError(f"{name} is float64, which JAX would round to float32: set jax_enable_x64 first")
    return jax.ShapeDtypeStruct(tuple(tensor.get_shape()), _DTYPES[dtype])


def _pairs(leaves: list) -> list:
    return list(zip(leaves[::2], leaves[1::2], strict=True))


def _check_size(params, sizes, max_bytes) -> None:
    got = (params[0][0].shape[0], *(b.shape[0] for _, b in params))
    if sizes is not None and got != tuple(sizes):
        raise ValueError(f"holds a network of {'-'.join(map(str, got))}, expected {'-'.join(map(str, sizes))}")
    announced = sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    if sizes is None and announced > max_bytes:
        raise ValueError(
            f"the header announces a network {'-'.join(map(str, got))} of {announced:,} bytes, expected at most "
            f"{max_bytes:,}; pass its sizes, or a larger max_bytes, if you trust it"
        )


def _checked(metadata, ours) -> dict[str, str]:
    """The metadata and the network's description in one dictionary, checked to have no conflict."""
    if not isinstance(metadata, dict | None):
        raise ValueError(f"metadata is {describe(metadata)}, expected a dictionary of text, e.g. {{'run': '7'}}")
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"metadata[{key!r}] is {value!r}, expected text for both key and value")
        if key in _RESERVED and ours.get(key) != value:
            raise ValueError(
                f"metadata[{key!r}] is {value!r:.80}, but {', '.join(_RESERVED)} are reserved for the network, which "
                f"has {f'{ours[key]!r}' if key in ours else 'none'}: give the text another name"
            )
    return (metadata or {}) | ours
