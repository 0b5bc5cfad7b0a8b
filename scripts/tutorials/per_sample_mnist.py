"""What per-sample gradients are good for, on MNIST.

python scripts/tutorials/per_sample_mnist.py hardest       # the images with the largest gradients; planted mistakes

python scripts/tutorials/per_sample_mnist.py private       # DP-SGD: accuracy, and the privacy that it cost

python scripts/tutorials/per_sample_mnist.py adversarial   # FGSM: accuracy before and after

Each prints a table. Those that draw leave their picture in runs/, or at --out.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tutorial import DataDir, Picture, Seeds, command, save

from funcnet import Network, adam, datasets, evaluation, init, per_sample, plotting, predict, tanh, training
from funcnet.losses import softmax_cross_entropy


def sizes(x):
    """784-128-10; of the small digits, 64-128-10."""
    return x.shape[1], 128, 10


def name(x):
    """Those sizes in words."""
    return "-".join(map(str, sizes(x)))


def train(x, y, seed, epochs):
    """784-128-10, ReLU, Adam: nothing special."""
    key_init, key_epochs = jax.random.split(jax.random.key(seed))
    state = training.init_state(init(key_init, sizes(x)), adam(1e-3))
    epoch = jax.jit(training.make_epoch(adam(1e-3), batch_size=128), donate_argnums=0)
    for key in jax.random.split(key_epochs, epochs):
        state, _ = epoch(state, key, x, y)
    return state.params


@jax.jit
def measured(params, x, y):
    """Of each image: the norm of its gradient, its loss, and the class that the network takes it for."""
    x = evaluation.scale_pixels(None, x)
    norms = jax.lax.map(lambda image: per_sample.per_sample_norms(params, *image), (x, y), batch_size=1000)
    out = evaluation.forward_in_batches(params, x)
    return norms, softmax_cross_entropy.fn(out, y), out.argmax(-1)


def hardest(
    *, planted: float = 0.01, epochs: int = 5, seeds: Seeds = 3, data_dir: DataDir = None,
    out: Picture = Path("runs/hardest.png"),
) -> None:  # fmt: skip
    """Rank the training images by the norm of their gradient: the hardest ones, and labels that are wrong.

    A part of the labels is made wrong on purpose. How many of them are among as many images with the largest norms,
    and, for comparison, with the largest losses? The picture is of a run on the labels as they are.

    Args:
      planted: the part of the labels that is made wrong.
      epochs: of training before the norms are taken.
      seeds: runs.
      data_dir: of MNIST.
      out: the picture.
    """
    _, ((x, y), _) = datasets.load_mnist_or_digits(data_dir)
    found = {"norm": [], "loss": []}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        wrong = rng.choice(len(y), int(planted * len(y)), replace=False)
        labels = y.copy()
        labels[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
        for parts, values in zip(found.values(), measured(train(x, labels, seed, epochs), x, labels), strict=False):
            parts.append(np.isin(np.argsort(-values)[: len(wrong)], wrong).mean())
    print(f"{planted:.1%} of {len(y):,} training labels made wrong, {name(x)}, {epochs} epochs, {seeds} seeds")
    for measure, parts in found.items():
        print(f"  among as many with the largest {measure}: {spread(parts)} of them")
    norms, _, said = map(np.asarray, measured(train(x, y, 0, epochs), x, y))
    worst, median = np.argsort(-norms)[:24], np.median(norms)
    titles = [f"#{i}: {y[i]}\N{RIGHTWARDS ARROW}{said[i]}\n|g| = {norms[i]:.3g}" for i in worst]
    title = f"The largest gradients: label\N{RIGHTWARDS ARROW}prediction (the median |g| is {median:.2g})"
    save(plotting.images(x[worst], titles, title=title, columns=6), out)


def private(
    *, max_norm: float = 1.0, noise_multiplier: float = 1.0, batch_size: int = 1024, epochs: int = 20,
    lr: float = 4.0, delta: float = 1e-5, seeds: Seeds = 1, validation: int = 0, data_dir: DataDir = None,
) -> None:  # fmt: skip
    """Train with DP-SGD: batches by Poisson sampling, gradients clipped one by one, noise on their sum.

    784-128-10 with tanh, as Papernot et al. (AAAI 2021) recommend for private training.

    Args:
      max_norm: the clip.
      noise_multiplier: the noise's standard deviation over the clip.
      batch_size: the expected one, at most a tenth of the images.
      epochs: passes over the images, in expectation.
      lr: of plain SGD.
      delta: at which epsilon is stated.
      seeds: runs.
      validation: so many training images are held out and scored in place of the test set, to choose settings by.
      data_dir: of MNIST.
    """
    _, ((x, y), held_out) = datasets.load_mnist_or_digits(data_dir)
    if validation:
        x, y, *held_out = x[:-validation], y[:-validation], x[-validation:], y[-validation:]
    batch_size = min(batch_size, len(x) // 10)
    rate, steps = batch_size / len(x), epochs * len(x) // batch_size
    capacity = batch_size + 10 * int(np.sqrt(batch_size)) + 20  # a batch exceeds it with a probability below 1e-20
    clip = {"max_norm": max_norm, "noise_multiplier": noise_multiplier}

    @jax.jit
    def run(key, x, y):
        key_init, key_steps = jax.random.split(key)

        def step(params, key):
            key_sample, key_noise = jax.random.split(key)
            chosen = jnp.nonzero(jax.random.bernoulli(key_sample, rate, y.shape), size=capacity, fill_value=-1)[0]
            batch = evaluation.scale_pixels(None, x[chosen]), y[chosen]
            total = per_sample.private_sum(key_noise, params, *batch, Network(tanh), included=chosen >= 0, **clip)
            return jax.tree.map(lambda p, g: p - lr / batch_size * g, params, total), None

        return jax.lax.scan(step, init(key_init, sizes(x)), jax.random.split(key_steps, steps))[0]

    runs = [run(jax.random.key(seed), x, y) for seed in range(seeds)]
    accuracies = [float(evaluation.evaluate(params, *held_out, network=Network(tanh)).accuracy) for params in runs]
    try:
        import dp_accounting as dp  # pyright: ignore[reportMissingImports]  (in no extra)

        event = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise_multiplier)), steps)
        epsilon = dp.pld.PLDAccountant().compose(event).get_epsilon(delta)
        privacy = f"({epsilon:.2f}, {delta:g})-differentially private by dp-accounting"
    except ImportError:
        privacy = "not counted; pip install dp-accounting does"
    print(
        f"DP-SGD, {name(x)}, clip {max_norm:g}, noise multiplier {noise_multiplier:g}, expected batch {batch_size}, "
        f"{steps} steps, lr {lr:g}\n"
        f"  {'validation' if validation else 'test'} accuracy {spread(accuracies)}, seeds: {seeds}\n"
        f"  privacy: {privacy}"
    )


def adversarial(
    *, epsilon: float = 0.1, epochs: int = 5, seeds: Seeds = 3, data_dir: DataDir = None,
    out: Picture = Path("runs/adversarial.png"),
) -> None:  # fmt: skip
    """Move every pixel of the test images by epsilon against the network: the fast gradient sign method.

    Args:
      epsilon: of a pixel between 0 and 1.
      epochs: of training.
      seeds: runs.
      data_dir: of MNIST.
      out: the picture.
    """
    _, ((x, y), (x_test, y_test)) = datasets.load_mnist_or_digits(data_dir)
    before = evaluation.scale_pixels(None, jnp.asarray(x_test))
    rows, shown = {"before": [], "after FGSM": [], "after random signs": []}, []
    for seed in range(seeds):
        params = train(x, y, seed, epochs)
        uphill = jnp.sign(per_sample.input_backward(params, before, y_test))
        at_random = jax.random.rademacher(jax.random.key(seed), before.shape, before.dtype)
        shown = []  # the images, and what the network says of them
        for row, signs in zip(rows.values(), (0.0, uphill, at_random), strict=True):
            moved = jnp.clip(before + epsilon * signs, 0, 1)
            said = predict(params, moved).argmax(-1)
            row.append(float((said == y_test).mean()))
            shown.append((moved[:12], said[:12]))
    print(f"FGSM, epsilon {epsilon:g}, {name(x)}, {epochs} epochs, {seeds} seeds, test accuracy")
    for when, row in rows.items():
        print(f"  {when:18} {spread(row)}")
    images, titles, colors = [], [], []
    for six in np.s_[:6], np.s_[6:12]:  # a row of images, and the same attacked below it
        for what, (moved, said) in zip(("as it is", "attacked"), shown, strict=False):
            images.append(moved[six])
            for k, label in zip(said[six].tolist(), y_test[:12][six].tolist(), strict=True):
                titles.append(f"{what}:\n{k}" if k == label else f"{what}:\n{k}, not {label}")
                colors.append("black" if k == label else plotting.RED)
    title = f"What the network says before and after each pixel moves by {epsilon:g}"
    save(plotting.images(np.concatenate(images), titles, title=title, columns=6, colors=colors), out)


def spread(values: list[float]) -> str:
    """Mean and, of more than one, standard deviation."""
    return f"{np.mean(values):.2%}" + (f" +- {np.std(values, ddof=1):.2%}" if len(values) > 1 else "")


if __name__ == "__main__":
    command({"hardest": hardest, "private": private, "adversarial": adversarial}, __doc__)
