"""`Network`, one static value for all that is static, and what functions say to arguments that do not fit."""

import pickle
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import funcnet
from funcnet import (
    Activation,
    Loss,
    Network,
    activations,
    curvature,
    evaluation,
    losses,
    per_sample,
    regularizers,
    testing,
    training,
)

SIZES = (6, 9, 4)
EACH_ACTIVATION = (*activations.SHIPPED, activations.leaky_relu(0.2))


def square(z):
    return z * z


def square_slope(z, a):
    return 2 * z


def distance(out, y):
    return jnp.abs(out - y).sum(-1)


def distance_delta(out, y):
    return jnp.sign(out - y)


def as_it_is(out):
    return out


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(7, 6)).astype(np.float32), rng.integers(0, 4, 7).astype(np.int32)
    return oracle.network(0, SIZES, np.float32), x, y


# One value.


def test_it_is_compared_by_value_and_keeps_a_list_as_a_tuple():
    relu, tanh = activations.relu, activations.tanh
    one, other = Network([relu, tanh]), Network((relu, tanh))
    assert one == other
    assert hash(one) == hash(other)
    assert one.hidden == (relu, tanh)
    for dtype in ("bfloat16", jnp.bfloat16, np.dtype(jnp.bfloat16)):
        network = Network(compute_dtype=dtype)
        assert isinstance(network.compute_dtype, str)  # NumPy's float64 is equal to None
        assert network.compute_dtype == "bfloat16"
        assert network == Network(compute_dtype="bfloat16")
    different = [
        Network(),
        Network(tanh),
        Network((tanh,)),
        Network((relu, tanh)),
        Network((tanh, relu)),
        Network(output=tanh),
        Network(loss=losses.squared_error),
        Network(activations.leaky_relu(0.1)),
        Network(activations.leaky_relu(0.2)),
        *(Network(compute_dtype=dtype) for dtype in ("float16", "bfloat16", "float32", "float64")),
    ]
    assert [[a == b for b in different] for a in different] == np.eye(len(different), dtype=bool).tolist()
    assert len(set(different)) == len(set(map(repr, different))) == len(different)


def test_it_is_changed_by_replace_and_in_no_other_way():
    network = replace(Network(activations.tanh), compute_dtype="bfloat16")
    assert network == Network(activations.tanh, compute_dtype=jnp.bfloat16)
    assert network.loss is losses.softmax_cross_entropy
    for value, name in ((network, "loss"), (activations.tanh, "fn"), (losses.squared_error, "delta")):
        with pytest.raises(AttributeError, match=f"cannot assign to field '{name}'"):
            setattr(value, name, None)


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (Network(), "Network()"),
        (Network(activations.tanh), "Network(hidden=tanh)"),
        (Network([activations.relu, activations.leaky_relu(0.2)]), "Network(hidden=(relu, leaky_relu(0.2)))"),
        (Network(output=activations.sigmoid), "Network(output=sigmoid)"),
        (
            Network(activations.gelu, loss=losses.squared_error, compute_dtype=jnp.bfloat16),
            "Network(hidden=gelu, loss=squared_error, compute_dtype='bfloat16')",
        ),
        (Network(compute_dtype="float64"), "Network(compute_dtype='float64')"),
    ],
)
def test_its_repr_is_short_and_python(network, text):
    assert repr(network) == str(network) == text
    assert eval(text, vars(funcnet)) == network


def test_a_function_of_one_s_own_is_told_from_the_shipped_one_of_its_name():
    relu = Activation("relu", square, square_slope)
    loss = Loss("squared_error", distance, distance_delta, as_it_is)
    assert str(Network(relu, loss=loss)) == "Network(hidden=Activation('relu', ...), loss=Loss('squared_error', ...))"
    assert Network(relu) != Network()


def test_it_has_no_leaves():
    for value in (Network(), Network([activations.tanh]), activations.relu, losses.squared_error):
        assert jax.tree.leaves(value) == []
        assert jax.tree.map(jnp.sin, {"of a tree": (value, 0.0)})["of a tree"][0] == value


def test_it_tells_the_activations_of_its_layers():
    relu, tanh, identity = activations.relu, activations.tanh, activations.identity
    assert Network(tanh).activations(3) == (tanh, tanh, identity)
    assert Network([relu, tanh], output=relu).activations(3) == (relu, tanh, relu)
    assert Network(tanh).activations(1) == Network([]).activations(1) == (identity,)
    with pytest.raises(ValueError, match="hidden is a tuple of 2, expected an Activation or 3 of them, one for each "):
        Network([relu, tanh]).activations(4)


