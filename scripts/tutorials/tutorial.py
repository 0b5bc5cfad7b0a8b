"""What the tutorials share: descent on all of the data, a saved picture, and a command line that ends in a sentence.

Those that read MNIST take scikit-learn's digits where it is not to be had: `funcnet.datasets.load_mnist_or_digits`.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro

from funcnet import objective, plotting, training

DataDir = Annotated[
    Path | None,
    tyro.conf.arg(
        metavar="FOLDER",
        help="the MNIST files; without it $FUNCNET_DATA, the user's cache, a download, or scikit-learn's small digits.",
    ),
]
Picture = Annotated[Path, tyro.conf.arg(metavar="PATH", help="where the picture goes.")]
Seeds = Annotated[int, tyro.conf.arg(help="runs of each.")]

CLASSES = ({"color": plotting.BLUE, "marker": "o"}, {"color": plotting.ORANGE, "marker": "^"})


def descend(params, x, y, network, optimizer, steps):
    """So many updates, each from all of the data: parameters, and the loss before each step and after the last."""
    step, key = training.make_step(optimizer, network), jax.random.key(0)  # with which nothing is drawn
    run = jax.jit(lambda state: jax.lax.scan(lambda state, _: step(state, key, x, y), state, length=steps))
    state, metrics = run(training.init_state(params, optimizer))
    return state.params, jnp.append(metrics.loss, objective(state.params, x, y, network))


def save(figure, path: Path, dpi: int = 110) -> None:
    """Save a picture, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    print(f"picture: {path}")


def command(main, description, errors: tuple[type[Exception], ...] = (ImportError, OSError)) -> None:
    """`main`, or several by name, as a command line; an error such as no MNIST in --data-dir ends it in a sentence."""
    cli: Any = tyro.cli if callable(main) else tyro.extras.subcommand_cli_from_dict
    try:
        cli(main, description=description)
    except errors as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")
