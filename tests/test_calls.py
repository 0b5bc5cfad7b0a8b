"""What users hand over that is no array yet, and what is said to what cannot be one."""

import re

import jax
import numpy as np
import oracle
import pytest

import funcnet
from funcnet import evaluation, per_sample
from funcnet.calls import as_array


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return oracle.network(0, (6, 4), np.float32), rng.normal(size=(7, 6)).astype(np.float32), np.arange(7) % 4


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_are_arrays_before_they_are_traced(data, kind):
    """The same result as that of arrays, from the same trace: nothing is traced number by number."""
    params, x, y = data
    want = funcnet.backward(params, x, y, sample_weight=y)
    traces = funcnet.backward._cache_size()
    rows = kind(map(kind, x.tolist()))
    got = funcnet.backward(params, rows, kind(y.tolist()), sample_weight=kind(y.tolist()))
    assert funcnet.backward._cache_size() - traces <= 1  # NumPy's float64 is another dtype than float32
    assert max(oracle.errors_in_eps(got, want)) == 0
    np.testing.assert_array_equal(funcnet.forward(params, x=rows), funcnet.forward(params, x))
    np.testing.assert_array_equal(
        per_sample.per_sample_norms(params, rows, y), per_sample.per_sample_norms(params, x, y)
    )
    assert evaluation.evaluate(params, rows, kind(y.tolist())) == evaluation.evaluate(params, x, y)
    assert funcnet.objective(params, rows[0], 2) == funcnet.objective(params, x[0], np.int32(2))


class Tensor:
    """Of another library."""

    shape = (7,)


STRINGS = "names, y = np.unique(y, return_inverse=True)"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hiden": funcnet.tanh}, TypeError, "has no argument 'hiden', expected params, x, y, network, masks"),
        ({"hidden": funcnet.tanh}, TypeError, "has no argument 'hidden', .*: Network\\(hidden=...\\) holds it"),
        ({"activation": "relu"}, TypeError, "has no argument 'activation', "),
        ({"network": "relu"}, ValueError, "network is 'relu' of type str, expected a Network"),
        ({"x": Tensor()}, ValueError, "x is a .*Tensor, expected an array of JAX or NumPy: np.asarray\\(x\\)"),
        ({"y": Tensor()}, ValueError, "y is a .*Tensor, expected an array"),
        (
            {"y": np.array(["cat"] * 7)},
            ValueError,
            "y holds strings, expected numbers: for class ids, `" + re.escape(STRINGS),
        ),
        ({"y": ["cat"] * 7}, ValueError, "y holds strings"),
        ({"y": np.array([0, None])}, ValueError, "y has dtype object, expected numbers"),
        ({"x": [[1.0, 2.0], [3.0]]}, ValueError, "x is a list that is not an array: .*inhomogeneous"),
        ({"x": "pixels"}, ValueError, "x is a str, expected an array"),
        ({"y": np.array([0, 2**32])}, ValueError, "y holds 4294967296, which JAX would cut to 32 bits"),
        ({"y": np.array([0, -(2**40)])}, ValueError, "y holds .*, which JAX would cut to 32 bits"),
        ({"y": [0, 2**32 + 1]}, ValueError, "y holds 4294967297, which JAX would cut to 32 bits"),
        ({"params": [(Tensor(), np.ones(4, np.float32))]}, ValueError, r"params\[0\]\[0\] is a .*Tensor"),
    ],
)
def test_what_is_no_array_is_named(data, changes, error, message):
    call = dict(zip(("params", "x", "y"), data, strict=True)) | changes
    for function in (funcnet.backward, per_sample.per_sample_backward, funcnet.objective):
        with pytest.raises(error, match=message):
            function(**call)
    if changes.keys() == {"y"}:
        with pytest.raises(ValueError, match=r"y "):
            evaluation.evaluate(**call)


def test_jit_s_own_are_there():
    for function in (funcnet.forward, funcnet.backward, funcnet.objective, evaluation.score):
        assert all(callable(getattr(function, name)) for name in ("lower", "trace", "eval_shape", "clear_cache"))
    out = funcnet.forward.eval_shape(oracle.network(0, (6, 4), np.float32), np.ones((7, 6), np.float32))
    assert out.shape == (7, 4)


def test_an_array_is_handed_on_as_it_is():
    for value in (np.ones(3), jax.numpy.ones(3), 1.0, np.float32(2), None, np.ones(3, jax.numpy.bfloat16)):
        assert as_array("x", value) is value
