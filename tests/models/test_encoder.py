"""Vectors do not depend on the company they keep, and equal those of sentence-transformers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from embedrag.data.token_batch import TokenBatch
from embedrag.errors import UserError
from embedrag.models.chunking import plan_packed, plan_padded
from embedrag.models.encoder import Encoder
from embedrag.models.load import load_model
from embedrag.models.pooling import POOLING
from tests.families import TEXTS
from tests.reference import cosine_distance


def computed(encoder: Encoder, tokens: TokenBatch) -> int:
    """Tokens that a pass computes, padding included."""
    order, chunks = encoder.plan(tokens)
    lengths = tokens.lengths[order].tolist()
    return sum(encoder.area(lengths, *chunk) for chunk in chunks)


def pad(encoder: Encoder) -> None:
    """Undo `pack`."""
    encoder.packed = False
    encoder.backbone.set_attn_implementation("sdpa")


@pytest.mark.parametrize("model", ["tiny_qwen3", "tiny_bert", "minilm"])
def test_batch_gives_the_vectors_of_single_texts(model: str, request: pytest.FixtureRequest) -> None:
    encoder = load_model(request.getfixturevalue(model), "cpu")
    together = torch.from_numpy(encoder.encode(TEXTS, "passage"))
    alone = torch.from_numpy(np.concatenate([encoder.encode([text], "passage") for text in TEXTS]))
    assert cosine_distance(together, alone) < 1e-6


@pytest.mark.parametrize("model", ["tiny_qwen3", "tiny_bert"])
@pytest.mark.parametrize("pooling", sorted(POOLING))
def test_packed_and_padded_texts_pool_to_the_same_vectors(
    model: str, pooling: str, request: pytest.FixtureRequest
) -> None:
    encoder = load_model(request.getfixturevalue(model), "cpu")
    encoder.embedding_config = replace(encoder.embedding_config, pooling=pooling)
    assert encoder.packed and encoder.first_position == 0
    packed = torch.from_numpy(encoder.encode(TEXTS, "passage"))
    pad(encoder)
    assert cosine_distance(torch.from_numpy(encoder.encode(TEXTS, "passage")), packed) < 1e-6


def test_role_that_there_is_not_is_refused_with_the_known_ones(tiny_bert: str) -> None:
    with pytest.raises(UserError, match="`role=document`: must be one of query, passage"):
        load_model(tiny_bert, device="cpu").encode(["text"], role="document")


def test_vectors_equal_sentence_transformers_on_its_own_folder(minilm: str) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(minilm, device="cpu").encode(TEXTS)
    ours = load_model(minilm, "cpu").encode(TEXTS, "query")
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("packed", [True, False])
def test_chunks_change_neither_vectors_nor_their_order(tiny_bert: str, packed: bool) -> None:
    encoder = load_model(tiny_bert, "cpu")
    if not packed:
        pad(encoder)
    whole = encoder.encode(TEXTS, "passage")
    encoder.chunk_tokens = 1
    np.testing.assert_allclose(encoder.encode(TEXTS, "passage"), whole, atol=1e-6)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3


def test_padded_plan_covers_every_text_once_within_budget_and_waste() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        lengths = sorted(generator.integers(1, 400, generator.integers(1, 60)).tolist(), reverse=True)
        chunks = plan_padded(lengths, chunk_tokens=2000, max_waste=0.1)
        assert [i for a, b in chunks for i in range(a, b)] == list(range(len(lengths)))
        for a, b in chunks:
            area = lengths[a] * (b - a)
            assert area <= 2000
            assert 1 - sum(lengths[a:b]) / area <= 0.1 or area - lengths[a] <= 2 * 256


def test_packed_plan_covers_every_text_once_within_budget() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        lengths = generator.integers(1, 3000, generator.integers(1, 60)).tolist()
        chunks = plan_packed(lengths, chunk_tokens=2000)
        assert [i for a, b in chunks for i in range(a, b)] == list(range(len(lengths)))
        assert all(sum(lengths[a:b]) <= 2000 or b - a == 1 for a, b in chunks)
    assert plan_packed([], 10) == []


@pytest.mark.parametrize("length", [40, 400])
def test_share_of_useful_tokens_reaches_the_goals(tiny_bert: str, length: int) -> None:
    encoder = load_model(tiny_bert, "cpu")
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(length), 0.7, 200).astype(int), 4, 512)
    tokens = TokenBatch.from_lists([[7] * n for n in lengths])
    assert computed(encoder, tokens) == lengths.sum()
    pad(encoder)
    assert lengths.sum() / computed(encoder, tokens) > 0.85


def test_decoder_ends_every_text_in_its_end_token_after_truncation_too(tiny_qwen3: str) -> None:
    encoder = load_model(tiny_qwen3, "cpu")
    eos = encoder.tokenizer.tokenizer.eos_token_id
    for ids in encoder.tokenizer("query", ["short", "long " * 900]):
        assert ids[-1] == eos
        assert ids.count(eos) == 1
        assert len(ids) <= encoder.embedding_config.query_max_len


def test_tokenizer_that_ends_texts_itself_gets_no_second_end_token(tiny_qwen3: str, tmp_path: object) -> None:
    encoder = load_model(tiny_qwen3, "cpu")
    encoder.tokenizer.tokenizer.save_pretrained(tmp_path)
    encoder.backbone.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), "cpu")
    assert again.tokenizer("query", ["a b"]) == encoder.tokenizer("query", ["a b"])
