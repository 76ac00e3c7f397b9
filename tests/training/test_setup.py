"""What a run decides about its engine at the start: packed or padded, and the precision of a CPU."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from embedrag.cli import main
from tests.families import SIZES


@pytest.fixture
def data(write_jsonl: Callable[..., Path], rows: list[dict[str, object]]) -> Path:
    return write_jsonl(rows)


@pytest.fixture
def tiny_mpnet(tmp_path: Path, minilm: str) -> str:
    """A family whose attention can't be replaced."""
    folder = tmp_path / "mpnet"
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    torch.manual_seed(0)
    config = transformers.MPNetConfig(**(SIZES | {"vocab_size": len(tokenizer)}), pad_token_id=0)
    transformers.MPNetModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(model: str, data: Path, output: Path, *words: str) -> int:
    fixed = ["--model_name_or_path", model, "--train_dataset", str(data), "--output_dir", str(output), "--use_cpu"]
    settings = ["--batch_size", "6", "--epochs", "1", "--finetune_type", "lora", "--lora_dropout", "0", "--lr", "1e-2"]
    return main(["train", *fixed, *settings, *words])


def steps(output: Path) -> list[dict[str, Any]]:
    return json.loads((output / "detailed_training_logs.json").read_text())["step_logs"]


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_qwen3"])
def test_packed_and_padded_runs_have_the_same_losses(
    model: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for choice in ("packed", "padded"):
        assert run(request.getfixturevalue(model), data, tmp_path / choice, "--attention", choice) == 0
    packed, padded = steps(tmp_path / "packed"), steps(tmp_path / "padded")
    assert all(row["padding_share"] == 0 for row in packed)
    assert any(row["padding_share"] > 0 for row in padded)
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(packed, padded, strict=True)) < 1e-5
    assert abs(packed[0]["loss"] - packed[1]["loss"]) > 1e-3


@pytest.mark.parametrize("finetune_type", ["full", "lora", "qlora"])
def test_model_with_dropout_is_packed_for_every_kind_of_training(
    finetune_type: str, tiny_bert: str, data: Path, tmp_path: Path
) -> None:
    words = ["--finetune_type", finetune_type, "--lora_dropout", "0.1"]
    assert run(tiny_bert, data, tmp_path / "out", *words) == 0
    assert all(row["padding_share"] == 0 for row in steps(tmp_path / "out"))


def test_model_that_cannot_be_packed_is_padded_with_a_line_or_refused_by_flag(
    tiny_mpnet: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tiny_mpnet, data, tmp_path / "auto") == 0
    assert "sorted by length and padded" in capsys.readouterr().out
    assert run(tiny_mpnet, data, tmp_path / "packed", "--attention", "packed") == 2
    message = capsys.readouterr().err
    assert "--attention packed" in message and "--attention padded" in message
    assert not (tmp_path / "packed").exists()


def test_what_auto_settles_on_is_said_and_recorded_with_the_reason(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("embedrag.runtime.device.bfloat16_instructions", lambda: "AVX512-BF16")
    assert run(tiny_bert, data, tmp_path / "out") == 0
    reason = "a hidden size of 64 is too small for a gain from bfloat16 on a CPU"
    assert f"precision: float32, because {reason}\n" in capsys.readouterr().out
    log = json.loads((tmp_path / "out" / "detailed_training_logs.json").read_text())
    assert log["model_info"]["precision"] == {"dtype": "float32", "reason": reason}
    assert log["training_args"]["dtype"] == "float32"
    settings = json.loads((tmp_path / "out" / "final" / "training_config.json").read_text())
    assert settings["dtype"] == "float32" and "threads" in settings["environment"]["kernels"]


def test_result_does_not_depend_on_the_free_memory(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, and with less free than a batch needs; `recomputed_share` shows that the memory is used."""
    found = {}
    for name, free in (("plenty", 1 << 40), ("little", 5 << 18)):
        monkeypatch.setattr("embedrag.training.memory.memory_sizes", lambda device, free=free: (free, 1 << 40))
        monkeypatch.setattr("embedrag.models.encoder.CHUNK_TOKENS", {"cpu": 16})
        assert run(tiny_bert, data, tmp_path / name, "--lora_dropout", "0.2", "--epochs", "3") == 0
        found[name] = load_file(tmp_path / name / "final" / "adapter_model.safetensors")
    assert steps(tmp_path / "plenty")[0]["recomputed_share"] == 0 < steps(tmp_path / "little")[0]["recomputed_share"]
    assert all(torch.equal(found["plenty"][name], value) for name, value in found["little"].items())


def test_signal_before_the_first_step_ends_the_run_and_touches_nothing(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("embedrag.training.setup._seed", lambda seed: os.kill(os.getpid(), signal.SIGTERM))
    assert run(tiny_bert, data, tmp_path / "out") == 75
    assert "stopped by SIGTERM before the first step" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
