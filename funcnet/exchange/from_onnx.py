"""Import of ONNX: a chain of linear layers, compared with the model in onnx's own evaluator."""

from __future__ import annotations

import json
import os
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from funcnet import activations, losses
from funcnet.arguments import check_params
from funcnet.exchange.checks import check_read, largest_error, outputs, random_inputs
from funcnet.exchange.onnx_nodes import FOLDED, Between, Values, after_node, evaluated, recognized
from funcnet.extras import import_extra
from funcnet.files import as_path
from funcnet.network import Network, Params

_DTYPES = ("float16", "bfloat16", "float32", "float64")
_LARGEST = 2**31  # bytes: the limit of a protobuf, and so of an ONNX file


def from_onnx(model: str | os.PathLike[str] | Any) -> tuple[Params, Network]:
    """The weights of an ONNX model of linear layers, and its network: `predict` computes what the model does.

    Layers are `Gemm`, or `MatMul` and `Add`, in a chain. An activation may be an operator or a formula: it is
    recognized by its values. A softmax or sigmoid at the end becomes part of the loss; so does a log-softmax, and then
    `predict` gives its exponential. Without one, the outputs count as values, and the loss is `squared_error`; if they
    are logits, set the loss by `dataclasses.replace(network, loss=...)`. A model from `to_onnx` holds its network.

    Args:
      model: the path of a file, or an `onnx.ModelProto`, e.g. from `onnx.load(path)`, which also reads weights in
        separate files.

    Returns:
      `[(W, b), ...]` in the dtype of the model, and the `Network`.

    Raises:
      ValueError: it is not an ONNX model; it has other nodes than linear layers and activations (the message names the
        node), or on random inputs, in onnx's own evaluator, gives other outputs than these; or the loss does not fit
        the outputs. Or weights are float64 and `jax_enable_x64` is not set.
      OSError: the file cannot be read.
      ImportError: onnx is not installed.

    >>> import tempfile, funcnet
    >>> path, params = tempfile.mkdtemp() + "/network.onnx", funcnet.init(jax.random.key(0), (4, 8, 3))
    >>> funcnet.exchange.to_onnx(path, params, Network(funcnet.tanh))
    >>> again, network = from_onnx(path)
    >>> network, bool((again[0][0] == params[0][0]).all())
    (Network(hidden=tanh), True)
    """
    onnx = import_extra("onnx", "exchange")
    for part in ("onnx.inliner", "onnx.reference"):
        import_extra(part, "exchange")
    loaded, name = _loaded(onnx, model)
    try:
        with np.errstate(all="ignore"):
            return _read(onnx, loaded)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _loaded(onnx, model) -> tuple[Any, str]:
    """The model, checked, and its name for messages."""
    name = "the model"
    if isinstance(model, (str, os.PathLike)):
        path = as_path(model)
        name = str(path)
        if not path.exists():
            raise FileNotFoundError(f"{name}: there is no such file")
        if not path.is_file() or path.stat().st_size >= _LARGEST:
            raise ValueError(f"{name}: not an ONNX file, which is a regular one of less than 2 GB")
        data, model = path.read_bytes(), onnx.ModelProto()
        try:
            model.ParseFromString(data)
        except Exception as error:  # protobuf raises several kinds
            raise ValueError(f"{name}: not a whole ONNX file: {error}") from error
    if not isinstance(model, onnx.ModelProto):
        raise ValueError(
            f"model is {model!r:.80} of type {type(model).__name__}, expected a path or an onnx.ModelProto"
        )
    if not model.graph.node:
        raise ValueError(f"{name}: not an ONNX file, or its model is empty")
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute)]
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise ValueError(f"{name}: its weights are in other files: read them, too, by from_onnx(onnx.load(path))")
    try:
        onnx.checker.check_model(model)
        return onnx.inliner.inline_local_functions(model) if model.functions else model, name
    except Exception as error:
        raise ValueError(f"{name}: not a valid ONNX model: {str(error).strip().splitlines()[0]}") from error


