"""Deformations against SciPy's interpolation and filter, and against affine maps written out in NumPy."""

from functools import partial

import deformations
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

import funcnet
from funcnet import evaluation, training
from funcnet.distortions import CIRESAN, SIMARD, Distortion, bilinear, distort, source_points, upright

# One program for all that an image goes through. Op by op, as they are called here and there, is seen to below.
in_one = jax.jit(distort, static_argnames=("amounts", "image_shape"))
upright_in_one = jax.jit(upright, static_argnames=("width", "image_shape"))
source_points_in_one = jax.jit(source_points, static_argnums=(1, 2, 3))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (50, 784)).astype(np.uint8)


def displacements(amounts, n=4000, shape=(28, 28)):
    """How far each pixel is looked up from itself, `(2, n, H, W)`."""
    points = source_points_in_one(jax.random.key(0), n, amounts, shape)
    return np.asarray(points) - np.mgrid[: shape[0], : shape[1]][:, None]


@pytest.mark.parametrize("shape", [(9, 7), (28, 28), (1, 1)])
def test_bilinear_is_scipy_s(shape):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, *shape)).astype(np.uint8)
    points = rng.uniform(-4, max(shape) + 4, (2, 3, *shape)).astype(np.float32)
    points[:, 0] = np.round(points[:, 0])  # on pixels, on the rim and outside
    expected = [ndimage.map_coordinates(images[i] * 1.0, points[:, i], order=1, mode="grid-constant") for i in range(3)]
    np.testing.assert_allclose(jax.jit(bilinear)(images, points), expected, atol=1e-3)


def test_no_amount_gives_the_image_back_and_so_does_evaluation(images):
    x = jnp.asarray(images)
    np.testing.assert_allclose(in_one(jax.random.key(0), x, amounts=Distortion()), images / 255, atol=1e-5)
    np.testing.assert_array_equal(distort(None, x), evaluation.scale_pixels(None, x))


@jax.jit  # the amounts are traced
def affine_points(key, amounts):
    return source_points(key, 2000, Distortion(*amounts), (28, 20))


@pytest.mark.parametrize(
    "amounts",
    [
        Distortion(rotation=30.0),
        Distortion(shear=20.0),
        Distortion(scale=0.3),
        Distortion(shift=3.0),
        Distortion(rotation=15.0, shear=15.0, scale=0.2, shift=2.0),
    ],
)
def test_affine_maps_are_rotation_times_shear_times_scale(amounts):
    """Recover each image's map from its points, factor it, and look at the factors' ranges."""
    points = np.asarray(affine_points(jax.random.key(0), amounts[:-1]), np.float64)
    r, c = np.mgrid[:28, :20] - np.array([13.5, 9.5])[:, None, None]
    functions = np.stack([r.ravel(), c.ravel(), np.ones(r.size)], 1)
    fit, residual, _, _ = np.linalg.lstsq(functions, points.reshape(-1, r.size).T, rcond=None)
    assert residual.max() < 1e-6  # nothing but an affine map
    A = fit[:2].T.reshape(2, 2000, 2).transpose(1, 0, 2)  # (n, to row or column, from row or column)
    t = fit[2].reshape(2, 2000) - np.array([[13.5], [9.5]])

    angle = np.arctan2(-A[:, 0, 1], A[:, 1, 1])  # the image of the column axis is only turned and scaled
    R = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    rest = R.transpose(0, 2, 1) @ A  # shear times scale: [[s_r, 0], [s_r tan, s_c]]
    np.testing.assert_allclose(rest[:, 0, 1], 0, atol=1e-5)
    lean = np.arctan(rest[:, 1, 0] / rest[:, 0, 0])
    for draws, amount in (
        (np.degrees(angle), amounts.rotation),
        (np.degrees(lean), amounts.shear),
        (rest[:, 0, 0] - 1, amounts.scale),
        (rest[:, 1, 1] - 1, amounts.scale),
        (t[0], amounts.shift),
        (t[1], amounts.shift),
    ):
        assert np.abs(draws).max() <= amount + 1e-4
        np.testing.assert_allclose(draws.std(), amount / np.sqrt(3), rtol=0.05, atol=1e-4)  # uniform
        np.testing.assert_allclose(draws.mean(), 0, atol=0.05 * amount + 1e-4)


