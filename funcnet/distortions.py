"""Randomly deformed images, computed on the device for each batch: rotated, sheared, scaled, shifted and bent.

Every pixel `(r, c)` of the new image, counted from the centre, is read at a point of the old one,

    A (r, c) + t + u(r, c)      A, t: an affine map; u: a smooth random displacement, in pixels

by bilinear interpolation of its four neighbours. Simard, Steinkraus and Platt, ICDAR 2003; Ciresan, Meier, Gambardella
and Schmidhuber, Neural Computation 2010.

    transform = partial(distort, amounts=CIRESAN)
    epoch = jax.jit(make_epoch(optimizer, batch_size=128, transform=transform), donate_argnums=0)

`upright` does the opposite: it removes, once, differences that a network would learn to ignore from deformed images.
"""

from functools import partial
from math import inf, pi, prod, sqrt
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from funcnet.evaluation import scale_pixels

__all__ = ["CIRESAN", "SIMARD", "Distortion", "bilinear", "distort", "scaled", "source_points", "upright"]


class Distortion(NamedTuple):
    """The amounts of deformation: each image draws its own, uniformly between minus and plus these amounts."""

    rotation: float = 0.0  # degrees
    shear: float = 0.0  # degrees: how far columns lean
    scale: float = 0.0  # fraction of the size; separate for rows and columns
    shift: float = 0.0  # pixels; separate for rows and columns
    alpha: float = 0.0  # pixels: u is noise in [-1, 1], smoothed by a Gaussian, times alpha
    sigma: float = 4.0  # pixels: the width of that Gaussian


SIMARD = Distortion(alpha=34.0, sigma=4.0)  # the elastic deformation of the paper
CIRESAN = Distortion(rotation=15.0, scale=0.175, alpha=37.0, sigma=5.5)  # the middle of the paper's ranges


def scaled(amounts: Distortion, factor: float) -> Distortion:
    """A weaker or stronger distortion: all amounts except `sigma` times `factor`, which may be traced.

    >>> scaled(Distortion(rotation=10.0, alpha=36.0), 0.5)
    Distortion(rotation=5.0, shear=0.0, scale=0.0, shift=0.0, alpha=18.0, sigma=4.0)
    """
    return Distortion(*(amount * factor for amount in amounts[:-1]), sigma=amounts.sigma)


def distort(
    key: Array | None, x: Array, *, amounts: Distortion = CIRESAN, image_shape: tuple[int, int] = (28, 28)
) -> Array:
    """Deform each image at random; a `transform` for `make_epoch`.

    Args:
      key: a JAX random key, or `None`, in evaluation, for no deformation.
      x: uint8 pixels, `(..., H W)`.
      amounts: of deformation; all except `sigma` may be traced.
      image_shape: `(H, W)`; pixels beyond the image are 0.

    Returns:
      float32 in `[0, 1]`, of the shape of `x`.

    Raises:
      ValueError: `x` is not uint8 or not of this size, or `sigma` is not positive.

    >>> x = jnp.full((5, 784), 255, jnp.uint8)
    >>> distort(jax.random.key(0), x).shape, distort(None, x).max()
    ((5, 784), Array(1., dtype=float32))
    """
    _check_images(x, image_shape)
    if not amounts.sigma > 0:
        raise ValueError(f"amounts.sigma is {amounts.sigma}, expected a positive number of pixels")
    if key is None:
        return scale_pixels(None, x)
    images = x.reshape(-1, *image_shape)
    return bilinear(images, source_points(key, len(images), amounts, image_shape)).reshape(x.shape) / 255


