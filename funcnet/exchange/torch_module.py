"""The operations that a PyTorch module computes, recorded while it runs.

PyTorch reports every operation that it dispatches (`TorchDispatchMode`), also those of functions, hooks and
parametrizations. Operations that depend on the input make a chain of steps; all others make weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from funcnet import activations
from funcnet.activations import identity
from funcnet.exchange.checks import check_read, largest_error, outputs, random_inputs, read_network, shipped
from funcnet.exchange.torch_tensors import check_tensor, from_tensor
from funcnet.losses import Loss, sigmoid_cross_entropy, softmax_cross_entropy, squared_error
from funcnet.network import Network, Params

_PLAIN = ("relu", "sigmoid", "tanh", "silu")
_PASSES = {
    "detach",
    "alias",
    "clone",
    "view",
    "_unsafe_view",
    "squeeze",
    "unsqueeze",
    "_to_copy",
}  # the numbers stay the same
_ENDS = {"_softmax": "softmax", "_log_softmax": "log_softmax"}
_EXPECTED = (
    "torch.nn.Linear layers, each followed by at most one of "
    f"{', '.join(f.name.partition('(')[0] for f in activations.SHIPPED)}"
)


class Step(NamedTuple):
    """One step of a module's computation."""

    kind: str  # "linear", an activation's name, "softmax", "log_softmax", or "" for anything else
    where: str  # the module and the operation, for messages
    W: Any = None  # (n_in, n_out), of a linear step
    b: Any = None  # (n_out,), or None


def read_module(torch, model: Any, network: Network | None) -> tuple[Params, Network]:
    """The layers of a module in the order of their calls, and its network, compared with the module."""
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while wrapped := getattr(model, "_orig_mod", isinstance(model, parallel) and model.module):
        model = wrapped  # wrapped by torch.compile, or for several devices
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model is a ScriptModule, which cannot be recorded: pass the module from which it was made")
    dtype = _dtype(torch, model)
    steps, x, theirs = _run(torch, model)
    layers = [step for step in steps if step.kind == "linear"]
    read = _network_of(steps) if network is None else network
    pairs = [(layer.W, layer.W.new_zeros(layer.W.shape[1]) if layer.b is None else layer.b) for layer in layers]
    params: Params = jax.tree.map(lambda leaf: from_tensor(torch, "a weight", leaf.to(dtype)), pairs)
    check_read(params, read)
    if steps[-1].kind == "log_softmax":
        theirs = np.exp(theirs)
    computed = jax.tree.map(lambda leaf: leaf.numpy(), pairs)  # not rounded, e.g. after a parametrization
    ours = outputs(computed, read, x) if len(params[0][0]) == x.shape[1] else ()
    error = min((largest_error(o, theirs) for o in ours), default=np.inf)
    if not error <= (1e-7 if x.dtype == np.float64 else 2e-5):
        odd = next((f" ({step.where})" for step in steps if not step.kind), "")
        raise ValueError(
            "on random inputs the module gives other outputs than its layers, one after the other, with "
            f"{read}: by {error:.2g} of the largest{odd}. If it calls other activations, "
            "pass them by from_torch(model, Network(...))"
        )
    return params, read


def _network_of(steps: tuple[Step, ...]) -> Network:
    """The network of some steps: linear ones, each with at most one activation after it, and an end for the loss."""
    loss: dict[str, Loss] = {}
    if steps[-1].kind in ("softmax", "log_softmax"):
        loss, steps = {"loss": softmax_cross_entropy}, steps[:-1]
    elif steps[-1].kind == "sigmoid":
        loss, steps = {"loss": sigmoid_cross_entropy}, steps[:-1]
    elif next(step.W.shape[1] for step in reversed(steps) if step.kind == "linear") == 1:
        loss = {"loss": squared_error}  # a softmax over one output is always 1
    layers, follows = [], False
    for step in steps:
        f = identity if step.kind == "linear" else shipped(step.kind)
        if f is None or (step.kind != "linear" and not follows):
            raise ValueError(
                f"{step.where}, expected {_EXPECTED}, and a Softmax, LogSoftmax or Sigmoid at the end. Fuse BatchNorm "
                "by torch.nn.utils.fusion.fuse_linear_bn_eval; pass other activations by "
                "from_torch(model, Network(...))"
            )
        layers[len(layers) - (step.kind != "linear") :] = [f]
        follows = step.kind == "linear"
    return read_network(layers, **loss)


