"""The site of the documentation builds without a warning, and would not with a broken link."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed (extra docs)"),
]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("docs", "embedrag"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    return tmp_path


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_site_builds_strictly_and_loads_nothing_from_elsewhere(copy: Path) -> None:
    result = build(copy)
    assert result.returncode == 0, result.stderr
    page = (copy / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert "load_encoder" in page and "hub id" in page, "docstrings are on the page"
    for path in (copy / "site").rglob("*.html"):
        loaded = re.findall(r'(?:src|<link[^>]*href)="(https?://[^"]+)"', path.read_text(encoding="utf-8"))
        assert not loaded, (path.name, loaded)


@pytest.mark.parametrize("fault", ["see [that](nowhere.md)", "see [that](data.md#nowhere)", "::: embedrag.nowhere"])
def test_a_fault_is_an_error(fault: str, copy: Path) -> None:
    with (copy / "docs" / "api.md").open("a", encoding="utf-8") as file:
        file.write(f"\n{fault}\n")
    assert build(copy).returncode != 0
