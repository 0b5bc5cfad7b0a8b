"""The products of a layer against NumPy in float64, for thin and wide `W`, in each dtype of factors, for any batch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import products

BATCHES = [(), (1,), (7,), (2, 1, 3)]
WIDTHS = [1, 16, 17, 40]  # up to 16 columns `outer_sum` is computed transposed on a CPU
N_IN = 11


def rounded(a, dtype):
    """A float32 array as a product sees it, in float64."""
    return np.asarray(jnp.asarray(a).astype(dtype), np.float64)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("factors", ["float32", "bfloat16"])
def test_against_numpy(factors, jitted):
    """All batches and widths in one program; sums are never rounded to the dtype of the factors."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    cases = [
        (draw(*batch, N_IN), draw(*batch, n_out), draw(N_IN, n_out), draw(*batch))
        for i, batch in enumerate(BATCHES)
        for n_out in (WIDTHS[i], WIDTHS[i - 2])
    ]

    def everything(cases):
        results = []
        for a, delta, W, weight in cases:
            W = jnp.asarray(W).astype(factors)
            a, delta, weight = map(jnp.asarray, (a, delta, weight))
            results.append({
                "times": products.times(a, W),
                "times_transposed": products.times_transposed(delta, W),
                "outer_sum": products.outer_sum(a, delta, W),
                "outer": products.outer(a, delta, W),
                "second_moment": products.second_moment(a, weight, W),
            })  # fmt: skip
        return results

    if not jitted:  # as a user at a prompt calls them, in some of the cases
        cases = cases[4:6]
    got = (jax.jit(everything) if jitted else everything)(cases)
    for (a, delta, W, weight), result in zip(cases, got, strict=True):
        a_, delta_, W_ = (rounded(v, factors) for v in (a, delta, W))
        rows, rows_delta = a_.reshape(-1, N_IN), delta_.reshape(-1, W.shape[1])
        weighed = rounded(weight[..., None] * a, factors).reshape(-1, N_IN)
        moment = rows.T @ weighed
        want = {
            "times": a_ @ W_,
            "times_transposed": delta_ @ W_.T,
            "outer_sum": rows.T @ rows_delta,
            "outer": a_[..., :, None] * delta_[..., None, :],
            "second_moment": (moment + moment.T) / 2,
        }
        for name, value in result.items():
            value = np.asarray(value)
            assert value.dtype == np.float32, name
            assert value.shape == want[name].shape, name
            # Against the same factors, the sums are right to float32's rounding.
            assert np.abs(value - want[name]).max() <= 16 * np.finfo(np.float32).eps * np.abs(want[name]).max(), name
        moment = np.asarray(result["second_moment"])
        assert np.abs(moment - moment.T).max() <= np.finfo(np.float32).eps * np.abs(moment).max()


@pytest.mark.parametrize("n_out", [4, 40])
def test_float64_sums_take_bfloat16_factors(n_out, x64):
    rng = np.random.default_rng(0)
    a, delta, W = rng.normal(size=(7, N_IN)), rng.normal(size=(7, n_out)), rng.normal(size=(N_IN, n_out))
    a, delta, W = jnp.asarray(a), jnp.asarray(delta), jnp.asarray(W).astype(jnp.bfloat16)
    a_, delta_, W_ = (np.asarray(v.astype(jnp.bfloat16), np.float64) for v in (a, delta, W))
    for got, want in (
        (products.times(a, W), a_ @ W_),
        (products.times_transposed(delta, W), delta_ @ W_.T),
        (products.outer_sum(a, delta, W), a_.T @ delta_),
        (products.outer(a, delta, W), a_[..., :, None] * delta_[..., None, :]),
    ):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("factors", ["float32", "bfloat16"])
@pytest.mark.parametrize("n_out", [4, 40])
def test_they_are_differentiated_and_vectorized(n_out, factors):
    """Each is linear in its first factor, and the two are each other's derivative; a sample by itself is a sample."""
    rng = np.random.default_rng(0)
    a, delta = (jnp.asarray(rng.normal(size=(7, n)), jnp.float32) for n in (N_IN, n_out))
    W = jnp.asarray(rng.normal(size=(N_IN, n_out)), jnp.float32).astype(factors)

    @jax.jit
    def everything(a, delta, W):
        back = jax.vjp(lambda a: products.times(a, W), a)[1](delta)[0]
        onward = jax.vjp(lambda delta: products.times_transposed(delta, W), delta)[1](a)[0]
        alone = jax.vmap(products.outer_sum, (0, 0, None))(a, delta, W)
        return (
            back,
            products.times_transposed(delta, W),
            onward,
            products.times(a, W),
            alone,
            products.outer(a, delta, W),
        )

    back, delta_W, onward, a_W, alone, rows = everything(a, delta, W)
    eps = float(jnp.finfo(factors).eps)  # jax.grad rounds what comes out of half-precision products
    for got, want in ((back, delta_W), (onward, a_W), (alone, rows)):
        assert np.abs(got - want).max() <= 4 * eps * np.abs(want).max()


def test_bfloat16_has_to_win_by_a_tenth(monkeypatch):
    """The best of each, of which the first does not count: it compiles."""
    for in_bfloat16, faster in ((0.95, False), (0.85, True)):
        seconds = itertools.chain([0.1, 0.01], itertools.cycle([1.0, in_bfloat16, 3.0, 2.0]))
        monkeypatch.setattr(products.timeit, "timeit", lambda run, number, seconds=seconds: next(seconds))
        assert products.bfloat16_is_faster() == faster


@pytest.mark.parametrize("factors", ["float32", "bfloat16"])
@pytest.mark.parametrize("n_out", [16, 17])
def test_what_helps_a_cpu_is_for_a_cpu_alone(n_out, factors):
    """Read from the program for each platform: dW of few columns is transposed, half-precision factors lie by rows."""
    a, delta = jnp.zeros((7, N_IN)), jnp.zeros((7, n_out))
    W = jnp.zeros((N_IN, n_out), factors)
    for function, args in ((products.outer_sum, (a, delta, W)), (products.second_moment, (a, jnp.ones(7), W))):
        traced = jax.jit(function).trace(*args)
        cpu, cuda = (traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda"))
        assert "optimization_barrier" not in cuda
        assert "reduce_window" not in cuda
        assert ("reduce_window" in cpu) == (factors == "bfloat16")
        barriers = (function is products.outer_sum and n_out <= 16) + (factors == "bfloat16")
        assert cpu.count("optimization_barrier") == barriers
