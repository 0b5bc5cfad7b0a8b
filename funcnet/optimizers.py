"""Optimizers: pairs of pure functions `(init, update)`, with optax's signature.

    state = optimizer.init(params)
    updates, state = optimizer.update(grads, state, params)
    params = apply_updates(params, updates)

So an optax transformation works wherever an `Optimizer` does, and the other way round. The parameters may be any
tree of arrays. A learning rate is a number, a traced array (to `vmap` over), or a schedule: a pure function of the
number of updates made so far. States and updates are in float32 at least; `apply_updates` converts to the parameters'
dtypes.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Schedule = Callable[[Array], Array]  # step -> learning rate
LearningRate = float | Array | Schedule  # a number, a traced array, or a function of the step


class Optimizer(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: `params -> state`.
      update: `(grads, state, params) -> (updates, state)`; the updates are to be added to the parameters.

    >>> optimizer = sgd(0.1)
    >>> state = optimizer.init(jnp.array([1.0]))
    >>> updates, state = optimizer.update(jnp.array([2.0]), state, None)
    >>> updates
    Array([-0.2], dtype=float32)
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]


def apply_updates(params: Any, updates: Any) -> Any:
    """`params + updates`, leaf by leaf, in the parameters' dtypes.

    >>> apply_updates([(jnp.array([1.0]), jnp.array([0.0]))], [(jnp.array([0.5]), jnp.array([1.0]))])
    [(Array([1.5], dtype=float32), Array([1.], dtype=float32))]
    """
    return jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)


class SgdState(NamedTuple):
    """The state of `sgd`."""

    step: Array  # (), int32: updates made so far
    velocity: Any  # like params, or None without momentum


def sgd(lr: LearningRate, momentum: float = 0.0, nesterov: bool = False) -> Optimizer:
    """Stochastic gradient descent, `p <- p - lr v` with `v <- momentum v + g`.

    With `nesterov`, `p <- p - lr (g + momentum v)`. Robbins and Monro 1951; Polyak 1964; Nesterov's as in Sutskever
    et al., ICML 2013, in the form of PyTorch and optax.

    Args:
      lr: the learning rate.
      momentum: the part of the velocity that is kept; the number 0 keeps no velocity at all.
      nesterov: look ahead along the velocity.

    Returns:
      The optimizer.

    >>> optimizer = sgd(0.1, momentum=0.9)
    >>> state = optimizer.init(jnp.array([0.0]))
    >>> for _ in range(2):
    ...     updates, state = optimizer.update(jnp.array([1.0]), state)
    >>> updates, state.velocity  # -0.1 (0.9 + 1)
    (Array([-0.19], dtype=float32), Array([1.9], dtype=float32))
    """
    plain = isinstance(momentum, (int, float)) and momentum == 0

    def init(params):
        return SgdState(_zero_steps(), None if plain else _zeros_like(params))

    def update(grads, state, params=None):
        del params
        grads = jax.tree.map(wide, grads)
        if plain:
            return _scaled(grads, lr, state.step), SgdState(state.step + 1, None)
        velocity = jax.tree.map(lambda v, g: _like(momentum, v) * v + g, state.velocity, grads)
        direction = velocity
        if nesterov:
            direction = jax.tree.map(lambda v, g: _like(momentum, v) * v + g, velocity, grads)
        return _scaled(direction, lr, state.step), SgdState(state.step + 1, velocity)

    return Optimizer(init, update)


class RmspropState(NamedTuple):
    """The state of `rmsprop`."""

    step: Array  # (), int32: updates made so far
    square: Any  # like params: running mean of g^2


def rmsprop(lr: LearningRate, decay: float = 0.9, eps: float = 1e-8) -> Optimizer:
    """RMSProp, `p <- p - lr g / sqrt(s + eps)` with `s <- decay s + (1 - decay) g^2`.

    Tieleman and Hinton, Neural Networks for Machine Learning, lecture 6.5, 2012; `eps` inside the root as in
    Goodfellow, Bengio and Courville, Deep Learning, 2016, algorithm 8.5.

    Args:
      lr: the learning rate.
      decay: of the running mean of squares.
      eps: keeps the root away from zero.

    Returns:
      The optimizer.

    >>> optimizer = rmsprop(0.1)
    >>> updates, state = optimizer.update(jnp.array([2.0]), optimizer.init(jnp.array([0.0])))
    >>> updates, state.square  # -0.1 * 2 / sqrt(0.4)
    (Array([-0.31623], dtype=float32), Array([0.4], dtype=float32))
    """

    def init(params):
        return RmspropState(_zero_steps(), _zeros_like(params))

    def update(grads, state, params=None):
        del params
        grads = jax.tree.map(wide, grads)
        square = jax.tree.map(lambda s, g: decay * s + (1 - decay) * g * g, state.square, grads)
        direction = jax.tree.map(lambda g, s: g * jax.lax.rsqrt(s + eps), grads, square)
        return _scaled(direction, lr, state.step), RmspropState(state.step + 1, square)

    return Optimizer(init, update)


class AdamState(NamedTuple):
    """The state of `adam` and `adamw`."""

    step: Array  # (), int32: updates made so far
    mean: Any  # like params: running mean of g
    square: Any  # like params: running mean of g^2


def adam(lr: LearningRate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adam, `p <- p - lr m' / (sqrt(s') + eps)`, from bias-corrected running means of `g` and `g^2`.

        m <- b1 m + (1 - b1) g,     m' = m / (1 - b1^t)
        s <- b2 s + (1 - b2) g^2,   s' = s / (1 - b2^t)

    Kingma and Ba, ICLR 2015, algorithm 1.

    Args:
      lr: the learning rate.
      b1: decay of the mean.
      b2: decay of the mean square.
      eps: keeps the denominator away from zero.

    Returns:
      The optimizer.

    >>> optimizer = adam(0.1)
    >>> updates, state = optimizer.update(jnp.array([2.0, -0.02]), optimizer.init(jnp.zeros(2)))
    >>> updates  # the first step is of length lr in every entry
    Array([-0.1,  0.1], dtype=float32)
    """
    return adamw(lr, b1, b2, eps, weight_decay=0.0)


