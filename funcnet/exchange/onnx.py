"""Export to ONNX: a file for any runtime, at the lowest operator set that has its operators."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable

import numpy as np

from funcnet.activations import Activation
from funcnet.arguments import computed_in
from funcnet.exchange.checks import check_exported, known
from funcnet.extras import import_extra
from funcnet.files import write_atomically
from funcnet.losses import SHIPPED
from funcnet.network import Network, Params
from funcnet.table import count_parameters

# ONNX's name for an activation, and its settings there; `None` if it takes several operators, or none.
_ONNX = {"identity": None, "relu": ("Relu", {}), "leaky_relu": ("LeakyRelu", {}), "sigmoid": ("Sigmoid", {}),
         "tanh": ("Tanh", {}), "softplus": ("Softplus", {}), "elu": ("Elu", {}), "silu": None, "gelu": ("Gelu", {}),
         "gelu_tanh": ("Gelu", {"approximate": "tanh"})}  # fmt: skip
_ENDINGS = {"softmax_cross_entropy": "Softmax", "sigmoid_cross_entropy": "Sigmoid", "squared_error": "Identity"}


def to_onnx(
    path: str | os.PathLike[str],
    params: Params,
    network: Network = Network(),
) -> None:
    """Write the network as an ONNX model that computes `predict`, `x (N, n_0) -> p (N, K)`, for any `N`.

    Half-precision weights are written in float32, the dtype in which `predict` computes. The names of the activations
    and of the loss are in the model's properties, where `from_onnx` finds them.

    Args:
      path: the file; an existing one is replaced.
      params: the network, of less than 2 GB, the limit of the format.
      network: its activations and loss must be shipped ones.

    Raises:
      ValueError: an activation or the loss is not a shipped one; the network rounds the factors of its products, or has
        gelu in float64, for which ONNX Runtime has no operator.
      OSError: the file cannot be written; an existing one is unchanged.
      ImportError: onnx is not installed.

    Open Neural Network Exchange, operator set 7, or 20 for gelu.

    >>> import tempfile, jax, funcnet, onnxruntime
    >>> path, params = tempfile.mkdtemp() + "/network.onnx", funcnet.init(jax.random.key(0), (4, 8, 3))
    >>> to_onnx(path, params)
    >>> x = np.ones((2, 4), np.float32)
    >>> (p,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    >>> bool(np.allclose(p, funcnet.predict(params, x), atol=1e-6))
    True
    """
    onnx = import_extra("onnx", "exchange")
    check_exported(params, network)
    if (loss := network.loss) not in SHIPPED:
        raise ValueError(f"loss is {loss.name}, expected one of {', '.join(known.name for known in SHIPPED)}")
    dtype = computed_in(params)
    if count_parameters(params) * dtype.itemsize >= 2**31 - 2**20:
        raise ValueError(f"params are {count_parameters(params):,} numbers, and an ONNX file holds less than 2 GB")
    graph = _Graph(onnx, dtype)
    last = "x"
    for l, ((W, b), f) in enumerate(zip(params, network.activations(len(params)), strict=True), 1):
        leaves = [graph.constant(leaf, f"{name}_{l}") for name, leaf in (("W", W), ("b", b))]
        last = _activated(graph.add, graph.constant, graph.add("Gemm", last, *leaves), f, f"layer {l}", dtype)
    ending = _ENDINGS[loss.name]
    graph.add(ending, last, out="p", **({"axis": 1} if ending == "Softmax" else {}))
    model = graph.model(params[0][0].shape[0], params[-1][0].shape[1])
    onnx.helper.set_model_props(model, {"funcnet": _described(network)})
    onnx.checker.check_model(model, full_check=True)
    write_atomically(path, model.SerializeToString())


class _Graph:
    """Nodes and constants of a model that is being written; each has a unique name."""

    def __init__(self, onnx, dtype):
        self.onnx, self.dtype, self.nodes, self.constants = onnx, dtype, [], {}

    def add(self, operator: str, *inputs: str, out: str | None = None, **attributes) -> str:
        out = out or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [out], **attributes))
        return out

    def constant(self, value, name: str | None = None) -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = self.onnx.numpy_helper.from_array(np.asarray(value, self.dtype), name)
        return name

    def model(self, n_in: int, K: int):
        """The model. Its IR version is at least 4, also for opset 7: before, weights had to be inputs, too."""
        helper = self.onnx.helper
        opset, ir = (20, 9) if any(node.op_type == "Gelu" for node in self.nodes) else (7, 4)
        element = helper.np_dtype_to_tensor_dtype(self.dtype)
        x, p = (helper.make_tensor_value_info(name, element, ["N", n]) for name, n in (("x", n_in), ("p", K)))
        graph = helper.make_graph(self.nodes, "funcnet", [x], [p], [*self.constants.values()])
        opsets = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, producer_name="funcnet", opset_imports=opsets, ir_version=ir)


def _activated(add: Callable, constant: Callable, z: str, f: Activation, where: str, dtype: np.dtype) -> str:
    """Add an activation; in float64 as a formula, where ONNX Runtime has no operator or rounds to float32."""
    theirs, slope = known(f, where, _ONNX, "ONNX")
    if f.name == "silu":
        return add("Mul", z, add("Sigmoid", z))
    if theirs is None:
        return z
    name, settings = theirs
    if dtype == np.float64 and name in ("LeakyRelu", "Softplus", "Elu", "Gelu"):
        return _formula(add, constant, z, f, where, slope)
    return add(name, z, **settings | ({} if slope is None else {"alpha": slope}))


def _formula(add: Callable, constant: Callable, z: str, f: Activation, where: str, slope: float | None) -> str:
    if f.name == "gelu":
        raise ValueError(
            f"{where}: ONNX Runtime has no gelu in float64: write the network in float32, "
            "jax.tree.map(lambda leaf: leaf.astype('float32'), params)"
        )
    if f.name == "gelu_tanh":  # z / 2 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3)))
        cubic = add("Add", z, add("Mul", constant(0.044715), add("Mul", z, add("Mul", z, z))))
        t = add("Tanh", add("Mul", constant(math.sqrt(2 / math.pi)), cubic))
        return add("Mul", add("Mul", constant(0.5), z), add("Add", t, constant(1)))
    if f.name == "softplus":  # max(z, 0) + log(1 + exp(-|z|))
        rest = add("Log", add("Add", add("Exp", add("Neg", add("Abs", z))), constant(1)))
    else:  # elu, max(z, 0) + exp(min(z, 0)) - 1, or leaky_relu, max(z, 0) + slope min(z, 0)
        below = add("Neg", add("Relu", add("Neg", z)))
        rest = add("Sub", add("Exp", below), constant(1)) if slope is None else add("Mul", below, constant(slope))
    return add("Add", add("Relu", z), rest)


def _described(network: Network) -> str:
    """The names of a network's activations and loss, for `from_onnx`."""
    hidden = network.hidden.name if isinstance(network.hidden, Activation) else [f.name for f in network.hidden]
    return json.dumps({"hidden": hidden, "output": network.output.name, "loss": network.loss.name})
