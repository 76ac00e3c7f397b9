"""A run that goes on from a checkpoint is the unbroken run, bit for bit; what is damaged or different is named."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from embedrag.cli import main
from embedrag.errors import UserError
from embedrag.options.field import extra
from embedrag.training.config.options import TrainOptions
from embedrag.training.state.checkpoint import Checkpoint, checkpoints, damage
from embedrag.training.state.resume import compare_machine, compare_settings, engine_options
from embedrag.training.state.run_record import environment
from embedrag.training.trainer import Trainer
from tests.conftest import sample_rows
from tests.processes import Process, start, wait_until

KINDS = {
    "full": ["--finetune_type", "full", "--lr", "1e-3"],
    "lora": ["--finetune_type", "lora", "--lr", "3e-3"],
    "qlora4": ["--finetune_type", "qlora", "--lr", "3e-3"],
    "qlora8": ["--finetune_type", "qlora", "--quantization_bits", "8", "--lr", "3e-3"],
}


@pytest.fixture
def data(write_jsonl: Callable[..., Path], rows: list[dict[str, object]]) -> Path:
    return write_jsonl(rows)


def words(model: str, data: Path, output: Path, *more: str) -> list[str]:
    fixed = ["--model_name_or_path", model, "--train_dataset", str(data), "--output_dir", str(output), "--use_cpu"]
    return ["train", *fixed, "--batch_size", "3", "--temperature", "0.1", "--epochs", "2", *more]


def train(model: str, data: Path, output: Path, *more: str) -> int:
    return main(words(model, data, output, *more))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "final").glob("*model.safetensors"))
    return load_file(files[0])


def losses(output: Path) -> list[tuple[int, int, int, float]]:
    text = (output / "detailed_training_logs.json").read_text()
    rows = json.loads(text)["step_logs"] if text else []  # it may be looked at the moment it is made
    return [(row["epoch"], row["step"], row["global_step"], row["loss"]) for row in rows]


def cut(output: Path, copy: Path, step: int) -> Path:
    """What a run would have left that was killed some steps after the checkpoint of `step`."""
    shutil.copytree(output, copy)
    shutil.rmtree(copy / "final")
    (copy / "training_summary_report.json").unlink()
    for checkpoint in checkpoints(copy):
        if checkpoint.step > step:
            shutil.rmtree(checkpoint.folder)
    assert checkpoints(copy)[0].step == step
    return copy


def assert_same_run(found: Path, expected: Path) -> None:
    assert losses(found) == losses(expected)
    one, other = weights(found), weights(expected)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in other)
    logs = [json.loads((folder / "detailed_training_logs.json").read_text()) for folder in (found, expected)]
    assert [row["avg_loss"] for row in logs[0]["epoch_logs"]] == [row["avg_loss"] for row in logs[1]["epoch_logs"]]
    assert logs[0]["training_summary"]["total_steps"] == logs[1]["training_summary"]["total_steps"]


CASES = [
    ("tiny_bert", "full", ["--gradient_accumulation_steps", "2"]),
    ("tiny_bert", "lora", ["--gradient_accumulation_steps", "2", "--lora_dropout", "0.3"]),
    ("tiny_bert", "full", ["--optimizer", "adamw8bit"]),
    ("tiny_bert", "lora", ["--optimizer", "adafactor", "--token_budget", "100", "--num_workers", "1"]),
    ("tiny_qwen3", "qlora4", ["--steps_per_epoch", "4"]),
    ("tiny_qwen3", "qlora8", []),
    ("tiny_qwen3", "full", ["--optimizer", "sgd"]),
]


@pytest.mark.parametrize(("model", "kind", "more"), CASES)
def test_continued_run_equals_the_unbroken_one_bit_for_bit(
    model: str, kind: str, more: list[str], data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base, whole = request.getfixturevalue(model), tmp_path / "whole"
    settings = [*KINDS[kind], *more, "--save_steps", "1", "--save_total_limit", "99"]
    assert train(base, data, whole, *settings) == 0
    all_steps = losses(whole)
    per_epoch = sum(row[0] == 1 for row in all_steps)
    middle_of_epoch_2 = per_epoch + max(1, per_epoch // 2)
    assert all_steps[middle_of_epoch_2 - 1][0] == 2 and middle_of_epoch_2 < len(all_steps)
    for step in (1, per_epoch, middle_of_epoch_2):
        part = cut(whole, tmp_path / f"part-{step}", step)
        assert train(base, data, part, *settings, "--resume", "auto") == 0
        assert_same_run(part, whole)


def machine(monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """From here on `auto` settles on `dtype`."""
    instructions = "AVX512-BF16" if dtype == "bfloat16" else None
    monkeypatch.setattr("embedrag.runtime.device.bfloat16_instructions", lambda: instructions)
    monkeypatch.setattr("embedrag.runtime.device.BFLOAT16_WIDTH", 64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_auto_computes_as_the_named_precision_and_goes_on_in_it_wherever_it_is(
    kind: str,
    dtype: str,
    tiny_bert: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It used to keep the frozen base in float32, and the continued run kept it in bfloat16."""
    settings = [*KINDS[kind], *(["--lora_dropout", "0.2"] if kind != "full" else []), "--epochs", "1"]
    checkpoint_each_step = ["--save_steps", "1", "--save_total_limit", "99"]
    machine(monkeypatch, dtype)
    whole, named, other = tmp_path / "whole", tmp_path / "named", {"float32": "bfloat16"}.get(dtype, "float32")
    assert train(tiny_bert, data, whole, *settings, *checkpoint_each_step) == 0
    assert json.loads((whole / "final" / "training_config.json").read_text())["dtype"] == dtype
    machine(monkeypatch, other)
    assert train(tiny_bert, data, named, *settings, "--dtype", dtype) == 0
    assert_same_run(named, whole)
    part = cut(whole, tmp_path / "part", 2)
    capsys.readouterr()
    assert train(tiny_bert, data, part, *settings, *checkpoint_each_step, "--resume", "auto") == 0
    said = capsys.readouterr().out
    assert f"precision: {dtype}, because the run began with it (a new run would take {other} here, because" in said
    assert "last digits" not in said
    assert_same_run(part, whole)
    if kind == "lora":
        assert train(tiny_bert, data, tmp_path / "other", *settings) == 0
        assert losses(tmp_path / "other") != losses(whole)


