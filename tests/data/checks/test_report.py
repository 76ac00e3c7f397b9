"""The report is plain data and text; nothing is printed, and wrong arguments are named before anything is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import embedrag
from embedrag.data.checks.report import check_data
from embedrag.errors import UserError


def test_texts_are_measured_in_tokens_and_what_training_would_cut_is_counted(write_jsonl) -> None:
    def words(role: str, texts: list[str]) -> list[list[int]]:
        return [[0] * (len(text.split()) + (role == "query")) for text in texts]

    path = write_jsonl([{"query": "a b " * number, "pos": ["c " * number]} for number in range(1, 101)])
    report = check_data(path, tokenizer=words, query_max_len=101, passage_max_len=99)
    assert report.lengths["query"]["tokens"] == {
        "p50": 101, "p95": 191, "p99": 199, "max": 201, "limit": 101, "cut": 0.5, "of_texts": 100,
    }  # fmt: skip
    assert report.lengths["positive"]["tokens"]["cut"] == 0.01
    assert report.lengths["negative"]["tokens"]["of_texts"] == 0
    assert "50.0 % over 101" in str(report)


def test_report_can_be_written_as_json_and_does_not_print_by_itself(faulty: Path, evaluation: Path, capsys) -> None:
    report = embedrag.check(faulty, eval=evaluation)
    data = json.loads(json.dumps(report.as_dict()))
    assert data["level"] == report.level == "error"
    assert data["findings"]["unreadable"]["first"][0] == {
        "place": f"{faulty}:3",
        "text": "not JSON (Expecting ',' delimiter, column 21)",
    }
    assert "fixed" not in data and data["evaluation"]["queries"] == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"fix": "out.csv"}, "fix"),
        ({"fix": "DATA", "overwrite": True}, "fix"),
        ({"eval": "./none.jsonl"}, "eval"),
        ({"train_dataset": "./none.jsonl"}, "train_dataset"),
    ],
)
def test_wrong_argument_is_named(settings, argument: str, rows, write_jsonl, monkeypatch) -> None:
    data = str(write_jsonl(rows))
    monkeypatch.setattr("embedrag.data.checks.report.scan", lambda *_: pytest.fail("the rows were read"))
    settings = {name: data if value == "DATA" else value for name, value in settings.items()}
    with pytest.raises(UserError) as caught:
        check_data(**{"train_dataset": data} | settings)
    assert caught.value.argument == argument


def test_every_source_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError) as caught:
        check_data(["./a.jsonl", "./b.jsonl"])
    assert [problem.value for problem in caught.value.problems] == ["./a.jsonl", "./b.jsonl"]
