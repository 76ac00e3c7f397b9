"""The quantised base of a QLoRA adapter (arXiv 2305.14314): how it is loaded, and what its weights are afterwards.

An adapter is trained on weights that were quantised. A merge must add it to the values of these weights (quantised,
then dequantised), because the original weights give another model (MiniLM at 4 bits: mean cosine 0.947 to the trained
one). So training_config.json records how the base was quantised. The files of some bases are quantised already
(`…-bnb-4bit`): their adapters are trained on these weights, and merged onto them.

Dimensions: o outputs of a layer, i inputs.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from embedrag.errors import UserError
from embedrag.models.base_model import Base, empty_model
from embedrag.weights.name_matching import match_names
from embedrag.weights.quantized_files import quantization_of, quantized_names
from embedrag.weights.safetensors_io import weight_files


@dataclass(frozen=True)
class QuantizationConfig:
    """How a base is quantised.

    Attributes:
        bits: of a weight, a key of `QUANTIZERS`.
        double: whether the scales of 4-bit weights are quantised too.
        compute_dtype: type of the products with 4-bit weights.
        storage_dtype: type of the weights when they were quantised, and of those that are not quantised.
        skipped_layers: linear layers that are not quantised, by their path in the backbone.
        given: whether the base's files are quantised already; nothing can be quantised again then.
        quant_type: number format; empty: the one that `QUANTIZERS` has for these bits.
    """

    bits: int = 4
    double: bool = False
    compute_dtype: torch.dtype = torch.bfloat16
    storage_dtype: torch.dtype = torch.float32
    skipped_layers: tuple[str, ...] = ()
    given: bool = False
    quant_type: str = ""

    @classmethod
    def of(cls, backbone: nn.Module) -> QuantizationConfig | None:
        """How a loaded backbone is quantised; None when bitsandbytes did not quantise it."""
        from transformers import BitsAndBytesConfig

        settings = getattr(backbone.config, "quantization_config", None)
        if not isinstance(settings, BitsAndBytesConfig):
            return None
        return cls(
            bits=4 if settings.load_in_4bit else 8,
            double=settings.bnb_4bit_use_double_quant,
            compute_dtype=settings.bnb_4bit_compute_dtype,
            storage_dtype=backbone.config.dtype,  # type: ignore[arg-type]
            skipped_layers=tuple(_plain_linears(backbone)),
            given=bool(getattr(getattr(backbone, "hf_quantizer", None), "pre_quantized", False)),
            quant_type=_own_type(settings.to_dict()),
        )

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> QuantizationConfig:
        """From the block `quantization` of a training_config.json."""
        return cls(
            bits=int(record["bits"]),
            double=bool(record.get("double_quantization")),
            compute_dtype=getattr(torch, record.get("compute_dtype", "bfloat16")),
            storage_dtype=getattr(torch, record.get("storage_dtype", "float32")),
            skipped_layers=tuple(record.get("skipped_layers", ())),
            given=bool(record.get("given_by_base")),
            quant_type="fp4" if record.get("quant_type") == "fp4" else "",
        )

    def record(self) -> dict[str, Any]:
        """The block `quantization` of training_config.json.

        >>> QuantizationConfig.from_record(QuantizationConfig(8).record())
        QuantizationConfig(bits=8, double=False, compute_dtype=torch.bfloat16, storage_dtype=torch.float32, \
skipped_layers=(), given=False, quant_type='')
        """
        return {
            "bits": self.bits,
            "quant_type": self.quant_type or QUANTIZERS[self.bits].name,
            "double_quantization": self.double,
            "compute_dtype": str(self.compute_dtype).removeprefix("torch."),
            "storage_dtype": str(self.storage_dtype).removeprefix("torch."),
            "skipped_layers": list(self.skipped_layers),
            **({"given_by_base": True} if self.given else {}),
        }

    def __str__(self) -> str:
        """In words.

        >>> str(QuantizationConfig(4, double=True))
        '4 bits, nf4, scales quantised too'
        """
        name = self.quant_type or QUANTIZERS[self.bits].name
        return f"{self.bits} bits, {name}" + (", scales quantised too" if self.double else "")

    def bitsandbytes(self) -> Any:
        """The same as transformers' BitsAndBytesConfig."""
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            **QUANTIZERS[self.bits].settings,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=self.compute_dtype,
        )

    def dequantized(self, weight: Tensor) -> Tensor:
        """The values of a weight after it was quantised and dequantised: [o, i] -> [o, i] float32."""
        return QUANTIZERS[self.bits].dequantized(weight, self)


