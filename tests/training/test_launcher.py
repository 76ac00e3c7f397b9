"""How processes are started, and the scripts of `configs/launch/`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from embedrag.errors import EmbedRagError, RunError, StoppedError, UserError, joined, to_record
from embedrag.runtime.console import console
from embedrag.training.config.options import TrainOptions
from embedrag.training.launcher import _wait, child_options, launch, wanted_processes
from embedrag.training.preflight import with_engine

SCRIPTS = Path(__file__).parents[2] / "configs" / "launch"


def options(**more: object) -> TrainOptions:
    return TrainOptions(output_dir="x", batch_size=2, **more)


def test_one_process_for_each_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert wanted_processes(options()) == 2
    assert wanted_processes(options(num_processes=1)) == 1
    assert wanted_processes(options(use_cpu=True)) == 1
    assert wanted_processes(options(use_cpu=True, num_processes=3)) == 3
    with pytest.raises(UserError, match="only 2 GPUs are visible"):
        wanted_processes(options(num_processes=3))
    monkeypatch.setenv("WORLD_SIZE", "4")  # a launcher has started them
    assert wanted_processes(options()) == 1
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert wanted_processes(options()) == 1


@pytest.mark.parametrize(
    ("name", "engine"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_engine_that_accelerate_asks_for_means_sharded_weights(
    name: str, engine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not with_engine(options(finetune_type="full")).shard_weights
    monkeypatch.setenv(name, "true")
    assert with_engine(options(finetune_type="full")).shard_weights
    assert f"accelerate asks for {engine}" in capsys.readouterr().out
    assert name not in os.environ  # accelerate itself would wrap the optimizer for it
    monkeypatch.setenv(name, "true")
    with pytest.raises(UserError, match=f"{engine}, which needs `finetune_type=full`"):
        with_engine(options(finetune_type="lora"))


@pytest.mark.slow
def test_accelerate_launches_the_sharded_engine(
    tiny_bert: str, write_jsonl: Callable[..., Path], rows: list[dict[str, object]], tmp_path: Path
) -> None:
    """The file as shipped, on two CPU processes."""
    config = (SCRIPTS / "fsdp.yaml").read_text().replace("num_processes: 8", "num_processes: 2\nuse_cpu: true")
    (tmp_path / "fsdp.yaml").write_text(config)
    words = ["--model_name_or_path", tiny_bert, "--train_dataset", str(write_jsonl(rows)), "--batch_size", "2"]
    words += ["--output_dir", str(tmp_path / "out"), "--use_cpu", "--epochs", "1", "--finetune_type", "full"]
    accelerate = [str(Path(sys.executable).with_name("accelerate")), "launch"]
    result = subprocess.run(
        [*accelerate, "--config_file", str(tmp_path / "fsdp.yaml"), "train.py", *words],
        cwd=SCRIPTS.parent.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "accelerate asks for FSDP" in result.stdout
    assert len(json.loads((tmp_path / "out" / "detailed_training_logs.json").read_text())["step_logs"]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"finetune_type": "lora"}, "`shard_weights`: needs `finetune_type=full`"),
        ({"finetune_type": "full", "optimizer": "adamw8bit"}, "has a state that `shard_weights` can't divide"),
        (
            {"finetune_type": "full", "gather_negatives": False},
            "`gather_negatives=false`: is not possible with `shard_weights`",
        ),
        ({"finetune_type": "full", "dtype": "float16"}, "`dtype=float16`: is not possible with `shard_weights`"),
    ],
)
def test_settings_that_can_not_be_sharded_are_refused_by_flag(words: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options(shard_weights=True, **words)


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sh")))
def test_launch_scripts_are_sound_shell_and_name_real_flags(script: str) -> None:
    path = SCRIPTS / script
    assert subprocess.run(["sh", "-n", str(path)], capture_output=True).returncode == 0
    flags = {word for word in path.read_text().split("train.py")[-1].split() if word.startswith("--")}
    assert {flag.removeprefix("--") for flag in flags} <= set(TrainOptions.model_fields)


@pytest.mark.slow
def test_script_of_two_nodes_trains_with_two_launchers_on_this_machine(
    tiny_bert: str, write_jsonl: Callable[..., Path], rows: list[dict[str, object]], tmp_path: Path
) -> None:
    """torchrun twice, one process each, as two machines would."""
    words = ["--model_name_or_path", tiny_bert, "--train_dataset", str(write_jsonl(rows)), "--batch_size", "2"]
    words += ["--output_dir", str(tmp_path / "out"), "--use_cpu", "--epochs", "1", "--finetune_type", "lora"]
    nodes = []
    for node in ("0", "1"):
        environment = {
            "NODE": node,
            "MASTER": "127.0.0.1",
            "GPUS": "1",
            "PORT": "29611",
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "EMBEDRAG_CACHE": str(tmp_path / "cache"),
            "HOME": str(tmp_path),
        }
        nodes.append(
            subprocess.Popen(
                ["sh", str(SCRIPTS / "two_nodes.sh"), *words],
                env=environment,
                cwd=SCRIPTS.parent.parent,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    results = [node.communicate(timeout=200) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], results
    assert "done: " in results[0][0] and "done: " not in results[1][0]
    assert len(json.loads((tmp_path / "out" / "detailed_training_logs.json").read_text())["step_logs"]) == 3


def test_children_get_the_options_that_were_given_and_no_others() -> None:
    """Defaults that were passed on counted as asked for: two processes cut texts at other lengths than one."""
    given = TrainOptions(output_dir="out", batch_size=2, train_dataset=["rows.jsonl"], num_processes=2).resolved()
    passed = TrainOptions(**json.loads(json.dumps(child_options(given))))
    assert not {"query_max_len", "passage_max_len"} & passed.model_fields_set
    assert passed.model_dump() == given.model_copy(update={"num_processes": None}).model_dump()


def test_processes_of_a_silenced_console_are_silent_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start, program = subprocess.Popen, "from embedrag.runtime.console import say; say('seen')"
    monkeypatch.setattr(
        "embedrag.training.launcher.subprocess.Popen",
        lambda words, **settings: start([sys.executable, "-c", program], **settings),
    )
    with console.silenced():
        launch(options(), 2)
    assert capfd.readouterr() == ("", "")
    launch(options(), 2)
    assert capfd.readouterr().out == "seen\n"


def test_signal_before_the_processes_train_offers_no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that load their libraries have no handler yet, and die of the signal that is passed on."""
    start = subprocess.Popen
    monkeypatch.setattr(
        "embedrag.training.launcher.subprocess.Popen",
        lambda words, **settings: start([sys.executable, "-S", "-c", "import time; time.sleep(60)"], **settings),
    )
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(StoppedError, match="stopped by SIGTERM before the first step") as stopped:
        launch(options(), 2)
    assert "resume" not in str(stopped.value)


