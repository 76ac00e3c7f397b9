"""`embedrag sweep`."""

from __future__ import annotations

from embedrag.options.command import Command
from embedrag.options.field import Options, option


class SweepOptions(Options):
    """Options of `embedrag sweep`."""

    config: str = option(
        ..., "JSON file of a training, with eval_dataset or eval_split; no output_dir", group="sweep", min_length=1
    )
    space: str = option(
        ...,
        'JSON file: option -> list of values, or {"low", "high"}, perhaps with "log": true or "step"',
        group="sweep",
        min_length=1,
    )
    output_dir: str = option(..., "folder of all trials; a sweep that it holds goes on", group="sweep", min_length=1)
    trials: int = option(20, "trials in all, those of earlier starts included", group="sweep", ge=1)
    seed: int = option(42, "seed of the sampler", group="sweep", ge=0)


def run(options: SweepOptions) -> int:
    """Do what the options say."""
    from embedrag.training.sweep import run

    return run(options)


COMMAND = Command(SweepOptions, run, "search for the best settings (needs optuna)")
