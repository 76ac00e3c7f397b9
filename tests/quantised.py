"""Bases that are quantised already, as people publish them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers


def save_quantised(base: str, folder: Path, loader: Any = None, shards: str = "5GB", **settings: Any) -> str:
    """Quantise a base with bitsandbytes through transformers, and save it as `...-bnb-4bit` folders are saved."""
    loader = loader or transformers.AutoModelForCausalLM
    settings = settings or {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    model = loader.from_pretrained(
        base,
        quantization_config=transformers.BitsAndBytesConfig(**settings),
        device_map={"": "cpu"},
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder, max_shard_size=shards)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)
