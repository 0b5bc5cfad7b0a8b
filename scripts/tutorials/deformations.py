"""A digit and some of its deformations, as a network sees them epoch by epoch; and digits made upright.

python scripts/tutorials/deformations.py          # draws runs/deformations.png and runs/upright.png
python scripts/tutorials/deformations.py --index 7 --amounts.rotation 30
"""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tutorial import DataDir, Picture, command, save

from funcnet import datasets, distortions, plotting

DISTORT = jax.jit(distortions.distort, static_argnames=("amounts", "image_shape"))  # each one program
UPRIGHT = jax.jit(distortions.upright, static_argnames=("width", "image_shape"))


def widths_apart(x, widths=(0.0, 3.2, 4.0, 4.8, 5.4)):
    """Images as they are, then upright in each width in pixels, 0 being an image's own, row after row; their titles."""
    shape = image_shape(x)
    rows = [x, *(UPRIGHT(jnp.asarray(x), width=width or None, image_shape=shape) for width in widths)]
    titles = ["as it is", *(f"{width:g} wide" if width else "upright" for width in widths)]
    return np.concatenate(rows) / np.float32(255), [title for title in titles for _ in x]


def image_shape(x):
    """The height and width of square images: 28 x 28 pixels of MNIST, or 8 x 8 of the small digits."""
    side = math.isqrt(x.shape[-1])
    return side, side


def main(
    index: int = 0, amounts: distortions.Distortion = distortions.CIRESAN, seed: int = 0, data_dir: DataDir = None,
    out: Picture = Path("runs/deformations.png"), upright_out: Picture = Path("runs/upright.png"),
) -> None:  # fmt: skip
    """Draw an image of the training set and forty deformations of it, and it and its neighbours made upright.

    Args:
      index: which image.
      amounts: how much it is deformed.
      seed: decides the draws.
      data_dir: of MNIST.
      out: the picture of the deformations.
      upright_out: the picture of upright images.
    """
    _, ((x, _), _) = datasets.load_mnist_or_digits(data_dir)
    if not 0 <= index < len(x):
        raise ValueError(f"--index is {index}, expected 0 to {len(x) - 1:,}")
    shape = image_shape(x)
    part = shape[0] / 28  # the amounts and widths in pixels are for images of 28 x 28
    amounts = amounts._replace(shift=part * amounts.shift, alpha=part * amounts.alpha, sigma=part * amounts.sigma)
    copies = jnp.stack([x[index]] * 40)
    deformed = DISTORT(jax.random.key(seed), copies, amounts=amounts, image_shape=shape)
    images, titles = np.concatenate([x[index, None] / np.float32(255), deformed]), ["as it is", *map(str, range(1, 41))]
    save(
        plotting.images(images, titles, title="A digit and forty of its deformations", rows=6, columns=7), out, dpi=100
    )
    widths = [round(part * width, 1) for width in (0.0, 3.2, 4.0, 4.8, 5.4)]
    images, titles = widths_apart(x[np.arange(index, index + 6) % len(x)], widths)
    title = "Digits as they are, upright, and in four widths in pixels"
    save(plotting.images(images, titles, title=title, rows=6, columns=6), upright_out, dpi=100)


if __name__ == "__main__":
    command(main, __doc__, errors=(ImportError, OSError, ValueError))
