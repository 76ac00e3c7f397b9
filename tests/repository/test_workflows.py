"""The workflows of GitHub Actions have the shape that GitHub reads, and may do as little as possible."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def check(path: Path) -> subprocess.CompletedProcess[str]:
    found = shutil.which("check-jsonschema", path=f"{Path(sys.executable).parent}")
    if found is None:
        pytest.skip("check-jsonschema is not installed")
    command = [found, "--builtin-schema", "vendor.github-workflows", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def load(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_has_the_shape_that_github_reads(path: Path) -> None:
    result = check(path)
    assert result.returncode == 0, result.stdout


def test_a_broken_workflow_is_found(tmp_path: Path) -> None:
    broken = tmp_path / "deploy.yml"
    text = (ROOT / ".github" / "workflows" / "deploy.yml").read_text(encoding="utf-8")
    broken.write_text(text.replace("id-token: write", "id-token: writ"), encoding="utf-8")
    assert check(broken).returncode != 0


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_to_a_commit_and_name_their_version(path: Path) -> None:
    uses = re.findall(r"uses: (.+)", path.read_text(encoding="utf-8"))
    assert uses and all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use) for use in uses)


def test_deployment_may_only_read_the_code_and_ask_for_a_token() -> None:
    workflow = load("deploy.yml")
    assert workflow["permissions"] == {}
    assert workflow["jobs"]["deploy"]["permissions"] == {"contents": "read", "id-token": "write"}
    assert load("ci.yml")["permissions"] == {"contents": "read"}
    assert "secrets." not in (ROOT / ".github" / "workflows" / "deploy.yml").read_text(encoding="utf-8")


def test_deployment_that_may_have_traffic_is_never_removed() -> None:
    job = load("deploy.yml")["jobs"]["deploy"]
    assert {"github.run_number", "github.run_attempt"} <= set(re.findall(r"[\w.]+", job["env"]["DEPLOYMENT"]))
    [traffic] = [step for step in job["steps"] if "--traffic" in step.get("run", "")]
    others, own = [step for step in job["steps"] if "delete" in step.get("run", "")]
    assert "delete" not in traffic["run"] and "if" not in traffic and "if" not in others
    assert job["steps"].index(traffic) < job["steps"].index(others)
    assert 'grep -vx "$DEPLOYMENT"' in others["run"]
    assert '--name "$DEPLOYMENT"' in own["run"]
    assert own["if"] == f"always() && steps.{traffic['id']}.outcome == 'skipped'"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_script_holds_an_expression_that_others_can_fill(path: Path) -> None:
    """What is written into a script by `${{ }}` is run; values reach it by the environment."""
    scripts = [step["run"] for job in load(path.name)["jobs"].values() for step in job["steps"] if "run" in step]
    assert scripts and not any("${{" in script for script in scripts)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_scripts_are_bash_and_name_files_that_are_there(path: Path) -> None:
    for job in load(path.name)["jobs"].values():
        for step in job["steps"]:
            script = step.get("run", "")
            result = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            for name in re.findall(r"(?:^|\s)((?:azureml|\.ci)/[\w./-]+)", script):
                assert (ROOT / name).exists(), name
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
