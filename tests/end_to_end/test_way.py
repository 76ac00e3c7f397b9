"""The whole way from a glossary to a verdict, as docs/from_a_glossary.md tells it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_documented_way_from_a_glossary_to_a_verdict_runs_as_written(tiny_bert: str, tmp_path: Path) -> None:
    for name in ("train.py", "merge.py", "embedrag", "datasets"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    text = (ROOT / "docs" / "from_a_glossary.md").read_text(encoding="utf-8")
    [script] = re.findall(r"```bash\n(.*?)```", text, re.S)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{script}"],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "MODEL": tiny_bert},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
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
