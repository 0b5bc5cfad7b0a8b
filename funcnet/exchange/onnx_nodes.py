"""The nodes of an ONNX model: which of them are layers, and which activations are between those, by their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from funcnet import activations
from funcnet.activations import Activation, identity, leaky_relu
from funcnet.exchange.checks import float64, read_network
from funcnet.losses import sigmoid_cross_entropy, softmax_cross_entropy, squared_error
from funcnet.network import Network

_PASSES = {"Identity", "Dropout", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze"}  # the numbers stay the same
FOLDED = _PASSES | {"Constant", "Transpose"}  # computed beforehand for constants
_ELEMENTWISE = {
    "Abs", "Add", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "Greater", "GreaterOrEqual", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "PRelu", "Pow", "Reciprocal", "Relu", "Sigmoid", "Softplus",
    "Sqrt", "Sub", "Swish", "Tanh", "Where",
}  # fmt: skip


class Between(NamedTuple):
    """The nodes between two layers, by number, from one tensor to another."""

    start: str
    nodes: tuple[int, ...]
    end: str


class Layer(NamedTuple):
    """A layer, and the nodes before it."""

    before: Between
    W: np.ndarray
    b: np.ndarray | None


class Values(NamedTuple):
    """The known properties of a tensor that depends on the input."""

    layers: tuple[Layer, ...]
    since: Between  # since the last layer, or the model's input
    ending: str = ""  # a softmax, after which nothing may follow
    odd: str = ""  # the first node that a network cannot have


def after_node(onnx, model, number, before: list[Values], constants) -> Values:
    """The known properties after a node of the graph."""
    node = model.graph.node[number]
    values = max(before, key=lambda values: (bool(values.odd), len(values.layers)))
    if values.odd:
        return values
    end = node.output[0]
    since = values.since._replace(nodes=tuple(sorted({number}.union(*(v.since.nodes for v in before)))), end=end)
    alone = len(before) == 1 and all(name in constants for name in node.input[1:] if name)
    odd = values._replace(odd=_named(model, number))
    if node.domain not in ("", "ai.onnx") or any(v.since.start != values.since.start for v in before):
        return odd
    if node.op_type in _PASSES and alone:
        training = node.op_type == "Dropout" and len(node.input) > 2 and constants.get(node.input[2], np.False_).any()
        return odd if training else values._replace(since=since)
    if values.ending:
        return odd
    if node.op_type in ("Softmax", "LogSoftmax"):
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        axis = _attributes(node).get("axis", 1 if opset < 13 else -1)
        if axis == -1 or axis + 1 == _rank(onnx, model, node.input[0]):
            return values._replace(ending=node.op_type)
        return values._replace(odd=f"{_named(model, number)} over axis {axis}, which is not the last, or may not be")
    if node.op_type in ("Gemm", "MatMul"):
        linear = _linear(node, constants) if alone else None
        return odd if linear is None else Values((*values.layers, Layer(values.since, *linear)), Between(end, (), end))
    if node.op_type not in _ELEMENTWISE:
        return odd
    if node.op_type == "Add" and values.layers and values.layers[-1].b is None and _passes(model, values.since):
        last, added = values.layers[-1], [constants[name] for name in node.input if name in constants]
        b = _bias(added[0], last.W.shape[1]) if added else None
        if b is not None:
            return Values((*values.layers[:-1], last._replace(b=b)), Between(end, (), end))
    return values._replace(since=since)


def _rank(onnx, model, name) -> int | None:
    """The rank of a tensor, if it follows from the declarations of the model, else None."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = [value.type.tensor_type for value in (*graph.input, *graph.value_info) if value.name == name]
    return len(types[0].shape.dim) if types and types[0].HasField("shape") else None


def _named(model, number) -> str:
    node = model.graph.node[number]
    return f"node {number}{f', {node.name},' if node.name else ''} is a {node.op_type}"


def _attributes(node) -> dict[str, Any]:
    return {
        attribute.name: getattr(attribute, {1: "f", 2: "i", 3: "s"}.get(attribute.type, "t"))
        for attribute in node.attribute
    }


def _linear(node, constants) -> tuple[np.ndarray, np.ndarray | None] | None:
    """`W` and `b` of a Gemm or MatMul, if it is a layer."""
    B, *C = [constants[name] for name in node.input[1:] if name]
    settings = _attributes(node)
    if B.ndim != 2 or settings.get("transA"):
        return None
    W = (B.T if settings.get("transB") else B) * np.asarray(settings.get("alpha", 1), B.dtype)
    b = _bias(C[0] * np.asarray(settings.get("beta", 1), C[0].dtype), W.shape[1]) if C else None
    return None if C and b is None else (W, b)


