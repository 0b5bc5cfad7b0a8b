"""Schedules: learning rates as pure functions of the number of updates made so far.

Pass one to an optimizer in place of a number: `adam(cosine(1e-3, total_steps=1000))`.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

__all__ = ["Schedule", "constant", "cosine", "exponential", "one_cycle"]

Schedule = Callable[[Array], Array]  # step -> learning rate


def constant(lr: float) -> Schedule:
    """`lr` at every step.

    >>> float(constant(0.5)(100))
    0.5
    """
    return lambda step: jnp.full_like(_as_float(step), lr)


def exponential(lr: float, *, decay_rate: float, decay_steps: int) -> Schedule:
    """`lr * decay_rate ** (step / decay_steps)`.

    Args:
      lr: the learning rate at step 0.
      decay_rate: the factor over `decay_steps` steps.
      decay_steps: at least 1.

    Raises:
      ValueError: `decay_steps` is not positive.

    >>> round(float(exponential(0.1, decay_rate=0.5, decay_steps=100)(200)), 6)
    0.025
    """
    _check_steps("exponential", "decay_steps", decay_steps)
    return lambda step: lr * decay_rate ** (_as_float(step) / decay_steps)


def cosine(lr: float, *, total_steps: int, warmup_steps: int = 0, final_lr: float = 0.0) -> Schedule:
    """Linear warm-up from 0 to `lr`, then half a cosine down to `final_lr`.

    Loshchilov and Hutter, ICLR 2017, equation 5, without restarts.

    Args:
      lr: the peak, reached after `warmup_steps`.
      total_steps: including the warm-up; constant afterwards.
      warmup_steps: fewer than `total_steps`.
      final_lr: the learning rate at `total_steps`.

    Raises:
      ValueError: `total_steps` is not more than `warmup_steps`.

    >>> schedule = cosine(1.0, total_steps=100, warmup_steps=20)
    >>> [round(float(schedule(step)), 6) for step in (0, 10, 20, 60, 100)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    _check_steps("cosine", "total_steps", total_steps, more_than=warmup_steps)

    def schedule(step):
        step = _as_float(step)
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
      total_steps: the length of the cycle; constant afterwards.
      warmup: the fraction of the steps, between 0 and 1, that goes up.
      start_factor: the peak divided by the start.
      end_factor: the start divided by the end.

    Raises:
      ValueError: `total_steps` is not positive, or `warmup` is not between 0 and 1.

    >>> schedule = one_cycle(1.0, total_steps=100, warmup=0.5)
    >>> [round(float(schedule(step)), 6) for step in (0, 25, 50, 100)]
    [0.04, 0.52, 1.0, 4e-06]
    """
    _check_steps("one_cycle", "total_steps", total_steps)
    if not 0 < warmup < 1:
        raise ValueError(f"one_cycle: warmup is {warmup}, expected a fraction between 0 and 1")
    start, end, peak_step = lr / start_factor, lr / (start_factor * end_factor), warmup * total_steps

    def schedule(step):
        step = _as_float(step)
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


def _as_float(step) -> Array:
    return jnp.asarray(step).astype(float)  # float32, or float64 where that is enabled
