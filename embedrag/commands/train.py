"""`embedrag train`."""

from __future__ import annotations

from embedrag.options.command import Command
from embedrag.training.config.options import TrainOptions


def run(options: TrainOptions) -> int:
    """Train as the options say."""
    from embedrag.training.run import train

    return train(options)


COMMAND = Command(TrainOptions, run, "fine-tune an embedding model", config_file=True)
