"""Copies between JAX arrays and PyTorch tensors, bit for bit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_tensor(torch, name: str, tensor: Any) -> None:
    """Check that a tensor is dense, real and floating, and has values."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if tensor.device.type == "meta" or torch.nn.parameter.is_lazy(tensor):
        raise ValueError(f"{name} holds no values yet, expected weights: first load them, or call a lazy module once")
    if tensor.is_quantized or tensor.layout != torch.strided:
        kind = "quantized" if tensor.is_quantized else "sparse"
        raise ValueError(
            f"{name} is {kind}, expected a dense tensor: .{'dequantize' if kind == 'quantized' else 'to_dense'}()"
        )
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} has dtype {tensor.dtype}, expected one of {', '.join(map(str, dtypes))}")
    if tensor.dtype == torch.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise ValueError(f"{name} is float64, which JAX would round to float32: set jax_enable_x64 first")


def from_tensor(torch, name: str, tensor: Any) -> jax.Array:
    """A copy of a tensor from any device, with the same dtype."""
    check_tensor(torch, name, tensor)
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # NumPy has no bfloat16
        return jnp.array(tensor.view(torch.int16).numpy().view(jnp.bfloat16))
    return jnp.array(tensor.numpy())


def to_tensor(torch, leaf: Any) -> Any:
    """A copy of an array with the same dtype, in the machine's byte order."""
    a = np.array(leaf, order="C")
    a = a.astype(a.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) if a.dtype == jnp.bfloat16 else torch.from_numpy(a)
