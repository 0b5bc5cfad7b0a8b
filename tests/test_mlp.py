"""The pure functions: shapes, conventions, tracing, and what they say to arguments that do not fit."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import funcnet
from funcnet import activations
from funcnet.regularizers import dropout_masks

SIZES = (6, 9, 4)


@pytest.fixture(scope="module")
def network():
    params = oracle.network(0, SIZES, np.float32)
    rng = np.random.default_rng(1)
    return params, rng.normal(size=(7, 6)).astype(np.float32), rng.integers(0, 4, 7).astype(np.int32)


def test_forward_is_the_textbook(network):
    params, x, _ = network
    assert max(oracle.errors_in_eps(funcnet.forward(params, x), oracle.forward(params, x.astype(float), "relu"))) <= 4


@pytest.mark.parametrize("leading", [(), (1,), (7,), (3, 5), (2, 1, 3)])
def test_any_number_of_leading_axes(network, leading):
    params, _, _ = network
    x = np.random.default_rng(0).normal(size=(*leading, 6)).astype(np.float32)
    out = funcnet.forward(params, x)
    assert out.shape == (*leading, 4)
    rows = [funcnet.forward(params, row) for row in x.reshape(-1, 6)]
    assert max(oracle.errors_in_eps(out, np.reshape(rows, out.shape))) <= 4


def test_trace_holds_every_step(network):
    params, x, _ = network
    hidden = activations.tanh
    trace = funcnet.forward_trace(params, x, hidden=hidden)
    assert [z.shape for z in trace.pre_activations] == [(7, 9), (7, 4)]
    assert [a.shape for a in trace.activations] == [(7, 6), (7, 9), (7, 4)]
    np.testing.assert_array_equal(trace.activations[0], x)
    np.testing.assert_allclose(trace.activations[1], np.tanh(trace.pre_activations[0]), rtol=1e-6)
    np.testing.assert_array_equal(trace.activations[2], funcnet.forward(params, x, hidden=hidden))


def test_predict_gives_probabilities_or_values(network):
    params, x, _ = network
    np.testing.assert_allclose(funcnet.predict(params, x).sum(-1), 1, rtol=1e-6)
    out = funcnet.forward(params, x)
    np.testing.assert_allclose(
        funcnet.predict(params, x, loss=funcnet.sigmoid_cross_entropy), jax.nn.sigmoid(out), rtol=1e-6
    )
    np.testing.assert_array_equal(funcnet.predict(params, x, loss=funcnet.squared_error), out)


def test_value_and_backward_is_both(network):
    value, grads = funcnet.value_and_backward(*network)
    assert abs(value - funcnet.objective(*network)) <= 1e-6
    assert oracle.errors_in_eps(grads, funcnet.backward(*network)) == [0.0] * 4


def test_grads_are_the_tree_that_params_is(network):
    params, x, y = network
    lists = [[W, b] for W, b in params]
    for tree in (lists, tuple(params), tuple(lists)):
        assert jax.tree.structure(funcnet.backward(tree, x, y)) == jax.tree.structure(tree)


def test_ready_made_numpy_arrays_in_any_order(network):
    params, x, y = network
    expected = funcnet.backward(params, x, y)
    fortran = [(np.asfortranarray(W), b) for W, b in params]
    strided = np.repeat(x, 2, 0)[::2]
    assert oracle.errors_in_eps(funcnet.backward(fortran, strided, y), expected) == [0.0] * 4


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_init(dtype):
    params = funcnet.init(jax.random.key(0), SIZES, biases=funcnet.standard_normal, dtype=dtype)
    assert [(W.shape, b.shape) for W, b in params] == [((6, 9), (9,)), ((9, 4), (4,))]
    leaves = jax.tree.leaves(params)
    assert all(leaf.dtype == dtype for leaf in leaves)
    assert len({float(leaf.ravel()[0]) for leaf in leaves}) == len(leaves)  # each array has a key of its own
    again = funcnet.init(jax.random.key(0), SIZES, biases=funcnet.standard_normal, dtype=dtype)
    assert all((a == b).all() for a, b in zip(leaves, jax.tree.leaves(again), strict=True))


def test_init_is_vmapped_over_keys_and_takes_both_kinds_of_key():
    many = jax.vmap(lambda key: funcnet.init(key, SIZES))(jax.random.split(jax.random.key(0), 3))
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
    W = np.asarray(weights(jax.random.key(0), (300, 200), jnp.float32))
    assert abs(W.mean()) <= 4 * np.sqrt(variance / W.size)
    assert W.var() == pytest.approx(variance, rel=0.03)
    assert bound is None or np.abs(W).max() <= bound


def test_initializers_refuse_what_they_cannot_scale():
    with pytest.raises(ValueError, match=r"he_normal needs a weight's shape \(n_in, n_out\), got \(9,\); for biases"):
        funcnet.init(jax.random.key(0), SIZES, biases=funcnet.he_normal)
    with pytest.raises(ValueError, match="uniform: low=1, high=0, expected finite numbers with low < high"):
        funcnet.uniform(1, 0)


def test_a_hidden_layer_of_width_zero_is_a_network_of_biases():
    params = funcnet.init(jax.random.key(0), (3, 0, 2), biases=funcnet.standard_normal)
    x, y = jnp.ones((5, 3)), jnp.zeros(5, jnp.int32)
    np.testing.assert_array_equal(funcnet.forward(params, x), np.broadcast_to(params[1][1], (5, 2)))
    by_hand, by_jax = funcnet.backward(params, x, y), jax.grad(funcnet.objective)(params, x, y)
    assert max(oracle.errors_in_eps(by_hand, by_jax)) <= 4


@pytest.mark.parametrize(
    ("sizes", "count"),
    [((4, 8, 1), 49), ((4, 8, 4, 1), 81), ((10, 32, 16, 5), 965), ((784, 256, 128, 64, 10), 242_762)],
)
def test_parameters_are_counted(sizes, count):
    params = funcnet.init(jax.random.key(0), sizes)
    assert funcnet.count_parameters(params) == count
    assert funcnet.summary(params).splitlines()[-1].split() == ["total", "float32", f"{count:,}"]


def test_dropout_masks_are_scaled_bernoulli():
    params = funcnet.init(jax.random.key(0), (100, 200, 10))
    masks = dropout_masks(jax.random.key(1), params, (300,), 0.25, input_rate=0.1)
    for mask, rate in zip(masks, (0.1, 0.25), strict=True):
        np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - rate)], rtol=1e-6)
        assert (mask == 0).mean() == pytest.approx(rate, abs=0.01)
    assert dropout_masks(jax.random.key(1), params, (), 0.0) == (None, None)
    with pytest.raises(ValueError, match=r"dropout_masks: rate is 1, expected a number in \[0, 1\)"):
        dropout_masks(jax.random.key(1), params, (), 1)


def test_nan_and_inf_come_through(network):
    params, x, y = network
    for bad in (np.nan, np.inf):
        assert not np.isfinite(funcnet.objective(params, np.where(np.arange(6) == 2, np.float32(bad), x), y))
        broken = [(np.where(W.max() == W, np.float32(bad), W), b) for W, b in params]
        assert not np.isfinite(funcnet.backward(broken, x, y)[0][0]).all()


def test_one_trace_for_one_shape_and_one_static_value(network):
    params, x, y = network
    start = funcnet.backward._cache_size()
    for _ in range(2):
        funcnet.backward(params, x, y, hidden=activations.leaky_relu(0.123))
        assert funcnet.backward._cache_size() == start + 1
    funcnet.backward(params, x[:3], y[:3], hidden=activations.leaky_relu(0.123))
    assert funcnet.backward._cache_size() == start + 2


def test_four_hundred_layers():
    params = funcnet.init(jax.random.key(0), [8] * 401, weights=funcnet.glorot_normal)
    grads = funcnet.backward(params, jnp.ones((2, 8)), jnp.zeros(2, jnp.int32), hidden=activations.tanh)
    assert len(grads) == 400
    assert np.isfinite(grads[0][0]).all()


def bad_calls():
    """`(what, changes, message)`: one argument of a good call changed, and what is said to it."""
    W, b = np.ones((6, 9), np.float32), np.ones(9, np.float32)
    V, c = np.ones((9, 4), np.float32), np.ones(4, np.float32)
    good = [(W, b), (V, c)]
    x, y = np.ones((7, 6), np.float32), np.zeros(7, np.int32)
    return [
        ("width of x", {"x": x[:, :5]}, "x has shape (7, 5), expected (..., 6): layer 1 has 6 inputs"),
        ("scalar x", {"x": np.float32(1)}, "x has shape (), expected (..., 6)"),
        ("integer x", {"x": np.ones((7, 6), np.uint8)}, "x has dtype uint8, expected a floating dtype"),
        ("empty batch", {"x": x[:0], "y": y[:0]}, "x has shape (0, 6): the batch is empty"),
        ("no layers", {"params": []}, "params is a list of 0, expected a list [(W, b), ...] of at least one layer"),
        ("flat params", {"params": [W, b]}, "layer 1: params[0] is an array of shape (6, 9), expected a pair (W, b)"),
        ("b's width", {"params": [(W, c), (V, c)]}, "layer 1: W has shape (6, 9) and b (4,), expected (n_in, n_out)"),
        ("W's rank", {"params": [(W[0], b), (V, c)]}, "layer 1: W has shape (9,) and b (9,), expected (n_in, n_out)"),
        ("chain", {"params": [(W, b), (W, b)]}, "layer 2: W has 6 rows, but layer 1 has 9 outputs"),
        (
            "integer W",
            {"params": [(W.astype(int), b), (V, c)]},
            "layer 1: W has dtype int32, expected one floating dtype throughout",
        ),
        (
            "mixed dtypes",
            {"params": [(W, b), (V.astype(np.float16), c)]},
            "layer 2: W has dtype float16, expected one floating dtype throughout, float32 as in layer 1",
        ),
        ("ids' shape", {"y": y[:3]}, "y has dtype int32, so it holds class ids, and shape (3,), expected (7,)"),
        (
            "targets' shape",
            {"y": np.ones((7, 3), np.float32)},
            "y has dtype float32, so it holds targets, and shape (7, 3), expected (7, 4), like the output",
        ),
        ("boolean y", {"y": y > 0}, "y has dtype bool, expected an integer dtype (class ids) or a floating one"),
        ("weights", {"sample_weight": np.ones(3)}, "sample_weight has shape (3,), expected (7,), one per sample"),
        (
            "complex weights",
            {"sample_weight": np.ones(7, complex)},
            "sample_weight has dtype complex64, expected a real",
        ),
        ("boolean masks", {"masks": [x > 0, None]}, "masks[0] has dtype bool, expected a floating dtype"),
        ("integer products", {"compute_dtype": jnp.int32}, "expected a floating dtype, e.g. 'bfloat16'"),
        ("unknown dtype", {"compute_dtype": "bf16"}, "compute_dtype is 'bf16', expected a floating dtype"),
        ("dtype not switched on", {"compute_dtype": float}, "compute_dtype is float64, which JAX would make float32"),
        ("masks' number", {"masks": [None]}, "masks is a list of 1, expected 2 of them, for a_0 to a_1"),
        ("masks' shape", {"masks": [None, np.ones(9)]}, "masks[1] has shape (9,), expected (7, 9) as a_1 has"),
        ("hidden's number", {"hidden": (activations.relu,) * 2}, "hidden is a tuple of 2, expected an Activation or a"),
        ("bare function", {"hidden": jnp.tanh}, "layer 1: the activation is "),
        ("factory", {"hidden": activations.leaky_relu}, "expected an Activation: a function alone has no derivative"),
        ("output's name", {"output": "relu"}, "layer 2: the activation is 'relu' of type str, expected an Activation"),
        ("loss's name", {"loss": "mse"}, "loss is 'mse' of type str, expected a Loss"),
    ], {"params": good, "x": x, "y": y}


@pytest.mark.parametrize(("changes", "message"), [pytest.param(*row[1:], id=row[0]) for row in bad_calls()[0]])
def test_what_does_not_fit_is_named(changes, message):
    call = bad_calls()[1] | changes
    for function in (funcnet.objective, funcnet.backward, funcnet.value_and_backward):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(**call)
    if changes.keys() <= {"params", "x", "masks", "hidden", "output", "compute_dtype"}:
        call.pop("y")
        with pytest.raises(ValueError, match=re.escape(message)):
            funcnet.forward(**call)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((784,), "sizes is a tuple of 1, expected at least two widths, e.g. (784, 128, 10)"),
        (784, "sizes is 784 of type int, expected at least two widths"),
        ((784, 12.5, 10), "sizes[1] is 12.5, expected a whole number >= 0"),
        ((784, 10, 0), "sizes[2] is 0, expected a whole number >= 1"),
        ((784, -1, 10), "sizes[1] is -1, expected a whole number >= 0"),
    ],
)
def test_bad_sizes_are_named(sizes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        funcnet.init(jax.random.key(0), sizes)


def test_init_refuses_an_integer_dtype():
    with pytest.raises(ValueError, match="dtype is int32, expected a floating dtype"):
        funcnet.init(jax.random.key(0), SIZES, dtype=jnp.int32)
