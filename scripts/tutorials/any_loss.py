"""Any activation, any loss: each is a function with its derivative beside it, and the backward pass needs no more.

python scripts/tutorials/any_loss.py              # checks, trains, and draws runs/any_loss.png

**The derivation.** The network is a chain `out = f_L(... f_2(f_1(x W_1 + b_1) W_2 + b_2) ...)`, and the loss acts on
what comes out of it. Let `delta_l` be the derivative of the loss by `z_l = a_{l-1} W_l + b_l`. By the chain rule

    delta_L[j]        = d loss / d a_L[j]  f_L'(z_L[j])                     a_L = f_L(z_L)
    delta_{l-1}[i]    = sum_j delta_l[j] W_l[i, j]  f_{l-1}'(z_{l-1}[i])    z_l[j] = sum_i a_{l-1}[i] W_l[i, j] + b_l[j]
    d loss / dW_l[i, j] = a_{l-1}[i] delta_l[j],    d loss / db_l[j] = delta_l[j]

and nothing in it asks which `f` or which loss. Here gradients are summed over the batch, as some texts have it:
that is `N` times funcnet's mean.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from tutorial import Picture, command, descend, save

from funcnet import Activation, Loss, Network, adam, backward, init, plotting, predict, squared_error, testing
from funcnet.schedules import cosine

# A user's activation and a user's loss.
softsign = Activation("softsign", lambda z: z / (1 + jnp.abs(z)), lambda z, a: 1 / (1 + jnp.abs(z)) ** 2)
"""`a = z / (1 + |z|)`, `a' = 1 / (1 + |z|)^2`; Bergstra et al., 2009."""

log_cosh = Loss(
    "log_cosh",
    fn=lambda out, y: jnp.sum(jnp.logaddexp(out - y, y - out) - jnp.log(2.0), -1),  # cosh u = (e^u + e^-u) / 2
    delta=lambda out, y: jnp.tanh(out - y), predict=lambda out: out,
)  # fmt: skip
"""`sum_k log cosh(out_k - y_k)`: a square near 0, an absolute value far away; outliers pull no harder than others."""

SIZES = (1, 16, 16, 16, 16, 1)  # f_1 to f_5
ROBUST, SQUARED = Network(softsign, loss=log_cosh), Network(softsign, loss=squared_error)


def data(n=200, seed=0):
    """A wave with noise, and every tenth point far off."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jnp.linspace(-3, 3, n)[:, None]
    y = jnp.sin(2 * x) + 0.05 * jax.random.normal(keys[0], x.shape)
    return x, jnp.where(jax.random.uniform(keys[1], x.shape) < 0.1, y + 3 * jax.random.uniform(keys[2], x.shape), y)


def summed_gradient(params, x, y, network):
    """The gradient of the sum over the batch: `N` times that of the mean."""
    return jax.tree.map(lambda g: len(x) * g, backward(params, x, y, network))


def fit(x, y, network, steps=600, seed=0):
    """Adam on the whole batch: parameters and the loss at each step."""
    params, optimizer = init(jax.random.key(seed), SIZES), adam(cosine(0.01, total_steps=steps))
    return descend(params, x, y, network, optimizer, steps)


def draw(x, y, curves):
    """The points, and curves through them."""
    figure = plotting.new_figure(6.4, 3.6, "One network, two losses: outliers pull log cosh less")
    axes = figure.subplots()
    axes.plot(x, y, ".", color=plotting.GREY, markersize=4, label="data")
    for (name, values), style in zip(curves.items(), plotting.STYLES, strict=False):
        axes.plot(x, values, label=name, **style)
    axes.set(xlabel="x", ylabel="y")
    plotting.finish(axes)
    return figure


def main(*, out: Picture = Path("runs/any_loss.png")) -> None:
    """Check a new activation and a new loss, train with them, and draw the fit."""
    x, y = data()
    print(testing.check_activation(softsign), testing.check_loss(log_cosh, class_ids=False), sep="\n\n", end="\n\n")
    print(testing.check_backward(init(jax.random.key(0), SIZES), x[:16], y[:16], ROBUST), end="\n\n")

    wave = jnp.sin(2 * x)[:, 0]
    curves = {"sin 2x": wave}
    for name, network in (("log cosh", ROBUST), ("squared error", SQUARED)):
        params, losses = fit(x, y, network)
        curves[name] = predict(params, x, network)[:, 0]
        distance = jnp.sqrt(jnp.mean((curves[name] - wave) ** 2))
        print(
            f"{name:14} {losses[0]:.3f} before, {losses[-1]:.3f} after {len(losses) - 1} steps; "
            f"root mean square distance from the wave: {distance:.3f}"
        )
    save(draw(x[:, 0], y[:, 0], curves), out)


if __name__ == "__main__":
    command(main, __doc__)
