"""The forward pass, step by step, and what it does to space.

python scripts/tutorials/forward_pass.py          # prints every shape, and draws forward_pass.png

Forwards, a layer maps space three times: `a W` turns and stretches it, `+ b` moves it, `f` bends it. The last layer can
only draw a line; what the layers before it are for is to bend space until a line will do.
"""

import jax
import jax.numpy as jnp
import numpy as np
from tutorial import CLASSES, Picture, command, descend, save

import funcnet
from funcnet import Network, datasets, evaluation, init, plotting, standard_normal

BENDING = Network(funcnet.tanh, loss=funcnet.sigmoid_cross_entropy)


def shapes(x, sizes=(784, 3, 10), seed=0):
    """Sigmoid hidden units, weights and biases standard normal: the table of shapes, the trace, the probabilities."""
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
    x = np.random.default_rng(seed).uniform(-1, 1, (2 * n, 2)).astype(np.float32)
    inside = x[:, 1] - 1.5 * np.abs(x[:, 0]) + 0.4
    kept = np.flatnonzero(np.abs(inside) > 0.12)[:n]
    return x[kept], (inside[kept] > 0).astype(np.int32)


def bend(x, y, steps=700, seed=1):
    """Train 2-2-1, tanh, to tell the wedge from the rest: parameters and accuracy."""
    params, _ = descend(init(jax.random.key(seed), (2, 2, 1)), x, y, BENDING, funcnet.adam(0.02), steps)
    return params, evaluation.evaluate(params, x, y, BENDING).accuracy


def frames(params, x):
    """Points through the hidden layer, map by map: `[(title, points), ...]`."""
    W, b = map(np.asarray, params[0])
    return [("where the points are", x), ("x W_1: turned and stretched", x @ W), ("+ b_1: moved", x @ W + b),
            ("tanh: bent, and a line will do", np.tanh(x @ W + b))]  # fmt: skip


def draw(params, x, y):
    """The two classes and a grid of the plane, carried through the maps; in the end the last layer's line."""
    ticks, along = np.linspace(x.min(), x.max(), 13), np.linspace(x.min(), x.max(), 121)
    grid = [np.stack([np.full_like(along, tick), along], 1) for tick in ticks]
    panels, *lines = (frames(params, points) for points in [x, *grid, *(points[:, ::-1] for points in grid)])
    figure = plotting.new_figure(3.1 * len(panels), 3.5, "What a layer does to space: turn and stretch, move, bend")
    for i, (axes, (title, points)) in enumerate(zip(figure.subplots(1, len(panels)), panels, strict=True)):
        for line in lines:
            axes.plot(*line[i][1].T, color=plotting.GREY, linewidth=0.5, alpha=0.6)
        for k, style in enumerate(CLASSES):
            axes.scatter(*points[y == k].T, s=9, **style, label=f"class {k}", zorder=2)
        axes.set_title(title, fontsize=10)
        axes.set_aspect("equal", "box")
        axes.tick_params(labelsize=7)
        axes.locator_params(nbins=5)
    axes = figure.axes[-1]
    w, b = (np.asarray(leaf).ravel() for leaf in params[1])
    foot, way = -b * w / (w @ w), np.array([-w[1], w[0]]) / np.linalg.norm(w)
    bounds = axes.axis()
    axes.plot(*np.stack([foot - 9 * way, foot + 9 * way], 1), color="black", label="the last layer's line")
    axes.axis(bounds)
    axes.legend(fontsize=7, loc="best")
    return figure


def main(*, out: Picture = "forward_pass.png") -> None:
    """Print the shapes of a forward pass, and draw what it does to the plane."""
    rows, _, p = shapes(evaluation.scale_pixels(None, jnp.asarray(datasets.load_mnist().train[0][:75])))
    for name, shape, what in rows:
        print(f"{name:5}{shape!s:12} {what}")
    print(f"rows of p sum to 1 within {float(jnp.abs(p.sum(-1) - 1).max()):.0e}")
    x, y = wedge()
    params, accuracy = bend(x, y)
    print(f"2-2-1 tells the wedge from the rest with an accuracy of {accuracy:.1%}")
    save(draw(params, x, y), out)


if __name__ == "__main__":
    command(main, __doc__)
