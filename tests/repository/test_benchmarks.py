"""The benchmark prints a ratio for equal work only."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks.report import document


def results(difference: float, same_tokens: bool = True) -> dict[str, object]:
    """A finished benchmark: embedrag twice as fast as another program."""
    cell = {"model": "m", "finetune": "full", "mix": "mixed", "candidates": "all", "knobs": {}, "round": 0}
    names = ("step_seconds", "useful_share", "repeated_share", "memory_mib", "cpu_seconds", "gemm_share")
    figures = dict.fromkeys((*names, "first_step_seconds"), 1.0)
    runs = [
        cell | figures | {"contestant": name, "tokens_per_second": speed, "same_tokens": same_tokens or name != "st"}
        for name, speed in (("embedrag", 200.0), ("st", 100.0))
    ]
    check = cell | {"contestant": "st", "difference": difference, "mean_loss": 1.0, "steps": 20}
    return {"head": {}, "notes": [], "lengths": [], "sweeps": [], "equality": [check], "runs": runs}


def test_equal_work_gets_its_ratio() -> None:
    assert "| 2.00 " in document(results(difference=1e-6))


@pytest.mark.parametrize("difference", [2e-4, float("nan")])
def test_other_losses_get_none(difference: float) -> None:
    text = document(results(difference))
    assert "no ratio" in text and "2.00" not in text


def test_other_tokens_get_none() -> None:
    assert "other tokens were trained: no ratio" in document(results(difference=1e-6, same_tokens=False))


PROGRAMS = sorted(path.stem for path in (Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in ("__init__", "report", "workload")])
def test_every_benchmark_lists_its_options(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    assert ended.value.code == 0
    assert f"benchmarks.{name}" in capsys.readouterr().out
