"""MNIST with ten hidden units, by full-batch gradient descent, and what comes next.

python scripts/tutorials/ten_hidden_units.py      # prints the table, and draws ten_hidden_units.png

784-10-10, ReLU, softmax, pixels / 255, rate 0.1, 500 steps on 41,000 images, 1,000 held out; weights and biases uniform
in [-0.5, 0.5]. Three slips of the text that this comes from, so that nobody repeats them: it sums the bias's gradient
over the units as well as the samples (`db` is a vector, one entry per unit); it has the sign of the loss's derivative
by the output wrong (it is `-y / p`); and its worked loss takes the logarithm to base 10 (the derivative needs base e).
"""

from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np
from tutorial import Picture, Seeds, command, save

from funcnet import adam, apply_updates, backward, datasets, init, plotting, predict, rmsprop, sgd, uniform
from funcnet.evaluation import evaluate

SETTINGS = (  # name, hidden units, optimizer
    ("gradient descent, 0.1", 10, sgd(0.1)),
    ("momentum 0.9", 10, sgd(0.1, momentum=0.9)),
    ("RMSProp, 0.003", 10, rmsprop(0.003)),
    ("Adam, 0.01", 10, adam(0.01)),
    ("gradient descent, twice the units", 20, sgd(0.1)),
)


def split(seed=0):
    """41,000 images to train on and 1,000 held out, on the device, all from MNIST's training set."""
    x, y = datasets.load_mnist().train
    rows = np.random.default_rng(seed).permutation(len(x))[:42_000]
    x, y = jax.device_put((x[rows].astype(np.float32) / 255, y[rows]))
    return (x[1000:], y[1000:]), (x[:1000], y[:1000])


def train(units, optimizers, seeds, x, y):
    """500 steps of 784-units-10, each on all of the images: for each optimizer, networks of so many seeds side by side.

    All of them in one program: `vmap` makes one product of theirs with the images.
    """
    half, keys = uniform(-0.5, 0.5), jax.vmap(jax.random.key)(jnp.arange(seeds))
    first = jax.vmap(lambda key: init(key, (784, units, 10), weights=half, biases=half))(keys)
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


def main(*, seeds: Seeds = 1, out: Picture = "ten_hidden_units.png") -> None:
    """Print the accuracy of each way of training, and draw what the first one says of held-out images."""
    parts, trained = split(), {}
    x, y = (np.asarray(part[:32]) for part in parts[1])
    print(f"{'784-n-10, 500 full-batch steps':36}{'n':>4}{'41,000 images':>15}{'1,000 held out':>16}")
    for (name, units, _), networks, scores in accuracies(parts, seeds=seeds):
        trained[name] = networks
        print(f"{name:36}{units:4}{scores[0].mean():15.1%}{scores[1].mean():16.1%}", flush=True)
    said = np.asarray(predict(jax.tree.map(lambda p: p[0], trained[SETTINGS[0][0]]), x)).argmax(-1)
    titles = [f"{p}" if p == t else f"{p}, but it is {t}" for p, t in zip(said, y, strict=True)]
    title = f"784-10-10 on images that it has not seen: what it says, {(said != y).sum()} of 32 wrong"
    save(plotting.images(x, titles, title=title), out, dpi=100)


if __name__ == "__main__":
    command(main, __doc__)
