"""The forward pass, step by step, and what it does to space.

python scripts/tutorials/forward_pass.py          # prints every shape, and draws runs/forward_pass.png

Forwards, a layer maps space three times: `a W` turns and stretches it, `+ b` moves it, `f` bends it. The last layer can
only draw a line; what the layers before it are for is to bend space until a line will do.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tutorial import CLASSES, DataDir, Picture, command, descend, save

import funcnet
from funcnet import Network, datasets, evaluation, init, plotting, standard_normal

BENDING = Network(funcnet.tanh, loss=funcnet.sigmoid_cross_entropy)


def shapes(x, sizes=None, seed=0):
    """Sigmoid hidden units, weights and biases standard normal: the table of shapes, the trace, the probabilities."""
    sizes = (x.shape[-1], 3, 10) if sizes is None else sizes
    if len(sizes) < 3:
        raise ValueError(f"sizes are {sizes}, expected at least three: an input, a hidden layer, an output")
    params = init(jax.random.key(seed), sizes, weights=standard_normal, biases=standard_normal)
    trace = funcnet.forward_trace(params, x, Network(funcnet.sigmoid))
    p = funcnet.softmax_cross_entropy.predict(trace.activations[-1])
    rows = [("a_0", x.shape, "the mini-batch, samples as rows")]
    layers = zip(params, trace.pre_activations, trace.activations[1:], strict=True)
    for l, ((W, b), z, a) in enumerate(layers, 1):
        f_of_z = f"z_{l}: the logits" if l == len(params) else f"sigmoid(z_{l})"
        rows += [(f"W_{l}", W.shape, "standard normal"), (f"b_{l}", b.shape, "standard normal"),
                 (f"z_{l}", z.shape, f"a_{l - 1} W_{l} + b_{l}"), (f"a_{l}", a.shape, f_of_z)]  # fmt: skip
    return [*rows, ("p", p.shape, f"softmax(a_{len(params)}), each row sums to 1")], trace, p


def wedge(n=240, seed=0):
    """Points of the plane, and 1 for those inside a wedge: no line separates them from the rest."""
    x = np.random.default_rng(seed).uniform(-3, 3, (3 * n, 2)).astype(np.float32)
    inside = x[:, 1] - 1.5 * np.abs(x[:, 0]) + 1.2
    kept = np.flatnonzero(np.abs(inside) > 0.6)[:n]
    return x[kept], (inside[kept] > 0).astype(np.int32)


def bend(x, y, steps=600, seed=0):
    """Train 2-2-1, tanh, to tell the wedge from the rest: parameters and accuracy.

    Weight decay keeps the weights small, so that tanh does not press all points into the corners.
    """
    optimizer = funcnet.adamw(0.03, weight_decay=0.1)
    params, _ = descend(init(jax.random.key(seed), (2, 2, 1)), x, y, BENDING, optimizer, steps)
    return params, evaluation.evaluate(params, x, y, BENDING).accuracy


def frames(params, x):
    """Points through the hidden layer, map by map: `[(title, points), ...]`."""
    W, b = map(np.asarray, params[0])
    return [("the points", x), ("times W: turned, stretched", x @ W), ("plus b: moved", x @ W + b),
            ("tanh: bent, a line will do", np.tanh(x @ W + b))]  # fmt: skip


def draw(params, x, y):
    """The two classes and a grid of the plane, carried through the maps; in the end the last layer's line.

    The first three panels have one scale, and the third shows the second's outline, so that each map is seen.
    """
    low, high = x.min(), x.max()
    ticks, along = np.linspace(low, high, 11), np.linspace(low, high, 121)
    grid = [np.stack([np.full_like(along, tick), along], 1) for tick in ticks]
    panels, *lines = (frames(params, points) for points in [x, *grid, *(points[:, ::-1] for points in grid)])
    figure = plotting.new_figure(6, 6.6, "What a layer does to space: turn and stretch, move, bend")
    limit = 1.1 * max(np.abs(line[i][1]).max() for line in lines for i in range(3))
    for i, (axes, (title, points)) in enumerate(zip(figure.subplots(2, 2).flat, panels, strict=True)):
        for line in lines:
            axes.plot(*line[i][1].T, color=plotting.GREY, linewidth=0.5, alpha=0.6)
        for k, style in enumerate(CLASSES):
            axes.scatter(*points[y == k].T, s=9, **style, label=f"class {k}", zorder=2)
        axes.set_title(title, fontsize=11)
        of = "input" if i == 0 else "unit"
        axes.set(xlabel=f"{of} 1", ylabel=f"{of} 2")
        axes.set_aspect("equal", "box")
        axes.locator_params(nbins=5)
        if i < 3:
            axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
            axes.axhline(0, color="black", linewidth=0.6)
            axes.axvline(0, color="black", linewidth=0.6)
    corners = np.array([[low, low], [low, high], [high, high], [high, low], [low, low]])
    W, b = map(np.asarray, params[0])
    figure.axes[2].plot(*(corners @ W).T, "--", color="black", linewidth=1, label="before the move")
    figure.axes[2].annotate(
        "", b, (0, 0), arrowprops={"arrowstyle": "->", "linewidth": 2, "shrinkA": 0, "shrinkB": 0}, zorder=3
    )
    axes = figure.axes[3]
    w, b = (np.asarray(leaf).ravel() for leaf in params[1])
    foot, way = -b * w / (w @ w), np.array([-w[1], w[0]]) / np.linalg.norm(w)
    bounds = axes.axis()
    axes.plot(*np.stack([foot - 9 * way, foot + 9 * way], 1), color="black", label="the last layer's line")
    axes.axis(bounds)
    figure.axes[0].legend(loc="lower left")
    figure.axes[2].legend(figure.axes[2].lines[-1:], ["before the move"], loc="lower left")
    axes.legend(axes.lines[-1:], ["the last layer's line"], loc=(0.12, 0.2))
    return figure


def main(*, data_dir: DataDir = None, out: Picture = Path("runs/forward_pass.png")) -> None:
    """Print the shapes of a forward pass, and draw what it does to the plane."""
    _, ((images, _), _) = datasets.load_mnist_or_digits(data_dir)
    rows, _, p = shapes(evaluation.scale_pixels(None, jnp.asarray(images[:75])))
    for name, shape, what in rows:
        print(f"{name:5}{shape!s:12} {what}")
    print(f"rows of p sum to 1 within {float(jnp.abs(p.sum(-1) - 1).max()):.0e}")
    x, y = wedge()
    params, accuracy = bend(x, y)
    print(f"2-2-1 tells the wedge from the rest with an accuracy of {accuracy:.1%}")
    save(draw(params, x, y), out, dpi=120)


if __name__ == "__main__":
    command(main, __doc__)
