"""Adapters on disk: every layout that people have is read, and what can't be merged exactly is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from embedrag.errors import UserError
from embedrag.weights.adapter_file import read_adapter, targets

LAYER = "base_model.model.layers.0.q_proj"
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}


def factors(layer: str = LAYER, inputs: int = 3, outputs: int = 5, rank: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((rank, inputs), (outputs, rank)))
    return {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """A function that writes an adapter folder."""

    def run(tensors: dict[str, Tensor], config: dict[str, Any] | None = PLAIN) -> str:
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        if config is not None:
            (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return run


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.layers.0.q_proj.lora_{}.weight",
        "model.base_model.model.layers.0.q_proj.lora_{}.weight",
        "base_model.model.layers.0.q_proj.lora_{}.default.weight",
    ],
)
def test_keys_of_every_layout_name_the_same_layer(key: str, write) -> None:
    ours = factors()
    path = write({key.format(side): ours[f"{LAYER}.lora_{side}.weight"] for side in "AB"})
    change = read_adapter(path).changes["layers.0.q_proj"]
    expected = 2 * ours[f"{LAYER}.lora_B.weight"] @ ours[f"{LAYER}.lora_A.weight"]
    torch.testing.assert_close(change.rows(0, 5), expected)
    torch.testing.assert_close(change.rows(1, 3), expected[1:3])


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 5}}, 2.5),
        ({"alpha_pattern": {r".*layers\.0.*q_proj": 7, "k_proj": 3}}, 3.5),
        ({"alpha_pattern": {"proj": 5}}, 2.0),
    ],
)
def test_scale_is_that_of_peft(settings: dict[str, Any], scale: float, write) -> None:
    path = write(factors(), PLAIN | settings)
    assert read_adapter(path).changes["layers.0.q_proj"].scale == pytest.approx(scale)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (PLAIN | {"peft_type": "IA3"}, "IA3 is not a LoRA adapter"),
        (PLAIN | {"init_lora_weights": "pissa_niter_4"}, "changed the base's own weights"),
        (PLAIN | {"lora_bias": True}, "it adds biases to the layers"),
        (PLAIN | {"use_dora": True}, "layers.0.q_proj has no magnitude"),
        ({"peft_type": "LORA"}, "give `lora_alpha`"),
        (None, "give `lora_alpha`"),
    ],
)
def test_adapter_that_can_not_be_merged_exactly_is_refused(config: Any, reason: str, write) -> None:
    with pytest.raises(UserError, match=reason):
        read_adapter(write(factors(), config))


def test_all_reasons_are_reported_together_with_the_argument_of_the_caller(write) -> None:
    path = write(factors(), PLAIN | {"lora_bias": True, "layer_replication": [[0, 1]]})
    with pytest.raises(UserError) as error:
        read_adapter(path, argument="model")
    assert [problem.argument for problem in error.value.problems] == ["model", "model"]
    assert str(error.value).startswith(f"`model={path}`: can't be merged exactly: lora_bias is on")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({f"{LAYER}.lora_A.weight": torch.ones(2, 3)}, "no matching pair"),
        (factors() | {f"{LAYER}.lora_A.other.weight": torch.ones(2, 3)}, "holds two adapters"),
        (factors() | {f"{LAYER}.lora_mixer": torch.ones(2)}, "lora_mixer belongs to an adapter"),
        ({"base_model.model.layers.1.lora_magnitude_vector": torch.ones(5)}, "no A and B matrices"),
        (factors() | {f"{LAYER}.lora_B.weight": torch.zeros(5, 2)}, "changes nothing"),
        ({}, "holds no adapter weights"),
    ],
)
def test_file_that_is_not_one_whole_adapter_is_refused(tensors: dict[str, Tensor], reason: str, write) -> None:
    with pytest.raises(UserError, match=reason):
        read_adapter(write(tensors))


def test_pickled_adapter_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(UserError, match="no adapter_model.safetensors there; only safetensors files are read"):
        read_adapter(str(tmp_path))


def test_damaged_file_is_named(write, tmp_path: Path) -> None:
    path, file = write(factors()), tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: damaged"):
        read_adapter(path)


def test_every_entry_needs_a_tensor_of_its_shape_in_the_base(write) -> None:
    adapter = read_adapter(write(factors() | {"base_model.model.norm.weight": torch.ones(3)}))
    fitting = {"model.layers.0.q_proj.weight": (5, 3), "model.norm.weight": (3,), "model.other.weight": (1,)}
    assert targets(adapter, fitting) == {
        "model.layers.0.q_proj.weight": "layers.0.q_proj",
        "model.norm.weight": "norm.weight",
    }
    with pytest.raises(UserError, match=r"1 of 2 adapter tensors have no target in the base: norm\.weight"):
        targets(adapter, {"layers.0.q_proj.weight": (5, 3)})
    with pytest.raises(UserError, match=r"1 adapter tensors do not fit the base: layers\.0\.q_proj \(5, 3\) on"):
        targets(adapter, fitting | {"model.layers.0.q_proj.weight": (9, 3)})
