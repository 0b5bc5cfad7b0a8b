"""PyTorch: a module is run and its operations are recorded; a state dict is read by its names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np

from funcnet.arguments import check_network
from funcnet.exchange.checks import check_exported, check_read, known
from funcnet.exchange.torch_module import read_module
from funcnet.exchange.torch_tensors import from_tensor, to_tensor
from funcnet.extras import import_extra
from funcnet.network import Network, Params

# PyTorch's name for an activation, and its settings there; `None` if it needs no module.
_TORCH = {"identity": None, "relu": ("ReLU", {}), "leaky_relu": ("LeakyReLU", {}), "sigmoid": ("Sigmoid", {}),
          "tanh": ("Tanh", {}), "softplus": ("Softplus", {}), "elu": ("ELU", {}), "silu": ("SiLU", {}),
          "gelu": ("GELU", {}), "gelu_tanh": ("GELU", {"approximate": "tanh"})}  # fmt: skip


def from_torch(model: Any, network: Network | None = None) -> tuple[Params, Network]:
    """The weights of a PyTorch network of linear layers, `W = weight^T`, and its `Network`.

    A module is run on random inputs in float64, in evaluation mode, on the CPU, and is not changed. Its layers are read
    in the order of their calls, with the weights that are used: after a parametrization or pruning, and twice if a
    layer is called twice. `forward` then computes what the module does. A softmax, log-softmax or sigmoid at its end
    becomes part of the loss, so that `predict` gives the module's outputs, or their exponential for a log-softmax.
    Without one, the loss is the default, or `squared_error` for a single output, since a module does not hold its loss;
    set another by `dataclasses.replace(network, loss=...)`.

    Args:
      model: a module, or the state dict of one: `(n_out, n_in)` weights and `(n_out,)` biases, on any device, in the
        order of the layers, or of their numbers if the names differ only in these; or the dictionary of a checkpoint
        with one, as from `torch.load(path, weights_only=True)`. A layer without a bias gets one of zeros.
      network: its activations; needed for a state dict, which holds none, and for a module with activations that
        are not shipped.

    Returns:
      `[(W, b), ...]` in the dtype of the module, as copies: to train them does not change the module. And the
      `Network`.

    Raises:
      ValueError: the module has other parts than linear layers and activations (the message names one), or computes
        something else than these, or something else at each call; or the loss does not fit the outputs. The weights of
        a state dict do not form a chain, their order is unclear, or they are not of linear layers (LoRA, embeddings).
        Or weights are float64 and `jax_enable_x64` is not set.
      ImportError: torch is not installed.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> params, network = from_torch(model)
    >>> [(W.shape, b.shape) for W, b in params], network
    ([((4, 8), (8,)), ((8, 3), (3,))], Network(hidden=tanh))
    """
    torch = import_extra("torch", "exchange")
    if network is not None:
        check_network(network)
    if isinstance(model, torch.nn.Module):
        return read_module(torch, model, network)
    state = _state_dict(torch, model)
    if network is None:
        raise ValueError("a state dict holds weights and no activations: pass them by from_torch(state, Network(...))")
    params = _layers(torch, state)
    check_read(params, network)
    return params, network


def to_torch(params: Params, network: Network = Network()) -> Any:
    """A `torch.nn.Sequential` that computes what `forward` does, with copies of the weights.

    With half-precision weights it computes in half precision; `.float()` makes it compute in float32, as `forward`.

    Args:
      params: float16, bfloat16, float32 or float64.
      network: its activations must be shipped ones. The loss is not in the module: PyTorch's losses take logits, too.

    Returns:
      The module; `from_torch` returns the same weights, bit for bit.

    Raises:
      ValueError: an activation is not a shipped one, or the network rounds the factors of its products.
      ImportError: torch is not installed.

    >>> from funcnet import tanh
    >>> to_torch([(np.ones((4, 3), np.float32), np.zeros(3, np.float32))], Network(output=tanh))
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
      (1): Tanh()
    )
    """
    torch = import_extra("torch", "exchange")
    check_exported(params, network)
    modules = []
    for l, ((W, b), f) in enumerate(zip(params, network.activations(len(params)), strict=True), 1):
        layer = torch.nn.utils.skip_init(torch.nn.Linear, *W.shape)
        layer.weight = torch.nn.Parameter(to_tensor(torch, np.asarray(W).T))
        layer.bias = torch.nn.Parameter(to_tensor(torch, b))
        theirs, slope = known(f, f"layer {l}", _TORCH, "PyTorch")
        modules.append(layer)
        if theirs:
            name, settings = theirs
            modules.append(getattr(torch.nn, name)(**settings | ({} if slope is None else {"negative_slope": slope})))
    return torch.nn.Sequential(*modules)


def _state_dict(torch, value) -> Mapping[str, Any]:
    """The one state dict in a value, or the value itself."""
    wanted = (
        "expected a torch.nn.Module or the state dict of one, {'0.weight': ..., '0.bias': ...}, which may be within "
        "the dictionary of a checkpoint: load a file by torch.load(path, weights_only=True)"
    )
    if not isinstance(value, Mapping):
        raise ValueError(f"model is {' '.join(repr(value).split()):.80} of type {type(value).__name__}, {wanted}")
    found = dict(_state_dicts(torch, value, "model"))
    if not found:
        held = ", ".join(f"{name!r} ({type(item).__name__})" for name, item in [*value.items()][:10])
        raise ValueError(f"model is a dictionary of {held or 'nothing'} and holds no weights, {wanted}")
    if len(found) > 1:
        raise ValueError(f"model holds several state dicts: pass one of {', '.join(found)}")
    return found.popitem()[1]


def _state_dicts(torch, value, path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if any(isinstance(item, torch.Tensor) and str(name).endswith("weight") for name, item in value.items()):
        yield path, value
        return
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _state_dicts(torch, item, f"{path}[{name!r}]")


def _layers(torch, state) -> Params:
    """The layers of a state dict, in its order, or by number if their names differ only in numbers."""
    tensors = {str(name): tensor for name, tensor in state.items()}
    prefixes = {
        name.removesuffix("weight"): None
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] == "weight" and getattr(tensor, "ndim", 0) == 2
    }
    for name, tensor in tensors.items():
        if name.removesuffix("weight") not in prefixes and name.removesuffix("bias") not in prefixes:
            shape = (
                f"shape {tuple(tensor.shape)}" if isinstance(tensor, torch.Tensor) else f"type {type(tensor).__name__}"
            )
            raise ValueError(
                f"{name} has {shape}, expected the weight (n_out, n_in) or the bias of a linear layer; "
                "pass the module itself, from_torch(module), to read what it computes"
            )
    for prefix in prefixes:
        adapter = re.search(r"(^|[._])lora_", prefix)
        if adapter or (f"{prefix}bias" not in tensors and "embed" in prefix.lower()):
            raise ValueError(
                f"{prefix}weight is by its name {'half of a LoRA adapter' if adapter else 'an embedding'}, expected "
                "that of a linear layer: merge an adapter into its layer, or pass the module, from_torch(module)"
            )
    params = []
    for prefix in _in_order([*prefixes]):
        W = from_tensor(torch, f"{prefix}weight", tensors[f"{prefix}weight"]).T
        bias = tensors.get(f"{prefix}bias")
        params.append(
            (W, jnp.zeros(W.shape[1], W.dtype) if bias is None else from_tensor(torch, f"{prefix}bias", bias))
        )
    return params


def _in_order(prefixes: list[str]) -> list[str]:
    """The names by number, if they differ only in numbers: safetensors files have 10 before 2."""
    numbers = {prefix: [int(digits) for digits in re.findall(r"\d+", prefix)] for prefix in prefixes}
    alike: dict[str, list[str]] = {}
    for prefix in prefixes:
        alike.setdefault(re.sub(r"\d+", "0", prefix), []).append(prefix)
    if len(alike) == 1:
        return sorted(prefixes, key=numbers.__getitem__)
    for names in alike.values():
        for before, after in pairwise(names):
            if numbers[before] > numbers[after]:
                raise ValueError(
                    f"{before}weight comes before {after}weight, as in the alphabet, so the order of the layers is not "
                    "known: pass them in order, {name: state[name] for name in NAMES}"
                )
    return prefixes