def upright(x: Array, *, width: float | None = None, image_shape: tuple[int, int] = (28, 28)) -> Array:
    """Images made upright, centred and optionally equally wide, from their own moments, without labels.

    With `m` the mean over the ink (the pixels' values as weights) and `m_rr`, `m_rc`, `m_cc` its second moments around
    the centre of mass `(m_r, m_c)`, the pixel `(r, c)`, counted from the centre, is read at

        (m_r + r,  m_c + s r + f c)     s = m_rc / m_rr, the slant;  f = sqrt(m_cc - s m_rc) / width, or 1

    so that afterwards `m_rc` is 0 and `width` is the standard deviation of the ink's columns, as far as the frame and
    the limits below allow. It is a fixed map of each image: apply it once, to training and test images. Deslanting as
    in LeCun, Bottou, Bengio and Haffner, 1998; different widths for the networks of an ensemble as in Ciresan et al.,
    2011, who use the bounding box.

    Args:
      x: uint8 pixels, `(..., H W)`; an image without ink is not changed.
      width: in pixels, static; an image becomes at most twice as wide or half as wide. By default the width is kept.
      image_shape: `(H, W)`, static; pixels beyond the image are 0, and ink that is moved there is lost.

    Returns:
      uint8, of the shape of `x`.

    Raises:
      ValueError: `x` is not uint8 or not of this size, or `width` is not positive.

    >>> slanted = jnp.eye(5, dtype=jnp.uint8)  # a stroke from corner to corner
    >>> upright(200 * slanted.ravel(), image_shape=(5, 5)).reshape(5, 5)[:, 2].tolist()
    [200, 200, 200, 200, 200]
    """
    _check_images(x, image_shape)
    if width is not None and not 0 < width < inf:
        raise ValueError(f"width is {width}, expected a positive number of pixels")
    # In parts of 1000 images, since it takes some 50 bytes per pixel.
    one = partial(_upright_image, width=width)
    with jax.default_matmul_precision("highest"):  # an inaccurate moment moves every pixel
        return jax.lax.map(one, x.reshape(-1, *image_shape), batch_size=1000).reshape(x.shape)


def _upright_image(image: Array, width: float | None) -> Array:
    ink = image.astype(jnp.float32)
    ink = ink / jnp.maximum(ink.sum(), 1)
    r, c = (jnp.arange(size, dtype=jnp.float32) for size in image.shape)
    of_row, of_column = ink.sum(1), ink.sum(0)
    m_r, m_c = of_row @ r, of_column @ c
    m_rr, m_cc = of_row @ (r - m_r) ** 2, of_column @ (c - m_c) ** 2
    m_rc = (r - m_r) @ ink @ (c - m_c)
    s = m_rc / jnp.maximum(m_rr, 1 / 12)  # at least the variance within a pixel: a single row of ink has no slant
    f = 1.0 if width is None else jnp.clip(jnp.sqrt(jnp.maximum(m_cc - s * m_rc, 0)) / width, 0.5, 2)
    r, c = r[:, None] - (len(r) - 1) / 2, c[None, :] - (len(c) - 1) / 2
    points = jnp.stack(jnp.broadcast_arrays(m_r + r, m_c + s * r + f * c))  # (2, H, W)
    return jnp.round(bilinear(image[None], points[:, None])[0]).astype(jnp.uint8)


def source_points(key: Array, n: int, amounts: Distortion, image_shape: tuple[int, int]) -> Array:
    """The points of the old images from which the pixels of `n` new ones are read: row and column, `(2, n, H, W)`.

    Both fields are sums of products of a function of `r` and one of `c`: `r`, `c` and 1 for the affine map, and
    Gaussian bumps around the points of a coarse grid for `u`. So each is a product of a small matrix of coefficients
    and two fixed matrices, `B_r Z B_c^T`, without a convolution.

    Args:
      key: a JAX random key.
      n: the number of images; static.
      amounts: of deformation.
      image_shape: `(H, W)`; static.

    Returns:
      float32.

    >>> source_points(jax.random.key(0), 5, Distortion(), (28, 28))[:, 0, 3, 7]  # no deformation: the pixel itself
    Array([3., 7.], dtype=float32)
    """
    affine_key, elastic_key = jax.random.split(key)
    B_r, B_c = (_basis(size, amounts.sigma) for size in image_shape)
    std = amounts.alpha / (2 * sqrt(pi) * amounts.sigma)  # of white noise under the Gaussian, times alpha
    bumps = std * _noise(elastic_key, (2, n, B_r.shape[1] - 2, B_c.shape[1] - 2))
    affine = _affine_maps(affine_key, n, amounts, image_shape)
    Z = _padded(bumps, after=(2, 2)) + _padded(affine, before=bumps.shape[2:])  # block diagonal
    return jnp.einsum("ri,knij,cj->knrc", B_r, Z, B_c)  # (2, n, i, j) -> (2, n, H, W)


