"""Half precision as GPUs compute it, on this CPU: autocast gives float32 out of a norm there, and not here."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.nn import functional as F

from embedrag.cli import main
from embedrag.errors import UserError
from embedrag.models.kernels import packed_attention as attention
from embedrag.models.load import load_model
from embedrag.models.quantization import product_dtype
from embedrag.training.train_step import StepOutcome, TrainStep

KINDS = [["full"], ["lora"], ["qlora", "--quantization_bits", "4"], ["qlora", "--quantization_bits", "8"]]


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    real = F.layer_norm

    def layer_norm(input: Tensor, shape: list[int], weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return real(input, shape, weight, bias, eps)
        with torch.autocast("cpu", enabled=False):
            return real(input.float(), shape, weight.float(), None if bias is None else bias.float(), eps)

    monkeypatch.setattr(F, "layer_norm", layer_norm)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"query": f"question {i} " * (1 + i % 3), "pos": [f"answer {i}"], "neg": [f"other {i}"]} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.usefixtures("like_a_gpu")
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_qwen3"])
def test_training_is_packed_in_one_precision_and_its_merge_is_proved(
    model: str, kind: list[str], data: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch
) -> None:
    seen = set()
    real = attention._by_length

    def spy(q: Tensor, k: Tensor, v: Tensor, *rest: object) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            seen.add((q.dtype, k.dtype, v.dtype))
        return real(q, k, v, *rest)

    monkeypatch.setattr(attention, "_by_length", spy)
    words = ["train", "--model_name_or_path", request.getfixturevalue(model), "--train_dataset", str(data)]
    words += ["--output_dir", str(tmp_path / "out"), "--dtype", "bfloat16", "--attention", "packed", "--device", "cpu"]
    words += ["--batch_size", "8", "--epochs", "4", "--lr", "2e-3", "--lora_dropout", "0.05"]
    assert main([*words, "--finetune_type", *kind, *(["--merge"] if kind != ["full"] else [])]) == 0
    assert seen == {(torch.bfloat16,) * 3}
    losses = [row["loss"] for row in json.loads((tmp_path / "out" / "training_losses.json").read_text())]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_quantised_base_of_few_bits_computes_in_the_precision_asked_for(
    tiny_qwen3: str, data: Path, tmp_path: Path
) -> None:
    words = ["train", "--model_name_or_path", tiny_qwen3, "--train_dataset", str(data), "--output_dir", str(tmp_path)]
    words += ["--dtype", "bfloat16", "--device", "cpu", "--batch_size", "8", "--epochs", "1", "--finetune_type"]
    assert main([*words, "qlora"]) == 0
    settings = json.loads((tmp_path / "final" / "training_config.json").read_text())
    assert settings["quantization"]["storage_dtype"] == settings["quantization"]["compute_dtype"] == "bfloat16"
    encoder = load_model(str(tmp_path / "final"), "cpu")
    seen = []
    encoder.backbone.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state.dtype))
    encoder.encode(["a text"], "query")
    assert seen == [torch.float32]
    floats = {p.dtype for p in encoder.backbone.parameters() if p.is_floating_point()}
    assert floats == {torch.float32}
    assert product_dtype(torch.float16) == torch.float16


@pytest.mark.parametrize("fused", [True, False])
def test_float16_goes_on_after_a_skipped_step_and_tells_one_that_overflowed(fused: bool) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    train_step = object.__new__(TrainStep)
    train_step.accelerator = SimpleNamespace(scaler=scaler)
    train_step.optimizer = AcceleratedOptimizer(
        torch.optim.AdamW([weight], lr=0.1, fused=fused), device_placement=False, scaler=scaler
    )
    applied = []
    for factor, finite in ((1.0, False), (float("inf"), True), (1.0, True)):
        before = weight.detach().clone()
        scaler.scale((weight * factor).sum()).backward()
        scaler.unscale_(train_step.optimizer.optimizer)
        applied.append((train_step._apply(finite), not torch.equal(weight, before)))
        train_step.optimizer.zero_grad()
    assert applied == [
        (StepOutcome(finite=False), False),
        (StepOutcome(finite=True, overflowed=True), False),
        (StepOutcome(finite=True), True),
    ]
    assert [outcome.counted for outcome, _ in applied] == [True, False, True]
    assert scaler.get_scale() == 4.0


@pytest.mark.parametrize("command", ["encode", "evaluate", "mine", "mteb"])
def test_commands_compute_in_the_precision_asked_for(
    command: str, tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("embedrag.evaluation.mteb_adapter" if command == "mteb" else f"embedrag.{command}")
    real, seen = module.load_model, []

    def spy(*arguments: Any, **keywords: Any) -> Any:
        seen.append(real(*arguments, **keywords).dtype)
        raise UserError("seen")

    monkeypatch.setattr(module, "load_model", spy)
    output = str(tmp_path / "out.npy")
    words = {
        "encode": ["--input", str(data), "--field", "query", "--output", output],
        "evaluate": ["--data", str(data)],
        "mine": ["--train_dataset", str(data), "--output", output],
        "mteb": ["--tasks", "NanoSciFactRetrieval"],
    }
    assert main([command, "--model", tiny_bert, "--dtype", "bfloat16", "--device", "cpu", *words[command]]) == 2
    assert seen == [torch.bfloat16]
