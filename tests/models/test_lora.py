"""Which layers get adapters, and which settings do not fit each other."""

from __future__ import annotations

import pytest
import torch

from embedrag.errors import UserError
from embedrag.models.lora import LoraSettings, _poolers_among, check_lora, lora_targets
from embedrag.models.quantization import QuantizationConfig


def test_target_that_the_model_lacks_is_an_error_that_lists_the_existing_ones() -> None:
    model = torch.nn.ModuleDict({"query": torch.nn.Linear(2, 2)})
    assert lora_targets(model, ["query"]) == ["query"]
    with pytest.raises(
        UserError, match=r"^`lora_target_modules=q_proj`: the model has no such linear layer; it has query"
    ):
        lora_targets(model, ["q_proj"])


@pytest.mark.parametrize(
    ("lora", "bits", "message"),
    [
        (LoraSettings(init="pizza"), None, "did you mean pissa"),
        (LoraSettings(init="pissa"), 4, "`lora_init=pissa`: .*use `lora_init=loftq`"),
        (LoraSettings(init="loftq"), None, "`lora_init=loftq`: .*not quantised to 4 bits"),
        (LoraSettings(init="loftq"), 8, "`lora_init=loftq`: .*not quantised to 4 bits"),
        (LoraSettings(init="pissa", use_dora=True), None, "`use_dora`: .*leave out `lora_init=pissa`"),
    ],
)
def test_settings_of_adapters_that_contradict_each_other_are_refused(
    lora: LoraSettings, bits: int | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_lora(lora, QuantizationConfig(bits) if bits else None)


def test_pooler_gets_no_adapter_unless_it_is_asked_for() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.ModuleDict({"dense": torch.nn.Linear(2, 2), "fc": torch.nn.Linear(2, 2)})
            self.pooler = torch.nn.ModuleDict({"dense": torch.nn.Linear(2, 2), "fc": torch.nn.Linear(2, 2)})

    assert lora_targets(Model()) == ["fc", "layer.dense"]
    assert lora_targets(Model(), ["pooler.fc"]) == ["pooler.fc"]
    assert _poolers_among(Model(), ["fc", "layer.dense"]) == ["pooler.fc"]  # it has the name of a target
