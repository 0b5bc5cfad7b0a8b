"""A digit of MNIST and forty deformations of it, as a network sees them in forty epochs; and digits made upright.

python scripts/tutorials/deformations.py          # draws deformations.png and upright.png
python scripts/tutorials/deformations.py --index 7 --amounts.rotation 30
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tutorial import command, save

from funcnet import datasets, distortions, plotting


def widths_apart(x, widths=(0.0, 3.2, 4.0, 4.8, 5.4)):
    """Images as they are, then upright in each width in pixels, 0 being an image's own, row after row; their titles."""
    rows = [x, *(distortions.upright(jnp.asarray(x), width=width or None) for width in widths)]
    titles = ["as it is", *(f"{width:g} wide" if width else "upright" for width in widths)]
    return np.concatenate(rows) / np.float32(255), [title for title in titles for _ in x]


def main(
    index: int = 0, amounts: distortions.Distortion = distortions.CIRESAN, seed: int = 0, data_dir: Path | None = None,
    out: Path = Path("deformations.png"), upright_out: Path = Path("upright.png"),
) -> None:  # fmt: skip
    """Draw an image of the training set and forty deformations of it, and it and its neighbours made upright.

    Args:
      index: which image.
      amounts: how much it is deformed.
      seed: decides the draws.
      data_dir: folder with the MNIST files; otherwise $FUNCNET_DATA, then the user's cache, then a download.
      out: the picture of the deformations.
      upright_out: the picture of upright images.
    """
    x, _ = datasets.load_mnist(data_dir).train
    if not 0 <= index < len(x):
        raise ValueError(f"--index is {index}, expected 0 to {len(x) - 1:,}")
    deformed = distortions.distort(jax.random.key(seed), jnp.stack([x[index]] * 40), amounts=amounts)
    images, titles = np.concatenate([x[index, None] / np.float32(255), deformed]), ["as it is", *map(str, range(1, 41))]
    save(plotting.images(images, titles, title="A digit and forty deformations", rows=4, columns=11), out, dpi=100)
    images, titles = widths_apart(x[np.arange(index, index + 11) % len(x)])
    title = "Digits made upright, and so many pixels wide"
    save(plotting.images(images, titles, title=title, rows=len(images) // 11, columns=11), upright_out, dpi=100)


if __name__ == "__main__":
    command(main, __doc__, errors=(ImportError, OSError, ValueError))
