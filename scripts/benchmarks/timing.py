"""How candidates are timed, and how the figures are shown.

Candidates run in one process, in turn, A B C, C B A, A B C, ...; the figures are medians over rounds with their
quartiles, and a ratio is the median of the ratios within a round, so that a machine that slows down slows all of them.
Before each turn: a pause, since a BLAS's threads spin on after their work, and untimed calls, unless they take seconds.
"""

import gc
import json
import os
import platform
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

PAUSE = 0.05  # seconds; OpenBLAS's threads spin for about half of that
CHUNK = 0.1  # seconds at a time, and as many untimed before: after a rest the second core takes some 20 ms to join in
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
BYTES = {"GB": 1e9, "MB": 1e6, "KB": 1e3, "B": 1.0}


@dataclass
class Row:
    """One candidate in one case."""

    case: str
    candidate: str
    seconds: float  # median over rounds
    quartiles: tuple[float, float] | None  # None where they were not kept
    ratio: float  # to the first candidate of the case, median of the ratios within a round
    more: dict[str, Any] = field(default_factory=dict)


def compiled(fn, *args, **jit) -> Callable[..., Any]:
    """The program for arguments like these."""
    return jax.jit(fn, **jit).lower(*args).compile()


def call(fn, *args) -> Callable[[], Any]:
    """A candidate, which has no arguments and returns when its work is done, from a function of JAX arrays."""
    return lambda: jax.block_until_ready(fn(*args))


def candidate(fn, *args, **jit) -> Callable[[], Any]:
    """The same, compiled beforehand for these arguments."""
    return call(compiled(fn, *args, **jit), *args)


def peak_memory(program) -> int:
    """Bytes for arguments, results and all between, by XLA's own analysis."""
    s = program.memory_analysis()
    return s.argument_size_in_bytes + s.output_size_in_bytes + s.temp_size_in_bytes - s.alias_size_in_bytes


def seconds_of(run: Callable[[], Any], calls: int = 1) -> float:
    """How long so many calls take."""
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - began


def interleaved(candidates: Mapping[str, Callable[[], Any]], seconds: float) -> dict[str, np.ndarray]:
    """Seconds per call of each candidate, `(rounds,)`, for about so many seconds each; all warmed up before."""
    gc.collect()
    once = {name: [seconds_of(run), seconds_of(run)][1] for name, run in candidates.items()}
    calls = {name: max(1, int(CHUNK / max(t, 1e-9))) for name, t in once.items()}
    warm = np.median(list(once.values())) < 20 * CHUNK  # all or none, so that all that train have trained as long
    times = {name: [] for name in candidates}
    order, spent = list(candidates), 0.0
    while spent < seconds * len(candidates) or len(times[order[0]]) < 5:
        for name in order:
            time.sleep(PAUSE)
            seconds_of(candidates[name], calls[name] if warm else 0)
            elapsed = seconds_of(candidates[name], calls[name])
            spent += elapsed
            times[name].append(elapsed / calls[name])
        order.reverse()
    return {name: np.array(values) for name, values in times.items()}


def rows_of(case: str, times: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> list[Row]:
    """Rows for the candidates of one case, from the seconds of each; the first is what ratios refer to."""
    rows, first = [], np.asarray(next(iter(times.values())))
    for name, t in times.items():
        low, median, high = np.quantile(t, (0.25, 0.5, 0.75)).tolist()
        rows.append(Row(case, name, median, (low, high), float(np.median(t / first)), (more or {}).get(name, {})))
    return rows


def compare(case: str, candidates, seconds: float, more: Mapping[str, Any] | None = None) -> list[Row]:
    """Time the candidates of one case in turn."""
    return rows_of(case, interleaved(candidates, seconds), more)


def table(lines: Iterable[Iterable[str]]) -> str:
    """Lines of cells in Markdown, the first of them the header."""
    header, *rest = map(list, lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rest)) + "\n"


def markdown(rows: list[Row]) -> str:
    """One table, candidates by cases or cases by candidates, whichever is longer than wide."""
    cases, candidates = (list(dict.fromkeys(getattr(row, of) for row in rows)) for of in ("case", "candidate"))
    cells = {(row.case, row.candidate): shown(row) for row in rows}
    lines = [["", *cases], *([name, *(cells.get((case, name), "") for case in cases)] for name in candidates)]
    return table(zip(*lines, strict=True) if len(cases) > len(candidates) else lines)


def shown(row: Row) -> str:
    """The median, half of the way between the quartiles in per cent of it, the ratio, and what else there is.

    >>> shown(Row("case", "candidate", 2.0, (1.9, 2.1), 0.5, {"memory in MB": 1.25}))
    '2 s ±5%, 0.50x, memory in MB 1.25'
    """
    spread = f" ±{(row.quartiles[1] - row.quartiles[0]) / 2 / row.seconds:.0%}" if row.quartiles else ""
    more = [f"{name} {v:.3g}" if isinstance(v, float) else f"{name} {v:,}" if isinstance(v, int) else f"{name} {v}"
            for name, v in row.more.items()]  # fmt: skip
    return ", ".join([f"{readable(row.seconds)}{spread}", f"{row.ratio:.2f}x", *more])


def readable(value: float, units: Mapping[str, float] = SECONDS) -> str:
    """Three figures and a unit.

    >>> readable(0.00123456), readable(80_250_000, BYTES)
    ('1.23 ms', '80.2 MB')
    """
    unit = next((unit for unit in units if value >= units[unit]), list(units)[-1])
    return f"{value / units[unit]:.3g} {unit}"


def report(
    suites: Mapping[str, tuple[Callable[[], Iterable[Row]], str | None]], out: Path | None, go_on: bool = False
) -> None:
    """Run suites, each with its description: each row is printed at once, the tables at the end of a suite.

    All of it goes into the JSON file `out` at each row. With `go_on`, a suite that fails does not end the others.
    """
    whole = {"date": f"{date.today()}", "command": shlex.join(["python", *sys.argv]), "machine": machine()}
    print(f"{whole['machine']}\n", flush=True)
    results = {}
    for name, (run, about) in suites.items():
        rows, began = [], time.perf_counter()
        try:
            for row in run():
                rows.append(row)
                print(f"{row.case}: {row.candidate} {shown(row)}", file=sys.stderr, flush=True)
                results[name] = [vars(row) for row in rows]
                if out is not None:
                    out.write_text(json.dumps(whole | {"suites": results}, indent=1) + "\n")
        except Exception:
            if not go_on:
                raise
            print(f"{name} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        if not rows:
            continue
        print(f"## {name}\n\n{' '.join((about or '').split())}\n\n{markdown(rows)}", flush=True)
        print(f"{name} took {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def machine() -> dict[str, str]:
    """What ran, on what."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"(?m)^model name\s*: (.*)$", info.read_text()) if info.exists() else []
    cpu = f"{len(models)} x {models[0]}" if models else platform.processor() or platform.machine()
    device = {"device": jax.devices()[0].device_kind, "cpu": cpu, "python": platform.python_version()}
    installed = {dist.metadata["Name"].lower(): dist.version for dist in metadata.distributions()}
    packages = ("jax", "numpy", "optax", "flax", "equinox", "torch", "opacus", "scikit-learn")
    found = {name: installed[name] for name in packages if name in installed}
    return device | found | {name: os.environ[name] for name in ("GLIBC_TUNABLES", "XLA_FLAGS") if name in os.environ}
