"""What a base says about itself is kept, unless the user says otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import transformers

from embedrag.errors import UserError
from embedrag.models.base_model import describe_base, settle
from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.models.tokenizer import load_tokenizer
from embedrag.training.config.options import TrainOptions


def options(**changes: object) -> TrainOptions:
    return TrainOptions(output_dir="x", batch_size=2, **changes).resolved()


@pytest.fixture
def folder(tiny_bert: str, tmp_path: Path) -> Path:
    """A sentence-transformers folder with cls pooling, prompts, length 77, no normalisation."""
    target = tmp_path / "st"
    shutil.copytree(tiny_bert, target)
    EmbeddingConfig("cls", False, "query: ", "passage: ", 77, 77).write(target, 64)
    return target


def test_folder_of_sentence_transformers_is_honoured(folder: Path) -> None:
    embedding_config, notices = settle(describe_base(str(folder)), options())
    assert embedding_config == EmbeddingConfig("cls", False, "query: ", "passage: ", 77, 77)
    assert notices == []


def test_flags_win_over_the_folder(folder: Path) -> None:
    asked = options(pooling="mean", query_prompt="", passage_prompt="text: ", passage_max_len=100)
    embedding_config, _ = settle(describe_base(str(folder)), asked)
    assert embedding_config == EmbeddingConfig("mean", False, "", "text: ", 77, 100)


def test_max_seq_length_sets_both_sides(folder: Path) -> None:
    embedding_config, _ = settle(describe_base(str(folder)), options(max_seq_length=50))
    assert (embedding_config.query_max_len, embedding_config.passage_max_len) == (50, 50)


def test_default_pooling_follows_the_family(tiny_bert: str, tiny_qwen3: str) -> None:
    assert settle(describe_base(tiny_bert), options())[0].pooling == "mean"
    assert settle(describe_base(tiny_qwen3), options())[0].pooling == "last_token"


def test_length_beyond_the_positions_is_cut_with_a_notice(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.XLMRobertaConfig(**sizes, vocab_size=99, max_position_embeddings=514, pad_token_id=1)
    config.save_pretrained(tmp_path)
    embedding_config, notices = settle(describe_base(str(tmp_path)), options(passage_max_len=1000))
    assert embedding_config.passage_max_len == 512  # XLM-R counts positions from the padding index on
    assert "1000" in notices[0]


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


def test_weights_in_a_subfolder_are_found(tiny_bert: str, tmp_path: Path) -> None:
    target = tmp_path / "old"
    shutil.copytree(tiny_bert, target / "0_Transformer")
    EmbeddingConfig("mean").write(target, 64)
    modules = json.loads((target / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (target / "modules.json").write_text(json.dumps(modules))
    (target / "sentence_bert_config.json").rename(target / "0_Transformer" / "sentence_bert_config.json")
    from embedrag.models.load import load_model

    assert describe_base(str(target)).subfolder == "0_Transformer"
    assert load_model(str(target), "cpu").encode(["x"], "query").shape == (1, 64)


def test_prompt_is_tokenised_together_with_the_text(tiny_bert: str) -> None:
    base = describe_base(tiny_bert)
    embedding_config = EmbeddingConfig("mean", query_prompt="query: ", passage_prompt="")
    tokenizer = load_tokenizer(base, embedding_config)
    assert tokenizer("query", ["abc"]) == [tokenizer.tokenizer("query: abc")["input_ids"]]
    assert tokenizer("passage", ["abc"]) == [tokenizer.tokenizer("abc")["input_ids"]]


def test_key_changes_with_prompt_and_length_and_not_with_use(tiny_bert: str) -> None:
    base = describe_base(tiny_bert)
    tokenizer = load_tokenizer(base, EmbeddingConfig("mean"))
    before = tokenizer.key
    tokenizer("query", ["some text " * 50])
    assert tokenizer.key == before
    others = [
        EmbeddingConfig("mean", query_prompt="q"),
        EmbeddingConfig("mean", query_max_len=9),
        EmbeddingConfig("mean", passage_max_len=9),
    ]
    assert len({before, *(load_tokenizer(base, embedding_config).key for embedding_config in others)}) == 4


def test_decoder_whose_tokenizer_has_no_end_token_is_refused(tiny_qwen3: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_qwen3, tmp_path / "q")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "q")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "q")
    base = describe_base(str(tmp_path / "q"))
    with pytest.raises(UserError, match="no end token"):
        load_tokenizer(base, EmbeddingConfig("last_token"))
    assert load_tokenizer(base, EmbeddingConfig("mean"))("query", ["a"])


def test_tokenizer_with_more_tokens_than_the_model_is_refused(tiny_qwen3: str, minilm: str) -> None:
    base = describe_base(tiny_qwen3)
    with pytest.raises(UserError, match="the model has vectors for"):
        load_tokenizer(base, EmbeddingConfig("mean"), options(tokenizer_id=minilm))


def test_model_with_code_of_its_own_names_the_flag_that_trusts_it(tmp_path: Path) -> None:
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "own.py").write_text(
        "from transformers import BertConfig\n\n\nclass OwnConfig(BertConfig):\n    model_type = 'own'\n"
    )
    with pytest.raises(UserError, match=r"code of its own.*add --trust_remote_code"):
        describe_base(str(tmp_path))
    assert describe_base(str(tmp_path), trust_remote_code=True).config.model_type == "own"


def test_folder_whose_configuration_is_of_no_known_kind_is_not_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(UserError, match="no model can be read there") as error:
        describe_base(str(tmp_path))
    assert "no such folder" not in str(error.value) and "trust" not in str(error.value).split("(")[0]


def test_encoder_decoder_is_refused(tmp_path: Path) -> None:
    transformers.T5Config(vocab_size=99, d_model=32, num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="encoder-decoder"):
        describe_base(str(tmp_path))