# Through the transformations of JAX.


def test_it_goes_through_every_transformation_as_an_argument_or_closed_over(data):
    params, x, y = data
    network = Network([activations.tanh], loss=losses.sigmoid_cross_entropy)
    backward, objective = funcnet.backward, funcnet.objective
    of_batch = backward(params, x, y, network)
    of_samples = jax.tree.map(lambda *rows: jnp.stack(rows), *[backward(params, x[i], y[i], network) for i in range(7)])
    plain = backward(params, x, y)
    assert min(oracle.errors_in_eps(of_batch, plain)) > 1e3  # so that no call below can have left it out

    carried, scanned = jax.lax.scan(lambda net, xy: (net, backward(params, *xy, net)), network, (x, y))
    assert carried == network
    for got in (
        scanned,
        jax.lax.scan(lambda carry, xy: (carry, backward(params, *xy, network)), 0, (x, y))[1],
        jax.vmap(backward, (None, 0, 0, None))(params, x, y, network),
        jax.vmap(backward, (None, 0, 0))(params, x, y, network=network),
        jax.vmap(partial(backward, network=network), (None, 0, 0))(params, x, y),
        jax.vmap(lambda x, y: backward(params, x, y, network))(x, y),
    ):
        assert max(oracle.errors_in_eps(got, of_samples)) <= 16
    for got in (
        jax.jit(backward)(params, x, y, network=network),
        jax.jit(backward)(params, x, y, network),
        jax.jit(lambda params, x, y: backward(params, x, y, network))(params, x, y),
        jax.grad(objective)(params, x, y, network),
        jax.grad(objective)(params, x, y, network=network),
        jax.grad(partial(objective, network=network))(params, x, y),
        jax.value_and_grad(objective)(params, x, y, network)[1],
    ):
        assert max(oracle.errors_in_eps(got, of_batch)) <= 16


def test_one_trace_for_one_shape_and_one_static_value(data):
    params, x, y = data
    start = funcnet.backward._cache_size()
    for _ in range(2):
        funcnet.backward(params, x, y, Network(activations.leaky_relu(0.123)))
        assert funcnet.backward._cache_size() == start + 1
    funcnet.backward(params, x[:3], y[:3], Network(activations.leaky_relu(0.123)))
    assert funcnet.backward._cache_size() == start + 2
    funcnet.backward(params, x, y, Network(activations.leaky_relu(0.124)))
    assert funcnet.backward._cache_size() == start + 3


def networks_of_all_that_ships():
    """Between them every activation, every loss and a `compute_dtype`, made anew each time."""
    for i, f in enumerate(EACH_ACTIVATION):
        hidden = activations.from_name(f.name)
        loss = losses.from_name(losses.SHIPPED[i % 3].name)
        output = hidden if loss == losses.squared_error else activations.identity
        yield Network(
            [hidden] if i % 2 else hidden, output, loss, [None, "bfloat16", jnp.bfloat16, np.dtype("float16")][i % 4]
        )


def test_equal_networks_are_one_trace_even_after_a_pickle():
    params, x = oracle.network(0, (5, 7, 3), np.float32), np.ones((2, 5), np.float32)
    start = funcnet.forward._cache_size()
    for i, (network, again) in enumerate(zip(networks_of_all_that_ships(), networks_of_all_that_ships(), strict=True)):
        assert network is not again
        copies = [
            library.loads(library.dumps(value)) for library in (pickle, cloudpickle) for value in (network, again)
        ]
        for value in (network, again, *copies):
            assert value == network
            assert hash(value) == hash(network)
            funcnet.forward(params, x, value)
            assert funcnet.forward._cache_size() == start + i + 1


def test_another_process_has_the_same_networks():
    """Sent both ways by either library: there they are equal, and what comes back is equal to what was sent."""
    code = (
        "import pickle, sys, cloudpickle\n"
        "one, other = map(pickle.loads, pickle.load(sys.stdin.buffer))\n"
        "assert one == other and list(map(hash, one)) == list(map(hash, other))\n"
        "pickle.dump([pickle.dumps(one), cloudpickle.dumps(other)], sys.stdout.buffer)"
    )
    sent = [*networks_of_all_that_ships(), *EACH_ACTIVATION, *losses.SHIPPED]
    data = pickle.dumps([pickle.dumps(sent), cloudpickle.dumps(sent)])
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    for back in map(pickle.loads, pickle.loads(done.stdout)):
        assert back == sent
        assert list(map(hash, back)) == list(map(hash, sent))


