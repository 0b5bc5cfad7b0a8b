"""One training run of plain SGD, as each framework's users would write it, for `scripts/benchmark.py`.

Every function here takes the same start, images, labels, batch size and rate and gives a `Trainer`, whose `epoch` goes
once through the images in a fresh random order. What can be done once, before training, is done outside the epoch.
JAX's frameworks get batches cut on the host, in float32: for a plain loop that was the fastest of four ways
with batches of 32, and gathering in the step with batches of 128, so that loop stands here in both.
All peers but scikit-learn leave out the ragged last batch, which would cost some of them a second compilation; funcnet
does not.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false
# The peers are in the extra `bench`, which need not be there, and some of their types do not fit their use.

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import funcnet
from funcnet import training


class Trainer(NamedTuple):
    """A run that can go on."""

    epoch: Callable[[], Any]  # returns when its work is done
    params: Callable[[], Any]  # [(W, b), ...] as they are now


class Task(NamedTuple):
    """What all of them train on, and how."""

    params: list[tuple[np.ndarray, np.ndarray]]  # the start
    x: np.ndarray  # (N, n_0) uint8
    y: np.ndarray  # (N,) class ids
    batch_size: int
    rate: float
    seed: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """The widths."""
        return (self.params[0][0].shape[0], *(W.shape[1] for W, _ in self.params))


def batches(rng, task: Task) -> np.ndarray:
    """A random order of the images in full batches, `(S, B)`."""
    steps = len(task.x) // task.batch_size
    return rng.permutation(len(task.x))[: steps * task.batch_size].reshape(steps, task.batch_size)


def as_pixels(x: np.ndarray) -> np.ndarray:
    """Pixels from 0 to 1, float32."""
    return x.astype(np.float32) / np.float32(255)


# funcnet itself.


def funcnet_epoch(task: Task, compute_dtype=None, optimizer=None, **gradient) -> Trainer:
    """One program for a whole epoch."""
    optimizer = optimizer or funcnet.sgd(task.rate)
    make = partial(training.make_epoch, optimizer, batch_size=task.batch_size, compute_dtype=compute_dtype)
    epoch = jax.jit(make(**gradient), donate_argnums=0)
    x, y = jnp.asarray(task.x), jnp.asarray(task.y)
    run: dict[str, Any] = {
        "state": training.init_state(jax.tree.map(jnp.asarray, task.params), optimizer),
        "key": jax.random.key(task.seed),
    }

    def one_epoch():
        run["key"], key = jax.random.split(run["key"])
        run["state"], _ = epoch(run["state"], key, x, y)
        jax.block_until_ready(run["state"])

    return Trainer(one_epoch, lambda: run["state"].params)


def funcnet_with_optax(task: Task) -> Trainer:
    """Our epoch around the gradient of autodiff and the update of optax: what the loop costs, and what the rest."""
    import optax

    by_jax = jax.value_and_grad(funcnet.objective)
    return funcnet_epoch(task, optimizer=optax.sgd(task.rate), value_and_gradient=by_jax)


# Frameworks.


def plain_network(params, x):
    """A network as anyone writes it in JAX."""
    for W, b in params[:-1]:
        x = jax.nn.relu(x @ W + b)
    W, b = params[-1]
    return x @ W + b


def plain_network_in_bfloat16(params, x):
    """The same with the factors of all products in half precision and their sums in float32.

    All of it in bfloat16 would be slower: XLA's CPU has no half-precision products with half-precision sums.
    """

    def product(x, W):
        return jnp.matmul(x.astype(jnp.bfloat16), W.astype(jnp.bfloat16), preferred_element_type=jnp.float32)

    for W, b in params[:-1]:
        x = jax.nn.relu(product(x, W) + b)
    W, b = params[-1]
    return product(x, W) + b


def jax_and_optax(task: Task, on_device: bool = False, network=plain_network) -> Trainer:
    """A jitted step in a Python loop; a batch is cut on the host, or gathered in the step from images on the device."""
    import optax

    optimizer = optax.sgd(task.rate)

    def loss_of(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(network(params, x), y).mean()

    def update(params, opt_state, x, y):
        loss, grads = jax.value_and_grad(loss_of)(params, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    step = jax.jit(update, donate_argnums=(0, 1))
    gather_and_step = jax.jit(
        lambda params, opt_state, x, y, rows: update(params, opt_state, x[rows], y[rows]), donate_argnums=(0, 1)
    )
    params = jax.tree.map(jnp.asarray, task.params)
    run = {"params": params, "opt_state": optimizer.init(params)}
    rng, x, y = np.random.default_rng(task.seed), as_pixels(task.x), task.y
    if on_device:
        x, y = jnp.asarray(x), jnp.asarray(y)

    def epoch():
        params, opt_state = run["params"], run["opt_state"]
        for rows in batches(rng, task):
            if on_device:
                params, opt_state, _ = gather_and_step(params, opt_state, x, y, rows.astype(np.int32))
            else:
                params, opt_state, _ = step(params, opt_state, x[rows], y[rows])
        run.update(params=params, opt_state=jax.block_until_ready(opt_state))
        jax.block_until_ready(params)

    return Trainer(epoch, lambda: run["params"])


def flax_nnx(task: Task) -> Trainer:
    """`nnx.Optimizer` and `nnx.jit`, with `nnx.cached_partial` against its cost per call."""
    import optax
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs):
            pairs = zip(task.sizes[:-1], task.sizes[1:], strict=True)
            self.layers = nnx.List([nnx.Linear(n_in, n_out, rngs=rngs) for n_in, n_out in pairs])

        def __call__(self, x):
            for layer in self.layers[:-1]:
                x = nnx.relu(layer(x))
            return self.layers[-1](x)

    model = Network(nnx.Rngs(0))
    for layer, (W, b) in zip(model.layers, task.params, strict=True):
        layer.kernel.set_value(jnp.asarray(W))
        layer.bias.set_value(jnp.asarray(b))
    optimizer = nnx.Optimizer(model, optax.sgd(task.rate), wrt=nnx.Param)

    @partial(nnx.jit, donate_argnums=(0, 1))
    def step(model, optimizer, x, y):
        def loss_of(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        loss, grads = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, grads)
        return loss

    cached_step = nnx.cached_partial(step, model, optimizer)
    x, rng = as_pixels(task.x), np.random.default_rng(task.seed)

    def epoch():
        for rows in batches(rng, task):
            cached_step(x[rows], task.y[rows])
        jax.block_until_ready(nnx.state(model))

    return Trainer(epoch, lambda: [(layer.kernel[...], layer.bias[...]) for layer in model.layers])


def equinox(task: Task) -> Trainer:
    """`eqx.filter_jit` around the step."""
    import equinox as eqx
    import optax

    class Network(eqx.Module):
        layers: list

        def __call__(self, x):
            for layer in self.layers[:-1]:
                x = jax.nn.relu(layer(x))
            return self.layers[-1](x)

    keys = jax.random.split(jax.random.key(0), len(task.params))
    pairs = zip(task.sizes[:-1], task.sizes[1:], keys, strict=True)
    model = Network([eqx.nn.Linear(n_in, n_out, key=key) for n_in, n_out, key in pairs])
    weights = [leaf for W, b in task.params for leaf in (jnp.asarray(W.T), jnp.asarray(b))]
    model = eqx.tree_at(lambda m: [leaf for layer in m.layers for leaf in (layer.weight, layer.bias)], model, weights)
    optimizer = optax.sgd(task.rate)

    @eqx.filter_jit(donate="all")
    def step(model, opt_state, x, y):
        def loss_of(model):
            return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), y).mean()

        loss, grads = eqx.filter_value_and_grad(loss_of)(model)
        updates, opt_state = optimizer.update(grads, opt_state, model)
        return eqx.apply_updates(model, updates), opt_state, loss

    run = {"model": model, "opt_state": optimizer.init(eqx.filter(model, eqx.is_array))}
    x, rng = as_pixels(task.x), np.random.default_rng(task.seed)

    def epoch():
        model, opt_state = run["model"], run["opt_state"]
        for rows in batches(rng, task):
            model, opt_state, _ = step(model, opt_state, x[rows], task.y[rows])
        run.update(model=jax.block_until_ready(model), opt_state=opt_state)

    return Trainer(epoch, lambda: [(layer.weight.T, layer.bias) for layer in run["model"].layers])


def torch_network(params) -> Any:
    """The network as a `torch.nn.Sequential`."""
    import torch

    layers = []
    for W, b in params:
        layer = torch.nn.Linear(*W.shape)
        layer.weight.data = torch.from_numpy(np.array(W.T, order="C"))
        layer.bias.data = torch.from_numpy(np.array(b))
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def pytorch(task: Task, compiled: bool = False, bfloat16: bool = False) -> Trainer:
    """Eager, or `torch.compile` around forward and loss; `SGD(fused=True)`, images gathered by `index_select`.

    In half precision by `torch.autocast`.
    """
    import torch
    from torch.nn.functional import cross_entropy

    model = torch_network(task.params)
    optimizer = torch.optim.SGD(model.parameters(), lr=task.rate, fused=True)
    images, labels = torch.from_numpy(as_pixels(task.x)), torch.from_numpy(task.y.astype(np.int64))
    generator = torch.Generator().manual_seed(task.seed)
    steps = len(task.x) // task.batch_size

    def loss_of(x, y):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return cross_entropy(model(x), y)

    loss_of = torch.compile(loss_of) if compiled else loss_of

    def epoch():
        order = torch.randperm(len(images), generator=generator)[: steps * task.batch_size]
        for rows in order.split(task.batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss_of(images.index_select(0, rows), labels.index_select(0, rows)).backward()
            optimizer.step()

    def params():
        return [(m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in model if hasattr(m, "weight")]

    return Trainer(epoch, params)


def scikit_learn(task: Task) -> Trainer:
    """`MLPClassifier.partial_fit`, which is one epoch, in float32."""
    from sklearn.neural_network import MLPClassifier

    model = MLPClassifier(task.sizes[1:-1], solver="sgd", alpha=0.0, batch_size=task.batch_size, momentum=0.0,
                          learning_rate_init=task.rate, nesterovs_momentum=False, random_state=task.seed)  # fmt: skip
    x = as_pixels(task.x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.partial_fit(x[: task.batch_size], task.y[: task.batch_size], classes=np.arange(task.sizes[-1]))
    model.coefs_ = [W.copy() for W, _ in task.params]
    model.intercepts_ = [b.copy() for _, b in task.params]
    model._optimizer.params = model.coefs_ + model.intercepts_  # what its next step would set up, were it the first

    return Trainer(
        lambda: model.partial_fit(x, task.y), lambda: list(zip(model.coefs_, model.intercepts_, strict=True))
    )


def numpy_by_hand(task: Task) -> Trainer:
    """The four equations in NumPy, float32, in place where it helps."""
    params = [(W.copy(), b.copy()) for W, b in task.params]
    x, rng = as_pixels(task.x), np.random.default_rng(task.seed)
    rate, one_hot = np.float32(task.rate / task.batch_size), np.eye(task.sizes[-1], dtype=np.float32)

    def epoch():
        for rows in batches(rng, task):
            activations = [x[rows]]
            for W, b in params[:-1]:
                z = activations[-1] @ W
                z += b
                activations.append(np.maximum(z, 0, out=z))
            W, b = params[-1]
            z = activations[-1] @ W
            z += b
            z -= z.max(1, keepdims=True)
            np.exp(z, out=z)
            z /= z.sum(1, keepdims=True)
            delta = z - one_hot[task.y[rows]]
            delta *= rate
            for (W, b), a in zip(params[::-1], activations[::-1], strict=True):
                dW, db = a.T @ delta, delta.sum(0)
                if W is not params[0][0]:
                    delta = delta @ W.T
                    delta *= a > 0
                W -= dW
                b -= db

    return Trainer(epoch, lambda: params)


PEERS: dict[str, Callable[[Task], Trainer]] = {
    "jax.grad + optax": jax_and_optax,
    "jax.grad + optax, images on the device": partial(jax_and_optax, on_device=True),
    "Flax NNX": flax_nnx,
    "Equinox": equinox,
    "PyTorch, eager": pytorch,
    "PyTorch, compiled": partial(pytorch, compiled=True),
    "scikit-learn": scikit_learn,
    "NumPy by hand": numpy_by_hand,
}
PEERS_IN_BFLOAT16: dict[str, Callable[[Task], Trainer]] = {
    "jax.grad + optax, bfloat16": partial(jax_and_optax, on_device=True, network=plain_network_in_bfloat16),
    "PyTorch, eager, bfloat16": partial(pytorch, bfloat16=True),
    "PyTorch, compiled, bfloat16": partial(pytorch, compiled=True, bfloat16=True),
}


# Parts of a training run.


def per_sample(params, x, y, max_norm) -> dict[str, Callable[[], Any]]:
    """Per-sample gradients, norms and clipping by `torch.func.vmap(grad)`, and by Opacus's hooks and ghost norms."""
    try:
        import torch
        from torch.func import functional_call, grad, vmap
        from torch.nn.functional import cross_entropy
    except ImportError:
        return {}
    model = torch_network(params)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    images, labels = torch.from_numpy(np.array(x)), torch.from_numpy(np.array(y, np.int64))

    def loss_of(weights, image, label):
        return cross_entropy(functional_call(model, weights, (image[None],)), label[None])

    rows = vmap(grad(loss_of), (None, 0, 0))

    def norms_of(gradients):
        return torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()

    def norms():
        return norms_of(rows(weights, images, labels))

    def clipped():
        gradients = rows(weights, images, labels)
        factor = (max_norm / norms_of(gradients)).clamp(max=1)
        return {name: torch.tensordot(factor, g, 1) / len(images) for name, g in gradients.items()}

    candidates = {
        "norms: torch.func vmap(grad)": norms,
        "clipped: torch.func vmap(grad)": clipped,
        "rows: torch.func vmap(grad)": lambda: rows(weights, images, labels),
    }
    try:
        from opacus import GradSampleModule
        from opacus.grad_sample import GradSampleModuleFastGradientClipping as Ghost
    except ImportError:
        return candidates
    hooked = GradSampleModule(torch_network(params))
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # inputs need no gradient here
    ghost = Ghost(torch_network(params), max_grad_norm=max_norm, use_ghost_clipping=True)

    def opacus_rows():
        hooked.zero_grad()
        cross_entropy(hooked(images), labels).backward()
        return [p.grad_sample for p in hooked.parameters()]

    def ghost_norms():
        ghost.zero_grad()
        cross_entropy(ghost(images), labels).backward()
        return ghost.get_norm_sample()

    def ghost_clipped():
        ghost.zero_grad()
        ghost.enable_hooks()
        losses = cross_entropy(ghost(images), labels, reduction="none")
        losses.mean().backward(retain_graph=True)
        ghost.zero_grad()
        ghost.disable_hooks()
        (ghost.get_clipping_coef() * losses).mean().backward()
        ghost.enable_hooks()
        return [p.grad for p in ghost.parameters()]

    return candidates | {
        "norms: Opacus, ghost": ghost_norms,
        "clipped: Opacus, ghost": ghost_clipped,
        "rows: Opacus, hooks": opacus_rows,
    }


def predictions(params, x: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Probabilities of the same network for the same samples, from others."""
    hosted = [(np.asarray(W), np.asarray(b)) for W, b in params]

    def by_numpy():
        a = x
        for W, b in hosted[:-1]:
            a = np.maximum(a @ W + b, 0)
        z = a @ hosted[-1][0] + hosted[-1][1]
        p = np.exp(z - z.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)

    candidates = {"NumPy by hand": by_numpy}
    try:
        import torch
    except ImportError:
        return candidates
    model = torch.nn.Sequential(*torch_network(params), torch.nn.Softmax(-1)).eval()
    fast, images = torch.compile(model), torch.from_numpy(np.array(x))

    def of_torch(model):
        with torch.inference_mode():
            return model(images)

    return candidates | {"PyTorch, eager": lambda: of_torch(model), "PyTorch, compiled": lambda: of_torch(fast)}
