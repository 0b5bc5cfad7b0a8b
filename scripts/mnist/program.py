"""The program of a run, from its settings: a network, an optimizer, a first state, and pure functions."""

import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from mnist.data import Data
from mnist.processes import agreed
from mnist.settings import LARGEST, NO_DISTORTION, Config

from funcnet import Network, Params, activations, evaluation, init, optimizers, products, schedules, sharding, training
from funcnet.distortions import distort, scaled
from funcnet.regularizers import dropout_masks, limit_weights, virtual_adversarial


class Program(NamedTuple):
    """A run as functions, for one network, an ensemble, or a network on a mesh."""

    network: Network
    state: training.TrainState
    epoch: Callable[..., Any]  # (state, key, strength, x, y) -> (state, metrics)
    feed: Callable[[Array], tuple[Any, Any]]  # the epoch's key -> its x and y, on their devices
    weights: Callable[[training.TrainState], Params]  # the weights to evaluate and save
    members: Callable[[Params], list[Params]]  # the weights of each network
    logits: Callable[[Params, ArrayLike], Array]  # (weights, inputs) -> (N, K), of all networks together
    place: Callable[[Any], Any]  # puts data for evaluation on their devices
    replay: Callable[..., Any]  # (state, key, strength) -> the first step whose loss is not finite, the state before it
    shardings: Any = None  # of the state, if there is a mesh


def decided(config: Config) -> Config:
    """`--compute-dtype auto` decided, the same for all processes: bfloat16 if it is clearly faster."""
    if config.compute_dtype != "auto":
        return config
    return replace(config, compute_dtype="bfloat16" if agreed(products.bfloat16_is_faster()) else "float32")


