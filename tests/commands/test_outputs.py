"""Outputs that are symlinks, pipes and devices: commands write where these lead, and a full disk is no mistake."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
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
    result = json.loads(screen)  # all lines for people are on standard error
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


@pytest.fixture
def fed(tmp_path: Path) -> Iterator[Callable[[str, str], str]]:
    """A function that makes a pipe which gives a text once, as `<(…)` does."""
    threads = []

    def feed(name: str, text: str) -> str:
        os.mkfifo(tmp_path / name)
        threads.append(Thread(target=(tmp_path / name).write_text, args=(text,), daemon=True))
        threads[-1].start()
        return str(tmp_path / name)

    yield feed
    for thread in threads:
        thread.join(10)


def test_vectors_go_through_pipes(tiny_bert: str, fed, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Texts from a pipe are read once, and nothing but the vectors is on standard output."""
    words = ["--model", tiny_bert, "--input", fed("texts", "a frog\na heron\n"), "--output", "/dev/stdout"]
    assert main(["encode", *words]) == 0
    out, err = capfdbinary.readouterr()
    found = io.BytesIO(out)
    assert np.load(found).shape == (2, 64) and found.read() == b"" and b"2 vectors of 64" in err


@pytest.mark.parametrize("closed", ["head", "stdout", "all"])
def test_check_gives_its_verdict_when_nobody_reads_it(closed: str, tmp_path: Path) -> None:
    """`embedrag check … | head -1`, `>&-`, and all three streams closed."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"query": "a", "pos": "a"}\n' * 400)
    line = {
        "head": "set -o pipefail; {} 2> err | head -1",
        "stdout": "{} 2> err >&-",
        "all": "{} <&- >&- 2>&-",
    }[closed]
    command = f"{sys.executable} -m embedrag check {data} --output report.json"
    ended = subprocess.run(["bash", "-c", line.format(command)], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == json.loads((tmp_path / "report.json").read_text())["exit_code"] != 0
    assert closed == "all" or (tmp_path / "err").read_text() == ""
    assert len(ended.stdout.splitlines()) == (closed == "head")


def test_output_that_nobody_reads_any_more_ends_quietly(
    tiny_bert: str, fed, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = ["--model", tiny_bert, "--input", fed("texts", "a frog\n"), "--output", f"/dev/fd/{writer}"]
    assert main(["encode", *words]) == 141
    assert "error" not in capsys.readouterr().err
    os.close(writer)


@pytest.mark.parametrize("name", ["/dev/null", "fifo", "fifo.jsonl"])
def test_data_that_can_be_read_only_once_is_refused(name: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    os.mkfifo("fifo.jsonl")
    assert main(["check", name]) == 2
    assert "is a pipe or a device, and it is read twice; write it to a file first" in capsys.readouterr().err


def test_a_glossary_from_a_pipe_is_refused(tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "terms.csv")
    assert main(["compose", "--input", str(tmp_path / "terms.csv"), "--output", str(tmp_path / "rows.jsonl")]) == 2
    assert "is a pipe or a device, and it is read twice; write it to a file first" in capsys.readouterr().err


def test_a_corpus_from_a_pipe_is_refused(tiny_bert: str, write_jsonl, rows: Rows, tmp_path: Path, capsys) -> None:
    os.mkfifo(tmp_path / "corpus")
    words = ["--train_dataset", str(write_jsonl(rows)), "--model", tiny_bert, "--output", str(tmp_path / "o.jsonl")]
    assert main(["mine", *words, "--corpus", str(tmp_path / "corpus")]) == 2
    assert "is a pipe or a device, and it is read twice; write it to a file first" in capsys.readouterr().err


def test_a_demo_replaces_only_what_a_demo_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("mine")
    assert main(["demo", "--output_dir", str(tmp_path)]) == 2
    assert "holds data/train.jsonl, which no demo wrote; name another folder" in capsys.readouterr().err
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["data", "data/train.jsonl"]


@pytest.mark.parametrize("name", ["n" * 240, "new/" + "n" * 240, "n/" * 1950 + "n"])
def test_name_that_is_too_long_for_the_disk_is_said_before_any_work(
    name: str, write_jsonl: Callable[..., Path], rows: Rows, tmp_path: Path, tiny_bert: str, capsys
) -> None:
    """The disk says so only when the folders above exist, which is at the end of the work."""
    data, place, seen = str(write_jsonl(rows)), str(tmp_path / name), 0
    for words in (
        ["train", "--train_dataset", data, "--batch_size", "4", "--finetune_type", "lora", "--output_dir", place],
        ["mine", "--train_dataset", data, "--bm25", "--output", f"{place}.jsonl"],
        ["encode", "--model", tiny_bert, "--input", data, "--field", "query", "--output", f"{place}.npy"],
        ["export", "--model", tiny_bert, "--output", place],
        ["merge", "--lora_adapter_path", str(tmp_path), "--base_model_path", tiny_bert, "--output_path", place],
    ):
        assert main(words) == 2
        said = capsys.readouterr()
        seen += "this name is too long for the disk" in said.err and "data:" not in said.out
    assert seen == 5


@pytest.mark.parametrize("command", ["merge", "export"])
def test_folder_that_cannot_be_made_is_said_before_any_work(
    command: str, tiny_bert: str, tmp_path: Path, capsys
) -> None:
    words = {
        "merge": ["--lora_adapter_path", str(tmp_path), "--base_model_path", tiny_bert, "--output_path"],
        "export": ["--model", tiny_bert, "--output"],
    }
    assert main([command, *words[command], "/proc/nowhere/model"]) == 2
    assert "/proc can't be written" in capsys.readouterr().err
