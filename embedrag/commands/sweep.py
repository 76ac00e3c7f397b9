"""`embedrag sweep`: search for the best settings of a training."""

from __future__ import annotations

from embedrag.options.command import Command
from embedrag.options.field import Options, option
from embedrag.runtime.console import say

SHOWN = 10  # trials in the table


class SweepOptions(Options):
    """Options of `embedrag sweep`."""

    config: str = option(
        ...,
        "JSON file of a training, with eval_dataset or eval_split and without an output_dir",
        group="sweep",
        min_length=1,
    )
    space: str = option(
        ...,
        'JSON file: option -> list of values, or {"low", "high"}, optionally with "log": true or "step"',
        group="sweep",
        min_length=1,
    )
    output_dir: str = option(
        ..., "folder of all trials; a sweep that is in it is continued", group="sweep", min_length=1
    )
    trials: int = option(20, "number of trials in all, those of earlier starts included", group="sweep", ge=1)
    seed: int = option(42, "seed of the sampler", group="sweep", ge=0)


def run(options: SweepOptions) -> int:
    """Run the trials, and print the best ones."""
    from tabulate import tabulate

    from embedrag.training.sweep import shown, sweep

    result = sweep(options.config, options.space, options.output_dir, trials=options.trials, seed=options.seed)
    rows = [[number, f"{value:.4f}", shown(settings)] for number, value, settings in result.ranked[:SHOWN]]
    say(tabulate(rows, ["trial", result.metric, "settings"], "github", disable_numparse=True))
    say(f"best settings: {result.config}; their model: {result.model}")
    return 0


COMMAND = Command(SweepOptions, run, "search for the best settings (needs optuna)")
