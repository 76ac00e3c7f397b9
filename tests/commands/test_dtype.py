"""Commands that load a model load it in the precision that `--dtype` names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from embedrag.cli import main
from embedrag.errors import UserError


@pytest.mark.parametrize("command", ["encode", "evaluate", "mine", "mteb"])
def test_commands_compute_in_the_precision_asked_for(
    command: str,
    tiny_bert: str,
    rows: list[dict],
    write_jsonl: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
    assert main([command, "--model", tiny_bert, "--dtype", "bfloat16", "--device", "cpu", *words[command]]) == 2
    assert seen == [torch.bfloat16]
