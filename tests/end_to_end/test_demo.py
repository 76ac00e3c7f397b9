"""The demo on a small part of its data, and the verdict it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedrag.cli import main
from embedrag.evaluation.metrics import METRICS


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
    assert {row["metric"] for row in verdict_file["rows"]} == {f"{name}@10" for name in METRICS}
    words = ["--model", str(folder / "run" / "merged"), "--baseline", minilm, "--data", str(folder / "data" / "eval")]
    assert main(["evaluate", *words, "--k", "10", "--output", str(tmp_path / "metrics.json")]) == 0
    again = json.loads((tmp_path / "metrics.json").read_text())
    by_name = {row["metric"]: row for row in verdict_file["rows"]}
    assert again["ndcg@10"] == pytest.approx(by_name["ndcg@10"]["tuned"])
    page, written = folder / "run" / "evaluation.html", json.loads((folder / "run" / "evaluation.json").read_text())
    assert str(page) in output and 'id="figure-map"' in page.read_text(encoding="utf-8")
    assert written["comparison"] == verdict_file["rows"] and written["curve"]