def _read(onnx, model) -> tuple[Params, Network]:
    constants = {tensor.name: _array(onnx, tensor) for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise ValueError(f"it has {len(inputs)} inputs, {', '.join(value.name for value in inputs)}, expected one")
    (x,) = inputs
    known = {x.name: Values((), Between(x.name, (), x.name))}
    for number, node in enumerate(model.graph.node):
        before = [known[name] for name in node.input if name in known]
        if before:
            known |= dict.fromkeys(filter(None, node.output), after_node(onnx, model, number, before, constants))
        elif node.op_type in FOLDED and all(name in constants for name in node.input if name):
            given = {name: constants[name] for name in node.input if name}
            constants |= dict(zip(node.output, evaluated(onnx, model, [node], given, node.output[:1]), strict=False))
    name, values = _output(model, known)
    params: Params = []
    for _, W, b in values.layers:
        params.append((_exact(W), _exact(np.zeros(W.shape[1], W.dtype) if b is None else b)))
    check_params(params)
    network = _said(model) or recognized(onnx, model, values, constants)
    check_read(params, network)
    _check_same(onnx, model, x, name, params, network, values.ending, constants)
    return params, network


def _array(onnx, tensor) -> np.ndarray:
    try:
        return onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        raise ValueError(f"{tensor.name} is damaged: {error}") from error


def _exact(a: np.ndarray) -> jax.Array:
    if a.dtype.name not in _DTYPES:
        raise ValueError(f"its weights have dtype {a.dtype}, expected one of {', '.join(_DTYPES)}")
    if a.dtype == np.float64 and jax.dtypes.canonicalize_dtype(a.dtype) != a.dtype:
        raise ValueError("its weights are float64, which JAX would round to float32: set jax_enable_x64 first")
    return jnp.array(a)


def _output(model, known) -> tuple[str, Values]:
    """The one output of the network; a classifier of scikit-learn has other outputs, too."""
    outs = {value.name: known[value.name] for value in model.graph.output if value.name in known}
    good = {name: values for name, values in outs.items() if values.layers and not values.odd}
    if len(good) > 1:
        raise ValueError(f"it has several outputs, {', '.join(good)}: take one by onnx.utils.extract_model")
    if not good:
        odd = next((values.odd for values in outs.values() if values.odd), "no output has a layer before it")
        raise ValueError(
            f"{odd}, expected layers, Gemm or MatMul and Add with constant weights, each followed by at most one "
            "shipped activation, and a Softmax or Sigmoid at the end"
        )
    return good.popitem()


def _said(model) -> Network | None:
    """The network in the metadata of a model from `to_onnx`, or None."""
    text = next((entry.value for entry in model.metadata_props if entry.key == "funcnet"), None)
    try:
        said = json.loads(text or "")
        hidden = said["hidden"]
        hidden = [*map(activations.from_name, hidden)] if isinstance(hidden, list) else activations.from_name(hidden)
        return Network(hidden, activations.from_name(said["output"]), losses.from_name(said["loss"]))
    except (ValueError, KeyError, TypeError):
        return None


def _check_same(onnx, model, x_info, name, params, network, ending, constants) -> None:
    """Refuse a model that does not compute what the network read from it does."""
    x = _inputs(onnx, x_info.type.tensor_type, params[0][0].shape[0])
    nodes, needed = [], {name}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.insert(0, node)
            needed.update(node.input)
    parts = [evaluated(onnx, model, nodes, constants | {x_info.name: part}, [name])[0] for part in x]
    theirs = np.concatenate(parts).astype(np.float64)
    theirs = np.exp(theirs) if ending == "LogSoftmax" else theirs
    _, p = outputs(params, network, x.reshape(len(theirs), -1).astype(np.float64))
    error, dtype = largest_error(p, theirs), params[0][0].dtype
    if not error <= {2: 0.1, 4: 1e-4, 8: 1e-7}[dtype.itemsize]:  # theirs are rounded
        raise ValueError(
            f"on random inputs it gives other outputs than its layers, one after the other, with {network}: by "
            f"{error:.2g} of the largest"
        )


def _inputs(onnx, kind, n_in: int) -> np.ndarray:
    """Random inputs `(batches, samples, ...)` of the type that a model declares."""
    named = {value: key for key, value in onnx.TensorProto.DataType.items()}.get(kind.elem_type, "nothing")
    dtype = {"FLOAT": "float32", "DOUBLE": "float64"}.get(named, named.lower())
    if dtype not in _DTYPES:
        raise ValueError(f"its input holds {dtype}, expected one of {', '.join(_DTYPES)}")
    batch, *shape = [dim.dim_value for dim in kind.shape.dim] or [0]
    if not all(shape):
        shape = [n_in]  # a dimension is open
    if shape and prod(shape) != n_in:
        raise ValueError(
            f"its input is (N, {', '.join(map(str, shape))}), expected {n_in} numbers per sample, as in layer 1"
        )
    x = random_inputs(n_in).astype(jnp.dtype(dtype))
    batch = batch if 0 < batch <= len(x) else len(x)
    return x[: len(x) // batch * batch].reshape(-1, batch, *(shape or [n_in]))
