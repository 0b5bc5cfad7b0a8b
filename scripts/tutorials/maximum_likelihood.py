"""Derived from maximum likelihood: logits and probabilities apart, a checked gradient, two moons.

python scripts/tutorials/maximum_likelihood.py    # prints the checks, and draws runs/maximum_likelihood.png

The network's outputs are logits; `softmax` makes them probabilities, and the loss of a label is `-log p[label]`.
Together they are `log sum exp(logits) - logits[label]`, which stays correct where a probability rounds to 0.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tutorial import CLASSES, Picture, command, descend, save

from funcnet import Network, check_labels, init, plotting, predict, sgd, tanh, testing

NETWORK = Network(tanh)


def logistic_regression(z):
    """A 1-2 network with `W = (1, 0)`: softmax of `(z, 0)` is the sigmoid of `z`."""
    return predict([(jnp.array([[1.0, 0.0]]), jnp.zeros(2))], z[:, None])[:, 0]


def two_moons(n=100, noise=0.1, seed=0):
    """Two half circles that reach into each other: points `(n, 2)` and class ids."""
    rng = np.random.default_rng(seed)
    angle, y = rng.uniform(0, np.pi, n), np.arange(n) % 2
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    x = np.where(y[:, None] == 0, upper, np.array([1.0, 0.5]) - upper)
    return (x + noise * rng.normal(size=(n, 2))).astype(np.float32), y.astype(np.int32)


def fit(x, y, steps=300, rate=0.5, seed=0):
    """2-10-2, tanh, gradient descent on all points: parameters, and the loss before each step and after the last."""
    return descend(init(jax.random.key(seed), (2, 10, 2)), x, y, NETWORK, sgd(rate), steps)


def draw(x, y, probability, losses):
    """The loss by step; and what the network says everywhere, with the points that it was fitted to."""
    figure = plotting.new_figure(6, 6.4, "Two moons: the loss, and what the network says of the plane")
    upper, lower = figure.subplots(2, 1, height_ratios=(2, 3))
    upper.plot(losses, **plotting.STYLES[0])
    upper.set(xlabel="step", ylabel="mean loss (nats)", ylim=(0, None))
    upper.grid(alpha=0.3)
    low, high = x.min(0) - 0.3, x.max(0) + 0.3
    across, up = np.meshgrid(np.linspace(low[0], high[0], 160), np.linspace(low[1], high[1], 120))
    p = np.asarray(probability(np.stack([across.ravel(), up.ravel()], 1).astype(x.dtype))).reshape(across.shape)
    shades = lower.contourf(across, up, p, levels=np.linspace(0, 1, 11), cmap="PuOr_r", alpha=0.6)
    lower.contour(across, up, p, levels=[0.5], colors="black")
    for k, style in enumerate(CLASSES):
        lower.scatter(*x[y == k].T, s=14, edgecolors="white", linewidths=0.4, **style, label=f"class {k}")
    figure.colorbar(shades, ax=lower, label="probability of class 1; black: 1/2")
    lower.set(xlabel="input 1", ylabel="input 2")
    lower.legend(loc="upper right")
    return figure


def main(*, out: Picture = Path("runs/maximum_likelihood.png")) -> None:
    """Print the checks, fit two moons, and draw the loss and the decision boundary."""
    z = jnp.linspace(-8, 8, 5)
    off = float(jnp.abs(logistic_regression(z) - jax.nn.sigmoid(z)).max())
    print(f"a 1-2 network with W = (1, 0) and the sigmoid differ by {off:.0e}")
    params = init(jax.random.key(0), (500, 100, 50, 40, 10))
    p = predict(params, jax.random.normal(jax.random.key(1), (64, 500)), NETWORK)
    print(f"500-100-50-40-10: probabilities sum to one within {float(jnp.abs(p.sum(-1) - 1).max()):.0e}")
    x, y = jax.random.normal(jax.random.key(2), (16, 500)), jnp.arange(16) % 10
    print(f"\n{testing.check_backward(params, x, y, NETWORK)}\n")
    try:
        check_labels(np.array([0, 1, 2]), 2)
    except ValueError as error:
        print(f"a label out of range: {error}")
    x, y = two_moons()
    params, losses = fit(x, y)
    falls = "falls" if (jnp.diff(losses) < 0).all() else "does not fall"
    print(f"two moons, 2-10-2: loss {losses[0]:.3f}, after 300 steps {losses[-1]:.3f}; it {falls} at every step")
    save(draw(x, y, lambda points: predict(params, points, NETWORK)[:, 1], losses), out)


if __name__ == "__main__":
    command(main, __doc__)
