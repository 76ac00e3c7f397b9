"""The demo on a small part of its data, and the verdict it prints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from embedrag.cli import main
from embedrag.errors import UserError
from embedrag.evaluate import difference, load_beir, search, verdict


def test_demo_leaves_a_table_a_merged_model_and_a_data_set_that_evaluate_reads(
    minilm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "demo"
    assert main(["demo", "--output_dir", str(folder), "--packages", "json", "email", "logging"]) == 0
    output = capsys.readouterr().out
    assert "ndcg@10" in output
    assert "95 % interval" in output
    assert str(folder / "run" / "merged") in output
    verdict_file = json.loads((folder / "verdict.json").read_text())
    assert {row["metric"] for row in verdict_file["rows"]} == {"ndcg@10", "recall@10", "mrr@10"}
    words = ["--model", str(folder / "run" / "merged"), "--baseline", minilm, "--data", str(folder / "data" / "eval")]
    assert main(["evaluate", *words, "--k", "10", "--output", str(tmp_path / "metrics.json")]) == 0
    again = json.loads((tmp_path / "metrics.json").read_text())
    by_name = {row["metric"]: row for row in verdict_file["rows"]}
    assert again["ndcg@10"] == pytest.approx(by_name["ndcg@10"]["tuned"])


@pytest.mark.parametrize("block", [1, 3, 64])
def test_search_in_blocks_equals_a_full_sort_with_ties_to_the_earlier(block: int) -> None:
    generator = np.random.default_rng(0)
    queries, passages = (generator.integers(-1, 2, (n, 4)).astype(np.float32) for n in (7, 23))
    scores = queries @ passages.T
    expected = np.stack([sorted(range(23), key=lambda j: (-row[j], j))[:5] for row in scores])
    assert np.array_equal(search(queries, passages, 5, block), expected)


def test_verdict_tells_a_real_gain_from_noise_and_from_a_loss() -> None:
    generator = np.random.default_rng(0)
    base = generator.random(400)
    gain, low, high = difference(base, base + 0.05 + 0.1 * generator.standard_normal(400))
    assert low < gain < high
    assert verdict(low, high) == "better"
    assert verdict(*difference(base, base + 0.3 * generator.standard_normal(400))[1:]) == "no clear difference"
    assert verdict(*difference(base, base - 0.05)[1:]) == "worse"
    assert difference(base, base) == (0.0, 0.0, 0.0)


def beir(folder: Path, qrels: str) -> Path:
    (folder / "qrels").mkdir()
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "title": "", "text": "a"}\n{"_id": "d2", "text": "b\u2028c"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "a?"}\n')
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


def test_retrieval_set_is_read_with_its_grades(tmp_path: Path) -> None:
    data = load_beir(str(beir(tmp_path, "query-id\tcorpus-id\tscore\nq1\td2\t2\nq1\td1\t0\n")))
    assert data.relevant == [{1: 2.0}]
    assert data.passages == ["a", "b\u2028c"]


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        ("query-id\tcorpus-id\tscore\nq9\td1\t1\n", "test.tsv:2"),
        ("query-id\tcorpus-id\tscore\nq1\td9\t1\n", "test.tsv:2"),
        ("query-id\tcorpus-id\tscore\nq1\td1\tx\n", "test.tsv:2"),
        ("query-id\tcorpus-id\tscore\nq1 d1 1\n", "test.tsv:2"),
        ("query-id\tcorpus-id\tscore\nq1\td1\tnan\n", "test.tsv:2"),
        ("query-id\tcorpus-id\tscore\n", "no query has a relevant passage"),
    ],
)
def test_broken_judgements_are_named(tmp_path: Path, qrels: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_beir(str(beir(tmp_path, qrels)))
