"""Regularizers against NumPy, optax and the formulas of their papers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

import funcnet
from funcnet import regularizers, training
from funcnet.optimizers import adam, apply_updates, averaged, sgd

SIZES = (6, 9, 4)


pytestmark = pytest.mark.usefixtures("not_optimized")


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(7, 6)).astype(np.float32), rng.integers(0, 4, 7).astype(np.int32)


def test_smooth_labels_are_optax_s():
    y = jnp.array([[0, 3], [1, 1]])
    with jax.numpy_rank_promotion("allow"):
        expected = optax.smooth_labels(jax.nn.one_hot(y, 4), 0.1)
    np.testing.assert_allclose(regularizers.smooth_labels(y, 4, 0.1), expected, rtol=1e-6)
    assert np.isnan(regularizers.smooth_labels(jnp.array([4, -1]), 4, 0.1)).all()


def test_dropout_masks_are_scaled_bernoulli():
    params = oracle.network(0, (100, 200, 10), np.float32)
    masks = jax.jit(lambda key: regularizers.dropout_masks(key, params, (300,), 0.25, input_rate=0.1))(
        jax.random.key(1)
    )
    for mask, rate in zip(masks, (0.1, 0.25), strict=True):
        np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], rtol=1e-6)
        assert (mask == 0).mean() == pytest.approx(rate, abs=0.01)
    assert regularizers.dropout_masks(jax.random.key(1), params, (), 0.0) == (None, None)
    with pytest.raises(ValueError, match=r"dropout_masks: rate is 1, expected a number in \[0, 1\)"):
        regularizers.dropout_masks(jax.random.key(1), params, (), 1)


@pytest.mark.parametrize("optimizer", [sgd(1.0), adam(0.5), optax.sgd(1.0)], ids=["sgd", "adam", "optax"])
def test_a_limit_on_weights_shortens_columns_and_nothing_else(optimizer, data):
    params, limit = oracle.network(0, SIZES, np.float32), 1.2
    grads = funcnet.backward(params, *data)
    free, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    bound = regularizers.limit_weights(optimizer, limit)
    updates, _ = jax.jit(bound.update)(grads, bound.init(params), params)
    apply = jax.jit(apply_updates)
    shortened = 0
    for (W, b), (W_free, b_free) in zip(apply(params, updates), apply(params, free), strict=True):
        norms = np.linalg.norm(W_free, axis=0)
        np.testing.assert_allclose(np.linalg.norm(W, axis=0), np.minimum(norms, limit), rtol=1e-5)
        np.testing.assert_allclose(W, np.asarray(W_free) * np.minimum(1, limit / norms), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(b, b_free, rtol=1e-6)
        shortened += (norms > limit).sum()
    assert 0 < shortened < 13  # some are within, some are not
    at_rest = regularizers.limit_weights(sgd(0.0), limit)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = at_rest.update(zero, at_rest.init(zero), zero)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))  # not NaN


def test_wrapped_optimizers_nest_and_vmap(data):
    """Three rates in one program, each as by itself."""

    def run(lr):
        optimizer = averaged(regularizers.limit_weights(sgd(lr), 1.5), 0.9)
        state = training.init_state(oracle.network(0, SIZES, np.float32), optimizer)
        epoch = training.make_epoch(optimizer, batch_size=3, masks=partial(regularizers.dropout_masks, rate=0.5))
        state, _ = epoch(state, jax.random.key(1), *map(jnp.asarray, data))
        return state.opt_state.average

    rates = jnp.array([0.1, 0.5, 1.0])
    many, one = jax.jit(jax.vmap(run))(rates), jax.jit(run)
    for i, lr in enumerate(rates):
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one(lr)), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


def kl(p, q):
    return np.sum(p * (np.log(p) - np.log(q)), -1)


def test_the_virtual_adversary_finds_the_direction_that_changes_most(data):
    """Near `x` the divergence is `d^T H d / 2`; many steps of the power method find the top eigenvector of H."""
    x, y = data
    params = oracle.network(0, SIZES, np.float32)
    p = np.asarray(funcnet.predict(params, x), np.float64)
    J = np.asarray(jax.jit(jax.vmap(jax.jacobian(partial(funcnet.forward, params))))(x), np.float64)  # (N, K, n_0)
    fisher = np.einsum("nk,kl->nkl", p, np.eye(4)) - np.einsum("nk,nl->nkl", p, p)
    top = np.linalg.eigh(np.einsum("nki,nkl,nlj->nij", J, fisher, J))[1][..., -1]

    def make(**settings):
        return jax.jit(partial(regularizers.virtual_adversarial, **settings))(jax.random.key(1), params, x, y)

    x2, y2, w2 = make(radius=0.01, probe=0.01, iterations=60)
    r = np.asarray(x2[7:] - x) / 0.01
    np.testing.assert_allclose(np.linalg.norm(r, axis=1), 1, rtol=1e-3)
    assert (np.abs(np.sum(r * top, 1)) > 0.98).all()
    np.testing.assert_array_equal(x2[:7], x)
    np.testing.assert_array_equal(y2[:7], np.eye(4)[y])
    np.testing.assert_allclose(y2[7:], p, rtol=1e-5)
    assert w2 is None

    once = np.asarray(make(radius=0.5)[0][7:] - x)
    random = np.random.default_rng(1).normal(size=(200, *x.shape))
    random *= 0.5 / np.linalg.norm(random, axis=-1, keepdims=True)
    by_chance = kl(p, np.asarray(funcnet.predict(params, (x + random).astype(np.float32)), np.float64)).mean(0)
    found = kl(p, np.asarray(funcnet.predict(params, x + once), np.float64))
    assert (found > by_chance).mean() > 0.8  # one step already beats chance


def test_the_gradient_over_both_halves_is_that_of_loss_plus_divergence(data):
    """Against `jax.grad` of the paper's objective, with `p` and `r` held fixed."""
    x, y = data
    params = oracle.network(0, SIZES, np.float32)
    x2, y2, _ = jax.jit(partial(regularizers.virtual_adversarial, radius=0.5))(jax.random.key(1), params, x, y)
    p, moved = y2[7:], x2[7:]

    def paper(params):
        log_q = jax.nn.log_softmax(funcnet.forward(params, moved))
        divergence = jnp.sum(p * (jnp.log(p) - log_q), -1).mean()
        return funcnet.objective(params, x, y) + divergence

    expected = jax.jit(jax.grad(paper))(params)
    for a, b in zip(jax.tree.leaves(funcnet.backward(params, x2, y2)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(2 * a, b, rtol=1e-4, atol=1e-6)


def test_padding_stays_padding_in_an_augmented_epoch(data):
    """A ragged last batch: what fills it up has weight 0 in both halves."""
    x, y = map(jnp.asarray, data)
    augment = partial(regularizers.virtual_adversarial, radius=0.5)
    step = jax.jit(training.make_step(sgd(0.1), augment=augment))
    state = training.init_state(oracle.network(0, SIZES, np.float32), sgd(0.1))
    key = jax.random.key(0)
    weight = jnp.array([1, 1, 1, 1, 0, 0, 0], jnp.float32)
    one, _ = step(state, key, x, y, weight)
    other, _ = step(state, key, x, y.at[4:].set(0), weight)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(a, b)
    _, _, w = jax.jit(augment)(key, state.params, x, y, weight)
    np.testing.assert_array_equal(w, [*weight, *weight])


def test_a_sample_that_nothing_moves_stays(data):
    params = [(jnp.zeros((6, 4)), jnp.zeros(4))]
    x2, _, _ = regularizers.virtual_adversarial(jax.random.key(0), params, *data, radius=0.5)
    np.testing.assert_array_equal(x2[7:], data[0])
