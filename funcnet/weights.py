"""Weights in safetensors files, with the `Network` that they belong to. Plain arrays and text, nothing that runs.

weights.save("run.safetensors", params, network)
params, network = weights.load("run.safetensors")
predict(params, x, network)
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import activations, losses
from funcnet.activations import Activation
from funcnet.extras import import_extra
from funcnet.files import write_atomically
from funcnet.network import Network, Params, check_network, check_params

__all__ = ["load", "load_metadata", "save"]

FORMAT = "funcnet 1"
_DTYPES = {"F16": np.float16, "BF16": jnp.bfloat16, "F32": np.float32, "F64": np.float64}


def save(
    path: str | os.PathLike[str],
    params: Params,
    network: Network = Network(),
    *,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write the parameters as tensors `layer1.W`, `layer1.b`, ..., and the network's settings by name; all or nothing.

    Args:
      path: the file; an older one is replaced.
      params: float16, bfloat16, float32 or float64.
      network: what they were trained with. An activation or loss of your own is kept by its name alone: bring it again
        in `load`.
      metadata: more text to keep with them.

    Raises:
      ValueError: `params` is not `[(W, b), ...]`, the metadata is not text, or a function of your own has the name of a
        shipped one.
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
    metadata = (metadata or {}) | _described(network) | {"format": FORMAT}
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"metadata[{key!r}] is {value!r}, expected text for both key and value")
    tensors = {
        f"layer{l}.{name}": np.ascontiguousarray(leaf)  # safetensors writes a Fortran-order array scrambled
        for l, layer in enumerate(params, 1)
        for name, leaf in zip("Wb", layer, strict=True)
    }
    write_atomically(path, import_extra("safetensors.numpy").save(tensors, metadata))


def load(
    path: str | os.PathLike[str], network: Network | None = None, *, sizes: Sequence[int] | None = None
) -> tuple[Params, Network]:
    """Read what `save` wrote: the parameters, bit for bit, and the network.

    A float64 file needs `jax_enable_x64`: the parameters are never rounded silently.

    Args:
      path: the file.
      network: needed where the file names activations or a loss of your own, or none at all; its names must be those in
        the file.
      sizes: the widths `n_0, ..., n_L` that the network must have; by default any.

    Returns:
      `[(W, b), ...]` in the dtype that they were saved in, and the `Network`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a safetensors file, is cut short, is of a format to come, holds something else than a
        network, one of other widths, or one whose functions are not known here.
      ImportError: safetensors is not installed; names the extra that brings it.

    >>> import tempfile, funcnet
    >>> path = tempfile.mkdtemp() + "/weights.safetensors"
    >>> save(path, funcnet.init(jax.random.key(0), (4, 8, 3)))
    >>> params, network = load(path, sizes=(4, 8, 3))
    >>> [(W.shape, b.shape) for W, b in params], network
    ([((4, 8), (8,)), ((8, 3), (3,))], Network())
    """
    safetensors = import_extra("safetensors")
    try:
        tensors = dict(safetensors.deserialize(Path(path).read_bytes()))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    metadata = load_metadata(path)
    if (got := metadata.get("format", FORMAT)) != FORMAT:
        raise ValueError(f"{path}: written in the format {got!r}, expected {FORMAT!r}")
    L = len(tensors) // 2
    names = [f"layer{l}.{name}" for l in range(1, L + 1) for name in "Wb"]
    if not names or sorted(names) != sorted(tensors):
        held = ", ".join(map(repr, sorted(tensors)[:6])) + (", ..." if len(tensors) > 6 else "")
        raise ValueError(f"{path}: holds [{held}], expected the tensors layer1.W, layer1.b, layer2.W, ...")
    leaves = iter([_array(path, name, tensors[name]) for name in names])
    params = list(zip(leaves, leaves, strict=True))
    try:
        check_params(params)
        network = _network(metadata, network)
        network.activations(L)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    got = (params[0][0].shape[0], *(len(b) for _, b in params))
    if sizes is not None and got != tuple(sizes):
        raise ValueError(f"{path}: holds a network {'-'.join(map(str, got))}, expected {'-'.join(map(str, sizes))}")
    return params, network


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
    safetensors = import_extra("safetensors")
    Path(path).open("rb").close()  # says what is the matter with a path better than safetensors does
    try:
        with safetensors.safe_open(os.fspath(path), framework="np") as file:
            return file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error


def _described(network) -> dict[str, str]:
    """A network's settings as text."""
    one = isinstance(network.hidden, Activation)
    for f in (network.hidden,) if one else network.hidden:
        _named(f)
    hidden = network.hidden.name if one else json.dumps([f.name for f in network.hidden])
    described = {"hidden": hidden, "output": _named(network.output), "loss": _named(network.loss)}
    return described | ({} if network.compute_dtype is None else {"compute_dtype": str(network.compute_dtype)})


def _named(f) -> str:
    """The name of an activation or loss, by which it is found again."""
    try:
        (activations if isinstance(f, Activation) else losses).from_name(f.name)
    except ValueError:
        return f.name  # of the caller's own
    if not (activations.is_shipped(f) if isinstance(f, Activation) else f in losses.SHIPPED):
        raise ValueError(f"{f.name} is a function of your own with the name of a shipped one: give it another name")
    return f.name


def _network(metadata, network) -> Network:
    """The network that a file describes, or the caller's, if it is of the same names."""
    kept = {name: metadata[name] for name in ("hidden", "output", "loss", "compute_dtype") if name in metadata}
    if network is not None:
        check_network(network)
        for name, value in _described(network).items():
            if kept.get(name, value) != value:
                raise ValueError(f"the file has the {name} {kept[name]}, but the network is given with {value}")
        return network
    if not {"hidden", "output", "loss"} <= kept.keys():
        raise ValueError(
            "the file does not name its activations and loss: load(path, Network(...)) says which they are"
        )
    try:
        names = json.loads(kept["hidden"]) if kept["hidden"].startswith("[") else kept["hidden"]
        many = isinstance(names, list)
        hidden = tuple(map(activations.from_name, names)) if many else activations.from_name(names)
        output, loss = activations.from_name(kept["output"]), losses.from_name(kept["loss"])
    except ValueError as error:
        raise ValueError(f"{error}; bring one of your own by load(path, Network(...))") from error
    return Network(hidden, output, loss, kept.get("compute_dtype"))


def _array(path, name, tensor) -> jax.Array:
    if tensor["dtype"] not in _DTYPES:
        raise ValueError(f"{path}: {name} has dtype {tensor['dtype']}, expected one of {', '.join(_DTYPES)}")
    stored = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    array = jnp.asarray(stored)
    if array.dtype != stored.dtype:
        raise ValueError(f"{path}: {name} is float64, which JAX would round to float32: set jax_enable_x64 first")
    return array
