"""A sweep finds the better setting, goes on after a kill, and refuses what no training takes before it starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import embedrag.training.sweep
from embedrag.cli import main
from embedrag.errors import UserError
from embedrag.training.sweep import BEST, check, check_sweep_folder, read_base, read_space


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """A function that writes JSON into a named file."""

    def to(name: str, content: Any) -> str:
        path = tmp_path / name
        path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)

    return to


@pytest.fixture
def base(tiny_bert: str, write_jsonl: Callable[..., Path], rows: list[dict[str, Any]]) -> dict[str, Any]:
    data = str(write_jsonl(rows))
    return {
        "model_name_or_path": tiny_bert, "train_dataset": [data], "eval_dataset": data, "batch_size": 4,
        "finetune_type": "lora", "use_cpu": True, "dtype": "float32", "temperature": 0.1, "epochs": 1,
        "metric_for_best": "mrr@10", "no_self_test": True,
    }  # fmt: skip


SPACE = {"lr": [1e-9, 3e-3]}


def start(base: str, space: str, folder: Path, trials: int) -> int:
    return main(["sweep", "--config", base, "--space", space, "--output_dir", str(folder), "--trials", str(trials)])


def test_sweep_finds_the_better_learning_rate_and_goes_on(base, write, tmp_path, capsys, monkeypatch) -> None:
    """The first trial is a training; the values of the others are given, because each training takes seconds."""
    config, space, folder = write("base.json", base), write("space.json", SPACE), tmp_path / "sweep"
    trained: list[dict[str, Any]] = []
    values: dict[float, float] = {}
    real = embedrag.training.sweep.train

    def watched(settings: dict[str, Any], *rest: Any) -> float | None:
        trained.append(settings)
        if len(trained) == 2:
            raise KeyboardInterrupt  # the sweep is stopped in its second trial
        value = real(settings, *rest) if len(trained) == 1 else settings["lr"] + 1
        values[settings["lr"]] = value
        return value

    monkeypatch.setattr(embedrag.training.sweep, "train", watched)
    assert start(config, space, folder, 4) == 130
    assert start(config, space, folder, 4) == 0
    assert trained[2]["lr"] == trained[1]["lr"]  # the trial that was under way comes again
    assert len(trained) == 5
    output = capsys.readouterr().out
    best = json.loads((folder / BEST).read_text())
    assert len(values) == 2 and 0 < values[trained[0]["lr"]]
    assert best["lr"] == max(values, key=lambda lr: values[lr]) and best["epochs"] == 1
    assert "best settings" in output and "| trial" in output.replace("|   trial", "| trial")
    assert start(config, space, folder, 4) == 0 and len(trained) == 5  # all trials are there


@pytest.mark.slow
def test_hopeless_training_is_ended_and_a_failed_one_says_why(base, tmp_path) -> None:
    settings = base | {"epochs": 30, "lr": 1e-3}
    assert embedrag.training.sweep.train(settings, tmp_path / "trial-a", "mrr@10", lambda step, value: True) is None
    assert not (tmp_path / "trial-a" / "final").exists()
    with pytest.raises(embedrag.training.sweep.RunError, match="ended with exit code 2: .*lr -1.0: must be"):
        embedrag.training.sweep.train(settings | {"lr": -1.0}, tmp_path / "b", "mrr@10", lambda *_: False)


@pytest.mark.parametrize(
    ("space", "part"),
    [
        ({}, "must be an object such as"),
        ({"lrr": [1]}, "lrr is not an option of a training; did you mean lr"),
        ({"output_dir": ["a"]}, "output_dir is not an option"),
        ({"lr": {"low": 1, "high": 1}}, 'numbers "low" < "high"'),
        ({"lr": {"low": 1e-5, "high": 1e-3, "lgo": True}}, 'numbers "low" < "high"'),
        ({"lr": []}, "must be a list of plain values"),
        ({"matryoshka_dims": [[64]]}, "must be a list of plain values"),
    ],
)
def test_wrong_space_is_named(space, part, write) -> None:
    with pytest.raises(UserError) as caught:
        read_space(write("space.json", space))
    assert part in str(caught.value)


def test_value_that_no_training_takes_is_refused_before_the_first_trial(base, write, tmp_path, capsys) -> None:
    config = write("base.json", base)
    assert start(config, write("space.json", {"lr": [1e-4, -1.0], "pooling": ["mean", "maen"]}), tmp_path / "s", 2) == 2
    message = capsys.readouterr().err
    assert "--space: lr -1.0" in message and "pooling 'maen'" in message
    assert not (tmp_path / "s").exists()


def test_config_of_a_sweep_has_an_evaluation_and_no_folder(base, write) -> None:
    with pytest.raises(UserError, match="output_dir is set by the sweep"):
        read_base(write("a.json", base | {"output_dir": "x"}))
    without = read_base(write("b.json", {key: value for key, value in base.items() if key != "eval_dataset"}))
    with pytest.raises(UserError, match="needs eval_dataset or eval_split"):
        check(without, SPACE)
    assert check(read_base(write("c.json", base)), SPACE) == "mrr@10"


def test_foreign_files_of_a_sweeps_names_are_named_and_stay(tmp_path) -> None:
    for name in ("study.jsonl", "best_config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="holds study.jsonl, best_config.json, which no sweep wrote"):
        check_sweep_folder(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best_config.json", "study.jsonl"]
    (tmp_path / "study.jsonl").write_text('{"op_code": 0}')  # of an earlier version
    check_sweep_folder(tmp_path)
    check_sweep_folder(tmp_path)
    with pytest.raises(UserError, match="`output_dir=.*: .*; name another folder"):
        check_sweep_folder(tmp_path / "study.jsonl")


def test_continued_sweep_draws_what_the_unbroken_one_draws(base, write, tmp_path, monkeypatch) -> None:
    """A sampler with the same seed at each start would repeat the first trials."""
    drawn: dict[str, list[float]] = {"whole": [], "parts": []}
    config, space = write("base.json", base), write("space.json", {"lr": {"low": 1e-5, "high": 1e-2, "log": True}})
    for name, starts in {"whole": [4], "parts": [1, 2, 4]}.items():

        def trained(settings: dict[str, Any], *_: Any, found: list[float] = drawn[name]) -> float:
            found.append(settings["lr"])
            return settings["lr"]

        monkeypatch.setattr("embedrag.training.sweep.train", trained)
        assert [start(config, space, tmp_path / name, trials) for trials in starts] == [0] * len(starts)
    assert drawn["whole"] == drawn["parts"] and len(set(drawn["whole"])) == 4