def ended(code: int, *records: EmbedRagError | None, folder: Path) -> None:
    """What the launcher makes of processes that ended with this exit code and left these errors."""
    children, errors = [], []
    for rank, error in enumerate(records):
        errors.append(folder / f"errors-{rank}")
        errors[-1].write_text("error: said on standard error\n")
        if error:
            errors[-1].with_suffix(".json").write_text(json.dumps(to_record(error)))
        children.append(subprocess.Popen([sys.executable, "-S", "-c", f"raise SystemExit({code if error else 70})"]))
    _wait(children, errors)


def test_error_of_a_process_is_the_error_of_the_call(tmp_path: Path) -> None:
    """In a notebook with two GPUs a mistake must name its argument, as with one."""
    mistake = joined([UserError("must be 1 or more", "batch_size", 0), UserError("rows.jsonl:3: no query")])
    with pytest.raises(UserError) as caught:
        ended(2, mistake, mistake, folder=tmp_path)
    assert [problem.argument for problem in caught.value.problems] == ["batch_size", None]
    assert str(caught.value) == "`batch_size=0`: must be 1 or more\nrows.jsonl:3: no query"
    with pytest.raises(StoppedError, match="`resume=auto` goes on") as stopped:
        ended(75, StoppedError("stopped; `resume=auto` goes on"), None, folder=tmp_path / "..")
    assert stopped.value.exit_code == 75


def test_error_of_another_process_than_the_first_is_raised_too(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the disk is full"):
        ended(1, None, RunError("the disk is full"), folder=tmp_path)