def test_functions_of_one_s_own_are_pickled_if_they_can_be_imported():
    mine = Network(
        Activation("square", square, square_slope), loss=Loss("distance", distance, distance_delta, as_it_is)
    )
    for library in (pickle, cloudpickle):
        copy = library.loads(library.dumps(mine))
        assert copy == mine
        assert hash(copy) == hash(mine)
    # The name of a shipped one does not make it that one.
    relu = Activation("relu", square, square_slope)
    assert pickle.loads(pickle.dumps(relu)) == relu != activations.relu


def test_a_lambda_goes_by_cloudpickle_and_arrives_as_a_new_function():
    mine = Activation("square", lambda z: z * z, lambda z, a: 2 * z)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(mine)
    copy = cloudpickle.loads(cloudpickle.dumps(mine))
    assert copy != mine
    assert (copy.name, copy.fn(3.0), copy.deriv(3.0, None)) == ("square", 9.0, 6.0)


# What does not fit.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden": jnp.tanh}, r"hidden is .* of type \w+, expected an Activation: a function alone has no derivative"),
        ({"hidden": activations.leaky_relu}, r"hidden is .*: a function .* is called: leaky_relu\(0.01\)\)"),
        ({"hidden": "relu"}, "hidden is 'relu' of type str, expected an Activation$"),
        ({"hidden": None}, "hidden is None of type NoneType, expected an Activation$"),
        ({"hidden": [activations.relu, "relu"]}, r"hidden\[1\] is 'relu' of type str, expected an Activation$"),
        ({"hidden": (lambda z: z,)}, r"hidden\[0\] is .* of type function, expected an Activation: a function alone"),
        ({"hidden": losses.squared_error}, "hidden is squared_error of type Loss, expected an Activation$"),
        ({"output": "relu"}, "output is 'relu' of type str, expected an Activation$"),
        ({"output": jax.nn.softmax}, "output is .*, expected an Activation: a function alone has no derivative"),
        ({"output": [activations.relu]}, "output is a list of 1, expected an Activation$"),
        ({"loss": "mse"}, "loss is 'mse' of type str, expected a Loss$"),
        ({"loss": activations.relu}, "loss is relu of type Activation, expected a Loss$"),
        ({"compute_dtype": jnp.int32}, "compute_dtype is .*int32.*, expected a floating dtype, e.g. 'bfloat16'"),
        ({"compute_dtype": "bf16"}, "compute_dtype is 'bf16', expected a floating dtype"),
        ({"compute_dtype": complex}, "compute_dtype is .*complex.*, expected a floating dtype"),
    ],
)
def test_a_wrong_field_is_named(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Network(**fields)
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(Network(), **fields)


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
            "transposed W",
            {"params": [(W.T, b), (V.T, c)]},
            "layer 1: W has shape (9, 6) and b (9,), expected (n_in, n_out) and (n_out,): (n_out, n_in) as in PyTorch? "
            "then W.T",
        ),
        ("no bias", {"params": [(W, None), (V, c)]}, "layer 1: b is None of type NoneType, expected an array; a layer"),
        ("names", {"params": [("W", "b")]}, "params[0][0] is a str, expected an array of JAX or NumPy"),
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
        ("masks' number", {"masks": [None]}, "masks is a list of 1, expected 2 of them, for a_0 to a_1"),
        ("masks' shape", {"masks": [None, np.ones(9)]}, "masks[1] has shape (9,), expected (7, 9) as a_1 has"),
        (
            "dtype not switched on",
            {"network": Network(compute_dtype=float)},
            "compute_dtype is float64, which JAX would make float32",
        ),
        (
            "hidden's number",
            {"network": Network((activations.relu,) * 2)},
            "hidden is a tuple of 2, expected an Activation or 1 of them, one for each hidden layer of 2 layers",
        ),
        (
            "an activation",
            {"network": activations.tanh},
            "network is tanh of type Activation, expected a Network: Network(hidden=tanh)",
        ),
        ("a loss", {"network": losses.squared_error}, "network is squared_error of type Loss, expected a Network"),
        (
            "activations",
            {"network": [activations.tanh]},
            "network is a list of 1, expected a Network: Network(hidden=[tanh])",
        ),
        ("a name", {"network": "relu"}, "network is 'relu' of type str, expected a Network"),
        ("no network", {"network": None}, "network is None of type NoneType, expected a Network"),
    ], {"params": good, "x": x, "y": y}


