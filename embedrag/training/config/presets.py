"""Settings of published recipes, by name (the option `recipe`)."""

from __future__ import annotations

from typing import Any

# Loss, negatives and schedule as in the papers (docs/losses.md). Learning rates are not included: they follow
# `finetune_type`, because the papers' learning rates are for full fine-tunes with batches of hundreds of rows.
RECIPES: dict[str, dict[str, Any]] = {
    "mnrl": {"temperature": 0.05, "neg_nums": 1, "warmup_proportion": 0.1},
    "bge": {"temperature": 0.02, "neg_nums": 7, "warmup_proportion": 0.1},
    "e5": {
        "temperature": 0.01,
        "neg_nums": 7,
        "query_prompt": "query: ",
        "passage_prompt": "passage: ",
        "distillation": "kl",
        "distillation_weight": 0.83,
    },
    "gist": {"temperature": 0.01, "false_negative_margin": 0.0, "false_negative_guide": "base"},
    "gte": {
        "temperature": 0.01,
        "neg_nums": 1,
        "directions": ["query_passage", "passage_query", "query_query", "passage_passage"],
    },
    "qwen3": {
        "temperature": 0.02,
        "neg_nums": 7,
        "false_negative_margin": 0.1,
        "directions": ["query_passage", "query_query", "passage_passage"],
    },
}
