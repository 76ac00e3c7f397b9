"""Whole runs on tiny models: what falls, what is written, what loads."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedrag.cli import main
from embedrag.models.load import load_model
from embedrag.runtime.claims import claim
from embedrag.training.trainer import Trainer
from tests.processes import Process

KINDS = {
    "full": ["--finetune_type", "full", "--lr", "1e-3"],
    "lora": ["--finetune_type", "lora", "--lr", "3e-3"],
    "qlora4": ["--finetune_type", "qlora", "--lr", "3e-3"],
    "qlora8": ["--finetune_type", "qlora", "--quantization_bits", "8", "--lr", "3e-3"],
}
RUN_FILES = {
    ".embedrag-run.json",
    "final",
    "checkpoint-epoch-3",
    "detailed_training_logs.json",
    "training_losses.json",
    "training_summary_report.json",
    "metrics.json",
    "runs",
}


def train(model: str, data: Path, output: Path, *words: str) -> int:
    fixed = ["--model_name_or_path", model, "--train_dataset", str(data), "--output_dir", str(output), "--use_cpu"]
    return main(["train", *fixed, "--batch_size", "6", "--temperature", "0.1", *words])


@pytest.fixture
def data(write_jsonl, rows) -> Path:
    return write_jsonl(rows)


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_qwen3"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_run_lowers_the_loss_and_writes_exactly_the_promised_files(
    model: str, kind: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base, output = request.getfixturevalue(model), tmp_path / "out"
    assert train(base, data, output, "--epochs", "6", "--save_on_epoch_end", "3", *KINDS[kind]) == 0
    assert {path.name for path in output.iterdir()} == RUN_FILES | {"checkpoint-epoch-6"}
    losses = json.loads((output / "training_losses.json").read_text())
    assert [row["epoch"] for row in losses] == [1, 2, 3, 4, 5, 6]
    assert losses[-1]["loss"] < 0.9 * losses[0]["loss"]
    names = {path.name for path in (output / "final").iterdir()}
    assert {"training_config.json", "tokenizer.json", "tokenizer_config.json", "modules.json"} <= names
    assert (
        {"model.safetensors", "config.json"} if kind == "full" else {"adapter_model.safetensors", "adapter_config.json"}
    ) <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert any((output / "runs").rglob("events.out.tfevents.*"))


def test_log_layouts_are_those_people_parse(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    train(tiny_bert, data, tmp_path / "out", "--finetune_type", "lora", "--epochs", "2")
    logs = json.loads((tmp_path / "out" / "detailed_training_logs.json").read_text())
    assert {"training_args", "model_info", "training_start_time", "step_logs", "epoch_logs"} <= set(logs)
    assert {"training_end_time", "training_summary"} <= set(logs)
    assert {"finetune_type", "quantization_bits", "total_parameters", "trainable_parameters"} <= set(logs["model_info"])
    assert set(logs["model_info"]["lora_config"]) == {"r", "alpha", "dropout"}
    step_keys = {"epoch", "step", "global_step", "loss", "learning_rate", "step_duration", "timestamp"}
    assert all(step_keys <= set(row) for row in logs["step_logs"])
    assert [row["global_step"] for row in logs["step_logs"]] == list(range(1, len(logs["step_logs"]) + 1))
    epoch_keys = {"epoch", "avg_loss", "total_loss", "num_steps", "epoch_duration", "learning_rate", "timestamp"}
    assert all(epoch_keys <= set(row) for row in logs["epoch_logs"])
    summary_keys = {
        "total_training_time",
        "total_epochs",
        "total_steps",
        "final_loss",
        "best_loss",
        "avg_step_duration",
    }
    assert summary_keys <= set(logs["training_summary"])
    report = json.loads((tmp_path / "out" / "training_summary_report.json").read_text())
    assert report["training_completed"] is True
    assert {"completion_time", "total_duration_hours", "performance_summary", "loss_progression"} <= set(report)


def test_adapter_loads_in_plain_peft_and_gives_our_vectors(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    train(tiny_bert, data, tmp_path / "out", *KINDS["lora"])
    final = str(tmp_path / "out" / "final")
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_bert), final).eval()
    inputs = AutoTokenizer.from_pretrained(final)(["a battery"], return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state.mean(1)
        base = AutoModel.from_pretrained(tiny_bert).eval()(**inputs).last_hidden_state.mean(1)
    ours = load_model(final, "cpu").encode(["a battery"], "query")
    plain = torch.nn.functional.normalize(hidden, dim=-1).numpy()
    np.testing.assert_allclose(ours, plain, atol=1e-6)
    assert np.abs(ours - torch.nn.functional.normalize(base, dim=-1).numpy()).max() > 1e-3


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_qwen3"])
def test_full_model_gives_the_same_vectors_in_sentence_transformers(
    model: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from sentence_transformers import SentenceTransformer

    words = ["--query_prompt", "query: ", "--passage_prompt", "passage: "]
    train(request.getfixturevalue(model), data, tmp_path / "out", *KINDS["full"], *words)
    final = str(tmp_path / "out" / "final")
    texts = ["what is a battery", "a cell that stores charge " * 3]
    theirs, ours = SentenceTransformer(final, device="cpu"), load_model(final, "cpu")
    np.testing.assert_allclose(ours.encode(texts, "query"), theirs.encode_query(texts), atol=1e-5)
    np.testing.assert_allclose(ours.encode(texts, "passage"), theirs.encode_document(texts), atol=1e-5)
    assert np.abs(theirs.encode_query(texts) - theirs.encode_document(texts)).max() > 1e-3


def test_accumulated_step_is_the_mean_over_all_queries_of_its_uneven_batches(
    tiny_bert: str, write_jsonl, rows, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from embedrag.data.collator import SamplingSettings, make_batch, steps_of_epoch
    from embedrag.data.sampler import ShuffledSampler
    from embedrag.data.tokenization import open_store
    from embedrag.losses.contrastive import LossSettings, Pairs, contrastive

    base, data = no_dropout(tiny_bert, tmp_path), write_jsonl(rows[:7])
    words = ["--finetune_type", "full", "--epochs", "1", "--lr", "0.01", "--optimizer", "sgd", "--weight_decay", "0"]
    sizes = [
        "--batch_size",
        "2",
        "--gradient_accumulation_steps",
        "3",
        "--max_grad_norm",
        "0",
        "--warmup_proportion",
        "0",
    ]
    assert train(base, data, tmp_path / "out", *words, *sizes) == 0

    encoder = load_model(base, "cpu")
    store, _ = open_store([str(data)], encoder.tokenizer, encoder.tokenizer.key, tmp_path / "cache")
    (bounds,) = steps_of_epoch(rows=7, batch_size=2, accumulation=3, epoch=0)
    assert [stop - start for start, stop in bounds] == [2, 2, 3]
    total = torch.zeros(())
    for start, stop in bounds:
        picked = list(ShuffledSampler(7, 42).between(start, stop))
        batch = make_batch(store, picked, SamplingSettings(neg_nums=2, seed=42))
        vectors = encoder(batch.tokens)
        queries, passages = vectors[batch.query_index], vectors[batch.passage_index]
        pairs = Pairs(batch.labels, batch.excluded, batch.owner)
        total = total + contrastive(queries, passages, pairs, LossSettings(0.1))[0].sum()
    (total / 7).backward()
    rate = json.loads((tmp_path / "out" / "detailed_training_logs.json").read_text())["step_logs"][0]["learning_rate"]
    trained = load_file(tmp_path / "out" / "final" / "model.safetensors")
    moved = 0.0
    for name, parameter in encoder.backbone.named_parameters():
        expected = parameter.detach() - rate * parameter.grad
        torch.testing.assert_close(trained[name], expected, atol=1e-6, rtol=1e-5)
        moved += float((expected - parameter).abs().sum())
    assert moved > 0.1


def no_dropout(folder: str, tmp_path: Path) -> str:
    from transformers import AutoModel, AutoTokenizer

    target = tmp_path / "no_dropout"
    if not target.exists():
        AutoModel.from_pretrained(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).save_pretrained(
            target
        )
        AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return str(target)


def test_same_seed_gives_the_same_weights_and_another_seed_others(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    weights = []
    for number, seed in enumerate(("1", "1", "2")):
        train(tiny_bert, data, tmp_path / str(number), "--finetune_type", "lora", "--seed", seed, "--epochs", "1")
        weights.append(load_file(tmp_path / str(number) / "final" / "adapter_model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_saved_settings_repeat_the_run(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    train(tiny_bert, data, tmp_path / "first", "--finetune_type", "lora", "--epochs", "1")
    config = tmp_path / "first" / "final" / "training_config.json"
    assert main(["train", "--config", str(config), "--output_dir", str(tmp_path / "second")]) == 0
    first, second = ((tmp_path / name / "training_losses.json").read_text() for name in ("first", "second"))
    assert first == second


def test_steps_per_epoch_sets_the_number_of_optimizer_steps(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    words = ["--steps_per_epoch", "3", "--gradient_accumulation_steps", "2", "--epochs", "2", "--finetune_type", "lora"]
    train(tiny_bert, data, tmp_path / "out", *words)
    logs = json.loads((tmp_path / "out" / "detailed_training_logs.json").read_text())["step_logs"]
    assert [(row["epoch"], row["step"]) for row in logs] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    assert logs[-1]["learning_rate"] < 0.2 * max(row["learning_rate"] for row in logs)


def test_workers_do_not_change_the_losses(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    for workers in ("0", "2"):
        train(tiny_bert, data, tmp_path / workers, "--finetune_type", "lora", "--num_workers", workers, "--epochs", "1")
    assert (tmp_path / "0" / "training_losses.json").read_text() == (
        tmp_path / "2" / "training_losses.json"
    ).read_text()


def test_bfloat16_trains_on_this_device(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    words = ["--finetune_type", "full", "--dtype", "bfloat16", "--epochs", "3", "--lr", "1e-3"]
    assert train(tiny_bert, data, tmp_path / "out", *words) == 0
    losses = json.loads((tmp_path / "out" / "training_losses.json").read_text())
    assert losses[-1]["loss"] < losses[0]["loss"]


def test_loss_that_is_not_finite_stops_the_run_names_rows_and_keeps_the_checkpoint(
    tiny_bert: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import embedrag.training.objective

    real = embedrag.training.objective.contrastive
    calls = []

    def spoiled(*arguments: object, **keywords: object):
        calls.append(1)
        loss, correct = real(*arguments, **keywords)
        return (loss * float("nan") if len(calls) == 3 else loss), correct

    monkeypatch.setattr(embedrag.training.objective, "contrastive", spoiled)
    assert train(tiny_bert, data, tmp_path / "out", "--finetune_type", "lora", "--epochs", "3") == 1
    message = capsys.readouterr().err
    assert "loss is not finite in step 3" in message
    assert re.search(r"rows\.jsonl:\d+", message)
    assert "checkpoint-epoch-1" in message
    assert load_model(str(tmp_path / "out" / "checkpoint-epoch-1"), "cpu").encode(["x"], "query").shape == (1, 64)
    assert not (tmp_path / "out" / "final").exists()
    logs = json.loads((tmp_path / "out" / "detailed_training_logs.json").read_text())
    assert len(logs["step_logs"]) == 2
    assert json.loads((tmp_path / "out" / "training_summary_report.json").read_text())["training_completed"] is False


def train_until_killed(words: list[str]) -> None:
    track = Trainer._track

    def killed_in_step_3(self: Trainer, row: dict[str, Any]) -> None:
        track(self, row)
        if row["global_step"] == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer._track = killed_in_step_3
    main(["train", *words])


def test_killed_run_keeps_its_log_lines(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    words = ["--model_name_or_path", tiny_bert, "--train_dataset", str(data), "--output_dir", str(tmp_path / "out")]
    words += ["--batch_size", "6", "--epochs", "3", "--finetune_type", "lora"]
    process = Process(train_until_killed, [words], {})
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    logs = json.loads((tmp_path / "out" / "detailed_training_logs.json").read_text())
    assert [row["global_step"] for row in logs["step_logs"]] == [1, 2, 3]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith("final")]


def test_overwrite_replaces_an_earlier_run_and_nothing_else(tiny_bert: str, data: Path, tmp_path: Path) -> None:
    words = ["--finetune_type", "lora", "--epochs", "2"]
    train(tiny_bert, data, tmp_path / "out", *words)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert train(tiny_bert, data, tmp_path / "out", *words) == 2
    assert train(tiny_bert, data, tmp_path / "out", "--finetune_type", "lora", "--epochs", "1", "--overwrite") == 0
    assert not (tmp_path / "out" / "checkpoint-epoch-2").exists()
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def with_pooler(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A base whose pooler is loaded although the vectors do not use it."""
    from transformers import AutoModel, AutoTokenizer

    monkeypatch.setattr("embedrag.models.backbone.takes_pooling_argument", lambda config: False)
    torch.manual_seed(0)
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "pooler")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "pooler")
    return str(tmp_path / "pooler")


