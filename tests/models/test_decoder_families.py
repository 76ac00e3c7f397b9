"""Decoders of many families: encode, transformers and sentence-transformers give the same vectors of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import PretrainedConfig

from embedrag.models.load import load_model
from embedrag.models.save import save_model
from tests.tokenizers import fast

POSITIONS = 40
# Names that families have for the same sizes; each config takes those that it knows.
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "dff"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), POSITIONS),
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "rotary_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "sliding_window": 6,
}
LEARNT = ["gpt2", "gpt_bigcode", "gpt_neo", "biogpt", "opt", "openai-gpt", "ctrl"]
RELATIVE = ["bloom", "mpt", "falcon", "gptj", "codegen", "gpt_neox", "phi", "llama", "mistral", "gemma", "qwen2"]
# Together far more tokens than the model has positions; the longest is cut.
TEXTS = [
    "frog",
    "a frog sits by the pond",
    "a heron, 12 frogs " * 2,
    "pond " * 50,
    "",
    "y",
    *(f"{n} frogs" for n in range(9)),
]


def config_of(kind: str) -> PretrainedConfig:
    known = transformers.AutoConfig.for_model(kind)
    settings = {name: value for name, value in SIZES.items() if hasattr(known, name)}
    if kind == "gpt_neo":
        settings["attention_types"] = [[["global", "local"], 1]]
        settings["window_size"] = 6
    if kind == "falcon":
        settings["alibi"] = True
    return transformers.AutoConfig.for_model(kind, **settings)


@pytest.mark.parametrize(
    ("kind", "template"),
    [*((kind, "<s> $A") for kind in [*LEARNT, *RELATIVE]), ("gpt2", None), ("gpt_neo", None), ("llama", None)],
)
def test_vectors_are_those_of_sentence_transformers_in_a_batch_and_one_by_one(
    kind: str, template: str | None, tmp_path: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(0)
    transformers.AutoModel.from_config(config_of(kind)).save_pretrained(tmp_path / "base")
    fast(template, model_input_names=["input_ids", "token_type_ids", "attention_mask"])().save_pretrained(
        tmp_path / "base"
    )
    ours = load_model(tmp_path / "base", "cpu")
    longest = max(map(len, ours.tokenizer("passage", TEXTS)))
    assert longest > POSITIONS if kind == "bloom" else longest == POSITIONS
    save_model(ours, tmp_path / "saved")
    vectors = ours.encode(TEXTS, "passage")
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    together = saved.encode(TEXTS, batch_size=7)
    alone = np.stack([saved.encode(text) for text in TEXTS])
    one_by_one = np.concatenate([ours.encode([text], "passage") for text in TEXTS])
    assert len(np.unique(vectors.round(4), axis=0)) == len(TEXTS)
    for others in (together, alone, one_by_one, load_model(tmp_path / "saved", "cpu").encode(TEXTS, "passage")):
        np.testing.assert_allclose(others, vectors, atol=2e-5)
