"""Weights in and out: files in safetensors, and networks of PyTorch, scikit-learn, ONNX and StableHLO.

What is read holds plain arrays and text, nothing that runs. What is exchanged is copied, never shared; a network that
the other side cannot have is refused by name.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.typing import ArrayLike, DTypeLike

from funcnet import activations
from funcnet.activations import Activation, identity, relu
from funcnet.extras import import_extra
from funcnet.losses import SHIPPED, Loss, sigmoid_cross_entropy, softmax_cross_entropy, squared_error
from funcnet.mlp import Hidden, Params, predict
from funcnet.validation import check_activations, check_loss, check_params

FORMAT = "funcnet 1"

# An activation's name elsewhere; `None` needs no layer of its own.
_TORCH = {"identity": None, "relu": "ReLU", "leaky_relu": "LeakyReLU", "sigmoid": "Sigmoid", "tanh": "Tanh",
          "softplus": "Softplus", "elu": "ELU", "silu": "SiLU", "gelu": "GELU"}  # fmt: skip
_ONNX = {"identity": None, "relu": "Relu", "leaky_relu": "LeakyRelu", "sigmoid": "Sigmoid", "tanh": "Tanh",
         "softplus": "Softplus", "elu": "Elu", "silu": None, "gelu": "Gelu"}  # fmt: skip
_SKLEARN = {"identity": "identity", "relu": "relu", "sigmoid": "logistic", "tanh": "tanh"}
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


def load_params(path: str | os.PathLike[str], *, sizes: Sequence[int] | None = None) -> Params:
    """Read the parameters that `save_params` wrote, bit for bit.

    A float64 file needs `jax_enable_x64`: the parameters are never rounded silently.

    Args:
      path: the file.
      sizes: the widths `n_0, ..., n_L` that the network must have; by default any.

    Returns:
      `[(W, b), ...]` in the dtype that they were saved in.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a safetensors file, is cut short, is of a format to come, or holds something else than a
        network, or one of other widths.
      ImportError: safetensors is not installed; names the extra that brings it.

    >>> import tempfile, funcnet
    >>> path = tempfile.mkdtemp() + "/weights.safetensors"
    >>> save_params(path, funcnet.init(jax.random.key(0), (4, 8, 3)))
    >>> [(W.shape, b.shape) for W, b in load_params(path, sizes=(4, 8, 3))]
    [((4, 8), (8,)), ((8, 3), (3,))]
    """
    safetensors = import_extra("safetensors")
    try:
        tensors = dict(safetensors.deserialize(Path(path).read_bytes()))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    if (got := load_metadata(path).get("format", FORMAT)) != FORMAT:
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
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    got = (params[0][0].shape[0], *(len(b) for _, b in params))
    if sizes is not None and got != tuple(sizes):
        raise ValueError(f"{path}: holds a network {'-'.join(map(str, got))}, expected {'-'.join(map(str, sizes))}")
    return params


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text kept with the parameters, `{"format": "funcnet 1", ...}`. Errors as in `load_params`.

    Args:
      path: the file.

    Returns:
      Names and text.

    >>> import tempfile, funcnet
    >>> path = tempfile.mkdtemp() + "/weights.safetensors"
    >>> save_params(path, funcnet.init(jax.random.key(0), (4, 3)), {"hidden": "relu"})
    >>> sorted(load_metadata(path).items())
    [('format', 'funcnet 1'), ('hidden', 'relu')]
    """
    safetensors = import_extra("safetensors")
    Path(path).open("rb").close()  # says what is the matter with a path better than safetensors does
    try:
        with safetensors.safe_open(os.fspath(path), framework="np") as file:
            return file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error


def from_torch(model: Any) -> Params:
    """The weights of a PyTorch network of `torch.nn.Linear` layers, `W = weight^T`.

    Args:
      model: a module, a `Sequential` say, or the state dict of one: `(n_out, n_in)` weights and `(n_out,)` biases, in
        the order of the layers, on any device. A layer without a bias gets one of zeros.

    Returns:
      `[(W, b), ...]` in the dtype that they have there, and copies: training here changes nothing there.

    Raises:
      ValueError: something else than linear layers holds weights, or they do not follow each other; named. Weights are
        float64 and `jax_enable_x64` is not set.
      ImportError: torch is not installed.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> [(W.shape, b.shape) for W, b in from_torch(model)]
    [((4, 8), (8,)), ((8, 3), (3,))]
    """
    torch = import_extra("torch", "exchange")
    if isinstance(model, torch.nn.Module):
        for name, module in model.named_modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if own and type(module) is not torch.nn.Linear:
                raise ValueError(f"{name or 'model'} is a {type(module).__name__}, expected weights in torch.nn.Linear "
                                 "alone")  # fmt: skip
        model = model.state_dict()
    params: Params = []
    for name, tensor in model.items():
        prefix, _, kind = name.rpartition(".")
        if kind == "weight" and tensor.ndim == 2:
            W = _from_tensor(torch, name, tensor).T
            bias = model.get(f"{prefix}.bias" if prefix else "bias")
            params.append((W, jnp.zeros(W.shape[1], W.dtype) if bias is None else _from_tensor(torch, name, bias)))
        elif kind != "bias":
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected the weight (n_out, n_in) or the bias "
                             "of a linear layer")  # fmt: skip
    check_params(params)
    return params