def _dtype(torch, model) -> Any:
    """The one dtype of a module's parameters, which must all have values."""
    parameters = dict(model.named_parameters())
    for name, tensor in parameters.items():
        check_tensor(torch, name, tensor)
    dtypes = {tensor.dtype for tensor in parameters.values()}
    if len(dtypes) != 1:
        raise ValueError(
            f"model is a {type(model).__name__} with parameters of {len(dtypes)} dtypes, "
            f"{', '.join(sorted(map(str, dtypes))) or 'none'}, expected torch.nn.Linear layers of one"
        )
    return dtypes.pop()


def _run(torch, model) -> tuple[tuple[Step, ...], np.ndarray, np.ndarray]:
    """The steps of a module on random inputs, these inputs, and the outputs for them.

    The first layer that is called fixes the width of the inputs. Only a run shows which layer that is, so try each.
    """
    first = None
    matrices = [p.shape for p in model.parameters() if p.ndim == 2]
    widths = dict.fromkeys([n_in for _, n_in in matrices] + [n_in for n_in, _ in matrices])
    for n_in in widths or [1]:
        for dtype in (torch.float64, torch.float32):  # float32 for a module that casts to it
            x = torch.from_numpy(random_inputs(n_in)).to(dtype)
            try:
                (steps, out), (_, again) = (_follow(torch, model, x, seed) for seed in (0, 1))
            except _CannotRunError as error:
                first = first or error
                continue
            theirs = out.detach().numpy()
            if not largest_error(again.detach().numpy(), theirs) <= 100 * np.finfo(theirs.dtype).eps:
                where = next((step.where for step in steps if not step.kind), f"model is a {type(model).__name__}")
                raise ValueError(
                    f"{where} and gives other outputs at every call, for the same inputs, since it draws random "
                    "numbers: expected fixed weights, e.g. their means"
                )
            return steps, x.numpy(), theirs
    raise ValueError(f"{first}; expected {_EXPECTED}") from first


class _CannotRunError(Exception):
    """A module does not accept these inputs."""


