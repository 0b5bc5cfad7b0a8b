"""One training run of plain SGD, as each framework's users would write it, for `scripts/benchmarks/benchmark.py`.

Every function here takes the same start, images, labels, batch size and rate and gives a `Trainer`, whose `epoch` goes
once through the images in a fresh random order. What can be done once, before training, is done outside the epoch.
JAX's frameworks get batches cut on the host, in float32: for a plain loop that was the fastest of four ways with
batches of 32, and gathering in the step with batches of 128, so that loop stands here in both. All peers but
scikit-learn leave out the ragged last batch, which would cost some of them a second compilation; funcnet does not. The
peers are in the extra `bench`, which need not be there: each is imported where it is used.
"""

import warnings
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcnet
from funcnet import Network, training

# What all of them train on, and how: `[(W, b), ...]` to start from, uint8 images `(N, n_0)`, and class ids `(N,)`.
Task = namedtuple("Task", "params x y batch_size rate seed")
# A run that can go on: `epoch()` returns when its work is done; `params()` gives `[(W, b), ...]` as they are now.
Trainer = namedtuple("Trainer", "epoch params")
Maker = Callable[[Task], Trainer]


def as_pixels(x: np.ndarray) -> np.ndarray:
    """Pixels from 0 to 1, float32."""
    return x.astype(np.float32) / np.float32(255)


def funcnet_epoch(task: Task, network=Network(), optimizer=None, **gradient) -> Trainer:
    """One program for a whole epoch."""
    optimizer = optimizer or funcnet.sgd(task.rate)
    epoch = jax.jit(training.make_epoch(optimizer, network, batch_size=task.batch_size, **gradient), donate_argnums=0)
    x, y, key = jnp.asarray(task.x), jnp.asarray(task.y), jax.random.key(task.seed)
    state = training.init_state(jax.tree.map(jnp.asarray, task.params), optimizer)

    def one_epoch():
        nonlocal state, key
        key, epoch_key = jax.random.split(key)
        state, _ = jax.block_until_ready(epoch(state, epoch_key, x, y))

    return Trainer(one_epoch, lambda: state.params)


