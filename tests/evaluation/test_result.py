"""Evaluations: what is measured, compared, said and written, from Python and from the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedrag.cli import main
from embedrag.data.retrieval_dataset import RetrievalDataset, load_retrieval_dataset
from embedrag.errors import UserError
from embedrag.evaluation.details import gains_and_losses
from embedrag.evaluation.evaluator import score
from embedrag.evaluation.result import evaluate
from embedrag.evaluation.significance import comparison
from embedrag.models.load import load_model
from tests.data.test_retrieval_dataset import write_beir
from tests.evaluation.test_evaluator import Fixed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_beir(
        tmp_path / "set", {"q1": "a?", "q2": "b?"}, {"d1": "a", "d2": "b\u2028c"}, [("q1", "d2", 2), ("q1", "d1", 0)]
    )


@pytest.fixture
def rows(write_jsonl: Callable[..., Path]) -> Path:
    return write_jsonl([{"query": f"query {i}", "pos": [f"answer {i}"], "neg": [f"other {i}"]} for i in range(12)])


def test_winners_and_losers_are_named_with_the_first_passage_of_each_model() -> None:
    data = RetrievalDataset(["q", "r", "s"], ["a", "b"], [{0: 1.0}, {1: 1.0}, {1: 1.0}], [[], [], []])
    places = {"q": [1, 0], "r": [0, 1], "s": [0, 1], "a": [1, 0], "b": [0, 1]}
    other = places | {"q": [0, 1], "r": [0, 1], "s": [1, 0]}
    base, tuned = (score(Fixed({t: np.array(v, float) for t, v in x.items()}), data, [1]) for x in (other, places))
    found = gains_and_losses(base, tuned, data, "ndcg@1")
    assert [row["query"] for row in found["won"]] == ["q", "s"] and found["lost"] == []
    assert found["won"][0] == {
        "query": "q", "base": 0.0, "tuned": 1.0, "relevant": "a", "base_first": "b", "tuned_first": "a",
    }  # fmt: skip
    assert [row["query"] for row in gains_and_losses(tuned, base, data, "ndcg@1")["lost"]] == ["s", "q"]
    assert {row["verdict"] for row in comparison(base.metrics, base.metrics)} == {"no clear difference"}


def test_command_compares_with_the_baseline_and_writes_json_and_a_page(
    tiny_bert: str, tiny_qwen3: str, folder: Path, rows: Path, tmp_path: Path, capsys
) -> None:
    out, page = tmp_path / "new" / "metrics.json", tmp_path / "new" / "report.html"
    words = ["--model", tiny_bert, "--baseline", tiny_qwen3, "--data", str(rows), "--k", "1", "5", "--device", "cpu"]
    words += ["--general_data", str(folder), "--output", str(out), "--html", str(page)]
    assert main(["evaluate", *words]) == 0
    said = capsys.readouterr().out
    assert "verdict: " in said and "general data" in said and "95 % interval" in said
    result = json.loads(out.read_text())
    assert {"ndcg@1", "recall@5", "mrr@5", "map@5", "precision@1", "triplet_accuracy"} <= set(result)
    assert result["metric"] == "ndcg@1" and result["queries"] == 12 and result["passages"] == 24
    assert result["comparison"][0]["tuned"] == result["ndcg@1"]
    assert result["baseline_metrics"]["ndcg@1"] == result["comparison"][0]["base"]
    assert sum(result["histograms"]["model"]["positive"]) == 12 and len(result["map"]["points"]) == 24
    assert result["general"]["queries"] == 1
    assert "<html" in page.read_text()
    known = {"baseline": tiny_qwen3, "general_data": folder, "k": (1, 5), "device": "cpu"}
    evaluation = evaluate(tiny_bert, rows, **known)
    assert json.loads(evaluation.to_json()) == result
    assert evaluation.forgetting and evaluation.forgetting.data == str(folder)
    assert said.endswith("\n".join(evaluation.lines()) + "\n")


def test_command_equals_a_plain_ranking(tiny_bert: str, write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"query": f"word {i * 7} x", "pos": [f"text {i} of many"]} for i in range(30)]
    out = tmp_path / "m.json"
    assert main(["evaluate", "--model", tiny_bert, "--data", str(write_jsonl(rows)), "--output", str(out)]) == 0
    encoder = load_model(tiny_bert)
    q, p = (encoder.encode([t for t in texts], role) for texts, role in (
        ([row["query"] for row in rows], "query"), ([row["pos"][0] for row in rows], "passage")
    ))  # fmt: skip
    ranks = [(scores > scores[i]).sum() + 1 for i, scores in enumerate(q @ p.T)]
    assert json.loads(out.read_text())["mrr@100"] == pytest.approx(np.mean([1 / rank for rank in ranks]), abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "{data}"], "lies in a folder that is read"),
        (["--baseline", "./nowhere"], "--baseline ./nowhere"),
        (["--metric", "ndcg@7"], "--metric ndcg@7: must be one of ndcg@1, ndcg@5"),
        (
            ["--general_data", "x"],
            "--general_data x: only a comparison with a --baseline shows what was forgotten; name one",
        ),
        (["--baseline", "{data}", "--general_data", "./none"], "--baseline {data}: this is a file"),
    ],
)
def test_wrong_flags_are_named(tiny_bert: str, folder: Path, words: list[str], message: str, capsys) -> None:
    words, message = (
        [word.format(data=folder / "corpus.jsonl") for word in words],
        message.format(data=folder / "corpus.jsonl"),
    )
    assert main(["evaluate", "--model", tiny_bert, "--data", str(folder), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": []}, "`k`: must be one or several cut-offs"),
        ({"k": [3, 0]}, "`k=3 0`: must be one or several cut-offs, of 1 or more"),
        ({"metric": "ndgc@10"}, "did you mean ndcg@10?"),
        ({"sample_size": 0}, "`sample_size=0`: must be 1 or more"),
        ({"precisions": ["int4"]}, "`precisions=int4`: must be one of float32, int8, binary"),
        ({"precisions": "int4"}, "`precisions=int4`: must be one of float32, int8, binary"),
        ({"dims": 999}, "`dims=999`: must be from 1 to 64"),
        ({"dims": [65]}, "`dims=65`: must be from 1 to 64"),
        ({"baseline": "./none"}, "`baseline=./none`: no such folder"),
        ({"baseline": "{model}", "general_data": "./none.jsonl"}, "`general_data=./none.jsonl`: no such file"),
    ],
)
def test_wrong_argument_is_named(tiny_bert: str, rows: Path, arguments: dict[str, Any], message: str) -> None:
    if "baseline" in arguments:
        arguments = arguments | {"baseline": arguments["baseline"].format(model=tiny_bert)}
    with pytest.raises(UserError) as error:
        evaluate(tiny_bert, rows, device="cpu", **arguments)
    assert message in str(error.value)


def test_split_is_named_behind_the_folder(tiny_bert: str, folder: Path, tmp_path: Path, capsys) -> None:
    """Each of two sets has a split of its own, and nothing is written into a folder that is named with a split."""
    (folder / "qrels" / "dev.tsv").write_text((folder / "qrels" / "test.tsv").read_text())
    words = ["evaluate", "--model", tiny_bert, "--data", f"{folder}@dev", "--output"]
    assert main([*words, str(folder / "qrels" / "dev.tsv"), "--overwrite"]) == 2
    assert "lies in a folder that is read" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "out.json")]) == 0
    assert f"from {folder}@dev" in capsys.readouterr().out
    assert main(["evaluate", "--model", tiny_bert, "--data", f"{folder}@train"]) == 2
    assert "has no split train; there is dev, test" in capsys.readouterr().err


def test_missing_files_are_reported_together() -> None:
    with pytest.raises(UserError) as error:
        evaluate("./none", "./nothing", baseline="./no_base", general_data="./nothing_either")
    assert [problem.argument for problem in error.value.problems] == ["model", "baseline", "data", "general_data"]


def test_model_and_data_may_be_objects(tiny_bert: str, rows: Path) -> None:
    data, encoder = load_retrieval_dataset(rows), load_model(tiny_bert, "cpu")
    found = evaluate(encoder, data, k=3, baseline=encoder, sample_size=5)
    named = evaluate(tiny_bert, rows, k=[3], baseline=tiny_bert, sample_size=5, device="cpu")
    assert (found.model, found.baseline, found.data) == (tiny_bert, tiny_bert, "12 queries in memory")
    assert (found.queries, found.passages, found.metric) == (5, 24, "ndcg@3")
    assert found.metrics == named.metrics and found.verdict == "no clear difference"
    assert np.array_equal(found.scores.metrics["ndcg@3"], named.scores.metrics["ndcg@3"])


def test_forms_are_those_of_the_training_unless_others_are_asked_for(
    tiny_bert: str, rows: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_bert, model)
    settings = {"matryoshka_dims": [64, 16], "embedding_precisions": ["float32", "binary"]}
    (model / "training_config.json").write_text(json.dumps(settings))
    forms = [(row["dim"], row["precision"], row["bytes"]) for row in evaluate(model, rows, device="cpu").forms]
    assert forms == [(64, "float32", 256), (64, "binary", 8), (16, "float32", 64), (16, "binary", 2)]
    asked = evaluate(model, rows, device="cpu", dims=[8], precisions=["int8"])
    assert [(row["dim"], row["precision"]) for row in asked.forms] == [
        (64, "float32"), (64, "int8"), (8, "float32"), (8, "int8"),
    ]  # fmt: skip
    assert asked.forms[0]["ndcg@10"] == asked.metrics["ndcg@10"]
    assert "| dimensions" in "".join(asked.lines())
