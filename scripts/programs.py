"""What a configuration of `train_mnist.py` amounts to: where to start, and pure functions."""

import math
import timeit
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from processes import agreed
from recipes import NO_DISTORTION, Config
from timing import call, compiled

from funcnet import activations, init, optimizers, sharding, training
from funcnet.distortions import distort, scaled, upright
from funcnet.mlp import Params, product
from funcnet.regularizers import averaged, dropout_masks, max_norm, virtual_adversarial


class Program(NamedTuple):
    """What a configuration amounts to: where to start, and pure functions; for a committee, with an axis in front."""

    state: training.TrainState
    step: Callable[..., Any]  # strength of the deformations -> step of one network, as from `make_step`
    epoch: Callable[..., Any]  # (state, key, strength, x, y) -> (state, metrics)
    feed: Callable[[Array], tuple[Any, Any]]  # the epoch's key -> its x and y, where they are needed
    weights: Callable[[training.TrainState], Params]  # what is evaluated and saved
    logits: Callable[[Params, ArrayLike], Array]  # (weights, x as `prepared`) -> (N, K), of the whole committee
    place: Callable[[Any], Any]  # puts what is to be evaluated where it is needed
    shardings: Any = None  # of the state, if there is a mesh


def decided(config: Config) -> Config:
    """`--compute-dtype auto` made one of the two, for all processes the same: bfloat16 where it is clearly faster."""
    if config.compute_dtype != "auto":
        return config
    return replace(config, compute_dtype="bfloat16" if agreed(bfloat16_is_faster()) else "float32")


def bfloat16_is_faster() -> bool:
    """Whether products of it are worth while here; some processors imitate it, at a fraction of the speed."""
    seconds = seconds_of_products("float32", "bfloat16")
    return seconds["bfloat16"] < 0.9 * seconds["float32"]


def seconds_of_products(*dtypes: str) -> dict[str, float]:
    """What a product with a layer's weights takes here in each dtype: the best of twenty, taken in turn."""
    a, W = jnp.ones((256, 1024)), jnp.ones((1024, 1024))
    multiply = {dtype: call(compiled(partial(product, "...i,ij->...j", dtype=dtype), a, W), a, W) for dtype in dtypes}
    rounds = [{dtype: timeit.timeit(run, number=1) for dtype, run in multiply.items()} for _ in range(20)]
    return {dtype: min(seconds[dtype] for seconds in rounds) for dtype in dtypes}