@pytest.mark.parametrize(("changes", "message"), [pytest.param(*row[1:], id=row[0]) for row in bad_calls()[0]])
def test_what_does_not_fit_is_named(changes, message):
    call = bad_calls()[1] | changes
    for function in (funcnet.objective, funcnet.backward, funcnet.value_and_backward):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(**call)
    if changes.keys() <= {"params", "x", "masks", "network"}:
        call.pop("y")
        with pytest.raises(ValueError, match=re.escape(message)):
            funcnet.forward(**call)


SQUASHED = [
    (Network(), 1, "softmax_cross_entropy over one output is always 0: for two classes take"),
    (Network(output=activations.sigmoid), 4, "softmax_cross_entropy takes logits, and output=sigmoid squashes them"),
    *(
        (Network(output=f, loss=losses.sigmoid_cross_entropy), K, f"sigmoid_cross_entropy takes logits, and output={f}")
        for f, K in (
            (activations.sigmoid, 1),
            (activations.relu, 4),
            (activations.leaky_relu(0), 1),
            (activations.silu, 4),
        )
    ),
]


@pytest.mark.parametrize(("network", "K", "message"), SQUASHED, ids=str)
def test_a_loss_on_outputs_that_it_is_not_for_is_refused_while_tracing(network, K, message):
    """By everything that takes the loss, under jit, with class ids and with targets; not by a forward pass."""
    params, x = oracle.network(0, (6, K), np.float32), np.ones((7, 6), np.float32)
    for y in np.zeros(7, np.int32), np.ones((7, K), np.float32):
        calls = {name: call for name, call in TAKES_A_NETWORK.items() if name not in ("evaluate one output", "score")}
        for name in calls.keys() - {"forward", "forward_trace", "forward_in_batches"}:
            with pytest.raises(ValueError, match=re.escape(message)):
                calls[name](params, x, y, network)
        with pytest.raises(ValueError, match=re.escape(message)):
            jax.jit(funcnet.backward).lower(params, x, y, network)
    assert funcnet.forward(params, x, network).shape == (7, K)


def test_binary_cross_entropy_of_one_logit_is_that_of_numpy():
    """What is to be taken in place of softmax over one output."""
    rng = np.random.default_rng(0)
    params, x = oracle.network(0, (4, 16, 1), np.float32), rng.normal(size=(256, 4)).astype(np.float32)
    y = (x[:, :1] > 0).astype(np.float32)
    p = 1 / (1 + np.exp(-oracle.forward(params, x.astype(float), "relu")))
    want = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    for targets in y, y[:, 0].astype(np.int32):
        value = funcnet.objective(params, x, targets, Network(loss=losses.sigmoid_cross_entropy))
        assert value == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("y", [np.array([True, False]), np.array(["cat", "dog"]), np.array([0, None]), ["0", "1"]])
def test_labels_are_numbers(y):
    with pytest.raises(ValueError, match=r"y has dtype .*, expected an integer dtype \(class ids\) .* np.unique"):
        funcnet.check_labels(y, 2)


@pytest.mark.parametrize("fn", [lambda out, y: (out - y) ** 2, lambda out, y: jnp.mean((out - y) ** 2)])
def test_a_loss_that_is_not_one_number_for_each_sample_is_named(fn):
    network = Network(loss=Loss("mine", fn, lambda out, y: 2 * (out - y), as_it_is))
    params, x, y = oracle.network(0, (6, 1), np.float32), np.ones((7, 6), np.float32), np.ones((7, 1), np.float32)
    for function in (funcnet.objective, funcnet.value_and_backward, evaluation.evaluate):
        with pytest.raises(
            ValueError, match=r"loss mine gives shape .* for outputs \(7, 1\), expected \(7,\): one number"
        ):
            function(params, x, y, network)


def test_weights_whose_sum_would_overflow():
    params, x, y = oracle.network(0, (6, 4), np.float32), np.ones((7, 6), np.float32), np.arange(7) % 4
    w = np.linspace(1, 2, 7).astype(np.float32)
    want = funcnet.backward(params, x, y, sample_weight=w)
    for scale in (1e38, 1e-37, -1):
        got = funcnet.backward(params, x, y, sample_weight=w * np.float32(scale))
        assert max(oracle.errors_in_eps(got, want)) <= 16


