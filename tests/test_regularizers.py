"""Regularizers against NumPy, optax and the formulas of their papers."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

import funcnet
from funcnet import regularizers, testing, training
from funcnet.optimizers import adam, adamw, apply_updates, averaged, sgd

SIZES, KEY = (6, 9, 4), np.array([0, 1], np.uint32)
APPLY = jax.jit(apply_updates)


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
    deep = oracle.network(0, (6, 5, 5, 5, 4), np.float32)
    assert [m.shape for m in regularizers.dropout_masks(jax.random.key(1), deep, (2,), 0.5)[1:]] == [(2, 5)] * 3
    with pytest.raises(ValueError, match=r"dropout_masks: rate is 1, expected a number in \[0, 1\)"):
        regularizers.dropout_masks(jax.random.key(1), params, (), 1)


SCALARS = (float, np.float64, np.float32, np.asarray, jnp.float32, jnp.bfloat16)


def test_rates_and_limits_are_numbers_of_any_kind(data):
    """Each as the Python number gives it; and traced, over which one can `vmap`."""
    params, key, y = oracle.network(0, SIZES, np.float32), jax.random.key(1), data[1]
    grads = funcnet.backward(params, *data)

    def with_limit(wrap):
        return lambda limit: wrap(sgd(1.0), limit).update(grads, sgd(1.0).init(params), params)[0]

    functions = {
        "rate": lambda rate: regularizers.dropout_masks(key, params, (50,), rate, input_rate=rate),
        "amount": lambda amount: regularizers.smooth_labels(y, 4, amount),
        "limit": with_limit(regularizers.limit_weights),
        "max_norm": with_limit(regularizers.clip_by_global_norm),
        "radius": lambda r: regularizers.virtual_adversarial(key, params, *data, radius=r, probe=r)[0],
    }
    everything = lambda value: {name: function(value) for name, function in functions.items()}  # noqa: E731
    values = [0.25, *(kind(0.25) for kind in SCALARS)]  # seen as what they are, in one program
    want, *others = jax.jit(lambda: [everything(value) for value in values])()
    for got in others:
        testing.assert_tree_close(got, want, 0)
    traced = jax.tree.map(np.asarray, jax.jit(jax.vmap(everything))(np.array([-1.0, np.nan, 0.25], np.float32)))
    testing.assert_tree_close(jax.tree.map(lambda leaf: leaf[2], traced), want, 16)
    for name, leaves in traced.items():
        assert all(any(np.isnan(leaf[i]).any() for leaf in jax.tree.leaves(leaves)) for i in (0, 1)), name
    testing.assert_tree_close(jax.jit(everything)(jnp.bfloat16(0.25)), want, 16)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda p, x, y: regularizers.dropout_masks(KEY, p, (7,), np.float32(1.5)),
            "rate is 1.5, expected a number in",
        ),
        (lambda p, x, y: regularizers.dropout_masks(KEY, p, (7,), 0.5, input_rate=np.nan), "input_rate is nan, expect"),
        (lambda p, x, y: regularizers.dropout_masks(KEY, p, (7,), "0.5"), "rate is '0.5', expected a number in"),
        (lambda p, x, y: regularizers.dropout_masks(KEY, p, (7,), None), "rate is None, expected a number in"),
        (lambda p, x, y: regularizers.dropout_masks(KEY, p, (7,), jnp.ones(2)), "rate is Array.*, expected a number"),
        (lambda p, x, y: regularizers.dropout_masks(KEY, p, (7,), 0.5j), "rate is 0.5j, expected a number in"),
        (
            lambda p, x, y: regularizers.dropout_masks(0, p, (7,), 0.5),
            r"expected a JAX random key: jax.random.key\(0\)",
        ),
        (lambda p, x, y: regularizers.dropout_masks(KEY, p, 7, 0.5), "batch_shape is 7, expected a tuple"),
        (lambda p, x, y: regularizers.smooth_labels(y, 4, 1.1), r"amount is 1.1, expected a number in \[0, 1\]"),
        (lambda p, x, y: regularizers.smooth_labels(x, 4, 0.1), "y has dtype float32, expected an integer dtype"),
        (lambda p, x, y: regularizers.smooth_labels(y, 4.0, 0.1), "classes is 4.0, expected a whole number"),
        *(
            (lambda p, x, y, wrap=wrap, bad=bad: wrap(sgd(1.0), bad), "is .*, expected a number above 0")
            for wrap in (regularizers.limit_weights, regularizers.clip_by_global_norm)
            for bad in (0, -1.0, np.nan, True, jnp.float32(-1))
        ),
        (lambda p, x, y: regularizers.limit_weights(sgd(1.0), 1).update(p, sgd(1.0).init(p)), "update needs params"),
        (lambda p, x, y: regularizers.virtual_adversarial(KEY, p, x, y, radius=-1), "radius is -1, expected a number"),
        (
            lambda p, x, y: regularizers.virtual_adversarial(KEY, p, x, y, radius=np.inf),
            "radius is inf, expected a num",
        ),
        (
            lambda p, x, y: regularizers.virtual_adversarial(KEY, p, x, y, radius=1, probe=0),
            "probe is 0, expected a nu",
        ),
        (lambda p, x, y: regularizers.virtual_adversarial(KEY, p, x, y, radius=1, iterations=1.5), "iterations is 1.5"),
        (lambda p, x, y: regularizers.virtual_adversarial(3, p, x, y, radius=1), "expected a JAX random key"),
        (lambda p, x, y: regularizers.virtual_adversarial(KEY, p, x.astype(int), y, radius=1), "x has dtype int"),
    ],
)
def test_what_is_no_rate_limit_or_key_is_named(call, said, data):
    with pytest.raises(ValueError, match=said):
        call(oracle.network(0, SIZES, np.float32), *data)


@pytest.mark.parametrize("key", [jax.random.PRNGKey(0), jax.random.key(0, impl="rbg"), np.array([0, 1], np.uint32)])
def test_keys_of_every_kind(key, data):
    params = oracle.network(0, SIZES, np.float32)
    draw = lambda key: regularizers.dropout_masks(key, params, (500,), 0.5)[1]  # noqa: E731
    adversary = lambda key: regularizers.virtual_adversarial(key, params, *data, radius=0.5)[0]  # noqa: E731
    mask, x = jax.tree.map(np.asarray, jax.jit(lambda key: (draw(key), adversary(key)))(key))
    assert np.mean(mask == 0) == pytest.approx(0.5, abs=0.05)
    assert np.isfinite(x).all()


class Pair(NamedTuple):
    W: Any
    b: Any


TREES = {
    "tuples": lambda W, b: [(W, b), (2 * W, b)],
    "lists": lambda W, b: [[W, b], [2 * W, b]],
    "named": lambda W, b: (Pair(W, b), Pair(2 * W, b)),
    "dict": lambda W, b: {"first": {"kernel": W, "bias": b}, "scale": b[0]},
    "one": lambda W, b: W,
}


WRAPS = regularizers.limit_weights, regularizers.clip_by_global_norm


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("half", [False, True])
def test_limits_take_any_tree_and_give_it_back(tree, half):
    """No limit at all changes nothing, to the bit; a limit is optax's, and NumPy's column by column."""
    rng, dtype = np.random.default_rng(0), jnp.bfloat16 if half else jnp.float32
    make = lambda scale: TREES[tree](*((scale * rng.normal(size=n)).astype(dtype) for n in ((4, 3), 3)))  # noqa: E731
    params, grads = make(1.0), make(3.0)
    plain, limits = optax.sgd(0.1), (np.inf, jnp.float32(np.inf))
    optimizers = {"free": plain, "chain": optax.chain(optax.clip_by_global_norm(0.7), plain)}
    optimizers |= {(wrap, i): wrap(plain, limit) for wrap in WRAPS for i, limit in enumerate(limits)}
    optimizers |= {"clipped": WRAPS[1](plain, 0.7), "limited": WRAPS[0](plain, 0.9)}

    @jax.jit
    def updates_of(params, grads):
        return [optimizer.update(grads, optimizer.init(params), params)[0] for optimizer in optimizers.values()]

    found = dict(zip(optimizers, updates_of(params, grads), strict=True))
    for wrap in WRAPS:
        for i in range(len(limits)):
            testing.assert_tree_close(found[wrap, i], found["free"], 0)
    testing.assert_tree_close(found["clipped"], found["chain"], 4)

    updates, free = found["limited"], found["free"]
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    for p, u, f in zip(*map(jax.tree.leaves, (params, updates, free)), strict=True):
        p, moved, want = (np.asarray(a, np.float64) for a in (p, u, f))
        want = p + want
        want = want * np.minimum(1, 0.9 / np.linalg.norm(want, axis=0)) if want.ndim == 2 else want
        np.testing.assert_allclose(p + moved, want, atol=2e-2 if half else 1e-6)


def test_no_smoothing_at_all_is_one_hot():
    np.testing.assert_array_equal(regularizers.smooth_labels(np.array([2, 0]), 3, 0.0), np.eye(3)[[2, 0]])


def test_the_global_norm_of_float64_has_all_its_digits(x64):
    """Also beside leaves of float32."""
    clip = regularizers.clip_by_global_norm(sgd(1.0), 1.0)
    grads = {"a": np.float64([1 / 3, 5.0]), "b": np.float32([0.5])}
    updates, _ = clip.update(grads, clip.init(grads))
    np.testing.assert_allclose(updates["a"], -grads["a"] / np.sqrt(1 / 9 + 25 + 0.25), rtol=1e-14)


def test_a_gradient_that_is_no_number_stays_one():
    """And one whose squares are infinite is clipped all the same."""
    update, state = jax.jit(regularizers.clip_by_global_norm(sgd(1.0), 1.0).update), sgd(1.0).init(None)
    for bad in (np.nan, np.inf):
        updates, _ = update({"a": np.array([1.0, bad], np.float32), "b": np.ones(2, np.float32)}, state)
        assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(updates))
    for scale in (1e30, 1e-30):
        clip = regularizers.clip_by_global_norm(sgd(1.0), scale)
        updates, _ = jax.jit(clip.update)([np.array([k * scale], np.float32) for k in (3, 4)], state)
        np.testing.assert_allclose(updates, [[-0.6 * scale], [-0.8 * scale]], rtol=1e-6)
    params = [(np.full((2, 2), 1e30), np.ones(2)), (np.array([[np.nan, 3.0], [0.0, 4.0]]), np.ones(2))]
    params = jax.tree.map(np.float32, params)
    zero, limit = jax.tree.map(np.zeros_like, params), regularizers.limit_weights(sgd(1.0), 1e30)
    limited = APPLY(params, jax.jit(limit.update)(zero, state, params)[0])
    np.testing.assert_allclose(limited[0][0], np.full((2, 2), 1e30 * np.sqrt(0.5)), rtol=1e-6)
    np.testing.assert_array_equal(limited[1][0], [[np.nan, 3], [np.nan, 4]])


@pytest.mark.parametrize("mask", [regularizers.weights_only, [(True, False), (False, False)]], ids=["W", "tree"])
def test_weights_decay_alone_as_in_optax(mask, data):
    params = oracle.network(0, SIZES, np.float32)
    ours, theirs = adamw(1e-2, weight_decay=0.3, mask=mask), optax.adamw(1e-2, weight_decay=0.3, mask=mask)
    states, update, expected_of = (ours.init(params), theirs.init(params)), jax.jit(ours.update), jax.jit(theirs.update)
    for _ in range(3):
        grads = funcnet.backward(params, *data)
        updates = update(grads, states[0], params)
        with jax.numpy_dtype_promotion("standard"):
            expected = expected_of(grads, states[1], params)
        testing.assert_tree_close(updates[0], expected[0], 64)
        states, params = (updates[1], expected[1]), APPLY(params, updates[0])


@pytest.mark.parametrize("optimizer", [sgd(1.0), adam(0.5), optax.sgd(1.0)], ids=["sgd", "adam", "optax"])
def test_a_limit_on_weights_shortens_columns_and_nothing_else(optimizer, data):
    params, limit = oracle.network(0, SIZES, np.float32), 1.2
    grads = funcnet.backward(params, *data)
    free, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    bound = regularizers.limit_weights(optimizer, limit)
    updates, _ = jax.jit(bound.update)(grads, bound.init(params), params)
    shortened = 0
    for (W, b), (W_free, b_free) in zip(APPLY(params, updates), APPLY(params, free), strict=True):
        norms = np.linalg.norm(W_free, axis=0)
        np.testing.assert_allclose(np.linalg.norm(W, axis=0), np.minimum(norms, limit), rtol=1e-5)
        np.testing.assert_allclose(W, np.asarray(W_free) * np.minimum(1, limit / norms), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(b, b_free, rtol=1e-6)
        shortened += (norms > limit).sum()
    assert 0 < shortened < 13  # some are within, some are not
    at_rest = regularizers.limit_weights(sgd(0.0), limit)
    zero = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(at_rest.update)(zero, at_rest.init(zero), zero)
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(updates))  # not NaN


def test_wrapped_optimizers_nest_and_vmap(data):
    """Three rates in one program, each as by itself."""

    def run(lr):
        optimizer = averaged(regularizers.limit_weights(sgd(lr), 1.5), 0.9)
        state = training.init_state(oracle.network(0, SIZES, np.float32), optimizer)
        epoch = training.make_epoch(optimizer, batch_size=3, masks=partial(regularizers.dropout_masks, rate=0.5))
        state, _ = epoch(state, jax.random.key(1), *map(jnp.asarray, data))
        return state.opt_state.average

    rates = np.array([0.1, 0.5, 1.0], np.float32)
    many, one = jax.jit(jax.vmap(run))(rates), jax.jit(run)
    many = jax.tree.map(np.asarray, many)
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

    x2, y2, w2 = jax.tree.map(np.asarray, make(radius=0.01, probe=0.01, iterations=60))
    r = (x2[7:] - x) / 0.01
    np.testing.assert_allclose(np.linalg.norm(r, axis=1), 1, rtol=1e-3)
    assert (np.abs(np.sum(r * top, 1)) > 0.98).all()
    np.testing.assert_array_equal(x2[:7], x)
    np.testing.assert_array_equal(y2[:7], np.eye(4)[y])
    np.testing.assert_allclose(y2[7:], p, rtol=1e-5)
    assert w2 is None

    once = np.asarray(make(radius=0.5)[0])[7:] - x
    d = np.array(jax.random.normal(jax.random.key(1), x.shape))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    uphill = np.asarray(jax.jit(jax.grad(funcnet.objective, argnums=1))(params, x + 0.1 * d, p.astype(np.float32)))
    np.testing.assert_allclose(once, 0.5 * uphill / np.linalg.norm(uphill, axis=1, keepdims=True), atol=1e-3)
    random = np.random.default_rng(1).normal(size=(200, *x.shape))
    random *= 0.5 / np.linalg.norm(random, axis=-1, keepdims=True)
    by_chance = kl(p, np.asarray(funcnet.predict(params, (x + random).astype(np.float32)), np.float64)).mean(0)
    found = kl(p, np.asarray(funcnet.predict(params, x + once), np.float64))
    assert (found > by_chance).mean() > 0.8  # one step already beats chance


def test_class_ids_of_one_output_are_its_targets():
    params, ids = oracle.network(0, (6, 1), np.float32), np.array([0, 1, 0])
    network = funcnet.Network(loss=funcnet.sigmoid_cross_entropy)
    x = np.ones((3, 6), np.float32)
    make = jax.jit(partial(regularizers.virtual_adversarial, network=network, radius=0.1))
    _, y, _ = make(jax.random.key(0), params, x, ids)
    np.testing.assert_array_equal(np.asarray(y)[:3, 0], ids)


def test_the_gradient_over_both_halves_is_that_of_loss_plus_divergence(data):
    """Against `jax.grad` of the paper's objective, with `p` and `r` held fixed."""
    x, y = data
    params = oracle.network(0, SIZES, np.float32)
    x2, y2, _ = jax.jit(partial(regularizers.virtual_adversarial, radius=0.5))(jax.random.key(1), params, x, y)
    p, moved = np.asarray(y2)[7:], np.asarray(x2)[7:]

    def paper(params):
        log_q = jax.nn.log_softmax(funcnet.forward(params, moved))
        divergence = jnp.sum(p * (jnp.log(p) - log_q), -1).mean()
        return funcnet.objective(params, x, y) + divergence

    expected = jax.jit(jax.grad(paper))(params)
    for a, b in zip(jax.tree.leaves(funcnet.backward(params, x2, y2)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(2 * np.asarray(a), b, rtol=1e-4, atol=1e-6)


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
    x2, _, _ = jax.jit(partial(regularizers.virtual_adversarial, radius=0.5))(jax.random.key(0), params, *data)
    np.testing.assert_array_equal(np.asarray(x2)[7:], data[0])
