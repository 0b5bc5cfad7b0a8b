"""Networks of other libraries, in and out: PyTorch, scikit-learn, ONNX and StableHLO.

What is exchanged is copied, never shared; a network that the other side cannot have is refused by name.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.typing import ArrayLike, DTypeLike

from funcnet import activations
from funcnet.activations import identity, relu
from funcnet.extras import import_extra
from funcnet.files import write_atomically
from funcnet.losses import SHIPPED, sigmoid_cross_entropy, softmax_cross_entropy, squared_error
from funcnet.mlp import forward, predict
from funcnet.network import Network, Params, check_network, check_params

__all__ = ["from_sklearn", "from_torch", "to_onnx", "to_sklearn", "to_stablehlo", "to_torch"]

# An activation's name elsewhere; `None` needs no layer of its own.
_TORCH = {"identity": None, "relu": "ReLU", "leaky_relu": "LeakyReLU", "sigmoid": "Sigmoid", "tanh": "Tanh",
          "softplus": "Softplus", "elu": "ELU", "silu": "SiLU", "gelu": "GELU"}  # fmt: skip
_ONNX = {"identity": None, "relu": "Relu", "leaky_relu": "LeakyRelu", "sigmoid": "Sigmoid", "tanh": "Tanh",
         "softplus": "Softplus", "elu": "Elu", "silu": None, "gelu": "Gelu"}  # fmt: skip
_SKLEARN = {"identity": "identity", "relu": "relu", "sigmoid": "logistic", "tanh": "tanh"}


def from_torch(model: Any, network: Network | None = None) -> tuple[Params, Network]:
    """The weights of a PyTorch network of `torch.nn.Linear` layers, `W = weight^T`, and what else the network is.

    A module is run on random inputs, and what comes back computes the same.

    Args:
      model: a module, a `Sequential` say, or the state dict of one: `(n_out, n_in)` weights and `(n_out,)` biases, in
        the order of the layers, on any device. A layer without a bias gets one of zeros.
      network: its activations; needed for a state dict, which holds none, and for a module that calls them as
        functions. By default they are read from the module.

    Returns:
      `[(W, b), ...]` in the dtype that they have there, and copies: training here changes nothing there. And the
      `Network`.

    Raises:
      ValueError: the module is something else than linear layers and activations, or computes something else; or the
        weights do not follow each other; named. Weights are float64 and `jax_enable_x64` is not set.
      ImportError: torch is not installed.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> params, network = from_torch(model)
    >>> [(W.shape, b.shape) for W, b in params], network
    ([((4, 8), (8,)), ((8, 3), (3,))], Network(hidden=tanh))
    """
    torch = import_extra("torch", "exchange")
    is_module = isinstance(model, torch.nn.Module)
    if network is None:
        if not is_module:
            raise ValueError("a state dict holds weights and no activations: from_torch(state, Network(...)) says them")
        network = _torch_network(torch, model)
    check_network(network)
    state = model.state_dict() if is_module else model
    params: Params = []
    for name, tensor in state.items():
        prefix, _, kind = name.rpartition(".")
        if kind == "weight" and tensor.ndim == 2:
            W = _from_tensor(torch, name, tensor).T
            bias = state.get(f"{prefix}.bias" if prefix else "bias")
            params.append((W, jnp.zeros(W.shape[1], W.dtype) if bias is None else _from_tensor(torch, name, bias)))
        elif kind != "bias":
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected the weight (n_out, n_in) or the bias "
                "of a linear layer"
            )
    check_params(params)
    network.activations(len(params))
    if is_module:
        _check_same_outputs(torch, model, params, network)
    return params, network


def to_torch(params: Params, network: Network = Network()) -> Any:
    """A `torch.nn.Sequential` that computes what `forward` does, with copies of the weights.

    Args:
      params: float16, bfloat16, float32 or float64.
      network: its activations are shipped ones.

    Returns:
      The module; `from_torch` gives the same weights back, bit for bit.

    Raises:
      ValueError: an activation is not a shipped one, so PyTorch's name for it is not known.
      ImportError: torch is not installed.

    >>> to_torch([(np.ones((4, 3), np.float32), np.zeros(3, np.float32))], Network(output=activations.tanh))
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
      (1): Tanh()
    )
    """
    torch = import_extra("torch", "exchange")
    check_params(params)
    check_network(network)
    modules = []
    for l, ((W, b), f) in enumerate(zip(params, network.activations(len(params)), strict=True), 1):
        layer = torch.nn.utils.skip_init(torch.nn.Linear, *W.shape)
        layer.weight = torch.nn.Parameter(_to_tensor(torch, np.asarray(W).T))
        layer.bias = torch.nn.Parameter(_to_tensor(torch, b))
        name, slope = _known(f, f"layer {l}", _TORCH, "PyTorch")
        modules += [layer, getattr(torch.nn, name)(*slope)] if name else [layer]
    return torch.nn.Sequential(*modules)


def from_sklearn(estimator: Any, *, dtype: DTypeLike = jnp.float32) -> tuple[Params, Network]:
    """The weights of a fitted `MLPClassifier` or `MLPRegressor`, and its network.

    `predict` then gives its `predict_proba`, or its `predict` for regression. For two classes scikit-learn has one
    output, the probability of the second class.

    Args:
      estimator: fitted.
      dtype: what to round to; scikit-learn computes in the dtype of the data that it was fitted to, float64 mostly.

    Returns:
      `[(W, b), ...]`, copies, and the `Network`.

    Raises:
      ValueError: it is not fitted, no such estimator, or one that predicts otherwise (a Poisson regression); float64 is
        asked for and `jax_enable_x64` is not set.

    >>> from sklearn.neural_network import MLPClassifier
    >>> x, y = np.eye(6), np.array([0, 1, 2, 0, 1, 2])
    >>> model = MLPClassifier((5,), activation="tanh", solver="lbfgs", max_iter=50, random_state=0).fit(x, y)
    >>> params, network = from_sklearn(model)
    >>> p = np.asarray(predict(params, x.astype(np.float32), network))
    >>> network, bool(np.abs(p - model.predict_proba(x)).max() < 1e-6)
    (Network(hidden=tanh), True)
    """
    losses = {"softmax": softmax_cross_entropy, "logistic": sigmoid_cross_entropy, "identity": squared_error}
    out, hidden = getattr(estimator, "out_activation_", None), getattr(estimator, "activation", None)
    if not hasattr(estimator, "coefs_") or out not in losses or hidden not in _SKLEARN.values():
        raise ValueError(
            f"estimator is {estimator!r} with hidden activation {hidden!r} and output {out!r}, expected a "
            "fitted MLPClassifier, or MLPRegressor for the squared error"
        )
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError("dtype is float64, which JAX would round to float32: set jax_enable_x64 first")
    name = next(name for name, theirs in _SKLEARN.items() if theirs == hidden)
    pairs = zip(estimator.coefs_, estimator.intercepts_, strict=True)
    params = [(jnp.array(W, dtype), jnp.array(b, dtype)) for W, b in pairs]
    return params, Network(activations.from_name(name), loss=losses[out])


def to_sklearn(params: Params, network: Network = Network(), *, classes: ArrayLike | None = None) -> Any:
    """A fitted scikit-learn estimator that predicts what `predict` does.

    Args:
      params: the network; its outputs are logits, or values.
      network: relu, tanh, sigmoid or identity, one for all hidden layers, identity for the output; the loss
        `softmax_cross_entropy` (three classes or more), `sigmoid_cross_entropy` (two classes if there is one output,
        else as many labels) or `squared_error` (an `MLPRegressor`).
      classes: the labels that its `predict` gives, ascending; by default 0, 1, 2, ....

    Returns:
      An `MLPClassifier` or `MLPRegressor`.

    Raises:
      ValueError: scikit-learn has no such network; named.
      ImportError: scikit-learn is not installed.

    >>> import funcnet
    >>> params, x = funcnet.init(jax.random.key(0), (4, 8, 3)), np.ones((2, 4), np.float32)
    >>> model = to_sklearn(params, classes=["cat", "dog", "owl"])
    >>> bool(np.allclose(model.predict_proba(x), predict(params, x), atol=1e-6))
    True
    """
    neural_network = import_extra("sklearn.neural_network")
    check_params(params)
    check_network(network)
    *layers, output = network.activations(len(params))
    if output != identity:
        raise ValueError(f"the output activation is {output}, scikit-learn has none but its loss's own: take identity")
    names = {_known(f, f"layer {l}", _SKLEARN, "scikit-learn")[0] for l, f in enumerate(layers, 1)} or {"identity"}
    if len(names) > 1:
        raise ValueError(f"the hidden activations are {sorted(names)}, scikit-learn has one for all layers")
    n_in, K, loss = params[0][0].shape[0], params[-1][0].shape[1], network.loss
    settings = {"hidden_layer_sizes": [W.shape[1] for W, _ in params[:-1]], "activation": names.pop(), "solver": "sgd"}
    weights = [np.asarray(leaf, np.promote_types(leaf.dtype, np.float32)) for leaf in jax.tree.leaves(params)]
    x = np.zeros((max(K, 2), n_in), weights[0].dtype)
    if loss == squared_error:
        estimator = neural_network.MLPRegressor(**settings)
        estimator.partial_fit(x, np.zeros((len(x), K) if K > 1 else len(x)))
    elif loss in (softmax_cross_entropy, sigmoid_cross_entropy):
        several = loss == sigmoid_cross_entropy and K > 1  # labels, each of them there or not
        if loss == softmax_cross_entropy and K < 3:
            raise ValueError(f"softmax over {K} outputs: scikit-learn has one logistic output for two classes")
        classes = np.arange(max(K, 2)) if classes is None else np.asarray(classes)
        if classes.shape != (len(x),) or not (classes[1:] > classes[:-1]).all():
            raise ValueError(f"classes are {classes}, expected {len(x)}, ascending")
        if several and (classes != np.arange(K)).any():
            raise ValueError(f"classes are {classes}, but with several labels at once scikit-learn has 0 to {K - 1}")
        estimator = neural_network.MLPClassifier(**settings)
        estimator.partial_fit(x, np.eye(K, dtype=int) if several else classes, classes=classes)
    else:
        raise ValueError(f"loss is {loss.name}, expected one of {', '.join(known.name for known in SHIPPED)}")
    estimator.coefs_, estimator.intercepts_ = weights[0::2], weights[1::2]  # the step above made all the rest
    return estimator


def to_onnx(
    path: str | os.PathLike[str],
    params: Params,
    network: Network = Network(),
) -> None:
    """Write the network as an ONNX model that computes `predict`, `x (N, n_0) -> p (N, K)`, for any `N`.

    Half-precision weights are written in float32, in which `predict` computes with them.

    Args:
      path: the file; an older one is replaced.
      params: the network.
      network: its activations and loss are shipped ones.

    Raises:
      ValueError: an activation or the loss is not a shipped one, so ONNX's name for it is not known.
      OSError: the file cannot be written; what was there is left as it was.
      ImportError: onnx is not installed.

    Open Neural Network Exchange, operator set 20.

    >>> import tempfile, funcnet, onnxruntime
    >>> path, params = tempfile.mkdtemp() + "/network.onnx", funcnet.init(jax.random.key(0), (4, 8, 3))
    >>> to_onnx(path, params)
    >>> x = np.ones((2, 4), np.float32)
    >>> (p,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    >>> bool(np.allclose(p, predict(params, x), atol=1e-6))
    True
    """
    onnx = import_extra("onnx", "exchange")
    helper, from_array = (
        import_extra("onnx.helper", "exchange"),
        import_extra("onnx.numpy_helper", "exchange").from_array,
    )
    check_params(params)
    check_network(network)
    if (loss := network.loss) not in SHIPPED:
        raise ValueError(f"loss is {loss.name}, expected one of {', '.join(known.name for known in SHIPPED)}")
    nodes, weights, last = [], [], "x"

    def add(operator, inputs, out, **attributes):
        nodes.append(helper.make_node(operator, inputs, [out], **attributes))
        return out

    for l, ((W, b), f) in enumerate(zip(params, network.activations(len(params)), strict=True), 1):
        for name, leaf in (("W", W), ("b", b)):
            weights.append(from_array(np.asarray(leaf, np.promote_types(leaf.dtype, np.float32)), f"{name}_{l}"))
        last = z = add("Gemm", [last, f"W_{l}", f"b_{l}"], f"z_{l}")
        operator, slope = _known(f, f"layer {l}", _ONNX, "ONNX")
        if f.name == "silu":
            last = add("Mul", [z, add("Sigmoid", [z], f"sigmoid_{l}")], f"a_{l}")
        elif operator:
            last = add(operator, [z], f"a_{l}", **({"alpha": slope[0]} if slope else {}))
    ending = {"softmax_cross_entropy": "Softmax", "sigmoid_cross_entropy": "Sigmoid"}.get(loss.name, "Identity")
    add(ending, [last], "p", **({"axis": -1} if ending == "Softmax" else {}))
    element = onnx.TensorProto.DOUBLE if params[0][0].dtype == np.float64 else onnx.TensorProto.FLOAT
    x, p = (helper.make_tensor_value_info(name, element, ["N", n])
            for name, n in (("x", params[0][0].shape[0]), ("p", params[-1][0].shape[1])))  # fmt: skip
    graph = helper.make_graph(nodes, "funcnet", [x], [p], weights)
    model = helper.make_model(graph, producer_name="funcnet", opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    write_atomically(path, model.SerializeToString())


def to_stablehlo(
    path: str | os.PathLike[str],
    params: Params,
    network: Network = Network(),
) -> None:
    """Write `predict` as a StableHLO program, its weights inside, for CPU, GPU and TPU and any batch size.

    `export.deserialize(bytearray(path.read_bytes())).call(x)`, after `from jax import export`, runs it without funcnet;
    other runtimes read it, too.

    Args and errors as in `to_onnx`, but any activation and any loss will do, and it is flatbuffers that is needed.

    >>> import tempfile, pathlib, funcnet
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "network"
    >>> params = funcnet.init(jax.random.key(0), (4, 3))
    >>> to_stablehlo(path, params)
    >>> p = export.deserialize(bytearray(path.read_bytes())).call(jnp.ones((7, 4)))
    >>> bool(jnp.allclose(p, funcnet.predict(params, jnp.ones((7, 4)))))
    True
    """
    import_extra("flatbuffers", "exchange")  # JAX writes programs with it, and would not name it
    check_params(params)
    check_network(network)
    (n,) = export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, params[0][0].shape[0]), jnp.promote_types(params[0][0].dtype, jnp.float32))
    predictor = jax.jit(lambda x: predict(params, x, network))
    exported = export.export(predictor, platforms=("cpu", "cuda", "tpu"))(x)
    write_atomically(path, bytes(exported.serialize()))


def _torch_network(torch, model) -> Network:
    """The activations of a module, from its parts in their order; those that do nothing in evaluation are passed by."""
    kinds = {name: ours for ours, name in _TORCH.items() if name}
    layers = []  # of each linear layer, the activation after it
    for name, module in model.named_modules():
        kind, own = type(module).__name__, [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if type(module) is torch.nn.Linear:
            layers.append(identity)
        elif getattr(torch.nn, kind, None) is type(module) and kind in kinds and layers and layers[-1] == identity:
            slope = f"({module.negative_slope})" if kind == "LeakyReLU" else ""
            layers[-1] = activations.from_name(kinds[kind] + slope)
        elif own or not (kind in ("Dropout", "Identity", "Flatten") or any(module.children())):
            raise ValueError(
                f"{name or 'model'} is a {kind}, expected torch.nn.Linear layers, each followed by at "
                f"most one of {', '.join(kinds)}"
            )
    *hidden, output = layers or [identity]
    return Network(tuple(hidden) if len(set(hidden)) > 1 else hidden[0] if hidden else relu, output)


def _check_same_outputs(torch, model, params, network) -> None:
    """Refuse a module that does not compute what came of it: another order, a residual, a function in between."""
    x = np.random.default_rng(0).normal(size=(64, params[0][0].shape[0])).astype(np.float32)
    with torch.no_grad():
        theirs = copy.deepcopy(model).cpu().float().eval()(torch.from_numpy(x)).numpy()
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(forward(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), x, network))
    error = np.abs(ours - theirs).max() / np.abs(theirs).max() if ours.shape == theirs.shape else np.inf
    if not error <= 2e-5:
        raise ValueError(
            f"on random inputs the module gives other outputs than its layers, one after the other, with "
            f"{network}: by {error:.2g} of the largest. If it calls other activations, "
            "from_torch(model, Network(...)) says which"
        )


def _known(f, where, names, library) -> tuple[Any, tuple[float, ...]]:
    """What a library calls a shipped activation, and its slope if it has one."""
    kind, _, slope = f.name.rstrip(")").partition("(")
    if kind not in names or not activations.is_shipped(f):
        raise ValueError(
            f"{where}: the activation is {f.name}, of which {library} knows nothing; it knows "
            f"{', '.join(names)}, as shipped"
        )
    return names[kind], (float(slope),) if slope else ()


def _from_tensor(torch, name, tensor) -> jax.Array:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:  # NumPy has none of its own
        return jnp.array(tensor.view(torch.int16).numpy().view(jnp.bfloat16))
    array = jnp.array(tensor.numpy())
    if tensor.dtype == torch.float64 and array.dtype != jnp.float64:
        raise ValueError(f"{name} is float64, which JAX would round to float32: set jax_enable_x64 first")
    return array


def _to_tensor(torch, leaf) -> Any:
    a = np.array(leaf, order="C")
    return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) if a.dtype == jnp.bfloat16 else torch.from_numpy(a)
