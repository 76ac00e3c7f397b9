"""The site builds without a warning, and would not with a broken link; commands of pages are understood."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from embedrag.cli import COMMANDS, load_command
from embedrag.options.parsing import parse

ROOT = Path(__file__).parents[2]
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed (extra docs)"
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("docs", "embedrag"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    return tmp_path


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
@needs_mkdocs
def test_site_builds_strictly_and_loads_nothing_from_elsewhere(copy: Path) -> None:
    result = build(copy)
    assert result.returncode == 0, result.stderr
    page = (copy / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert "load_model" in page and "hub id" in page, "docstrings are on the page"
    for path in (copy / "site").rglob("*.html"):
        loaded = re.findall(r'(?:src|<link[^>]*href)="(https?://[^"]+)"', path.read_text(encoding="utf-8"))
        assert not loaded, (path.name, loaded)


@pytest.mark.slow
@needs_mkdocs
@pytest.mark.parametrize("fault", ["see [that](nowhere.md)", "see [that](data.md#nowhere)", "::: embedrag.nowhere"])
def test_a_fault_is_an_error(fault: str, copy: Path) -> None:
    with (copy / "docs" / "api.md").open("a", encoding="utf-8") as file:
        file.write(f"\n{fault}\n")
    assert build(copy).returncode != 0


@pytest.mark.parametrize("name", ["deploy.md", "playground.md"])
def test_commands_and_files_of_a_page_are_right(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(rf"^ {{4,}}(?:.* )?embedrag ((?:{'|'.join(COMMANDS)}) .*)$", text, re.MULTILINE)
    assert commands
    for line in commands:
        command, *words = shlex.split(line)
        parse(
            load_command(command).options, words, command, load_command(command).text, load_command(command).config_file
        )
    for path in re.findall(r"(?<![\w/])(?:azureml|docker|notebooks|datasets)/[\w.-]+\.\w+", text):
        assert (ROOT / path).exists(), path
