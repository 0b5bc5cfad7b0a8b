"""Neural networks as pure functions on JAX, with a hand-written backward that is compared with `jax.grad`.

Parameters are `[(W, b), ...]`; `forward(params, x)` and `backward(params, x, y)` are jitted, and compose with every JAX
transformation.

>>> import jax, jax.numpy as jnp, funcnet
>>> params = funcnet.init(jax.random.key(0), (4, 8, 3))
>>> x, y = jnp.ones((5, 4)), jnp.array([0, 1, 2, 0, 1])
>>> grads = funcnet.backward(params, x, y)
>>> [(dW.shape, db.shape) for dW, db in grads]
[((4, 8), (8,)), ((8, 3), (3,))]
"""

import importlib

from funcnet.activations import (
    Activation,
    elu,
    gelu,
    gelu_tanh,
    identity,
    leaky_relu,
    relu,
    sigmoid,
    silu,
    softplus,
    tanh,
)
from funcnet.arguments import check_labels
from funcnet.initializers import (
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    lecun_normal,
    standard_normal,
    uniform,
    zeros,
)
from funcnet.losses import Loss, sigmoid_cross_entropy, softmax_cross_entropy, squared_error
from funcnet.mlp import Trace, backward, forward, forward_trace, init, objective, predict, value_and_backward
from funcnet.network import Network, Params
from funcnet.optimizers import Optimizer, adam, adamw, apply_updates, rmsprop, sgd
from funcnet.per_sample import clipped_backward, input_backward, per_sample_backward, per_sample_norms
from funcnet.regularizers import dropout_masks
from funcnet.table import count_parameters, summary

__version__ = "0.1.0"

__all__ = [
    "Activation", "Loss", "Network", "Optimizer", "Params", "Trace", "adam", "adamw", "apply_updates", "backward",
    "check_labels", "clipped_backward", "count_parameters", "dropout_masks", "elu", "forward", "forward_trace", "gelu",
    "gelu_tanh", "glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "identity", "init", "input_backward",
    "leaky_relu", "lecun_normal", "objective", "per_sample_backward", "per_sample_norms", "predict", "relu", "rmsprop",
    "sgd", "sigmoid", "sigmoid_cross_entropy", "silu", "softmax_cross_entropy", "softplus", "squared_error",
    "standard_normal", "summary", "tanh", "uniform", "value_and_backward", "zeros",
]  # fmt: skip

_SUBMODULES = (
    "activations", "checkpoints", "curvature", "datasets", "distortions", "evaluation", "exchange", "initializers",
    "losses", "mlp", "network", "optimizers", "per_sample", "plotting", "products", "regularizers", "schedules",
    "sharding", "testing", "training", "weights")  # fmt: skip


def __getattr__(name: str):
    """A submodule, imported when it is first used: `funcnet.testing` after `import funcnet`."""
    if name in _SUBMODULES:
        return importlib.import_module(f"funcnet.{name}")
    raise AttributeError(f"module 'funcnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])