def loop(task: Task, step, state, params, on_device: bool = False) -> Trainer:
    """`*state, loss = step(*state, x, y)` for batches cut on the host, or with all images and the `rows` of a batch."""
    rng, B = np.random.default_rng(task.seed), task.batch_size
    x, y = map(jnp.asarray if on_device else np.asarray, (as_pixels(task.x), task.y))

    def epoch():
        nonlocal state
        loss = None
        for rows in rng.permutation(len(x))[: len(x) // B * B].reshape(-1, B):
            batch = (x, y, rows.astype(np.int32)) if on_device else (x[rows], y[rows])
            *state, loss = step(*state, *batch)
        jax.block_until_ready((state, loss))

    return Trainer(epoch, lambda: params(*state))


def cross_entropy(out, y):
    """The mean loss, by optax."""
    return import_module("optax").softmax_cross_entropy_with_integer_labels(out, y).mean()


def plain_network(params, x, product=jnp.matmul):
    """A network as anyone writes it in JAX."""
    for W, b in params[:-1]:
        x = jax.nn.relu(product(x, W) + b)
    return product(x, params[-1][0]) + params[-1][1]


def bfloat16_product(x, W):
    """Factors in half precision, sums in float32: XLA's CPU has no products whose sums are half-precision too."""
    return jnp.matmul(x.astype(jnp.bfloat16), W.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


def scanned(task: Task, step, state, params, gather: bool = False) -> Trainer:
    """`*state, loss = step(*state, x, y)` in a program for an epoch: of images that are put in order, or gathered."""
    B, key = task.batch_size, jax.random.key(task.seed)
    x, y = jnp.asarray(as_pixels(task.x)), jnp.asarray(task.y)

    @partial(jax.jit, donate_argnums=0)
    def run(state, key, x, y):
        def of_batch(state, batch):
            *state, loss = step(*state, *((x[batch], y[batch]) if gather else batch))
            return tuple(state), loss

        order = jax.random.permutation(key, len(x))[: len(x) // B * B].reshape(-1, B)
        return jax.lax.scan(of_batch, state, order if gather else (x[order], y[order]))

    def epoch():
        nonlocal state, key
        key, epoch_key = jax.random.split(key)
        state, _ = jax.block_until_ready(run(state, epoch_key, x, y))

    return Trainer(epoch, lambda: params(*state))


def jax_and_optax(
    task: Task, on_device: bool = False, product=jnp.matmul, scan: bool = False, gather: bool = False
) -> Trainer:
    """A jitted step, its batch cut on the host or gathered in it; or such steps in a `lax.scan`, as in `scanned`."""
    optax = import_module("optax")
    optimizer, params = optax.sgd(task.rate), jax.tree.map(jnp.array, task.params)  # copies, since they are donated

    def step(params, opt_state, x, y, rows=None):
        x, y = (x, y) if rows is None else (x[rows], y[rows])
        loss, grads = jax.value_and_grad(lambda params: cross_entropy(plain_network(params, x, product), y))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    state, params_of = (params, optimizer.init(params)), lambda params, _: params
    if scan:
        return scanned(task, step, state, params_of, gather)
    return loop(task, jax.jit(step, donate_argnums=(0, 1)), state, params_of, on_device)


def flax_nnx(task: Task, scan: bool = False) -> Trainer:
    """`nnx.Optimizer` and `nnx.jit`, with `nnx.cached_partial` against its cost per call; or in a `lax.scan`."""
    nnx, optax = import_module("flax.nnx"), import_module("optax")
    layers = [nnx.Linear(*W.shape, rngs=nnx.Rngs(0)) for W, _ in task.params]
    for layer, (W, b) in zip(layers, task.params, strict=True):
        layer.kernel.set_value(jnp.asarray(W))
        layer.bias.set_value(jnp.asarray(b))
    model = nnx.Sequential(*[f for layer in layers for f in (layer, nnx.relu)][:-1])
    optimizer = nnx.Optimizer(model, optax.sgd(task.rate), wrt=nnx.Param)

    @partial(nnx.jit, donate_argnums=(0, 1))
    def step(model, optimizer, x, y):
        loss, grads = nnx.value_and_grad(lambda model: cross_entropy(model(x), y))(model)
        optimizer.update(model, grads)
        return (loss,)

    if scan:  # as plain pytrees, since `lax.scan` knows no objects
        graph, first = nnx.split((model, optimizer))

        def pure_step(state, x, y):
            both = nnx.merge(graph, state)
            loss, grads = nnx.value_and_grad(lambda model: cross_entropy(model(x), y))(both[0])
            both[1].update(both[0], grads)
            return nnx.state(both), loss

        def params(state):
            model = nnx.merge(graph, state)[0]
            return [(layer.kernel[...], layer.bias[...]) for layer in model.layers[::2]]

        return scanned(task, pure_step, (first,), params)
    cached_step = nnx.cached_partial(step, model, optimizer)
    return loop(task, cached_step, (), lambda: [(layer.kernel[...], layer.bias[...]) for layer in layers])


def equinox(task: Task, scan: bool = False) -> Trainer:
    """`eqx.filter_jit` around the step, or a `lax.scan` of such steps over the arrays of the model."""
    eqx, optimizer = import_module("equinox"), import_module("optax").sgd(task.rate)
    layers = [eqx.nn.Linear(*W.shape, key=jax.random.key(0)) for W, _ in task.params]
    weights = [leaf for W, b in task.params for leaf in (jnp.asarray(W.T), jnp.asarray(b))]
    layers = eqx.tree_at(lambda layers: [leaf for l in layers for leaf in (l.weight, l.bias)], layers, weights)
    model = eqx.nn.Sequential([f for layer in layers for f in (layer, eqx.nn.Lambda(jax.nn.relu))][:-1])

    def step(model, opt_state, x, y):
        loss, grads = eqx.filter_value_and_grad(lambda model: cross_entropy(jax.vmap(model)(x), y))(model)
        updates, opt_state = optimizer.update(grads, opt_state, model)
        return eqx.apply_updates(model, updates), opt_state, loss

    arrays, rest = eqx.partition(model, eqx.is_array)
    opt_state = optimizer.init(arrays)

    def params(model, _):
        return [(layer.weight.T, layer.bias) for layer in model.layers[::2]]

    if scan:

        def pure_step(arrays, opt_state, x, y):
            model, opt_state, loss = step(eqx.combine(arrays, rest), opt_state, x, y)
            return eqx.filter(model, eqx.is_array), opt_state, loss

        return scanned(task, pure_step, (arrays, opt_state), params)
    return loop(task, eqx.filter_jit(step, donate="all"), (model, opt_state), params)


def numpy_pass(params, x) -> tuple[list[np.ndarray], np.ndarray]:
    """`[a_0, ..., a_{L-1}]` and the probabilities in NumPy, in place where it helps."""
    inputs, z = [], x
    for W, b in params:
        inputs.append(np.maximum(z, 0, out=z) if inputs else x)
        z = inputs[-1] @ W
        z += b
    z -= z.max(1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(1, keepdims=True)
    return inputs, z


def numpy_by_hand(task: Task) -> Trainer:
    """The four equations in NumPy, float32, in place where it helps."""
    params = [(W.copy(), b.copy()) for W, b in task.params]
    rate, one_hot = np.float32(task.rate / task.batch_size), np.eye(len(params[-1][1]), dtype=np.float32)

    def step(x, y):
        inputs, p = numpy_pass(params, x)
        delta = p - one_hot[y]
        delta *= rate
        for (W, b), a in zip(params[::-1], inputs[::-1], strict=True):
            dW, db = a.T @ delta, delta.sum(0)
            if W is not params[0][0]:
                delta = delta @ W.T
                delta *= a > 0
            W -= dW
            b -= db
        return (None,)

    return loop(task, step, (), lambda: params)


def scikit_learn(task: Task) -> Trainer:
    """`MLPClassifier.partial_fit`, which is one epoch, in float32."""
    *hidden, classes = (len(b) for _, b in task.params)
    model = import_module("sklearn.neural_network").MLPClassifier(
        hidden, solver="sgd", alpha=0.0, batch_size=task.batch_size, learning_rate_init=task.rate, momentum=0.0,
        nesterovs_momentum=False, random_state=task.seed)  # fmt: skip
    x = as_pixels(task.x)
    model.partial_fit(x[: task.batch_size], task.y[: task.batch_size], classes=np.arange(classes))
    model.coefs_, model.intercepts_ = ([leaf.copy() for leaf in leaves] for leaves in zip(*task.params, strict=True))
    model._optimizer.params = model.coefs_ + model.intercepts_  # what its next step would set up, were it the first
    return Trainer(lambda: model.partial_fit(x, task.y), lambda: [*zip(model.coefs_, model.intercepts_, strict=True)])


def torch_network(params) -> Any:
    """The network as a `torch.nn.Sequential`."""
    torch = import_module("torch")
    layers = [torch.nn.Linear(*W.shape) for W, _ in params]
    for layer, (W, b) in zip(layers, params, strict=True):
        layer.weight.data, layer.bias.data = map(torch.from_numpy, (np.array(W.T, order="C"), np.array(b)))
    return torch.nn.Sequential(*[f for layer in layers for f in (layer, torch.nn.ReLU())][:-1])


def pytorch(task: Task, compiled: str = "", bfloat16: bool = False, graph: str = "") -> Trainer:
    """Eager, `torch.compile` of forward and loss in a mode, or a CUDA graph of a step or epoch.

    Images by `index_select`, half precision by `autocast`; float32 products on a GPU are TF32, as by default in JAX.
    """
    torch = import_module("torch")
    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    if graph and device == "cpu":
        raise ImportError("CUDA graphs need a GPU, and a PyTorch that finds it")
    torch.set_float32_matmul_precision("high" if device == "cuda" else "highest")
    model = torch_network(task.params).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=task.rate, fused=True)
    images = torch.from_numpy(as_pixels(task.x)).to(device)
    labels = torch.from_numpy(task.y.astype(np.int64)).to(device)
    generator = torch.Generator(device).manual_seed(task.seed)
    B, steps = task.batch_size, len(images) // task.batch_size

    def loss_of(x, y):
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            return torch.nn.functional.cross_entropy(model(x), y)

    if compiled:
        torch._dynamo.config.recompile_limit = 100  # by default it goes on uncompiled after eight networks
        loss_of = torch.compile(loss_of, mode=compiled)

    def step(rows):
        optimizer.zero_grad(set_to_none=True)
        loss_of(images.index_select(0, rows), labels.index_select(0, rows)).backward()
        optimizer.step()

    def order():
        return torch.randperm(len(images), generator=generator, device=device)[: steps * B].view(steps, B)

    def epoch():
        for rows in order():
            step(rows)
        if device == "cuda":
            torch.cuda.synchronize()

    def params():
        return [tuple(leaf.detach().cpu().numpy() for leaf in (m.weight.T, m.bias)) for m in model[::2]]

    if not graph:
        return Trainer(epoch, params)
    given = order() if graph == "epoch" else order()[0]  # which the graph reads
    first = [p.detach().clone() for p in model.parameters()]

    def work():
        for rows in given.view(-1, B):
            step(rows)

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # what is set up at the first call must not be part of the graph
        for _ in range(3):
            step(given.view(-1, B)[0])
    torch.cuda.current_stream().wait_stream(aside)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        work()
    with torch.no_grad():
        for p, start in zip(model.parameters(), first, strict=True):
            p.copy_(start)

    def replayed():
        for rows in [order()] if graph == "epoch" else order():
            given.copy_(rows)
            recorded.replay()
        torch.cuda.synchronize()

    return Trainer(replayed, params)


PEERS: dict[str, Maker] = {
    "jax.grad + optax": jax_and_optax, "jax.grad + optax, images on the device": partial(jax_and_optax, on_device=True),
    "Flax NNX": flax_nnx, "Equinox": equinox,
    "PyTorch, eager": pytorch, "PyTorch, compiled": partial(pytorch, compiled="default"),
    "scikit-learn": scikit_learn, "NumPy by hand": numpy_by_hand}  # fmt: skip
SCANS: dict[str, Maker] = {  # a program for an epoch, as funcnet has one
    "jax.grad + optax, lax.scan": partial(jax_and_optax, scan=True),
    "jax.grad + optax, lax.scan, gathered": partial(jax_and_optax, scan=True, gather=True),
    "Flax NNX, lax.scan": partial(flax_nnx, scan=True), "Equinox, lax.scan": partial(equinox, scan=True)}  # fmt: skip
SCANS_IN_BFLOAT16: dict[str, Maker] = {
    f"{name}, bfloat16": partial(jax_and_optax, scan=True, gather="gathered" in name, product=bfloat16_product)
    for name in list(SCANS)[:2]}  # fmt: skip
ON_GPU: dict[str, Maker] = {
    "PyTorch, CUDA graph of a step": partial(pytorch, graph="step"),
    "PyTorch, CUDA graph of an epoch": partial(pytorch, graph="epoch"),
    'PyTorch, torch.compile("reduce-overhead")': partial(pytorch, compiled="reduce-overhead")}  # fmt: skip
PEERS_IN_BFLOAT16: dict[str, Maker] = {
    "jax.grad + optax, bfloat16": partial(jax_and_optax, on_device=True, product=bfloat16_product),
    "PyTorch, eager, bfloat16": partial(pytorch, bfloat16=True),
    "PyTorch, compiled, bfloat16": partial(pytorch, compiled="default", bfloat16=True)}  # fmt: skip


def by_rows(rows, max_norm, tensordot) -> dict[str, Callable[..., Any]]:
    """Norms and clipping as anyone writes them, from the samples' gradients, a list that `rows(...)` gives."""

    def norms_of(gradients):
        return sum((g.reshape(len(g), -1) ** 2).sum(1) for g in gradients) ** 0.5

    def clipped(*args):
        gradients = rows(*args)
        factor = (max_norm / norms_of(gradients)).clip(max=1)
        return [tensordot(factor, g, 1) / len(g) for g in gradients]

    return {"norms": lambda *args: norms_of(rows(*args)), "clipped": clipped, "rows": rows}


def per_sample(params, x, y, max_norm) -> dict[str, Callable[[], Any]]:
    """Per-sample gradients, norms and clipping by `torch.func.vmap(grad)`, and by Opacus's hooks and ghost norms."""
    if not find_spec("torch"):
        return {}
    torch, model = import_module("torch"), torch_network(params)
    cross_entropy = torch.nn.functional.cross_entropy
    images, labels = torch.from_numpy(np.array(x)), torch.from_numpy(np.array(y, np.int64))
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss_of(weights, image, label):
        return cross_entropy(torch.func.functional_call(model, weights, (image[None],)), label[None])

    gradients_of = torch.func.vmap(torch.func.grad(loss_of), (None, 0, 0))
    by_torch = by_rows(lambda: list(gradients_of(weights, images, labels).values()), max_norm, torch.tensordot)
    by_torch = {f"{name}: torch.func vmap(grad)": run for name, run in by_torch.items()}
    if not find_spec("opacus"):
        return by_torch
    opacus = import_module("opacus.grad_sample")
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # inputs need no gradient here
    hooked = opacus.GradSampleModule(torch_network(params))
    ghost = opacus.GradSampleModuleFastGradientClipping(
        torch_network(params), max_grad_norm=max_norm, use_ghost_clipping=True)  # fmt: skip

    def after_backward(model):
        model.zero_grad()
        cross_entropy(model(images), labels).backward()
        return model

    def ghost_clipped():
        ghost.zero_grad()
        losses = cross_entropy(ghost(images), labels, reduction="none")
        losses.mean().backward(retain_graph=True)
        ghost.zero_grad()
        ghost.disable_hooks()
        (ghost.get_clipping_coef() * losses).mean().backward()
        ghost.enable_hooks()
        return [p.grad for p in ghost.parameters()]

    return by_torch | {
        "norms: Opacus, ghost": lambda: after_backward(ghost).get_norm_sample(),
        "clipped: Opacus, ghost": ghost_clipped,
        "rows: Opacus, hooks": lambda: [p.grad_sample for p in after_backward(hooked).parameters()]}  # fmt: skip


def predictions(params, x: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Probabilities of the same network for the same samples, from others."""
    hosted = [(np.asarray(W), np.asarray(b)) for W, b in params]
    by_numpy = {"NumPy by hand": lambda: numpy_pass(hosted, x)[1]}
    if not find_spec("torch"):
        return by_numpy
    torch = import_module("torch")
    model = torch.nn.Sequential(*torch_network(params), torch.nn.Softmax(-1)).eval()
    images = torch.from_numpy(np.array(x))
    run = torch.inference_mode()(lambda model: model(images))
    return by_numpy | {"PyTorch, eager": partial(run, model), "PyTorch, compiled": partial(run, torch.compile(model))}
