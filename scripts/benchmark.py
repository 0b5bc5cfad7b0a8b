"""How fast, and against whom: each suite prints a table in Markdown, and all of it goes into one JSON file.

python scripts/benchmark.py per-sample                  # needs pip install -e ".[train,bench]"; the rest is left out
python scripts/benchmark.py per-sample --out figures.json

Candidates run in one process, in turn, A B C, C B A, A B C, ...; the figures are medians over rounds with their
quartiles, and a ratio is the median of the ratios within a round, so that a machine that slows down slows all of them.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# The peers are in the extra `bench`, which need not be there.

import gc
import json
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import funcnet
from funcnet import per_sample

NETS = ((784, 128, 10), (784, 1024, 1024, 10))
BATCH = 128


@dataclass
class Row:
    """One candidate in one case."""

    suite: str
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
    calls = {}
    for name, run in candidates.items():
        run()
        began = time.perf_counter()
        run()
        calls[name] = max(1, int(0.01 / max(time.perf_counter() - began, 1e-9)))  # at least 10 ms at a time
    times = {name: [] for name in candidates}
    order, spent = list(candidates), 0.0
    while spent < seconds * len(candidates) or len(times[order[0]]) < 5:
        for name in order:
            began = time.perf_counter()
            for _ in range(calls[name]):
                candidates[name]()
            elapsed = time.perf_counter() - began
            spent += elapsed
            times[name].append(elapsed / calls[name])
        order.reverse()
    return {name: np.array(values) for name, values in times.items()}


def compare(suite, case, candidates, seconds, more: Mapping[str, dict[str, Any]] | None = None) -> list[Row]:
    """Rows for the candidates of one case; the first is what ratios refer to."""
    gc.collect()
    times = interleaved(candidates, seconds)
    first = times[next(iter(candidates))]
    return [
        Row(suite, case, name, float(np.median(t)), (float(np.quantile(t, 0.25)), float(np.quantile(t, 0.75))),
            float(np.median(t / first)), (more or {}).get(name, {}))
        for name, t in times.items()
    ]  # fmt: skip


def call(fn, *args) -> Callable[[], Any]:
    """A candidate from a function of JAX arrays."""
    return lambda: jax.block_until_ready(fn(*args))


def peak_memory(program) -> int:
    """Bytes for arguments, results and all between, by XLA's own analysis."""
    sizes = program.memory_analysis()
    return (
        sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes
    )


def batch_of(sizes, seed=0) -> tuple[Any, jax.Array, jax.Array]:
    """A network and a batch of dense data: `(params, x, y)`."""
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.uniform(keys[1], (BATCH, sizes[0]))
    return funcnet.init(keys[0], sizes), x, jax.random.randint(keys[2], (BATCH,), 0, sizes[-1])


# Suites: each yields rows.


def per_sample_suite(seconds: float):
    """Per-sample norms, clipping and gradients against one plain gradient, and against those who do it otherwise."""
    for sizes in NETS:
        params, x, y = args = batch_of(sizes)
        max_norm = float(jnp.median(per_sample.per_sample_norms(*args)))
        rows_by_jax = jax.vmap(jax.grad(funcnet.objective), (None, 0, 0))

        def norms_by_jax(params, x, y, rows=rows_by_jax):
            squares = [jnp.sum(g**2, axis=range(1, g.ndim)) for g in jax.tree.leaves(rows(params, x, y))]
            return jnp.sqrt(sum(squares))

        def clipped_by_jax(params, x, y, rows=rows_by_jax, norms=norms_by_jax, max_norm=max_norm):
            factor = jnp.minimum(1, max_norm / norms(params, x, y))
            return jax.tree.map(lambda g: jnp.tensordot(factor, g, 1) / len(x), rows(params, x, y))

        programs = {
            "backward": funcnet.backward,
            "per_sample_norms": per_sample.per_sample_norms,
            "clipped_backward": partial(per_sample.clipped_backward, max_norm=max_norm),
            "per_sample_backward": per_sample.per_sample_backward,
            "norms: jit, vmap(jax.grad)": norms_by_jax,
            "clipped: jit, vmap(jax.grad)": clipped_by_jax,
            "rows: jit, vmap(jax.grad)": rows_by_jax,
        }
        compiled = {name: jax.jit(program).lower(*args).compile() for name, program in programs.items()}
        candidates = {name: call(program, *args) for name, program in compiled.items()}
        more = {name: {"memory in MB": peak_memory(program) / 1e6} for name, program in compiled.items()}
        candidates |= torch_per_sample(params, x, y, max_norm)
        check_agreement(candidates)
        yield from compare("per-sample", "-".join(map(str, sizes)), candidates, seconds, more)


