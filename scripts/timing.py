"""How candidates are timed, and how the figures are shown.

Candidates run in one process, in turn, A B C, C B A, A B C, ...; the figures are medians over rounds with their
quartiles, and a ratio is the median of the ratios within a round, so that a machine that slows down slows all of them.
Before each turn there is a pause, since the threads of a BLAS go on spinning after their work, on somebody else's time,
and, unless calls take seconds, untimed ones.
"""

import gc
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

PAUSE = 0.05  # seconds; OpenBLAS's threads spin for about half of that
CHUNK = 0.1  # seconds at a time, and as many untimed before: after a rest the second core takes some 20 ms to join in


@dataclass
class Row:
    """One candidate in one case."""

    case: str
    candidate: str
    seconds: float  # median over rounds
    quartiles: tuple[float, float]
    ratio: float  # to the first candidate of the case, median of the ratios within a round
    more: dict[str, Any] = field(default_factory=dict)


def interleaved(candidates: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, np.ndarray]:
    """Seconds per call of each candidate, `(rounds,)`, for about so many seconds each; all warmed up before.

    A candidate is a function without arguments that returns when its work is done.
    """
    once = {}
    for name, run in candidates.items():
        run()
        began = time.perf_counter()
        run()
        once[name] = time.perf_counter() - began
    calls = {name: max(1, int(CHUNK / max(t, 1e-9))) for name, t in once.items()}
    warm = np.median(list(once.values())) < 20 * CHUNK  # all or none, so that all that train have trained as long
    times = {name: [] for name in candidates}
    order, spent = list(candidates), 0.0
    while spent < seconds * len(candidates) or len(times[order[0]]) < 5:
        for name in order:
            time.sleep(PAUSE)
            for _ in range(calls[name] if warm else 0):
                candidates[name]()
            began = time.perf_counter()
            for _ in range(calls[name]):
                candidates[name]()
            elapsed = time.perf_counter() - began
            spent += elapsed
            times[name].append(elapsed / calls[name])
        order.reverse()
    return {name: np.array(values) for name, values in times.items()}


def rows_of(case: str, times: Mapping[str, np.ndarray], more: Mapping[str, dict[str, Any]] | None = None) -> list[Row]:
    """Rows for the candidates of one case; the first is what ratios refer to."""
    first = times[next(iter(times))]
    return [
        Row(case, name, float(np.median(t)), (float(np.quantile(t, 0.25)), float(np.quantile(t, 0.75))),
            float(np.median(t / first)), (more or {}).get(name, {}))
        for name, t in times.items()
    ]  # fmt: skip


def compare(case, candidates, seconds, more: Mapping[str, dict[str, Any]] | None = None) -> list[Row]:
    """Time the candidates of one case in turn."""
    gc.collect()
    return rows_of(case, interleaved(candidates, seconds), more)


def call(fn, *args) -> Callable[[], Any]:
    """A candidate from a function of JAX arrays."""
    return lambda: jax.block_until_ready(fn(*args))


def compiled(fn, *args) -> Callable[..., Any]:
    """The program for arguments like these."""
    return jax.jit(fn).lower(*args).compile()


def peak_memory(program) -> int:
    """Bytes for arguments, results and all between, by XLA's own analysis."""
    sizes = program.memory_analysis()
    return (
        sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes
    )


def markdown(rows: list[Row]) -> str:
    """One table, candidates by cases or cases by candidates, whichever is longer than wide."""
    cases = list(dict.fromkeys(row.case for row in rows))
    candidates = list(dict.fromkeys(row.candidate for row in rows))
    cells = {(row.case, row.candidate): shown(row) for row in rows}
    if len(cases) > len(candidates):
        header, names = candidates, cases
        lines = [[cells.get((case, candidate), "") for candidate in candidates] for case in cases]
    else:
        header, names = cases, candidates
        lines = [[cells.get((case, candidate), "") for case in cases] for candidate in candidates]
    table = [
        ["", *header],
        ["---"] * (len(header) + 1),
        *([name, *line] for name, line in zip(names, lines, strict=True)),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in table) + "\n"


def shown(row: Row) -> str:
    """The median, half of the way between the quartiles in per cent of it, the ratio, and what else there is.

    >>> shown(Row("case", "candidate", 2.0, (1.9, 2.1), 0.5, {"memory in MB": 1.25}))
    '2 s ±5%, 0.50x, memory in MB 1.25'
    """
    spread = (row.quartiles[1] - row.quartiles[0]) / 2 / row.seconds
    more = [f"{name} {readable(value) if name == 'per sample' else figure(value)}" for name, value in row.more.items()]
    return ", ".join([f"{readable(row.seconds)} ±{spread:.0%}", f"{row.ratio:.2f}x", *more])


def figure(value: Any) -> str:
    """Three figures of a number, all of a whole one."""
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def readable(seconds: float) -> str:
    """Three figures and a unit.

    >>> readable(0.00123456)
    '1.23 ms'
    """
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def machine() -> dict[str, str]:
    """What ran, on what."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        models = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = f"{len(models)} x {models[0]}" if models else cpu
    packages = ("jax", "numpy", "optax", "flax", "equinox", "torch", "opacus", "scikit-learn")
    installed = {dist.metadata["Name"].lower(): dist.version for dist in metadata.distributions()}
    versions = {name: installed[name] for name in packages if name in installed}
    tunables = {name: os.environ[name] for name in ("GLIBC_TUNABLES", "XLA_FLAGS") if name in os.environ}
    return (
        {"device": jax.devices()[0].device_kind, "cpu": cpu, "python": platform.python_version()} | versions | tunables
    )
