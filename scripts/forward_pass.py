"""The forward pass, step by step, and what it does to space.

python scripts/forward_pass.py                    # prints every shape, and draws forward_pass.png

Forwards, a layer maps space three times: `a W` turns and stretches it, `+ b` moves it, `f` bends it. The last layer can
only draw a line; what the layers before it are for is to bend space until a line will do.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from funcnet import (
    datasets,
    forward_trace,
    init,
    optimizers,
    plotting,
    sigmoid,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
    standard_normal,
    tanh,
    training,
)


def shapes(x, sizes=(784, 3, 10), seed=0):
    """Sigmoid hidden units, weights and biases standard normal: the table of shapes, the trace, the probabilities."""
    if len(sizes) < 3:
        raise ValueError(f"sizes are {sizes}, expected at least three: an input, a hidden layer, an output")
    params = init(jax.random.key(seed), sizes, weights=standard_normal, biases=standard_normal)
    trace = forward_trace(params, x, hidden=sigmoid)
    p = softmax_cross_entropy.predict(trace.activations[-1])
    rows = [("a_0", x.shape, "the mini-batch, samples as rows")]
    for l, ((W, b), z, a) in enumerate(
        zip(params, trace.pre_activations, trace.activations[1:], strict=True), start=1
    ):  # fmt: skip
        last = l == len(params)
        rows += [(f"W_{l}", W.shape, "standard normal"), (f"b_{l}", b.shape, "standard normal"),
                 (f"z_{l}", z.shape, f"a_{l - 1} W_{l} + b_{l}"),
                 (f"a_{l}", a.shape, f"z_{l}: the logits" if last else f"sigmoid(z_{l})")]  # fmt: skip
    return [*rows, ("p", p.shape, f"softmax(a_{len(params)}), each row sums to 1")], trace, p


def wedge(n=240, seed=0):
    """Points of the plane, and 1 for those inside a wedge: no line separates them from the rest."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (2 * n, 2)).astype(np.float32)
    inside = x[:, 1] - 1.5 * np.abs(x[:, 0]) + 0.4
    kept = np.flatnonzero(np.abs(inside) > 0.12)[:n]
    return x[kept], (inside[kept] > 0).astype(np.int32)


def bend(x, y, steps=700, seed=1):
    """Train 2-2-1, tanh, to tell the wedge from the rest: parameters and accuracy."""
    optimizer = optimizers.adam(0.02)
    state = training.init_state(init(jax.random.key(seed), (2, 2, 1)), optimizer)
    step = training.make_step(optimizer, hidden=tanh, loss=sigmoid_cross_entropy)
    keys = jax.random.split(jax.random.key(seed), steps)
    state, _ = jax.jit(lambda state: jax.lax.scan(lambda s, key: step(s, key, x, y), state, keys))(state)
    return state.params, training.evaluate(state.params, x, y, hidden=tanh, loss=sigmoid_cross_entropy).accuracy


def frames(params, x):
    """Points through the hidden layer, map by map: `[(title, points), ...]`."""
    (W, b), _ = params
    linear = x @ np.asarray(W)
    moved = linear + np.asarray(b)
    return [("where the points are", x), ("x W_1: turned and stretched", linear), ("+ b_1: moved", moved),
            ("tanh: bent, and a line will do", np.tanh(moved))]  # fmt: skip


def main(*, out: Path = Path("forward_pass.png")) -> None:
    """Print the shapes of a forward pass, and draw what it does to the plane.

    Args:
      out: the picture.
    """
    images = datasets.load_mnist().train[0][:75]
    rows, _, p = shapes(training.scale_pixels(None, jnp.asarray(images)))
    for name, shape, what in rows:
        print(f"{name:5}{shape!s:12} {what}")
    print(f"rows of p sum to 1 within {float(jnp.abs(p.sum(-1) - 1).max()):.0e}")

    x, y = wedge()
    params, accuracy = bend(x, y)
    (_, _), (w, b) = params
    figure = plotting.space(lambda points: frames(params, points), x, y, line=(np.asarray(w)[:, 0], float(b[0])))
    figure.savefig(out, dpi=110)
    print(f"2-2-1 tells the wedge from the rest with an accuracy of {accuracy:.1%}: {out}")


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except OSError as error:
        sys.exit(f"forward_pass: {error}")
