"""Each activation and its derivative, against formulas in NumPy and against JAX, at the edges above all."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from scipy.special import log_ndtr

from funcnet import activations, initializers
from funcnet.activations import Activation, leaky_relu

EACH = pytest.mark.parametrize("act", activations.SHIPPED, ids=lambda act: act.name)
INF = np.inf


def deriv(act, z):
    z = jnp.asarray(z)
    return np.asarray(jax.jit(lambda z: act.deriv(z, act.fn(z)))(z))


@EACH
def test_function_and_derivative_against_the_complex_step(act, x64):
    z = np.random.default_rng(0).normal(size=200) * 3
    np.testing.assert_allclose(act.fn(jnp.asarray(z)), oracle.ACTIVATIONS[act.name](z), rtol=1e-13, atol=1e-14)
    slope = oracle.ACTIVATIONS[act.name](z + 1e-30j).imag / 1e-30
    np.testing.assert_allclose(deriv(act, z), slope, rtol=1e-12, atol=1e-14)


@EACH
def test_derivative_is_what_jax_finds(act, dtype):
    z = jnp.concatenate([jnp.linspace(-30, 30, 201, dtype=dtype), jnp.zeros(1, dtype), -jnp.zeros(1, dtype)])
    by_jax = jax.vmap(jax.grad(act.fn))(z)
    # What differs is JAX's rounding, in 1 - tanh^2 and in z s (1 - s).
    assert (np.abs(deriv(act, z) - by_jax) / np.maximum(1, np.abs(z))).max() <= 8 * jnp.finfo(dtype).eps
    assert act.fn(z).dtype == by_jax.dtype == deriv(act, z).dtype == dtype


@EACH
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_stays_half(act, dtype):
    z = jnp.linspace(-3, 3, 7, dtype=dtype)
    assert act.fn(z).dtype == deriv(act, z).dtype == dtype


@pytest.mark.parametrize(
    ("name", "slope"),
    [
        ("relu", 0.0),
        ("leaky_relu(0.01)", 0.01),
        ("leaky_relu(0.3)", 0.3),
        ("elu", 1.0),
        ("silu", 0.5),
        ("gelu", 0.5),
        ("gelu_tanh", 0.5),
    ],
)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_at_zero_the_derivative_is_the_left_one(name, slope, zero):
    act = activations.from_name(name)
    assert deriv(act, zero) == np.float32(slope)
    assert jax.grad(act.fn)(zero) == np.float32(slope)


@EACH
def test_nan_stays_nan(act):
    assert np.isnan(act.fn(jnp.float32(np.nan)))


@pytest.mark.parametrize(
    ("name", "at_minus_inf", "at_inf"),
    [
        ("identity", (-INF, 1), (INF, 1)),
        ("relu", (0, 0), (INF, 1)),
        ("leaky_relu(0.5)", (-INF, 0.5), (INF, 1)),
        ("sigmoid", (0, 0), (1, 0)),
        ("tanh", (-1, 0), (1, 0)),
        ("softplus", (0, 0), (INF, 1)),
        ("elu", (-1, 0), (INF, 1)),
        ("silu", (0, 0), (INF, 1)),
        ("gelu", (0, 0), (INF, 1)),
        ("gelu_tanh", (0, 0), (INF, 1)),
    ],
)
def test_at_infinity_everything_is_its_limit(name, at_minus_inf, at_inf):
    act = activations.from_name(name)
    for z, (a, slope) in ((-INF, at_minus_inf), (INF, at_inf)):
        assert act.fn(jnp.float32(z)) == np.float32(a)
        assert deriv(act, np.float32(z)) == jax.grad(act.fn)(np.float32(z)) == np.float32(slope)


def test_saturated_slopes_keep_their_tails():
    z = np.linspace(-40, 40, 20_001).astype(np.float32)
    e = np.exp(-np.abs(z.astype(np.longdouble)))
    for name, truth in (("sigmoid", e / (1 + e) ** 2), ("tanh", 4 * e**2 / (1 + e**2) ** 2)):
        error = np.abs(deriv(activations.from_name(name), z) - truth) / truth
        assert error.max() <= 4e-7


def test_gelu_keeps_its_far_tail():
    z = np.linspace(-12, -2, 101)
    truth = z * np.exp(log_ndtr(z))
    a = activations.gelu.fn(jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(a, truth, rtol=2e-5)  # the argument's own rounding: z^2 eps


def test_gelu_by_tanh_is_that_of_jax_and_keeps_its_tail():
    z = np.linspace(-7, 7, 201).astype(np.float32)
    np.testing.assert_allclose(activations.gelu_tanh.fn(z), jax.nn.gelu(z), atol=1e-6)
    wide = z.astype(np.longdouble)
    e = np.exp(2 * np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3))
    np.testing.assert_allclose(activations.gelu_tanh.fn(z), wide * e / (1 + e), rtol=2e-5)  # 1 + tanh loses it
    assert deriv(activations.gelu_tanh, np.float32(1e30)) == 1


def test_relu_of_subnormals_is_zero_or_the_number_itself():
    """XLA's CPU code flushes subnormals to zero; either way function and slope agree."""
    tiny = np.float32(1e-40)
    a, slope = activations.relu.fn(jnp.asarray(tiny)), deriv(activations.relu, tiny)
    assert (float(a), float(slope)) in {(0.0, 0.0), (float(tiny), 1.0)}


def test_softplus_at_zero_is_right_to_the_third_derivative():
    derivatives = [jax.grad(activations.softplus.fn)]
    for _ in range(3):
        derivatives.append(jax.grad(derivatives[-1]))
    assert [float(d(0.0)) for d in derivatives] == [0.5, 0.25, 0.0, -0.125]


def test_leaky_relu_of_slope_zero_is_relu():
    z = jnp.linspace(-2, 2, 9)
    np.testing.assert_array_equal(leaky_relu(0).fn(z), activations.relu.fn(z))
    np.testing.assert_array_equal(deriv(leaky_relu(0), z), deriv(activations.relu, z))


def test_factories_are_cached_and_take_any_finite_number():
    assert leaky_relu(0.2) is leaky_relu(np.float64(0.2)) is leaky_relu(slope=0.2)
    assert leaky_relu() is leaky_relu(0.01) is activations.from_name("leaky_relu(0.01)")
    assert initializers.uniform(-1, 1) is initializers.uniform(low=-1.0, high=1.0)
    assert leaky_relu(2).name == "leaky_relu(2.0)"
    with pytest.raises(ValueError, match="leaky_relu: slope is nan, expected a finite number"):
        leaky_relu(float("nan"))


@EACH
def test_names_find_their_activation(act):
    assert activations.from_name(act.name) is act


@pytest.mark.parametrize(
    "name", ["swish", "leaky_relu(", "leaky_relu(x)", "leaky_relu(inf)", "leaky_relu(0.25", "leaky_relu=0.2)", "", 0.25]
)
def test_unknown_names_are_refused_with_those_there_are(name):
    with pytest.raises(
        ValueError, match=r"unknown activation .*, expected one of elu, gelu, .* or leaky_relu\(SLOPE\)"
    ):
        activations.from_name(name)


def test_a_user_writes_one_in_a_line():
    square = Activation("square", lambda z: z * z, lambda z, a: 2 * z)
    np.testing.assert_array_equal(deriv(square, np.array([1.0, -3.0], np.float32)), [2, -6])
