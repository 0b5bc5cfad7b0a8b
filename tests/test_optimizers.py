"""Optimizers step by step against optax, and each in the other's place; averages of parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

import funcnet
from funcnet import optimizers, schedules, training

PAIRS = {
    "sgd": (optimizers.sgd(0.1), optax.sgd(0.1)),
    "momentum": (optimizers.sgd(0.1, 0.9), optax.sgd(0.1, 0.9)),
    "nesterov": (optimizers.sgd(0.1, 0.9, nesterov=True), optax.sgd(0.1, 0.9, nesterov=True)),
    "rmsprop": (optimizers.rmsprop(1e-2), optax.rmsprop(1e-2)),
    "adam": (optimizers.adam(1e-2), optax.adam(1e-2)),
    "adam, other constants": (optimizers.adam(1e-2, 0.5, 0.9, 1e-3), optax.adam(1e-2, 0.5, 0.9, 1e-3)),
    "adamw": (optimizers.adamw(1e-2, weight_decay=0.1), optax.adamw(1e-2, weight_decay=0.1)),
    "scheduled": (
        optimizers.adam(schedules.cosine(1e-2, total_steps=20)),
        optax.adam(optax.cosine_decay_schedule(1e-2, 20)),
    ),
    "rmsprop, scheduled": (
        optimizers.rmsprop(schedules.cosine(1e-2, total_steps=20)),
        optax.rmsprop(optax.cosine_decay_schedule(1e-2, 20)),
    ),
    "sgd, scheduled": (
        optimizers.sgd(schedules.cosine(1e-2, total_steps=20)),
        optax.sgd(optax.cosine_decay_schedule(1e-2, 20)),
    ),
    "momentum, scheduled": (
        optimizers.sgd(schedules.cosine(1e-2, total_steps=20), 0.9),
        optax.sgd(optax.cosine_decay_schedule(1e-2, 20), 0.9),
    ),
}


@pytest.fixture(autouse=True)
def promotion_as_optax_needs_it():
    """Optax relies on implicit promotion; ours is run strictly in the other files."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 6)).astype(np.float32), rng.integers(0, 4, 32).astype(np.int32)
    return oracle.network(0, (6, 9, 4), np.float32), x, y


apply_updates = jax.jit(optimizers.apply_updates)


def steps(named, problem, n):
    """The updates that the same `n` gradients make each of the optimizers do, and where they lead: one program for all.

    Fed back, the smallest difference would grow from step to step.
    """
    params, x, y = problem

    @jax.jit
    def step(grads, ends):
        done = {}
        for name, optimizer in named.items():
            params, state = ends[name]
            updates, state = optimizer.update(grads, state, params)
            done[name] = updates, (optimizers.apply_updates(params, updates), state)
        return {name: updates for name, (updates, _) in done.items()}, {name: end for name, (_, end) in done.items()}

    ends = jax.jit(lambda params: {name: (params, optimizer.init(params)) for name, optimizer in named.items()})(params)
    seen = {name: [] for name in named}
    for i in range(n):
        grads = funcnet.backward(jax.tree.map(lambda p, i=i: p * (1 + i / n), params), x, y)
        updates, ends = step(grads, ends)
        for name in named:
            seen[name].append(jax.tree.map(np.asarray, (updates[name], ends[name][0])))
    return seen


@pytest.fixture(scope="module")
def walks(problem):
    """Those of all pairs, alone and each in a chain of optax's."""
    both = {(name, i): optimizer for name, pair in PAIRS.items() for i, optimizer in enumerate(pair)}
    chains = {key: optax.chain(optax.clip_by_global_norm(0.1), optimizer) for key, optimizer in both.items()}
    with jax.numpy_dtype_promotion("standard"):
        return steps(both, problem, 20), steps(chains, problem, 5)


@pytest.mark.parametrize("name", PAIRS)
def test_equals_optax_step_by_step(name, walks):
    assert max(oracle.errors_in_eps(walks[0][name, 0], walks[0][name, 1])) <= 8