def torch_per_sample(params, x, y, max_norm) -> dict[str, Callable[[], Any]]:
    """The same from PyTorch: functorch's `vmap(grad)`, and Opacus's hooks and ghost norms."""
    try:
        import torch
        from torch.func import functional_call, grad, vmap
        from torch.nn.functional import cross_entropy
    except ImportError:
        return {}
    model = torch_network(params)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    images, labels = torch.from_numpy(np.array(x)), torch.from_numpy(np.array(y, np.int64))

    def loss_of(weights, image, label):
        return cross_entropy(functional_call(model, weights, (image[None],)), label[None])

    rows = vmap(grad(loss_of), (None, 0, 0))

    def norms_of(gradients):
        return torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()

    def norms():
        return norms_of(rows(weights, images, labels))

    def clipped():
        gradients = rows(weights, images, labels)
        factor = (max_norm / norms_of(gradients)).clamp(max=1)
        return {name: torch.tensordot(factor, g, 1) / len(images) for name, g in gradients.items()}

    candidates = {
        "norms: torch.func vmap(grad)": norms,
        "clipped: torch.func vmap(grad)": clipped,
        "rows: torch.func vmap(grad)": lambda: rows(weights, images, labels),
    }
    try:
        from opacus import GradSampleModule
        from opacus.grad_sample import GradSampleModuleFastGradientClipping as Ghost
    except ImportError:
        return candidates
    hooked = GradSampleModule(torch_network(params))
    warnings.filterwarnings("ignore", message="Full backward hook is firing")  # inputs need no gradient here
    ghost = Ghost(torch_network(params), max_grad_norm=max_norm, use_ghost_clipping=True)

    def opacus_rows():
        hooked.zero_grad()
        cross_entropy(hooked(images), labels).backward()
        return [p.grad_sample for p in hooked.parameters()]

    def ghost_norms():
        ghost.zero_grad()
        cross_entropy(ghost(images), labels).backward()
        return ghost.get_norm_sample()

    def ghost_clipped():
        ghost.zero_grad()
        ghost.enable_hooks()
        losses = cross_entropy(ghost(images), labels, reduction="none")
        losses.mean().backward(retain_graph=True)
        ghost.zero_grad()
        ghost.disable_hooks()
        (ghost.get_clipping_coef() * losses).mean().backward()
        ghost.enable_hooks()
        return [p.grad for p in ghost.parameters()]

    return candidates | {
        "norms: Opacus, ghost": ghost_norms,
        "clipped: Opacus, ghost": ghost_clipped,
        "rows: Opacus, hooks": opacus_rows,
    }


def torch_network(params) -> Any:
    """The same network as a `torch.nn.Sequential`."""
    import torch

    layers = []
    for W, b in params:
        layer = torch.nn.Linear(*W.shape)
        layer.weight.data = torch.from_numpy(np.array(W.T, order="C"))
        layer.bias.data = torch.from_numpy(np.array(b))
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def check_agreement(candidates) -> None:
    """All that claim to compute the same do, entry by entry, to 1e-4 of the largest."""
    ours = {"norms": "per_sample_norms", "clipped": "clipped_backward", "rows": "per_sample_backward"}

    def arrays(result):
        leaves = result.values() if isinstance(result, dict) else jax.tree.leaves(result)
        return [np.asarray(leaf.detach() if hasattr(leaf, "detach") else leaf) for leaf in leaves]

    for name, run in candidates.items():
        kind = name.split(":")[0]
        if kind in ours:
            for got, want in zip(arrays(run()), arrays(candidates[ours[kind]]()), strict=True):
                if want.ndim == {"norms": 0, "clipped": 2, "rows": 3}[kind] and ("torch" in name or "Opacus" in name):
                    got = got.swapaxes(-1, -2)  # their `W` is `(n_out, n_in)`
                np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max(), err_msg=name)


SUITES = {"per-sample": per_sample_suite}


# Tables.


def markdown(rows: list[Row]) -> str:
    """A table per case."""
    lines = []
    for case in dict.fromkeys(row.case for row in rows):
        mine = [row for row in rows if row.case == case]
        extra = list(dict.fromkeys(name for row in mine for name in row.more))
        lines += [f"**{case}**", "", f"| | time | quartiles | ratio |{''.join(f' {name} |' for name in extra)}"]
        lines.append("| --- | --- | --- | --- |" + " --- |" * len(extra))
        for row in mine:
            cells = [
                row.candidate,
                readable(row.seconds),
                " to ".join(map(readable, row.quartiles)),
                f"{row.ratio:.2f}",
            ]
            cells += [f"{row.more[name]:.3g}" if name in row.more else "" for name in extra]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


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
    return {"device": jax.devices()[0].device_kind, "cpu": cpu, "python": platform.python_version(),
            "jax": jax.__version__}  # fmt: skip


def main(suites: tuple[Literal["per-sample"], ...] = ("per-sample",), /, seconds: float = 3.0, out: Path | None = None):
    """Run suites and print their tables.

    Args:
      suites: which of them.
      seconds: for each candidate.
      out: a JSON file for the figures.
    """
    print(f"{machine()}\n")
    rows = []
    for name in suites:
        new = list(SUITES[name](seconds))
        print(f"## {name}\n\n{markdown(new)}", flush=True)
        rows += new
    if out is not None:
        out.write_text(json.dumps({"machine": machine(), "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
