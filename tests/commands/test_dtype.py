"""Commands that load a model load it in the precision that `--dtype` names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from embedrag.cli import main
from embedrag.errors import UserError
from embedrag.models.build import build_model


def wide_with_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with instructions for bfloat16, and a hidden size of 64 counts as wide."""
    monkeypatch.setattr("embedrag.runtime.device.bfloat16_instructions", lambda: "AMX")
    monkeypatch.setattr("embedrag.runtime.device.BFLOAT16_WIDTH", 64)


@pytest.mark.parametrize(("asked", "expected"), [("bfloat16", torch.bfloat16), ("auto", torch.float32)])
@pytest.mark.parametrize("command", ["encode", "evaluate", "mine", "mteb"])
def test_commands_compute_in_the_precision_asked_for(
    command: str,
    asked: str,
    expected: torch.dtype,
    tiny_bert: str,
    rows: list[dict],
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`auto` is float32 on every CPU, also on one where a training takes bfloat16."""
    wide_with_instructions(monkeypatch)
    seen = []

    def spy(base: object, dtype: torch.dtype, *arguments: object, **keywords: object) -> None:
        seen.append(dtype)
        raise UserError("seen")

    monkeypatch.setattr("embedrag.models.load.load_backbone", spy)
    data, output = str(write_jsonl(rows)), str(tmp_path / "out.npy")
    words = {
        "encode": ["--input", data, "--field", "query", "--output", output],
        "evaluate": ["--data", data],
        "mine": ["--train_dataset", data, "--output", output],
        "mteb": ["--tasks", "NanoSciFactRetrieval"],
    }
    assert main([command, "--model", tiny_bert, "--dtype", asked, "--device", "cpu", *words[command]]) == 2
    assert seen == [expected]


def test_model_for_an_own_loop_computes_as_a_training_would(tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_model(tiny_bert, device="cpu", dtype="auto").dtype == torch.float32
    wide_with_instructions(monkeypatch)
    model = build_model(tiny_bert, device="cpu", dtype="auto")
    frozen = {p.dtype for name, p in model.named_parameters() if not p.requires_grad and "norm" not in name.lower()}
    assert model.dtype == torch.bfloat16 and frozen == {torch.bfloat16}
