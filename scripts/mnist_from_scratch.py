"""A neural network learns to read digits: the whole story in one file, to be read first.

python scripts/mnist_from_scratch.py              # ten epochs of MNIST, about 98% of the test images correct

funcnet gives pure functions: `init` draws the parameters `[(W_1, b_1), (W_2, b_2)]`, `forward` computes the outputs,
and `value_and_backward` the mean loss of a batch and its gradient, a list of the same form. The step, the epoch and the
loop are written out here; `funcnet.optimizers` and `funcnet.training` have richer ones.
"""

import argparse

import jax
import jax.numpy as jnp

import funcnet

HIDDEN_UNITS = 512
BATCH_SIZE = 128
EPOCHS = 10


def load(data_dir=None):
    """The training and the test set: images `x` (samples, pixels), from 0 to 1, and their digits `y` (samples,)."""
    _, data = funcnet.datasets.load_mnist_or_digits(data_dir)
    return [(jnp.asarray(x, jnp.float32) / 255, jnp.asarray(y)) for x, y in data]


def step(params, x, y, lr=0.5):
    """One step of gradient descent, from one batch: each W and b goes against its gradient, times the learning rate."""
    loss, grads = funcnet.value_and_backward(params, x, y)
    return [(W - lr * dW, b - lr * db) for (W, b), (dW, db) in zip(params, grads, strict=True)], loss


@jax.jit
def epoch(params, key, x, y):
    """All images once, in random order, batch by batch (a last one that is not full is left out); the mean loss."""
    order = jax.random.permutation(key, len(x))
    batches = order[: len(x) // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE)
    params, losses = jax.lax.scan(lambda params, batch: step(params, x[batch], y[batch]), params, batches)
    return params, losses.mean()


@jax.jit
def accuracy(params, x, y):
    """The part of the images for which the largest output is that of their digit."""
    return jnp.mean(jnp.argmax(funcnet.forward(params, x), axis=-1) == y)


def main(data_dir=None):
    """Train a network of one hidden layer, on MNIST 784-512-10, and print how it gets on."""
    (x, y), (x_test, y_test) = load(data_dir)
    key, *epoch_keys = jax.random.split(jax.random.key(0), 1 + EPOCHS)
    params = funcnet.init(key, (x.shape[1], HIDDEN_UNITS, 10))
    for i, key in enumerate(epoch_keys, 1):
        params, loss = epoch(params, key, x, y)
        print(f"epoch {i:2}: loss {loss:.4f}", flush=True)
    print(f"test accuracy {accuracy(params, x_test, y_test):.2%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-dir",
        metavar="FOLDER",
        help="the MNIST files; without it $FUNCNET_DATA, then the user's cache, then a download, then small digits",
    )
    try:
        main(parser.parse_args().data_dir)
    except (ImportError, OSError) as error:
        raise SystemExit(f"mnist_from_scratch: {error}") from error
