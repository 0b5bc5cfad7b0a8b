"""The table of results: runs of `train_mnist.py`, their errors averaged over seeds, or over what was held out.

python scripts/results.py runs/distort-0 runs/distort-1 runs/distort-2
"""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import tyro
from mnist.recipes import RECIPES
from mnist.settings import FREE_TO_CHANGE, Config, read

from funcnet import Params, count_parameters, weights


def table(run_dirs: list[Path]) -> str:
    """A row for each setting, whatever its seeds and folds, in Markdown."""
    runs: dict[Config, list[Path]] = {}
    for run_dir in run_dirs:
        unchanged = {name: getattr(Config(), name) for name in FREE_TO_CHANGE}
        setting = replace(read(run_dir / "config.json"), seed=0, fold=0, **unchanged)
        runs.setdefault(setting, []).append(run_dir)
    lines = ["| recipe | network | parameters | epochs | time | test error, mean ± sd (runs) | averaged over views | "
             "in the literature |", "|" + " --- |" * 8]  # fmt: skip
    return "\n".join([*lines, *(row(config, folders) for config, folders in runs.items())])


def row(config: Config, run_dirs: list[Path]) -> str:
    """One setting: its network, what it takes, and its error over the runs."""
    finals = [final(run_dir) for run_dir in run_dirs]
    minutes = statistics.mean(sum(end["seconds"].values()) for end in finals) / 60
    params = network(run_dirs[0])
    part = "test" if config.test else "validation"
    times = f"{config.ensemble} x " if config.ensemble > 1 else ""
    widths = "-".join(map(str, (len(params[0][0]), *(len(b) for _, b in params))))
    cells = [config.recipe, times + widths, f"{times}{count_parameters(params):,}", config.epochs, f"{minutes:.1f} min",
             error_rate(finals, part), error_rate(finals, f"{part}, averaged") if config.views > 1 else "",
             RECIPES[config.recipe].literature]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def error_rate(finals: list[dict], part: str) -> str:
    """Percent, with its spread over the runs; of held-out images where the test set was not read."""
    errors = [100 * (1 - end["scores"][part]["accuracy"]) for end in finals]
    spread = f" ± {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
    held_out = "" if part.startswith("test") else ", held out"
    return f"{statistics.mean(errors):.2f}{spread}% ({len(errors)}{held_out})"


def final(run_dir: Path) -> dict:
    """The scores and the time of a run that went to its end."""
    end = json.loads((run_dir / "scores.json").read_text())
    if end["interrupted"]:
        raise ValueError(f"{run_dir} was interrupted")
    return end


def network(run_dir: Path) -> Params:
    """The weights of a run, or of the first of its ensemble."""
    return weights.load(min(run_dir.glob("weights*.safetensors")))[0]


def main(runs: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Print the table of results.

    Args:
      runs: run folders of `train_mnist.py`.
    """
    print(table(list(runs)))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (KeyError, OSError, ValueError) as error:
        sys.exit(f"results: {error}")