def checkpoint_with(folder: Path, dtype: str, environment: dict[str, str]) -> Checkpoint:
    (folder / "training_config.json").write_text(json.dumps({"environment": environment}), encoding="utf-8")
    return Checkpoint(folder, {"engine": {"dtype": dtype}, "options": {"dtype": "auto"}})


def test_changed_machine_and_packages_are_named_when_a_run_goes_on(tmp_path: Path) -> None:
    here = environment(torch.device("cpu"))
    assert compare_machine(checkpoint_with(tmp_path, "bfloat16", here), here, "lora") == []
    there = here | {"python": "2.7", "torch": "1.0", "kernels": "an abacus, 3 threads"}
    (line,) = compare_machine(checkpoint_with(tmp_path, "bfloat16", there), here, "lora")
    assert f"torch is {torch.__version__} and was 1.0" in line and "was an abacus, 3 threads" in line
    assert "may differ" in line and "python" not in line


@pytest.mark.parametrize(
    ("dtype", "kind", "told"), [("bfloat16", "lora", 1), ("bfloat16", "full", 0), ("float32", "lora", 0)]
)
def test_checkpoint_of_an_earlier_version_with_another_computation_is_told(
    dtype: str, kind: str, told: int, tmp_path: Path
) -> None:
    here = environment(torch.device("cpu"))
    before = {name: value for name, value in here.items() if name != "kernels"}
    lines = compare_machine(checkpoint_with(tmp_path, dtype, before), here, kind)
    assert len(lines) == told and all("may have kept the frozen base in float32" in line for line in lines)


def test_saving_checkpoints_changes_no_weight_and_dropout_is_on(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    for name, more in (("plain", []), ("saved", ["--save_steps", "1"]), ("seed", ["--seed", "1"])):
        assert train(tiny_bert, data, tmp_path / name, *KINDS["full"], *more) == 0
    assert_same_run(tmp_path / "saved", tmp_path / "plain")
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "seed", tmp_path / "plain")