def _through_nf4(weight: Tensor, config: QuantizationConfig) -> Tensor:
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        weight.to(config.storage_dtype).contiguous(), quant_type="nf4", compress_statistics=config.double
    )
    return functional.dequantize_4bit(packed, state).float()


def _through_int8(weight: Tensor, config: QuantizationConfig) -> Tensor:
    from bitsandbytes import functional

    codes, scales, _ = functional.int8_vectorwise_quant(weight.to(config.storage_dtype).to(torch.float16))
    return codes.float() * scales.float()[:, None] / 127  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Quantizer:
    """What bitsandbytes does for a number of bits.

    Attributes:
        name: of the number format, in training_config.json.
        settings: of transformers' BitsAndBytesConfig.
        dequantized: see `QuantizationConfig.dequantized`.
    """

    name: str
    settings: dict[str, Any]
    dequantized: Callable[[Tensor, QuantizationConfig], Tensor]


QUANTIZERS = {
    4: Quantizer("nf4", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, _through_nf4),
    8: Quantizer("int8", {"load_in_8bit": True}, _through_int8),  # LLM.int8 (arXiv 2208.07339)
}


@dataclass(frozen=True)
class QuantizedLayers:
    """The tensors of a base's files that were quantised in training.

    Attributes:
        names: of the tensors.
        transposed: those among them that the files store as [i, o] (GPT-2's layers).
        config: how they were quantised.
    """

    names: frozenset[str]
    transposed: frozenset[str]
    config: QuantizationConfig

    def seen(self, name: str, weight: Tensor) -> Tensor:
        """A weight as the adapter saw it in training, in the shape of the file, float32."""
        if name in self.transposed:
            return self.config.dequantized(weight.T).T
        return self.config.dequantized(weight)


def quantized_layers(
    base: Base, config: QuantizationConfig, tensors: Sequence[str], trust_remote_code: bool = False
) -> QuantizedLayers:
    """Find the quantised layers of a base without loading it.

    Args:
        base: the base model.
        config: how it was quantised.
        tensors: names in the base's files.
        trust_remote_code: run Python code that comes with the base.

    Raises:
        UserError: when a quantised layer has no tensor in the files.
    """
    layers = _linear_layers(base, trust_remote_code)
    wanted = {name: f"{name}.weight" for name in layers if name not in config.skipped_layers}
    found, missing = match_names(wanted, tensors)
    if missing:
        raise UserError(
            f"{base.name}: its files have no tensor for the quantised layers {', '.join(missing[:4])}; use "
            "`merge_onto=original`"
        )
    transposed = frozenset(tensor for name, tensor in found.items() if is_transposed(layers[name]))
    return QuantizedLayers(frozenset(found.values()), transposed, config)


def given_quantization(base: Base) -> QuantizationConfig | None:
    """How the weights in the files of a base are quantised already; None when they are not."""
    settings = quantization_of(base.config)
    if settings is None:
        return None
    bits = 4 if settings.get("load_in_4bit") or str(settings.get("quant_method")).endswith("4bit") else 8
    double = bits == 4 and bool(settings.get("bnb_4bit_use_double_quant"))
    return QuantizationConfig(bits, double, given=True, quant_type=_own_type(settings) if bits == 4 else "")


