"""Kinds of adapters beyond plain LoRA: where they begin, what is saved of them, and that they merge exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from embedrag.cli import main
from embedrag.errors import UserError
from embedrag.models.backbone import trainable_backbone
from embedrag.models.base_model import describe_base
from embedrag.models.lora import LoraSettings
from embedrag.models.lora_init import subtract_start
from embedrag.models.quantization import QuantizationConfig
from embedrag.options.parsing import parse
from embedrag.training.config.options import TrainOptions
from tests.merging.test_merge import cosine, distance, run_merge, train, trained  # noqa: F401 - fixtures

CPU = torch.device("cpu")
IDS = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 3]])


def backbone(model: str, kind: str = "lora", **further: Any) -> nn.Module:
    torch.manual_seed(0)
    quantization = QuantizationConfig() if kind == "qlora" else None
    lora = LoraSettings(dropout=0.0, **further)
    return trainable_backbone(describe_base(model), torch.float32, CPU, lora, quantization).eval()


def states(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state


def base_states(model: str) -> torch.Tensor:
    return states(transformers.AutoModel.from_pretrained(model).eval())


def shaken(model: nn.Module) -> nn.Module:
    """With adapters that were trained, so to speak."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


# DoRA


@pytest.mark.parametrize("base", ["tiny_bert", "tiny_qwen3"])
@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_dora_merges_exactly(base: str, kind: str, train, tmp_path: Path, request) -> None:  # noqa: F811
    adapter = train(request.getfixturevalue(base), "--use_dora", kind=kind)
    assert any("lora_magnitude_vector" in name for name in load_file(adapter / "adapter_model.safetensors"))
    assert run_merge(adapter, tmp_path / "merged") == 0
    if kind == "lora":
        assert distance(adapter, tmp_path / "merged") <= 1e-5
    assert cosine(adapter, tmp_path / "merged") >= 0.999
    assert json.loads((tmp_path / "merged" / "merge_config.json").read_text())["use_dora"] is True


def test_dora_weights_equal_those_of_peft(tiny_qwen3: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = shaken(backbone(tiny_qwen3, use_dora=True))
    model.save_pretrained(tmp_path / "adapter")
    words = ["--no_verify", "--base_model_path", tiny_qwen3]
    assert run_merge(tmp_path / "adapter", tmp_path / "merged", *words) == 0
    theirs = PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(tiny_qwen3), tmp_path / "adapter")
    expected = theirs.merge_and_unload().state_dict()
    ours = load_file(tmp_path / "merged" / "model.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=1e-5)


def test_magnitude_left_out_is_refused(tiny_bert: str, train, tmp_path: Path, capsys) -> None:  # noqa: F811
    adapter = train(tiny_bert, "--use_dora")
    file = adapter / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "magnitude" not in name}, file)
    assert run_merge(adapter, tmp_path / "merged") == 2
    assert "has no magnitude in the file" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


# PiSSA


@pytest.mark.parametrize("base", ["tiny_bert", "tiny_qwen3"])
def test_pissa_begins_as_the_base_with_its_largest_directions_in_the_adapter(base: str, request) -> None:
    name = request.getfixturevalue(base)
    model = backbone(name, init="pissa")
    torch.testing.assert_close(states(model), base_states(name), atol=1e-4, rtol=1e-4)
    with model.disable_adapter():
        assert not torch.allclose(states(model), base_states(name), atol=1e-2)
    layer = next(module for module in model.modules() if hasattr(module, "lora_A"))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    part = layer.scaling["default"] * b @ a
    whole = layer.base_layer.weight + part
    assert torch.linalg.matrix_norm(whole - part, 2) < torch.linalg.svdvals(whole)[7] + 1e-4


