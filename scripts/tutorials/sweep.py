"""A thousand networks in one program: which learning rate, dropout rate and weight decay, over several seeds?

python scripts/tutorials/sweep.py                 # prints the best setting, and draws runs/sweep.png

On a GPU 1,024 networks, 784-128-10, learn from 50,000 images for five epochs each. On a CPU, or with --small, it is 32
of 784-64-10, 4,000 images and three epochs. The setting is chosen on held-out training images; the test images are read
once, for the networks with the chosen setting alone.
"""

import time
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tutorial import DataDir, Picture, command, save

from funcnet import adamw, datasets, dropout_masks, init, plotting, training


class Sweep(NamedTuple):
    """What is tried, every value with every other, and how long each network learns."""

    rates: np.ndarray
    dropouts: np.ndarray
    decays: np.ndarray
    seeds: int
    hidden: int
    images: int
    epochs: int


LARGE = Sweep(np.geomspace(3e-4, 3e-2, 8), np.linspace(0, 0.7, 8), np.array([0, 0.01, 0.1, 1]), 4, 128, 50_000, 5)
SMALL = Sweep(np.geomspace(1e-3, 3e-2, 4), np.linspace(0, 0.6, 4), np.array([0, 1]), 1, 64, 4_000, 3)


def settings(sweep):
    """`(rates, dropouts, decays, seeds)`, each with an entry for each network."""
    axes = sweep.rates, sweep.dropouts, sweep.decays, np.arange(sweep.seeds)
    *numbers, seeds = (axis.ravel() for axis in np.meshgrid(*axes, indexing="ij"))
    return *(jnp.asarray(v, jnp.float32) for v in numbers), jnp.asarray(seeds)


@partial(jax.jit, static_argnames=("hidden", "epochs"))
def train(of_each, x, y, hidden, epochs):
    """The parameters of all networks, with one more axis in front."""

    def one(lr, dropout, decay, seed):
        optimizer = adamw(lr, weight_decay=decay)
        start, *keys = jax.random.split(jax.random.key(seed), 1 + epochs)
        state = training.init_state(init(start, (x.shape[1], hidden, 10)), optimizer)
        epoch = training.make_epoch(optimizer, batch_size=128, masks=partial(dropout_masks, rate=dropout))
        return jax.lax.scan(lambda state, key: epoch(state, key, x, y), state, jnp.stack(keys))[0].params

    return training.for_each(one)(*of_each)


@jax.jit
def accuracies(networks, x, y):
    """One for each network."""
    return training.for_each(lambda params: training.evaluate(params, x, y).accuracy)(networks)


def draw(sweep, scores):
    """A map of `scores` `(rates, dropouts, decays)` for each weight decay."""
    figure = plotting.new_figure(2.4 * len(sweep.decays) + 1, 3.6, "Held-out accuracy, mean over seeds")
    grid = figure.subplots(1, len(sweep.decays), squeeze=False, sharey=True)[0]
    best = np.unravel_index(scores.argmax(), scores.shape)
    low = np.quantile(scores, 0.25)  # what does not learn at all is all of one colour
    for k, (axes, decay) in enumerate(zip(grid, sweep.decays, strict=True)):
        axes.imshow(scores[:, :, k], vmin=low, vmax=scores.max(), origin="lower", aspect="auto")
        axes.set(title=f"weight decay {decay:g}", xlabel="dropout", xticks=range(len(sweep.dropouts)),
                 xticklabels=[f"{v:.1f}" for v in sweep.dropouts], yticks=range(len(sweep.rates)),
                 yticklabels=[f"{v:.2g}" for v in sweep.rates])  # fmt: skip
        if k == best[2]:
            axes.plot(best[1], best[0], "o", markersize=12, markerfacecolor="none", markeredgecolor=plotting.RED)
    grid[0].set_ylabel("learning rate")
    figure.colorbar(grid[0].images[0], ax=grid, extend="min")
    return figure


def main(
    *,
    small: Annotated[bool | None, tyro.conf.arg(help="32 networks; by default on a CPU.")] = None,
    data_dir: DataDir = None,
    out: Picture = Path("runs/sweep.png"),
) -> None:
    """Train all networks at once, choose a setting on held-out images, and draw how all of them did."""
    sweep = SMALL if (jax.default_backend() == "cpu" if small is None else small) else LARGE
    _, ((x, y), test) = datasets.load_mnist_or_digits(data_dir)
    held_out = min(10_000, len(x) // 5)
    parts = (x[:-held_out][: sweep.images], y[:-held_out][: sweep.images]), (x[-held_out:], y[-held_out:]), test
    learnt, chosen_on, test = jax.device_put(parts)
    of_each, began = settings(sweep), time.perf_counter()
    networks = jax.block_until_ready(train(of_each, *learnt, sweep.hidden, sweep.epochs))
    took = time.perf_counter() - began
    shape = *map(len, sweep[:3]), sweep.seeds
    scores = np.asarray(accuracies(networks, *chosen_on)).reshape(shape).mean(-1)
    best = scores.reshape(-1).argmax()
    mine = slice(best * sweep.seeds, (best + 1) * sweep.seeds)
    lr, dropout, decay = (float(v[mine.start]) for v in of_each[:3])
    tested = np.asarray(accuracies(jax.tree.map(lambda leaf: leaf[mine], networks), *test))
    print(f"{len(of_each[0]):,} networks, {x.shape[1]}-{sweep.hidden}-10, {sweep.epochs} epochs of "
          f"{len(learnt[1]):,} images: {took:.1f} s, compilation included")  # fmt: skip
    print(f"the best: learning rate {lr:.2g}, dropout {dropout:.1f}, weight decay {decay:g}")
    print(
        f"accuracy {scores.max():.2%} held out, {tested.mean():.2%} on the test images, mean over {sweep.seeds} seeds"
    )
    save(draw(sweep, scores), out)


if __name__ == "__main__":
    command(main, __doc__)