def build(config: Config, key: Array, sizes: tuple[int, ...], data: tuple[Any, Any]) -> Program:
    """The program of a configuration: for one network, for one over a mesh, or for a committee.

    `data` are images as `prepared`, and class ids or targets.
    """
    optimizer = make_optimizer(config, steps_per_epoch=-(-len(data[1]) // config.batch_size))
    network = {"hidden": activations.from_name(config.activation), "compute_dtype": config.compute_dtype}

    def settings(strength) -> dict[str, Any]:
        transform = make_transform(config, sizes[0], strength)
        regularized = {"transform": transform, "augment": make_augment(config), "masks": make_masks(config)}
        return regularized | network | {"accumulate": config.accumulate}

    def step(strength):
        return training.make_step(optimizer, **settings(strength))

    def epoch(state, key, strength, x, y):
        return training.make_epoch(optimizer, batch_size=config.batch_size, **settings(strength))(state, key, x, y)

    def start(key):
        return training.init_state(init(key, sizes), optimizer)

    def weights(state):
        return state.opt_state.average if config.average else state.params

    def logits(params, x):
        return training.outputs(params, x, **network)

    one = Program(start(key), step, epoch, lambda _: data, weights, logits, jax.device_put)
    if config.mesh:
        return over_mesh(config, one, network, data)
    on_device = jax.device_put(data)
    one = one._replace(feed=lambda _: on_device)
    return one if config.committee == 1 else committee_of(config.committee, start, key, one)


def committee_of(networks: int, start: Callable[[Array], training.TrainState], key: Array, one: Program) -> Program:
    """Several networks in one program: each has its own weights, its own order of the samples, maybe its own images."""

    def epoch(state, key, strength, x, y):
        def of_member(state, key, own_x=None):
            return one.epoch(state, key, strength, x if own_x is None else own_x, y)

        keys = jax.random.split(key, networks)
        return for_each(of_member)(state, keys, *((x,) if x.ndim == 3 else ()))

    @jax.jit
    def logits(params, x):
        if x.ndim == 3:
            return training.committee(jax.lax.map(lambda member: one.logits(*member), (params, x)))
        return training.committee(jax.lax.map(lambda params: one.logits(params, x), params))

    return one._replace(state=jax.vmap(start)(jax.random.split(key, networks)), epoch=epoch, logits=logits)


def for_each(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` for each member of a committee in one program: all at once, but on a CPU, which one keeps busy, in turn."""
    if jax.default_backend() == "cpu":
        return lambda *args: jax.lax.map(lambda member: fn(*member), args)
    return jax.vmap(fn)


def over_mesh(config: Config, one: Program, network: dict[str, Any], data: tuple[Any, Any]) -> Program:
    """The same steps on the same batches, spread over the devices of a mesh."""
    mesh = sharding.make_mesh(config.mesh)
    parts = config.accumulate * mesh.shape["data"]
    if config.batch_size % parts:
        raise ValueError(f"--batch-size is {config.batch_size}, expected a multiple of {parts}: of --accumulate "
                         f"{config.accumulate} times the {mesh.shape['data']} of --mesh {config.mesh}")  # fmt: skip
    if mesh.size > 1 and not hasattr(jax, "set_mesh") and math.isfinite(config.checkpoint_every):
        raise ValueError(f"--mesh {config.mesh}: orbax needs a newer jax than {jax.__version__} for checkpoints of "
                         "several devices; --checkpoint-every inf goes without")  # fmt: skip
    shardings = sharding.state_shardings(one.state, mesh)
    everywhere, rows = sharding.replicated(mesh), NamedSharding(mesh, PartitionSpec("data"))
    place = partial(sharding.put, shardings=everywhere)

    def spread(key, x):
        x = training.scale_pixels(key, x)
        return x if len(x) % mesh.shape["data"] else jax.lax.with_sharding_constraint(x, rows)

    spread_out = one._replace(
        state=sharding.put(one.state, shardings),
        weights=jax.jit(one.weights, out_shardings=everywhere),
        logits=jax.jit(partial(training.outputs, transform=spread, **network), out_shardings=everywhere),
        place=place,
        shardings=shardings,
    )
    if mesh.size == 1:  # there is nothing to share out: the data stay where they are used
        on_device = place(data)
        return spread_out._replace(feed=lambda _: on_device)

    def epoch(state, key, strength, x, y):
        return training.make_dealt_epoch(one.step(strength), samples=len(data[1]))(state, key, x, y)

    def feed(key):
        return sharding.deal(key, *data, batch_size=config.batch_size, mesh=mesh)

    return spread_out._replace(epoch=epoch, feed=feed)


def make_optimizer(config: Config, steps_per_epoch: int) -> optimizers.Optimizer:
    """The update rule, with its schedule and what is wrapped around it."""
    lr = config.lr
    if config.schedule == "cosine" and config.epochs > 0:
        warmup = steps_per_epoch if config.epochs > 1 else 0
        lr = optimizers.cosine(lr, total_steps=config.epochs * steps_per_epoch, warmup_steps=warmup)
    settings = {"sgd": {"momentum": config.momentum}, "adamw": {"weight_decay": config.weight_decay}}
    optimizer = getattr(optimizers, config.optimizer)(lr, **settings.get(config.optimizer, {}))
    if config.max_norm:
        optimizer = max_norm(optimizer, config.max_norm)
    return averaged(optimizer, config.average) if config.average else optimizer


def prepared(config: Config, x: np.ndarray) -> np.ndarray:
    """The images as the networks get to see them, `(N, n_0)`, or `(M, N, n_0)` if each of a committee has its own."""
    side = math.isqrt(x.shape[-1])
    sets = [
        np.asarray(upright(jnp.asarray(x), width=width or None, image_shape=(side, side))) for width in config.upright
    ]
    return np.stack(sets) if len(sets) > 1 else sets[0] if sets else x


def make_transform(config: Config, pixels: int, strength: Any) -> training.Transform | None:
    """Deformations, if there are any."""
    if config.distortion == NO_DISTORTION:
        return None
    side = math.isqrt(pixels)
    return partial(distort, amounts=scaled(config.distortion, strength), image_shape=(side, side))


def make_augment(config: Config) -> training.Augment | None:
    """Virtual adversaries, if there are any."""
    return partial(virtual_adversarial, radius=config.vat_radius) if config.vat_radius else None


def make_masks(config: Config) -> training.MakeMasks | None:
    """Dropout, if there is any."""
    if config.dropout == config.input_dropout == 0:
        return None
    return partial(dropout_masks, rate=config.dropout, input_rate=config.input_dropout)
