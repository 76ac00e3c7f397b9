"""azureml/*.yml are what Azure's own SDK accepts, and their commands what our command line accepts."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedrag.cli import load_command
from embedrag.options.parsing import parse
from embedrag.serving.request import read_request
from embedrag.training.config.options import TrainOptions

pytest.importorskip("azure.ai.ml", reason="azure-ai-ml is not installed (extra azure)")

from azure.ai.ml import (
    load_environment,
    load_job,
    load_online_deployment,
    load_online_endpoint,
)
from azure.ai.ml._utils._asset_utils import get_ignore_file, get_upload_files_from_folder
from marshmallow import ValidationError

ROOT = Path(__file__).parents[2]
AZURE = ROOT / "azureml"
JOBS = ("job.yml", "job-distributed.yml")
LOADERS: dict[str, Callable[..., Any]] = {
    "job.yml": load_job,
    "job-distributed.yml": load_job,
    "endpoint.yml": load_online_endpoint,
    "deployment.yml": load_online_deployment,
    "environment.yml": load_environment,
}


def options_of(command: str, inputs: dict[str, Any]) -> TrainOptions:
    """The options of a job's command, its inputs put in as Azure does."""

    def value(match: re.Match[str]) -> str:
        kind, name = match[1], match[2]
        if kind == "outputs":
            return "outputs"
        given = inputs[name]
        return str(given if isinstance(given, (str, int, float)) else "data")

    words = shlex.split(re.sub(r"\$\{\{(inputs|outputs)\.(\w+)\}\}", value, command))
    assert words[:2] == ["python", "train.py"]
    return parse(TrainOptions, words[2:], "train.py", load_command("train").text, config_file=True)


def test_every_file_of_the_folder_is_loaded_here() -> None:
    assert {path.name for path in AZURE.glob("*.yml")} == set(LOADERS)


@pytest.mark.parametrize("name", LOADERS)
def test_sdk_accepts_the_file(name: str) -> None:
    assert LOADERS[name](AZURE / name) is not None


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("job.yml", "type: uri_folder", "type: uri_fodler"),
        ("job.yml", "command: >-", "comand: >-"),
        ("job-distributed.yml", "process_count_per_instance: 4", "process_count_per_instance: four"),
        ("endpoint.yml", "auth_mode: key", "auth_mode: secret"),
        ("deployment.yml", "initial_delay: 30", "initial_delay: soon"),
        ("deployment.yml", "scoring_script: score.py", "scoring_skript: score.py"),
        ("environment.yml", "build:", "built:"),
    ],
)
def test_sdk_refuses_a_broken_file(name: str, right: str, wrong: str, tmp_path: Path) -> None:
    text = (AZURE / name).read_text(encoding="utf-8")
    assert right in text
    (tmp_path / name).write_text(text.replace(right, wrong), encoding="utf-8")
    with pytest.raises(ValidationError, match=wrong.split(":")[0].strip()):
        LOADERS[name](tmp_path / name)


@pytest.mark.parametrize("name", JOBS)
def test_command_of_a_job_is_understood_by_train(name: str) -> None:
    job = load_job(AZURE / name)
    inputs = {key: getattr(item, "_data", item) for key, item in job.inputs.items()}
    options = options_of(job.command, inputs)
    assert [source.path for source in options.train_dataset or []] == ["data/train.jsonl"]
    assert options.eval_dataset == "data/test.jsonl" and options.output_dir == "outputs"
    assert set(re.findall(r"\$\{\{inputs\.(\w+)\}\}", job.command)) == set(job.inputs), "an input that nothing uses"
    with pytest.raises(Exception, match="batch_sise"):
        options_of(job.command.replace("--batch_size", "--batch_sise"), inputs)


def test_distributed_job_starts_a_process_for_each_gpu_of_each_node() -> None:
    job = load_job(AZURE / "job-distributed.yml")
    assert job.resources.instance_count > 1
    assert job.distribution.type.lower() == "pytorch" and job.distribution.process_count_per_instance > 1
    assert "num_processes" not in job.command, "Azure starts them, train.py must not"


def test_uploaded_code_has_what_the_scripts_need_and_nothing_private(tmp_path: Path) -> None:
    code = tmp_path / "code"
    shutil.copytree(ROOT, code, ignore=shutil.ignore_patterns(".?*", "outputs", "demo_output", "site"))
    shutil.copy(ROOT / ".amlignore", code)
    for name in (".git/config", ".venv/bin/python", "outputs/run/model.safetensors", "embedrag/__pycache__/cli.pyc"):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).touch()
    files = {name for _, name in get_upload_files_from_folder(str(code), ignore_file=get_ignore_file(code))}
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "embedrag").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    assert "embedrag/evaluation/report/templates/report.html" in package
    assert {"train.py", "score.py"} | package <= files
    assert not {name for name in files if name.split("/")[0] in (".git", ".venv", "tests", "outputs", "docs")}
    assert not {name for name in files if "__pycache__" in name}


def test_build_context_of_the_environment_holds_the_projects_requirements() -> None:
    environment = load_environment(AZURE / "environment.yml")
    context = AZURE / environment.build.path
    files = {name: source for source, name in get_upload_files_from_folder(str(context))}
    assert set(files) == {"Dockerfile", "requirements.txt"}
    assert Path(files["requirements.txt"]).read_bytes() == (ROOT / "requirements.txt").read_bytes()
    copied = re.findall(r"^COPY (\S+) ", Path(files["Dockerfile"]).read_text(), re.MULTILINE)
    assert copied == ["requirements.txt"]


def test_deployment_calls_the_script_that_is_there_with_a_request_that_it_reads() -> None:
    deployment = load_online_deployment(AZURE / "deployment.yml")
    code = (AZURE / deployment.code_configuration.code).resolve()
    assert (code / deployment.code_configuration.scoring_script).samefile(ROOT / "score.py")
    assert deployment.endpoint_name == load_online_endpoint(AZURE / "endpoint.yml").name
    read_request(json.loads((AZURE / "request.json").read_text(encoding="utf-8")))
