"""The notebook runs top to bottom, in a real kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_evaluation_notebook_ranks_documents(minilm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("EMBEDRAG_MODEL", minilm)
    notebook = nbformat.read(ROOT / "evaluation.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output["text"] for output in outputs if output.get("name") == "stdout")
    assert "Deserialize a JSON document" in text
    first = [line for line in text.splitlines() if line.startswith("  ")][0]
    assert "object_hook" in first
    assert 0 < float(first.split()[0]) <= 100
