"""Each activation and its derivative, against formulas in NumPy and against JAX, at the edges above all."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from scipy.special import log_ndtr

from funcnet import activations, initializers
from funcnet.activations import Activation, leaky_relu

EACH = pytest.mark.parametrize("act", activations.SHIPPED, ids=lambda act: act.name)
OTHERS = tuple(leaky_relu(slope) for slope in (0, 0.3, 0.5))
INF = np.inf


@partial(jax.jit, static_argnums=0)
def _evaluated(acts, z):
    return [(act.fn(z), act.deriv(z, act.fn(z)), jax.vmap(jax.grad(act.fn))(z)) for act in acts]


def evaluated(act, z, dtype=np.float32):
    """The function, its derivative and the derivative that JAX finds: one program for all tests of up to 256 points."""
    acts = (*activations.SHIPPED, *OTHERS)
    z = np.asarray(z, dtype)
    wide = np.zeros(256, dtype)
    wide[: z.size] = z.ravel()
    return [np.asarray(value)[: z.size].reshape(z.shape) for value in _evaluated(acts, wide)[acts.index(act)]]


@EACH
def test_function_and_derivative_against_the_complex_step(act, x64):
    z = np.random.default_rng(0).normal(size=200) * 3
    a, by_hand, _ = evaluated(act, z, np.float64)
    np.testing.assert_allclose(a, oracle.ACTIVATIONS[act.name](z), rtol=1e-13, atol=1e-14)
    slope = oracle.ACTIVATIONS[act.name](z + 1e-30j).imag / 1e-30
    np.testing.assert_allclose(by_hand, slope, rtol=1e-12, atol=1e-14)


@EACH
def test_derivative_is_what_jax_finds(act, dtype):
    z = np.concatenate([np.linspace(-30, 30, 201), [0.0, -0.0]]).astype(dtype)
    a, by_hand, by_jax = evaluated(act, z, dtype)
    # What differs is JAX's rounding, in 1 - tanh^2 and in z s (1 - s).
    assert (np.abs(by_hand - by_jax) / np.maximum(1, np.abs(z))).max() <= 8 * np.finfo(dtype).eps
    assert a.dtype == by_jax.dtype == by_hand.dtype == dtype


@EACH
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_stays_half(act, dtype):
    z = jax.ShapeDtypeStruct((7,), dtype)
    assert jax.eval_shape(act.fn, z).dtype == jax.eval_shape(act.deriv, z, z).dtype == dtype


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
    _, by_hand, by_jax = evaluated(act, zero)
    assert by_hand == by_jax == np.float32(slope)


@EACH
def test_nan_stays_nan(act):
    assert np.isnan(evaluated(act, np.nan)[0])


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
    a, by_hand, by_jax = evaluated(act, [-INF, INF])
    limits, slopes = np.array([at_minus_inf, at_inf], np.float32).T
    np.testing.assert_array_equal(a, limits)
    np.testing.assert_array_equal(by_hand, slopes)
    np.testing.assert_array_equal(by_jax, slopes)


def test_saturated_slopes_keep_their_tails():
    z = np.linspace(-40, 40, 20_001).astype(np.float32)
    e = np.exp(-np.abs(z.astype(np.longdouble)))
    for name, truth in (("sigmoid", e / (1 + e) ** 2), ("tanh", 4 * e**2 / (1 + e**2) ** 2)):
        by_hand = np.asarray(_evaluated((activations.from_name(name),), z)[0][1])
        error = np.abs(by_hand - truth) / truth
        assert error.max() <= 4e-7


def test_gelu_keeps_its_far_tail():
    z = np.linspace(-12, -2, 101)
    truth = z * np.exp(log_ndtr(z))
    np.testing.assert_allclose(
        evaluated(activations.gelu, z)[0], truth, rtol=2e-5
    )  # the argument's own rounding: z^2 eps


def test_gelu_by_tanh_is_that_of_jax_and_keeps_its_tail():
    z = np.linspace(-7, 7, 201).astype(np.float32)
    a, _, _ = evaluated(activations.gelu_tanh, z)
    np.testing.assert_allclose(a, jax.jit(jax.nn.gelu)(z), atol=1e-6)
    wide = z.astype(np.longdouble)
    e = np.exp(2 * np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3))
    np.testing.assert_allclose(a, wide * e / (1 + e), rtol=2e-5)  # 1 + tanh loses it
    assert evaluated(activations.gelu_tanh, 1e30)[1] == 1


def test_relu_of_subnormals_is_zero_or_the_number_itself():
    """XLA's CPU code flushes subnormals to zero; either way function and slope agree."""
    tiny = np.float32(1e-40)
    a, slope, _ = evaluated(activations.relu, tiny)
    assert (float(a), float(slope)) in {(0.0, 0.0), (float(tiny), 1.0)}


def test_softplus_at_zero_is_right_to_the_third_derivative():
    derivatives = [jax.grad(activations.softplus.fn)]
    for _ in range(3):
        derivatives.append(jax.grad(derivatives[-1]))
    assert [float(d) for d in jax.jit(lambda z: [d(z) for d in derivatives])(0.0)] == [0.5, 0.25, 0.0, -0.125]


def test_leaky_relu_of_slope_zero_is_relu():
    z = np.linspace(-2, 2, 9)
    np.testing.assert_array_equal(evaluated(leaky_relu(0), z), evaluated(activations.relu, z))


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
    "name",
    ["swish", "leaky_relu(", "leaky_relu(x)", "leaky_relu(inf)", "leaky_relu(0.25", "leaky_relu=0.2)", "", ["tanh"]],
)
def test_unknown_names_are_refused_with_those_there_are(name):
    known = r"elu, gelu, gelu_tanh, identity, leaky_relu, relu, sigmoid, silu, softplus, tanh or leaky_relu\(SLOPE\)$"
    with pytest.raises(ValueError, match=f"unknown activation .*, expected one of {known}"):
        activations.from_name(name)


def test_a_user_writes_one_in_a_line():
    square = Activation("square", lambda z: z * z, lambda z, a: 2 * z)
    _, by_hand, by_jax = _evaluated((square,), np.array([1.0, -3.0], np.float32))[0]
    np.testing.assert_array_equal(by_hand, [2, -6])
    np.testing.assert_array_equal(by_jax, [2, -6])


def test_a_pickle_is_the_activation_itself_and_shows_its_name():
    for act in (*activations.SHIPPED, leaky_relu(0.25)):
        assert pickle.loads(pickle.dumps(act)) is act
        assert repr(act) == act.name
    own = Activation("mine", np.sin, np.add)
    assert pickle.loads(pickle.dumps(own)) == own
    assert repr(own) == "Activation('mine', ...)"
    posing = Activation("relu", np.sin, np.add)
    assert pickle.loads(pickle.dumps(posing)) == posing != activations.relu


@pytest.mark.parametrize("functions", [("sin", np.add), (np.sin, None)])
def test_an_activation_of_no_functions_is_refused(functions):
    with pytest.raises(ValueError, match=r"mine: fn is .* and deriv .*, expected two functions"):
        Activation("mine", *functions)
