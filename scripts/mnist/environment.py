"""What decides the bits of a run besides its settings: JAX's flags, and the machine."""

import os
from typing import Any

import jax
from jaxlib.version import __version__ as jaxlib_version

# Under another one of these a run draws other numbers, or computes in another precision.
DECISIVE = (
    "jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable", "jax_random_seed_offset",
    "jax_default_matmul_precision",
)  # fmt: skip
# Under another one of these it is the same run, to rounding.
ROUNDING = ("jax_disable_most_optimizations", "jax_disable_jit", "jax_optimization_level")


def environment() -> dict[str, Any]:
    """The facts, under their names, as JSON keeps them."""
    flags = {name: getattr(jax.config, name, None) for name in (*DECISIVE, *ROUNDING)}
    plain = {name: value if isinstance(value, bool | int | None) else str(value) for name, value in flags.items()}
    return plain | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "").strip(),
        "jax": jax.__version__,
        "jaxlib": jaxlib_version,
        "device": jax.devices()[0].device_kind,
    }


def differences(then: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What is otherwise now: the flags that decide, each with its remedy; and what only rounds otherwise."""
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
    """How to set a flag for a process that is yet to start."""
    if value is None:
        return f"unset {name.upper()}"
    return f"set {name.upper()}={int(value) if isinstance(value, bool) else value}"
