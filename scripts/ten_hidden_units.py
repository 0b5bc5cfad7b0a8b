"""MNIST with ten hidden units, by full-batch gradient descent, and what comes next.

python scripts/ten_hidden_units.py                # prints the table, and draws ten_hidden_units.png

784-10-10, ReLU, softmax, pixels / 255, rate 0.1, 500 steps on 41,000 images, 1,000 held out; weights and biases uniform
in [-0.5, 0.5]. Three slips of the text that this comes from, so that nobody repeats them: it sums the bias's gradient
over the units as well as the samples (`db` is a vector, one entry per unit); it has the sign of the loss's derivative
by the output wrong (it is `-y / p`); and its worked loss takes the logarithm to base 10 (the derivative needs base e).
"""

import itertools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from funcnet import backward, datasets, init, optimizers, plotting, predict, training, uniform
from funcnet.mlp import Params

STEPS = 500


class Setting(NamedTuple):
    """One row of the table."""

    name: str
    hidden: int
    optimizer: optimizers.Optimizer


SETTINGS = (
    Setting("gradient descent, 0.1", 10, optimizers.sgd(0.1)),
    Setting("momentum 0.9", 10, optimizers.sgd(0.1, momentum=0.9)),
    Setting("RMSProp, 0.003", 10, optimizers.rmsprop(0.003)),
    Setting("Adam, 0.01", 10, optimizers.adam(0.01)),
    Setting("gradient descent, twice the units", 20, optimizers.sgd(0.1)),
)


def split(seed=0) -> tuple[Any, Any]:
    """41,000 images to train on and 1,000 held out, on the device, all from MNIST's training set."""
    x, y = datasets.load_mnist().train
    rows = np.random.default_rng(seed).permutation(len(x))[:42_000]
    x, y = jax.device_put((x[rows].astype(np.float32) / 255, y[rows]))
    return (x[1000:], y[1000:]), (x[:1000], y[:1000])


def train(runs, x, y) -> list[Params]:
    """500 steps, each on all of the images, of networks of one size, `runs` being pairs of a setting and a seed.

    All of them in one program: `vmap` makes one product of theirs with the images.
    """
    half = uniform(-0.5, 0.5)
    states = []
    for setting, seed in runs:
        params = init(jax.random.key(seed), (784, setting.hidden, 10), weights=half, biases=half)
        states.append((params, setting.optimizer.init(params)))

    @jax.jit
    def run(states, x, y):
        def step(states, _):
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[params for params, _ in states])
            grads = jax.vmap(backward, (0, None, None))(stacked, x, y)
            new = []
            for i, ((setting, _), (params, opt_state)) in enumerate(zip(runs, states, strict=True)):
                own = jax.tree.map(lambda g, i=i: g[i], grads)
                updates, opt_state = setting.optimizer.update(own, opt_state, params)
                new.append((optimizers.apply_updates(params, updates), opt_state))
            return new, None

        return jax.lax.scan(step, states, length=STEPS)[0]

    return [params for params, _ in run(states, x, y)]


def accuracies(parts, settings=SETTINGS, seeds: int = 1):
    """For each setting `(setting, networks, accuracies (2, seeds))`, in training and held out."""
    for _, group in itertools.groupby(settings, key=lambda setting: setting.hidden):
        runs = [(setting, seed) for setting in group for seed in range(seeds)]
        networks = train(runs, *parts[0])
        for i in range(0, len(runs), seeds):
            mine = networks[i : i + seeds]
            scores = [[float(training.evaluate(params, *part).accuracy) for params in mine] for part in parts]
            yield runs[i][0], mine, np.array(scores)


def main(*, seeds: int = 1, out: Path = Path("ten_hidden_units.png")) -> None:
    """Print the accuracy of each way of training, and draw what the first one says of held-out images.

    Args:
      seeds: runs of each.
      out: the picture.
    """
    parts = split()
    print(f"{'784-n-10, 500 full-batch steps':36}{'n':>4}{'41,000 images':>15}{'1,000 held out':>16}")
    for setting, networks, scores in accuracies(parts, seeds=seeds):
        print(f"{setting.name:36}{setting.hidden:4}{scores[0].mean():15.1%}{scores[1].mean():16.1%}", flush=True)
        if setting is SETTINGS[0]:
            draw(networks[0], parts[1], out)
    print(f"picture: {out}")


def draw(params, images, out) -> None:
    """The first held-out images, each with what the network says."""
    x, y = images
    predicted = predict(params, x[:32]).argmax(-1)
    titles = [f"{p}" if p == t else f"{p}, but it is {t}" for p, t in zip(predicted.tolist(), y.tolist(), strict=False)]
    wrong = int((predicted != y[:32]).sum())
    title = f"784-10-10 on images that it has not seen: what it says, {wrong} of 32 wrong"
    plotting.images(x[:32], titles, title=title).savefig(out, dpi=100)


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except OSError as error:
        sys.exit(f"ten_hidden_units: {error}")
