"""Optimizers: pairs of pure functions `(init, update)`, with optax's signature.

    state = optimizer.init(params)
    updates, state = optimizer.update(grads, state, params)
    params = apply_updates(params, updates)

So an optax transformation works wherever an `Optimizer` does, and vice versa. The parameters may be any tree of real
floating arrays. A learning rate is a number, a traced array (to `vmap` over), or one of `schedules`. States are in
float32 at least, updates in the dtypes of the gradients.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from funcnet.network import describe
from funcnet.schedules import Schedule

__all__ = [
    "AdamState", "AveragedState", "LearningRate", "Optimizer", "RmspropState", "SgdState", "adam", "adamw",
    "apply_updates", "averaged", "rmsprop", "sgd",
]  # fmt: skip

LearningRate = float | Array | Schedule  # a number, a traced array, or a function of the step


class Optimizer(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: `params -> state`.
      update: `(grads, state, params) -> (updates, state)`; add the updates to the parameters.

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

    def add(p, u):
        return (p.astype(jnp.promote_types(p.dtype, u.dtype)) + u).astype(p.dtype)  # rounded once

    return jax.tree.map(add, params, updates)


def check_optimizer(optimizer: Any) -> None:
    """Check that `optimizer` has an `init` and an `update`, as in optax."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(f"optimizer is {describe(optimizer)}, expected an Optimizer, e.g. adam(1e-3)")


def check_opt_state(optimizer: Optimizer, opt_state: Any, params: Any) -> None:
    """Check that the state is one of this optimizer for these parameters; a wrong one might work by accident."""
    try:
        expected = jax.eval_shape(optimizer.init, params)
    except jax.errors.JAXTypeError:  # its `init` reads values
        return
    (leaves, tree), (own_leaves, own_tree) = map(jax.tree.flatten, (opt_state, expected))
    if tree != own_tree or [*map(np.shape, leaves)] != [*map(np.shape, own_leaves)]:
        raise ValueError(
            f"state.opt_state, of type {type(opt_state).__name__}, was made by another optimizer or for other "
            "parameters: make a new state by init_state(params, optimizer)"
        )


