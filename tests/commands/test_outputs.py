"""Outputs that are symlinks, pipes and devices: commands write where these lead, and a full disk is no mistake."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedrag.cli import main

Rows = list[dict[str, Any]]


def test_encode_writes_the_target_of_a_symlink(tiny_bert: str, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a frog\na heron\n")
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "vectors.npy").write_text("old")
    link = tmp_path / "link.npy"
    link.symlink_to(tmp_path / "disk" / "vectors.npy")
    words = ["--model", tiny_bert, "--input", str(tmp_path / "texts.txt"), "--output", str(link)]
    assert main(["encode", *words]) == 2, "without --overwrite the target stays"
    assert (tmp_path / "disk" / "vectors.npy").read_text() == "old"
    assert main(["encode", *words, "--overwrite"]) == 0
    assert link.is_symlink()
    assert np.load(tmp_path / "disk" / "vectors.npy").shape == (2, 64)


def test_evaluate_writes_its_result_on_standard_output(
    tiny_bert: str, write_jsonl: Callable[..., Path], rows: Rows, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(rows)
    assert main(["evaluate", "--model", tiny_bert, "--data", str(data), "--output", "/dev/stdout"]) == 0
    screen = capfd.readouterr().out
    result = json.loads(screen[screen.index("\n{\n") :])
    assert result["model"] == tiny_bert
    assert Path("/dev/stdout").is_symlink()


@pytest.fixture
def no_room(full_device: Path) -> Path:
    """A symlink that somebody made to a full device."""
    path = full_device.with_name("report.jsonl")
    path.symlink_to(full_device)
    return path


@pytest.mark.parametrize("flag", ["--output", "--fix"])
def test_check_on_a_full_disk_ends_with_exit_code_1(
    flag: str, no_room: Path, write_jsonl: Callable[..., Path], rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl([*rows, rows[0]])
    assert main(["check", str(data), flag, str(no_room)]) == 1
    assert capsys.readouterr().err == f"error: {no_room}: not written (No space left on device)\n"
    assert no_room.is_symlink() and no_room.with_name("full").is_char_device()


def test_evaluate_on_a_full_disk_ends_with_exit_code_1(
    tiny_bert: str, no_room: Path, write_jsonl: Callable[..., Path], rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(rows)
    assert main(["evaluate", "--model", tiny_bert, "--data", str(data), "--html", str(no_room)]) == 1
    assert capsys.readouterr().err.endswith(f"error: {no_room}: not written (No space left on device)\n")


def test_mine_writes_its_rows_into_a_pipe(
    write_jsonl: Callable[..., Path], rows: Rows, tmp_path: Path, tiny_bert: str
) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        words = ["--train_dataset", str(write_jsonl(rows)), "--model", tiny_bert, "--output", str(pipe)]
        assert main(["mine", *words, "--range", "1", "9", "--neg_nums", "1"]) == 0
        lines = os.read(reader, 1 << 16).decode().splitlines()
    finally:
        os.close(reader)
    assert [json.loads(line)["query"] for line in lines] == [row["query"] for row in rows]
    assert pipe.is_fifo()
