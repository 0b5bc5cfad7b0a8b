"""Each loss and its delta, against NumPy in float64 and against JAX, at the edges above all."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from funcnet import losses, sigmoid_cross_entropy, softmax_cross_entropy, squared_error

EACH = pytest.mark.parametrize("loss", losses.SHIPPED, ids=lambda loss: loss.name)


def jax_delta(loss, out, y):
    return jax.grad(lambda out: loss.fn(out, y).sum())(out)


def targets(rng, kind, n, K, dtype):
    if kind == "ids":
        return rng.integers(0, K, n).astype(np.int32)
    y = rng.uniform(size=(n, K))  # rows that sum to anything
    return (y if kind == "soft" else np.eye(K)[rng.integers(0, K, n)]).astype(dtype)


def test_against_numpy_and_jax(dtype):
    """Every loss on every kind of target, in one program."""
    rng = np.random.default_rng(0)
    out = rng.normal(size=(50, 6)).astype(dtype)
    kinds = {kind: targets(rng, kind, 50, 6, dtype) for kind in ("ids", "one-hot", "soft")}
    cases = list(itertools.product(losses.SHIPPED, kinds))

    @jax.jit
    def everything(out, kinds):
        return [(loss.fn(out, kinds[kind]), loss.delta(out, kinds[kind]), jax_delta(loss, out, kinds[kind]))
                for loss, kind in cases]  # fmt: skip

    eps = float(jnp.finfo(dtype).eps)
    for (loss, kind), (value, delta, by_jax) in zip(cases, everything(out, kinds), strict=True):
        y = np.eye(6)[kinds[kind]] if kind == "ids" else kinds[kind].astype(np.float64)
        assert value.shape == (50,)
        assert value.dtype == delta.dtype == dtype
        np.testing.assert_allclose(value, oracle.LOSSES[loss.name](out.astype(np.float64), y), rtol=16 * eps)
        (truth,) = oracle.complex_step(lambda a, loss=loss, y=y: oracle.LOSSES[loss.name](a[0], y).sum(), [out])
        assert np.abs(delta - truth).max() <= 16 * eps * np.abs(truth).max(), (loss, kind)
        assert np.abs(delta - by_jax).max() <= 8 * eps * np.abs(truth).max(), (loss, kind)


@pytest.mark.parametrize("ids", [np.int8, np.uint8, np.int32, np.uint32])
@EACH
def test_class_ids_of_any_integer_dtype(loss, ids):
    out = jnp.asarray(np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32))
    y = np.array([0, 7, 127]).astype(ids)
    one_hot = jnp.asarray(np.eye(300, dtype=np.float32)[y])
    np.testing.assert_array_equal(loss.fn(out, jnp.asarray(y)), loss.fn(out, one_hot))
    np.testing.assert_array_equal(loss.delta(out, jnp.asarray(y)), loss.delta(out, one_hot))


@pytest.mark.parametrize("bad", [-1, 3, 100, np.iinfo(np.int32).min, np.iinfo(np.int32).max])
@EACH
def test_an_id_out_of_range_is_nan_in_loss_and_gradient(loss, bad):
    out, y = jnp.ones((2, 3)), jnp.array([1, bad])
    for values in (loss.fn(out, y), jax.jit(loss.delta)(out, y), jax_delta(loss, out, y)):
        assert not np.isnan(values[0]).any()
        assert np.isnan(values[1]).all()


def test_one_class_has_no_loss_and_no_gradient():
    out, y = jnp.array([[3.0]]), jnp.array([0])
    assert softmax_cross_entropy.fn(out, y) == 0
    assert softmax_cross_entropy.delta(out, y) == jax_delta(softmax_cross_entropy, out, y) == 0


def test_one_output_tells_ids_zero_and_one_apart():
    out = jnp.array([[0.5], [-2.0]])
    ids, values = jnp.array([1, 0]), jnp.array([[1.0], [0.0]])
    np.testing.assert_array_equal(sigmoid_cross_entropy.fn(out, ids), sigmoid_cross_entropy.fn(out, values))
    np.testing.assert_array_equal(sigmoid_cross_entropy.delta(out, ids), sigmoid_cross_entropy.delta(out, values))
    assert np.isnan(sigmoid_cross_entropy.fn(out, jnp.array([2, -1]))).all()
    with pytest.raises(
        ValueError, match="squared_error: y has dtype int32, so it holds class ids, but the network has"
    ):
        squared_error.fn(out, ids)


@pytest.mark.parametrize("size", [1e4, 3e38])
@pytest.mark.parametrize("hard", ["ids", "one-hot"])
def test_softmax_at_huge_logits(size, hard):
    out = jnp.array([[size, -size, 0.0], [0.0, size, size]])
    y = jnp.array([0, 1]) if hard == "ids" else jnp.eye(3)[:2]
    np.testing.assert_allclose(softmax_cross_entropy.fn(out, y), [0, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(softmax_cross_entropy.delta(out, y), [[0, 0, 0], [0, -0.5, 0.5]])
    np.testing.assert_allclose(jax_delta(softmax_cross_entropy, out, y), [[0, 0, 0], [0, -0.5, 0.5]])
    wrong = softmax_cross_entropy.fn(out[:1], jnp.array([1]))
    assert wrong == np.float32(2 * size) if size < 1e38 else np.isposinf(wrong)


@pytest.mark.parametrize(
    ("z", "y", "value", "slope"),
    [
        (0.0, 1.0, np.log(2), -0.5),
        (0.0, 0.0, np.log(2), 0.5),
        (100.0, 0.0, 100.0, 1.0),
        (-100.0, 1.0, 100.0, -1.0),
        (20.0, 1.0, 2.0611536e-09, -2.0611536e-09),  # where 1 - sigmoid(20) is already 0
        (-20.0, 0.0, 2.0611536e-09, 2.0611536e-09),
        (3e38, 1.0, 0.0, 0.0),
        (3e38, 0.0, 3e38, 1.0),
    ],
)
def test_binary_cross_entropy_at_the_edges(z, y, value, slope):
    out, y = jnp.array([[z]]), jnp.array([[y]])
    np.testing.assert_allclose(sigmoid_cross_entropy.fn(out, y), [value], rtol=3e-7)
    np.testing.assert_allclose(sigmoid_cross_entropy.delta(out, y), [[slope]], rtol=3e-7)
    np.testing.assert_allclose(jax_delta(sigmoid_cross_entropy, out, y), [[slope]], rtol=3e-7)


@pytest.mark.parametrize("kind", ["ids", "one-hot"])
def test_the_tail_of_softmax(kind, dtype):
    """What is left of a sure and correct prediction: 1 - p is far below eps there. NumPy's truth is in 80 bits."""
    out = np.array([[20.0, 0, 0], [0, 30, 29.5], [5, 5, -70]], dtype)
    y = np.array([0, 1, 0], np.int32)
    exact = np.exp(out.astype(np.longdouble))
    others = np.array([exact[1 - np.eye(3)[k].astype(int) == 1].sum() for exact, k in zip(exact, y, strict=True)])
    true = np.exp(out[np.arange(3), y].astype(np.longdouble))
    delta = exact / exact.sum(-1, keepdims=True)
    delta[np.arange(3), y] = -others / (others + true)
    targets = y if kind == "ids" else np.eye(3, dtype=dtype)[y]
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(softmax_cross_entropy.fn(out, targets), np.log1p(others / true), rtol=8 * eps)
    np.testing.assert_allclose(softmax_cross_entropy.delta(out, targets), delta, rtol=8 * eps)
    np.testing.assert_allclose(jax_delta(softmax_cross_entropy, out, targets), delta, rtol=8 * eps)
    np.testing.assert_allclose(softmax_cross_entropy.predict(out), exact / exact.sum(-1, keepdims=True), rtol=8 * eps)