@pytest.mark.parametrize("use_rslora", [False, True])
def test_pissa_is_saved_as_a_change_of_the_published_base(use_rslora: bool, tiny_bert: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = backbone(tiny_bert, init="pissa", use_rslora=use_rslora)
    shaken(model).save_pretrained(tmp_path)
    subtract_start(tmp_path, model.adapter_start)
    theirs = PeftModel.from_pretrained(transformers.AutoModel.from_pretrained(tiny_bert), tmp_path).eval()
    torch.testing.assert_close(states(model), states(theirs), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(states(model), base_states(tiny_bert), atol=1e-2)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 16


def test_pissa_trains_merges_and_goes_on(tiny_bert: str, train, tmp_path: Path) -> None:  # noqa: F811
    adapter = train(tiny_bert, "--lora_init", "pissa", "--lr", "1e-4", "--save_total_limit", "9")
    assert run_merge(adapter, tmp_path / "merged") == 0
    assert distance(adapter, tmp_path / "merged") <= 1e-5
    whole = load_file(adapter / "adapter_model.safetensors")
    run = adapter.parent
    checkpoint = sorted(run.glob("checkpoint-epoch-*"))[0]
    other = tmp_path / "again"
    settings = json.loads((adapter / "training_config.json").read_text())
    config = tmp_path / "config.json"
    config.write_text(json.dumps(settings | {"output_dir": str(other), "overwrite": False}))
    assert main(["train", "--config", str(config), "--resume", str(checkpoint)]) == 0
    again = load_file(other / "final" / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


# LoftQ


def test_loftq_begins_closer_to_the_base_than_plain_quantisation(tiny_qwen3: str) -> None:
    expected = base_states(tiny_qwen3)

    def error(**further: object) -> float:
        return float((states(backbone(tiny_qwen3, "qlora", **further)) - expected).norm())

    plain = error()
    assert error(init="loftq", r=8) < 0.9 * plain
    assert error(init="loftq", r=8, alpha=64) < 0.9 * plain  # whatever the scale
    assert error(init="loftq", r=48) < 0.5 * plain


def test_loftq_trains_and_merges_onto_what_it_was_trained_on(tiny_qwen3: str, train, tmp_path: Path) -> None:  # noqa: F811
    adapter = train(tiny_qwen3, "--lora_init", "loftq", kind="qlora")
    assert run_merge(adapter, tmp_path / "merged") == 0
    assert cosine(adapter, tmp_path / "merged") >= 0.999


def test_loftq_reads_a_pickled_base_too(tiny_bert: str, tmp_path: Path) -> None:
    base = tmp_path / "pickled"
    shutil.copytree(tiny_bert, base)
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    torch.testing.assert_close(
        states(backbone(str(base), "qlora", init="loftq")), states(backbone(tiny_bert, "qlora", init="loftq"))
    )


def test_loftq_names_layers_that_the_files_do_not_have(tiny_bert: str, tmp_path: Path) -> None:
    from embedrag.models.lora_init import start_with_quantization_error

    model = backbone(tiny_bert, "qlora")
    weights = load_file(Path(tiny_bert) / "model.safetensors")
    shutil.copytree(tiny_bert, tmp_path / "cut")
    save_file({k: v for k, v in weights.items() if "layer.1.output" not in k}, tmp_path / "cut" / "model.safetensors")
    with pytest.raises(UserError, match="has no weights of .*layer.1.output"):
        start_with_quantization_error(model, tmp_path / "cut")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--lora_init", "pissa", "--finetune_type", "qlora"], "use `lora_init=loftq`"),
        (["--lora_init", "loftq", "--finetune_type", "lora"], "set `finetune_type=qlora` and `quantization_bits=4`"),
        (["--lora_init", "loftq", "--quantization_bits", "8"], "set `finetune_type=qlora` and `quantization_bits=4`"),
        (["--lora_init", "loftq", "--use_dora"], "does not go together with `use_dora`"),
        (["--use_dora", "--finetune_type", "full"], "`use_dora`: is for adapters"),
        (["--lora_init", "pissa", "--finetune_type", "full"], "`lora_init=pissa`: is for adapters"),
        (
            ["--lora_init", "pissa", "--finetune_type", "lora", "--false_negative_guide", "base"]
            + ["--false_negative_margin", "0"],
            "`false_negative_guide=base` needs it unchanged",
        ),
    ],
)
def test_kinds_that_contradict_each_other_are_refused_by_flag(words: list[str], part: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(TrainOptions, ["--output_dir", "o", "--batch_size", "2", *words], "train", "")
    assert part in str(caught.value)
