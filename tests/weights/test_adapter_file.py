"""Adapters on disk: every layout that people have is read, and what can't be merged exactly is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from embedrag.errors import UserError
from embedrag.weights.adapter_file import adapter_in, read_adapter
from tests.weights.adapters import LAYER, PLAIN, factors


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.layers.0.q_proj.lora_{}.weight",
        "model.base_model.model.layers.0.q_proj.lora_{}.weight",
        "base_model.model.layers.0.q_proj.lora_{}.default.weight",
        "base_model.model.layers.0.q_proj.lora_{}.my-adapter.weight",
        "module.base_model.model.layers.0.q_proj.lora_{}.weight",
        "_orig_mod.base_model.model.layers.0.q_proj.lora_{}.weight",
        "base_model.model._orig_mod._fsdp_wrapped_module.layers.0.q_proj.lora_{}.weight",
        "layers.0.q_proj.lora_{}.weight",
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
        ({"alpha_pattern": {"proj": 5}}, 2.0),  # peft takes whole parts of a path only
        ({"alpha_pattern": {"0.q_proj": 5}}, 2.5),
        ({"alpha_pattern": {r"^layers\.0\.q_proj": 5, "q_proj": 3}}, 2.5),
        ({"alpha_pattern": {"q_proj": 6}, "use_rslora": True}, 6 / 2**0.5),
    ],
)
def test_scale_is_that_of_peft(settings: dict[str, Any], scale: float, write) -> None:
    path = write(factors(), PLAIN | settings)
    assert read_adapter(path).changes["layers.0.q_proj"].scale == pytest.approx(scale)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (PLAIN | {"peft_type": "IA3"}, r"IA3 is not a LoRA adapter; merge it with peft: PeftModel\.from_pretrained"),
        (
            PLAIN | {"peft_type": "PROMPT_TUNING"},
            r"PROMPT_TUNING \(it adds trained tokens to every text\): no weights can",
        ),
        (PLAIN | {"init_lora_weights": "pissa_niter_4"}, "changed the base's own weights .* save the changed base"),
        (PLAIN | {"init_lora_weights": "corda"}, "changed the base's own weights"),
        (PLAIN | {"use_qalora": True}, "it averages groups of inputs.*; merge it with peft"),
        (PLAIN | {"alora_invocation_tokens": [1]}, "acts on some tokens only"),
        (PLAIN | {"use_dora": True}, r"use_dora is on \(DoRA\), but layers.0.q_proj has no magnitude"),
        ({"peft_type": "LORA"}, "give `lora_alpha`"),
        (None, "give `lora_alpha`"),
    ],
)
def test_adapter_that_can_not_be_merged_exactly_is_refused(config: Any, reason: str, write) -> None:
    with pytest.raises(UserError, match=reason):
        read_adapter(write(factors(), config))


@pytest.mark.parametrize("start", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_start_that_left_the_base_as_it_is_can_be_merged(start: Any, write) -> None:
    assert read_adapter(write(factors(), PLAIN | {"init_lora_weights": start})).changes


def test_all_reasons_are_reported_together_with_the_argument_of_the_caller(write) -> None:
    path = write(factors(), PLAIN | {"target_parameters": ["x"], "layer_replication": [[0, 1]]})
    with pytest.raises(UserError) as error:
        read_adapter(path, argument="model")
    assert [problem.argument for problem in error.value.problems] == ["model", "model"]
    assert str(error.value).startswith(f"`model={path}`: can't be merged exactly: layer_replication is on")


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({f"{LAYER}.lora_A.weight": torch.ones(2, 3)}, "no matching pair"),
        (factors() | {f"{LAYER}.lora_A.other.weight": torch.ones(2, 3)}, "holds two adapters"),
        (factors() | {f"{LAYER}.lora_mixer": torch.ones(2)}, "lora_mixer belongs to an adapter"),
        ({"base_model.model.layers.1.lora_magnitude_vector": torch.ones(5)}, "no A and B matrices"),
        (factors() | {f"{LAYER}.lora_B.weight": torch.zeros(5, 2)}, "changes nothing"),
        ({"base_model.model.embed.lora_embedding_A": torch.zeros(2, 9)}, "no matching pair"),
        ({f"{LAYER}.lora_A.weight": torch.ones(2, 3, 1), f"{LAYER}.lora_B.weight": torch.ones(5, 2)}, "a convolution"),
        ({f"{LAYER}.lora_A.weight": torch.ones(0), f"{LAYER}.lora_B.weight": torch.ones(0)}, "DeepSpeed ZeRO-3"),
        (factors() | {f"{LAYER}.lora_B.weight": torch.full((5, 2), torch.nan)}, "not finite: the training diverged"),
        ({f"{LAYER}.hada_w1_a": torch.ones(2, 2)}, "it is LoHa and not LoRA"),
        ({"prompt_embeddings": torch.ones(2, 2)}, "it is a trained prompt and not LoRA"),
        (
            factors("base_model.model.pooler.dense"),
            r"only parts that no vector depends on \(pooler.dense\); use the base",
        ),
        ({"base_model.model.embed.trainable_tokens_delta": torch.ones(2, 3)}, "new vectors of 2 tokens .* names 0"),
        ({}, "holds no adapter weights"),
    ],
)
def test_file_that_is_not_one_whole_adapter_is_refused(tensors: dict[str, Tensor], reason: str, write) -> None:
    with pytest.raises(UserError, match=reason):
        read_adapter(write(tensors))


def test_pickled_adapter_is_read_when_it_holds_only_tensors(write, tmp_path: Path) -> None:
    expected = read_adapter(write(factors())).changes["layers.0.q_proj"].rows(0, 5)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(factors(), tmp_path / "adapter_model.bin")
    for path in (tmp_path, tmp_path / "adapter_model.bin"):
        torch.testing.assert_close(read_adapter(str(path)).changes["layers.0.q_proj"].rows(0, 5), expected)
    torch.save({"code": Path("x")}, tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.bin: damaged, cut off, or not a file of weights"):
        read_adapter(str(tmp_path))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ((), "no adapter_model.safetensors and no adapter_model.bin there"),
        (("default/adapter_config.json", "default/adapter_model.safetensors"), "in its folders default; name one"),
        (("checkpoint-8/adapter_model.bin", "checkpoint-9/adapter_model.bin"), "checkpoint-8, checkpoint-9; name one"),
        (("adapters.safetensors", "adapter_config.json"), "adapter of MLX; fuse it there"),
        (("model.safetensors", "config.json"), "a whole model and not an adapter"),
        (("adapter_config.json",), "no adapter_model.safetensors and no"),
    ],
)
def test_folder_without_an_adapter_is_told_apart(files: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=reason):
        read_adapter(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("owner/name", "download an adapter of the hub first: hf download owner/name --local-dir FOLDER"),
        ("./owner/name", "no such file or folder"),
        (__file__, "this is no file of weights"),
    ],
)
def test_path_without_an_adapter_is_told_apart(path: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read_adapter(path)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_damaged_configuration_is_named(text: str, write, tmp_path: Path) -> None:
    path = write(factors())
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=r"adapter_config\.json: not a JSON object"):
        read_adapter(path)


def test_folder_with_a_configuration_of_the_base_is_still_an_adapter(write, tmp_path: Path) -> None:
    write(factors())
    (tmp_path / "config.json").write_text("{}")
    assert adapter_in(tmp_path) == tmp_path / "adapter_model.safetensors"
    (tmp_path / "model.safetensors.index.json").touch()
    assert adapter_in(tmp_path) is None


def test_damaged_file_is_named(write, tmp_path: Path) -> None:
    path, file = write(factors()), tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: damaged"):
        read_adapter(path)