TAKES_A_NETWORK = {
    "forward": lambda params, x, y, net: funcnet.forward(params, x, net),
    "forward_trace": lambda params, x, y, net: funcnet.forward_trace(params, x, net),
    "predict": lambda params, x, y, net: funcnet.predict(params, x, net),
    "objective": funcnet.objective,
    "backward": funcnet.backward,
    "per_sample_backward": per_sample.per_sample_backward,
    "per_sample_norms": per_sample.per_sample_norms,
    "clipped_backward": partial(per_sample.clipped_backward, max_norm=1.0),
    "private_sum": partial(per_sample.private_sum, jax.random.key(0), max_norm=1.0, noise_multiplier=1.0),
    "input_backward": per_sample.input_backward,
    "gradient_moments": per_sample.gradient_moments,
    "gradient_noise_scale": per_sample.gradient_noise_scale,
    "gauss_newton_product": lambda params, *rest: curvature.gauss_newton_product(params, params, *rest),
    "kronecker_factors": curvature.kronecker_factors,
    "virtual_adversarial": lambda params, x, y, net: regularizers.virtual_adversarial(
        jax.random.key(0), params, x, y, None, net, radius=1.0
    ),
    "evaluate": evaluation.evaluate,
    "evaluate one output": lambda params, x, y, net: evaluation.evaluate(
        oracle.network(0, (6, 1), np.float32), x, np.zeros(7, np.int32), net
    ),
    "forward_in_batches": lambda params, x, y, net: evaluation.forward_in_batches(params, x, net),
    "score": lambda params, x, y, net: evaluation.score(np.zeros((7, 4), np.float32), y, net),
    "step": lambda params, x, y, net: training.make_step(funcnet.sgd(0.1), net)(
        training.init_state(params, funcnet.sgd(0.1)), jax.random.key(0), x, y
    ),
    "check_backward": testing.check_backward,
}


@pytest.mark.parametrize("name", TAKES_A_NETWORK)
def test_an_activation_in_the_place_of_a_network_is_named(data, name):
    with pytest.raises(
        ValueError, match=r"network is tanh of type Activation, expected a Network: Network\(hidden=tanh\)"
    ):
        TAKES_A_NETWORK[name](*data, activations.tanh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": 0}, "key is 0, expected a JAX random key: jax.random.key(0)"),
        ({"key": np.int64(3)}, "key is 3, expected a JAX random key: jax.random.key(3)"),
        ({"key": None}, "key is None of type NoneType, expected a JAX random key, e.g. jax.random.key(0)"),
        (
            {"key": jax.random.split(jax.random.key(0), 3)},
            "key is an array of shape (3,), expected a JAX random key: use vmap",
        ),
        ({"weights": "he"}, "weights is 'he', expected an initializer, e.g. funcnet.he_normal"),
        ({"biases": 0.0}, "biases is 0.0, expected an initializer"),
        ({"dtype": np.int32}, "dtype is int32, expected a floating dtype, e.g. 'bfloat16'"),
        ({"dtype": complex}, "dtype is complex128, expected a floating dtype"),
        ({"dtype": "float64"}, "dtype is float64, which JAX would make float32: set jax_enable_x64 first"),
    ],
)
def test_a_wrong_start_is_named(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        funcnet.init(**{"key": jax.random.key(0), "sizes": (4, 3)} | changes)


def test_keys_of_every_kind_and_sizes_of_numpy_start_a_network():
    for key in (jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")):
        assert funcnet.init(key, np.array([4, 3]))[0][0].shape == (4, 3)
    assert funcnet.init(jax.random.key(0), (np.int64(4), 3), dtype=float)[0][0].dtype == np.float32


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


@pytest.mark.parametrize(
    ("sizes", "count"),
    [((4, 8, 1), 49), ((4, 8, 4, 1), 81), ((10, 32, 16, 5), 965), ((784, 256, 128, 64, 10), 242_762)],
)
def test_parameters_are_counted(sizes, count):
    params = oracle.network(0, sizes, np.float32)
    assert funcnet.count_parameters(params) == count
    assert funcnet.summary(params).splitlines()[-1].split() == ["total", "float32", f"{count:,}"]
