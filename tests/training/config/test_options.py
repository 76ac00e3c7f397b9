"""The list of training options: former names, resume rules, and what follows from other options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from embedrag.errors import UserError
from embedrag.options.field import extra
from embedrag.options.parsing import parse
from embedrag.training.config.options import TrainOptions

NEEDED = {"output_dir": "o", "batch_size": 2}
REQUIRED = ("--output_dir", "o", "--batch_size", "2")


def parse_words(*words: str) -> TrainOptions:
    return parse(TrainOptions, [*REQUIRED, *words], "train", "")


@pytest.mark.parametrize(
    ("words", "former", "today"),
    [
        (["--separate", "--further_directions", "passage_query"], None, None),
        (["--separate", "true", "--further_directions", "passage_query"], None, None),
        (["--partition_mode", "separate", "--directions", "query_passage", "passage_query"], None, None),
        (["--hardness", "0.5", "--hardness_of", "own"], {"hardness": 0.5, "hardness_of": "own"}, None),
        (["--separate", "false"], {"separate": False}, {"partition_mode": "joint"}),
        (["--further_directions", "query_query"], {"further_directions": ["query_query"]}, None),
    ],
)
def test_former_names_of_loss_options_mean_what_they_meant(words, former, today) -> None:
    spoken = parse_words(*words)
    if former is None:
        assert (spoken.partition_mode, spoken.directions) == ("separate", ["query_passage", "passage_query"])
    else:
        assert spoken == TrainOptions(**NEEDED, **former)
    if today:
        assert spoken == TrainOptions(**NEEDED, **today)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size=0`: must be 1 or more"),
        ({"bacth_size": 2}, "`bacth_size=2`: is unknown; did you mean batch_size?"),
        ({"output_dir": None}, "`output_dir`: must be a text"),
        ({"log_with": "first"}, "`log_with=first`: must be one of tensorboard, wandb, all"),
        ({"seed": True}, "`seed=true`: must not be true or false"),
        ({"train_dataset": [{"path": "a", "weight": -1}]}, "`train_dataset`: weight -1: must be greater than 0"),
    ],
)
def test_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        TrainOptions(**NEEDED | arguments)
    assert str(caught.value) == message


def test_paths_and_single_values_are_taken_as_people_write_them(tmp_path: Path) -> None:
    one = TrainOptions(output_dir=tmp_path, batch_size=2, train_dataset=tmp_path / "a.jsonl", matryoshka_dims=64)
    texts = TrainOptions(
        output_dir=str(tmp_path), batch_size=2, train_dataset=[str(tmp_path / "a.jsonl")], matryoshka_dims=[64]
    )
    assert one == texts
    assert TrainOptions(**NEEDED, train_dataset=(tmp_path / "a", "b:2")).train_dataset[1].weight == 2


def test_missing_and_wrong_arguments_are_reported_together() -> None:
    with pytest.raises(UserError) as caught:
        TrainOptions(batch_size=0, use_cpu=True, device="cuda")
    assert [problem.argument for problem in caught.value.problems] == ["output_dir", "batch_size", "use_cpu"]


def test_every_option_says_whether_a_resumed_run_may_change_it() -> None:
    rules = {name: extra(field)["resume"] for name, field in TrainOptions.model_fields.items()}
    assert set(rules.values()) == {"fixed", "reported", "free"}
    assert {"batch_size": "fixed", "lr": "reported", "save_steps": "free"}.items() <= rules.items()


@pytest.mark.parametrize(("kind", "rate"), [("full", 1e-5), ("lora", 1e-4), ("qlora", 1e-4)])
def test_learning_rate_follows_the_kind_of_fine_tuning_unless_it_is_named(kind, rate) -> None:
    assert parse_words("--finetune_type", kind).resolved().lr == rate
    assert parse_words("--finetune_type", kind, "--lr", "0.5").resolved().lr == 0.5


def test_max_seq_length_sets_both_sides() -> None:
    both = parse_words("--max_length", "32", "--query_max_len", "8").resolved()
    one = parse_words("--query_max_len", "8").resolved()
    assert (both.query_max_len, both.passage_max_len) == (32, 32)
    assert (one.query_max_len, one.passage_max_len) == (8, 1024)


def test_use_cpu_is_device_cpu() -> None:
    assert parse_words("--use_cpu").resolved().device == "cpu"
    assert parse_words().resolved().device == "auto"
