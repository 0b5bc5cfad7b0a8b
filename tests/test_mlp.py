"""The pure functions: shapes, conventions, and networks at the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import funcnet
from funcnet import Network, activations, initializers

SIZES = (6, 9, 4)


@pytest.fixture(scope="module")
def call():
    params = oracle.network(0, SIZES, np.float32)
    rng = np.random.default_rng(1)
    return params, rng.normal(size=(7, 6)).astype(np.float32), rng.integers(0, 4, 7).astype(np.int32)


def test_forward_is_the_textbook(call):
    params, x, _ = call
    assert max(oracle.errors_in_eps(funcnet.forward(params, x), oracle.forward(params, x.astype(float), "relu"))) <= 4


@pytest.mark.parametrize("leading", [(), (1,), (7,), (3, 5), (2, 1, 3)])
def test_any_number_of_leading_axes(call, leading):
    params, _, _ = call
    x = np.random.default_rng(0).normal(size=(*leading, 6)).astype(np.float32)
    out = funcnet.forward(params, x)
    assert out.shape == (*leading, 4)
    rows = [funcnet.forward(params, row) for row in x.reshape(-1, 6)]
    assert max(oracle.errors_in_eps(out, np.reshape(rows, out.shape))) <= 4


def test_trace_holds_every_step(call):
    params, x, _ = call
    network = Network(activations.tanh)
    trace = funcnet.forward_trace(params, x, network)
    assert [z.shape for z in trace.pre_activations] == [(7, 9), (7, 4)]
    assert [a.shape for a in trace.activations] == [(7, 6), (7, 9), (7, 4)]
    np.testing.assert_array_equal(trace.activations[0], x)
    np.testing.assert_allclose(trace.activations[1], np.tanh(trace.pre_activations[0]), rtol=1e-6)
    np.testing.assert_array_equal(trace.activations[2], funcnet.forward(params, x, network))


def test_predict_gives_probabilities_or_values(call):
    params, x, _ = call
    np.testing.assert_allclose(np.asarray(funcnet.predict(params, x)).sum(-1), 1, rtol=1e-6)
    out = np.asarray(funcnet.forward(params, x))
    probabilities = funcnet.predict(params, x, Network(loss=funcnet.sigmoid_cross_entropy))
    np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-out)), rtol=1e-6)
    np.testing.assert_array_equal(funcnet.predict(params, x, Network(loss=funcnet.squared_error)), out)


def test_value_and_backward_is_both(call):
    value, grads = funcnet.value_and_backward(*call)
    assert abs(float(value) - float(funcnet.objective(*call))) <= 1e-6
    assert oracle.errors_in_eps(grads, funcnet.backward(*call)) == [0.0] * 4


def test_grads_are_the_tree_that_params_is(call):
    params, x, y = call
    lists = [[W, b] for W, b in params]
    for tree in (lists, tuple(params), tuple(lists)):
        assert jax.tree.structure(funcnet.backward(tree, x, y)) == jax.tree.structure(tree)


def test_ready_made_numpy_arrays_in_any_order(call):
    params, x, y = call
    expected = funcnet.backward(params, x, y)
    fortran = [(np.asfortranarray(W), b) for W, b in params]
    strided = np.repeat(x, 2, 0)[::2]
    assert oracle.errors_in_eps(funcnet.backward(fortran, strided, y), expected) == [0.0] * 4


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_init(dtype):
    params, again = (
        jax.tree.map(np.asarray, funcnet.init(jax.random.key(0), SIZES, biases=funcnet.standard_normal, dtype=dtype))
        for _ in range(2)
    )
    assert [(W.shape, b.shape) for W, b in params] == [((6, 9), (9,)), ((9, 4), (4,))]
    leaves = jax.tree.leaves(params)
    assert all(leaf.dtype == dtype for leaf in leaves)
    assert len({float(leaf.ravel()[0]) for leaf in leaves}) == len(leaves)  # each array has a key of its own
    assert all((a == b).all() for a, b in zip(leaves, jax.tree.leaves(again), strict=True))


def test_init_is_vmapped_over_keys_and_takes_both_kinds_of_key():
    many = jax.jit(jax.vmap(lambda key: funcnet.init(key, SIZES)))(jax.random.split(jax.random.key(0), 3))
    assert many[0][0].shape == (3, 6, 9)
    assert funcnet.init(jax.random.PRNGKey(0), SIZES)[0][0].shape == (6, 9)


@pytest.mark.parametrize(
    ("weights", "variance", "bound"),
    [
        (funcnet.he_normal, 2 / 300, None),
        (funcnet.he_uniform, 2 / 300, np.sqrt(6 / 300)),
        (funcnet.glorot_normal, 2 / 500, None),
        (funcnet.glorot_uniform, 2 / 500, np.sqrt(6 / 500)),
        (funcnet.lecun_normal, 1 / 300, None),
        (funcnet.standard_normal, 1.0, None),
        (funcnet.uniform(-0.5, 0.5), 1 / 12, 0.5),
        (funcnet.zeros, 0.0, 0.0),
    ],
)
def test_initializers_have_their_variance(weights, variance, bound):
    W = np.asarray(jax.jit(lambda: weights(jax.random.key(0), (300, 200), jnp.float32))())
    assert abs(W.mean()) <= 4 * np.sqrt(variance / W.size)
    assert W.var() == pytest.approx(variance, rel=0.03)
    assert bound is None or np.abs(W).max() <= bound


def test_initializers_are_called_what_they_are():
    for name in ("he_normal", "he_uniform", "glorot_normal", "glorot_uniform", "lecun_normal"):
        initializer = getattr(initializers, name)
        assert (initializer.__name__, initializer.__doc__.split()[0]) == (name, name.partition("_")[2].capitalize())


def test_initializers_refuse_what_they_cannot_scale():
    with pytest.raises(
        ValueError, match=r"he_normal has shape \(9,\), expected that of a weight, \(n_in, n_out\); for biases"
    ):
        funcnet.init(jax.random.key(0), SIZES, biases=funcnet.he_normal)
    for low, high in ((1, 0), (1, 1), (-np.inf, 1), (0, np.inf)):
        with pytest.raises(
            ValueError, match=f"uniform: low={low}, high={high}, expected finite numbers with low < high"
        ):
            funcnet.uniform(low, high)


def test_a_hidden_layer_of_width_zero_is_a_network_of_biases():
    params = funcnet.init(jax.random.key(0), (3, 0, 2), biases=funcnet.standard_normal)
    x, y = np.ones((5, 3), np.float32), np.zeros(5, np.int32)
    np.testing.assert_array_equal(funcnet.forward(params, x), np.broadcast_to(np.asarray(params[1][1]), (5, 2)))
    by_hand, by_jax = funcnet.backward(params, x, y), jax.jit(jax.grad(funcnet.objective))(params, x, y)
    assert max(oracle.errors_in_eps(by_hand, by_jax)) <= 4


def test_nan_and_inf_come_through(call):
    params, x, y = call
    for bad in (np.nan, np.inf):
        assert not np.isfinite(funcnet.objective(params, np.where(np.arange(6) == 2, np.float32(bad), x), y))
        broken = [(np.where(W.max() == W, np.float32(bad), W), b) for W, b in params]
        assert not np.isfinite(funcnet.backward(broken, x, y)[0][0]).all()


@pytest.mark.parametrize("depth", [64, pytest.param(400, marks=pytest.mark.slow)])
def test_very_many_layers(depth):
    params = funcnet.init(jax.random.key(0), [8] * (depth + 1), weights=funcnet.glorot_normal)
    grads = funcnet.backward(params, np.ones((2, 8), np.float32), np.zeros(2, np.int32), Network(activations.tanh))
    assert len(grads) == depth
    assert np.isfinite(grads[0][0]).all()


def test_init_refuses_an_integer_dtype():
    with pytest.raises(ValueError, match="dtype is int32, expected a floating dtype"):
        funcnet.init(jax.random.key(0), SIZES, dtype=jnp.int32)
