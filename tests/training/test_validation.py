"""Scores during a training: what is held out, what is kept, when it ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedrag.cli import main
from embedrag.models.artifacts import BEST_STEP
from embedrag.training.state.checkpoint import checkpoints
from embedrag.training.trainer import Trainer
from tests.processes import run_processes
from tests.training.state.test_resume import cut

ROWS = [
    {
        "query": f"what is item {i} about",
        "pos": [f"item {i} is a thing of kind {i % 7}"],
        "neg": [f"item {i + 1} of {i}"],
    }
    for i in range(40)
]


@pytest.fixture
def data(write_jsonl: Callable[..., Path]) -> Path:
    return write_jsonl(ROWS)


def words(model: str, data: Path, output: Path, *more: str) -> list[str]:
    fixed = ["--model_name_or_path", model, "--train_dataset", str(data), "--output_dir", str(output), "--use_cpu"]
    return ["train", *fixed, "--finetune_type", "lora", "--lr", "3e-3", "--batch_size", "8", *more]


def log(output: Path) -> dict[str, Any]:
    return json.loads((output / "detailed_training_logs.json").read_text())


def test_training_on_the_evaluation_set_is_reported(
    tiny_bert: str, data: Path, write_jsonl: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    evaluation = [
        {"query": rows[0]["query"].upper(), "pos": rows[0]["pos"]},
        {"query": "another", "pos": rows[1]["pos"], "neg": rows[2]["pos"]},
    ]
    for number, (name, part) in enumerate({"shared": evaluation, "other": [{"query": "new", "pos": ["new"]}]}.items()):
        more = ["--eval_dataset", str(write_jsonl(part, f"{name}.jsonl")), "--dry_run"]
        assert main(words(tiny_bert, data, tmp_path / name, *more)) == 0
        said = capsys.readouterr().out
        assert ("1 training rows have a query of the evaluation set, 2 have a relevant passage of it" in said) == (
            number == 0
        )
        assert ("training rows" in said) == (number == 0)


def test_base_is_scored_first_and_final_is_the_best_state(
    tiny_bert: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(words(tiny_bert, data, output, "--eval_split", "0.2", "--eval_steps", "2", "--epochs", "2")) == 0
    rows = log(output)["eval_logs"]
    assert [row["global_step"] for row in rows] == [0, 2, 4, 6, 8] and rows[0]["epoch"] == 0
    best = max(rows[1:], key=lambda row: row["ndcg@10"])
    assert best["ndcg@10"] > rows[0]["ndcg@10"]
    for file in (output / f"{BEST_STEP}{best['global_step']}").glob("*.*"):
        assert (output / "final" / file.name).read_bytes() == file.read_bytes()
    result = json.loads((output / "evaluation.json").read_text())
    assert result["verdict"] == "better" and result["ndcg@10"] == best["ndcg@10"]
    assert result["baseline_metrics"]["ndcg@10"] == rows[0]["ndcg@10"]
    assert {"step": best["global_step"], "loss": None, "ndcg@10": best["ndcg@10"]} in result["curve"]
    assert "<html" in (output / "evaluation.html").read_text(encoding="utf-8")
    said = capsys.readouterr().out
    assert "8 rows are held out, 32 are used for training" in said and "verdict: better: ndcg@10" in said


def test_run_ends_early_without_patience_is_then_complete_and_goes_on_with_more(
    tiny_bert: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--eval_dataset", str(data), "--eval_steps", "1", "--epochs", "2"]
    more += ["--metric_for_best", "recall@100"]  # all 80 passages, so it is 1 from the start
    output = tmp_path / "out"
    early = words(tiny_bert, data, output, *more, "--early_stopping_patience")
    assert main([*early, "2"]) == 0
    assert [row["global_step"] for row in log(output)["eval_logs"]] == [0, 1, 2, 3]
    assert log(output)["training_summary"]["stopped_early"] is True
    assert [row["num_steps"] for row in log(output)["epoch_logs"]] == [3]
    assert json.loads((output / "evaluation.json").read_text())["verdict"] == "no clear difference"
    assert "2 evaluations brought no improvement" in capsys.readouterr().out
    assert main([*early, "2", "--resume", "auto"]) == 0
    assert "is complete" in capsys.readouterr().out
    # The ninth and tenth step have the last two evaluations, so patience ends with the run and nothing was cut short.
    assert main([*early, "9", "--resume", "auto"]) == 0
    assert [row["global_step"] for row in log(output)["eval_logs"]] == list(range(11))
    assert [row["num_steps"] for row in log(output)["epoch_logs"]] == [5, 5]
    assert "stopped_early" not in log(output)["training_summary"]
    assert "ended early" not in capsys.readouterr().out


def test_run_that_was_killed_after_its_early_end_is_not_trained_further(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--eval_dataset", str(data), "--eval_steps", "1", "--epochs", "2", "--early_stopping_patience", "2"]
    early = words(tiny_bert, data, tmp_path / "out", *more, "--metric_for_best", "recall@100")

    def killed(_: Trainer) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(Trainer, "_finish", killed)
        main(early)
    assert not (tmp_path / "out" / "final").exists()
    assert main([*early, "--resume", "auto"]) == 0
    found = log(tmp_path / "out")
    assert [row["global_step"] for row in found["eval_logs"]] == [0, 1, 2, 3]
    assert [row["global_step"] for row in found["step_logs"]] == [1, 2, 3]
    assert [row["num_steps"] for row in found["epoch_logs"]] == [3]
    assert found["training_summary"]["stopped_early"] is True and (tmp_path / "out" / "final").is_dir()


def test_best_state_is_copied_into_another_folder(
    tiny_bert: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--eval_dataset", str(data), "--eval_steps", "1", "--epochs", "1", "--save_steps", "1"]
    more += ["--metric_for_best", "recall@100", "--save_total_limit", "99", "--merge"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(words(tiny_bert, data, first, *more)) == 0
    checkpoint = str(first / "checkpoint-step-3")
    assert main(words(tiny_bert, data, second, *more, "--resume", checkpoint)) == 0
    file = "adapter_model.safetensors"
    assert (second / "final" / file).read_bytes() == (first / f"{BEST_STEP}1" / file).read_bytes()
    assert main(words(tiny_bert, data, second, *more, "--epochs", "2", "--resume", "auto")) == 0  # merges once more
    shutil.rmtree(first / f"{BEST_STEP}1")
    assert main(words(tiny_bert, data, tmp_path / "third", *more, "--resume", checkpoint)) == 2
    assert "the best model so far, is missing" in capsys.readouterr().err


def test_rows_left_after_the_split_must_have_negatives(
    tiny_bert: str, write_jsonl: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = write_jsonl([{"query": f"q{i}", "pos": [f"p{i}"]} for i in range(2)])
    assert main(words(tiny_bert, two, tmp_path / "out", "--eval_split", "0.5")) == 2
    assert "no negatives at all" in capsys.readouterr().err


def test_continued_run_has_the_scores_of_the_unbroken_one(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    more = [
        "--eval_split",
        "0.2",
        "--eval_steps",
        "2",
        "--epochs",
        "2",
        "--save_steps",
        "1",
        "--save_total_limit",
        "99",
    ]
    whole = tmp_path / "whole"
    assert main(words(tiny_bert, data, whole, *more)) == 0
    part = cut(whole, tmp_path / "part", 5)
    assert checkpoints(part)[0].step == 5
    assert main(words(tiny_bert, data, part, *more, "--resume", "auto")) == 0

    def figures(output: Path) -> list[dict[str, Any]]:
        times = ("seconds", "timestamp")
        return [{name: row[name] for name in row if name not in times} for row in log(output)["eval_logs"]]

    assert figures(part) == figures(whole)
    a, b = (json.loads((folder / "evaluation.json").read_text()) for folder in (whole, part))
    assert a["comparison"] == b["comparison"] and a["map"] == b["map"]
    final = [(folder / "final" / "adapter_model.safetensors").read_bytes() for folder in (whole, part)]
    assert final[0] == final[1]


def test_two_processes_share_the_evaluation(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    more = ["--eval_dataset", str(data), "--epochs", "1", "--lora_dropout", "0"]
    assert main(words(tiny_bert, data, tmp_path / "one", *more)) == 0
    said = run_processes([*words(tiny_bert, data, tmp_path / "two", *more), "--batch_size", "4"])
    one, other = log(tmp_path / "one")["eval_logs"], log(tmp_path / "two")["eval_logs"]
    assert one[0]["ndcg@10"] == pytest.approx(other[0]["ndcg@10"], abs=1e-6)
    assert one[-1]["mean_positive_score"] == pytest.approx(other[-1]["mean_positive_score"], abs=1e-3)
    assert said.count("verdict: ") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--eval_steps", "2"], "--eval_steps 2: needs --eval_dataset or --eval_split"),
        (["--early_stopping_patience", "2"], "--early_stopping_patience 2: needs --eval_dataset or --eval_split"),
        (["--eval_split", "0.1", "--eval_dataset", "x"], "--eval_split 0.1: contradicts --eval_dataset"),
        (["--eval_split", "1"], "--eval_split"),
        (["--eval_split", "0.1", "--metric_for_best", "accuracy"], "--metric_for_best"),
        (["--eval_dataset", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_wrong_flags_are_named(
    tiny_bert: str, data: Path, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tiny_bert, data, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
