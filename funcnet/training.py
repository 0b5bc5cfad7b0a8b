"""Training: an epoch as one pure function, for the caller to jit, donate, vmap or shard.

    optimizer = adam(1e-3)
    epoch = jax.jit(make_epoch(optimizer, batch_size=128), donate_argnums=0)
    state = init_state(init(key, (784, 128, 10)), optimizer)
    state, metrics = epoch(state, key, x, y)

The images stay on the device as uint8; a `lax.scan` gathers and converts batch after batch, in random order. An
incomplete last batch is filled up with samples of weight 0, so every step has the same shape and a run is traced once.
Apply `jit` to the whole epoch, not to a step: then nothing returns to Python between two batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jax.typing import ArrayLike

from funcnet.arguments import check_key, check_sample_weight, summed
from funcnet.batches import Batches, plan_batches, shuffle
from funcnet.calls import as_array
from funcnet.evaluation import Metrics, Transform, accuracies, check_count, checked_data, scale_pixels
from funcnet.evaluation import evaluate as evaluate  # as: exported from here, where users look for it
from funcnet.mlp import forward, value_and_backward
from funcnet.network import Network, Params, describe
from funcnet.optimizers import Optimizer, apply_updates, check_opt_state, check_optimizer, update_with

__all__ = [
    "Batches", "TrainState", "accumulated", "evaluate", "first_nonfinite_step", "for_each", "init_state",
    "make_epoch", "make_prebatched_epoch", "make_step", "plan_batches", "shuffle",
]  # fmt: skip

Augment = Callable[..., tuple[Array, Array, Array | None]]  # (key, params, x, y, weights, network) -> x, y, weights
MakeMasks = Callable[[Array, Params, tuple[int, ...]], Any]  # (key, params, batch_shape) -> masks

# On a CPU one network of 2.5 MB keeps two cores and their caches busy. Networks of 0.1 to 1.2 MB took 0.77 to 0.99 of
# their time in turn when there were four at a time; eight at a time were no faster (`benchmark.py sweep` times four).
SIDE_BY_SIDE, SMALL = 4, 1.25e6


class TrainState(NamedTuple):
    """The values that a step changes."""

    params: Params
    opt_state: Any
    step: Array  # (), int32: updates made so far


def init_state(params: Params, optimizer: Optimizer) -> TrainState:
    """The state before the first step, as copies, so that donating the state deletes no array of the caller.

    Args:
      params: the network; copied.
      optimizer: an `Optimizer`, or any optax transformation.

    Returns:
      A `TrainState` at step 0.

    >>> import funcnet
    >>> state = init_state(funcnet.init(jax.random.key(0), (4, 3)), funcnet.optimizers.sgd(0.1))
    >>> int(state.step)
    0
    """
    check_optimizer(optimizer)
    state = TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))
    # Copy each leaf separately: an optimizer's state may hold the parameters, and two layers the same array.
    return jax.tree.map(lambda a: jnp.array(a) if isinstance(a, (Array, np.ndarray)) else a, state)


def make_step(
    optimizer: Optimizer,
    network: Network = Network(),
    *,
    transform: Transform | None = None,
    augment: Augment | None = None,
    masks: MakeMasks | None = None,
    value_and_gradient: Callable[..., tuple[Array, Params]] = value_and_backward,
    accumulate: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """One update from one batch, for your own training loop. Arguments as in `make_epoch`.

    Returns:
      `step(state, key, x, y, sample_weight=None) -> (state, metrics)`, pure and not jitted; the metrics are those of
      the parameters before the update.

    Raises:
      ValueError: as in `make_epoch`.

    >>> import funcnet
    >>> optimizer = funcnet.sgd(0.1)
    >>> step = jax.jit(make_step(optimizer), donate_argnums=0)
    >>> state = init_state(funcnet.init(jax.random.key(0), (4, 3)), optimizer)
    >>> for x, y in 2 * [(jnp.ones((5, 4)), jnp.array([0, 1, 2, 0, 1]))]:
    ...     state, metrics = step(state, jax.random.key(1), x, y)
    >>> int(state.step)
    2
    """
    check_optimizer(optimizer)
    check_count("accumulate", accumulate)
    functions = {"transform": transform, "augment": augment, "masks": masks, "value_and_gradient": value_and_gradient}
    for name, function in functions.items():
        if not callable(function) and (function is not None or name == "value_and_gradient"):
            raise ValueError(f"{name} is {describe(function)}, expected a function")
    transform = transform or scale_pixels

    def one_pass(params, key, x, y, sample_weight=None):
        transform_key, masks_key, augment_key = jax.random.split(key, 3)
        x = transform(transform_key, x)
        if augment:
            x, y, sample_weight = augment(augment_key, params, x, y, sample_weight, network)
        drawn = masks and masks(masks_key, params, x.shape[:-1])
        value, grads = value_and_gradient(params, x, y, network, masks=drawn, sample_weight=sample_weight)

        # The same forward pass as in the gradient: under jit, XLA computes it once.
        out = forward(params, x, network, masks=drawn)
        return grads, Metrics(value, *accuracies(out, y, network, sample_weight))

    passes = one_pass if accumulate == 1 else accumulated(one_pass, accumulate)

    def step(state, key, x, y, sample_weight=None):
        check_key(key)
        if not hasattr(state, "opt_state"):
            raise ValueError(f"state is {describe(state)}, expected a TrainState: init_state(params, optimizer)")
        check_opt_state(optimizer, state.opt_state, state.params)
        x, y = as_array("x", x), as_array("y", y)
        if sample_weight is not None:
            sample_weight = jnp.asarray(as_array("sample_weight", sample_weight))
        grads, metrics = passes(state.params, key, x, y, sample_weight)
        updates, opt_state = update_with(
            optimizer,
            grads,
            state.opt_state,
            state.params,
            value=metrics.loss,
            grad=grads,
            value_fn=lambda params: passes(params, key, x, y, sample_weight)[1].loss,
        )
        return TrainState(apply_updates(state.params, updates), opt_state, state.step + 1), metrics

    return step


def accumulated(one_pass: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """The means that `one_pass` computes over a batch, one part after the other, in the memory of one part.

    The mean over a batch is the mean of those over its parts, each weighted by its share of the sample weights. Each
    part has its own random key.

    Args:
      one_pass: `(params, key, x, y, sample_weight) -> ` a tree of means over the samples.
      parts: the number of parts; the batch size is a multiple of it.

    Returns:
      A function of the same arguments and, up to rounding and random draws, with the same result.

    Raises:
      ValueError: from the function, if the batch cannot be cut into equal parts.

    >>> mean = accumulated(lambda params, key, x, y, w: jnp.average(x, weights=w), 2)
    >>> mean(None, jax.random.key(0), jnp.arange(4.0), jnp.zeros(4), jnp.array([1.0, 1.0, 1.0, 0.0]))
    Array(1., dtype=float32)
    """

    def all_parts(params, key, x, y, sample_weight=None):
        if len(x) % parts:
            raise ValueError(f"a batch has {len(x)} samples, expected a multiple of {parts}, the number of its parts")
        weights = jnp.ones(len(x), jnp.float32) if sample_weight is None else summed(sample_weight.astype(float))[0]

        def cut(a):  # strided: if the batch is sharded, no sample moves to another device
            return jnp.swapaxes(a.reshape(-1, parts, *a.shape[1:]), 0, 1)

        def add(total, part):
            key, x, y, w = part
            share = w.sum() / weights.sum()
            w = jnp.where(w.sum() > 0, w, 1)  # a part without weight would be 0 / 0
            mean = one_pass(params, key, x, y, w)
            return jax.tree.map(lambda t, m: t + share.astype(m.dtype) * m, total, mean), None

        rows = jax.random.split(key, parts), cut(x), cut(y), cut(weights)
        first = jax.tree.map(lambda a: a[0], rows)
        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(one_pass, params, *first))
        return jax.lax.scan(add, nothing, rows)[0]

    return all_parts


def make_epoch(
    optimizer: Optimizer,
    network: Network = Network(),
    *,
    batch_size: int,
    transform: Transform | None = None,
    augment: Augment | None = None,
    masks: MakeMasks | None = None,
    value_and_gradient: Callable[..., tuple[Array, Params]] = value_and_backward,
    accumulate: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """A whole epoch as one pure function, `epoch(state, key, x, y, sample_weight=None) -> (state, metrics)`.

    Args:
      optimizer: an `Optimizer`, or an optax transformation, except those that need more than a gradient and the loss:
        `lookahead` (pairs of parameters), `contrib.dpsgd` (a gradient per sample), `contrib.sophia` (a second loss).
      network: the activations, the loss, and the dtype of products.
      batch_size: samples per step; the last batch is filled up with samples of weight 0.
      transform: `(key, x) -> x`, converts each batch to a floating one on the device; by default `scale_pixels`.
      augment: `(key, params, x, y, sample_weight, network) -> (x, y, sample_weight)`, replaces each batch, e.g.
        `partial(virtual_adversarial, radius=2.0)`; by default none. The metrics are then of the new batch.
      masks: `(key, params, batch_shape) -> masks`, e.g. `partial(dropout_masks, rate=0.5)`; by default none.
      value_and_gradient: by default the hand-written one; called like `value_and_backward`.
      accumulate: the number of parts of a batch, computed one by one in the memory of one part; see `accumulated`.

    Returns:
      The epoch: `state` is a `TrainState`, `key` a JAX random key, `x` `(N, ...)`, `y` `(N,)` or `(N, K)`. The data are
      arguments because an array in a closure would become a constant of the program. `sample_weight` `(N,)` weighs the
      samples of a batch against each other, as in `objective`; a batch of weight 0 changes nothing. The metrics are
      means over the epoch, those of each batch from before its update. Jit it once:
      `jax.jit(epoch, donate_argnums=0)`.

    Raises:
      ValueError: the batch size is below 1, or an argument is not an optimizer or function; from the epoch: `x` and `y`
        differ in length or are empty, the state is one of another optimizer, or `objective` raises an error. A class id
        out of range raises an error only outside jit; see `check_labels`.

    >>> import funcnet
    >>> optimizer = funcnet.optimizers.sgd(0.1)
    >>> epoch = jax.jit(make_epoch(optimizer, batch_size=2), donate_argnums=0)
    >>> state = init_state(funcnet.init(jax.random.key(0), (4, 3)), optimizer)
    >>> state, metrics = epoch(state, jax.random.key(1), jnp.ones((5, 4)), jnp.array([0, 1, 2, 0, 1]))
    >>> int(state.step)
    3
    """
    check_count("batch_size", batch_size)
    step = make_step(
        optimizer,
        network,
        transform=transform,
        augment=augment,
        masks=masks,
        value_and_gradient=value_and_gradient,
        accumulate=accumulate,
    )

    def epoch(state, key, x, y, sample_weight: ArrayLike | None = None):
        check_key(key)
        x, y = checked_data(state.params, x, y, network)
        x, y, n = jnp.asarray(x), jnp.asarray(y), len(x)
        # The smallest batch that holds all samples if they are few, still a multiple of its parts.
        plan = _weighed(plan_batches(key, n, min(batch_size, -(-n // accumulate) * accumulate)), sample_weight, n)

        def of_batch(state, batch):
            return step(state, batch.keys, _take(x, batch.indices), _take(y, batch.indices), batch.weights)

        return _scan(of_batch if sample_weight is None else _if_weighed(of_batch), n, state, plan)

    return epoch


def _weighed(plan: Batches, sample_weight: ArrayLike | None, n: int) -> Batches:
    """The plan with the weights of the samples, if they have any."""
    if sample_weight is None:
        return plan
    sample_weight = jnp.asarray(as_array("sample_weight", sample_weight))
    check_sample_weight(sample_weight, (n,))
    weights = _take(summed(sample_weight.astype(float))[0], plan.indices)
    return plan._replace(weights=weights if plan.weights is None else weights * plan.weights.astype(float))


def _if_weighed(of_batch):
    """`of_batch`, except that a batch whose weights sum to 0 does not change the state."""

    def of_weighed_batch(state, batch):
        weighed = batch.weights.sum() != 0
        new, metrics = of_batch(state, batch._replace(weights=jnp.where(weighed, batch.weights, 1)))
        kept = jax.tree.map(lambda new, old: jnp.where(weighed, new, old), new, state)
        return kept, jax.tree.map(lambda mean: jnp.where(weighed, mean, 0), metrics)

    return of_weighed_batch


def make_prebatched_epoch(
    step: Callable[..., tuple[TrainState, Metrics]], *, samples: int
) -> Callable[[TrainState, Array, Array, Array], tuple[TrainState, Metrics]]:
    """An epoch over batches from `sharding.shard_batches`, so that no sample is gathered on the device.

    Args:
      step: from `make_step`.
      samples: the number of samples in the epoch; the last batch may be filled up.

    Returns:
      `epoch(state, key, x, y) -> (state, metrics)`, like that of `make_epoch` with the same key, but with `x` of shape
      `(S, B, ...)` and `y` `(S, B)` or `(S, B, K)`.

    Raises:
      ValueError: from the epoch, if the number of batches is not that of `samples`.

    >>> import funcnet
    >>> optimizer = funcnet.sgd(0.1)
    >>> epoch = jax.jit(make_prebatched_epoch(make_step(optimizer), samples=5))
    >>> state = init_state(funcnet.init(jax.random.key(0), (4, 3)), optimizer)
    >>> state, metrics = epoch(state, jax.random.key(1), jnp.ones((3, 2, 4)), jnp.zeros((3, 2), jnp.int32))
    >>> int(state.step)
    3
    """

    def epoch(state, key, x, y):
        steps, batch_size = y.shape[:2]
        if steps != -(-samples // batch_size) or x.shape[:2] != y.shape[:2]:
            raise ValueError(
                f"x is {x.shape} and y {y.shape}, expected {-(-samples // batch_size)} batches of "
                f"{batch_size} in both, for {samples} samples"
            )

        def of_batch(state, batch, x, y):
            return step(state, batch.keys, x, y, batch.weights)

        return _scan(of_batch, samples, state, plan_batches(key, samples, batch_size), x, y)

    return epoch


def for_each(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` for several networks in one program: by `vmap`, or on a CPU in turn, small networks four at a time.

    The program is compiled for the device that its arguments are on, whatever JAX's default device is.

    Args:
      fn: any function of arrays, such as an epoch.

    Returns:
      The function for arguments with one more axis in front, with one entry for each network.

    >>> import funcnet
    >>> params = for_each(lambda key: funcnet.init(key, (4, 3)))(jax.random.split(jax.random.key(0), 5))
    >>> params[0][0].shape
    (5, 4, 3)
    """

    def few_at_a_time(*args):
        leaves = jax.tree.leaves(args)
        n, size = len(leaves[0]), sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        together = SIDE_BY_SIDE if size <= n * SMALL and n % SIDE_BY_SIDE == 0 else None
        return jax.lax.map(lambda member: fn(*member), args, batch_size=together)

    return lambda *args: jax.lax.platform_dependent(*args, cpu=few_at_a_time, default=jax.vmap(fn))


