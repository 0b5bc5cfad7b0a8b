"""MNIST with ten hidden units, by full-batch gradient descent, and what comes next.

python scripts/tutorials/ten_hidden_units.py      # prints the table, and draws runs/ten_hidden_units.png

784-10-10, ReLU, softmax, pixels / 255, rate 0.1, 500 steps on 6,000 images, 1,000 held out; weights and biases uniform
in [-0.5, 0.5]. The text that this comes from trains on 41,000 images: --images 41000, seven times the work. Three slips
of that text, so that nobody repeats them: it sums the bias's gradient over the units as well as the samples (`db` is a
vector, one entry per unit); it has the sign of the loss's derivative by the output wrong (it is `-y / p`); and its
worked loss takes the logarithm to base 10 (the derivative needs base e).
"""

from itertools import groupby
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tutorial import DataDir, Picture, Seeds, command, save

from funcnet import adam, apply_updates, backward, datasets, init, plotting, predict, rmsprop, sgd, uniform
from funcnet.evaluation import evaluate

SETTINGS = (  # name, hidden units, optimizer
    ("gradient descent, 0.1", 10, sgd(0.1)),
    ("momentum 0.9", 10, sgd(0.1, momentum=0.9)),
    ("RMSProp, 0.003", 10, rmsprop(0.003)),
    ("Adam, 0.01", 10, adam(0.01)),
    ("gradient descent, twice the units", 20, sgd(0.1)),
)


def split(images=6_000, data_dir=None, seed=0):
    """So many images to train on and 1,000 held out, on the device, all from the training set; of few, a fifth."""
    _, ((x, y), _) = datasets.load_mnist_or_digits(data_dir)
    held_out = min(1000, len(x) // 5)
    rows = np.random.default_rng(seed).permutation(len(x))[: images + held_out]
    x, y = jax.device_put((x[rows].astype(np.float32) / 255, y[rows]))
    return (x[held_out:], y[held_out:]), (x[:held_out], y[:held_out])


def train(units, optimizers, seeds, x, y):
    """500 steps of 784-units-10, each on all of the images: for each optimizer, networks of so many seeds side by side.

    All of them in one program: `vmap` makes one product of theirs with the images.
    """
    half, keys = uniform(-0.5, 0.5), jax.vmap(jax.random.key)(jnp.arange(seeds))
    first = jax.vmap(lambda key: init(key, (x.shape[1], units, 10), weights=half, biases=half))(keys)
    gradients = jax.vmap(jax.vmap(backward, (0, None, None)), (0, None, None))

    @jax.jit
    def run(states, x, y):
        def step(states, _):
            grads = gradients(jax.tree.map(lambda *leaves: jnp.stack(leaves), *[params for params, _ in states]), x, y)
            new = []
            for i, (optimizer, (params, opt_state)) in enumerate(zip(optimizers, states, strict=True)):
                updates, opt_state = optimizer.update(jax.tree.map(lambda g, i=i: g[i], grads), opt_state, params)
                new.append((apply_updates(params, updates), opt_state))
            return new, None

        return jax.lax.scan(step, states, length=500)[0]

    return [params for params, _ in run([(first, optimizer.init(first)) for optimizer in optimizers], x, y)]


def accuracies(parts, settings=SETTINGS, seeds=1):
    """For each setting `(setting, networks, accuracies (2, seeds))`, in training and held out."""
    for units, group in groupby(settings, key=lambda setting: setting[1]):
        group = list(group)
        networks = train(units, [optimizer for *_, optimizer in group], seeds, *parts[0])
        for setting, mine in zip(group, networks, strict=True):
            scores = [jax.vmap(lambda params, part=part: evaluate(params, *part).accuracy)(mine) for part in parts]
            yield setting, mine, np.array(scores)


def main(
    *,
    images: Annotated[int, tyro.conf.arg(help="so many to train on.")] = 6_000,
    seeds: Seeds = 1,
    data_dir: DataDir = None,
    out: Picture = Path("runs/ten_hidden_units.png"),
) -> None:
    """Print the accuracy of each way of training, and draw what the first one says of held-out images."""
    parts, trained = split(images, data_dir), {}
    x, y = (np.asarray(part[:24]) for part in parts[1])
    of = [f"{len(y):,} {what}" for (_, y), what in zip(parts, ("images", "held out"), strict=True)]
    print(f"{f'{x.shape[1]}-n-10, 500 full-batch steps':36}{'n':>4}{of[0]:>15}{of[1]:>16}")
    for (name, units, _), networks, scores in accuracies(parts, seeds=seeds):
        trained[name] = networks
        print(f"{name:36}{units:4}{scores[0].mean():15.1%}{scores[1].mean():16.1%}", flush=True)
    said = np.asarray(predict(jax.tree.map(lambda p: p[0], trained[SETTINGS[0][0]]), x)).argmax(-1)
    wrong = said != y
    titles = [f"{p}, not {t}" if p != t else f"{p}" for p, t in zip(said, y, strict=True)]
    title = f"What {x.shape[1]}-10-10 says of held-out images: {wrong.sum()} of {len(y)} wrong"
    colors = np.where(wrong, plotting.RED, "black").tolist()
    save(plotting.images(x, titles, title=title, columns=6, colors=colors), out)


if __name__ == "__main__":
    command(main, __doc__)
