"""The data for the training and the scores of a run."""

import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from mnist.processes import say
from mnist.settings import Config

from funcnet import datasets
from funcnet.arguments import check_labels
from funcnet.distortions import upright
from funcnet.regularizers import smooth_labels


class Part(NamedTuple):
    """Training, validation or test data."""

    images: Any  # (N, pixels) uint8, as stored
    inputs: Any  # the images as the network sees them, or (M, N, pixels) if each network of an ensemble has its own
    labels: Any  # (N,) class ids


class Data(NamedTuple):
    """A data set, split into its parts."""

    name: str
    parts: dict[str, Part]  # train, maybe validation, test
    targets: Any  # of the training images: class ids, or smoothed (N, K)
    names: tuple[str, ...]  # of the classes

    @property
    def classes(self) -> int:
        """The number of classes in all parts together."""
        return len(self.names)

    def facts(self) -> dict[str, Any]:
        """The facts that tell data sets apart, for JSON."""
        shapes, checksum = {}, 0
        for name, (images, _, labels) in self.parts.items():
            shapes[name] = [*images.shape]
            for a in (images, labels):
                checksum = zlib.crc32(np.ascontiguousarray(a).data, checksum)
        return {"name": self.name, "images": shapes, "checksum": f"{checksum:08x}", "classes": [*self.names]}


DIGITS = tuple("0123456789")
UPRIGHT = jax.jit(upright, static_argnames=("width", "image_shape"))  # one program, not one for each operation


def load(config: Config) -> Data:
    """The data set, split into its parts.

    Raises:
      OSError: it cannot be found, downloaded or read.
      ValueError: it is damaged, not a data set, or does not fit the settings.
    """
    name, dataset, names = find(config)
    for part, (_, labels) in dataset._asdict().items():
        try:
            check_labels(labels, len(names))
        except ValueError as error:
            raise ValueError(f"{name}, {part}: {error}") from error
    x, y = dataset.train
    held_out = len(x) // 12 if config.validation is None else config.validation
    if held_out >= len(x):
        raise ValueError(f"--validation is {held_out}, expected fewer than the {len(x):,} training images")
    end = len(x) - config.fold * held_out
    if end < held_out:
        raise ValueError(
            f"--fold is {config.fold}, expected less than {len(x) // held_out}, the number of parts of "
            f"--validation {held_out:,} in the {len(x):,} training images"
        )
    fold = np.s_[end - held_out : end]
    pairs = {
        "train": [np.delete(a, fold, axis=0) for a in (x, y)],
        "validation": (x[fold], y[fold]),
        "test": dataset.test,
    }
    parts = {part: Part(x, as_seen(config, x), y) for part, (x, y) in pairs.items() if len(x)}
    labels = parts["train"].labels
    smoothed = config.label_smoothing > 0
    targets = smooth_labels(labels, len(names), config.label_smoothing) if smoothed else labels
    return Data(name, parts, np.asarray(targets), names)


def find(config: Config) -> tuple[str, datasets.Dataset, tuple[str, ...]]:
    """The name of the data set in the settings, the data set, and the names of its classes."""
    if config.dataset == "mnist" or (config.dataset == "auto" and config.data_dir is not None):
        return "MNIST", datasets.load_mnist(config.data_dir), DIGITS
    if config.dataset == "auto":
        return *datasets.load_mnist_or_digits(say=say), DIGITS
    if config.dataset == "fashion":
        return "Fashion-MNIST", datasets.load_fashion_mnist(config.data_dir), datasets.FASHION_MNIST_NAMES
    if config.data_dir is not None:
        raise ValueError(f"--data-dir is for MNIST and Fashion-MNIST, and --dataset is {config.dataset!r}")
    if config.dataset == "digits":
        return "digits", datasets.load_digits(), DIGITS
    try:
        dataset, names = datasets.load_arrays(config.dataset)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"--dataset is {config.dataset!r}, expected auto, mnist, fashion, digits, or a file or folder: {error}"
        ) from error
    told = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    say(f"{config.dataset}: {len(names)} classes, in this order: {told}")
    return Path(config.dataset).stem or "data", dataset, names


def as_seen(config: Config, images: np.ndarray) -> np.ndarray:
    """The images as the networks see them: made upright, if the settings say so."""
    side = math.isqrt(images.shape[-1])
    sets = [
        np.asarray(UPRIGHT(jnp.asarray(images), width=width or None, image_shape=(side, side)))
        for width in config.upright
    ]
    return np.stack(sets) if len(sets) > 1 else sets[0] if sets else images
