"""Check all shipped functions on this device: `python -m funcnet.testing`."""

import itertools
import sys
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp

from funcnet import activations, losses, mlp
from funcnet.initializers import standard_normal
from funcnet.mlp import backward, objective
from funcnet.network import Network
from funcnet.testing.report import error_in_eps
from funcnet.testing.trees import as_arrays, cast_to, enable_x64, eps_of

DTYPES = ("float32", "float64")
COLUMNS = {"gradient": 16, "scan of vmap": 16, "jvp": 64}  # and the limit in eps: jvp is a second derivative


def matrix(
    *, sizes: tuple[int, ...] = (6, 9, 8, 4), samples: int = 16, seed: int = 0
) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    """`backward` against `jax.grad`, in eps, for each shipped function, by itself and under transformations.

    Where rounding costs `jax.grad` more than an eps, what it costs takes the place of the eps.

    Yields:
      `(activation, loss, dtype, {column: worst error in eps})`, cell by cell.
    """
    point = _arrays(sizes, samples, seed)
    for f in activations.SHIPPED:
        networks = [Network(f, loss=loss) for loss in losses.SHIPPED]
        results, program = {}, jax.jit(partial(_both_ways, networks))  # one program for all losses
        for dtype in ("float64", "float32"):
            with enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
                args = cast_to(point, dtype)
                results[dtype] = [[[as_arrays(cell) for cell in way] for way in both] for both in program(args)]
        for (dtype, cells), (i, network) in itertools.product(results.items(), enumerate(networks)):
            errors = map(_error, *cells[i], results["float32"][i][1], results["float64"][i][1])
            yield f.name, network.loss.name, dtype, dict(zip(COLUMNS, errors, strict=True))


def _arrays(sizes, samples, seed):
    """Parameters, samples, class ids and weights in float32, and the direction of the jvp."""
    keys = jax.random.split(jax.random.key(seed), 4)
    params = mlp.init(keys[0], sizes, biases=standard_normal)
    x = jax.random.normal(keys[1], (samples, sizes[0]), jnp.float32)
    y = jax.random.randint(keys[2], (samples,), 0, sizes[-1], jnp.int32)
    w = jax.random.uniform(keys[3], (samples,), jnp.float32, minval=0.1, maxval=1.0)
    return params, x, y, w, jax.tree.map(jnp.cos, params)


def _both_ways(networks, args):
    """For each network the columns of `backward`, and those of `jax.grad`."""
    ways = backward, jax.grad(objective)
    return [[_columns(partial(gradient, network=network), *args) for gradient in ways] for network in networks]


def _columns(gradient, params, x, y, w, direction):
    by_params = partial(gradient, x=x, y=y, sample_weight=w)
    grads, tangents = jax.jvp(by_params, (params,), (direction,))
    blocks = jax.tree.map(lambda a: a.reshape(4, -1, *a.shape[1:]), (x, y))
    over_samples = jax.vmap(gradient, (None, 0, 0))
    return grads, jax.lax.scan(lambda carry, block: (carry, over_samples(params, *block)), 0, blocks)[1], tangents


def _error(got, want, rounded, exact) -> float:
    """The worst leaf, in eps, or in what rounding costs `jax.grad`, from float32 and float64, where that is more."""
    off = [error_in_eps(g, w, eps_of(w.dtype)) for g, w in zip(got, want, strict=True)]
    cost = [error_in_eps(r, e, eps_of(r.dtype)) for r, e in zip(rounded, exact, strict=True)]
    return max(error / max(1.0, own) for error, own in zip(off, cost, strict=True))


def main() -> int:
    """Print the whole matrix; return 1 if a cell is above its limit."""
    say = print
    say(f"backward against jax.grad: max|d| / (eps max|leaf|), the worst leaf, on {jax.devices()[0].device_kind}")
    header = [f"{name} {dtype}" for dtype in DTYPES for name in COLUMNS]
    say(f"{'activation':18}{'loss':24}{''.join(f'{column:>22}' for column in header)}")
    cells = {}
    for f, loss, dtype, row in matrix():
        cells.setdefault((f, loss), {}).update({f"{name} {dtype}": error for name, error in row.items()})
    for (f, loss), row in cells.items():
        say(f"{f:18}{loss:24}{''.join(f'{row[column]:22.2f}' for column in header)}")
    worst = {name: max(row[f"{name} {dtype}"] for row in cells.values() for dtype in DTYPES) for name in COLUMNS}
    say(", ".join(f"worst {name} {worst[name]:.2f} eps of {limit:g}" for name, limit in COLUMNS.items()))
    return int(not all(worst[name] <= limit for name, limit in COLUMNS.items()))


if __name__ == "__main__":
    sys.exit(main())
