"""Weights in safetensors files, with the `Network` that they belong to. Plain arrays and text, nothing that runs.

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
_RESERVED = ("format", "hidden", "output", "loss", "compute_dtype")  # metadata of our own
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
      path: the file; an older one is replaced and keeps its mode.
      params: float16, bfloat16, float32 or float64.
      network: what they were trained with. An activation or loss of your own is kept by its name alone: bring it again
        in `load`.
      metadata: more text to keep with them, under other names than format, hidden, output, loss and compute_dtype.

    Raises:
      ValueError: `params` is not `[(W, b), ...]`, or entries of it are masked; the metadata is not text, or says
        something else of the network; or a function of your own has the name of a shipped one.
      OSError: the file cannot be written; what was there is left as it was.
      ImportError: safetensors is not installed; names the extra that brings it.

    >>> import tempfile, funcnet
    >>> path = tempfile.mkdtemp() + "/weights.safetensors"
    >>> save(path, funcnet.init(jax.random.key(0), (4, 3)), Network(hidden=funcnet.tanh))
    >>> load(path)[1]
    Network(hidden=tanh)
    """
    check_params(params)
    check_network(network)
    network.activations(len(params))  # as many as there are layers
    for l, layer in enumerate(params, 1):
        for name, leaf in zip("Wb", layer, strict=True):
            check_unmasked(f"layer {l}: {name}", leaf)
    metadata = _checked(metadata, described(network) | {"format": FORMAT})
    tensors = {
        f"layer{l}.{name}": np.ascontiguousarray(leaf)  # safetensors writes a Fortran-order array scrambled
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
    """Read what `save` wrote: the parameters, bit for bit, and the network.

    A float64 file needs `jax_enable_x64`: the parameters are never rounded silently. Names, shapes and dtypes are read
    from the header and judged before any array is.

    Args:
      path: the file.
      network: needed where the file names activations or a loss of your own, or none at all; its names and its
        `compute_dtype` must be those in the file.
      sizes: the widths `n_0, ..., n_L` that the network must have; by default any.
      max_bytes: the most that the arrays may take, if there are no `sizes` to go by.

    Returns:
      `[(W, b), ...]` in the dtype that they were saved in, and the `Network`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a regular file, not a safetensors file, is cut short, is of another format, holds something
        else than a network, one of other widths, too large a one, or one whose functions are not known here.
      ImportError: safetensors is not installed; names the extra that brings it.

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
    """The text kept with the parameters, `{"format": "funcnet 1", ...}`. Errors as in `load`.

    Args:
      path: the file.

    Returns:
      Names and text.

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
    """The file, its header read and compared with its length, and no array yet."""
    safetensors = import_extra("safetensors")
    open_regular(path).close()  # says what is the matter with a path better than safetensors does, and never waits
    try:
        with safetensors.safe_open(as_path(path), framework="np") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error


def _in_order(data: bytes) -> bytes:
    """The same file with a sorted header: safetensors writes metadata in an order that differs from call to call."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8, as safetensors has it
    return b"".join([len(header).to_bytes(8, "little"), header, memoryview(data)[start:]])


def _names(file) -> list[str]:
    """The names of the tensors, layer by layer, if they are those of a network in this format."""
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
    """What the header says of a tensor."""
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
        raise ValueError(f"holds a network {'-'.join(map(str, got))}, expected {'-'.join(map(str, sizes))}")
    announced = sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    if sizes is None and announced > max_bytes:
        raise ValueError(
            f"the header announces a network {'-'.join(map(str, got))} of {announced:,} bytes, expected at most "
            f"{max_bytes:,}; say its sizes, or raise max_bytes, if you trust it"
        )


def _checked(metadata, ours) -> dict[str, str]:
    """The metadata and what describes the network, if neither says something else in the place of the other."""
    if not isinstance(metadata, dict | None):
        raise ValueError(f"metadata is {describe(metadata)}, expected a dictionary of text, {{'run': '7'}} say")
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"metadata[{key!r}] is {value!r}, expected text for both key and value")
        if key in _RESERVED and ours.get(key) != value:
            raise ValueError(
                f"metadata[{key!r}] is {value!r:.80}, but {', '.join(_RESERVED)} are kept for the network, which "
                f"{f'has {ours[key]!r} there' if key in ours else 'has none'}: give the text another name"
            )
    return (metadata or {}) | ours
