"""Outputs, loss and accuracy over many samples, against NumPy in float64; several networks as one."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import sklearn.metrics

import funcnet
from funcnet import Network, activations, evaluation, sgd, training

SIZES = (6, 9, 4)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (23, 6)).astype(np.uint8), rng.integers(0, 4, 23).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return oracle.network(0, SIZES, np.float32)


@pytest.mark.parametrize("size", [1, 5, 23, 1000])
def test_outputs_are_those_of_one_forward_pass_in_the_order_of_the_samples(data, params, size):
    def halved(key, x):
        assert key is None
        return x.astype(jnp.float32) / 510

    network = Network(activations.tanh, output=activations.sigmoid)
    for x, transform, as_seen in (
        (data[0], None, data[0] / 255.0),
        (data[0], halved, data[0] / 510.0),
        (data[0].astype(np.float32), None, data[0].astype(float)),
    ):
        out = evaluation.forward_in_batches(params, x, network, batch_size=size, transform=transform)
        assert (out.shape, out.dtype) == ((23, 4), np.float32)
        assert max(oracle.errors_in_eps([out], [oracle.forward(params, as_seen, "tanh", "sigmoid")])) <= 16


@pytest.mark.parametrize("size", [1, 5, 23, 1000])
@pytest.mark.parametrize("loss", funcnet.losses.SHIPPED, ids=lambda loss: loss.name)
def test_evaluation_is_the_mean_whatever_the_batch_size(data, params, size, loss):
    x, y = data
    network = Network(activations.tanh, loss=loss)
    out = oracle.forward(params, x / 255.0, "tanh")
    for metrics in (
        evaluation.evaluate(params, x, y, network, batch_size=size),
        evaluation.score(jnp.asarray(out, jnp.float32), y, network),
    ):
        assert metrics.loss == pytest.approx(oracle.objective(params, x / 255.0, y, "tanh", loss.name), rel=1e-5)
        assert metrics.accuracy == pytest.approx((out.argmax(1) == y).mean())
        assert metrics.exact_match is metrics.r2 is None


def test_training_has_it_too():
    assert training.evaluate is evaluation.evaluate


# What a figure means: the outputs and targets of a network, and which scikit-learn function says the same.
CLASSES, LABELS = Network(), Network(loss=funcnet.sigmoid_cross_entropy)
VALUES = Network(loss=funcnet.squared_error)
PROBABILITIES = Network(output=activations.sigmoid, loss=funcnet.squared_error)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("network", "K", "kind", "expected"),
    [
        (CLASSES, 3, "ids", ["accuracy"]),
        (CLASSES, 3, "one of K", ["accuracy"]),
        (VALUES, 3, "ids", ["accuracy"]),
        (LABELS, 3, "ids", ["accuracy"]),
        (LABELS, 1, "ids", ["accuracy"]),
        (LABELS, 1, "labels", ["accuracy"]),
        (LABELS, 3, "labels", ["accuracy", "exact_match"]),
        (PROBABILITIES, 1, "labels", ["accuracy", "r2"]),
        (PROBABILITIES, 3, "labels", ["accuracy", "exact_match", "r2"]),
        (VALUES, 1, "values", ["r2"]),
        (VALUES, 3, "values", ["r2"]),
    ],
    ids=str,
)
def test_figures_are_those_of_scikit_learn(network, K, kind, expected, weighted):
    rng = np.random.default_rng(0)
    out = rng.normal(size=(40, K)).astype(np.float32)
    if network is PROBABILITIES:
        out = 1 / (1 + np.exp(-out))
    y = {
        "ids": rng.integers(0, max(K, 2), 40),
        "one of K": np.eye(K, dtype=np.float32)[rng.integers(0, K, 40)],
        "labels": rng.integers(0, 2, (40, K)).astype(np.float32),
        "values": rng.normal(size=(40, K)).astype(np.float32),
    }[kind]
    w = rng.uniform(size=40).astype(np.float32) if weighted else None

    boundary = 0.5 if network is PROBABILITIES else 0
    if kind == "labels" or (kind == "ids" and K == 1):
        said, true = out > boundary, y.reshape(40, K) > 0
    else:
        said, true = out.argmax(1), y if kind == "ids" else y.argmax(1)
    theirs = {
        "accuracy": lambda: np.average((said == true).reshape(40, -1).mean(1), weights=w),
        "exact_match": lambda: sklearn.metrics.accuracy_score(true, said, sample_weight=w),
        "r2": lambda: sklearn.metrics.r2_score(y, out, sample_weight=w),
    }
    metrics = evaluation.score(out, y, network, sample_weight=w)._asdict()
    assert [name for name, value in metrics.items() if value is not None] == ["loss", *expected]
    for name in expected:
        assert metrics[name] == pytest.approx(theirs[name](), rel=1e-5), name


def test_xor_is_solved_and_says_so():
    """Two sigmoid layers and the squared error, as it was first taught."""
    params = [
        (np.array([[20, -20], [20, -20]], np.float32), np.array([-10, 30], np.float32)),
        (np.array([[20], [20]], np.float32), np.array([-30], np.float32)),
    ]
    network = Network(activations.sigmoid, activations.sigmoid, funcnet.squared_error)
    x, y = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32), np.array([[0], [1], [1], [0]], np.float32)
    metrics = evaluation.evaluate(params, x, y, network)
    assert metrics.accuracy == 1
    assert metrics.r2 == pytest.approx(1, abs=1e-6)
    step = jax.jit(training.make_step(sgd(0.0), network))
    assert step(training.init_state(params, sgd(0.0)), jax.random.key(0), x, y)[1].accuracy == 1


def test_r2_of_targets_that_are_all_equal_is_scikit_learn_s():
    y = np.full((50, 1), 3.0, np.float32)
    for out in (y, y + np.arange(50, dtype=np.float32)[:, None]):
        assert evaluation.score(out, y, VALUES).r2 == sklearn.metrics.r2_score(y, out)
    y = np.concatenate([y, np.arange(50, dtype=np.float32)[:, None]], 1)
    out = (y + np.sin(np.arange(100)).reshape(50, 2)).astype(np.float32)
    assert evaluation.score(out, y, VALUES).r2 == pytest.approx(sklearn.metrics.r2_score(y, out), rel=1e-5)
    w = np.arange(50) % 2.0  # those that count are all equal
    y[::2, 1], y[1::2, 1] = 7, 3
    assert evaluation.score(y, y, VALUES, sample_weight=w).r2 == 1


def test_what_is_not_a_number_is_not_correct_and_shapes_are_checked():
    nan = np.full((3, 4), np.nan, np.float32)
    assert not evaluation.is_correct(nan, np.zeros(3, np.int32)).any()
    assert not evaluation.is_correct(nan[:, :1], np.zeros(3, np.int32), LABELS).any()
    for y in (np.zeros((3, 1), np.int32), np.zeros(3, np.float32), np.eye(4, dtype=int)[:3]):
        with pytest.raises(ValueError, match=r"y has dtype .*, so it holds"):
            evaluation.is_correct(nan, y)
    with pytest.raises(ValueError, match=r"ensemble: logits has shape .*, expected .*, two classes or more"):
        evaluation.ensemble(jnp.zeros((2, 3, 1)))
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(M, \.\.\., K\)"):
        evaluation.ensemble([0.0, 1.0])


def test_scores_are_in_float32_at_least():
    ids = np.array([0, 1])
    out = np.array([[1, 2, 0], [3, 0, 1]])
    want = -np.log(np.exp(out)[range(2), ids] / np.exp(out).sum(1)).mean()
    for dtype in (np.int32, np.float16, np.float32):
        assert evaluation.score(out.astype(dtype), ids).loss == pytest.approx(want, rel=1e-6)
    assert evaluation.score(jnp.zeros((100_000, 3), jnp.float16), np.zeros(100_000, int)).loss == pytest.approx(
        np.log(3)
    )


def test_targets_of_labels_are_from_0_to_1(params):
    x, y = np.ones((2, 6), np.float32), np.array([[1, -1, 1, 1], [1, 1, 1, 1]], np.float32)
    with pytest.raises(ValueError, match=r"y\[0, 1\] is -1.0, expected targets from 0 to 1 .* by \(y \+ 1\) / 2"):
        evaluation.evaluate(params, x, y, LABELS)


def test_weights_and_lists_as_in_the_objective(data, params):
    x, y = data
    w = np.linspace(0, 1, 23)
    metrics = evaluation.evaluate(params, x, y.tolist(), sample_weight=w.tolist(), batch_size=np.int64(5))
    want = funcnet.objective(params, x.astype(np.float32) / 255, y, sample_weight=w)
    assert float(metrics.loss) == pytest.approx(float(want), rel=1e-6)
    out = oracle.forward(params, x / 255.0, "relu")
    assert metrics.accuracy == pytest.approx(np.average(out.argmax(1) == y, weights=w))


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (
            np.zeros((23, 1), np.int32),
            r"y has dtype int32, so it holds class ids, and shape \(23, 1\), expected \(23,\)",
        ),
        (np.zeros(23, np.float32), r"y has dtype float32, so it holds targets, and shape \(23,\), expected \(23, 4\)"),
        (np.zeros(23, bool), "y has dtype bool, expected an integer dtype"),
    ],
)
def test_evaluation_checks_targets_as_the_objective_does(data, params, y, message):
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(params, data[0], y)
    with pytest.raises(ValueError, match=message):
        evaluation.score(np.zeros((23, 4), np.float32), y)


def test_one_logit_has_two_classes():
    params, x = oracle.network(0, (6, 1), np.float32), np.ones((2, 6), np.float32)
    assert np.isfinite(evaluation.evaluate(params, x, np.array([0, 1]), LABELS).loss)
    with pytest.raises(ValueError, match=r"y\[1\] is 2, expected a class id from 0 to 1"):
        evaluation.evaluate(params, x, np.array([0, 2]), LABELS)


@pytest.mark.parametrize("shape", [(1, 4), (3, 7, 4), (2, 5, 3, 4)])
def test_an_ensemble_says_the_mean_of_probabilities(shape):
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 3
    p = np.exp(logits.astype(float))
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(evaluation.ensemble(jnp.asarray(logits)), np.log(p.mean(0)), rtol=1e-5, atol=1e-6)


def test_r2_where_the_mean_is_large_is_numpy_s():
    rng = np.random.default_rng(0)
    y = (2e4 + 3 * rng.normal(size=(50_000, 1))).astype(np.float32)
    out = (y + 1.5 * rng.normal(size=y.shape)).astype(np.float32)
    exact, missed = y.astype(np.float64), y.astype(np.float64) - out
    truth = 1 - (missed**2).sum() / ((exact - exact.mean()) ** 2).sum()
    assert evaluation.score(out, y, Network(loss=funcnet.squared_error)).r2 == pytest.approx(truth, rel=1e-4)


def test_targets_that_name_no_class_are_not_correct():
    out, y = np.array([[5.0, 0, 0], [5.0, 0, 0]], np.float32), np.array([[0.0, 0, 0], [1, 0, 0]], np.float32)
    np.testing.assert_array_equal(evaluation.is_correct(out, y), [False, True])


@pytest.mark.parametrize(
    ("network", "K", "y", "message"),
    [
        (
            Network(),
            3,
            [-1.0, 1, -1],
            r"y\[0, 0\] is -1.0, expected targets from 0 and above for softmax",
        ),
        (
            Network(output=activations.sigmoid, loss=funcnet.squared_error),
            1,
            [-1.0],
            r"y\[0, 0\] is -1.0, expected targets from 0 and above for the output sigmoid; convert targets of -1",
        ),
    ],
    ids=["logits", "probability"],
)
def test_targets_that_mean_something_else_are_refused(network, K, y, message):
    params, x, y = oracle.network(0, (6, K), np.float32), np.ones((4, 6), np.float32), np.array([y] * 4, np.float32)
    epoch = training.make_epoch(sgd(0.1), network, batch_size=2)
    with pytest.raises(ValueError, match=message):
        evaluation.evaluate(params, x, y, network)
    with pytest.raises(ValueError, match=message):
        epoch(training.init_state(params, sgd(0.1)), jax.random.key(0), x, y)


def test_what_is_no_data_set_is_named(params):
    x, y = np.ones((2, 6), np.float32), np.array([0, 1])
    for wrong, message in (
        (lambda: evaluation.evaluate(None, x, y), r"params is None .*, expected a list \[\(W, b\), ...\]"),
        (lambda: evaluation.evaluate(params, 1.0, y), r"x has shape \(\), expected one entry for each sample"),
        (lambda: evaluation.score(1.0, y), r"out has shape \(\), expected \(..., K\)"),
        (lambda: evaluation.is_correct(x, y, funcnet.relu), r"network is relu .*, expected a Network: Network\(hidden"),
        (lambda: funcnet.check_labels(y, "3"), "classes is '3' of type str, expected a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_rounding_and_scaled_test_data_are_no_mistake(params):
    """Targets a little out of range, and outputs for ids that a transform makes rows of."""
    x, slightly = np.ones((3, 6), np.float32), np.array([[1 + 2e-7, -2e-7, 0, 0]] * 3, np.float32)
    probabilities = Network(output=activations.sigmoid, loss=funcnet.squared_error)
    for network, y in (
        (Network(), slightly),
        (Network(loss=funcnet.sigmoid_cross_entropy), slightly),
        (probabilities, np.full((3, 4), 1.2, np.float32)),
    ):
        assert np.isfinite(evaluation.evaluate(params, x, y, network).loss)
    rows = evaluation.evaluate(params, np.arange(3), np.arange(3), transform=lambda _, ids: jax.nn.one_hot(ids, 6))
    assert np.isfinite(rows.loss)
    assert evaluation.is_correct(np.zeros((0, 3)), np.zeros(0, int)).shape == (0,)
