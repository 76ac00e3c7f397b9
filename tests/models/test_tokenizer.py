"""Texts become the same ids everywhere: with prompt, end token and length."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import transformers

from embedrag.errors import UserError
from embedrag.models.base_model import describe_base
from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.models.tokenizer import load_tokenizer


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
    with pytest.raises(UserError, match=r"^`tokenizer_id=.*the model has vectors for"):
        load_tokenizer(base, EmbeddingConfig("mean"), tokenizer_id=minilm)
