"""Saving weights, in safetensors: plain arrays and text, nothing that runs when it is read."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from funcnet.extras import import_extra
from funcnet.mlp import Params
from funcnet.validation import check_params

FORMAT = "funcnet 1"
_DTYPES = {"F16": np.float16, "BF16": jnp.bfloat16, "F32": np.float32, "F64": np.float64}


def save_params(path: str | os.PathLike[str], params: Params, metadata: dict[str, str] | None = None) -> None:
    """Write the parameters as tensors `layer1.W`, `layer1.b`, ..., whole or not at all.

    Args:
      path: the file; an older one is replaced.
      params: float16, bfloat16, float32 or float64.
      metadata: text to keep with them, such as the names of the activations.

    Raises:
      ValueError: `params` is not `[(W, b), ...]`, or the metadata is not text.
      OSError: the file cannot be written; what was there is left as it was.
      ImportError: safetensors is not installed; names the extra that brings it.

    >>> import tempfile, funcnet
    >>> path = tempfile.mkdtemp() + "/weights.safetensors"
    >>> save_params(path, funcnet.init(jax.random.key(0), (4, 3)), {"hidden": "relu"})
    >>> [(W.shape, b.shape) for W, b in load_params(path)], load_metadata(path)["hidden"]
    ([((4, 3), (3,))], 'relu')
    """
    check_params(params)
    metadata = (metadata or {}) | {"format": FORMAT}
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"metadata[{key!r}] is {value!r}, expected text for both key and value")
    tensors = {
        f"layer{l}.{name}": np.ascontiguousarray(leaf)  # safetensors writes a Fortran-order array scrambled
        for l, layer in enumerate(params, 1)
        for name, leaf in zip("Wb", layer, strict=True)
    }
    write_atomically(path, import_extra("safetensors.numpy").save(tensors, metadata))


def load_params(path: str | os.PathLike[str]) -> Params:
    """Read the parameters that `save_params` wrote, bit for bit.

    A float64 file needs `jax_enable_x64`: the parameters are never rounded silently.

    Args:
      path: the file.

    Returns:
      `[(W, b), ...]` in the dtype that they were saved in.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a safetensors file, is cut short, or holds something else than a network.
      ImportError: safetensors is not installed; names the extra that brings it.
    """
    safetensors = import_extra("safetensors")
    try:
        tensors = dict(safetensors.deserialize(Path(path).read_bytes()))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    L = len(tensors) // 2
    names = [f"layer{l}.{name}" for l in range(1, L + 1) for name in "Wb"]
    if not names or sorted(names) != sorted(tensors):
        raise ValueError(f"{path}: holds {sorted(tensors)}, expected the tensors layer1.W, layer1.b, layer2.W, ...")
    leaves = iter([_array(path, name, tensors[name]) for name in names])
    params = list(zip(leaves, leaves, strict=True))
    try:
        check_params(params)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return params


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text kept with the parameters. Errors as in `load_params`."""
    safetensors = import_extra("safetensors")
    try:
        with safetensors.safe_open(os.fspath(path), framework="np") as file:
            return file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds either the old content or the new."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _array(path, name, tensor) -> jax.Array:
    if tensor["dtype"] not in _DTYPES:
        raise ValueError(f"{path}: {name} has dtype {tensor['dtype']}, expected one of {', '.join(_DTYPES)}")
    stored = np.frombuffer(tensor["data"], _DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    array = jnp.asarray(stored)
    if array.dtype != stored.dtype:
        raise ValueError(f"{path}: {name} is float64, which JAX would round to float32: set jax_enable_x64 first")
    return array