def test_adam_is_kingma_and_ba_s_algorithm():
    grads = np.random.default_rng(0).normal(size=(10, 5)).astype(np.float32)
    optimizer = optimizers.adam(0.1)
    update, state = jax.jit(optimizer.update), optimizer.init(np.zeros(5, np.float32))
    m = s = np.zeros(5)
    for t, g in enumerate(grads, 1):
        updates, state = update(g, state)
        m, s = 0.9 * m + 0.1 * g, 0.999 * s + 0.001 * g.astype(float) ** 2
        expected = -0.1 * (m / (1 - 0.9**t)) / (np.sqrt(s / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(updates, expected, rtol=1e-4)  # float32's 1 - 0.999^t, as in optax
    assert int(state.step) == 10


@pytest.mark.parametrize("name", PAIRS)
def test_a_chain_of_optax_takes_ours(name, walks):
    assert max(oracle.errors_in_eps(walks[1][name, 0], walks[1][name, 1])) <= 8


@pytest.mark.parametrize("name", ["adam", "momentum", "adamw"])
def test_training_takes_optax(name, problem):
    params, x, y = problem
    ends = []
    for optimizer in PAIRS[name]:
        state = training.init_state(params, optimizer)
        state, _ = jax.jit(training.make_epoch(optimizer, batch_size=5))(state, jax.random.key(0), x, y)
        ends.append(state.params)
    assert max(oracle.errors_in_eps(*ends)) <= 64


def test_a_momentum_and_a_decay_may_be_traced(problem):
    params, x, y = problem
    grads = funcnet.backward(params, x, y)

    def updated(make, value):
        optimizer = make(value)
        state = optimizer.init(params)
        return optimizer.update(grads, optimizer.update(grads, state, params)[1], params)[0]

    makes = partial(optimizers.sgd, 0.1), partial(optimizers.adamw, 0.1, 0.9, 0.999, 1e-8)
    assert_traced_as_given([partial(updated, make) for make in makes], (0.0, 0.5))


def assert_traced_as_given(functions, values):
    """Many values in one `vmap`, and each as a number in the program."""

    @jax.jit
    def everything(traced):
        return [(jax.vmap(function)(traced), [function(value) for value in values]) for function in functions]

    for many, alone in jax.tree.map(np.asarray, everything(np.array(values, np.float32))):
        for i, one in enumerate(alone):
            assert max(oracle.errors_in_eps(jax.tree.map(lambda u, i=i: u[i], many), one)) <= 8


def test_a_learning_rate_may_be_traced(problem):
    params, x, y = problem

    grads = funcnet.backward(params, x, y)

    def updated(name, lr):
        optimizer = getattr(optimizers, name)(lr)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    assert_traced_as_given([partial(updated, name) for name in ("sgd", "rmsprop", "adam", "adamw")], (0.1, 0.2))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_half_precision_parameters_are_updated_in_float32(dtype):
    params = oracle.network(0, (4, 3), dtype)
    still = jax.tree.map(np.zeros_like, params)  # eps = 1e-8 is 0 in float16

    @jax.jit
    def updated(name_by_lr, params):
        done = {}
        for name, lr in name_by_lr.items():
            optimizer = getattr(optimizers, name)(lr)
            updates, state = optimizer.update(params, optimizer.init(params), params)
            done[name] = updates, state, optimizers.apply_updates(params, updates)
        return done

    rates = dict.fromkeys(("sgd", "rmsprop", "adam", "adamw"), np.float32(0.1))
    for _, state, moved in updated(rates, params).values():
        assert all(p.dtype == dtype and np.isfinite(np.float32(p)).all() for p in jax.tree.leaves(moved))
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state) if leaf.ndim)
    for name, (updates, *_) in updated(rates, still).items():
        assert not any(np.asarray(u).any() for u in jax.tree.leaves(updates)), name


def test_adamw_says_that_it_needs_params():
    optimizer = optimizers.adamw(1.0)
    with pytest.raises(ValueError, match="adamw: update needs params"):
        optimizer.update(np.ones(2, np.float32), optimizer.init(np.ones(2, np.float32)))


