"""Quantised weights are read as what bitsandbytes makes of them, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
from safetensors.torch import load_file, save_file

from embedrag.errors import UserError
from embedrag.weights.quantized_files import DequantizedFile, dequantized, quantization_of
from embedrag.weights.safetensors_io import weight_files
from tests.quantised import save_quantised

SETTINGS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 double": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "int8": {"load_in_8bit": True},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_weights_are_those_of_bitsandbytes(kind: str, tiny_qwen3: str, tmp_path: Path) -> None:
    """In shards so small that a weight and its scales lie in different files."""
    folder = save_quantised(tiny_qwen3, tmp_path, shards="9KB", **SETTINGS[kind])
    files = dequantized(weight_files(tmp_path))
    assert len(files) > 3
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"})
    layers, quantised = dict(model.named_modules()), 0
    for file in files:
        for name in file.names():
            layer = layers[name.removesuffix(".weight")]
            held = expected = layer.weight.data
            if getattr(layer.weight, "quant_state", None) is not None:
                expected = dequantize_4bit(held, layer.weight.quant_state)
            elif held.dtype == torch.int8:
                expected = int8_vectorwise_dequant(held, layer.weight.SCB)
            quantised += expected is not held
            assert (file.shape(name), file.dtype(name).is_floating_point) == (tuple(expected.shape), True)
            assert torch.equal(file.rows(name).float(), expected.float())
            assert torch.equal(file.rows(name, 1, 3).float(), expected[1:3].float())
    assert quantised == 14


def test_plain_files_stay_as_they_are(tiny_qwen3: str) -> None:
    files = weight_files(Path(tiny_qwen3))
    assert dequantized(files) == files


def test_damaged_weight_is_named(tiny_qwen3: str, tmp_path: Path) -> None:
    file = Path(save_quantised(tiny_qwen3, tmp_path)) / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "quant_state" in name)
    for damage in ({name: torch.zeros(4, dtype=torch.uint8)}, {name.partition(".quant_state")[0] + ".absmax": None}):
        save_file({key: value for key, value in (weights | damage).items() if value is not None}, file)
        with pytest.raises(UserError, match=r"the quantised weight .* is damaged .*; download the model again"):
            for part in dequantized(weight_files(tmp_path)):
                assert isinstance(part, DequantizedFile)
                for weight in part.names():
                    part.rows(weight)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors", "mxfp4", "torchao", "hqq", "new"])
@pytest.mark.parametrize("place", ["quantization_config", "compression_config"])
def test_base_that_another_program_quantised_is_refused_by_name(method: str, place: str) -> None:
    config = transformers.Qwen3Config(**{place: {"quant_method": method, "bits": 4}})
    with pytest.raises(UserError, match=rf"quantised already \({method}\).*name the model that it was made from"):
        quantization_of(config)


def test_base_of_bitsandbytes_and_plain_bases_are_told_apart() -> None:
    assert quantization_of(transformers.Qwen3Config()) is None
    assert quantization_of(transformers.Qwen3Config(quantization_config={"load_in_4bit": True})) == {
        "load_in_4bit": True
    }
    settings = transformers.BitsAndBytesConfig(load_in_8bit=True)
    assert quantization_of(transformers.Qwen3Config(quantization_config=settings))["load_in_8bit"] is True
