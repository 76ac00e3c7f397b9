"""A tracker that can't write ends the run with one line, and a file of a log stays whole."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedrag.cli import main
from embedrag.errors import RunError
from embedrag.training.state.checkpoint import checkpoints, damage
from embedrag.training.state.run_log import RunLog


def test_full_disk_under_tensorboard_is_one_line(
    tiny_bert: str, write_jsonl: Callable[..., Path], rows, tmp_path: Path, monkeypatch, capfd: pytest.CaptureFixture
) -> None:
    """TensorBoard writes in a thread of its own, which prints a traceback."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    written, real = [], RecordWriter.write

    def fill(self: RecordWriter, data: bytes) -> None:
        written.append(data)
        if len(written) > 25:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, data)

    monkeypatch.setattr(RecordWriter, "write", fill)
    words = ["--train_dataset", str(write_jsonl(rows)), "--output_dir", str(tmp_path / "out"), "--batch_size", "6"]
    words += ["--model_name_or_path", tiny_bert, "--finetune_type", "lora", "--save_steps", "1", "--epochs", "2"]
    assert main(["train", *words]) == 1
    said = capfd.readouterr().err
    assert "out/runs: not written (No space left on device; it has" in said and "Traceback" not in said
    assert "earlier checkpoints are whole" in said
    found = checkpoints(tmp_path / "out")
    assert found and damage(found[0].folder) == []
    assert json.loads((tmp_path / "out" / "training_summary_report.json").read_text())["training_completed"] is False
    monkeypatch.setattr(RecordWriter, "write", real)
    assert main(["train", *words, "--resume", "auto"]) == 0


@pytest.mark.parametrize("short", [True, False], ids=["part of a row", "nothing"])
def test_log_on_a_full_disk_holds_every_row_before(short: bool, tmp_path: Path, monkeypatch) -> None:
    """At each of the rows, and the log goes on when there is room again."""
    log = RunLog(tmp_path, {}, {})
    real = os.pwrite
    for count in range(1, 5):

        def fill(file: int, data: bytes, position: int, room: list[int]) -> Any:
            if room:
                return real(file, data, position)
            room.append(1)
            if short:
                return real(file, data[: len(data) // 2], position)
            raise OSError(errno.ENOSPC, "No space left on device")

        room: list[int] = []
        monkeypatch.setattr(os, "pwrite", lambda *rest, fill=fill, room=room: fill(*rest, room))
        with pytest.raises(
            RunError, match="detailed_training_logs.json: not written .No space left.*all earlier rows are in it"
        ):
            log.step({"loss": 0.5, "global_step": count, "text": "x" * 99})
        monkeypatch.setattr(os, "pwrite", real)
        held = json.loads((tmp_path / "detailed_training_logs.json").read_text())["step_logs"]
        assert [row["global_step"] for row in held] == list(range(1, count))
        log.step({"loss": 0.5, "global_step": count})
    assert len(json.loads((tmp_path / "detailed_training_logs.json").read_text())["step_logs"]) == 4
