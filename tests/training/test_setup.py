"""What a run decides about its engine at the start: packed or padded, and the precision of a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from embedrag.cli import main
from embedrag.training import precision
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


@pytest.mark.parametrize("winner", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_cpu_takes_bfloat16_when_a_step_is_faster_with_it(
    winner: torch.dtype, kind: str, tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tried = []

    def pick(tries: dict[torch.dtype, Callable[[], object]]) -> torch.dtype:
        for dtype, step in tries.items():
            step()
            tried.append(dtype)
        return winner

    monkeypatch.setattr(precision, "bfloat16_multiplies_faster", lambda: True)
    monkeypatch.setattr(precision, "fastest", pick)
    assert run(tiny_bert, data, tmp_path / "out", "--finetune_type", kind) == 0
    assert tried == [torch.float32, torch.bfloat16]
    assert f"cpu (2 threads), {str(winner).removeprefix('torch.')}" in capsys.readouterr().out.replace(
        f"({torch.get_num_threads()} threads)", "(2 threads)"
    )
    assert steps(tmp_path / "out")[-1]["loss"] < 100


def test_cpu_that_multiplies_bfloat16_slowly_trains_in_float32_without_a_trial(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "bfloat16_multiplies_faster", lambda: False)
    monkeypatch.setattr(precision, "fastest", lambda tries: pytest.fail("tried"))
    assert run(tiny_bert, data, tmp_path / "out") == 0
    assert "threads), float32" in capsys.readouterr().out
