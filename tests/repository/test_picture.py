"""The picture of the README is drawn from the result of a run."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.picture import draw, main

ROOT = Path(__file__).parents[2]
READMES = sorted(ROOT.glob("README*.md"))
RESULT: dict[str, Any] = {
    "metric": "ndcg@10",
    "verdict": "better",
    "queries": 1360,
    "passages": 3000,
    "comparison": [
        {
            "metric": "ndcg@10",
            "base": 0.61234,
            "tuned": 0.65,
            "difference": 0.03766,
            "low": 0.01,
            "high": 0.07,
            "p_value": 0.003,
            "verdict": "better",
        },
        {
            "metric": "recall@10",
            "base": 0.8,
            "tuned": 0.7,
            "difference": -0.1,
            "low": -0.2,
            "high": 0.05,
            "p_value": 0.3,
            "verdict": "no clear difference",
        },
        {
            "metric": "mean_difference",
            "base": 12.0,
            "tuned": 13.0,
            "difference": 1.0,
            "low": 0.9,
            "high": 1.1,
            "p_value": 0.0,
            "verdict": "better",
        },
    ],
}
SVG = "{http://www.w3.org/2000/svg}"


def shapes(picture: str) -> tuple[list[str], list[dict[str, str]], list[dict[str, str]]]:
    """The texts, the bars, and the lines of the intervals."""
    root = ElementTree.fromstring(picture)
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    bars = [element.attrib for element in root.iter(f"{SVG}rect") if element.get("height") == "14"]
    intervals = [element.attrib for element in root.iter(f"{SVG}line") if element.get("stroke-width") == "3"]
    return texts, bars, intervals


def test_picture_has_the_figures_of_the_result_and_shapes_as_long_as_they_are() -> None:
    texts, bars, intervals = shapes(draw(RESULT))
    assert {"The tuned model is better", "1,360 queries, 3,000 passages", "nDCG@10", "Recall@10"} <= set(texts)
    assert {"0.6123", "0.6500", "+0.0377", "0.8000", "0.7000", "−0.1000"} <= set(texts)
    assert not [text for text in texts if text.startswith(("12", "13", "+1", "Mean"))], "cosines have another scale"
    width = [float(bar["width"]) for bar in bars]
    assert [bar["class"] for bar in bars] == ["base", "tuned"] * 2
    assert [value / width[2] for value in width] == pytest.approx([0.61234 / 0.8, 0.65 / 0.8, 1, 0.7 / 0.8], abs=0.001)
    lengths = [float(line["x2"]) - float(line["x1"]) for line in intervals]
    assert lengths[1] / lengths[0] == pytest.approx(0.25 / 0.06, rel=0.01)
    assert [line["class"] for line in intervals] == ["better", "unclear"]


def test_picture_of_the_readme_has_the_figures_of_its_table() -> None:
    """Both are written by `python -m benchmarks.picture` from the result of one `make demo`."""
    texts, _, _ = shapes((ROOT / "docs" / "images" / "base_against_tuned.svg").read_text(encoding="utf-8"))
    for page in READMES:
        text = page.read_text(encoding="utf-8")
        rows = re.findall(r"^    \w+@10 +(\S+) +(\S+) +(\S+) ", text, re.MULTILINE)
        assert len(rows) >= 5
        for figure in sum(rows, ()):
            assert figure.replace("-", "\N{MINUS SIGN}") in texts, page.name


def test_picture_can_be_read_on_a_dark_page_and_loads_nothing() -> None:
    picture = draw(RESULT)
    assert "prefers-color-scheme: dark" in picture
    assert re.findall(r"https?://[^\"]+", picture) == ["http://www.w3.org/2000/svg"]


def test_script_writes_the_picture_and_the_table_of_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "evaluation.json", tmp_path / "picture.svg"
    pages = [Path(shutil.copy(path, tmp_path)) for path in READMES]
    monkeypatch.setattr(sys, "argv", ["picture", str(source), str(target), *map(str, pages)])
    source.write_text(json.dumps(RESULT), encoding="utf-8")
    main()
    assert target.read_text(encoding="utf-8") == draw(RESULT) + "\n"
    for page, old in zip(pages, READMES, strict=True):
        lines, others = page.read_text(encoding="utf-8").splitlines(), old.read_text(encoding="utf-8").splitlines()
        new = [line.split()[0] for line in lines if line not in others]
        assert [word for word in new if word.strip("-")] == [
            "metric",
            "ndcg@10",
            "recall@10",
            "mean_difference",
            "1,360",
        ]
    target.unlink()
    for fault in ('{"comparison": []}', "not json"):
        source.write_text(fault, encoding="utf-8")
        with pytest.raises(SystemExit, match=re.escape(str(source))):
            main()
    assert not target.exists()
