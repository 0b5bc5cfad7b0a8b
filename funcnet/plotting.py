"""Pictures of training and of networks. Each function returns a matplotlib `Figure`, for the caller to save.

No global state: no `pyplot`, no style sheet left behind. Colours are told apart by the colour-blind and in print
(Okabe and Ito 2008; viridis).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike

from funcnet.extras import import_extra

__all__ = [
    "confusion_matrix", "curves", "finish", "first_layer_weights", "images", "lines", "new_figure", "worst_mistakes",
]  # fmt: skip

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777"
RED = "#C00000"  # of wrong answers, which the words beside it name, too
STYLES = [
    {"color": color, "linestyle": line} for color, line in ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"))
]


def new_figure(width: float, height: float, title: str) -> Any:
    """A figure of that size in inches, drawn on by nobody else.

    >>> new_figure(6.4, 3.6, "A title")
    <Figure size 640x360 with 0 Axes>
    """
    figure = import_extra("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)  # a white frame, since pages may be dark
    figure.suptitle(title)
    return figure


def curves(history: Sequence[Mapping[str, float]]) -> Any:
    """Loss and error rate by epoch, for training and, where there is one, validation.

    Args:
      history: one mapping per epoch, with `train_loss`, `train_accuracy` and maybe `validation_loss`,
        `validation_accuracy`.

    >>> curves([{"train_loss": 0.5, "train_accuracy": 0.9}, {"train_loss": 0.2, "train_accuracy": 0.95}])
    <Figure size 640x320 with 2 Axes>
    """
    sets = [name for name in ("train", "validation") if history and f"{name}_loss" in history[0]]
    figure = new_figure(6.4, 3.2, "Learning curves")
    left, right = figure.subplots(1, 2)
    epochs = np.arange(1, len(history) + 1)
    for name, style in zip(sets, STYLES, strict=False):
        left.plot(epochs, [row[f"{name}_loss"] for row in history], marker=".", label=name, **style)
        errors = [100 * (1 - row[f"{name}_accuracy"]) for row in history]
        right.plot(epochs, errors, marker=".", label=name, **style)
    for axes, label in ((left, "mean loss (nats)"), (right, "error rate (%)")):
        axes.set(xlabel="epoch", ylabel=label, ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
        finish(axes)
    return figure


def confusion_matrix(counts: ArrayLike) -> Any:
    """Who is taken for whom: true classes down, predicted across, errors coloured.

    Args:
      counts: `(K, K)` integers, `counts[true, predicted]`.

    >>> confusion_matrix([[5, 1], [0, 4]])
    <Figure size 640x600 with 1 Axes>
    """
    counts = np.asarray(counts)
    K = len(counts)
    errors = np.where(np.eye(K, dtype=bool), 0, counts)
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    figure = new_figure(6.4, 6, f"Confusion matrix: {accuracy:.2%} correct, {errors.sum():,} of {counts.sum():,} wrong")
    axes = figure.subplots()
    axes.imshow(errors, cmap="Oranges", vmax=max(errors.max(), 1) * 1.5)
    for true, predicted in np.ndindex(K, K):
        weight, color = ("bold", BLUE) if true == predicted else ("normal", "black")
        if counts[true, predicted]:
            axes.text(predicted, true, counts[true, predicted], ha="center", va="center", fontsize=9,
                      weight=weight, color=color)  # fmt: skip
    axes.set(xlabel="predicted class", ylabel="true class", xticks=range(K), yticks=range(K))
    return figure


def worst_mistakes(x: ArrayLike, y: ArrayLike, p: ArrayLike, *, rows: int = 4, columns: int = 8) -> Any:
    """The wrongly classified samples whose true class got the smallest probability, worst first.

    Args:
      x: images `(N, pixels)`, square.
      y: class ids `(N,)`.
      p: probabilities `(N, K)`.
      rows: of the grid, at most.
      columns: of the grid.

    Returns:
      The figure; each image is titled `true -> predicted` with the probability of either.

    Raises:
      ValueError: the images are not square.

    >>> x, y, p = np.zeros((3, 64)), np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
    >>> figure = worst_mistakes(x, y, p, rows=1, columns=2)
    >>> figure.axes[0].get_title().splitlines()
    ['1→0', '2e-01 | 80%']
    """
    x, y, p = np.asarray(x), np.asarray(y), np.asarray(p)
    predicted = p.argmax(1)
    right, taken = p[np.arange(len(y)), y], p.max(1)
    worst = np.argsort(right)[: rows * columns]
    worst = worst[predicted[worst] != y[worst]]
    titles = [f"{y[i]}\N{RIGHTWARDS ARROW}{predicted[i]}\n{right[i]:.0e} | {taken[i]:.0%}" for i in worst]
    title = (
        "Worst mistakes: true\N{RIGHTWARDS ARROW}predicted, and their probabilities" if len(worst) else "No mistakes"
    )
    return images(x[worst], titles, title=title, rows=rows, columns=columns)


def images(
    x: ArrayLike,
    titles: Sequence[str],
    *,
    title: str,
    rows: int = 4,
    columns: int = 8,
    colors: Sequence[str] | None = None,
) -> Any:
    """Images in a grid, each under its own title.

    Args:
      x: images `(N, pixels)`, square.
      titles: one for each.
      title: of the whole.
      rows: of the grid, at most: no row stays empty.
      columns: of the grid.
      colors: of the titles, one for each.

    Raises:
      ValueError: the images are not square.

    >>> images(np.zeros((3, 64)), ["a", "b", "c"], title="Three digits", columns=3)
    <Figure size 345x205 with 3 Axes>
    """
    x = np.asarray(x)
    rows = _rows_needed(len(x), rows, columns)
    figure = new_figure(1.15 * columns, 1.45 * rows + 0.6, title)
    return _grid(figure, x, titles, rows, columns, "gray_r", colors=colors)


def first_layer_weights(W: ArrayLike, *, rows: int = 4, columns: int = 8) -> Any:
    """The incoming weights of the hidden units with the largest norms, as images.

    Args:
      W: `(pixels, n_1)`, square images.
      rows: of the grid, at most.
      columns: of the grid.

    Returns:
      The figure; blue is negative, red positive, white zero, one scale for all.

    Raises:
      ValueError: the images are not square.

    >>> figure = first_layer_weights(np.eye(64)[:, :2] * [1, 3], rows=1, columns=2)
    >>> [axes.get_title() for axes in figure.axes]
    ['unit 1', 'unit 0']
    """
    W = np.asarray(W, dtype=np.float32)
    strongest = np.argsort(-np.linalg.norm(W, axis=0))[: rows * columns]
    images = W[:, strongest].T
    limit = float(np.abs(images).max(initial=1e-12))
    rows = _rows_needed(len(strongest), rows, columns)
    title = f"First-layer weights, largest norms first: blue {-limit:.2g}, white 0, red {limit:.2g}"
    figure = new_figure(1.15 * columns, 1.2 * rows + 0.6, title)
    return _grid(figure, images, [f"unit {i}" for i in strongest], rows, columns, "RdBu_r", -limit, limit)


def lines(
    values: Mapping[str, Any],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log: bool = False,
    x: Mapping[str, Any] | None = None,
) -> Any:
    """Named sequences over `1, 2, ...`, or over an `x` each.

    Args:
      values: a sequence for each name, four at most.
      title: what to see.
      x_label: with its unit.
      y_label: with its unit.
      log: a logarithmic vertical axis; with `x`, both are logarithmic.
      x: where the values of each name lie.

    >>> lines({"relu": [1, 0.5], "tanh": [1, 0.7]}, title="Signals", x_label="layer", y_label="rms")
    <Figure size 640x360 with 1 Axes>
    """
    figure = new_figure(6.4, 3.6, title)
    axes = figure.subplots()
    for (name, sequence), style in zip(values.items(), STYLES, strict=False):
        sequence = np.asarray(sequence)
        axes.plot(np.arange(1, len(sequence) + 1) if x is None else x[name], sequence, label=name, **style)
    axes.set(xlabel=x_label, ylabel=y_label, **({"yscale": "log"} if log else {}))
    if x is not None and log:
        axes.set_xscale("log")
    elif x is None:
        axes.xaxis.get_major_locator().set_params(integer=True)
    finish(axes)
    return figure


def finish(axes: Any) -> None:
    """A grid and a legend, the last touch to axes with labelled lines.

    >>> axes = new_figure(4, 3, "A line").subplots()
    >>> _ = axes.plot([1, 2], label="y")
    >>> finish(axes)
    """
    axes.grid(alpha=0.3)
    axes.legend()


def _rows_needed(n, rows, columns) -> int:
    return max(1, min(rows, -(-n // columns)))


def _grid(figure, images, titles, rows, columns, cmap, vmin=None, vmax=None, colors=None) -> Any:
    side = round(np.sqrt(images.shape[1]))
    if side * side != images.shape[1]:
        raise ValueError(f"images have {images.shape[1]} pixels, expected a square number")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=(), yticks=())  # ticks that nobody sees take half the time
        axes.axis("off")
    colors = ["black"] * len(titles) if colors is None else colors
    for axes, image, title, color in zip(grid.flat, images, titles, colors, strict=False):
        axes.imshow(image.reshape(side, side), cmap=cmap, vmin=vmin, vmax=vmax)
        axes.set_title(title, fontsize=10, color=color)
    return figure
