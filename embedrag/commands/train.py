"""`embedrag train` and `train.py`: fine-tune an embedding model."""

from __future__ import annotations

import json
from pathlib import Path

import embedrag
from embedrag.options.command import Command
from embedrag.options.field import Source
from embedrag.runtime.console import say
from embedrag.training.config.options import TrainOptions

DEFAULT_DATASETS = ("data/pairs.jsonl", "tools/data/pairs.jsonl")
DEMO_NEGATIVES, DEMO_SEED = 4, 42


def run(options: TrainOptions) -> int:
    """Train as the options say; without a data set, look for one, or write a demo set."""
    if not options.train_dataset:
        options = options.model_copy(update={"train_dataset": [Source(path=default_dataset(options.cache_dir))]})
    embedrag.train(options)
    return 0


def default_dataset(cache_dir: str | None) -> str:
    """The data set of a run that names none: one of two well-known paths, otherwise a demo set in the cache."""
    for name in DEFAULT_DATASETS:
        if Path(name).is_file():
            say(f"data: `train_dataset` is not given; {name} is used")
            return name
    from embedrag.datagen.docstrings import collect, to_rows
    from embedrag.runtime.files import atomic_file
    from embedrag.runtime.paths import cache_folder

    path = cache_folder(cache_dir) / "demo_pairs.jsonl"
    places = " or ".join(DEFAULT_DATASETS)
    say(f"data: `train_dataset` is not given, and there is no {places}; a demo set is written to {path}")
    with atomic_file(path) as file:
        for row in to_rows(collect(["stdlib"]), neg_nums=DEMO_NEGATIVES, seed=DEMO_SEED):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return str(path)


COMMAND = Command(TrainOptions, run, "fine-tune an embedding model", config_file=True)