def to_torch(params: Params, *, hidden: Hidden = relu, output: Activation = identity) -> Any:
    """A `torch.nn.Sequential` that computes what `forward` does, with copies of the weights.

    Args:
      params: float16, bfloat16, float32 or float64.
      hidden: as in `forward`; a shipped one.
      output: as in `forward`; a shipped one.

    Returns:
      The module; `from_torch` gives the same weights back, bit for bit.

    Raises:
      ValueError: an activation is not a shipped one, so PyTorch's name for it is not known.
      ImportError: torch is not installed.

    >>> to_torch([(np.ones((4, 3), np.float32), np.zeros(3, np.float32))], output=activations.tanh)
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)
      (1): Tanh()
    )
    """
    torch = import_extra("torch", "exchange")
    check_params(params)
    modules = []
    for l, ((W, b), f) in enumerate(zip(params, check_activations(hidden, output, len(params)), strict=True), 1):
        layer = torch.nn.utils.skip_init(torch.nn.Linear, *W.shape)
        layer.weight = torch.nn.Parameter(_to_tensor(torch, np.asarray(W).T))
        layer.bias = torch.nn.Parameter(_to_tensor(torch, b))
        name, slope = _known(f, f"layer {l}", _TORCH, "PyTorch")
        modules += [layer, getattr(torch.nn, name)(*slope)] if name else [layer]
    return torch.nn.Sequential(*modules)


def from_sklearn(estimator: Any, *, dtype: DTypeLike = jnp.float32) -> Params:
    """The weights of a fitted `MLPClassifier` or `MLPRegressor`; `sklearn_settings` has its activations and loss.

    Args:
      estimator: fitted.
      dtype: what to round to; scikit-learn computes in the dtype of the data that it was fitted to, float64 mostly.

    Returns:
      `[(W, b), ...]`, copies.

    Raises:
      ValueError: it is not fitted or no such estimator; float64 is asked for and `jax_enable_x64` is not set.

    >>> from sklearn.neural_network import MLPClassifier
    >>> x, y = np.eye(6), np.array([0, 1, 2, 0, 1, 2])
    >>> model = MLPClassifier((5,), solver="lbfgs", max_iter=50, random_state=0).fit(x, y)
    >>> params, settings = from_sklearn(model), sklearn_settings(model)
    >>> p = np.asarray(predict(params, x.astype(np.float32), **settings))
    >>> bool(np.abs(p - model.predict_proba(x)).max() < 1e-6)
    True
    """
    if not hasattr(estimator, "coefs_") or not hasattr(estimator, "intercepts_"):
        raise ValueError(f"estimator is {estimator!r}, expected a fitted MLPClassifier or MLPRegressor")
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError("dtype is float64, which JAX would round to float32: set jax_enable_x64 first")
    pairs = zip(estimator.coefs_, estimator.intercepts_, strict=True)
    return [(jnp.array(W, dtype), jnp.array(b, dtype)) for W, b in pairs]


def sklearn_settings(estimator: Any) -> dict[str, Any]:
    """What `predict` takes besides the weights to give a fitted estimator's `predict_proba` or `predict`.

    For two classes scikit-learn has one output, the probability of the second class.

    Args:
      estimator: a fitted `MLPClassifier` or `MLPRegressor`.

    Returns:
      `{"hidden": an Activation, "loss": a Loss}`.

    Raises:
      ValueError: it is no such estimator, or one that predicts otherwise (a Poisson regression).

    >>> from sklearn.neural_network import MLPRegressor
    >>> model = MLPRegressor(hidden_layer_sizes=(5,), activation="tanh", solver="lbfgs").fit(np.eye(6), np.arange(6))
    >>> {name: value.name for name, value in sklearn_settings(model).items()}
    {'hidden': 'tanh', 'loss': 'squared_error'}
    """
    losses = {"softmax": softmax_cross_entropy, "logistic": sigmoid_cross_entropy, "identity": squared_error}
    out, hidden = getattr(estimator, "out_activation_", None), getattr(estimator, "activation", None)
    if out not in losses or hidden not in _SKLEARN.values():
        raise ValueError(f"estimator is {estimator!r} with hidden activation {hidden!r} and output {out!r}, expected a "
                         "fitted MLPClassifier, or MLPRegressor for the squared error")  # fmt: skip
    name = next(name for name, theirs in _SKLEARN.items() if theirs == hidden)
    return {"hidden": activations.from_name(name), "loss": losses[out]}