def test_without_the_random_state_the_continued_run_differs(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*KINDS["full"], "--save_steps", "1", "--save_total_limit", "99"]
    assert train(tiny_bert, data, tmp_path / "whole", *settings) == 0
    part = cut(tmp_path / "whole", tmp_path / "part", 3)
    monkeypatch.setattr("embedrag.training.trainer.set_random_state", lambda state, device: None)
    assert train(tiny_bert, data, part, *settings, "--resume", "auto") == 0
    with pytest.raises(AssertionError):
        assert_same_run(part, tmp_path / "whole")


def test_limit_keeps_the_newest_states_and_every_epochs_model(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert train(tiny_bert, data, output, *KINDS["lora"], "--save_steps", "1", "--save_total_limit", "3") == 0
    total = len(losses(output))
    assert [checkpoint.step for checkpoint in checkpoints(output)] == [total, total - 1, total - 2]
    assert {path.name for path in output.glob("checkpoint-*")} == {
        "checkpoint-epoch-1",
        "checkpoint-epoch-2",
        f"checkpoint-step-{total - 1}",
        f"checkpoint-step-{total - 2}",
    }
    assert not (output / "checkpoint-epoch-1" / "training_state").exists()
    assert (output / "checkpoint-epoch-1" / "adapter_model.safetensors").is_file()
    assert not list(output.rglob("*.pt")) and not list(output.rglob("*.pkl")) and not list(output.rglob("*.bin"))


@pytest.fixture(scope="module")
def whole_and_killed(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows.jsonl, a whole run of LoRA on them, and one that ended after the checkpoint of step 3."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sample_rows()))
    more = [*KINDS["lora"], "--save_steps", "1", "--save_total_limit", "99"]
    assert train(tiny_bert, folder / "rows.jsonl", folder / "whole", *more) == 0
    cut(folder / "whole", folder / "killed", 3)
    return folder


@pytest.fixture
def killed(whole_and_killed: Path, tmp_path: Path) -> Path:
    """A copy of the killed run, for tests that change it."""
    return Path(shutil.copytree(whole_and_killed / "killed", tmp_path / "killed"))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (flip, "adapter_model.safetensors"),
        (flip, "training_state/state.safetensors"),
        (flip, "training_state/state.json"),
        (flip, "training_state/checksums.json"),
        (truncate, "training_state/state.safetensors"),
        (truncate, "training_state/state.json"),
        (empty, "training_state/checksums.json"),
        (Path.unlink, "tokenizer.json"),
        (Path.unlink, "training_state/checksums.json"),
    ],
)
def test_damage_is_named_and_the_checkpoint_before_it_is_used_or_suggested(
    spoil: Callable[[Path], None], name: str, killed: Path, tiny_bert: str, data: Path, capsys: pytest.CaptureFixture
) -> None:
    newest = checkpoints(killed)[0].folder
    assert damage(newest) == []
    spoil(newest / name)
    assert damage(newest) != []
    capsys.readouterr()
    assert train(tiny_bert, data, killed, *KINDS["lora"], "--resume", str(newest)) == 2
    message = capsys.readouterr().err
    assert str(newest) in message and "checkpoint-step-2 (step 2) is complete" in message
    assert name.split("/")[-1] in message and "Traceback" not in message
    assert train(tiny_bert, data, killed, *KINDS["lora"], "--resume", "auto") == 0
    said = capsys.readouterr().out
    assert f"{newest} is damaged" in said and f"resume: {killed}/checkpoint-step-2, step 2" in said