def adamw(
    lr: LearningRate, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 1e-4
) -> Optimizer:
    """Adam with decoupled weight decay, `p <- p - lr (m' / (sqrt(s') + eps) + weight_decay p)`.

    Loshchilov and Hutter, ICLR 2019, algorithm 2. All parameters decay, biases too.

    Args:
      lr: the learning rate.
      b1: decay of the mean.
      b2: decay of the mean square.
      eps: keeps the denominator away from zero.
      weight_decay: the number 0 makes it `adam`, which needs no `params` in `update`.

    Returns:
      The optimizer.

    Raises:
      ValueError: from `update`, if there is decay but no `params`.

    >>> optimizer, params = adamw(0.1, weight_decay=0.5), jnp.array([2.0])
    >>> updates, state = optimizer.update(jnp.array([1.0]), optimizer.init(params), params)
    >>> updates  # -0.1 (1 + 0.5 * 2)
    Array([-0.2], dtype=float32)
    """
    decays = not (isinstance(weight_decay, (int, float)) and weight_decay == 0)

    def init(params):
        return AdamState(_zero_steps(), _zeros_like(params), _zeros_like(params))

    def update(grads, state, params=None):
        t = _float(state.step + 1)
        grads = jax.tree.map(wide, grads)
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, grads)
        square = jax.tree.map(lambda s, g: b2 * s + (1 - b2) * g * g, state.square, grads)

        def direction(m, s):
            return (m / _like(1 - b1**t, m)) / (jnp.sqrt(s / _like(1 - b2**t, s)) + eps)

        updates = jax.tree.map(direction, mean, square)
        if decays:
            if params is None:
                raise ValueError("adamw: update needs params, since weights decay: update(grads, state, params)")
            updates = jax.tree.map(lambda u, p: u + _like(weight_decay, u) * p.astype(u.dtype), updates, params)
        return _scaled(updates, lr, state.step), AdamState(state.step + 1, mean, square)

    return Optimizer(init, update)


def constant(lr: float) -> Schedule:
    """`lr` at every step.

    >>> float(constant(0.5)(100))
    0.5
    """
    return lambda step: jnp.full_like(_float(step), lr)


def exponential(lr: float, *, decay_rate: float, decay_steps: int) -> Schedule:
    """`lr * decay_rate ** (step / decay_steps)`.

    Args:
      lr: at step 0.
      decay_rate: the factor over each `decay_steps`.
      decay_steps: at least 1.

    Returns:
      The schedule.

    Raises:
      ValueError: `decay_steps` is not positive.

    >>> round(float(exponential(0.1, decay_rate=0.5, decay_steps=100)(200)), 6)
    0.025
    """
    _check_steps("exponential", "decay_steps", decay_steps)
    return lambda step: lr * decay_rate ** (_float(step) / decay_steps)


