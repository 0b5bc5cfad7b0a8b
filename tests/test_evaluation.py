"""Outputs, loss and accuracy over many samples, against NumPy in float64; several networks as one."""

import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import funcnet
from funcnet import Network, activations, evaluation, training

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


def test_training_has_it_too():
    assert training.evaluate is evaluation.evaluate


def test_who_is_right():
    out = jnp.array([[1.0], [-1.0], [2.0]])
    assert evaluation.is_correct(out, jnp.array([1, 1, 0])).tolist() == [True, False, False]
    assert evaluation.is_correct(out, jnp.array([[1.0], [0.0], [0.9]])).tolist() == [True, True, True]
    assert evaluation.is_correct(jnp.array([[0.0, 1.0]]), jnp.array([[0.2, 0.7]])).tolist() == [True]


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


def test_one_logit_has_two_classes_and_one_softmax_class_one():
    params, x = oracle.network(0, (6, 1), np.float32), np.ones((2, 6), np.float32)
    assert np.isfinite(
        evaluation.evaluate(params, x, np.array([0, 1]), Network(loss=funcnet.sigmoid_cross_entropy)).loss
    )
    with pytest.raises(ValueError, match=r"y\[1\] is 1, expected a class id from 0 to 0"):
        evaluation.evaluate(params, x, np.array([0, 1]))


@pytest.mark.parametrize("shape", [(1, 4), (3, 7, 4), (2, 5, 3, 4)])
def test_an_ensemble_says_the_mean_of_probabilities(shape):
    logits = np.random.default_rng(0).normal(size=shape).astype(np.float32) * 3
    p = np.exp(logits.astype(float))
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(evaluation.ensemble(jnp.asarray(logits)), np.log(p.mean(0)), rtol=1e-5, atol=1e-6)
