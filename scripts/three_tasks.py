"""Three tasks, one forward pass: the last layer's loss alone makes it binary, multi-class or regression.

python scripts/three_tasks.py                     # prints the tables, and draws three_tasks.png
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from funcnet import (
    activations,
    count_parameters,
    forward,
    forward_trace,
    glorot_normal,
    he_normal,
    init,
    initializers,
    optimizers,
    plotting,
    predict,
    relu,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
    squared_error,
    summary,
    tanh,
    training,
)

COUNTS = {
    (4, 8, 1): 49, (4, 8, 4, 1): 81, (10, 32, 16, 5): 965, (784, 256, 128, 64, 10): 242_762, (50, 32, 16, 1): 2_177,
    (784, 128, 64, 10): 109_386, (8, 32, 16, 1): 833,
}  # fmt: skip
TASKS = {
    "binary": ((50, 32, 16, 1), sigmoid_cross_entropy),
    "multi-class": ((784, 128, 64, 10), softmax_cross_entropy),
    "regression": ((8, 32, 16, 1), squared_error),
}
XOR = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), jnp.array([0, 1, 1, 0])


def xor_by_hand(hidden_biases, output):
    """2-2-1, both hidden units summing the inputs, with these biases, `output = (w_1, w_2, b)`."""
    return [(jnp.ones((2, 2)), jnp.array(hidden_biases)), (jnp.array(output[:2])[:, None], jnp.array(output[2:]))]


PUBLISHED_XOR = xor_by_hand((-0.5, -1.5), (1.0, -2.0, -0.5))  # as a tutorial gives it; it is none
RIGHT_XOR = xor_by_hand((0.0, -1.0), (1.0, -2.0, -0.5))


def xor_probabilities(params):
    """What a network says of the four inputs."""
    return predict(params, XOR[0], hidden=relu, loss=sigmoid_cross_entropy)[:, 0]


def learn_xor(steps=2000, seed=1):
    """The same by gradient descent, 2-4-1."""
    optimizer = optimizers.adam(0.02)
    state = training.init_state(init(jax.random.key(seed), (2, 4, 1)), optimizer)
    step = training.make_step(optimizer, loss=sigmoid_cross_entropy)
    keys = jax.random.split(jax.random.key(seed), steps)
    return jax.jit(lambda state: jax.lax.scan(lambda s, key: step(s, key, *XOR), state, keys)[0].params)(state)


SCALES = {
    "ReLU, 0.01 N(0, 1)": (relu, lambda key, shape, dtype: 0.01 * jax.random.normal(key, shape, dtype)),
    "ReLU, N(0, 1)": (relu, initializers.standard_normal),
    "ReLU, He": (relu, he_normal),
    "tanh, Xavier": (tanh, glorot_normal),
}


def signal(hidden, weights, depth=20, width=100, seed=0):
    """The root mean square of `a_1 .. a_20` for normal inputs."""
    params = init(jax.random.key(seed), (width,) * (depth + 1), weights=weights)
    x = jax.random.normal(jax.random.key(seed + 1), (1000, width))
    trace = forward_trace(params, x, hidden=hidden, output=hidden)
    return np.array([np.sqrt(np.mean(np.asarray(a, np.float64) ** 2)) for a in trace.activations[1:]])


def in_batches_error(batch=128, n=1000):
    """The largest difference between 1,000 samples at once and in batches of 128."""
    params = init(jax.random.key(0), (784, 128, 64, 10))
    x = jax.random.normal(jax.random.key(1), (n, 784))
    parts = [forward(params, x[i : i + batch]) for i in range(0, n, batch)]
    return float(jnp.abs(jnp.concatenate(parts) - forward(params, x)).max())


def main(*, out: Path = Path("three_tasks.png")) -> None:
    """Print the tables of the three tasks, and draw how a signal fares through 20 layers.

    Args:
      out: the picture.
    """
    for name, (sizes, loss) in TASKS.items():
        params = init(jax.random.key(0), sizes)
        p = predict(params, jax.random.normal(jax.random.key(1), (3, sizes[0])), loss=loss)
        net = "-".join(map(str, sizes))
        print(f"{name:12} {net:16} {count_parameters(params):8,} parameters, predictions {p.shape}")
    counts = (f"{'-'.join(map(str, sizes))}: {count:,}" for sizes, count in COUNTS.items())
    print(f"parameters of {', '.join(counts)}\n{summary(init(jax.random.key(0), (8, 32, 16, 1)))}")
    print(f"softmax of (1000, 1001, 1002): {softmax_cross_entropy.predict(jnp.array([1000.0, 1001.0, 1002.0]))}")
    print(f"1,000 samples at once and in batches of 128 differ by {in_batches_error():.0e}")

    z = jnp.array([-10.0, -1.0, 0.0, 1.0, 10.0])
    print(f"\n{'f, f-prime at z =':18}" + "".join(f"{v:>20g}" for v in z.tolist()))
    for f in (activations.relu, activations.leaky_relu(), activations.tanh, activations.sigmoid):
        a = f.fn(z)
        print(f"{f.name:18}" + "".join(f"{v:>10.3g}{s:>10.2g}" for v, s in zip(a, f.deriv(z, a), strict=True)))

    print("\nXOR, probabilities of 1 for 00, 01, 10, 11")
    for name, params in (("hand-set, as published", PUBLISHED_XOR), ("hand-set, right", RIGHT_XOR),
                         ("learnt", learn_xor())):  # fmt: skip
        p = xor_probabilities(params)
        verdict = "solves it" if ((p > 0.5) == (XOR[1] == 1)).all() else "does not solve it"
        print(f"  {name:24}{np.array2string(np.asarray(p), precision=3, floatmode='fixed')}  {verdict}")

    signals = {name: signal(*setting) for name, setting in SCALES.items()}
    print("\nroot mean square of a_20: " + ", ".join(f"{name} {values[-1]:.1e}" for name, values in signals.items()))
    plotting.lines(
        signals, title="A signal through 20 layers of width 100",
        x_label="layer", y_label="root mean square of the activations", log=True,
    ).savefig(out, dpi=110)  # fmt: skip
    print(f"picture: {out}")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
