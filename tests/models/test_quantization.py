"""A quantised base is loaded, described and dequantised in the same way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from embedrag.models.backbone import trainable_backbone
from embedrag.models.base_model import describe_base
from embedrag.models.lora import LoraSettings
from embedrag.models.quantization import QUANTIZERS, QuantizationConfig, quantized_layers
from embedrag.weights.safetensors_io import weight_files


def held(layer: torch.nn.Module) -> torch.Tensor:
    """The weight of a quantised layer in float32: [o, i]."""
    from bitsandbytes.functional import dequantize_4bit

    if hasattr(layer.weight, "quant_state"):
        return dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    return layer.weight.CB.float() * layer.weight.SCB[:, None] / 127


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", sorted(QUANTIZERS))
@pytest.mark.parametrize("double", [False, True])
def test_dequantised_weights_are_those_of_the_loaded_layers(
    bits: int, double: bool, dtype: torch.dtype, tiny_bert: str
) -> None:
    base = describe_base(tiny_bert)
    asked = QuantizationConfig(bits, double)
    backbone = trainable_backbone(base, dtype, torch.device("cpu"), LoraSettings(), asked)
    config = QuantizationConfig.of(backbone)
    assert config == QuantizationConfig(bits, double, torch.bfloat16, dtype)
    assert QuantizationConfig.from_record(config.record()) == config
    file = weight_files(base.folder())[0]
    found = quantized_layers(base, config, file.names())
    layers = dict(backbone.get_base_model().named_modules())
    assert len(found.names) == 12  # 6 linear layers in each of 2 blocks
    for name in found.names:
        layer = layers[name.removesuffix(".weight")].base_layer
        assert torch.equal(found.seen(name, file.rows(name)), held(layer))
        single = QuantizationConfig(bits, not double, torch.bfloat16, dtype).dequantized(file.rows(name))
        assert torch.equal(single, held(layer)) == (bits == 8)  # double quantisation gives other weights
    path = "encoder.layer.0.attention.self.query"
    skipping = quantized_layers(base, replace(config, skipped_layers=(path,)), file.names())
    assert found.names - skipping.names == {f"{path}.weight"}


def test_record_tells_how_the_weights_were_stored_whatever_computes_later(tiny_bert: str) -> None:
    """On a CPU that is faster with bfloat16 the precision of the computation changes after the base was loaded."""
    from types import SimpleNamespace

    from embedrag.training.config.options import TrainOptions
    from embedrag.training.state.run_record import record_of

    quantization = QuantizationConfig()
    backbone = trainable_backbone(
        describe_base(tiny_bert), torch.float32, torch.device("cpu"), LoraSettings(), quantization
    )
    encoder = SimpleNamespace(backbone=backbone, dtype=torch.bfloat16, device=torch.device("cpu"))
    options = TrainOptions(output_dir="x", batch_size=2, finetune_type="qlora")
    assert record_of({}, options, encoder, {}, []).settings["quantization"]["storage_dtype"] == "float32"


def test_model_that_is_not_quantised_has_no_record(tiny_bert: str) -> None:
    backbone = trainable_backbone(describe_base(tiny_bert), torch.float32, torch.device("cpu"), LoraSettings())
    assert QuantizationConfig.of(backbone) is None
