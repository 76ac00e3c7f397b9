"""Two or three processes (gloo) compute what one computes: gradients, runs, resumed runs, faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from embedrag.cli import main
from embedrag.data.tokenization import open_store
from embedrag.errors import UserError
from embedrag.losses.contrastive import LossSettings
from embedrag.runtime.distributed import ProcessGroup
from embedrag.runtime.fsdp import gather_full, shard
from embedrag.training.memory import TokenBudget
from embedrag.training.objective import ContrastiveObjective
from embedrag.training.self_test import processes_distance
from embedrag.training.state.checkpoint import checkpoints
from tests.processes import run_processes, spawn, wait_until
from tests.training.state.test_resume import cut
from tests.training.test_grad_cache import FORMS, RICH, batch_of_5, encoder_of, error

WEIGHT = torch.arange(1.0, 6)
LOGS = "detailed_training_logs.json"


def gradients(model: str, kind: str, processes: ProcessGroup, budget: int | None) -> dict[str, torch.Tensor]:
    encoder = encoder_of(model, kind.removeprefix("sharded "))
    if kind.startswith("sharded") and processes.size > 1:
        shard(encoder.backbone, torch.device("cpu"), processes.size)
        held = sum(parameter.to_local().numel() for parameter in encoder.parameters())
        assert held < 1.2 * sum(parameter.numel() for parameter in encoder.parameters()) / processes.size
    encoder.chunk_tokens = budget or encoder.chunk_tokens
    limit = TokenBudget(encoder.chunk_tokens)
    objective = ContrastiveObjective(encoder, LossSettings(0.1), budget=limit)
    if kind == "lora":  # everything that a loss may hold
        objective = ContrastiveObjective(encoder, RICH, FORMS, guided=True, budget=limit)
    output = objective.backward(batch_of_5(), WEIGHT, processes=processes)
    processes.all_reduce_gradients([p for p in encoder.parameters() if p.requires_grad])
    found = {name: gather_full(p.grad) for name, p in encoder.named_parameters() if p.grad is not None}
    return {"loss": output["loss"], "correct": output["correct"].float(), **found}


def worker(rank: int, size: int, file: str, model: str, kind: str, budget: int | None, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    processes = ProcessGroup(rank, size, size)
    torch.save(gradients(model, kind, processes, budget), f"{out}-{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("size", "kind", "budget"), [(2, "full", None), (3, "lora", 41), (2, "qlora", 60), (3, "sharded full", 41)]
)
def test_gradient_of_several_processes_is_that_of_one(
    size: int, kind: str, budget: int | None, tiny_bert: str, tmp_path: Path
) -> None:
    """With copies, ragged negatives and an excluded pair; wrong by a factor, it would be found."""
    expected = gradients(tiny_bert, kind, ProcessGroup(), None)
    spawn(worker, (size, str(tmp_path / "meet"), tiny_bert, kind, budget, str(tmp_path / "out")), size)
    for rank in range(size):
        found = torch.load(tmp_path / f"out-{rank}")
        assert (
            error({n: v for n, v in found.items() if n != "loss"}, {n: v for n, v in expected.items() if n != "loss"})
            < (1e-4 if kind == "qlora" else 1e-6)  # 4-bit layers compute in bfloat16
        )
        torch.testing.assert_close(found["loss"], expected["loss"], rtol=1e-6, atol=1e-6)
        halved = {name: value / size for name, value in found.items()}
        assert error(halved, expected) > 0.1


def test_gradient_of_a_wrong_scale_is_found_at_the_start(
    tiny_bert: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process plays two that have nothing to add, and sums come out too small."""
    monkeypatch.setattr(ProcessGroup, "gather", lambda self, value: [value] * self.size)
    step = ContrastiveObjective(encoder_of(tiny_bert, "lora"), LossSettings(0.1))
    tokenizer = step.encoder.tokenizer
    store = open_store([str(data)], tokenizer, tokenizer.key, data.parent / "cache")[0]
    for factor, message in ((1.0, None), (0.5, "is not the gradient of one")):
        # The whole batch is this process's share, so the sum over both is what it has itself.
        monkeypatch.setattr("embedrag.training.objective.share_out", lambda costs, size: [list(range(len(costs))), []])
        monkeypatch.setattr(ProcessGroup, "all_reduce", lambda self, tensor: tensor)
        monkeypatch.setattr(
            ProcessGroup,
            "all_reduce_gradients",
            lambda self, parameters, factor=factor: [p.grad.mul_(factor if self.size > 1 else 1) for p in parameters],
        )
        monkeypatch.setattr(ContrastiveObjective, "queries", staticmethod(lambda count, processes: slice(0, count)))
        if message:
            with pytest.raises(UserError, match=message):
                processes_distance(step, store, 2, ProcessGroup(0, 2))
        else:
            assert (processes_distance(step, store, 2, ProcessGroup(0, 2)) or 0) < 1e-5
    assert processes_distance(step, store, 2, ProcessGroup()) is None


