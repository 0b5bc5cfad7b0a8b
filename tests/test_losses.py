"""Each loss and its delta, against NumPy in float64 and against JAX, at the edges above all."""

import itertools
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from funcnet import losses, sigmoid_cross_entropy, softmax_cross_entropy, squared_error

EACH = pytest.mark.parametrize("loss", losses.SHIPPED, ids=lambda loss: loss.name)


def jax_delta(loss, out, y):
    return jax.grad(lambda out: loss.fn(out, y).sum())(out)


@partial(jax.jit, static_argnums=0)
def _evaluated(loss, out, y):
    return loss.fn(out, y), loss.delta(out, y), jax_delta(loss, out, y), loss.predict(out)


def evaluated(loss, out, y, dtype=np.float32):
    """The loss, its delta, the delta that JAX finds and the prediction, in one program for all tests of one shape."""
    y = np.asarray(y)
    y = y.astype(np.int32 if y.dtype.kind == "i" else dtype)
    return [np.asarray(value) for value in _evaluated(loss, np.asarray(out, dtype), y)]


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
    found = jax.tree.map(np.asarray, everything(out, kinds))
    for (loss, kind), (value, delta, by_jax) in zip(cases, found, strict=True):
        y = np.eye(6)[kinds[kind]] if kind == "ids" else kinds[kind].astype(np.float64)
        assert value.shape == (50,)
        assert value.dtype == delta.dtype == dtype
        np.testing.assert_allclose(value, oracle.LOSSES[loss.name](out.astype(np.float64), y), rtol=16 * eps)
        (truth,) = oracle.complex_step(lambda a, loss=loss, y=y: oracle.LOSSES[loss.name](a[0], y).sum(), [out])
        assert np.abs(delta - truth).max() <= 16 * eps * np.abs(truth).max(), (loss, kind)
        assert np.abs(delta - by_jax).max() <= 8 * eps * np.abs(truth).max(), (loss, kind)


@EACH
def test_class_ids_of_one_sample_and_of_several_axes(loss):
    for batch in [(), (1,), (2, 1)]:
        out, y = np.random.default_rng(0).normal(size=(*batch, 4)), np.full(batch, 2)
        want = oracle.LOSSES[loss.name](out, np.eye(4)[y])
        np.testing.assert_allclose(loss.fn(jnp.float32(out), jnp.int32(y)), want, rtol=1e-6)


@EACH
def test_class_ids_of_any_integer_dtype(loss):
    out = np.random.default_rng(0).normal(size=(3, 300)).astype(np.float32)
    y = np.array([0, 7, 127])
    cases = {dtype: y.astype(dtype) for dtype in ("int8", "uint8", "int32", "uint32")}
    cases["one-hot"] = np.eye(300, dtype=np.float32)[y]
    found = jax.jit(lambda out, cases: jax.tree.map(lambda y: (loss.fn(out, y), loss.delta(out, y)), cases))(out, cases)
    for dtype, (value, delta) in found.items():
        np.testing.assert_array_equal(value, found["one-hot"][0], err_msg=dtype)
        np.testing.assert_array_equal(delta, found["one-hot"][1], err_msg=dtype)


@pytest.mark.parametrize("bad", [-1, 3, 100, np.iinfo(np.int32).min, np.iinfo(np.int32).max])
@EACH
def test_an_id_out_of_range_is_nan_in_loss_and_gradient(loss, bad):
    for values in evaluated(loss, np.ones((3, 3)), [1, bad, 1])[:3]:
        assert not np.isnan(values[::2]).any()
        assert np.isnan(values[1]).all()


def test_one_class_has_no_loss_and_no_gradient():
    value, delta, by_jax, _ = evaluated(softmax_cross_entropy, [[3.0]], [0])
    assert value == delta == by_jax == 0


def test_one_output_tells_ids_zero_and_one_apart():
    out = [[0.5], [-2.0], [1.0], [1.0]]
    by_ids = evaluated(sigmoid_cross_entropy, out, [1, 0, 2, -1])
    by_values = evaluated(sigmoid_cross_entropy, out, [[1.0], [0.0], [1.0], [1.0]])
    np.testing.assert_array_equal(by_ids[0][:2], by_values[0][:2])
    np.testing.assert_array_equal(by_ids[1][:2], by_values[1][:2])
    assert np.isnan(by_ids[0][2:]).all()
    with pytest.raises(
        ValueError, match="squared_error: y has dtype int32, so it holds class ids, but the network has"
    ):
        squared_error.fn(np.zeros((2, 1), np.float32), np.array([1, 0], np.int32))


