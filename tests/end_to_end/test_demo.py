"""The demo on a small part of its data, and the table that it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import embedrag
from embedrag.cli import main
from embedrag.commands import demo
from embedrag.evaluation.metrics import METRICS


@pytest.mark.slow
def test_demo_leaves_a_table_a_merged_model_and_a_data_set_that_evaluate_reads(
    minilm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "PAIRS", 40)
    monkeypatch.setitem(demo.TRAINING, "passage_max_len", 32)
    folder = tmp_path / "demo"
    assert main(["demo", "--output_dir", str(folder), "--packages", "json", "logging"]) == 0
    output = capsys.readouterr().out
    assert "ndcg@10" in output and "95 % interval" in output
    merged, page = folder / "run" / "merged", folder / "run" / "evaluation.html"
    assert str(merged) in output and str(page) in output
    assert 'id="figure-map"' in page.read_text(encoding="utf-8")

    rows = json.loads((folder / "verdict.json").read_text())["rows"]
    assert {row["metric"] for row in rows} == {f"{name}@10" for name in METRICS}
    written = json.loads((folder / "run" / "evaluation.json").read_text())
    assert written["comparison"] == rows and written["curve"] and written["baseline"] == minilm
    again = embedrag.evaluate(merged, folder / "data" / "eval", k=[10])
    tuned = {row["metric"]: row["tuned"] for row in rows}
    assert {name: again.metrics[name] for name in tuned} == pytest.approx(tuned)
