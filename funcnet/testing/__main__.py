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
from funcnet.testing.trees import as_arrays, enable_x64, eps_of

TRANSFORMS = ("jit", "vmap", "scan", "jvp")


def matrix(
    *, sizes: tuple[int, ...] = (6, 9, 8, 4), samples: int = 16, seed: int = 0
) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    """`backward` against `jax.grad`, in eps, for each shipped function under each transformation.

    Yields:
      `(activation, loss, dtype, {transform: worst error in eps})`, cell by cell.
    """
    for dtype, f, loss in itertools.product((jnp.float32, jnp.float64), activations.SHIPPED, losses.SHIPPED):
        with enable_x64(dtype == jnp.float64), jax.default_matmul_precision("highest"):
            keys = jax.random.split(jax.random.key(seed), 4)
            params = mlp.init(keys[0], sizes, biases=standard_normal, dtype=dtype)
            x = jax.random.normal(keys[1], (samples, sizes[0]), dtype)
            y = jax.random.randint(keys[2], (samples,), 0, sizes[-1])
            w = jax.random.uniform(keys[3], (samples,), dtype, 0.1, 1.0)
            network = Network(f, loss=loss)
            both = [
                jax.jit(partial(_transformed, partial(gradient, network=network)))(params, x, y, w)
                for gradient in (backward, jax.grad(objective))
            ]
            cells = {
                name: max(map(error_in_eps, as_arrays(got), as_arrays(want), itertools.repeat(eps_of(dtype))))
                for name, got, want in zip(TRANSFORMS, *both, strict=True)
            }
        yield f.name, loss.name, jnp.dtype(dtype).name, cells


def _transformed(gradient, params, x, y, w):
    """A gradient under each of the `TRANSFORMS`."""
    tangent = jax.tree.map(jnp.cos, params)
    return (
        gradient(params, x, y, sample_weight=w),
        jax.vmap(gradient, (None, 0, 0))(params, x, y),
        jax.lax.scan(lambda carry, xy: (carry, gradient(params, *xy)), 0, (x, y))[1],
        jax.jvp(lambda params: gradient(params, x, y, sample_weight=w), (params,), (tangent,))[1],
    )


def main() -> int:
    """Print the whole matrix; return 1 if a cell is above 16 eps."""
    say = print
    say(f"backward against jax.grad: max|d| / (eps max|leaf|), the worst leaf, on {jax.devices()[0].device_kind}")
    header = [f"{name} {dtype}" for dtype in ("float32", "float64") for name in TRANSFORMS]
    say(f"{'activation':18}{'loss':24}{''.join(f'{column:>14}' for column in header)}")
    cells = {}
    for f, loss, dtype, row in matrix():
        cells.setdefault((f, loss), {}).update({f"{name} {dtype}": error for name, error in row.items()})
    for (f, loss), row in cells.items():
        say(f"{f:18}{loss:24}{''.join(f'{row[column]:14.2f}' for column in header)}")
    worst = max(error for row in cells.values() for error in row.values())
    say(f"worst: {worst:.2f} eps")
    return int(not worst <= 16)


if __name__ == "__main__":
    sys.exit(main())
