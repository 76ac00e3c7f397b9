"""The files of sentence-transformers are read and written as they are meant."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from embedrag.errors import UserError
from embedrag.models.base_model import describe_base, resolve_embedding_config
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
    ("file", "pooling"),
    [
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "weightedmean"}, "weighted_mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls+mean"),  # the order is fixed
        ({"pooling_mode": ["mean", "cls"]}, "mean+cls"),
        ({"word_embedding_dimension": 64}, "mean"),  # as sentence-transformers has it
    ],
)
def test_every_pooling_of_sentence_transformers_is_read_and_written(folder: Path, file: dict, pooling: str) -> None:
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(file))
    found = describe_base(str(folder)).embedding_config
    assert found.pooling == pooling
    found.write(folder, 64)
    assert describe_base(str(folder)).embedding_config.pooling == pooling


def test_unknown_pooling_is_refused_by_file_and_name(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "median"}))
    with pytest.raises(UserError, match=r"1_Pooling/config.json: the pooling median is not supported"):
        describe_base(str(folder))


@pytest.mark.parametrize("mode", ["lasttoken", "mean", "cls"])
def test_newer_pooling_file_of_sentence_transformers_is_read(folder: Path, mode: str) -> None:
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode, "include_prompt": True}))
    embedding_config = describe_base(str(folder)).embedding_config
    assert embedding_config and embedding_config.pooling == mode.replace("lasttoken", "last_token")


def test_what_is_kept_does_not_need_the_base_any_more_and_follows_no_link_out_of_it(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "generation_config.json").write_text('{"do_sample": true}')
    found = describe_base(str(folder)).embedding_config
    shutil.rmtree(folder)
    (tmp_path / "saved").mkdir()
    found.write(tmp_path / "saved", 64)
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text()) == {"do_sample": True}
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "saved" / "generation_config.json").unlink()
    (tmp_path / "saved" / "generation_config.json").symlink_to(tmp_path / "secret.json")
    assert read_embedding_config(str(tmp_path / "saved")).kept.files == {}


def test_changed_prompt_is_written_under_the_name_that_it_was_read_from(folder: Path) -> None:
    settings = {
        "prompts": {"retrieval.query": "Q: ", "retrieval.passage": "P: ", "STS": "S: "},
        "similarity_fn_name": "dot",
        "default_prompt_name": "STS",
        "__version__": {"transformers": "4.30.0"},
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    base = describe_base(str(folder))
    config, _ = resolve_embedding_config(base, query_prompt="find: ")
    assert config.shown_prompts() == "'find: ' (retrieval.query) and 'P: ' (retrieval.passage) (not used: STS)"
    config.write(folder, 64)
    written = json.loads((folder / "config_sentence_transformers.json").read_text())
    prompts = {
        "retrieval.query": "find: ",
        "retrieval.passage": "P: ",
        "STS": "S: ",
        "query": "find: ",
        "document": "P: ",
    }
    assert written == settings | {"prompts": prompts}


@pytest.mark.parametrize("family", ["roberta", "distilbert", "xlm-roberta"])
def test_length_in_a_file_of_an_early_version_is_read(folder: Path, family: str) -> None:
    (folder / "sentence_bert_config.json").rename(folder / f"sentence_{family}_config.json")
    assert describe_base(str(folder)).embedding_config.query_max_len == 77
