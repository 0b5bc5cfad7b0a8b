"""How hard the compiler tries."""

from contextlib import contextmanager

import jax


@contextmanager
def not_optimized():
    """For programs that are over sooner than a compiler's best is ready: they compute the same, but for rounding."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