def bilinear(images: Array, points: Array) -> Array:
    """The values of images at other points, by bilinear interpolation of the four pixels around each.

    Args:
      images: uint8, `(n, H, W)`; pixels beyond are 0.
      points: rows and columns, `(2, n, H, W)`.

    Returns:
      float32, `(n, H, W)`, between 0 and 255.

    >>> image = jnp.array([[[0, 100], [0, 200]]], jnp.uint8)
    >>> bilinear(image, jnp.array([0.5, 0.5])[:, None, None, None])
    Array([[[75.]]], dtype=float32)
    """
    n, H, W = images.shape
    # The four pixels of every 2 x 2 window are packed in one integer, so that one gather reads them, not four.
    x = jnp.pad(images.astype(jnp.uint32), ((0, 0), (1, 2), (1, 2)))  # a rim of zeros: (n, H + 3, W + 3)
    windows = x[:, :-1, :-1] | x[:, :-1, 1:] << 8 | x[:, 1:, :-1] << 16 | x[:, 1:, 1:] << 24

    points = jnp.clip(points, -1, jnp.array([H, W], points.dtype)[:, None, None, None]) + 1
    corner = jnp.floor(points)
    (row, column), (down, right) = corner.astype(jnp.int32), points - corner
    first = (H + 2) * (W + 2) * jnp.arange(n, dtype=jnp.int32)[:, None, None]
    window = windows.ravel().at[first + (W + 2) * row + column].get(mode="promise_in_bounds")

    def pixel(i):
        return (window >> (8 * i) & 255).astype(jnp.float32)

    upper = pixel(0) + right * (pixel(1) - pixel(0))
    lower = pixel(2) + right * (pixel(3) - pixel(2))
    return upper + down * (lower - upper)


def _check_images(x: Array, image_shape: tuple[int, int]) -> None:
    if x.dtype != jnp.uint8 or x.ndim == 0 or x.shape[-1] != prod(image_shape):
        raise ValueError(
            f"x is {x.dtype} of shape {x.shape}, expected uint8 of shape (..., {prod(image_shape)}): "
            f"images of {image_shape[0]} x {image_shape[1]} pixels"
        )


def _affine_maps(key: Array, n: int, amounts: Distortion, image_shape: tuple[int, int]) -> Array:
    """The coefficients of `n` random maps `(r, c) -> A (r, c) + t` for the products of `r`, 1 and `c`, 1."""
    turn, lean, larger, wider, move_r, move_c = jax.random.uniform(key, (6, n), jnp.float32, -1, 1)
    cos, sin = jnp.cos(turn * amounts.rotation * (pi / 180)), jnp.sin(turn * amounts.rotation * (pi / 180))
    tan = jnp.tan(lean * amounts.shear * (pi / 180))
    s_r, s_c = 1 + larger * amounts.scale, 1 + wider * amounts.scale
    # A = rotation, times shear [[1, 0], [tan, 1]], times scale; t moves the centre.
    A = ((s_r * (cos - sin * tan), -s_c * sin), (s_r * (sin + cos * tan), s_c * cos))
    t = tuple((size - 1) / 2 + move * amounts.shift for size, move in zip(image_shape, (move_r, move_c), strict=True))
    nothing = jnp.zeros(n)  # the coefficient of r times c
    maps = jnp.stack([jnp.stack([nothing, A[k][0], A[k][1], t[k]], -1) for k in (0, 1)])  # (2, n, 4)
    return maps.reshape(2, n, 2, 2)


def _basis(size: int, sigma: float) -> np.ndarray:
    """Functions of a coordinate as columns, `(size, G + 2)`: `G` bumps, the coordinate from the centre, and 1.

    White noise on a grid of step `sigma`, smoothed by the Gaussian, is the same random field as on a fine grid:
    correlations differ by 2e-4. With rows of norm 1 the variance is equal everywhere; a filter would fade at the rim.
    """
    coordinate = np.arange(size) - (size - 1) / 2
    reach = int(np.ceil(coordinate[-1] / sigma + 2))
    grid = sigma * np.arange(-reach, reach + 1)
    bumps = np.exp(-((coordinate[:, None] - grid) ** 2) / (2 * sigma**2))
    bumps /= np.linalg.norm(bumps, axis=1, keepdims=True)
    return np.column_stack([bumps, coordinate, np.ones(size)]).astype(np.float32)


def _noise(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform in `[-1, 1]`, in 256 steps: random words are slow on a CPU, and sums of many bytes are as smooth."""
    words = jax.random.bits(key, (-(-prod(shape) // 4),), jnp.uint32)
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).ravel()[: prod(shape)].reshape(shape)
    return (octets.astype(jnp.float32) - 127.5) / 128


def _padded(Z: Array, before=(0, 0), after=(0, 0)) -> Array:
    return jnp.pad(Z, ((0, 0), (0, 0), *zip(before, after, strict=True)))
