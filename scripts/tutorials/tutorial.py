"""What the tutorials share: descent on all of the data, a saved picture, and a command line that ends in a sentence."""

import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro

from funcnet import objective, plotting, training

Picture = Annotated[str, tyro.conf.arg(metavar="PATH", help="the picture.")]
Seeds = Annotated[int, tyro.conf.arg(help="runs of each.")]

CLASSES = ({"color": plotting.BLUE, "marker": "o"}, {"color": plotting.ORANGE, "marker": "^"})


def descend(params, x, y, network, optimizer, steps):
    """So many updates, each from all of the data: parameters, and the loss before each step and after the last."""
    step, key = training.make_step(optimizer, network), jax.random.key(0)  # with which nothing is drawn
    run = jax.jit(lambda state: jax.lax.scan(lambda state, _: step(state, key, x, y), state, length=steps))
    state, metrics = run(training.init_state(params, optimizer))
    return state.params, jnp.append(metrics.loss, objective(state.params, x, y, network))


def save(figure, path: str | Path, dpi: int = 110) -> None:
    """Save a picture, and say where."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    print(f"picture: {path}")


def command(main, description, errors: tuple[type[Exception], ...] = (OSError,)) -> None:
    """`main`, or several by name, as a command line; one of the errors, such as no MNIST, ends it in a sentence."""
    cli: Any = tyro.cli if callable(main) else tyro.extras.subcommand_cli_from_dict
    try:
        cli(main, description=description)
    except errors as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")
