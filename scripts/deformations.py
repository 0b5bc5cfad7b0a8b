"""A digit of MNIST and forty deformations of it, as a network sees them in forty epochs; and digits made upright.

python scripts/deformations.py                    # draws deformations.png and upright.png
python scripts/deformations.py --index 7 --amounts.rotation 30
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from funcnet import datasets, distortions, plotting

WIDTHS = (0.0, 3.2, 4.0, 4.8, 5.4)  # pixels; 0 is an image's own


def deformations(image: np.ndarray, amounts: distortions.Distortion, n: int = 40, seed: int = 0) -> np.ndarray:
    """The image itself and `n` deformations, `(1 + n, H W)`, in `[0, 1]`."""
    copies = jnp.broadcast_to(jnp.asarray(image), (n, image.size))
    deformed = distortions.distort(jax.random.key(seed), copies, amounts=amounts)
    return np.concatenate([image[None] / np.float32(255), deformed])


def widths_apart(x: np.ndarray, widths: tuple[float, ...] = WIDTHS) -> tuple[np.ndarray, list[str]]:
    """Images as they are, then upright in each width, row after row, with their titles."""
    rows = [x, *(distortions.upright(jnp.asarray(x), width=width or None) for width in widths)]
    titles = ["as it is", *(f"{width:g} wide" if width else "upright" for width in widths)]
    return np.concatenate(rows) / np.float32(255), [title for title in titles for _ in x]


def main(
    index: int = 0,
    amounts: distortions.Distortion = distortions.CIRESAN,
    seed: int = 0,
    data_dir: Path | None = None,
    out: Path = Path("deformations.png"),
    upright_out: Path = Path("upright.png"),
) -> None:
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
    titles = ["as it is", *map(str, range(1, 41))]
    figure = plotting.images(
        deformations(x[index], amounts, seed=seed), titles, title="A digit and forty deformations", rows=4, columns=11
    )
    figure.savefig(out, dpi=100)
    neighbours = x[np.arange(index, index + 11) % len(x)]
    figure = plotting.images(
        *widths_apart(neighbours),
        title="Digits made upright, and so many pixels wide",
        rows=1 + len(WIDTHS),
        columns=11,
    )
    figure.savefig(upright_out, dpi=100)
    print(f"drawn in {out} and {upright_out}")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"deformations: {error}")
