"""Schedules step by step against optax, and settings that make no sense."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnet import schedules

SCHEDULES = {
    "constant": (schedules.constant(0.3), optax.constant_schedule(0.3)),
    "exponential": (
        schedules.exponential(0.3, decay_rate=0.5, decay_steps=7),
        optax.exponential_decay(0.3, 7, 0.5),
    ),
    "cosine": (schedules.cosine(0.3, total_steps=40), optax.cosine_decay_schedule(0.3, 40)),
    "warm-up": (
        schedules.cosine(0.3, total_steps=40, warmup_steps=10, final_lr=0.03),
        optax.warmup_cosine_decay_schedule(0.0, 0.3, 10, 40, 0.03),
    ),
    "one cycle": (schedules.one_cycle(0.3, total_steps=40), optax.cosine_onecycle_schedule(40, 0.3)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_equal_optax(name):
    ours, theirs = SCHEDULES[name]
    for step in range(50):
        value = ours(jnp.asarray(step, jnp.int32))
        assert value.shape == ()
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            expected = theirs(step)
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.cosine(1, total_steps=5, warmup_steps=5), "cosine: total_steps is 5, expected more than 5"),
        (lambda: schedules.exponential(1, decay_rate=0.5, decay_steps=0), "exponential: decay_steps is 0"),
        (lambda: schedules.one_cycle(1, total_steps=0), "one_cycle: total_steps is 0, expected more than 0"),
        (lambda: schedules.one_cycle(1, total_steps=9, warmup=1.5), "one_cycle: warmup is 1.5, expected a fraction"),
    ],
)
def test_settings_that_make_no_sense_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