def cosine(lr: float, *, total_steps: int, warmup_steps: int = 0, final_lr: float = 0.0) -> Schedule:
    """Linear warm-up from 0 to `lr`, then half a cosine down to `final_lr`.

    Loshchilov and Hutter, ICLR 2017, equation 5, without restarts.

    Args:
      lr: the peak, reached after `warmup_steps`.
      total_steps: warm-up included; constant afterwards.
      warmup_steps: fewer than `total_steps`.
      final_lr: at `total_steps`.

    Returns:
      The schedule.

    Raises:
      ValueError: `total_steps` is not more than `warmup_steps`.

    >>> schedule = cosine(1.0, total_steps=100, warmup_steps=20)
    >>> [round(float(schedule(step)), 6) for step in (0, 10, 20, 60, 100)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    _check_steps("cosine", "total_steps", total_steps, more_than=warmup_steps)

    def schedule(step):
        step = _float(step)
        rising = lr * step / max(warmup_steps, 1)
        falling = _half_cosine(lr, final_lr, (step - warmup_steps) / (total_steps - warmup_steps))
        return jnp.where(step < warmup_steps, rising, falling)

    return schedule


def one_cycle(
    lr: float, *, total_steps: int, warmup: float = 0.3, start_factor: float = 25.0, end_factor: float = 1e4
) -> Schedule:
    """Half a cosine up from `lr / start_factor` to `lr`, then half a cosine down to `lr / (start_factor end_factor)`.

    Smith and Topin, 2019, with the cosine and the defaults of PyTorch and optax.

    Args:
      lr: the peak.
      total_steps: constant afterwards.
      warmup: the part of the steps, between 0 and 1, that goes up.
      start_factor: how far below the peak to start.
      end_factor: how far below the start to end.

    Returns:
      The schedule.

    Raises:
      ValueError: `total_steps` is not positive, or `warmup` not between 0 and 1.

    >>> schedule = one_cycle(1.0, total_steps=100, warmup=0.5)
    >>> [round(float(schedule(step)), 6) for step in (0, 25, 50, 100)]
    [0.04, 0.52, 1.0, 4e-06]
    """
    _check_steps("one_cycle", "total_steps", total_steps)
    if not 0 < warmup < 1:
        raise ValueError(f"one_cycle: warmup is {warmup}, expected a fraction between 0 and 1")
    start, end, peak_step = lr / start_factor, lr / (start_factor * end_factor), warmup * total_steps

    def schedule(step):
        step = _float(step)
        rising = _half_cosine(start, lr, step / peak_step)
        falling = _half_cosine(lr, end, (step - peak_step) / (total_steps - peak_step))
        return jnp.where(step < peak_step, rising, falling)

    return schedule


def _half_cosine(first, last, progress):
    """From `first` at progress 0 to `last` at progress 1 and after."""
    return last + (first - last) * (1 + jnp.cos(math.pi * jnp.clip(progress, 0.0, 1.0))) / 2


def _check_steps(schedule, name, steps, more_than=0):
    if not steps > more_than:
        raise ValueError(f"{schedule}: {name} is {steps}, expected more than {more_than}")


def _float(step):
    return jnp.asarray(step).astype(float)  # float32, or float64 where that is enabled


def _zero_steps():
    return jnp.zeros((), jnp.int32)


def _zeros_like(params):
    """Running means are kept in float32 at least: in bfloat16 0.999 is 1, in float16 1e-8 is 0."""
    return jax.tree.map(lambda p: jnp.zeros_like(wide(p)), params)


def wide(leaf: Array) -> Array:
    """A leaf in the dtype that running means are kept in: float32 at least.

    >>> wide(jnp.ones(2, jnp.bfloat16))
    Array([1., 1.], dtype=float32)
    """
    return leaf.astype(jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32)


def _like(scalar, leaf):
    """A scalar, maybe traced, in the dtype of a leaf."""
    return jnp.asarray(scalar).astype(leaf.dtype)


def _scaled(direction, lr, step):
    """`-lr * direction`, leaf by leaf."""
    lr = lr(step) if callable(lr) else lr
    return jax.tree.map(lambda d: -_like(lr, d) * d, direction)
