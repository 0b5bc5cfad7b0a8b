"""What per-sample gradients are good for, on MNIST.

python scripts/per_sample_mnist.py hardest        # the training images with the largest gradients, and planted mistakes
python scripts/per_sample_mnist.py private        # DP-SGD: accuracy, and the privacy that it cost
python scripts/per_sample_mnist.py adversarial    # FGSM: accuracy before and after

Each prints a table and leaves its picture, if it has one, in the folder --pictures.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from funcnet import datasets, init, optimizers, per_sample, plotting, predict, tanh, training
from funcnet.mlp import Params

SIZES = (784, 128, 10)
PICTURES = Path("pictures")


def train(x, y, *, seed: int, epochs: int) -> Params:
    """784-128-10, ReLU, Adam: nothing special."""
    key_init, key_epochs = jax.random.split(jax.random.key(seed))
    optimizer = optimizers.adam(1e-3)
    state = training.init_state(init(key_init, SIZES), optimizer)
    epoch = jax.jit(training.make_epoch(optimizer, batch_size=128), donate_argnums=0)
    for key in jax.random.split(key_epochs, epochs):
        state, _ = epoch(state, key, x, y)
    return state.params


def in_chunks(fn, x, y, chunk: int = 1000) -> np.ndarray:
    """`fn` of a whole data set of uint8 images, chunk by chunk."""
    parts = [fn(training.scale_pixels(None, x[i : i + chunk]), y[i : i + chunk]) for i in range(0, len(x), chunk)]
    return np.concatenate([np.asarray(part) for part in parts])


def hardest(*, planted: float = 0.01, epochs: int = 5, seeds: int = 3, pictures: Path = PICTURES) -> None:
    """Rank the training images by the norm of their gradient: the hardest ones, and labels that are wrong.

    A part of the labels is made wrong on purpose. How many of them are among as many images with the largest norms,
    and, for comparison, with the largest losses? The picture is of a run on the labels as they are.

    Args:
      planted: the part of the labels that is made wrong.
      epochs: of training before the norms are taken.
      seeds: runs.
      pictures: where the picture goes.
    """
    x, y = jax.device_put(datasets.load_mnist().train)
    found = {"norm": [], "loss": []}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        wrong = rng.choice(len(y), int(planted * len(y)), replace=False)
        labels = np.array(y)
        labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
        labels = jnp.asarray(labels)
        params = train(x, labels, seed=seed, epochs=epochs)
        norms = in_chunks(partial(per_sample.per_sample_norms, params), x, labels)
        true_class = in_chunks(
            lambda x, y, p=params: jnp.take_along_axis(predict(p, x), y[:, None], 1)[:, 0], x, labels
        )
        for name, order in (("norm", np.argsort(-norms)), ("loss", np.argsort(true_class))):
            found[name].append(np.isin(order[: len(wrong)], wrong).mean())
    print(f"{planted:.1%} of {len(y):,} training labels made wrong, 784-128-10, {epochs} epochs, {seeds} seeds")
    for name, parts in found.items():
        print(f"  among as many with the largest {name}: {spread(parts)} of them")

    params = train(x, y, seed=0, epochs=epochs)
    norms = in_chunks(partial(per_sample.per_sample_norms, params), x, y)
    predicted = in_chunks(lambda x, y: predict(params, x).argmax(-1), x, y)
    worst = np.argsort(-norms)[:32]
    titles = [f"#{i}: {y[i]}\N{RIGHTWARDS ARROW}{predicted[i]}\n|g| = {norms[i]:.0f}" for i in worst]
    title = (
        f"MNIST's training images with the largest gradients (median |g| = {np.median(norms):.2g}): label, prediction"
    )
    save(plotting.images(np.asarray(x)[worst], titles, title=title), pictures / "hardest.png")


def private(
    *, max_norm: float = 1.0, noise_multiplier: float = 1.0, batch_size: int = 1024, epochs: int = 20,
    lr: float = 4.0, delta: float = 1e-5, seeds: int = 3, validation: int = 0,
) -> None:  # fmt: skip
    """Train with DP-SGD: batches by Poisson sampling, gradients clipped one by one, noise on their sum.

    784-128-10 with tanh, as Papernot et al. (AAAI 2021) recommend for private training.

    Args:
      max_norm: the clip.
      noise_multiplier: the noise's standard deviation over the clip.
      batch_size: the expected one.
      epochs: passes over the images, in expectation.
      lr: of plain SGD.
      delta: at which epsilon is stated.
      seeds: runs.
      validation: so many training images are held out and scored in place of the test set, to choose settings by.
    """
    data = datasets.load_mnist()
    kept = len(data.train[0]) - validation
    held_out = data.test if validation == 0 else tuple(part[kept:] for part in data.train)
    (x, y), held_out = jax.device_put((tuple(part[:kept] for part in data.train), held_out))
    rate = batch_size / len(x)
    steps = epochs * len(x) // batch_size
    capacity = batch_size + 10 * int(np.sqrt(batch_size)) + 20  # a batch exceeds it with a probability below 1e-20

    @jax.jit
    def run(key, x, y):
        key_init, key_steps = jax.random.split(key)

        def step(params, key):
            key_sample, key_noise = jax.random.split(key)
            chosen = jnp.nonzero(jax.random.bernoulli(key_sample, rate, (len(x),)), size=capacity, fill_value=-1)[0]
            batch = training.scale_pixels(None, x[chosen]), y[chosen]
            total = per_sample.private_sum(
                key_noise, params, *batch, included=chosen >= 0, max_norm=max_norm,
                noise_multiplier=noise_multiplier, hidden=tanh,
            )  # fmt: skip
            return jax.tree.map(lambda p, g: p - lr / batch_size * g, params, total), None

        return jax.lax.scan(step, init(key_init, SIZES), jax.random.split(key_steps, steps))[0]

    accuracies = []
    for seed in range(seeds):
        params = run(jax.random.key(seed), x, y)
        accuracies.append(float(training.evaluate(params, *held_out, hidden=tanh).accuracy))
    epsilon = privacy_spent(rate, noise_multiplier, steps, delta)
    print(f"DP-SGD, 784-128-10, clip {max_norm:g}, noise multiplier {noise_multiplier:g}, expected batch {batch_size}, "
          f"{steps} steps, lr {lr:g}")  # fmt: skip
    name = "test" if validation == 0 else "validation"
    print(f"  {name} accuracy {spread(accuracies)} over {seeds} seeds")
    print(f"  privacy: {epsilon}")


def privacy_spent(rate: float, noise_multiplier: float, steps: int, delta: float) -> str:
    """Epsilon by dp-accounting, if it is there."""
    try:
        import dp_accounting  # pyright: ignore[reportMissingImports]  (in no extra)
    except ImportError:
        return "not counted; pip install dp-accounting does"
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise_multiplier)), steps
    )
    accountant = dp_accounting.pld.PLDAccountant().compose(event)
    return f"({accountant.get_epsilon(delta):.2f}, {delta:g})-differentially private by dp-accounting"


def adversarial(*, epsilon: float = 0.1, epochs: int = 5, seeds: int = 3, pictures: Path = PICTURES) -> None:
    """Move every pixel of the test images by epsilon against the network: the fast gradient sign method.

    Args:
      epsilon: of a pixel between 0 and 1.
      epochs: of training.
      seeds: runs.
      pictures: where the picture goes.
    """
    data = datasets.load_mnist()
    (x, y), (x_test, y_test) = jax.device_put(data.train), jax.device_put(data.test)

    @jax.jit
    def fool(params, x, y):
        return jnp.clip(x + epsilon * jnp.sign(per_sample.input_backward(params, x, y)), 0, 1)

    @jax.jit
    def classes(params, x):
        return predict(params, x).argmax(-1)

    rows = {"before": [], "after FGSM": [], "after random signs": []}
    images = training.scale_pixels(None, x_test)
    params, fooling = [], images
    for seed in range(seeds):
        params = train(x, y, seed=seed, epochs=epochs)
        signs = jax.random.rademacher(jax.random.key(seed), images.shape, images.dtype)
        fooling = fool(params, images, y_test)
        moved = (images, fooling, jnp.clip(images + epsilon * signs, 0, 1))
        for row, changed in zip(rows.values(), moved, strict=True):
            row.append(float((classes(params, changed) == y_test).mean()))
    print(f"FGSM, epsilon {epsilon:g}, 784-128-10, {epochs} epochs, {seeds} seeds, test accuracy")
    for name, row in rows.items():
        print(f"  {name:18} {spread(row)}")

    before, after = classes(params, images[:16]), classes(params, fooling[:16])
    pairs = np.stack([images[:16], fooling[:16]], 1).reshape(32, -1)
    titles = [str(label) for pair in zip(before, after, strict=True) for label in pair]
    title = f"Test images, and the same with every pixel moved by {epsilon:g}; what the network says"
    save(plotting.images(pairs, titles, title=title), pictures / "adversarial.png")


def spread(values: list[float]) -> str:
    """Mean and, of more than one, standard deviation."""
    return f"{np.mean(values):.2%}" + (f" +- {np.std(values, ddof=1):.2%}" if len(values) > 1 else "")


def save(figure: Any, path: Path) -> None:
    """Write a picture and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"  picture: {path}")


def main() -> int:
    """The command line; 1 where the data cannot be had."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"hardest": hardest, "private": private, "adversarial": adversarial}, description=__doc__
        )
    except OSError as error:
        print(f"per_sample_mnist: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
