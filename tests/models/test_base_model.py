"""What a base says of itself is kept, unless the caller asks for something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import embedrag
from embedrag.errors import UserError
from embedrag.export.export import export
from embedrag.models.base_model import check_local_path, describe_base, position_limit, resolve_embedding_config
from embedrag.models.embedding_config import EmbeddingConfig
from tests.families import FAMILIES

DECODERS = {"qwen2", "qwen3", "llama", "mistral", "gemma"}


@pytest.fixture
def folder(tiny_bert: str, tmp_path: Path) -> Path:
    """A sentence-transformers folder with cls pooling, prompts, length 77, no normalisation."""
    target = tmp_path / "st"
    shutil.copytree(tiny_bert, target)
    EmbeddingConfig("cls", False, "query: ", "passage: ", 77, 77).write(target, 64)
    return target


def test_folder_of_sentence_transformers_is_honoured(folder: Path) -> None:
    embedding_config, notices = resolve_embedding_config(describe_base(str(folder)))
    assert embedding_config == EmbeddingConfig("cls", False, "query: ", "passage: ", 77, 77)
    assert notices == []


def test_arguments_win_over_the_folder(folder: Path) -> None:
    embedding_config, _ = resolve_embedding_config(
        describe_base(str(folder)), pooling="mean", query_prompt="", passage_prompt="text: ", passage_max_len=100
    )
    assert embedding_config == EmbeddingConfig("mean", False, "", "text: ", 77, 100)


def test_lengths_of_a_folder_are_used_up_to_the_default(folder: Path) -> None:
    EmbeddingConfig("cls", query_max_len=700, passage_max_len=700).write(folder, 64)
    embedding_config, notices = resolve_embedding_config(describe_base(str(folder)))
    assert (embedding_config.query_max_len, embedding_config.passage_max_len) == (256, 512)  # 512 positions
    assert notices == []  # nobody asked for a length


def test_default_pooling_follows_the_family(tiny_bert: str, tiny_qwen3: str) -> None:
    assert resolve_embedding_config(describe_base(tiny_bert))[0] == EmbeddingConfig("mean", passage_max_len=512)
    assert describe_base(tiny_qwen3).embedding_config == EmbeddingConfig("last_token")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_decoders_are_distinguished_from_encoders(family: str, tmp_path: Path) -> None:
    FAMILIES[family].save_pretrained(tmp_path)
    assert describe_base(str(tmp_path)).is_decoder == (family in DECODERS)


def test_length_beyond_the_positions_is_cut_with_a_notice(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.XLMRobertaConfig(**sizes, vocab_size=99, max_position_embeddings=514, pad_token_id=1)
    config.save_pretrained(tmp_path)
    embedding_config, notices = resolve_embedding_config(describe_base(str(tmp_path)), passage_max_len=1000)
    assert embedding_config.passage_max_len == 512  # XLM-R counts positions from the padding index on
    assert notices == ["`passage_max_len=1000` is lowered to 512: the base model has no positions beyond that"]


@pytest.mark.parametrize("kind", ["Camembert", "Roberta", "RobertaPreLayerNorm", "MPNet", "Luke", "IBert", "Bert"])
def test_longest_text_of_a_family_fits_and_a_longer_one_does_not(kind: str) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    sizes |= {"entity_emb_size": 8} if kind == "Luke" else {}
    config = getattr(transformers, f"{kind}Config")(**sizes, vocab_size=9, max_position_embeddings=20, pad_token_id=1)
    model = getattr(transformers, f"{kind}Model")(config)
    longest = position_limit(config)
    model(input_ids=torch.full((1, longest), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, longest + 1), 5))


def test_error_of_a_path_names_the_argument_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^`base_model_path=\./none`: no such folder"):
        check_local_path("./none", "base_model_path")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"^`baseline=/.*`: no model can be read there"):
        describe_base(str(tmp_path), argument="baseline")


def test_model_with_code_of_its_own_names_the_argument_that_trusts_it(tmp_path: Path) -> None:
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "own.py").write_text(
        "from transformers import BertConfig\n\n\nclass OwnConfig(BertConfig):\n    model_type = 'own'\n"
    )
    with pytest.raises(UserError, match=r"code of its own.*add `trust_remote_code`"):
        describe_base(str(tmp_path))
    assert describe_base(str(tmp_path), trust_remote_code=True).config.model_type == "own"


def test_folder_with_an_unknown_kind_of_configuration_is_not_reported_as_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(UserError, match="no model can be read there") as error:
        describe_base(str(tmp_path))
    assert "no such folder" not in str(error.value) and "trust" not in str(error.value).split("(")[0]


def test_encoder_decoder_is_refused_unless_its_encoder_is_a_model(tmp_path: Path) -> None:
    transformers.BartConfig(vocab_size=99, d_model=32, encoder_layers=1).save_pretrained(tmp_path / "bart")
    with pytest.raises(UserError, match=r"config.json: model_type is bart, an encoder with a decoder"):
        describe_base(str(tmp_path / "bart"))
    transformers.T5Config(vocab_size=99, d_model=32, num_layers=1).save_pretrained(tmp_path / "t5")
    assert not describe_base(str(tmp_path / "t5")).is_decoder


@pytest.mark.parametrize("name", [None, 5, "", "  ", ["a"], True])
def test_what_is_no_name_of_a_model_is_told_by_argument(name: Any, tmp_path: Path) -> None:
    for call, argument in (
        (lambda: embedrag.load_model(name), "model"),
        (lambda: embedrag.build_model(name), "model_name_or_path"),
        (lambda: export(name, str(tmp_path / "out")), "model"),
    ):
        with pytest.raises(UserError, match="name a folder or a hub id") as error:
            call()
        assert error.value.argument == argument