def _scan(step, n, state, plan, *data) -> tuple[TrainState, Metrics]:
    """A step for each row of the plan and of the data; the metrics are means over all `n` samples, by weight."""
    total = n if plan.weights is None else plan.weights.sum()

    def counted(state, row):
        batch, *rest = row
        state, metrics = step(state, batch, *rest)
        share = jnp.asarray((len(batch.indices) if batch.weights is None else batch.weights.sum()) / total)
        means, as_metrics = ravel_pytree(metrics)  # one vector: a GPU needs a kernel for each array that a step writes
        return state, (share.astype(means.dtype) * means, Partial(as_metrics))

    state, (parts, as_metrics) = jax.lax.scan(counted, state, (plan, *data))
    return state, as_metrics(parts.sum(0))


def first_nonfinite_step(
    step: Callable[..., tuple[TrainState, Metrics]],
    state: TrainState,
    key: Array,
    x: Array,
    y: Array,
    *,
    batch_size: int,
    sample_weight: ArrayLike | None = None,
) -> tuple[int | None, TrainState]:
    """Replay an epoch step by step, up to the first step whose loss is not finite.

    An epoch is a pure function of its arguments, so the same arguments repeat the failure.

    Args:
      step: from `make_step`, with the arguments that the epoch's `make_epoch` had.
      state: at the start of the epoch.
      key: that of the epoch.
      x: that of the epoch.
      y: that of the epoch.
      batch_size: that of the epoch.
      sample_weight: that of the epoch.

    Returns:
      `(i, state)`: the number of the step within the epoch, from 0, or `None` if every loss is finite; and the last
      state whose loss was finite, or the first state if none was.

    >>> import funcnet
    >>> step = make_step(funcnet.sgd(0.1))
    >>> state = init_state(funcnet.init(jax.random.key(0), (4, 3)), funcnet.sgd(0.1))
    >>> x, y = jnp.full((6, 4), jnp.nan), jnp.zeros(6, jnp.int32)
    >>> first_nonfinite_step(step, state, jax.random.key(1), x, y, batch_size=2)[0]
    0
    """
    step = jax.jit(step)
    batches = _weighed(plan_batches(key, len(x), batch_size), sample_weight, len(x))
    x, y = jnp.asarray(x), jnp.asarray(y)
    good = state
    for i in range(len(batches.indices)):
        row = jax.tree.map(lambda rows, i=i: rows[i], batches)
        if sample_weight is not None and not row.weights.any():
            continue
        new, metrics = step(state, row.keys, _take(x, row.indices), _take(y, row.indices), row.weights)
        if not jnp.isfinite(metrics.loss):
            return i, good
        good, state = state, new
    return None, good


def _take(a, indices):
    return a.at[indices].get(mode="promise_in_bounds")