def test_adapter_that_gets_no_gradient_is_refused_before_training(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = with_pooler(tiny_bert, tmp_path, monkeypatch)
    words = ["--finetune_type", "lora", "--lora_target_modules", "query", "dense"]
    assert train(base, data, tmp_path / "out", *words) == 2
    assert "get no gradient, for example" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_that_the_vectors_do_not_use_are_frozen_and_named_in_a_full_fine_tune(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = with_pooler(tiny_bert, tmp_path, monkeypatch)
    assert train(base, data, tmp_path / "out", "--finetune_type", "full", "--epochs", "1") == 0
    assert "2 weights are frozen because the vectors do not use them: pooler.dense.weight" in capsys.readouterr().out


def test_hub_data_set_is_read_by_its_id(
    tiny_bert: str, rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or datasets.Dataset.from_list(rows)
    )
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a: type("Builder", (), {"hash": "1"}))
    words = ["--model_name_or_path", tiny_bert, "--train_dataset", "owner/name", "--output_dir", str(tmp_path / "out")]
    assert main(["train", *words, "--batch_size", "6", "--finetune_type", "lora", "--epochs", "1"]) == 0
    assert asked[0] == (("owner/name", None), {"split": "train", "streaming": False})
    assert "12 rows" in capsys.readouterr().out


def test_second_start_finds_the_data_tokenised(
    tiny_bert: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--finetune_type", "lora", "--epochs", "1", "--overwrite"]
    for expected in ("tokenised now", "tokenised before"):
        train(tiny_bert, data, tmp_path / "out", *words)
        assert expected in capsys.readouterr().out
    train(tiny_bert, data, tmp_path / "out", *words, "--query_max_len", "9")
    assert "tokenised now" in capsys.readouterr().out


def test_no_data_set_named_takes_the_well_known_path(
    tiny_bert: str, rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tools" / "data").mkdir(parents=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "tools" / "data" / "pairs.jsonl").write_text(lines, encoding="utf-8")
    words = ["--model_name_or_path", tiny_bert, "--output_dir", "out", "--batch_size", "6", "--epochs", "1"]
    assert main(["train", *words, "--finetune_type", "lora"]) == 0
    assert "--train_dataset is not given; tools/data/pairs.jsonl is used" in capsys.readouterr().out


def test_overwrite_that_would_remove_its_own_base_is_refused(
    tiny_bert: str, write_jsonl, rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_bert, tmp_path / "out" / "merged")
    (tmp_path / "out" / "merged" / "merge_config.json").write_text("{}")
    claim(tmp_path / "out", "merged")
    words = ["--train_dataset", str(write_jsonl(rows)), "--output_dir", str(tmp_path / "out"), "--overwrite"]
    assert main(["train", "--model_name_or_path", str(tmp_path / "out" / "merged"), "--batch_size", "2", *words]) == 2
    assert "lies in the run that would be replaced" in capsys.readouterr().err
    assert (tmp_path / "out" / "merged" / "model.safetensors").exists()
