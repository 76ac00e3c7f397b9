"""The log files are valid after every line, however the run ends, and a line costs the line alone."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embedrag.runtime.console import say
from embedrag.training.state.run_log import RunLog

ROOT = Path(__file__).parents[3]
ARGS = {"lr": 1e-4, "train_dataset": ["개구리.jsonl"], "output_dir": Path("out")}
INFO = {"finetune_type": "lora", "lora_config": {"r": 8}}
DETAILS = "detailed_training_logs.json"
HEAD = {"training_args", "model_info", "training_start_time"}
TAIL = {"epoch_logs", "training_end_time", "training_summary"}
SUMMARY = {"total_training_time", "total_epochs", "total_steps", "final_loss", "best_loss", "avg_step_duration"}


def test_line_that_a_terminal_can_not_show_is_still_written(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="latin-1"))
    say("query ≤ 64 é")
    assert out.getvalue().decode("latin-1") == "query ? 64 é\n"


def step_row(number: int, loss: float = 0.5) -> dict[str, Any]:
    return {"epoch": 1, "step": number, "global_step": number, "loss": loss, "learning_rate": 1e-4, "note": "개"}


def epoch_row(number: int, loss: float = 0.5) -> dict[str, Any]:
    return {"epoch": number, "avg_loss": loss, "total_loss": 2 * loss, "num_steps": 2}


def read(folder: Path, name: str = DETAILS) -> Any:
    """Parse a log file as strict JSON, in which NaN and Infinity do not exist."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    return json.loads((folder / name).read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path, ARGS, INFO)


def test_file_is_whole_before_the_first_step(log, tmp_path) -> None:
    data = read(tmp_path)
    assert set(data) == HEAD | {"step_logs"} | TAIL
    assert data["step_logs"] == [] == data["epoch_logs"]
    assert data["training_args"] == {"lr": 1e-4, "train_dataset": ["개구리.jsonl"], "output_dir": "out"}
    assert data["model_info"] == INFO and data["training_end_time"] is None


def test_file_is_whole_after_every_line(log, tmp_path) -> None:
    steps, epochs = [], []
    for number in range(1, 9):
        steps.append(step_row(number))
        log.step(steps[-1])
        assert (read(tmp_path)["step_logs"], read(tmp_path)["epoch_logs"]) == (steps, epochs)
        if number % 2 == 0:
            epochs.append(epoch_row(number // 2))
            log.epoch(epochs[-1])
            assert (read(tmp_path)["step_logs"], read(tmp_path)["epoch_logs"]) == (steps, epochs)
    log.finish(completed=True)
    assert (read(tmp_path)["step_logs"], read(tmp_path)["epoch_logs"]) == (steps, epochs)


def test_finished_run_has_the_promised_summary(log, tmp_path) -> None:
    for number, loss in enumerate([3.0, 1.0, 2.0], 1):
        log.step(step_row(number, loss))
    log.epoch(epoch_row(1))
    summary = log.finish(completed=True)
    data = read(tmp_path)
    assert data["training_summary"] == summary and set(summary) == SUMMARY
    assert (summary["final_loss"], summary["best_loss"]) == (2.0, 1.0)
    assert (summary["total_steps"], summary["total_epochs"]) == (3, 1)
    assert summary["avg_step_duration"] == pytest.approx(summary["total_training_time"] / 3)
    assert data["training_end_time"] >= data["training_start_time"]


def test_losses_file_has_one_entry_an_epoch(log, tmp_path) -> None:
    assert not (tmp_path / "training_losses.json").exists()
    log.epoch(epoch_row(1, 0.75))
    assert read(tmp_path, "training_losses.json") == [{"epoch": 1, "loss": 0.75}]
    log.epoch(epoch_row(2, 0.25))
    assert read(tmp_path, "training_losses.json") == [{"epoch": 1, "loss": 0.75}, {"epoch": 2, "loss": 0.25}]


@pytest.mark.parametrize("completed", [True, False])
def test_report_has_the_promised_keys_and_says_whether_the_run_was_completed(completed, log, tmp_path) -> None:
    log.step(step_row(1))
    log.epoch(epoch_row(1, 0.75))
    summary = log.finish(completed)
    report = read(tmp_path, "training_summary_report.json")
    assert report.pop("total_duration_hours") == pytest.approx(summary["total_training_time"] / 3600)
    assert report.pop("completion_time") == read(tmp_path)["training_end_time"]
    assert report == {
        "training_completed": completed,
        "model_info": INFO,
        "training_args": read(tmp_path)["training_args"],
        "performance_summary": summary,
        "loss_progression": [0.75],
    }


def test_run_without_a_step_can_be_closed(log, tmp_path) -> None:
    summary = log.finish(completed=False)
    assert (summary["final_loss"], summary["best_loss"], summary["avg_step_duration"]) == (None, None, None)
    assert read(tmp_path)["training_summary"]["total_steps"] == 0


def test_second_run_in_the_folder_leaves_nothing_of_the_first(log, tmp_path) -> None:
    for number in range(50):
        log.step(step_row(number))
    RunLog(tmp_path, ARGS, INFO).step(step_row(1))
    assert len(read(tmp_path)["step_logs"]) == 1


def test_killed_process_leaves_every_line_so_far(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, pathlib; from embedrag.training.state.run_log import RunLog\n"
        "log = RunLog(pathlib.Path(sys.argv[1]), {}, {})\n"
        "for n in range(7): log.step({'loss': n})\n"
        "log.epoch({'epoch': 1, 'avg_loss': 3.0}); log.step({'loss': 7})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    data = read(tmp_path)
    assert [row["loss"] for row in data["step_logs"]] == list(range(8))
    assert len(data["epoch_logs"]) == 1 and data["training_summary"] is None
    assert read(tmp_path, "training_losses.json") == [{"epoch": 1, "loss": 3.0}]
    assert not (tmp_path / "training_summary_report.json").exists()


def test_step_writes_only_its_row_and_the_closing_bytes(log, tmp_path, monkeypatch) -> None:
    written: list[tuple[int, int]] = []
    real = os.pwrite

    def watch(file: int, data: bytes, position: int) -> int:
        written.append((len(data), position))
        return real(file, data, position)

    monkeypatch.setattr(os, "pwrite", watch)
    row = len(json.dumps(step_row(10)))
    sizes = []
    for number in range(10, 99):
        log.step(step_row(number))
        sizes.append((tmp_path / DETAILS).stat().st_size)
    assert len(written) == 89, "one system call a step"
    assert max(length for length, _ in written) < row + 100
    assert {after - before for before, after in zip(sizes[:-1], sizes[1:], strict=True)} == {row + len(",\n")}
    assert written[-1][1] > 80 * row, "rows before the last are not written again"


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_number_that_is_not_finite_leaves_the_file_valid(value, log, tmp_path) -> None:
    log.step(step_row(1) | {"grad_norm": value})
    assert len(read(tmp_path)["step_logs"]) == 1
