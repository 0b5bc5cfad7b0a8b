"""A data set from arrays: inputs and labels in the usual forms, checked and converted for training."""

from math import prod
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from funcnet.arguments import check_unmasked

# How pandas and spreadsheets write a missing label; not `none` in lower case, which may be a class.
_MISSING = ["", "nan", "NaN", "NAN", "-nan", "-NaN", "NA", "#NA", "N/A", "#N/A", "n/a", "<NA>", "NaT", "null", "NULL",
            "None"]  # fmt: skip

Arrays = tuple[np.ndarray, np.ndarray]  # (x, y): (N, inputs), int32 (N,)


class Dataset(NamedTuple):
    """Inputs and class ids, as stored: pixels are converted on the device, batch by batch."""

    train: Arrays  # uint8 pixels or float32 values (N, inputs), int32 (N,)
    test: Arrays


def from_arrays(
    x: ArrayLike, y: ArrayLike, x_test: ArrayLike | None = None, y_test: ArrayLike | None = None
) -> tuple[Dataset, tuple[str, ...]]:
    """A data set from arrays, with the names of its classes. Without a test part, a random fifth is used for the test.

    The split is always the same. Labels are numbers from 0; text, which is stripped and sorted; booleans; or whole
    floats; as `(N,)`, `(N, 1)` or one-hot rows. Both parts together determine the number of classes. Inputs from 0 to
    255 with a largest value above 127 are pixels: whole ones are kept as uint8, others are divided by 255. All other
    inputs become float32, unscaled.

    Args:
      x: inputs `(N, ...)`, flattened.
      y: labels `(N,)`.
      x_test: inputs for the test.
      y_test: their labels.

    Returns:
      The data set, and a name for each class, as many as the network needs outputs.

    Raises:
      ValueError: the data cannot be used for training: objects, numbers that are not finite, masked entries, different
        lengths; labels that are missing, fractions, negative, beyond 31 bits, or of more classes than there are samples
        (and than 1,000). The message says what to do.

    >>> dataset, names = from_arrays(np.eye(6), ["no", "yes", "no"] * 2)
    >>> dataset.train[0].shape, dataset.train[1].dtype, len(dataset.test[1]), names
    ((5, 6), dtype('int32'), 1, ('no', 'yes'))
    """
    if (x_test is None) != (y_test is None):
        raise ValueError("x_test or y_test is missing, expected both or neither")
    parts = {"": (x, y)} if x_test is None else {"": (x, y), "_test": (x_test, y_test)}
    for part, pair in parts.items():
        for name, a in zip("xy", pair, strict=True):
            check_unmasked(f"{name}{part}", a)
    inputs = _as_inputs({f"x{part}": np.asarray(pair[0]) for part, pair in parts.items()})
    labels, names = _as_class_ids({f"y{part}": np.asarray(pair[1]) for part, pair in parts.items()})
    for x, y, part in zip(inputs, labels, parts, strict=True):
        if len(x) != len(y):
            raise ValueError(f"x{part} has {len(x)} samples and y{part} {len(y)}, expected the same number")
    pairs = list(zip(inputs, labels, strict=True))
    return Dataset(*pairs) if x_test is not None else split(*pairs[0]), names