def update_with(optimizer: Optimizer, grads: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
    """`optimizer.update` with the extra arguments that it accepts: some of optax need `value` or `value_fn`.

    >>> update_with(sgd(0.5), jnp.ones(1), sgd(0.5).init(jnp.ones(1)), jnp.ones(1), value=3.0)[0]
    Array([-0.5], dtype=float32)
    """
    parameters = inspect.signature(optimizer.update).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        extra = {name: value for name, value in extra.items() if name in parameters}
    return optimizer.update(grads, state, params, **extra)


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
      momentum: the fraction of the velocity that is kept; the number 0 stores no velocity at all.
      nesterov: look ahead along the velocity.

    >>> optimizer = sgd(0.1, momentum=0.9)
    >>> state = optimizer.init(jnp.array([0.0]))
    >>> for _ in range(2):
    ...     updates, state = optimizer.update(jnp.array([1.0]), state)
    >>> updates, state.velocity  # -0.1 (0.9 + 1)
    (Array([-0.19], dtype=float32), Array([1.9], dtype=float32))
    """
    _check_rate("sgd", lr)
    _check_part("sgd: momentum", momentum)
    plain = isinstance(momentum, (int, float)) and momentum == 0

    def init(params):
        return SgdState(_zero_steps(), None if plain else _zeros_like(params))

    def update(grads, state, params=None):
        del params
        g = jax.tree.map(wide, grads)
        if plain:
            return _scaled(g, lr, state.step, grads), SgdState(state.step + 1, None)
        velocity = jax.tree.map(lambda v, g: _like(momentum, v) * v + g, state.velocity, g)
        direction = velocity
        if nesterov:
            direction = jax.tree.map(lambda v, g: _like(momentum, v) * v + g, velocity, g)
        return _scaled(direction, lr, state.step, grads), SgdState(state.step + 1, velocity)

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

    >>> optimizer = rmsprop(0.1)
    >>> updates, state = optimizer.update(jnp.array([2.0]), optimizer.init(jnp.array([0.0])))
    >>> updates, state.square  # -0.1 * 2 / sqrt(0.4)
    (Array([-0.31623], dtype=float32), Array([0.4], dtype=float32))
    """
    _check_rate("rmsprop", lr)
    _check_part("rmsprop: decay", decay)

    def init(params):
        return RmspropState(_zero_steps(), _zeros_like(params))

    def update(grads, state, params=None):
        del params
        g = jax.tree.map(wide, grads)
        square = jax.tree.map(lambda s, g: decay * s + (1 - decay) * g * g, state.square, g)
        direction = jax.tree.map(lambda g, s: g * jax.lax.rsqrt(s + eps), g, square)
        return _scaled(direction, lr, state.step, grads), RmspropState(state.step + 1, square)

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

    >>> optimizer = adam(0.1)
    >>> updates, state = optimizer.update(jnp.array([2.0, -0.02]), optimizer.init(jnp.zeros(2)))
    >>> updates  # the first step is of length lr in every entry
    Array([-0.1,  0.1], dtype=float32)
    """
    return adamw(lr, b1, b2, eps, weight_decay=0.0)


def adamw(
    lr: LearningRate,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Any = None,
) -> Optimizer:
    """Adam with decoupled weight decay, `p <- p - lr (m' / (sqrt(s') + eps) + weight_decay p)`.

    Loshchilov and Hutter, ICLR 2019, algorithm 2. All parameters decay, also biases, except those that a mask excludes.

    Args:
      lr: the learning rate.
      b1: decay of the mean.
      b2: decay of the mean square.
      eps: keeps the denominator away from zero.
      weight_decay: the number 0 makes it `adam`, which needs no `params` in `update`.
      mask: which leaves decay: a tree of booleans, or a function from `params` to one, e.g.
        `regularizers.weights_only`; by default all.

    Raises:
      ValueError: from `update`, if there is decay but no `params`.

    >>> optimizer, params = adamw(0.1, weight_decay=0.5), jnp.array([2.0])
    >>> updates, state = optimizer.update(jnp.array([1.0]), optimizer.init(params), params)
    >>> updates  # -0.1 (1 + 0.5 * 2)
    Array([-0.2], dtype=float32)
    """
    decays = not (isinstance(weight_decay, (int, float)) and weight_decay == 0)
    name = "adamw" if decays else "adam"
    _check_rate(name, lr)
    _check_part(f"{name}: b1", b1)
    _check_part(f"{name}: b2", b2)

    def init(params):
        return AdamState(_zero_steps(), _zeros_like(params), _zeros_like(params))

    def update(grads, state, params=None):
        t = _float(state.step + 1)
        g = jax.tree.map(wide, grads)
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, g)
        square = jax.tree.map(lambda s, g: b2 * s + (1 - b2) * g * g, state.square, g)

        def direction(m, s):
            return (m / _like(1 - b1**t, m)) / (jnp.sqrt(s / _like(1 - b2**t, s)) + eps)

        updates = jax.tree.map(direction, mean, square)
        if decays:
            if params is None:
                raise ValueError("adamw: update needs params, since weights decay: update(grads, state, params)")
            chosen = mask(params) if callable(mask) else jax.tree.map(lambda _: True, params) if mask is None else mask
            updates = jax.tree.map(
                lambda u, p, m: u + _like(weight_decay, u) * p.astype(u.dtype) if m else u, updates, params, chosen
            )
        return _scaled(updates, lr, state.step, grads), AdamState(state.step + 1, mean, square)

    return Optimizer(init, update)


class AveragedState(NamedTuple):
    """The state of `averaged`."""

    inner: Any  # the state of the inner optimizer
    average: Any  # like params, float32 at least: for evaluation
    weight: Array  # (), float32: 1 - decay^t, the sum of the weights after t updates


def averaged(optimizer: Optimizer, decay: ArrayLike) -> Optimizer:
    """An optimizer that also keeps an average of the parameters; those of `k` updates ago have weight `decay^k`.

        weight <- decay weight + 1 - decay,   average <- average + (1 - decay) / weight (params - average)

    The weights sum to one from the first update on, and the initial parameters are not in the average (Adam corrects
    its means in the same way). The training is unchanged; evaluate `state.opt_state.average`. Polyak and Juditsky,
    1992, with a decay in place of `1 / step`.

    Args:
      optimizer: an `Optimizer`, or any optax transformation.
      decay: at least 0, below 1; about `1 / (1 - decay)` steps are averaged.

    Returns:
      The optimizer, whose state is an `AveragedState`; its `update` needs `params`.

    Raises:
      ValueError: the decay is out of range.

    >>> optimizer, params = averaged(sgd(1.0), 0.5), jnp.array([1.0])
    >>> state = optimizer.init(params)
    >>> for _ in range(2):
    ...     updates, state = optimizer.update(jnp.array([-3.0]), state, params)
    ...     params = apply_updates(params, updates)
    >>> params, state.average  # (4 / 2 + 7) / (1 / 2 + 1)
    (Array([7.], dtype=float32), Array([6.], dtype=float32))
    """
    _check_part("averaged: decay", decay)

    def init(params):
        average = jax.tree.map(lambda p: jnp.copy(wide(p)), params)  # a copy: the state may be donated
        return AveragedState(optimizer.init(params), average, jnp.zeros((), jnp.float32))

    def update(grads, state, params, **extra):
        updates, inner = update_with(optimizer, grads, state.inner, params, **extra)
        new = apply_updates(params, updates)
        weight = _like(decay, state.weight) * state.weight + _like(1 - decay, state.weight)
        part = _like(1 - decay, weight) / weight
        average = jax.tree.map(lambda mean, p: mean + _like(part, mean) * (wide(p) - mean), state.average, new)
        return updates, AveragedState(inner, average, weight)

    return Optimizer(init, update)


def _check_rate(name: str, lr: Any) -> None:
    if not callable(lr) and not isinstance(lr, (int, float, np.generic, np.ndarray, Array)):
        raise ValueError(f"{name}: lr is {describe(lr)}, expected a number, an array, or one of schedules")


def _check_part(name: str, value: Any) -> None:
    """Check that a number is at least 0 and below 1; a traced value is not checked."""
    if not isinstance(value, Tracer) and not 0 <= value < 1:
        raise ValueError(f"{name} is {value}, expected at least 0 and below 1")


def _float(step):
    return jnp.asarray(step).astype(float)  # float32, or float64 where that is enabled


def _zero_steps():
    return jnp.zeros((), jnp.int32)


def _zeros_like(params):
    """Zeros in float32 at least, for running means: in bfloat16 0.999 rounds to 1, in float16 1e-8 rounds to 0."""
    return jax.tree.map(lambda p: jnp.zeros_like(wide(p)), params)


def wide(leaf: Array) -> Array:
    """A leaf in the dtype of running means: float32 at least.

    Raises:
      ValueError: it is not a floating array.

    >>> wide(jnp.ones(2, jnp.bfloat16))
    Array([1., 1.], dtype=float32)
    """
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(
            f"a parameter or gradient has dtype {leaf.dtype}, expected a real floating one; optax has optimizers for "
            "complex numbers, and its partition leaves integers out"
        )
    return leaf.astype(jnp.float64 if leaf.dtype == jnp.float64 else jnp.float32)


def _like(scalar, leaf):
    """A scalar, possibly traced, in the dtype of a leaf."""
    return jnp.asarray(scalar).astype(leaf.dtype)


def _scaled(direction, lr, step, grads):
    """`-lr * direction`, leaf by leaf, in the dtypes of the gradients."""
    lr = lr(step) if callable(lr) else lr
    return jax.tree.map(lambda d, g: (-_like(lr, d) * d).astype(g.dtype), direction, grads)