def settle_quantization(
    base: Base, full: bool, asked: QuantizationConfig | None, argument: str = "model_name_or_path"
) -> QuantizationConfig | None:
    """How the base of a training is quantised: as its files are, otherwise as it was asked for.

    Args:
        base: from `describe_base`.
        full: all weights are trained.
        asked: the quantisation that the caller wants; None: none.
        argument: what the caller calls the base, for messages.

    Raises:
        UserError: quantised weights can't be trained whole, or bitsandbytes is missing.
    """
    given = given_quantization(base)
    if given and full:
        reason = f"its weights are quantised already ({given}), and such weights can't be trained; use "
        raise UserError(reason + "`finetune_type=qlora`, or name the unquantised base", argument, base.name)
    if given or asked:
        check_bitsandbytes()
    return given or asked


def settings_of_given(
    base: Base, compute_dtype: torch.dtype, trust_remote_code: bool = False, argument: str = "model_name_or_path"
) -> dict[str, Any]:
    """The `quantization_config` with which transformers loads a base that is quantised already.

    The files say which layers are quantised. The list in config.json may spell them with the prefix of another class
    (`model.layers…`); transformers then quantises plain layers while it loads, and the model is another one.

    Args:
        base: from `describe_base`.
        compute_dtype: type of the products with 4-bit weights.
        trust_remote_code: run Python code that comes with the base.
        argument: what the caller calls the base, for messages.

    Raises:
        UserError: its files hold no quantised weights, or quantised weights that are stored transposed.
    """
    settings = quantization_of(base.config) or {}
    tensors = [name for file in weight_files(base.folder()) for name in file.names()]
    quantized = quantized_names(tensors)
    layers = _linear_layers(base, trust_remote_code)
    found, _ = match_names({name: f"{name}.weight" for name in layers}, tensors)
    plain = sorted(name for name, tensor in found.items() if tensor not in quantized)
    if not quantized:
        reason = "config.json has a quantization_config, but its files hold plain weights; remove it from config.json"
        raise UserError(reason, argument, base.name)
    if any(is_transposed(layer) for layer in layers.values()):
        reason = f"a {base.config.model_type} model that is quantised already can't be read; name the unquantised base"
        raise UserError(reason, argument, base.name)
    compute = str(compute_dtype).removeprefix("torch.")
    # The list must not be empty: transformers would make one of its own.
    skipped = [*map(re.escape, plain), "lm_head"]
    return settings | {"llm_int8_skip_modules": skipped, "bnb_4bit_compute_dtype": compute}


def is_linear(module: nn.Module) -> bool:
    """Whether a layer is linear: y = W x + b."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer stores its weight as [i, o]; GPT-2's do."""
    return type(module).__name__ == "Conv1D"


def _linear_layers(base: Base, trust_remote_code: bool) -> dict[str, nn.Module]:
    """Path -> linear layer of a base, without weights."""
    with torch.device("meta"):
        model = empty_model(base.config, trust_remote_code)
    return {name: module for name, module in model.named_modules() if is_linear(module)}


def _own_type(settings: dict[str, Any]) -> str:
    """The number format of 4-bit weights, when it is not the one that we choose."""
    four = settings.get("load_in_4bit") or str(settings.get("quant_method")).endswith("4bit")
    return "fp4" if four and settings.get("bnb_4bit_quant_type", "fp4") == "fp4" else ""


def check_bitsandbytes() -> None:
    """Raise UserError when bitsandbytes is missing, which QLoRA needs."""
    if importlib.util.find_spec("bitsandbytes") is None:
        reason = "needs bitsandbytes: pip install bitsandbytes (or choose `finetune_type=lora` or `finetune_type=full`)"
        raise UserError(reason, "finetune_type", "qlora")


def stored_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type in memory of frozen weights: the type of the computation, but float32 instead of float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of the products with 4-bit weights: the type of the computation, but bfloat16 instead of float32."""
    return torch.bfloat16 if dtype == torch.float32 else dtype


def _plain_linears(backbone: nn.Module) -> list[str]:
    """Linear layers of a quantised backbone that were not quantised, by their path in the backbone."""
    inner: nn.Module = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone  # type: ignore[operator]
    plain = [
        name
        for name, module in inner.named_modules()
        if (type(module) is nn.Linear or is_transposed(module)) and "lora_" not in name
    ]
    return [name.removesuffix(".base_layer") for name in plain]