def build(config: Config, data: Data, key: Array) -> Program:
    """The program of a configuration: for one network, for one over a mesh, or for an ensemble."""
    train = data.parts["train"]
    pixels, samples = train.images.shape[1], len(train.images)
    config = replace(config, batch_size=batch_size_for(config, samples))
    on_host = train.inputs, data.targets
    compute_dtype = None if config.compute_dtype == "float32" else config.compute_dtype
    network = Network(activations.from_name(config.activation), compute_dtype=compute_dtype)
    steps = -(-samples // config.batch_size)
    if config.epochs * steps > LARGEST:
        raise ValueError(
            f"--epochs is {config.epochs}, expected at most {LARGEST // steps}: each has {steps} steps, which are "
            "counted in 32 bits"
        )
    optimizer = make_optimizer(config, steps_per_epoch=steps)
    check_memory(config, data, optimizer)

    def settings(strength) -> dict[str, Any]:
        regularized = {"transform": deformation(config, pixels, strength), "augment": augment, "masks": masks}
        return regularized | {"accumulate": config.accumulate}

    augment = partial(virtual_adversarial, radius=config.vat_radius) if config.vat_radius else None
    dropout = partial(dropout_masks, rate=config.dropout, input_rate=config.input_dropout)
    masks = dropout if config.dropout or config.input_dropout else None

    def step(strength):
        return training.make_step(optimizer, network, **settings(strength))

    def epoch(state, key, strength, x, y):
        make = partial(training.make_epoch, optimizer, network, batch_size=config.batch_size)
        return make(**settings(strength))(state, key, x, y)

    def start(key):
        return training.init_state(init(key, (pixels, *config.hidden_sizes, data.classes)), optimizer)

    def weights(state):
        return state.opt_state.average if config.average else state.params

    def logits(params, x):
        return evaluation.forward_in_batches(params, x, network)

    def replay(state, key, strength, inputs=train.inputs):
        batches = {"batch_size": config.batch_size}
        return training.first_nonfinite_step(step(strength), state, key, inputs, data.targets, **batches)

    one = Program(network, start(key), epoch, lambda _: on_host, weights, lambda params: [params], logits,
                  jax.device_put, replay)  # fmt: skip
    if config.mesh:
        return over_mesh(config, one, step, on_host)
    on_device = jax.device_put(on_host)
    one = one._replace(feed=lambda _: on_device)
    return one if config.ensemble == 1 else ensemble_of(config.ensemble, start, key, one, train.inputs)


def batch_size_for(config: Config, samples: int) -> int:
    """The batch size of the settings, but not more than all samples need: the rest would be fillers."""
    if config.accumulate > samples:
        raise ValueError(f"--accumulate is {config.accumulate}, expected at most the {samples:,} training images")
    shares = sharding.make_mesh(config.mesh).shape["data"] if config.mesh else 1
    parts = config.accumulate * shares
    if config.batch_size % parts:
        raise ValueError(
            f"--batch-size is {config.batch_size}, expected a multiple of {parts}: --accumulate "
            f"{config.accumulate} times the {shares} of --mesh {config.mesh}"
        )
    return min(config.batch_size, -(-samples // parts) * parts)


def check_memory(config: Config, data: Data, optimizer: optimizers.Optimizer) -> None:
    """Refuse settings that need more memory than there is, before any of it is allocated."""
    sizes = (data.parts["train"].images.shape[1], *config.hidden_sizes, data.classes)
    layer = [(jax.ShapeDtypeStruct((1, 1), np.float32), jax.ShapeDtypeStruct((1,), np.float32))]
    kept = jax.tree.leaves(jax.eval_shape(partial(training.init_state, optimizer=optimizer), layer))
    copies = sum(leaf.ndim == 2 for leaf in kept)  # the weights, and the optimizer's state for each
    one = 4 * copies * sum((n + 1) * m for n, m in pairwise(sizes))
    views = config.views * len(data.parts["test" if config.test else "validation"].labels) * data.classes * 4
    first = " ".join(map(str, config.hidden_sizes[:9]))
    needs = {
        f"--hidden-sizes {first}: the weights and the optimizer's state": 2 * one * config.ensemble,
        f"--views {config.views}: the networks' outputs": views if config.views > 1 else 0,
    }
    for what, needed in needs.items():
        if needed > memory():
            raise ValueError(f"{what} take {needed:,} bytes, and there are {memory():,}")


def memory() -> int:
    """The bytes of memory of a device, or of this machine or container if the device is its CPU."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        return limit
    limits = [sys.maxsize]
    with suppress(AttributeError, OSError, ValueError):  # not on every system
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # "max" is not a number
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def ensemble_of(networks: int, start, key: Array, one: Program, inputs: np.ndarray) -> Program:
    """Several networks in one program, each with its own weights, order of the samples, and perhaps images."""

    def epoch(state, key, strength, x, y):
        def of_member(state, key, own_x=None):
            return one.epoch(state, key, strength, x if own_x is None else own_x, y)

        keys = jax.random.split(key, networks)
        return training.for_each(of_member)(state, keys, *((x,) if x.ndim == 3 else ()))

    @jax.jit
    def logits(params, x):
        if x.ndim == 3:
            return evaluation.ensemble(jax.lax.map(lambda member: one.logits(*member), (params, x)))
        return evaluation.ensemble(jax.lax.map(lambda params: one.logits(params, x), params))

    def members(tree):
        return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(networks)]

    def replay(state, key, strength):
        keys, own = jax.random.split(key, networks), inputs if inputs.ndim == 3 else [inputs] * networks
        steps = [one.replay(*of, strength, x)[0] for *of, x in zip(members(state), keys, own, strict=True)]
        return min((at for at in steps if at is not None), default=None), state

    state = jax.vmap(start)(jax.random.split(key, networks))
    return one._replace(state=state, epoch=epoch, members=members, logits=logits, replay=replay)


def over_mesh(config: Config, one: Program, step, on_host) -> Program:
    """The same steps on the same batches, distributed over the devices of a mesh."""
    mesh = sharding.make_mesh(config.mesh)
    if mesh.size > 1 and not hasattr(jax, "set_mesh") and math.isfinite(config.checkpoint_every):
        raise ValueError(
            f"--mesh {config.mesh}: orbax needs a newer jax than {jax.__version__} for checkpoints of "
            "several devices; run without any by --checkpoint-every inf"
        )
    shardings = sharding.state_shardings(one.state, mesh)
    everywhere, rows = sharding.replicated(mesh), NamedSharding(mesh, PartitionSpec("data"))
    place = partial(sharding.put, shardings=everywhere)

    def spread(key, x):
        x = evaluation.scale_pixels(key, x)
        return x if len(x) % mesh.shape["data"] else jax.lax.with_sharding_constraint(x, rows)

    def logits(params, x):
        return evaluation.forward_in_batches(params, x, one.network, transform=spread)

    spread_out = one._replace(
        state=sharding.put(one.state, shardings),
        weights=jax.jit(one.weights, out_shardings=everywhere),
        logits=jax.jit(logits, out_shardings=everywhere),
        place=place,
        shardings=shardings,
    )
    if jax.process_count() > 1:
        spread_out = spread_out._replace(replay=lambda state, key, strength: (None, state))  # one process alone cannot
    if mesh.size == 1:  # nothing to distribute: the data stay on the device
        on_device = place(on_host)
        return spread_out._replace(feed=lambda _: on_device)

    def epoch(state, key, strength, x, y):
        return training.make_prebatched_epoch(step(strength), samples=len(on_host[1]))(state, key, x, y)

    def feed(key):
        return sharding.shard_batches(key, *on_host, batch_size=config.batch_size, mesh=mesh)

    return spread_out._replace(epoch=epoch, feed=feed)


def compiled(program: Program, key: Array) -> Program:
    """The program with its epoch compiled; its argument `state` is donated."""
    outputs = (program.shardings, None) if program.shardings else None
    epoch = jax.jit(program.epoch, donate_argnums=0, out_shardings=outputs)
    return program._replace(epoch=epoch.lower(program.state, key, np.float32(1), *program.feed(key)).compile())


def make_optimizer(config: Config, steps_per_epoch: int) -> optimizers.Optimizer:
    """The update rule, with its schedule and its wrappers."""
    lr = config.lr
    if config.schedule == "cosine" and config.epochs > 0:
        warmup = steps_per_epoch if config.epochs > 1 else 0
        lr = schedules.cosine(lr, total_steps=config.epochs * steps_per_epoch, warmup_steps=warmup)
    settings = {"sgd": {"momentum": config.momentum}, "adamw": {"weight_decay": config.weight_decay}}
    optimizer = getattr(optimizers, config.optimizer)(lr, **settings.get(config.optimizer, {}))
    if config.weight_limit:
        optimizer = limit_weights(optimizer, config.weight_limit)
    return optimizers.averaged(optimizer, config.average) if config.average else optimizer


def deformation(config: Config, pixels: int, strength: Any) -> evaluation.Transform | None:
    """The deformations for images of `pixels` pixels, or None."""
    if config.distortion == NO_DISTORTION:
        return None
    side = math.isqrt(pixels)
    return partial(distort, amounts=scaled(config.distortion, strength), image_shape=(side, side))


def logits_over_views(config: Config, program: Program, params: Params, x: Array, key: Array) -> Array:
    """The outputs for several deformed views of each image, combined as those of an ensemble."""
    half = deformation(config, x.shape[-1], 0.5) or evaluation.scale_pixels

    @jax.jit
    def view(key, x):  # if each network has its own images, all are deformed in the same way
        return half(key, x) if x.ndim == 2 else jax.lax.map(partial(half, key), x)

    keys = jax.random.split(key, config.views)
    return evaluation.ensemble(jnp.stack([program.logits(params, view(key, x)) for key in keys]))
