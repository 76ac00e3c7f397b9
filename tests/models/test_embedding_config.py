"""The files of sentence-transformers are read and written as they are meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from embedrag.errors import UserError
from embedrag.models.base_model import describe_base
from embedrag.models.embedding_config import EmbeddingConfig, read_embedding_config


@pytest.fixture
def folder(tiny_bert: str, tmp_path: Path) -> Path:
    """A sentence-transformers folder with cls pooling, prompts, length 77, no normalisation."""
    target = tmp_path / "st"
    shutil.copytree(tiny_bert, target)
    EmbeddingConfig("cls", False, "query: ", "passage: ", 77, 77).write(target, 64)
    return target


def test_configuration_is_read_as_it_was_written(folder: Path) -> None:
    assert read_embedding_config(str(folder)) == EmbeddingConfig("cls", False, "query: ", "passage: ", 77, 77)


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ({"pooling_mode_max_tokens": True}, "max_tokens"),
        ({"pooling_mode": "weightedmean"}, "weightedmean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls_token, mean_tokens"),
        ({"pooling_mode": "mean", "include_prompt": False}, "mean"),
    ],
)
def test_pooling_that_would_be_computed_wrongly_is_refused(folder: Path, pooling: dict, message: str) -> None:
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(UserError, match=message):
        describe_base(str(folder))


@pytest.mark.parametrize("mode", ["lasttoken", "mean", "cls"])
def test_newer_pooling_file_of_sentence_transformers_is_read(folder: Path, mode: str) -> None:
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode, "include_prompt": True}))
    embedding_config = describe_base(str(folder)).embedding_config
    assert embedding_config and embedding_config.pooling == mode.replace("lasttoken", "last_token")
