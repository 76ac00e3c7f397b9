"""The smallest config of each model family, for random models, and texts of uneven lengths and scripts."""

from __future__ import annotations

import transformers
from transformers import PretrainedConfig

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99}
DECODER = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
MODERN = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
FAMILIES: dict[str, PretrainedConfig] = {
    "bert": transformers.BertConfig(**SIZES),
    "xlm_roberta": transformers.XLMRobertaConfig(**SIZES, pad_token_id=1, max_position_embeddings=66),
    "modernbert": transformers.ModernBertConfig(**SIZES, **MODERN),
    "qwen2": transformers.Qwen2Config(**{k: v for k, v in DECODER.items() if k != "head_dim"}),
    "qwen3": transformers.Qwen3Config(**DECODER),
    "llama": transformers.LlamaConfig(**DECODER),
    "mistral": transformers.MistralConfig(**DECODER),
    "gemma": transformers.GemmaConfig(**DECODER),
}
# With windows that are shorter than the texts of the tests.
WINDOWED: dict[str, PretrainedConfig] = {
    "modernbert_local": transformers.ModernBertConfig(
        **SIZES, **MODERN, local_attention=8, global_attn_every_n_layers=2
    ),
    "mistral_sliding": transformers.MistralConfig(**DECODER, sliding_window=5),
    "gemma3_sliding": transformers.Gemma3TextConfig(**DECODER, sliding_window=5),
    "gemma3_embedding": transformers.Gemma3TextConfig(**DECODER, sliding_window=5, use_bidirectional_attention=True),
}
TEXTS = [
    "short",
    "a text of some more words than the first",
    "retrieval " * 60,
    "나는 학교에 간다",
    "中文文本 " * 9,
    "x",
]
