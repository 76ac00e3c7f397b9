"""Each part of an adapter finds its tensor in the base; where it has none, the message says what the files tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from embedrag.errors import UserError
from embedrag.weights.adapter_file import read_adapter
from embedrag.weights.adapter_targets import match_adapter
from tests.weights.adapters import LAYER, PLAIN, factors


def test_every_entry_needs_a_tensor_of_its_shape_in_the_base(write) -> None:
    names = {"base_model_name_or_path": "owner/base"}
    adapter = read_adapter(write(factors() | {"base_model.model.norm.weight": torch.ones(3)}, PLAIN | names))
    fitting = {"model.layers.0.q_proj.weight": (5, 3), "model.norm.weight": (3,), "model.other.weight": (1,)}
    assert {name: own for name, (own, _) in match_adapter(adapter, fitting, "x").items()} == {
        "model.layers.0.q_proj.weight": "layers.0.q_proj.weight",
        "model.norm.weight": "norm.weight",
    }
    facts = r"The base is ./mine; adapter_config.json names the base owner/base. Nothing was written"
    with pytest.raises(UserError, match=rf"1 of 2 adapter tensors have no target in the base: norm\.weight\. {facts}"):
        match_adapter(adapter, {"layers.0.q_proj.weight": (5, 3)}, "./mine")
    with pytest.raises(UserError, match=rf"do not fit the base: layers\.0\.q_proj\.weight \(5, 3\) on .*{facts}"):
        match_adapter(adapter, fitting | {"model.layers.0.q_proj.weight": (9, 3)}, "./mine")


SHAPES = {
    "layers.0.q_proj.weight": (5, 3),
    "layers.0.q_proj.bias": (5,),
    "norm.bias": (3,),
    "embed.weight": (9, 3),
}


@pytest.mark.parametrize(
    ("more", "settings", "reason"),
    [
        ({}, {"bias": "lora_only"}, r"bias=lora_only trained 1 biases of the base, but the file lacks 1 .*peft#3306"),
        ({"layers.0.q_proj.base_layer.bias": torch.ones(5)}, {"bias": "lora_only"}, ""),
        ({"layers.0.q_proj.base_layer.bias": torch.ones(5)}, {"bias": "all"}, r"lacks 1 of them: norm\.bias"),
        (
            {"embed.weight": torch.ones(11, 3)},
            {},
            r"11 tokens, and 9 in the base.*resize_token_embeddings\(11\)",
        ),
        (
            {"embed.trainable_tokens_delta": torch.ones(1, 3)},
            {"trainable_token_indices": [9]},
            "the tokens 9 on",
        ),
        ({"layers.0.q_proj.lora_B.bias": torch.ones(5)}, {"lora_bias": True}, ""),
        ({}, {}, ""),
    ],
)
def test_what_the_base_tells_about_an_adapter_is_said(more: Any, settings: Any, reason: str, write) -> None:
    tensors = factors() | {f"base_model.model.{name}": value for name, value in more.items()}
    adapter = read_adapter(write(tensors, PLAIN | settings))
    if not reason:
        assert match_adapter(adapter, SHAPES, "base")
        return
    with pytest.raises(UserError, match=reason):
        match_adapter(adapter, SHAPES, "base")


def test_bias_that_the_base_does_not_have_is_refused(write) -> None:
    adapter = read_adapter(write(factors() | {f"{LAYER}.lora_B.bias": torch.ones(5)}, PLAIN | {"lora_bias": True}))
    with pytest.raises(UserError, match="lora_bias trained biases of layers that have none in the base"):
        match_adapter(adapter, {"layers.0.q_proj.weight": (5, 3)}, "base")


def test_layers_are_transposed_where_the_base_stores_them_so(write) -> None:
    """A square layer is transposed when another one of the base is, or when the adapter says so."""
    layer = LAYER.replace("q_proj", "k_proj")
    square = factors(layer, 4, 4)
    product = 2 * square[f"{layer}.lora_B.weight"] @ square[f"{layer}.lora_A.weight"]
    shapes = {"layers.0.q_proj.weight": (3, 5), "layers.0.k_proj.weight": (4, 4)}
    for tensors, settings, expected in (
        (factors() | square, {}, True),
        (square, {"fan_in_fan_out": True}, True),
        (square, {}, False),
    ):
        matched = match_adapter(read_adapter(write(tensors, PLAIN | settings)), shapes, "base")
        low = matched["layers.0.k_proj.weight"][1].low_rank
        product = (
            2
            * square[f"{LAYER}.lora_B.weight".replace("q_", "k_")]
            @ square[f"{LAYER}.lora_A.weight".replace("q_", "k_")]
        )
        torch.testing.assert_close(low.rows(0, 4), product.T if expected else product)
        torch.testing.assert_close(low.rows(1, 3), (product.T if expected else product)[1:3])
    stretched = square | {f"{layer}.lora_magnitude_vector": torch.ones(4)}
    adapter = read_adapter(write(stretched, PLAIN | {"fan_in_fan_out": True, "use_dora": True}))
    with pytest.raises(UserError, match="is stored transposed, and DoRA rescales it; merge it with peft"):
        match_adapter(adapter, shapes, "base")
