"""The whole way from a glossary to a verdict, as docs/from_a_glossary.md tells it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.shell import ROOT, bash_blocks, run_script


@pytest.mark.slow
def test_documented_way_from_a_glossary_to_a_verdict_runs_as_written(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands are those of the page; the glossary is a part of the one that they name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    for name in ("electronics_ko_terms.csv", "electronics_ko_acronyms.jsonl"):
        first = (ROOT / "datasets" / name).read_text(encoding="utf-8").splitlines(keepends=True)[:50]
        (tmp_path / "datasets" / name).write_text("".join(first), encoding="utf-8")
    [script] = bash_blocks(ROOT / "docs" / "from_a_glossary.md")
    run_script(script, tmp_path, {"MODEL": tiny_bert})
    way = tmp_path / "way"
    metrics = json.loads((way / "metrics.json").read_text())
    assert metrics["verdict"] in ("better", "no clear difference", "worse") and "ndcg@10" in metrics
    sides = {side: (way / "synth" / f"{side}.jsonl").read_text().splitlines() for side in ("train", "test")}
    terms = {side: {json.loads(line)["term"] for line in lines} for side, lines in sides.items()}
    assert terms["train"] and terms["test"] and not terms["train"] & terms["test"]
    mined = [json.loads(line) for line in (way / "mined.jsonl").read_text().splitlines()]
    assert len(mined) == len(sides["train"])
    assert all(row["neg"] for row in mined) and any(len(row["neg"]) > 1 for row in mined)
    assert (way / "merged" / "merge_config.json").exists() and (way / "report.html").exists()