def _follow(torch, model, x, seed) -> tuple[tuple[Step, ...], Any]:
    inputs = x.clone()
    # The steps of each tensor that depends on the input; the tensor is kept, so that its id is not used again.
    chains: dict[int, tuple[Any, tuple[Step, ...]]] = {id(inputs): (inputs, ())}
    calls, decisions = [], []  # the running modules, outermost first; steps outside PyTorch

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            with self:  # the parts of an operation, which inference mode does not dispatch by itself
                result = op.decompose(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
            result = op(*args, **(kwargs or {}))
            leaves = torch.utils._pytree.tree_leaves((args, kwargs))
            before = [chains[id(leaf)][1] for leaf in leaves if id(leaf) in chains]
            if before:
                name, settings = op.overloadpacket.__name__.rstrip("_"), (*args[1:], *(kwargs or {}).values())
                tracked = [id(leaf) in chains for leaf in args]
                where = f"{calls[-1] if calls else 'model'} and computes {name}"
                after = _after(torch, name, args, settings, tracked, before, where, result)
                for leaf in torch.utils._pytree.tree_leaves(result):
                    if isinstance(leaf, torch.Tensor):
                        chains[id(leaf)] = leaf, after
                    else:
                        decisions.append(
                            Step("", f"{calls[-1] if calls else 'model'} and decides by values of its input")
                        )
            return result

    tensors = (*model.named_parameters(), *model.named_buffers())
    try:
        with _left_as_it_was(torch, model, x.dtype), torch.no_grad(), torch.autocast("cpu", enabled=False):
            for name, module in model.named_modules():
                called = f"{name or 'model'} is a {type(module).__name__}"
                module.register_forward_pre_hook(lambda *_, called=called: calls.append(called), prepend=True)
                module.register_forward_hook(lambda *_: calls.pop() and None)
            model.eval()
            torch.default_generator.manual_seed(seed)  # of the CPU only; it is restored
            state = {name: _copied(tensor, x.dtype) for name, tensor in tensors}
            with Recorder():
                out = torch.func.functional_call(model, state, (inputs,))
    except Exception as error:  # any error of the user's module
        what = str(error).strip().partition("\n")[0]
        where = calls[-1] if calls else f"model is a {type(model).__name__}"
        raise _CannotRunError(f"{where} and cannot be run on {x.shape[1]} numbers per sample: {what}") from error
    if id(out) not in chains or not out.is_floating_point():
        raise ValueError(f"model gives a {type(out).__name__}, expected one tensor that it computes from its input")
    steps = (*decisions, *chains[id(out)][1])
    if all(step.kind not in ("linear", "") for step in steps):
        raise ValueError(f"model is a {type(model).__name__} without a linear layer, expected {_EXPECTED}")
    return steps, out


def _copied(tensor, dtype) -> Any:
    return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


@contextlib.contextmanager
def _left_as_it_was(torch, model, dtype) -> Iterator[None]:
    """Restore the modules (training mode, hooks, attributes) and PyTorch's random state at the end.

    Inside the block, tensors that are neither parameters nor buffers are also copies.
    """
    before = []
    for module in model.modules():
        held = dict(module.__dict__)
        before.append((module, held, {name: value.copy() for name, value in held.items() if isinstance(value, dict)}))
    with torch.random.fork_rng(devices=[]):
        try:
            for module, held, _ in before:
                tensors = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
                module.__dict__.update({name: _copied(tensor, dtype) for name, tensor in tensors.items()})
            yield
        finally:
            for module, held, inner in before:
                module.__dict__.clear()
                module.__dict__.update(held)
                for name, copy in inner.items():
                    held[name].clear()
                    held[name].update(copy)


def _after(torch, name, args, settings, tracked, before, where, result) -> tuple[Step, ...]:
    """The steps after an operation, given those before it."""
    steps = max(before, key=lambda steps: sum(step.kind == "linear" for step in steps))
    other = (*steps, Step("", where))
    if len(before) > 1 or not isinstance(result, torch.Tensor):
        return other
    if name in _PASSES or (name in ("expand", "contiguous") and result.shape == args[0].shape):
        return steps
    if name == "addmm" and tracked == [False, True, False] and settings == args[1:]:
        b = _bias(args[0], args[2].shape[1])
        return other if b is None else (*steps, Step("linear", where, args[2], b))
    if name == "mm" and tracked == [True, False]:
        return (*steps, Step("linear", where, args[1]))
    if name == "add" and len(args) == 2 and settings == args[1:]:
        b = _bias(args[tracked.index(False)], result.shape[-1]) if False in tracked else None
        last = steps[-1] if steps else None
        if last and last.kind == "linear" and last.b is None and b is not None:
            return (*steps[:-1], last._replace(b=b))
        return other
    kind = _activation(name, settings, result.ndim)
    return (*steps, Step(kind, where)) if kind else other


def _bias(tensor, n) -> Any:
    """A bias of `n` numbers, broadcast as by an operation, or None."""
    shape = getattr(tensor, "shape", (0, 0))
    return tensor.reshape(-1).expand(n) if shape in ((), (1,), (n,), (1, 1), (1, n)) else None


def _activation(name, settings, ndim) -> str:
    """Our name for an elementwise function of PyTorch with these settings, or a softmax; "" if there is none."""
    if name in _ENDS:
        return _ENDS[name] if settings[0] in (-1, ndim - 1) else ""
    if name == "leaky_relu":
        return f"leaky_relu({float(settings[0]) if settings else 0.01})"
    if name == "gelu":
        return {(): "gelu", ("none",): "gelu", ("tanh",): "gelu_tanh"}.get(settings, "")
    if name == "softplus":  # PyTorch's is linear above its threshold, which is accurate enough from 20 on
        beta, threshold = settings or (1, 20)
        return name if beta == 1 and threshold >= 20 else ""
    if name == "elu":
        return name if all(setting == 1 for setting in settings) else ""
    return name if name in _PLAIN and not settings else ""
