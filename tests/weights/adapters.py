"""A small adapter as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

LAYER = "base_model.model.layers.0.q_proj"
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def factors(layer: str = LAYER, inputs: int = 3, outputs: int = 5, rank: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((rank, inputs), (outputs, rank)))
    return {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