def test_where_logits_tie_all_derivatives_hold(x64):
    """Of the delta, by both modes, and of the loss, against the Hessian of the textbook: diag(p) - p p^T."""
    for logits in ([2.0, 2, 2], [1, 2, 2], [0, 0, -1]):
        out, p = np.array(logits, float), np.exp(logits) / np.exp(logits).sum()
        for k in range(3):
            for jacobian in (jax.jacfwd, jax.jacrev):
                by_hand = jacobian(lambda out, k=k: softmax_cross_entropy.delta(out, jnp.array(k)))(out)
                np.testing.assert_allclose(by_hand, np.diag(p) - np.outer(p, p), atol=1e-14)
            hessian = jax.hessian(lambda out, k=k: softmax_cross_entropy.fn(out, jnp.array(k)))(out)
            np.testing.assert_allclose(hessian, np.diag(p) - np.outer(p, p), atol=1e-14)


def test_infinite_logits_have_their_limits():
    inf = np.inf
    out = jnp.array([[inf, 0, 1], [0, -inf, 0], [inf, 0, 1]])
    hard, soft = jnp.array([0, 0, 1]), jnp.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    for y in hard, soft:
        np.testing.assert_allclose(softmax_cross_entropy.fn(out, y), [0, np.log(2), inf], rtol=1e-6)
        for delta in softmax_cross_entropy.delta(out, y), jax_delta(softmax_cross_entropy, out, y):
            np.testing.assert_allclose(delta, [[0, 0, 0], [-0.5, 0, 0.5], [1, -1, 0]])
    np.testing.assert_allclose(softmax_cross_entropy.predict(out), [[1, 0, 0], [0.5, 0, 0.5], [1, 0, 0]])
    two = jnp.array([[inf, inf, 0]])  # has no limit
    for y in jnp.array([0]), jnp.array([[1.0, 0, 0]]):
        assert np.isnan(softmax_cross_entropy.fn(two, y)).all()
        assert np.isnan(softmax_cross_entropy.delta(two, y)).any()
    out, y = jnp.array([[inf], [-inf], [inf], [-inf]]), jnp.array([[1.0], [0.0], [0.0], [1.0]])
    np.testing.assert_allclose(sigmoid_cross_entropy.fn(out, y), [0, 0, inf, inf])
    for delta in sigmoid_cross_entropy.delta(out, y), jax_delta(sigmoid_cross_entropy, out, y):
        np.testing.assert_allclose(delta, [[0], [0], [1], [-1]])


