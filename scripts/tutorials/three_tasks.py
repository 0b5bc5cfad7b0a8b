"""Three tasks, one forward pass: the last layer's loss alone makes it binary, multi-class or regression.

python scripts/tutorials/three_tasks.py           # prints the tables, and draws runs/three_tasks.png
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tutorial import Picture, command, descend, save

import funcnet
from funcnet import Network, activations, forward, init, plotting, predict, relu, tanh
from funcnet.losses import sigmoid_cross_entropy, softmax_cross_entropy, squared_error

COUNTS = {(4, 8, 1): 49, (4, 8, 4, 1): 81, (10, 32, 16, 5): 965, (784, 256, 128, 64, 10): 242_762,
          (50, 32, 16, 1): 2_177, (784, 128, 64, 10): 109_386, (8, 32, 16, 1): 833}  # fmt: skip
TASKS = {
    "binary": ((50, 32, 16, 1), sigmoid_cross_entropy),
    "multi-class": ((784, 128, 64, 10), softmax_cross_entropy),
    "regression": ((8, 32, 16, 1), squared_error),
}
SCALES = {
    "ReLU, 0.01 N(0, 1)": (relu, lambda key, shape, dtype: 0.01 * jax.random.normal(key, shape, dtype)),
    "ReLU, N(0, 1)": (relu, funcnet.standard_normal),
    "ReLU, He": (relu, funcnet.he_normal),
    "tanh, Xavier": (tanh, funcnet.glorot_normal),
}
BINARY = Network(relu, loss=sigmoid_cross_entropy)
XOR = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), jnp.array([0, 1, 1, 0])
SUMS, OUTPUT = jnp.ones((2, 2)), (jnp.array([[1.0], [-2.0]]), jnp.array([-0.5]))  # a_1 - 2 a_2 - 1/2
PUBLISHED_XOR = [(SUMS, jnp.array([-0.5, -1.5])), OUTPUT]  # as a tutorial gives it; it is none
CORRECT_XOR = [(SUMS, jnp.array([0.0, -1.0])), OUTPUT]


def xor_probabilities(params):
    """What a network says of the four inputs."""
    return predict(params, XOR[0], BINARY)[:, 0]


def learn_xor(steps=2000, seed=1):
    """The same by gradient descent, 2-4-1."""
    return descend(init(jax.random.key(seed), (2, 4, 1)), *XOR, BINARY, funcnet.adam(0.02), steps)[0]


def signal(f, weights, depth=20, width=100, seed=0):
    """The root mean square of `a_1 .. a_20` for normal inputs."""
    params = init(jax.random.key(seed), (width,) * (depth + 1), weights=weights)
    x = jax.random.normal(jax.random.key(seed + 1), (1000, width))
    trace = funcnet.forward_trace(params, x, Network(f, output=f))
    return np.array([np.sqrt(np.mean(np.asarray(a, np.float64) ** 2)) for a in trace.activations[1:]])


def in_batches_error(batch=128, n=1000):
    """The largest difference between 1,000 samples at once and in batches of 128."""
    params, x = init(jax.random.key(0), (784, 128, 64, 10)), jax.random.normal(jax.random.key(1), (n, 784))
    parts = [forward(params, x[i : i + batch]) for i in range(0, n, batch)]
    return float(jnp.abs(jnp.concatenate(parts) - forward(params, x)).max())


def main(*, out: Picture = Path("runs/three_tasks.png")) -> None:
    """Print the tables of the three tasks, and draw how a signal fares through 20 layers."""
    for name, (sizes, loss) in TASKS.items():
        params = init(jax.random.key(0), sizes)
        p = predict(params, jax.random.normal(jax.random.key(1), (3, sizes[0])), Network(loss=loss))
        print(
            f"{name:12} {'-'.join(map(str, sizes)):16} {funcnet.count_parameters(params):8,} parameters, "
            f"predictions {p.shape}"
        )
    counts = (f"{'-'.join(map(str, sizes))}: {count:,}" for sizes, count in COUNTS.items())
    print(f"parameters of {', '.join(counts)}\n{funcnet.summary(init(jax.random.key(0), (8, 32, 16, 1)))}")
    print(f"softmax of (1000, 1001, 1002): {softmax_cross_entropy.predict(jnp.array([1000.0, 1001.0, 1002.0]))}")
    print(f"1,000 samples at once and in batches of 128 differ by {in_batches_error():.0e}")
    z = jnp.array([-10.0, -1.0, 0.0, 1.0, 10.0])
    print(f"\n{'f, f-prime at z =':18}" + "".join(f"{v:>20g}" for v in z.tolist()))
    for f in (relu, activations.leaky_relu(), tanh, activations.sigmoid):
        a = f.fn(z)
        print(f"{f.name:18}" + "".join(f"{v:>10.3g}{s:>10.2g}" for v, s in zip(a, f.deriv(z, a), strict=True)))

    print("\nXOR, probabilities of 1 for 00, 01, 10, 11")
    networks = {"hand-set, as published": PUBLISHED_XOR, "hand-set, correct": CORRECT_XOR, "learnt": learn_xor()}
    for name, params in networks.items():
        p = np.asarray(xor_probabilities(params))
        solves = "solves it" if ((p > 0.5) == (XOR[1] == 1)).all() else "does not solve it"
        print(f"  {name:24}{np.array2string(p, precision=3, floatmode='fixed')}  {solves}")

    signals = {name: signal(*setting) for name, setting in SCALES.items()}
    print("\nroot mean square of a_20: " + ", ".join(f"{name} {values[-1]:.1e}" for name, values in signals.items()))
    title, y_label = "A signal through 20 layers of width 100", "root mean square of the activations"
    save(plotting.lines(signals, title=title, x_label="layer", y_label=y_label, log=True), out)


if __name__ == "__main__":
    command(main, __doc__)
