"""The number of parameters of a network, and a table of its layers."""

from math import prod

import jax

from funcnet.arguments import check_params
from funcnet.network import Params

__all__ = ["count_parameters", "summary"]


def count_parameters(params: Params) -> int:
    """The number of entries of all `W` and `b`.

    >>> import funcnet
    >>> count_parameters(funcnet.init(jax.random.key(0), (4, 8, 1)))
    49
    """
    check_params(params)
    return sum(prod(leaf.shape) for leaf in jax.tree.leaves(params))


def summary(params: Params) -> str:
    """The network as a table, one row per layer.

    >>> import funcnet
    >>> print(summary(funcnet.init(jax.random.key(0), (784, 128, 10))))
    layer           W        b  parameters
        1  (784, 128)   (128,)     100,480
        2   (128, 10)    (10,)       1,290
    total              float32     101,770
    """
    check_params(params)
    rows = [(str(l), str(W.shape), str(b.shape), f"{W.size + b.size:,}") for l, (W, b) in enumerate(params, 1)]
    rows = [
        ("layer", "W", "b", "parameters"),
        *rows,
        ("total", "", str(params[0][0].dtype), f"{count_parameters(params):,}"),
    ]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