def split(x: np.ndarray, y: np.ndarray, held_out: int | None = None) -> Dataset:
    """Some random samples for the test, by default a fifth, the rest for training; always the same split."""
    held_out = max(1, len(x) // 5) if held_out is None else held_out
    if len(x) < 2:
        raise ValueError(f"x has {len(x)} sample, expected at least 2, one of them for the test")
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[held_out:], order[:held_out]
    return Dataset((x[train], y[train]), (x[test], y[test]))


def _as_inputs(parts: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The parts, flattened, all in one dtype: uint8 or float32."""
    for name, x in parts.items():
        if x.dtype.kind not in "buif":
            raise ValueError(f"{name} has dtype {x.dtype}, expected numbers")
        if x.ndim < 2 or x.size == 0:
            hint = f": {name}[:, None], if each sample is one number" if x.ndim == 1 else ""
            raise ValueError(f"{name} has shape {x.shape}, expected (N, ...), one row per sample{hint}")
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            first = tuple(np.argwhere(~np.isfinite(x))[0].tolist())
            raise ValueError(f"{name}[{', '.join(map(str, first))}] is {x[first]}, expected finite numbers")
    shapes = {name: x.shape[1:] for name, x in parts.items()}
    if len({prod(shape) for shape in shapes.values()}) > 1:
        told = " and ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"a sample has the shape {told}, expected the same in both")
    flat = [x.reshape(len(x), -1) for x in parts.values()]
    if all(x.dtype == np.uint8 for x in flat):
        return flat
    low, high = float(min(x.min() for x in flat)), [float(x.max()) for x in flat]
    pixels = low >= 0 and 127 < max(high) <= 255
    if (pixels and min(high) <= 1) or len({x.dtype == np.uint8 for x in flat}) > 1:
        told = " and ".join(f"{name} {x.dtype} up to {x.max():g}" for name, x in parts.items())
        raise ValueError(f"{told}: expected the same scale, and both uint8 or neither")
    if pixels and all((x == np.round(x)).all() for x in flat):
        return [x.astype(np.uint8) for x in flat]
    if max(abs(low), *map(abs, high)) > float(np.finfo(np.float32).max):
        raise ValueError(f"{' and '.join(parts)}: beyond what float32 can hold; scale it first")
    return [x.astype(np.float32) / np.float32(255 if pixels else 1) for x in flat]


def _as_class_ids(parts: dict[str, np.ndarray]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Class ids, int32 `(N,)` each, and the names of all classes."""
    flat = {name: _one_each(name, y) for name, y in parts.items()}
    text = {name: y.dtype.kind in "USOT" for name, y in flat.items()}
    if len({*text.values()}) > 1:
        raise ValueError(f"{' and '.join(parts)}: some labels are text and some are numbers")
    if all(text.values()):
        ends = np.cumsum([len(y) for y in flat.values()])[:-1]
        names, ids = np.unique(np.concatenate([_as_text(*item) for item in flat.items()]), return_inverse=True)
        return np.split(ids.astype(np.int32), ends), _checked(parts, tuple(map(str, names)))
    booleans = all(y.dtype == np.bool_ for y in flat.values())
    ids = [_as_ids(name, y) for name, y in flat.items()]
    samples, classes = sum(map(len, ids)), max(int(y.max()) for y in ids) + 1
    if classes > max(samples, 1000):
        raise ValueError(
            f"{' and '.join(parts)}: class ids up to {classes - 1} for {samples} samples: are they values, or "
            "identifiers? np.unique(y, return_inverse=True) converts labels to class ids from 0"
        )
    widths = [y.shape[1] for y in parts.values() if y.ndim == 2 and y.shape[1] > 1]
    names = ("False", "True") if booleans else tuple(map(str, range(max([classes, *widths]))))
    return [y.astype(np.int32) for y in ids], _checked(parts, names)


def _checked(parts, names):
    if len(names) < 2:
        raise ValueError(f"{' and '.join(parts)}: all labels are {names[0]!r}, expected at least two classes")
    return names


def _one_each(name, y) -> np.ndarray:
    """The labels as `(N,)`, from `(N,)`, `(N, 1)` or one-hot rows."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and y.size and y.dtype.kind in "buif":
        if not (((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all()):
            raise ValueError(
                f"{name} has shape {y.shape}, expected one label per sample, (N,), or one-hot rows, each with one 1"
            )
        return y.argmax(1)
    if y.ndim != 1 or not y.size:
        raise ValueError(f"{name} has shape {y.shape}, expected (N,), one label per sample")
    return y


def _as_text(name, y) -> np.ndarray:
    """The labels, stripped and checked that none is missing."""
    objects = y.dtype.kind in "OT"  # T: of variable length, with an object for a missing label
    if objects and (odd := [v for v in y.tolist() if not isinstance(v, str) and str(v) not in _MISSING]):
        raise ValueError(
            f"{name} holds Python objects such as {odd[0]!r:.40}, expected numbers or text: {name}.astype(int), "
            f"or {name}.astype(str)"
        )
    text = np.char.decode(y, "utf-8") if y.dtype.kind == "S" else np.array([*map(str, y.tolist())])
    text = np.char.strip(text)
    if (missing := np.isin(text, _MISSING)).any():
        first = int(np.argmax(missing))
        raise ValueError(
            f"{name}[{first}] is {text[first] or 'empty'}, expected a label for each sample: drop samples without "
            "one, or rename a class with this name"
        )
    return text


def _as_ids(name, y) -> np.ndarray:
    """Whole numbers from 0, of at most 31 bits: JAX would silently cut off the rest."""
    if y.dtype.kind not in "buif":
        raise ValueError(f"{name} has dtype {y.dtype}, expected numbers or text")
    for bad, why in (
        (~np.isfinite(y) if y.dtype.kind == "f" else np.zeros(len(y), bool), "a label"),
        (y != np.round(y) if y.dtype.kind == "f" else np.zeros(len(y), bool),
         "a whole number, since labels are class ids; for regression, pass the targets directly to training"),
        (y < 0, "a number from 0: np.unique(y, return_inverse=True) converts any labels to class ids"),
        (y >= 2**31, "one of at most 31 bits: JAX cuts off the rest, and reads 4294967296 as 0"),
    ):  # fmt: skip
        if bad.any():
            first = int(np.argmax(bad))
            raise ValueError(f"{name}[{first}] is {y[first]}, expected {why}")
    return y.astype(np.int64)