def test_without_a_whole_checkpoint_there_is_an_error_and_all_files_stay(
    killed: Path, tiny_bert: str, data: Path, capsys: pytest.CaptureFixture
) -> None:
    for checkpoint in checkpoints(killed):
        flip(checkpoint.folder / "training_state" / "state.safetensors")
    before = sorted(killed.rglob("*"))
    assert train(tiny_bert, data, killed, *KINDS["lora"], "--resume", "auto") == 2
    assert "is damaged" in capsys.readouterr().out
    assert sorted(killed.rglob("*")) == before


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--batch_size", "4"], "--batch_size is 4 and was 3"),
        (["--lora_r", "4"], "--lora_r is 4 and was 8"),
        (["--seed", "7"], "--seed"),
        (["--optimizer", "sgd"], "--optimizer"),
        (["--passage_max_len", "20"], "--passage_max_len"),
    ],
)
def test_settings_that_make_another_run_are_refused_by_flag(
    more: list[str], named: str, killed: Path, tiny_bert: str, data: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train(tiny_bert, data, killed, *KINDS["lora"], "--resume", "auto", *more) == 2
    assert named in capsys.readouterr().err


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "fixed": ({"lora_r": 4}, "`lora_r` is 4 and was 8"),
    "reported": ({"lr": 0.5, "hardness_strength": 1.0}, "`lr` is 0.5 from here on, and was 0.0001"),
    "free": ({"save_steps": 7, "num_workers": 1, "max_seq_length": 99, "recipe": "bge"}, ""),
}


@pytest.mark.parametrize("rule", CHANGES)
def test_changed_option_is_refused_reported_or_free_by_its_own_rule(rule: str, tmp_path: Path) -> None:
    """The checkpoint has the former names of options."""
    before = TrainOptions(output_dir="o", batch_size=3, finetune_type="lora").resolved().model_dump()
    former = before | {"hardness": 0.0, "hardness_of": "all", "separate": False, "further_directions": []}
    for name in ("hardness_strength", "hardness_mode", "partition_mode", "directions"):
        del former[name]
    (tmp_path / "training_config.json").write_text(json.dumps(former), encoding="utf-8")
    checkpoint = Checkpoint(tmp_path, {"options": former})
    assert compare_settings(checkpoint, before) == []
    changes, message = CHANGES[rule]
    assert {extra(TrainOptions.model_fields[name])["resume"] for name in changes} == {rule}
    if rule == "fixed":
        with pytest.raises(UserError, match=message):
            compare_settings(checkpoint, before | changes)
    else:
        lines = compare_settings(checkpoint, before | changes)
        assert len(lines) == (len(changes) if rule == "reported" else 0)
        assert all(message in line or "hardness_strength" in line for line in lines)


def test_auto_is_no_change_and_another_precision_is_named_with_the_settled_one(tmp_path: Path) -> None:
    options = TrainOptions(output_dir="o", batch_size=3, finetune_type="lora").resolved().model_dump()
    (tmp_path / "training_config.json").write_text(json.dumps(options | {"dtype": "bfloat16"}), encoding="utf-8")
    engine = {"dtype": "bfloat16", "attention": "packed"}
    for before in ("auto", "bfloat16"):
        checkpoint = Checkpoint(tmp_path, {"options": options | {"dtype": before}, "engine": engine})
        assert (
            compare_settings(checkpoint, options) == compare_settings(checkpoint, options | {"dtype": "bfloat16"}) == []
        )
        (line,) = compare_settings(checkpoint, options | {"dtype": "float32"})
        assert "`dtype` is 'float32' from here on, and was 'bfloat16'" in line


def test_other_data_is_refused(
    killed: Path, tiny_bert: str, write_jsonl: Callable[..., Path], rows: list[Any], capsys: pytest.CaptureFixture
) -> None:
    other = write_jsonl(rows[1:], "other.jsonl")
    assert train(tiny_bert, other, killed, *KINDS["lora"], "--resume", "auto") == 2
    assert "--train_dataset" in capsys.readouterr().err


