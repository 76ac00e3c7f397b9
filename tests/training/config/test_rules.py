"""Settings that contradict each other are refused: the error names the argument and the remedy."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from embedrag import cli
from embedrag.errors import UserError
from embedrag.training.config import rules
from embedrag.training.config.options import TrainOptions

NEEDED = {"output_dir": "o", "batch_size": 2}
GUIDED = {"false_negative_guide": "base", "false_negative_margin": 0.0, "finetune_type": "lora"}
STREAM = {"stream": True, "steps_per_epoch": 3, "train_dataset": "a.jsonl"}
SHARDED = {"shard_weights": True, "finetune_type": "full"}
CASES: list[tuple[dict[str, Any], str]] = [
    ({"use_cpu": True, "device": "cuda"}, "`use_cpu`: contradicts `device=cuda`"),
    ({"dtype": "float16", "device": "cpu"}, "`dtype=float16`: is not trained on a CPU"),
    ({"dtype": "float16", "use_cpu": True}, "`dtype=float16`: is not trained on a CPU"),
    ({"eval_dataset": "d", "eval_split": 0.1}, "`eval_split=0.1`: contradicts `eval_dataset`"),
    ({"eval_steps": 5}, "`eval_steps=5`: needs `eval_dataset` or `eval_split`"),
    ({"early_stopping_patience": 2}, "`early_stopping_patience=2`: needs `eval_dataset` or `eval_split`"),
    ({"candidates": "hard", "neg_nums": 0}, "`candidates=hard`: with `neg_nums=0` there are no negatives"),
    ({"directions": ["query_query"]}, "`directions=query_query`: must contain query_passage"),
    (
        {"candidates": "hard", "directions": ["query_passage", "query_query"]},
        "works only with `directions=query_passage`",
    ),
    ({"partition_mode": "separate"}, "needs `directions=query_passage passage_query`"),
    ({"partition_mode": "separate", "directions": ["query_passage", "passage_query", "query_query"]}, "and no others"),
    (GUIDED | {"false_negative_margin": None}, "`false_negative_guide=base`: needs `false_negative_margin`"),
    (GUIDED | {"finetune_type": "full"}, "`false_negative_guide=base`: needs adapters"),
    ({"distillation": "kl", "neg_nums": 0}, "`distillation=kl`: compares a row's positive with its negatives"),
    ({"matryoshka_dims": [64, 32], "matryoshka_weights": [1]}, "`matryoshka_weights=1.0`: needs one weight for each"),
    ({"matryoshka_dims": [64, 64]}, "`matryoshka_dims=64 64`: names a dimension twice"),
    ({"finetune_type": "full", "use_rslora": True}, "`use_rslora`: is for adapters"),
    ({"finetune_type": "full", "lora_plus_ratio": 16}, "`lora_plus_ratio=16.0`: is for adapters"),
    ({"lora_init": "pissa"}, "`lora_init=pissa`: changes the base, which qlora has quantised"),
    ({"lora_init": "loftq", "finetune_type": "lora"}, "`lora_init=loftq`: corrects the error of 4-bit quantisation"),
    ({"lora_init": "loftq", "quantization_bits": 8}, "`lora_init=loftq`: corrects the error of 4-bit quantisation"),
    ({"lora_init": "pissa", "finetune_type": "lora", "use_dora": True}, "does not go together with `use_dora`"),
    (GUIDED | {"lora_init": "pissa"}, "and `false_negative_guide=base` needs it unchanged"),
    (STREAM | {"steps_per_epoch": None}, "`stream`: has no end, so the length of an epoch is not known"),
    (STREAM | {"eval_split": 0.1}, "`eval_split=0.1`: can't hold out rows of a stream"),
    (STREAM | {"train_dataset": None}, "`stream`: needs `train_dataset`"),
    (STREAM | {"embedding_teacher": "m"}, "`embedding_teacher=m`: embeds all texts before the training"),
    (SHARDED | {"finetune_type": "lora"}, "`shard_weights`: needs `finetune_type=full`"),
    (SHARDED | {"optimizer": "adamw8bit"}, "`optimizer=adamw8bit`: has a state that `shard_weights` can't divide"),
    (SHARDED | {"gather_negatives": False}, "`gather_negatives=false`: is not possible with `shard_weights`"),
    (SHARDED | {"dtype": "float16"}, "`dtype=float16`: is not possible with `shard_weights`"),
]


@pytest.mark.parametrize(("settings", "message"), CASES, ids=[message for _, message in CASES])
def test_contradiction_is_refused_with_its_argument(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        TrainOptions(**NEEDED, **settings)
    assert message in str(caught.value)
    assert len(caught.value.problems) == 1


def test_every_rule_has_a_case() -> None:
    written = inspect.getsource(rules).count("wrong(") - 1  # the definition
    assert len({message for _, message in CASES}) >= written


@pytest.mark.parametrize("settings", [{}, GUIDED, STREAM, SHARDED])
def test_settings_that_agree_are_accepted(settings: dict[str, Any]) -> None:
    accepted = TrainOptions(**NEEDED, **settings)
    assert list(rules.contradictions(accepted)) == []


def test_all_contradictions_are_reported_together_and_as_flags_on_the_command_line() -> None:
    with pytest.raises(UserError) as caught:
        TrainOptions(**NEEDED, use_cpu=True, device="cuda", candidates="hard", neg_nums=0)
    assert caught.value.text(cli.spelling(TrainOptions)).splitlines() == [
        "--use_cpu: contradicts --device cuda; leave one of them out",
        "--candidates hard: with --neg_nums 0 there are no negatives; set --neg_nums 1 or more",
    ]
