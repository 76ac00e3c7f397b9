"""score.py as Azure ML calls it: both forms of a request, and whatever else people send."""

from __future__ import annotations

import json
import runpy
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedrag.errors import UserError
from embedrag.models.load import find_model, load_model
from embedrag.serving.openai_protocol import EmbeddingsRequest
from embedrag.serving.request import MAX_CHARACTERS, MAX_TEXTS, EmbedRequest, check_request

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def score(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The script's namespace, its model two levels below AZUREML_MODEL_DIR."""
    folder = tmp_path_factory.mktemp("azure")
    shutil.copytree(tiny_bert, folder / "models" / "1" / "merged")
    script = runpy.run_path(str(ROOT / "score.py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZUREML_MODEL_DIR", str(folder / "models"))
        script["init"]()
    return script


@pytest.mark.parametrize("form", [lambda texts: {"texts": texts}, lambda texts: {"inputs": {"data": texts}}])
@pytest.mark.parametrize("send", [json.dumps, lambda request: json.dumps(request).encode(), lambda request: request])
def test_both_forms_give_the_vectors_of_encode(form, send, score, tiny_bert: str) -> None:
    texts = ["a frog", "저항의 단위는 옴이다", "a much longer text about frogs and ponds"]
    answer = score["run"](send(form(texts)))
    expected = load_model(tiny_bert, "cpu").encode(texts, "passage")
    np.testing.assert_allclose(answer["embeddings"], expected, atol=1e-6)
    json.dumps(answer)


def test_fields_choose_prompt_size_and_length(score, tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, texts = score["run"], ["a frog", "a heron"]
    cut = np.array(run({"texts": texts, "dimensions": 7})["embeddings"])
    assert cut.shape == (2, 7)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)
    whole = np.array(run({"texts": texts})["embeddings"])
    raw = np.array(run({"texts": texts, "dimensions": 7, "normalize": False})["embeddings"])
    np.testing.assert_allclose(raw, whole[:, :7], atol=1e-7)
    roles: list[str] = []
    encoder = run.__globals__["encoder"]
    real = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts, role: roles.append(role) or real(texts, role))
    for name in ("query", "document", "passage"):
        run({"texts": texts, "prompt_name": name})
    assert roles == ["query", "passage", "passage"]


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "must be an object"),
        ({}, "texts: Field required"),
        ({"texts": []}, "at least 1"),
        ({"texts": "a"}, "texts: "),
        ({"texts": ["a", 3]}, "texts.1"),
        ({"texts": ["a", ""]}, "texts.1: is empty"),
        ({"texts": ["\ud800"]}, "surrogate"),
        ({"texts": ["a"] * (MAX_TEXTS + 1)}, "at most"),
        ({"texts": ["a"] * 10_000}, "at most"),
        ({"texts": ["a" * (MAX_CHARACTERS + 1)] * 100}, "send several"),
        ({"texts": ["a"], "inputs": {"data": ["a"]}}, "not both"),
        ({"inputs": ["a"]}, '"inputs": {"data"'),
        (None, "must be an object"),
        (["a"], "must be an object"),
        ({"inputs": {"data": "a"}}, "inputs.data: "),
        ({"inputs": {"data": ["a", ""]}}, "inputs.data.1: is empty"),
        ({"inputs": {"data": ["a"], "prompt_name": "query"}}, 'next to "inputs"'),
        ({"inputs": {"data": ["a"]}, "Dimensions": 3}, "Dimensions: no such field; did you mean dimensions?"),
        ({"texts": ["a"], "dimension": 3}, "dimension: no such field; did you mean dimensions?"),
        ({"texts": ["a"], "dimensions": 0}, "dimensions"),
        ({"texts": ["a"], "dimensions": 65}, "the model's vectors have 64"),
        ({"texts": ["a"], "dimensions": True}, "dimensions"),
        ({"texts": ["a"], "prompt_name": "title"}, "prompt_name"),
    ],
)
def test_wrong_request_says_what_to_change_and_the_next_one_is_answered(request_, part, score) -> None:
    answer = score["run"](request_)
    body = answer if isinstance(answer, dict) else json.loads(answer.get_data())
    assert part in body["error"]
    assert len(score["run"]({"texts": ["a frog"]})["embeddings"]) == 1


@pytest.mark.parametrize("kind", [EmbedRequest, EmbeddingsRequest])
@pytest.mark.parametrize("wrong", ["items", "keys"])
def test_request_with_very_many_faults_is_refused_at_the_first_few(wrong: str, kind: type[EmbedRequest]) -> None:
    """One error of pydantic takes a kilobyte, so that eight million bytes of a request once took gigabytes."""
    request = {kind.texts_key: [None] * 100_000} if wrong == "items" else {str(n): n for n in range(100_000)}
    tracemalloc.start()
    with pytest.raises(UserError) as error:
        check_request(kind, request)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(str(error.value)) < 1000
    assert peak < 2**20


def test_init_without_a_model_ends_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure's server ends when `init` raises, and shows the error."""
    monkeypatch.setenv("AZUREML_MODEL_DIR", str(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path}: no model in it"):
        runpy.run_path(str(ROOT / "score.py"))["init"]()


def test_huge_text_is_cut_to_the_models_length(score) -> None:
    [vector] = score["run"]({"texts": ["frog " * 100_000]})["embeddings"]
    assert np.isfinite(vector).all()


def test_folder_without_a_model_or_with_several_is_an_error(tiny_bert: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model in it"):
        find_model(tmp_path)
    for name in ("a", "b"):
        shutil.copytree(tiny_bert, tmp_path / name)
    with pytest.raises(UserError, match="several models"):
        find_model(tmp_path)
    assert find_model(tmp_path / "a") == tmp_path / "a"
