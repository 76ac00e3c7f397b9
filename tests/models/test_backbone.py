"""Trainable parameters, gradients and quantised bases, on a tiny random model of each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from embedrag.errors import UserError
from embedrag.models.backbone import trainable_backbone
from embedrag.models.base_model import Base, describe_base
from embedrag.models.lora import LoraSettings, parameter_counts, without_gradient
from embedrag.models.quantization import QuantizationConfig
from tests.families import FAMILIES

LORA = LoraSettings()


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Base]:
    torch.manual_seed(0)
    transformers.AutoModel.from_config(FAMILIES[request.param]).save_pretrained(tmp_path)
    return request.param, describe_base(str(tmp_path))


def backbone_of(base: Base, lora: LoraSettings | None = LORA, bits: int | None = None, **settings: Any) -> Any:
    quantization = QuantizationConfig(bits) if bits else None
    return trainable_backbone(base, torch.float32, torch.device("cpu"), lora, quantization, **settings)


def backward(model: torch.nn.Module) -> None:
    ids = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 3]])
    model.train()
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.square().sum().backward()


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_every_trainable_weight_of_a_family_gets_a_gradient(
    family: tuple[str, Base], lora: LoraSettings | None
) -> None:
    model = backbone_of(family[1], lora)
    backward(model)
    assert without_gradient(model) == []
    total, trainable = parameter_counts(model)
    assert (trainable == total) == (lora is None)


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_base_trains_its_adapters_only(family: tuple[str, Base], bits: int) -> None:
    name, base = family
    model = backbone_of(base, bits=bits)
    kinds = {type(module).__name__ for module in model.modules()}
    assert ("Linear4bit" if bits == 4 else "Linear8bitLt") in kinds
    backward(model)
    assert without_gradient(model) == []
    assert all("lora_" in key for key, parameter in model.named_parameters() if parameter.requires_grad)


def test_training_goes_on_after_an_evaluation_of_a_4_bit_base(family: tuple[str, Base]) -> None:
    model = backbone_of(family[1], bits=4)
    ids = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        before = model.eval()(input_ids=ids).last_hidden_state
    backward(model)
    with torch.no_grad():
        after = model.eval()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(before, after)


def test_adapter_targets_are_all_linear_layers_of_the_family(family: tuple[str, Base]) -> None:
    name, base = family
    model = backbone_of(base)
    adapted = {key.split(".lora_A")[0] for key in model.state_dict() if ".lora_A" in key}
    linear = {key for key, module in model.named_modules() if type(module) is torch.nn.Linear and "lora_" not in key}
    assert {f"{key}.base_layer" for key in adapted} == linear


def test_frozen_base_has_no_dropout_of_its_own_and_a_full_one_keeps_it(tiny_bert: str) -> None:
    base = describe_base(tiny_bert)
    for lora, expected in ((LORA, 0.0), (None, 0.1)):
        assert backbone_of(base, lora).config.hidden_dropout_prob == expected


def test_gradient_checkpointing_gives_the_same_gradient(family: tuple[str, Base]) -> None:
    gradients = []
    for switch in (False, True):
        torch.manual_seed(0)
        model = backbone_of(family[1], LoraSettings(dropout=0.0), gradient_checkpointing=switch)
        backward(model)
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    torch.testing.assert_close(gradients[0], gradients[1])
    assert sum(float(gradient.abs().sum()) for gradient in gradients[0]) > 0


def test_layers_that_quantisation_can_not_reach_are_told_before_weights_are_loaded(tmp_path: Path) -> None:
    transformers.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1).save_pretrained(tmp_path)
    base = describe_base(str(tmp_path))
    with pytest.raises(UserError, match="`finetune_type=qlora`: mamba models .* use `finetune_type=lora`"):
        trainable_backbone(base, torch.float32, torch.device("cpu"), LoraSettings(), QuantizationConfig())


def test_layers_that_peft_can_not_adapt_are_named(tmp_path: Path) -> None:
    config = transformers.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, state_size=4)
    transformers.MambaModel(config).save_pretrained(tmp_path)
    base, asked = describe_base(str(tmp_path)), LoraSettings(target_modules=["out_proj"])
    with pytest.raises(UserError, match="`lora_target_modules=out_proj`: peft can't adapt these layers"):
        trainable_backbone(base, torch.float32, torch.device("cpu"), asked)
