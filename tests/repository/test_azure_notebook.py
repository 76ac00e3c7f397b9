"""The Azure notebook runs up to the cloud without an account, says what is missing, and asks for the right things."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
ROOT = Path(__file__).parents[2]
NAMES = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZUREML_WORKSPACE_NAME", "AZUREML_COMPUTE_NAME")


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in (*NAMES, "AZUREML_ENDPOINT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return nbformat.read(ROOT / "notebooks" / "azure_ml.ipynb", as_version=4)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder like the project's, in which the notebook may write."""
    for name in ("datasets", "azureml", "score.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "notebooks").mkdir()
    return tmp_path


def test_notebook_ends_at_the_cloud_with_one_sentence(
    notebook: Any, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    monkeypatch.setenv("AZURE_RESOURCE_GROUP", "group")
    client = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(copy / "notebooks")}})
    with pytest.raises(CellExecutionError):
        client.execute()
    cells = {cell.id: cell for cell in notebook.cells}
    for name in ("train.jsonl", "test.jsonl"):
        assert (copy / "outputs" / "azure" / "data" / name).stat().st_size > 1000
    said = "".join(output["text"] for output in cells["check"].outputs if output.get("name") == "stdout")
    assert "clean" in said
    [error] = [output for output in cells["connect"].outputs if output.output_type == "error"]
    [line] = error.traceback
    assert line == (
        "The cloud begins here: set AZURE_SUBSCRIPTION_ID, AZUREML_WORKSPACE_NAME, AZUREML_COMPUTE_NAME in the "
        "environment and start again."
    )
    assert not cells["asset"].outputs and not cells["asset"].execution_count, "nothing ran behind it"


class Cloud:
    """Remembers what it is asked for; its answers have the names that the real ones have."""

    endpoint_exists = False

    def __init__(self, *account: Any) -> None:
        self.account, self.asked = account, []
        self.data = self.environments = self.jobs = self.models = self.online_endpoints = self.online_deployments = self

    def create_or_update(self, entity: Any) -> Any:
        self.asked.append(entity)
        return SimpleNamespace(name=entity.name or "job-1", version="7", studio_url="")

    def begin_create_or_update(self, entity: Any) -> Any:
        self.asked.append(entity)
        return SimpleNamespace(result=lambda: None)

    def get(self, name: str) -> Any:
        from azure.core.exceptions import ResourceNotFoundError

        if not self.endpoint_exists:
            raise ResourceNotFoundError
        return SimpleNamespace(name=name, traffic={"blue": 100})

    def stream(self, name: str) -> None:
        self.asked.append(name)

    def invoke(self, name: str, request_file: Path) -> str:
        texts = json.loads(request_file.read_text(encoding="utf-8"))["texts"]
        return json.dumps({"embeddings": [[0.0] * 3 for _ in texts]})


@pytest.mark.parametrize("again", [False, True], ids=["first time", "again"])
def test_cells_ask_for_data_job_model_and_endpoint(
    notebook: Any, copy: Path, again: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sdk = pytest.importorskip("azure.ai.ml", reason="azure-ai-ml is not installed (extra azure)")
    pytest.importorskip("azure.identity")
    for name in NAMES:
        monkeypatch.setenv(name, f"my-{name.split('_')[1].lower()}")
    monkeypatch.setattr(sdk, "MLClient", Cloud)
    monkeypatch.setattr(Cloud, "endpoint_exists", again)
    monkeypatch.chdir(copy / "notebooks")
    names: dict[str, Any] = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.id != "check":
            exec(cell.source, names)
    data, environment, job, streamed, model, *endpoint, deployment, with_traffic = names["client"].asked
    assert names["client"].account[1:] == ("my-subscription", "my-resource", "my-workspace")
    assert (Path(data.path) / "train.jsonl").exists() and data.name == "embedrag-data"
    assert environment.name == "embedrag"
    assert job.compute == "my-compute" and "train.py" in job.command
    assert streamed == "job-1"
    assert model.path == "azureml://jobs/job-1/outputs/run/paths/merged"
    assert len(endpoint) == (not again), "an endpoint that is there would lose its traffic"
    assert deployment.model.endswith("embedrag:7") and deployment.endpoint_name == with_traffic.name == names["NAME"]
    assert with_traffic.traffic == {deployment.name: 100}
    assert "[3, 3]" in capsys.readouterr().out


def test_committed_notebook_has_no_outputs(notebook: Any) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