@EACH
def test_the_gradient_with_respect_to_targets(loss):
    """NumPy's: also where a target is 0, and of `delta` too."""
    rng = np.random.default_rng(0)
    out = rng.normal(size=(4, 3)).astype(np.float32)
    y = np.array([[0, 1, 0], [0.5, 0, 0.5], [0, 0, 0], [0.2, 0.3, 0.9]], np.float32)
    by_jax = jax.grad(lambda y: loss.fn(out, y).sum())(y)
    exact = out.astype(np.float64)
    truth = {
        "softmax_cross_entropy": np.log(np.exp(exact).sum(-1, keepdims=True)) - exact,
        "sigmoid_cross_entropy": -exact,
        "squared_error": 2 * (y - exact),
    }[loss.name]
    np.testing.assert_allclose(by_jax, truth, rtol=1e-5)
    by_hand = jax.jvp(lambda y: loss.delta(out, y), (y,), (jnp.cos(y),))[1]
    mixed = jax.jvp(lambda y: jax_delta(loss, out, y), (y,), (jnp.cos(y),))[1]
    np.testing.assert_allclose(by_hand, mixed, atol=1e-6)


def test_soft_targets_need_not_sum_to_one():
    out, y = jnp.zeros((1, 2)), jnp.array([[3.0, 1.0]])
    np.testing.assert_allclose(softmax_cross_entropy.delta(out, y), [[-1.0, 1.0]])  # 4 * 1/2 - y


def test_predictions():
    out = jnp.array([[0.0, np.log(3.0)]])
    np.testing.assert_allclose(softmax_cross_entropy.predict(out), [[0.25, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(sigmoid_cross_entropy.predict(out), [[0.5, 0.75]], rtol=1e-6)
    assert squared_error.predict(out) is out


def test_what_a_loss_takes_is_one_of_three():
    with pytest.raises(ValueError, match="takes is 'logits', expected 'class logits', 'label logits' or 'values'"):
        losses.Loss("mine", squared_error.fn, squared_error.delta, squared_error.predict, takes="logits")


def test_names_find_their_loss_or_those_there_are():
    assert losses.from_name("softmax_cross_entropy") is softmax_cross_entropy
    with pytest.raises(ValueError, match="unknown loss 'mse', expected one of softmax_cross_entropy, sigmoid"):
        losses.from_name("mse")
