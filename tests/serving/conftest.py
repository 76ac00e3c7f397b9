"""What several tests of serving need: a small model with prompts."""

from __future__ import annotations

import shutil

import pytest

from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.models.encoder import Encoder
from embedrag.models.load import load_model


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDRAG_API_KEY", raising=False)


@pytest.fixture(scope="session")
def folder(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with prompts."""
    path = tmp_path_factory.mktemp("served") / "frogs"
    shutil.copytree(tiny_bert, path)
    EmbeddingConfig("mean", True, "query: ", "passage: ", 512, 512).write(path, 64)
    return str(path)


@pytest.fixture(scope="session")
def encoder(folder: str) -> Encoder:
    return load_model(folder, "cpu")
