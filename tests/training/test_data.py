"""Several data sets in one run, and data without an end: weights, prompts, batches of one, streams that go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedrag.cli import main
from embedrag.data.rows import endless_rows
from embedrag.errors import UserError
from tests.training.state.test_resume import cut, losses, weights

Rows = list[dict[str, Any]]
FRUIT: Rows = [{"query": f"fruit {i}", "pos": [f"apple {i}"], "neg": [f"stone {i}"]} for i in range(6)]
METAL: Rows = [{"query": f"metal {i}", "pos": [f"iron {i}"], "neg": [f"wool {i}"]} for i in range(9)]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Files of 6 and of 9 rows."""
    paths = tmp_path / "fruit.jsonl", tmp_path / "metal.jsonl"
    for path, rows in zip(paths, (FRUIT, METAL), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths


@pytest.fixture
def run(tiny_bert: str, tmp_path: Path) -> Callable[..., int]:
    """A training into `tmp_path / output`; words come last."""

    def start(output: str, *words: str) -> int:
        fixed = ["--model_name_or_path", tiny_bert, "--output_dir", str(tmp_path / output), "--use_cpu"]
        fixed += ["--finetune_type", "lora", "--lr", "3e-3", "--temperature", "0.1", "--batch_size", "3"]
        return main(["train", *fixed, "--epochs", "2", "--dtype", "float32", *words])

    return start


def steps(folder: Path) -> int:
    return len(json.loads((folder / "detailed_training_logs.json").read_text())["step_logs"])


# Weights and prompts


def test_weight_makes_rows_come_more_often(two, run, tmp_path, capsys) -> None:
    fruit, metal = two
    assert run("out", "--train_dataset", f"{fruit}:2", str(metal)) == 0
    said = capsys.readouterr().out
    assert f"{fruit}: 6 rows; 12 of the 21 rows of an epoch" in said
    assert f"{metal}: 9 rows; 9 of the 21 rows of an epoch" in said
    assert steps(tmp_path / "out") == 2 * 7
    saved = json.loads((tmp_path / "out" / "final" / "training_config.json").read_text())
    assert saved["train_dataset"] == [f"{fruit}:2", str(metal)]


def test_weight_that_leaves_no_row_is_named(two, run, capsys) -> None:
    fruit, metal = map(str, two)
    assert run("out", "--train_dataset", f"{fruit}:0.05", metal) == 2
    assert "fruit.jsonl:0.05: with this weight, an epoch has none of its 6 rows" in capsys.readouterr().err


def test_weight_of_one_is_none(two, run, tmp_path) -> None:
    fruit, metal = two
    assert run("plain", "--train_dataset", str(fruit), str(metal)) == 0
    assert run("weighted", "--train_dataset", f"{fruit}:1", f"{metal}:1.0") == 0
    assert losses(tmp_path / "plain") == losses(tmp_path / "weighted")


def test_prompt_of_a_data_set_changes_what_is_learnt(two, run, tmp_path) -> None:
    fruit, metal = map(str, two)
    prompted = json.dumps({"path": fruit, "query_prompt": "iron wool "})
    assert run("plain", "--train_dataset", fruit, metal) == 0
    assert run("prompted", "--train_dataset", prompted, metal) == 0
    assert losses(tmp_path / "plain") != losses(tmp_path / "prompted")
    config = tmp_path / "prompted" / "final" / "training_config.json"
    assert run("again", "--config", str(config), "--overwrite") == 0
    assert losses(tmp_path / "prompted") == losses(tmp_path / "again")


# Batches of one data set


def test_share_of_texts_that_are_cut_is_said_for_each_side(tmp_path, run, capsys) -> None:
    rows = [{"query": f"fruit {i}", "pos": ["apple " * (1 + 20 * (i < 3))], "neg": [f"stone {i}"]} for i in range(8)]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for _ in range(2):  # the second time, the tokens are in the cache
        assert run("out", "--train_dataset", str(path), "--passage_max_len", "12", "--dry_run") == 0
        said = capsys.readouterr().out
        assert "1 of 10 passages (10.0%) have 12 tokens or more and are cut there; --passage_max_len" in said
        assert "queries (" not in said


def test_prompt_of_a_data_set_that_leaves_no_token_of_its_texts_is_refused(two, run, tmp_path, capsys) -> None:
    words = "retrieve all passages that answer the question: " * 2
    prompted = json.dumps({"path": str(two[0]), "query_prompt": words})
    assert run("out", "--train_dataset", prompted, str(two[1]), "--query_max_len", "20") == 2
    error = capsys.readouterr().err
    assert "--query_max_len 20: the query prompt 'retrieve all" in error
    assert "take 18 tokens, so the limit leaves 2 for the text of a query" in error


def test_prompt_of_a_row_that_leaves_no_token_of_its_text_is_refused(two, run, write_jsonl, capsys) -> None:
    """Otherwise all queries with this prompt have the same vector."""
    rows = [row | ({"prompt": "retrieve all " * 20} if n == 3 else {"prompt": "p: "}) for n, row in enumerate(FRUIT)]
    path = write_jsonl(rows)
    assert run("out", "--train_dataset", str(path), "--query_max_len", "20") == 2
    error = capsys.readouterr().err
    assert f"--query_max_len 20: the prompt of {path}:4 'retrieve all" in error and "shorten the prompt" in error


def test_prompts_of_rows_are_said_where_they_do_not_count(two, run, write_jsonl, tiny_bert, tmp_path, capsys) -> None:
    path = str(write_jsonl([row | {"prompt": "p: "} for row in FRUIT]))
    words = {
        "evaluate": ["--model", tiny_bert, "--data", path],
        "mine": [
            "--model",
            tiny_bert,
            "--train_dataset",
            path,
            "--output",
            str(tmp_path / "m.jsonl"),
            "--range",
            "0",
            "9",
        ],
        "check": ["--train_dataset", path],
    }
    for name, own in words.items():
        assert main([name, *own, *(["--device", "cpu"] if name != "check" else [])]) == 0
        assert "6 rows have a prompt of their own" in capsys.readouterr().out, name
        assert main([name, *(str(two[0]) if word == path else word for word in own), "--overwrite"]) == 0
        assert "prompt of their own" not in capsys.readouterr().out, name
    assert run("out", "--train_dataset", path, "--eval_split", "0.3", "--epochs", "1") == 0
    assert "the prompts of single rows are not used in it" in capsys.readouterr().out


def test_batch_holds_rows_of_one_data_set(two, run, tmp_path, monkeypatch) -> None:
    import embedrag.training.trainer

    fruit, metal = two
    seen: list[set[int]] = []
    batches = embedrag.training.trainer.Batches

    class Spy(batches):
        def __getitem__(self, index: int):
            batch = super().__getitem__(index)
            seen.append(set(self.store.row_sets[batch.rows.numpy()].tolist()))
            return batch

    monkeypatch.setattr(embedrag.training.trainer, "Batches", Spy)
    assert run("mixed", "--train_dataset", str(fruit), str(metal)) == 0
    assert {0, 1} in seen
    seen.clear()
    assert run("out", "--train_dataset", str(fruit), str(metal), "--one_source_per_batch") == 0
    assert sorted(map(tuple, seen)) == [(0,)] * 4 + [(1,)] * 6


def test_run_does_not_go_on_with_other_weights(two, run, tmp_path, capsys) -> None:
    fruit, metal = map(str, two)
    assert run("out", "--train_dataset", fruit, metal) == 0
    assert run("out", "--train_dataset", f"{fruit}:2", metal, "--resume", "auto", "--epochs", "3") == 2
    assert "other rows" in capsys.readouterr().err


def test_data_set_that_fills_no_batch_is_refused(two, run, capsys) -> None:
    fruit, metal = map(str, two)
    assert run("out", "--train_dataset", fruit, metal, "--one_source_per_batch", "--batch_size", "8") == 2
    assert "fruit.jsonl has 6 rows, fewer than the 8 rows of a batch; lower --batch_size" in capsys.readouterr().err


# Streams


def test_source_without_an_end_is_trained_on(two, run, tmp_path, monkeypatch) -> None:
    import embedrag.data.sources

    asked = []

    def endless(source: str, streaming: bool, argument: str):
        number = 0
        while True:
            asked.append(number)
            yield f"{source}:{number + 1}", {"query": f"question {number}", "pos": f"answer {number}"}
            number += 1

    monkeypatch.setattr(embedrag.data.sources, "hub_rows", endless)
    assert run("out", "--train_dataset", "owner/endless", "--stream", "--steps_per_epoch", "4") == 0
    assert steps(tmp_path / "out") == 8
    assert max(asked) + 1 == 200  # the probes of a merge; training alone asked for 24


def test_run_on_a_stream_goes_on_bit_for_bit(two, run, tmp_path) -> None:
    words = ["--train_dataset", *map(str, two), "--stream", "--steps_per_epoch", "4", "--save_steps", "3"]
    assert run("whole", *words, "--save_total_limit", "9") == 0
    for step in (3, 6):
        copy = cut(tmp_path / "whole", tmp_path / f"cut{step}", step)
        assert run(copy.name, *words, "--save_total_limit", "9", "--resume", "auto") == 0
        assert losses(copy) == losses(tmp_path / "whole")
        before, after = weights(tmp_path / "whole"), weights(copy)
        assert all((before[name] == after[name]).all() for name in before)


def test_epochs_of_a_stream_see_other_rows(two, cache_folder, run, tmp_path) -> None:
    words = ["--train_dataset", *map(str, two), "--steps_per_epoch", "4"]
    assert run("stream", *words, "--stream") == 0
    assert run("store", *words) == 0
    assert losses(tmp_path / "stream") != losses(tmp_path / "store")


def test_bad_row_of_a_stream_stops_at_its_place(two, tmp_path, run, capsys, monkeypatch) -> None:
    fruit, _ = two
    fruit.write_text(fruit.read_text() + '{"query": "no answer"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"fruit\.jsonl:7: no positive"):
        list(zip(range(9), endless_rows(str(fruit)), strict=False))
    words = ["--train_dataset", str(fruit), "--stream", "--steps_per_epoch", "2"]
    assert run("out", *words) == 2  # the first rows are read at the start, as probes of a merge
    assert "fruit.jsonl:7" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("embedrag.training.data.PROBED_ROWS", 5)
    assert run("out", *words) == 2
    assert "fruit.jsonl:7" in capsys.readouterr().err
    assert (tmp_path / "out" / "checkpoint-epoch-1").is_dir()  # what was learnt before is there
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n", encoding="utf-8")
    assert run("none", "--train_dataset", str(empty), "--stream", "--steps_per_epoch", "2") == 2
    assert "no rows" in capsys.readouterr().err


def test_source_with_a_weight_too_small_for_one_row_is_named(two, run, capsys) -> None:
    fruit, metal = map(str, two)
    words = ["--train_dataset", f"{fruit}:0.01", metal, "--stream", "--steps_per_epoch", "2"]
    assert run("out", *words) == 2
    assert "fruit.jsonl:0.01: with this weight, an epoch of 6 rows has none of its rows" in capsys.readouterr().err