@pytest.mark.parametrize("size", [1e4, 3e38])
@pytest.mark.parametrize("hard", ["ids", "one-hot"])
def test_softmax_at_huge_logits(size, hard):
    y = np.array([0, 1, 1])  # the last one wrong
    out = [[size, -size, 0.0], [0.0, size, size], [size, -size, 0.0]]
    value, delta, by_jax, _ = evaluated(softmax_cross_entropy, out, y if hard == "ids" else np.eye(3)[y])
    np.testing.assert_allclose(value[:2], [0, np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(delta, [[0, 0, 0], [0, -0.5, 0.5], [1, -1, 0]])
    np.testing.assert_allclose(by_jax, [[0, 0, 0], [0, -0.5, 0.5], [1, -1, 0]])
    assert value[2] == np.float32(2 * size) if size < 1e38 else np.isposinf(value[2])


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
    found, delta, by_jax, _ = evaluated(sigmoid_cross_entropy, [[z]] * 4, [[y]] * 4)
    np.testing.assert_allclose(found, [value] * 4, rtol=3e-7)
    np.testing.assert_allclose(delta, [[slope]] * 4, rtol=3e-7)
    np.testing.assert_allclose(by_jax, [[slope]] * 4, rtol=3e-7)


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
    value, by_hand, by_jax, p = evaluated(softmax_cross_entropy, out, targets, dtype)
    np.testing.assert_allclose(value, np.log1p(others / true), rtol=8 * eps)
    np.testing.assert_allclose(by_hand, delta, rtol=8 * eps)
    np.testing.assert_allclose(by_jax, delta, rtol=8 * eps)
    np.testing.assert_allclose(p, exact / exact.sum(-1, keepdims=True), rtol=8 * eps)


def test_where_logits_tie_all_derivatives_hold(x64):
    """Of the delta, by both modes, and of the loss, against the Hessian of the textbook: diag(p) - p p^T."""
    out = np.array([[2.0, 2, 2], [1, 2, 2], [0, 0, -1]])
    p = np.exp(out) / np.exp(out).sum(-1, keepdims=True)
    truth = np.stack([[np.diag(p) - np.outer(p, p)] * 3 for p in p])  # whatever the class

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    @partial(jax.vmap, in_axes=(None, 0))
    def derivatives(out, k):
        delta, fn = (partial(f, y=k) for f in (softmax_cross_entropy.delta, softmax_cross_entropy.fn))
        return {"forward": jax.jacfwd(delta)(out), "reverse": jax.jacrev(delta)(out), "Hessian": jax.hessian(fn)(out)}

    for mode, found in derivatives(out, np.arange(3)).items():
        np.testing.assert_allclose(found, truth, atol=1e-14, err_msg=mode)


def test_infinite_logits_have_their_limits():
    inf = np.inf
    out = [[inf, 0, 1], [0, -inf, 0], [inf, 0, 1]]
    two = [[inf, inf, 0]] * 3  # has no limit
    for y in np.array([0, 0, 1]), np.eye(3)[[0, 0, 1]]:
        value, *deltas, p = evaluated(softmax_cross_entropy, out, y)
        np.testing.assert_allclose(value, [0, np.log(2), inf], rtol=1e-6)
        for delta in deltas:
            np.testing.assert_allclose(delta, [[0, 0, 0], [-0.5, 0, 0.5], [1, -1, 0]])
        np.testing.assert_allclose(p, [[1, 0, 0], [0.5, 0, 0.5], [1, 0, 0]])
        value, *deltas, _ = evaluated(softmax_cross_entropy, two, y)
        assert np.isnan(value).all()
        for delta in deltas:
            assert np.isnan(delta).any(-1).all()
    out, y = [[inf], [-inf], [inf], [-inf]], [[1.0], [0.0], [0.0], [1.0]]
    value, *deltas, _ = evaluated(sigmoid_cross_entropy, out, y)
    np.testing.assert_allclose(value, [0, 0, inf, inf])
    for delta in deltas:
        np.testing.assert_allclose(delta, [[0], [0], [1], [-1]])


@EACH
def test_the_gradient_with_respect_to_targets(loss):
    """NumPy's: also where a target is 0, and of `delta` too."""
    rng = np.random.default_rng(0)
    out = rng.normal(size=(4, 3)).astype(np.float32)
    y = np.array([[0, 1, 0], [0.5, 0, 0.5], [0, 0, 0], [0.2, 0.3, 0.9]], np.float32)

    @jax.jit
    def derivatives(out, y, t):
        return (jax.grad(lambda y: loss.fn(out, y).sum())(y), jax.jvp(lambda y: loss.delta(out, y), (y,), (t,))[1],
                jax.jvp(lambda y: jax_delta(loss, out, y), (y,), (t,))[1])  # fmt: skip

    by_jax, by_hand, mixed = derivatives(out, y, np.cos(y))
    exact = out.astype(np.float64)
    truth = {
        "softmax_cross_entropy": np.log(np.exp(exact).sum(-1, keepdims=True)) - exact,
        "sigmoid_cross_entropy": -exact,
        "squared_error": 2 * (y - exact),
    }[loss.name]
    np.testing.assert_allclose(by_jax, truth, rtol=1e-5)
    np.testing.assert_allclose(by_hand, mixed, atol=1e-6)


def test_soft_targets_need_not_sum_to_one():
    delta = evaluated(softmax_cross_entropy, np.zeros((3, 3)), [[3.0, 1, 0.5]] * 3)[1]
    np.testing.assert_allclose(delta, [[-1.5, 0.5, 1.0]] * 3)  # 4.5 * 1/3 - y


def test_predictions():
    out = np.log(np.array([[1.0, 3, 4]] * 3, np.float32))
    y = np.array([0, 0, 0])
    np.testing.assert_allclose(evaluated(softmax_cross_entropy, out, y)[3], [[1 / 8, 3 / 8, 1 / 2]] * 3, rtol=1e-6)
    np.testing.assert_allclose(evaluated(sigmoid_cross_entropy, out, y)[3], [[1 / 2, 3 / 4, 4 / 5]] * 3, rtol=1e-6)
    assert squared_error.predict(out) is out


def test_what_a_loss_takes_is_one_of_three():
    with pytest.raises(ValueError, match="takes is 'logits', expected 'class logits', 'label logits' or 'values'"):
        losses.Loss("mine", squared_error.fn, squared_error.delta, squared_error.predict, takes="logits")


def test_names_find_their_loss_or_those_there_are():
    assert losses.from_name("softmax_cross_entropy") is softmax_cross_entropy
    with pytest.raises(ValueError, match=r"unknown loss \['mse'\]"):
        losses.from_name(["mse"])
    with pytest.raises(ValueError, match="unknown loss 'mse', expected one of softmax_cross_entropy, sigmoid"):
        losses.from_name("mse")


def test_a_pickle_is_the_loss_itself_and_shows_its_name():
    for loss in losses.SHIPPED:
        assert pickle.loads(pickle.dumps(loss)) is loss
        assert repr(loss) == loss.name
    own = losses.Loss("mine", np.subtract, np.add, np.negative, takes="class logits")
    assert pickle.loads(pickle.dumps(own)) == own
    assert repr(own) == "Loss('mine', ...)"


@pytest.mark.parametrize("wrong", ["fn", "delta", "predict"])
def test_a_loss_of_no_functions_is_refused(wrong):
    functions = {"fn": abs, "delta": abs, "predict": abs} | {wrong: "abs"}
    with pytest.raises(ValueError, match=f"mine: {wrong} is 'abs', expected a function"):
        losses.Loss("mine", **functions)


@EACH
def test_samples_may_have_any_number_of_axes(loss):
    rng = np.random.default_rng(0)
    out, ids = rng.normal(size=(4, 3, 5)).astype(np.float32), rng.integers(0, 5, (4, 3))
    for y in ids, np.eye(5, dtype=np.float32)[ids]:
        as_rows = evaluated(loss, out.reshape(12, 5), y.reshape(12, *y.shape[2:]))
        for many, rows in zip(evaluated(loss, out, y), as_rows, strict=True):
            np.testing.assert_allclose(np.reshape(many, np.shape(rows)), rows, rtol=1e-6)


def test_an_id_of_64_bits_is_not_cut(x64):
    """2^32 would be class 0 in 32 bits."""
    out, y = np.zeros((1, 3)), np.array([2**32])
    assert np.isnan(jax.jit(softmax_cross_entropy.fn)(out, y)).all()