def to_sklearn(
    params: Params, *, hidden: Hidden = relu, loss: Loss = softmax_cross_entropy, classes: ArrayLike | None = None
) -> Any:
    """A fitted scikit-learn estimator that predicts what `predict` does.

    Args:
      params: the network; its outputs are logits, or values.
      hidden: relu, tanh, sigmoid or identity, one for all hidden layers.
      loss: `softmax_cross_entropy` (three classes or more), `sigmoid_cross_entropy` (two classes if there is one
        output, else as many labels) or `squared_error` (an `MLPRegressor`).
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
    layers = check_activations(hidden, identity, len(params))[:-1]
    names = {_known(f, f"layer {l}", _SKLEARN, "scikit-learn")[0] for l, f in enumerate(layers, 1)} or {"identity"}
    if len(names) > 1:
        raise ValueError(f"the hidden activations are {sorted(names)}, scikit-learn has one for all layers")
    n_in, K = params[0][0].shape[0], params[-1][0].shape[1]
    settings = {"hidden_layer_sizes": [W.shape[1] for W, _ in params[:-1]], "activation": names.pop(), "solver": "sgd"}
    weights = [np.asarray(leaf, np.promote_types(leaf.dtype, np.float32)) for leaf in jax.tree.leaves(params)]
    x = np.zeros((max(K, 2), n_in), weights[0].dtype)
    if loss is squared_error:
        estimator = neural_network.MLPRegressor(**settings)
        estimator.partial_fit(x, np.zeros((len(x), K) if K > 1 else len(x)))
    elif loss is softmax_cross_entropy or loss is sigmoid_cross_entropy:
        several = loss is sigmoid_cross_entropy and K > 1  # labels, each of them there or not
        if loss is softmax_cross_entropy and K < 3:
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
    *,
    hidden: Hidden = relu,
    output: Activation = identity,
    loss: Loss = softmax_cross_entropy,
) -> None:
    """Write the network as an ONNX model that computes `predict`, `x (N, n_0) -> p (N, K)`, for any `N`.

    Half-precision weights are written in float32, in which `predict` computes with them.

    Args:
      path: the file; an older one is replaced.
      params: the network.
      hidden: as in `forward`; a shipped one.
      output: as in `forward`; a shipped one.
      loss: as in `predict`; a shipped one.

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
    check_loss(loss)
    if loss not in SHIPPED:
        raise ValueError(f"loss is {loss.name}, expected one of {', '.join(known.name for known in SHIPPED)}")
    nodes, weights, last = [], [], "x"

    def add(operator, inputs, out, **attributes):
        nodes.append(helper.make_node(operator, inputs, [out], **attributes))
        return out

    for l, ((W, b), f) in enumerate(zip(params, check_activations(hidden, output, len(params)), strict=True), 1):
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
    *,
    hidden: Hidden = relu,
    output: Activation = identity,
    loss: Loss = softmax_cross_entropy,
) -> None:
    """Write `predict` as a StableHLO program, its weights inside, for CPU, GPU and TPU and any batch size.

    `export.deserialize(bytearray(path.read_bytes())).call(x)`, after `from jax import export`, runs it without funcnet;
    other runtimes read it, too.

    Args and errors as in `to_onnx`, but any activation and any loss will do.

    >>> import tempfile, pathlib, funcnet
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "network"
    >>> params = funcnet.init(jax.random.key(0), (4, 3))
    >>> to_stablehlo(path, params)
    >>> p = export.deserialize(bytearray(path.read_bytes())).call(jnp.ones((7, 4)))
    >>> bool(jnp.allclose(p, funcnet.predict(params, jnp.ones((7, 4)))))
    True
    """
    check_params(params)
    (n,) = export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((n, params[0][0].shape[0]), jnp.promote_types(params[0][0].dtype, jnp.float32))
    predictor = jax.jit(lambda x: predict(params, x, hidden=hidden, output=output, loss=loss))
    exported = export.export(predictor, platforms=("cpu", "cuda", "tpu"))(x)
    write_atomically(path, bytes(exported.serialize()))


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds either the old content or the new.

    Raises:
      OSError: the file cannot be written; what was there is left as it was.
    """
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
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error
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


def _known(f, where, names, library) -> tuple[Any, tuple[float, ...]]:
    """What a library calls a shipped activation, and its slope if it has one."""
    kind, _, slope = f.name.rstrip(")").partition("(")
    if kind not in names or f != activations.from_name(f.name):
        raise ValueError(f"{where}: the activation is {f.name}, of which {library} knows nothing; it knows "
                         f"{', '.join(names)}, as shipped")  # fmt: skip
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
