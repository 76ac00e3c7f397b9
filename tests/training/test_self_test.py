"""The checks at the start pass on sound models and find spoilt ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from embedrag.cli import main
from embedrag.data.token_batch import TokenBatch
from embedrag.models.encoder import Encoder


@pytest.fixture
def data(write_jsonl: Callable[..., Path], rows: list[dict[str, object]]) -> Path:
    return write_jsonl(rows)


def train(model: str, data: Path, output: Path, *more: str) -> int:
    fixed = ["--model_name_or_path", model, "--train_dataset", str(data), "--output_dir", str(output), "--use_cpu"]
    return main(["train", *fixed, "--batch_size", "6", "--epochs", "1", "--finetune_type", "lora", *more])


@pytest.mark.parametrize("attention", ["packed", "padded"])
@pytest.mark.parametrize(("model", "left"), [("tiny_bert", False), ("tiny_qwen3", True)])
def test_results_are_in_the_log(
    model: str, left: bool, attention: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert train(request.getfixturevalue(model), data, tmp_path / "out", "--attention", attention) == 0
    found = json.loads((tmp_path / "out" / "detailed_training_logs.json").read_text())["model_info"]["self_tests"]
    assert found["end_token_survives_truncation"] is True
    assert abs(found["batch_equals_single"]) < 1e-5
    assert (found["left_equals_right_padding"] is None) != left
    assert not left or abs(found["left_equals_right_padding"]) < 1e-5


def test_vectors_that_depend_on_the_batch_stop_the_run_unless_no_self_test_is_set(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Encoder.embed

    def leaks(self: Encoder, tokens: TokenBatch) -> torch.Tensor:
        vectors = whole(self, tokens)
        return vectors + 0.1 * vectors.mean(0)

    monkeypatch.setattr(Encoder, "embed", leaks)
    assert train(tiny_bert, data, tmp_path / "out") == 2
    assert "depends on the batch" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert train(tiny_bert, data, tmp_path / "out", "--no_self_test") == 0


def test_lost_end_token_is_found_when_the_pooling_needs_it(
    tiny_qwen3: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from embedrag.models.tokenizer import TextTokenizer

    whole = TextTokenizer.__call__
    monkeypatch.setattr(
        TextTokenizer,
        "__call__",
        lambda self, role, texts: [ids[:-1] if len(ids) > 200 else ids for ids in whole(self, role, texts)],
    )
    assert train(tiny_qwen3, data, tmp_path / "out") == 2
    assert "end token" in capsys.readouterr().err