def test_resumed_run_takes_the_token_budget_of_the_checkpoint_and_measures_nothing(
    killed: Path, tiny_bert: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring runs the longest texts through the model; the result used to be thrown away."""
    monkeypatch.setattr("embedrag.training.setup.measure_budget", lambda *_: pytest.fail("memory was measured"))
    assert train(tiny_bert, data, killed, *KINDS["lora"], "--resume", "auto") == 0


def test_changed_learning_rate_is_reported_and_used_and_moved_data_is_not_a_change(
    killed: Path, tiny_bert: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    moved = tmp_path / "moved.jsonl"
    shutil.copy(data, moved)
    assert train(tiny_bert, moved, killed, "--finetune_type", "lora", "--lr", "1e-5", "--resume", "auto") == 0
    assert "--lr is 1e-05 from here on, and was 0.003" in capsys.readouterr().out
    rows = json.loads((killed / "detailed_training_logs.json").read_text())["step_logs"]
    assert rows[2]["learning_rate"] > 1e-4 > 1e-5 > rows[3]["learning_rate"]


def test_run_can_continue_from_a_checkpoint_in_another_folder(
    killed: Path, whole_and_killed: Path, tiny_bert: str, data: Path, tmp_path: Path
) -> None:
    newest, output, whole = checkpoints(killed)[0].folder, tmp_path / "elsewhere", whole_and_killed / "whole"
    assert train(tiny_bert, data, output, *KINDS["lora"], "--resume", str(newest)) == 0
    assert weights(output).keys() == weights(whole).keys()
    assert all(torch.equal(weights(output)[name], value) for name, value in weights(whole).items())
    assert [row[2] for row in losses(output)] == [row[2] for row in losses(whole)][3:]
    assert newest.is_dir()


def test_auto_starts_a_new_run_and_does_not_change_a_complete_one(
    tiny_bert: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "out"
    assert train(tiny_bert, data, output, *KINDS["lora"], "--resume", "auto") == 0
    assert "no whole checkpoint" in capsys.readouterr().out
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    assert train(tiny_bert, data, output, *KINDS["lora"], "--resume", "auto") == 0
    assert "is complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == times


def test_auto_takes_no_other_run_for_the_complete_one_and_merges_what_was_not_merged(
    tiny_bert: str, tiny_qwen3: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output, kind, auto = tmp_path / "out", [*KINDS["lora"], "--epochs", "1"], ("--resume", "auto")
    assert train(tiny_bert, data, output, *kind) == 0
    assert train(tiny_qwen3, data, output, *kind, *auto) == 2
    assert f"--model_name_or_path is '{tiny_qwen3}' and was '{tiny_bert}'" in capsys.readouterr().err
    other = shutil.copy(data, tmp_path / "other.jsonl")
    assert train(tiny_bert, Path(other), output, *kind, *auto, "--weight_decay", "0.5") == 0
    said = capsys.readouterr().out
    assert "--weight_decay is 0.5 now" in said and f"--train_dataset is ['{other}'] now" in said
    assert "is complete; nothing is trained with these settings" in said
    assert train(tiny_bert, data, output, *kind, *auto, "--merge") == 0  # asked for later, or killed in the merge
    made = (output / "merged" / "merge_config.json").stat().st_mtime_ns
    assert train(tiny_bert, data, output, *kind, *auto, "--merge") == 0
    assert (output / "merged" / "merge_config.json").stat().st_mtime_ns == made
    capsys.readouterr()
    assert train(tiny_bert, data, output, *kind, *auto, "--epochs", "2") == 0
    assert "merged is older than final/" in capsys.readouterr().out
    assert train(tiny_bert, data, output, *kind, *auto, "--epochs", "2", "--merge") == 0
    assert (output / "merged" / "merge_config.json").stat().st_mtime_ns > made


def test_states_after_the_resumed_one_are_removed_and_foreign_files_stay(
    killed: Path, tiny_bert: str, data: Path, capsys: pytest.CaptureFixture
) -> None:
    """Else `auto` would take the newest state of a way that was left."""
    foreign = killed / ".mine.tmp-1"
    foreign.mkdir()
    (killed / ".checkpoint-step-9.tmp-x").mkdir()
    first = killed / "checkpoint-step-1"
    settings = ["--finetune_type", "lora", "--lr", "1e-3", "--save_on_epoch_end", "0"]
    assert train(tiny_bert, data, killed, *settings, "--resume", str(first)) == 0
    assert "checkpoint-step-2 keep their model" in capsys.readouterr().out
    assert [checkpoint.step for checkpoint in checkpoints(killed)] == [1]
    assert (killed / "checkpoint-step-3" / "adapter_model.safetensors").is_file()
    assert foreign.is_dir() and not (killed / ".checkpoint-step-9.tmp-x").exists()


def test_step_that_is_not_finite_is_skipped_and_counted_on_request(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from embedrag.training.objective import ContrastiveObjective

    whole, calls = ContrastiveObjective.loss, []

    def once(self: ContrastiveObjective, *rest: Any) -> dict[str, torch.Tensor]:
        output = whole(self, *rest)
        calls.append(1)
        return output | {"loss": output["loss"] * float("nan")} if len(calls) == 3 else output

    monkeypatch.setattr(ContrastiveObjective, "loss", once)
    assert train(tiny_bert, data, tmp_path / "stop", *KINDS["lora"]) == 1
    assert "--on_nonfinite skip" in capsys.readouterr().err
    calls.clear()
    assert train(tiny_bert, data, tmp_path / "skip", *KINDS["lora"], "--on_nonfinite", "skip") == 0
    said = capsys.readouterr().out
    assert f"not finite in step 3 (rows {data}:" in said and "1 of 8 steps were skipped" in said
    found = losses(tmp_path / "skip")
    assert [row[3] is None for row in found] == [number == 3 for number in range(1, 9)]
    assert all(bool(torch.isfinite(value).all()) for value in weights(tmp_path / "skip").values())


def test_missing_checkpoint_is_named_with_the_existing_ones(
    killed: Path, tiny_bert: str, data: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train(tiny_bert, data, killed, *KINDS["lora"], "--resume", str(killed / "checkpoint-step-9")) == 2
    assert "there is" in capsys.readouterr().err


@pytest.fixture(scope="module")
def long_run(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Settings with their data, and the run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sample_rows()))
    settings = words(tiny_bert, folder / "rows.jsonl", folder / "run", *KINDS["full"], "--epochs", "8")
    assert main(settings) == 0
    return settings, folder / "run"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_step_saves_and_the_run_goes_on(
    number: signal.Signals, long_run: tuple[list[str], Path], tmp_path: Path
) -> None:
    settings, expected, output = *long_run, tmp_path / "out"
    settings = [*settings, "--output_dir", str(output)]
    process = start(settings)
    wait_until(lambda: (output / "detailed_training_logs.json").is_file() and len(losses(output)) > 3, process)
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 75, err
    assert number.name in out and "--resume auto" in err and "Traceback" not in err
    done = len(losses(output))
    assert 3 < done < len(losses(expected)) and checkpoints(output)[0].step == done
    assert main([*settings, "--resume", "auto"]) == 0
    assert_same_run(output, expected)


def train_with_a_disk_that_fills_up(settings: list[str]) -> int:
    """After step 2 no file may be larger than 200 kB."""
    save = Trainer._save

    def limited(self: Trainer, *rest: Any) -> None:
        if self.state.global_step > 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        save(self, *rest)

    Trainer._save = limited
    return main(settings)


def test_full_disk_is_an_error_and_the_earlier_checkpoint_is_whole(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    output, full = tmp_path / "out", tmp_path / "full"
    more = [*KINDS["full"], "--save_steps", "2"]
    assert train(tiny_bert, data, output, *more) == 0
    process = Process(train_with_a_disk_that_fills_up, [words(tiny_bert, data, full, *more)], {})
    _, err = process.communicate()
    assert process.returncode == 1 and "Traceback" not in err, err
    assert "checkpoint-epoch-1: not written" in err and "unchanged" in err
    assert [checkpoint.step for checkpoint in checkpoints(full)] == [2]
    assert damage(checkpoints(full)[0].folder) == [] and not list(full.glob("*.tmp-*"))
    assert train(tiny_bert, data, full, *more, "--resume", "auto") == 0
    assert_same_run(full, output)


def test_lengths_that_are_not_given_are_those_of_the_checkpoint(
    killed: Path, tiny_bert: str, data: Path, tmp_path: Path
) -> None:
    """Earlier runs of several processes settled other lengths than one process would; they go on with theirs."""
    checkpoint = checkpoints(killed)[0]
    options = TrainOptions(output_dir=str(killed), batch_size=3)
    settled = json.loads((checkpoint.folder / "training_config.json").read_text())
    assert engine_options(checkpoint, options).passage_max_len == settled["passage_max_len"] != options.passage_max_len
    asked = TrainOptions(output_dir=str(killed), batch_size=3, passage_max_len=20)
    assert engine_options(checkpoint, asked).passage_max_len == 20