@pytest.mark.usefixtures("strict_promotion")
def test_the_average_is_a_mean_from_the_first_step_and_the_run_the_same(problem):
    params, *data = problem
    adam = optimizers.adam(0.1)
    optimizer = optimizers.averaged(adam, 0.7)
    update, plain_update = jax.jit(optimizer.update), jax.jit(adam.update)
    state, seen = jax.jit(optimizer.init)(params), []
    plain, plain_state = params, jax.jit(adam.init)(params)
    for _ in range(5):
        grads = funcnet.backward(params, *data)
        updates, state = update(grads, state, params)
        params = apply_updates(params, updates)
        seen.append(jax.tree.leaves(params))
        # 0.7^k of the parameters k updates ago, divided by the sum of that; the first ones are not among them.
        weights = 0.7 ** np.arange(len(seen))[::-1]
        for mean, *rows in zip(jax.tree.leaves(state.average), *seen, strict=True):
            np.testing.assert_allclose(mean, np.average(rows, 0, weights), rtol=1e-5, atol=1e-6)
        updates, plain_state = plain_update(funcnet.backward(plain, *data), plain_state, plain)
        plain = apply_updates(plain, updates)
    for p, q in zip(jax.tree.leaves(params), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(p, q)


@pytest.mark.parametrize("decay", [0.0, 0.9, 0.9999, 0.9999999])
def test_the_average_after_one_step_is_where_that_led(decay):
    optimizer, params = optimizers.averaged(optimizers.sgd(1.0), decay), jnp.array([1000.0])
    _, state = jax.jit(optimizer.update)(jnp.array([999.0]), optimizer.init(params), params)
    np.testing.assert_allclose(state.average, [1.0], rtol=1e-3)
    with pytest.raises(ValueError, match="averaged: decay is 1, expected at least 0 and below 1"):
        optimizers.averaged(optimizers.sgd(1.0), 1)


def test_updates_are_rounded_once():
    """Against optax, and NumPy in float64."""
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=10_000), jnp.bfloat16)
    updates = jnp.asarray(rng.normal(size=10_000) * 0.01, jnp.float32)
    new = optimizers.apply_updates(params, updates)
    np.testing.assert_array_equal(new, optax.apply_updates(params, updates))
    exact = np.asarray(params, np.float64) + np.asarray(updates, np.float64)
    np.testing.assert_array_equal(new, exact.astype(np.float32).astype(jnp.bfloat16))
    assert optimizers.apply_updates(jnp.bfloat16(1), jnp.float32(0.00391)) == 1.0078125


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw"])
def test_half_precision_within_optax(name, dtype):
    """Its wrappers want updates in the dtypes of the gradients, whether a step is skipped or not: tracing tells."""
    ours = getattr(optimizers, name)(0.1)
    params = oracle.network(0, (4, 3), dtype)
    for optimizer in (
        optax.apply_if_finite(ours, 3),
        optax.conditionally_transform(ours, lambda step: jnp.asarray(step) > 0),
        optax.chain(ours, optax.ema(0.9)),
        optax.MultiSteps(ours, 2),
    ):
        state = jax.eval_shape(optimizer.init, params)
        for _ in range(2):
            updates, state = jax.eval_shape(optimizer.update, params, state, params)
            assert all(u.dtype == dtype for u in jax.tree.leaves(updates))


@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.int32, jnp.bool_])
@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw"])
def test_what_is_not_real_is_refused(name, dtype):
    optimizer, params = getattr(optimizers, name)(0.1), np.ones(2, dtype)
    state = optimizer.init(np.ones(2, np.float32))
    with pytest.raises(ValueError, match=f"has dtype {params.dtype}, expected a real floating one"):
        optimizer.update(params, state, params)


@pytest.mark.usefixtures("strict_promotion")
def test_the_average_can_be_donated(problem):
    """A state that held one buffer twice could not be."""
    optimizer = optimizers.averaged(optimizers.sgd(0.1), 0.9)
    params = funcnet.init(jax.random.key(0), (6, 9, 4))  # arrays of JAX: no copy on the way
    state = training.init_state(params, optimizer)
    epoch = jax.jit(training.make_epoch(optimizer, batch_size=3), donate_argnums=0)
    for _ in range(2):
        state, _ = epoch(state, jax.random.key(0), *(jnp.asarray(a[:7]) for a in problem[1:]))
    assert int(state.step) == 6
