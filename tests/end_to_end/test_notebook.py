"""The notebook runs top to bottom, in a real kernel, on what the demo leaves."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedrag.datagen.docstrings import collect, write_retrieval_dataset
from embedrag.errors import UserError
from embedrag.models.load import trained_from

NOTEBOOK = Path(__file__).parents[2] / "evaluation.ipynb"
NAMES = ("EMBEDRAG_MODEL", "EMBEDRAG_BASE", "EMBEDRAG_DATA_SET", "PLOTLY_RENDERER")


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Any:
    import nbformat

    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads of several programs wait for each other
    return nbformat.read(NOTEBOOK, as_version=4)


def test_notebook_compares_the_demos_model_with_its_base(
    notebook: Any, minilm: str, tiny_bert: str, tmp_path: Path
) -> None:
    """A demo whose base knows nothing and whose merged model is MiniLM, so ranking and verdict are known."""
    from nbclient import NotebookClient

    run = tmp_path / "demo_output" / "run"
    (run / "merged").mkdir(parents=True)
    for path in Path(minilm).iterdir():
        (run / "merged" / path.name).symlink_to(path)
    (run / "merged" / "merge_config.json").write_text(json.dumps({"base_model_path": tiny_bert}))
    log = {"step_logs": [{"global_step": step, "loss": 1 / step} for step in (1, 2)]}
    (run / "detailed_training_logs.json").write_text(json.dumps(log))
    pairs = [replace(pair, passage=pair.passage[:200]) for pair in collect(["logging"])[:24]]
    write_retrieval_dataset(tmp_path / "demo_output" / "data" / "eval", pairs, pairs[:15])

    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell.id: cell.get("outputs", []) for cell in notebook.cells}
    text = "".join(output["text"] for cell in outputs.values() for output in cell if output.get("name") == "stdout")
    assert f"base  {tiny_bert}\ntuned demo_output/run/merged\n" in text

    lines = text.splitlines()
    ranked = lines[lines.index("Deserialize a JSON document to a Python object.") :][1:6]
    assert ranked[0].split() == ["base", "tuned", "document"] and "object_hook" in ranked[2]
    cosines = [[float(value) for value in line.split()[:2]] for line in ranked[2:]]
    tuned = [row[1] for row in cosines]
    assert tuned == sorted(tuned, reverse=True) and 20 < tuned[0] <= 100
    assert min(row[0] for row in cosines) > 50, "the base is another model: random weights find everything alike"

    assert f"15 queries, {len({pair.passage for pair in pairs})} passages of demo_output/data/eval" in text
    found = re.search(r"^verdict: better: ndcg@10 (\S+) -> (\S+), \+\S+ \(95 % interval ", text, re.MULTILINE)
    assert found and float(found[1]) < float(found[2]) <= 1

    shown = [output["data"] for output in outputs["plots"] if output["output_type"] == "display_data"]
    plots = [data["application/vnd.plotly.v1+json"] for data in shown if "application/vnd.plotly.v1+json" in data]
    assert [plot["layout"]["title"]["text"].partition(":")[0] for plot in plots] == [
        "Metrics",
        "Tuned − base, with 95 % interval",
        "Scores of positives and negatives",
        "Scores of positives and negatives",
        "Training",
        "Map of queries and passages",
    ]
    assert "var(" not in json.dumps(plots), "only the page has CSS variables"
    assert sum("plotly-graph-div" in data.get("text/html", "") for data in shown) == len(plots)


def test_notebook_without_a_demo_says_so_in_its_first_cell(
    notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    with pytest.raises(FileNotFoundError, match="demo_output/run/merged is not there: run make demo first"):
        exec(first, {})
    monkeypatch.setenv("EMBEDRAG_MODEL", "some/model")
    with pytest.raises(FileNotFoundError, match="demo_output/data/eval is not there: run make demo first"):
        exec(first, {})
    monkeypatch.setenv("EMBEDRAG_DATA_SET", "rows.jsonl")
    names: dict[str, Any] = {}
    exec(first, names)
    assert (names["MODEL"], names["DATA_SET"]) == ("some/model", "rows.jsonl")


def test_committed_notebook_has_no_outputs(notebook: Any) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_base_is_read_from_the_files_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no merge_config.json and no training_config.json that name its base"):
        trained_from(str(tmp_path))
    for file, key in (
        ("adapter_config.json", "base_model_name_or_path"),
        ("training_config.json", "model_name_or_path"),
        ("merge_config.json", "base_model_path"),
    ):
        (tmp_path / file).write_text(json.dumps({key: f"base of {file}"}))
        assert trained_from(str(tmp_path)) == f"base of {file}"
    assert trained_from(str(tmp_path / "adapter_config.json")) == "base of merge_config.json"