def _bias(a: np.ndarray, n: int) -> np.ndarray | None:
    """A bias of `n` numbers, broadcast as by an operator, or None."""
    return np.broadcast_to(a.reshape(-1), n) if a.shape in ((), (1,), (n,), (1, 1), (1, n)) else None


def _passes(model, between: Between) -> bool:
    return all(model.graph.node[number].op_type in _PASSES for number in between.nodes)


def recognized(onnx, model, values: Values, constants) -> Network:
    """The network of the activations between the layers."""
    first, *between = [layer.before for layer in values.layers]
    if not _passes(model, first):
        raise ValueError(f"{_named(model, first.nodes[0])} before the first layer, expected a layer")
    loss, last, nodes = squared_error, values.since, model.graph.node
    computing = [number for number in last.nodes if nodes[number].op_type not in _PASSES]
    if values.ending:
        loss = softmax_cross_entropy
    elif computing and nodes[computing[-1]].op_type == "Sigmoid":
        loss, sigmoid = sigmoid_cross_entropy, computing[-1]
        last = Between(last.start, tuple(number for number in last.nodes if number < sigmoid), nodes[sigmoid].input[0])
    fs = [
        _function(onnx, model, part, layer.W, constants)
        for part, layer in zip([*between, last], values.layers, strict=True)
    ]
    return read_network(fs, loss=loss)


def _function(onnx, model, part: Between, W, constants) -> Activation:
    """The activation with the same values as these nodes."""
    if _passes(model, part):
        return identity
    line = np.concatenate([np.linspace(-30, 30, 121), np.geomspace(1e-3, 1e6, 60), -np.geomspace(1e-3, 1e6, 60)])
    z = np.stack([np.roll(line, 7 * column) for column in range(W.shape[1] or 1)], axis=1)
    wide = {name: a.astype(np.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a for name, a in constants.items()}
    nodes = [model.graph.node[number] for number in part.nodes]
    (a,) = evaluated(onnx, model, nodes, wide | {part.start: z}, [part.end])
    candidates = [*activations.SHIPPED]
    if a.shape == z.shape and np.isfinite(slope := -float(a[z == -1].mean())):
        candidates.append(
            leaky_relu(slope if W.dtype == np.float64 else float(str(np.float32(slope))))
        )  # 0.01 stays 0.01
    with float64():
        errors = [_distance(np.asarray(f.fn(jnp.array(z))), a, z) for f in candidates]
    if not min(errors) <= 4 * max(float(jnp.finfo(W.dtype).eps), 1e-7):
        kinds = ", ".join(node.op_type for node in nodes if node.op_type not in _PASSES)
        raise ValueError(
            f"{_named(model, part.nodes[0])}, and {kinds} is none of "
            f"{', '.join(f.name for f in activations.SHIPPED)} or leaky_relu(SLOPE), of which one may follow each layer"
        )
    return candidates[int(np.argmin(errors))]


def _distance(ours, theirs, z) -> float:
    """The largest difference of two functions, relative to `z` where `z` is large; theirs may overflow there."""
    if theirs.shape != z.shape:
        return np.inf
    there = np.isfinite(theirs) | (np.abs(z) < 80)
    differences = np.abs(ours - theirs)[there] / np.maximum(1, np.abs(z))[there]
    return float(np.nan_to_num(differences, nan=np.inf).max(initial=0))


def evaluated(onnx, model, nodes, given: Mapping[str, np.ndarray], out: Sequence[str]) -> list[np.ndarray]:
    """The outputs of some nodes, by onnx's own evaluator."""
    helper, needed = onnx.helper, {name for node in nodes for name in node.input}
    ins, outs = (
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names]
        for names in ([name for name in given if name in needed], out)
    )
    part = helper.make_model(helper.make_graph(nodes, "part", ins, outs), opset_imports=model.opset_import)
    try:
        return onnx.reference.ReferenceEvaluator(part).run([*out], {i.name: given[i.name] for i in ins})
    except Exception as error:
        kinds = ", ".join(dict.fromkeys(node.op_type for node in nodes))
        raise ValueError(
            f"onnx's evaluator cannot run its {kinds}: {str(error).strip().partition(chr(10))[0]}"
        ) from error
