"""The facts besides the settings that determine the bits of a run: JAX's flags, and the machine."""

import os
from typing import Any

import jax
from jaxlib.version import __version__ as jaxlib_version

# With another value of these a run draws other random numbers, or computes in another precision.
DECISIVE = (
    "jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable", "jax_random_seed_offset",
    "jax_default_matmul_precision",
)  # fmt: skip
# With another value of these it is the same run up to rounding.
ROUNDING = ("jax_disable_most_optimizations", "jax_disable_jit", "jax_optimization_level")


def environment() -> dict[str, Any]:
    """The facts by name, for JSON."""
    flags = {name: getattr(jax.config, name, None) for name in (*DECISIVE, *ROUNDING)}
    plain = {name: value if isinstance(value, bool | int | None) else str(value) for name, value in flags.items()}
    return plain | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "").strip(),
        "jax": jax.__version__,
        "jaxlib": jaxlib_version,
        "device": jax.devices()[0].device_kind,
    }


def differences(then: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The facts that have changed: decisive flags, each with its remedy; and those that only change the rounding."""
    decisive, rounding = [], []
    for name, now in environment().items():
        if name not in then or then[name] == now:
            continue
        fact = f"{name} was {then[name]!r} and is {now!r}"
        if name in DECISIVE:
            decisive.append(f"{fact}: {_remedy(name, then[name])}")
        else:
            rounding.append(fact)
    return decisive, rounding


def _remedy(name: str, value: Any) -> str:
    """How to set a flag for a new process."""
    if value is None:
        return f"unset {name.upper()}"
    return f"set {name.upper()}={int(value) if isinstance(value, bool) else value}"
