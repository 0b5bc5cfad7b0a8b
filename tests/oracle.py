"""The network once more, in plain NumPy, in float64 and complex128, from the textbook's formulas.

It imports nothing of funcnet. Gradients come from the complex step, `Im f(p + ih) / h`, exact to rounding (Squire and
Trapp, SIAM Review 1998), so no derivative is written down here at all.
"""

import itertools

import numpy as np
from scipy.special import erf

ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": lambda z: np.where(z.real > 0, z, 0),
    "leaky_relu(0.01)": lambda z: np.where(z.real > 0, z, 0.01 * z),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "softplus": lambda z: np.log(1 + np.exp(z)),
    "elu": lambda z: np.where(z.real > 0, z, np.exp(z) - 1),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "gelu_tanh": lambda z: z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))) / 2,
    "gelu": lambda z: z * (1 + erf(z / np.sqrt(2))) / 2,
}

# On targets shaped like the output.
LOSSES = {
    "softmax_cross_entropy": lambda out, y: -np.sum(y * (out - np.log(np.sum(np.exp(out), -1, keepdims=True))), -1),
    "sigmoid_cross_entropy": lambda out, y: np.sum(np.log(1 + np.exp(out)) - y * out, -1),
    "squared_error": lambda out, y: np.sum((out - y) ** 2, -1),
}


def forward(params, x, hidden, output="identity", masks=None):
    a = x
    for l, (W, b) in enumerate(params):
        if masks is not None and masks[l] is not None:
            a = a * masks[l]
        z = a @ W + b
        a = ACTIVATIONS[output if l == len(params) - 1 else hidden](z)
    return a


def objective(params, x, y, hidden, loss, output="identity", masks=None, sample_weight=None):
    out = forward(params, x, hidden, output, masks)
    if np.issubdtype(y.dtype, np.integer):
        y = np.eye(out.shape[-1])[y]
    losses = LOSSES[loss](out, y)
    w = np.ones(losses.shape) if sample_weight is None else sample_weight
    return np.sum(w * losses) / np.sum(w)


def complex_step(f, arrays, h=1e-30):
    """The gradient of a real function of a list of arrays, entry by entry."""
    arrays = [np.asarray(a, complex) for a in arrays]
    grads = []
    for a in arrays:
        grad = np.empty(a.shape)
        for i in np.ndindex(a.shape):
            old = a[i]
            a[i] = old + 1j * h
            grad[i] = f(arrays).imag / h
            a[i] = old
        grads.append(grad)
    return grads


def gradient(params, *args, **kwargs):
    """d objective / d params."""
    flat = complex_step(
        lambda leaves: objective(list(zip(leaves[::2], leaves[1::2], strict=True)), *args, **kwargs),
        [leaf for layer in params for leaf in layer],
    )
    return list(zip(flat[::2], flat[1::2], strict=True))


def network(seed, sizes, dtype=np.float64):
    """Random parameters at He's scale, biases included, so that nothing is zero by accident."""
    rng = np.random.default_rng(seed)
    return [
        ((rng.normal(size=(i, o)) * np.sqrt(2 / i)).astype(dtype), rng.uniform(-0.1, 0.1, o).astype(dtype))
        for i, o in itertools.pairwise(sizes)
    ]


def errors_in_eps(a, b):
    """`max|a - b| / (eps max|b|)` of each leaf, `eps` that of the leaf's dtype, as the two trees' flat list."""
    import jax

    def error(a, b):
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape
        if a.size == 0:
            return 0.0
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64)).max()
        scale = np.abs(b.astype(np.float64)).max() * float(jax.numpy.finfo(a.dtype).eps)
        return 0.0 if difference == 0 else difference / scale

    return jax.tree.leaves(jax.tree.map(error, a, b))


def make_case(seed, sizes, leading, dtype, *, weighted, masked, soft=False):
    """Arguments of `backward`, drawn by NumPy: `(params, x, y)` and a dictionary."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*leading, sizes[0])).astype(dtype)
    K = sizes[-1]
    y = rng.uniform(size=(*leading, K)).astype(dtype) if soft else rng.integers(0, K, leading).astype(np.int32)
    arrays = {}
    if weighted:
        arrays["sample_weight"] = rng.uniform(0.1, 1, size=leading).astype(dtype)
    if masked:
        kept = [rng.uniform(size=(*leading, n)) < 0.8 for n in sizes[:-1]]
        arrays["masks"] = [(mask / 0.8).astype(dtype) for mask in kept]
    return (network(seed, sizes, dtype), x, y), arrays


def sizes_of(depth):
    # Not narrower: 32 layers of 9 or 16 ReLUs map all samples to nearly one point, their deltas cancel in dW, and the
    # two gradients differ by up to 120 eps of what is left, each as far from the truth in float64 as the other.
    # Both are wider than the 16 columns up to which `products.outer_sum` transposes its product, as in the last layer.
    width = 20 if depth <= 4 else 32
    return (6, *[width] * (depth - 1), 4)