@pytest.fixture
def data(write_jsonl: Callable[..., Path], rows: list[dict[str, object]]) -> Path:
    return write_jsonl(rows)


def command(model: str, data: Path, output: Path, *more: str) -> list[str]:
    fixed = ["--model_name_or_path", model, "--train_dataset", str(data), "--output_dir", str(output), "--use_cpu"]
    words = ["--finetune_type", "lora", "--lr", "3e-3", "--temperature", "0.1", "--epochs", "2"]
    return ["train", *fixed, *words, *more]


def launch(words: list[str]) -> subprocess.Popen[str]:
    """The program itself, which starts the processes and waits for them; the other tests are their own launcher."""
    program = [sys.executable, "-m", "embedrag", *words, "--num_processes", "2"]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def steps(output: Path) -> list[dict[str, float]]:
    text = (output / LOGS).read_text()
    return json.loads(text)["step_logs"] if text else []  # it may be looked at the moment it is made


def test_run_of_two_processes_is_the_run_of_one_with_batches_twice_as_large(
    tiny_bert: str, data: Path, tmp_path: Path
) -> None:
    assert main(command(tiny_bert, data, tmp_path / "one", "--batch_size", "4", "--lora_dropout", "0")) == 0
    two = run_processes(command(tiny_bert, data, tmp_path / "two", "--batch_size", "2", "--lora_dropout", "0"))
    assert two.count("training: ") == 1 and two.count("done: ") == 1
    info = json.loads((tmp_path / "two" / LOGS).read_text())["model_info"]
    assert 0 <= info["self_tests"]["processes_equal_one"] < 1e-5
    a, b = steps(tmp_path / "one"), steps(tmp_path / "two")
    assert len(a) == len(b) == 6
    for row, other in zip(a, b, strict=True):
        assert abs(row["loss"] - other["loss"]) < 1e-5
        assert abs(row["grad_norm"] / other["grad_norm"] - 1) < 1e-3
        for name in ("tokens", "accuracy", "negatives_per_query", "masked_pairs", "own_negatives_per_query"):
            assert row[name] == other[name]
    weights = [load_file(tmp_path / name / "final" / "adapter_model.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])


def test_sharded_weights_train_as_whole_ones_and_resume_bit_for_bit(
    tiny_qwen3: str, data: Path, tmp_path: Path
) -> None:
    words = ["--finetune_type", "full", "--lr", "1e-3", "--save_steps", "1", "--save_total_limit", "99"]
    words += ["--dtype", "float32"]
    assert main(command(tiny_qwen3, data, tmp_path / "one", *words, "--batch_size", "4")) == 0
    words += ["--batch_size", "2", "--shard_weights", "--gradient_checkpointing", "--token_budget", "16"]
    run_processes(command(tiny_qwen3, data, tmp_path / "two", *words))
    a, b = steps(tmp_path / "one"), steps(tmp_path / "two")
    assert any(row["recomputed_share"] for row in b)
    assert max(abs(row["loss"] - other["loss"]) for row, other in zip(a, b, strict=True)) < 1e-4
    weights = [load_file(tmp_path / name / "final" / "model.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-3) for name in weights[0])
    assert json.loads((tmp_path / "two" / "final" / "config.json").read_text())["architectures"] == ["Qwen3Model"]
    part = cut(tmp_path / "two", tmp_path / "part", 3)
    run_processes(command(tiny_qwen3, data, part, *words, "--resume", "auto"))
    assert [row["loss"] for row in steps(part)] == [row["loss"] for row in b]
    continued = load_file(part / "final" / "model.safetensors")
    assert all(torch.equal(weights[1][name], continued[name]) for name in continued)


def test_without_gathering_each_process_scores_its_own_rows(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    words = ["--lora_dropout", "0", "--batch_size", "2", "--gather_negatives", "false"]
    run_processes(command(tiny_bert, data, tmp_path / "out", *words))
    assert main(command(tiny_bert, data, tmp_path / "all", *words[:2], "--batch_size", "4")) == 0
    # The same rows in each step; the loss of the first is the mean of two batches of two, before anything was learnt.
    for row, other in zip(steps(tmp_path / "out"), steps(tmp_path / "all"), strict=True):
        assert row["own_negatives_per_query"] == other["own_negatives_per_query"] and row["tokens"] >= other["tokens"]
        assert row["negatives_per_query"] < other["negatives_per_query"]
    assert main(command(tiny_bert, data, tmp_path / "small", *words[:2], "--batch_size", "2", "--lr", "1e-30")) == 0
    small = [row["loss"] for row in steps(tmp_path / "small")]
    assert abs(steps(tmp_path / "out")[0]["loss"] - (small[0] + small[1]) / 2) < 1e-5


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_two_processes_go_on_bit_for_bit_in_bfloat16(kind: str, tiny_bert: str, data: Path, tmp_path: Path) -> None:
    words = ["--finetune_type", kind, "--batch_size", "2", "--epochs", "1", "--save_steps", "1", "--dtype", "bfloat16"]
    whole = tmp_path / "whole"
    run_processes(command(tiny_bert, data, whole, *words, "--save_total_limit", "99"))
    part = cut(whole, tmp_path / "part", 1)
    run_processes(command(tiny_bert, data, part, *words, "--resume", "auto"))
    assert [row["loss"] for row in steps(part)] == [row["loss"] for row in steps(whole)]
    name = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    weights = [load_file(folder / "final" / name) for folder in (whole, part)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_two_processes_are_stopped_by_a_signal_and_go_on_bit_for_bit(
    tiny_bert: str, data: Path, tmp_path: Path
) -> None:
    words = ["--batch_size", "2", "--epochs", "10", "--lora_dropout", "0.3"]
    whole, output = tmp_path / "whole", tmp_path / "out"
    run_processes(command(tiny_bert, data, whole, *words))
    process = launch(command(tiny_bert, data, output, *words))
    wait_until(lambda: (output / LOGS).is_file() and len(steps(output)) > 3, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and err.count("error:") == 1, err
    assert checkpoints(output)[0].step == len(steps(output)) < len(steps(whole))
    run_processes(command(tiny_bert, data, output, *words, "--resume", "auto"))
    assert [row["loss"] for row in steps(output)] == [row["loss"] for row in steps(whole)]
    weights = [load_file(folder / "final" / "adapter_model.safetensors") for folder in (whole, output)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_run_goes_on_with_another_number_of_processes_at_the_same_row(
    tiny_bert: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--batch_size", "2", "--save_steps", "1", "--save_total_limit", "99"]
    whole = tmp_path / "whole"
    run_processes(command(tiny_bert, data, whole, *words))
    assert len(steps(whole)) == 6
    part = cut(whole, tmp_path / "part", 1)
    assert main(command(tiny_bert, data, part, *words, "--resume", "auto")) == 0
    assert "2 processes before and 1 now" in capsys.readouterr().out
    # 12 rows: one step of 4, then 4 steps of 2 in the first epoch and 6 in the second
    assert [(row["epoch"], row["step"]) for row in steps(part)] == [(1, i) for i in range(1, 6)] + [
        (2, i) for i in range(1, 7)
    ]
    assert all(row["loss"] is not None for row in steps(part))
    assert steps(part)[-1]["learning_rate"] < 0.1 * max(row["learning_rate"] for row in steps(part))


@pytest.mark.slow
def test_process_that_dies_ends_all_with_one_message(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = launch(command(tiny_bert, data, output, "--batch_size", "2", "--epochs", "500"))
    wait_until(lambda: (output / LOGS).is_file() and len(steps(output)) > 0, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "process 1 of 2 was killed by SIGKILL" in err and "Traceback" not in err
    for child in children:
        assert not Path(f"/proc/{child}").exists()


def test_mistake_is_reported_once(tiny_bert: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query": 3}\n')
    process = launch(command(tiny_bert, bad, tmp_path / "out", "--batch_size", "2"))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and err.count("error:") == 1 and "Traceback" not in err
