"""Scores of a cross-encoder are those of its model, and one that is not right is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from embedrag.errors import RunError, UserError
from embedrag.retrieval.cross_encoder import CrossEncoder

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def make(minilm: str, tmp_path: Path) -> Any:
    """A function that writes a small random cross-encoder and returns its folder, the model and its tokenizer."""

    def run(family: str = "Bert", **settings: Any) -> tuple[Path, Any, Any]:
        folder = tmp_path / "cross-encoder"
        tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
        torch.manual_seed(0)
        settings = SIZES | {"vocab_size": len(tokenizer), "num_labels": 1, "initializer_range": 0.5} | settings
        config = getattr(transformers, f"{family}Config")(**settings)
        model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder, model, tokenizer

    return run


def test_scores_are_those_of_single_pairs(make) -> None:
    folder, model, tokenizer = make()
    pairs = [("which fuse", text) for text in ("a fuse", "the red fuse of type 3 " * 9)]
    with torch.no_grad():
        expected = [model(**tokenizer(*pair, return_tensors="pt")).logits.sigmoid().item() for pair in pairs]
    assert CrossEncoder(str(folder), "cpu").scores(pairs) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", ["Camembert", "XLMRoberta"])
def test_long_pairs_are_cut_to_the_positions_of_a_family_that_counts_from_the_padding_index(family: str, make) -> None:
    """These models have two positions fewer than their configuration says."""
    folder, *_ = make(family, max_position_embeddings=40, type_vocab_size=2, pad_token_id=1)
    found = CrossEncoder(str(folder), "cpu").scores([("which fuse", "frog " * 60), ("which fuse", "frog " * 90)])
    assert np.isfinite(found).all() and found[0] == pytest.approx(found[1], abs=1e-6), "both are cut to the same"


def test_model_that_is_not_a_cross_encoder_is_named(make, tiny_bert: str) -> None:
    folder, *_ = make(num_labels=3)
    with pytest.raises(UserError, match="gives 3 scores for a pair"):
        CrossEncoder(str(folder), "cpu")
    with pytest.raises(UserError, match=r"`cross_encoder=.*tiny-bert\d*`: (gives 2 scores|its file has no)"):
        CrossEncoder(tiny_bert, "cpu")


def test_damaged_model_is_named(make) -> None:
    folder, model, _ = make()
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    model.save_pretrained(folder)
    with pytest.raises(RunError, match="gives scores that are NaN"):
        CrossEncoder(str(folder), "cpu").scores([("a", "b")])
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:99])
    with pytest.raises(UserError, match=f"`cross_encoder={folder}`: can't be loaded"):
        CrossEncoder(str(folder), "cpu")
