"""Bases that the tests of merging share."""

from __future__ import annotations

import pytest
import torch
import transformers

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


@pytest.fixture(scope="session")
def tiny_llama(tiny_qwen3: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tied-embedding Llama saved as a causal language model: its tensors are called model.layers…"""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_qwen3)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, vocab_size=512, num_key_value_heads=2, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_qwen3: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A GPT-2 saved as a causal language model; its layers are stored transposed (Conv1D)."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_qwen3)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=1
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