@pytest.mark.parametrize("sigma", [*(pytest.param(s, marks=pytest.mark.slow) for s in (3.0, 6.0)), 4.0])
def test_the_elastic_field_is_smoothed_noise(sigma):
    """Variance and correlations, against SciPy's Gaussian filter of noise on every pixel. Slow: other widths."""
    u = displacements(Distortion(alpha=30.0, sigma=sigma))
    noise = np.random.default_rng(0).uniform(-1, 1, (300, 80, 80))
    filtered = 30 * ndimage.gaussian_filter(noise, (0, sigma, sigma))[:, 26:54, 26:54]
    np.testing.assert_allclose(u.std(), filtered.std(), rtol=0.03)
    np.testing.assert_allclose(u.mean(), 0, atol=0.02 * u.std())
    np.testing.assert_allclose(u.std((0, 1)), u.std(), rtol=0.06)  # the same at every pixel, on the rim too
    for distance in (1, 3, 8):
        along = np.corrcoef(u[..., distance:].ravel(), u[..., :-distance].ravel())[0, 1]
        down = np.corrcoef(u[..., distance:, :].ravel(), u[..., :-distance, :].ravel())[0, 1]
        expected = np.exp(-(distance**2) / (4 * sigma**2))
        np.testing.assert_allclose([along, down], expected, atol=0.02)
    assert abs(np.corrcoef(u[0].ravel(), u[1].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 0.02  # images by themselves


def test_a_tall_image_bends_by_its_own_grid():
    u = displacements(SIMARD, shape=(40, 9))
    np.testing.assert_allclose(u.std((0, 1)), u.std(), rtol=0.06)


def test_every_image_has_a_draw_of_its_own_and_a_key_decides(images):
    x = jnp.asarray(np.repeat(images[:1], 4, 0))
    first = in_one(jax.random.key(0), x)
    assert len(np.unique(np.asarray(first), axis=0)) == 4
    np.testing.assert_array_equal(first, in_one(jax.random.key(0), x))
    assert not np.array_equal(first, in_one(jax.random.key(1), x))
    assert first.dtype == jnp.float32
    assert first.min() >= 0
    assert first.max() <= 1


def test_it_composes(images):
    """Op by op, under jit, vmap over keys and over amounts, leading axes, one image, an epoch's scan."""
    x, key = jnp.asarray(images), jax.random.key(0)
    expected = np.asarray(in_one(key, x))
    np.testing.assert_allclose(distort(key, x), expected, atol=1e-5)
    keys = jax.random.split(key, 3)

    @jax.jit  # one program for all
    def transformed(key, keys, x):
        by_alpha = jax.vmap(lambda alpha: distort(key, x, amounts=CIRESAN._replace(alpha=alpha)))
        return {
            "jit": distort(key, x),
            "leading axes": distort(key, x.reshape(5, 10, 784)).reshape(50, 784),
            "over amounts": by_alpha(jnp.array([0.0, 37.0]))[1],
            "one image": distort(key, x[0]),
            "over keys": jax.vmap(distort, (0, None))(keys, x),
        }

    got = transformed(key, keys, x)
    assert got.pop("one image").shape == (784,)
    np.testing.assert_allclose(got.pop("over keys"), np.stack([in_one(k, x) for k in keys]), atol=1e-5)
    for name, value in got.items():
        np.testing.assert_allclose(value, expected, atol=1e-5, err_msg=name)

    optimizer = funcnet.sgd(0.1)
    make = partial(training.make_epoch, optimizer, batch_size=16)
    y = jnp.zeros(50, jnp.int32)
    with_it, without = (jax.jit(make(transform=transform)) for transform in (distort, None))
    runs = [
        epoch(training.init_state(funcnet.init(key, (784, 10)), optimizer), jax.random.key(5), x, y)[0].params
        for epoch in (with_it, with_it, without)
    ]
    np.testing.assert_array_equal(runs[0][0][0], runs[1][0][0])  # the same key, the same bits
    assert not np.array_equal(runs[0][0][0], runs[2][0][0])


def moments(image):
    """Mean row and column of the ink, and its variances and covariance, by NumPy's own."""
    r, c = (axis.ravel() for axis in np.mgrid[: image.shape[0], : image.shape[1]])
    weights = image.ravel().astype(np.float64)
    (m_rr, m_rc), (_, m_cc) = np.cov(r, c, aweights=weights, ddof=0)
    return np.average(r, weights=weights), np.average(c, weights=weights), m_rr, m_rc, m_cc


def spots(n, shape=(28, 28)):
    """Four round spots of ink around the middle of each image, `(n, H W)` uint8."""
    places = np.random.default_rng(0).uniform(-3.5, 3.5, (n, 4, 2, 1, 1)) + np.array(shape)[:, None, None] / 2
    ink = np.exp(-((np.mgrid[: shape[0], : shape[1]] - places) ** 2).sum(2) / 3).sum(1)
    return (255 * ink / ink.max((1, 2), keepdims=True)).round().astype(np.uint8).reshape(n, -1)


@pytest.mark.parametrize(("width", "shape"), [(None, (28, 28)), (4.0, (28, 28)), (1.0, (28, 20))])
def test_upright_is_its_formula_by_scipy(width, shape):
    """Moments by NumPy's weighted covariance, looked up by SciPy; up to both limits of how wide it may become."""
    x = spots(20, shape)
    new = np.asarray(upright_in_one(x, width=width, image_shape=shape)).reshape(-1, *shape)
    r, c = np.mgrid[: shape[0], : shape[1]] - (np.array(shape)[:, None, None] - 1) / 2
    for before, after in zip(x.reshape(-1, *shape), new, strict=True):
        m_r, m_c, m_rr, m_rc, m_cc = moments(before)
        s = m_rc / m_rr
        f = 1 if width is None else np.clip(np.sqrt(m_cc - m_rc**2 / m_rr) / width, 0.5, 2)
        points = np.stack([m_r + r, m_c + s * r + f * c])
        expected = ndimage.map_coordinates(before * 1.0, points, order=1, mode="grid-constant")
        assert np.abs(after - expected).max() <= 0.51  # rounded to whole numbers


def test_upright_images_are_upright_centred_and_as_wide_as_asked():
    x = spots(50)
    assert np.abs([moments(image)[3] for image in x.reshape(-1, 28, 28)]).mean() > 1  # they were not
    new = np.asarray(upright_in_one(x, width=2.5)).reshape(-1, 28, 28)
    m_r, m_c, _, m_rc, m_cc = np.array([moments(image) for image in new]).T
    np.testing.assert_allclose(m_r, 13.5, atol=0.1)
    np.testing.assert_allclose(m_c, 13.5, atol=0.1)
    np.testing.assert_allclose(m_rc, 0, atol=0.3)  # as far as rows between pixels can tell
    np.testing.assert_allclose(np.sqrt(m_cc), 2.5, rtol=0.06)


def test_a_sheared_image_becomes_the_one_that_it_was():
    x = spots(20).reshape(-1, 28, 28)
    sheared = np.stack([ndimage.affine_transform(image * 1.0, [[1, 0], [0.3, 1]], [0, -4], order=1) for image in x])
    sheared = sheared.round().astype(np.uint8)
    both = [np.asarray(upright_in_one(a.reshape(-1, 784))).astype(float) for a in (x, sheared)]
    assert np.abs(both[0] - both[1]).mean() < 0.15 * np.abs(x * 1.0 - sheared).mean()  # what interpolation blurs


@pytest.mark.parametrize("width", [None, 6.0])
def test_upright_takes_whatever_ink_there_is(width):
    """Nothing, dots, rows, which have no slant, and columns, which have no width: all go to the middle unslanted."""
    rng = np.random.default_rng(0)
    images = np.zeros((301, 28, 28), np.uint8)
    for i in range(100):
        images[1 + i, rng.integers(28), rng.integers(28)] = 255  # a dot
        images[101 + i, rng.integers(28), 8:20] = rng.integers(1, 256, 12)  # a row
        images[201 + i, 8:20, rng.integers(28)] = rng.integers(1, 256, 12)  # a column
    new = np.asarray(upright_in_one(images.reshape(-1, 784), width=width)).reshape(-1, 28, 28)
    assert not new[0].any()
    for before, after in zip(images[1:], new[1:], strict=True):
        m_r, m_c, m_rr, m_rc, m_cc = moments(after)
        np.testing.assert_allclose([m_r, m_c], 13.5, atol=0.55)  # between two pixels, and cut off at whole numbers
        assert abs(m_rc) < 0.1
        assert abs(m_rr - moments(before)[2]) <= 0.6  # no higher, but for the blur between two pixels
        if width is None:
            assert abs(m_cc - moments(before)[4]) <= 0.6
            np.testing.assert_allclose(after.sum(dtype=int), before.sum(dtype=int), rtol=0.02)


def test_the_picture_of_widths_has_a_row_for_each():
    x = spots(6)
    rows, titles = deformations.widths_apart(x, (0.0, 2.0))
    np.testing.assert_allclose(rows[:6], x / 255, atol=1e-6)
    np.testing.assert_allclose(rows[6:12], np.asarray(upright(jnp.asarray(x))) / 255, atol=1e-6)
    np.testing.assert_allclose(rows[12:], np.asarray(upright_in_one(x, width=2.0)) / 255, atol=1e-6)
    assert titles == ["as it is"] * 6 + ["upright"] * 6 + ["2 wide"] * 6


def test_upright_composes():
    x = jnp.asarray(spots(6))
    once = upright(x)
    np.testing.assert_array_equal(upright(x.reshape(2, 3, 784)), once.reshape(2, 3, 784))

    @jax.jit
    def transformed(x):
        return upright(x), jax.vmap(upright)(x), upright(x[0])[None]

    for got in transformed(x):
        np.testing.assert_array_equal(got, once[: len(got)])


@pytest.mark.parametrize(
    ("x", "width", "message"),
    [
        (np.zeros((2, 784), np.float32), None, r"x is float32 of shape \(2, 784\), expected uint8"),
        (np.zeros((2, 64), np.uint8), None, r"x is uint8 of shape \(2, 64\), expected uint8 of shape \(\.\.\., 784\)"),
        (np.zeros((2, 784), np.uint8), 0.0, r"width is 0\.0, expected a positive number of pixels"),
        (np.zeros((2, 784), np.uint8), np.inf, "width is inf, expected"),
    ],
)
def test_bad_input_of_upright_is_named(x, width, message):
    with pytest.raises(ValueError, match=message):
        upright(jnp.asarray(x), width=width)


@pytest.mark.parametrize(
    ("x", "amounts", "message"),
    [
        (np.zeros((2, 784), np.float32), CIRESAN, r"x is float32 of shape \(2, 784\), expected uint8"),
        (np.zeros((2, 64), np.uint8), CIRESAN, r"expected uint8 of shape \(\.\.\., 784\): images of 28 x 28 pixels"),
        (np.zeros((), np.uint8), CIRESAN, r"of shape \(\), expected"),
        (np.zeros((2, 784), np.uint8), Distortion(sigma=0.0), r"amounts\.sigma is 0\.0, expected a positive number"),
    ],
)
def test_bad_input_is_named(x, amounts, message):
    with pytest.raises(ValueError, match=message):
        distort(jax.random.key(0), x, amounts=amounts)
