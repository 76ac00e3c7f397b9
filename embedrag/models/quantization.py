"""The weights that a QLoRA adapter saw in training: quantised, then dequantised, layer by layer.

Merging onto the original weights instead gives another model (MiniLM at 4 bits: mean cosine 0.947 to the trained one).
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from embedrag.errors import UserError
from embedrag.models.base_model import Base, takes_pooling_argument
from embedrag.weights.name_matching import match_names


@dataclass(frozen=True)
class QuantizedLayers:
    """Which tensors of the base were quantised in training, and how.

    Attributes:
        names: tensor names.
        bits: 4 (nf4) or 8 (int8).
        double: the 4-bit scales were quantised once more.
        storage: type that the weights had when they were quantised.
    """

    names: frozenset[str]
    bits: int
    double: bool
    storage: torch.dtype

    def seen(self, weight: Tensor) -> Tensor:
        """A weight as the adapter saw it: [o, i] -> [o, i] float32."""
        from bitsandbytes import functional

        if self.bits == 8:
            codes, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
            restored: Tensor = codes.float() * scales.float()[:, None] / 127
            return restored
        packed, state = functional.quantize_4bit(
            weight.to(self.storage).contiguous(), quant_type="nf4", compress_statistics=self.double
        )
        result: Tensor = functional.dequantize_4bit(packed, state)
        return result.float()


def quantized_layers(base: Base, quantization: dict[str, Any], tensors: list[str]) -> QuantizedLayers:
    """Find the quantised layers of a base without loading it.

    Args:
        base: the base model.
        quantization: block of that name in training_config.json.
        tensors: names in the base's files.

    Raises:
        UserError: when a quantised layer has no tensor in the files.
    """
    from transformers import AutoModel

    settings = {"add_pooling_layer": False} if takes_pooling_argument(base.config) else {}
    with torch.device("meta"):
        model = AutoModel.from_config(base.config, **settings)
    skipped = set(quantization.get("skipped_layers", []))
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in skipped]
    found, missing = match_names({name: f"{name}.weight" for name in linear}, tensors)
    if missing:
        raise UserError(
            f"{base.name}: no tensor for the quantised layers {json.dumps(missing[:4])}; merge onto original"
        )
    return QuantizedLayers(
        names=frozenset(found.values()),
        bits=int(quantization["bits"]),
        double=bool(quantization.get("double_quantization")),
        storage=getattr(torch, quantization.get("storage_dtype", "float32")),
    )


def check_bitsandbytes() -> None:
    """Raise UserError when QLoRA is asked for and its library is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--finetune_type qlora needs bitsandbytes: pip install bitsandbytes (or choose lora or full)")


def quantization_config(bits: int, double: bool, dtype: torch.dtype) -> Any:
    """The bitsandbytes settings of a QLoRA base (arXiv 2305.14314): nf4, or LLM.int8 (arXiv 2208.07339)."""
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
    )


def stored_dtype(finetune_type: str, dtype: torch.dtype) -> torch.dtype:
    """Type of the weights in memory: float32 where they are trained or float16 computes, else the computation's."""
    return torch.float32 if finetune_type == "full" or dtype == torch.float16 else dtype


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of the products with 4-bit weights: the computation's, or bfloat16 where that is float32."""
    return torch.bfloat16 if dtype == torch.float32 else dtype


def unquantized_layers(model: nn.Module) -> list[str]:
    """Linear layers of a quantised backbone that stayed as they were, by their path in the backbone."""
    inner: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    plain = [name for name, module in inner.named_modules() if type(module) is nn.Linear and "lora_" not in name]
    return [name.removesuffix(".base_layer") for name in plain]
