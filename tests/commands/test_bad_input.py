"""What users get wrong: one line that names place and remedy, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import builtins
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from embedrag.cli import main

GOOD = {"query": "q", "pos": ["p"], "neg": ["n"]}


@pytest.fixture
def run(tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run train with one thing wrong; returns the error lines. Loading weights is made impossible."""

    def forbidden(*arguments: object, **keywords: object) -> None:
        raise AssertionError("weights were loaded before the input was checked")

    monkeypatch.setattr("embedrag.training.setup.trainable_backbone", forbidden)

    def call(*words: str, rows: object = None, text: bytes | None = None, code: int = 2) -> str:
        data = tmp_path / "rows.jsonl"
        if text is None:
            text = "".join(json.dumps(row) + "\n" for row in (rows or [GOOD] * 3)).encode()
        data.write_bytes(text)
        flags = {
            "--model_name_or_path": tiny_bert,
            "--train_dataset": str(data),
            "--output_dir": str(tmp_path / "out"),
            "--batch_size": "2",
        }
        flags |= dict(zip(words[::2], words[1::2], strict=True))
        assert main(["train", *(word for pair in flags.items() for word in pair)]) == code
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        assert not (tmp_path / "out").exists()
        assert all(line.startswith("error: ") for line in output.err.splitlines())
        return output.err

    return call


FLAGS = [
    (["--batch_size", "0"], "--batch_size 0: must be 1 or more"),
    (["--temperature", "0"], "--temperature 0: must be greater than 0"),
    (["--temperature", "nan"], "--temperature nan: must be finite"),
    (["--neg_nums", "-1"], "--neg_nums -1: must be 0 or more"),
    (["--quantization_bits", "5"], "--quantization_bits 5: must be one of 4, 8"),
    (["--finetune_type", "lorra"], "must be one of qlora, lora, full; did you mean lora?"),
    (["--pooling", "avg"], "--pooling avg: must be one of auto, last_token, mean, cls"),
    (["--optimizer", "adamww"], "did you mean adamw?"),
    (["--epochs", "1.5"], "--epochs 1.5: must be a whole number"),
    (["--lr", "-1"], "--lr -1: must be greater than 0"),
    (["--device", "gpu"], "--device gpu: must be one of auto, cuda, mps, cpu"),
    (["--bach_size", "3"], "unknown flag --bach_size; did you mean --batch_size?"),
    (["--device", "cpu", "--dtype", "float16"], "--dtype float16"),
    (["--candidates", "hard", "--neg_nums", "0"], "--candidates hard"),
    (["--model_name_or_path", "/no/such/base"], "/no/such/base: no such folder"),
    (["--model_name_or_path", "./base"], "./base: no such folder"),
    (["--train_dataset", "missing.jsonl"], "missing.jsonl: no such file"),
    (["--config", "missing.json"], "missing.json"),
]


@pytest.mark.parametrize(("words", "message"), FLAGS, ids=[" ".join(words) for words, _ in FLAGS])
def test_bad_flag_is_named_with_what_is_accepted(run, words: list[str], message: str) -> None:
    assert message in run(*words)


ROWS = [
    (b"", "no rows"),
    (b"\n\n", "no rows"),
    (b'{"query": "q", "pos": ["p"]}\n' * 6 + b'{"query": "q", \n', "rows.jsonl:7: not JSON"),
    (b'{"query": "q", "pos": []}', "rows.jsonl:1: pos is empty"),
    (b'{"query": "q"}', "rows.jsonl:1: no positive (pos or positive or pos_doc)"),
    (b'{"query": "q", "pos": null}', "rows.jsonl:1: pos is null"),
    (b'{"query": "q", "pos": [3]}', "rows.jsonl:1: pos[0] must be a text, not a number"),
    (b'{"query": "q", "pos": ["p", null]}', "rows.jsonl:1: pos[1] must be a text, not null"),
    (b'{"query": " ", "pos": ["p"]}', "rows.jsonl:1: query is blank"),
    (b'{"query": null, "pos": ["p"]}', "rows.jsonl:1: query must be a text, not null"),
    (b'{"frage": "q", "antwort": "p"}', "rows.jsonl:1: no query (query or anchor) among its keys frage, antwort"),
    (b'{"qeury": "q", "pos": ["p"]}', "did you mean query?"),
    (b'["q"]', "rows.jsonl:1: must be an object {…}, not a list"),
    (b'"text"', "rows.jsonl:1: must be an object"),
    ('{"query": "반도체", "pos": ["p"]}'.encode("cp949"), "rows.jsonl:1: not UTF-8"),
    (b'{"query": "q", "pos": ["p"], "positive": "p"}', "rows.jsonl:1: has both pos and positive"),
]


@pytest.mark.parametrize(("text", "message"), ROWS, ids=[message for _, message in ROWS])
def test_bad_row_is_named_by_file_and_line(run, text: bytes, message: str) -> None:
    assert message in run(text=text)


def test_all_bad_rows_are_reported_together(run) -> None:
    message = run(rows=[GOOD, {"query": "", "pos": ["p"]}, GOOD, {"query": "q", "pos": []}])
    assert "rows.jsonl:2: query is blank" in message
    assert "rows.jsonl:4: pos is empty" in message


def test_flag_problems_and_path_problems_are_each_reported_together(run, tmp_path: Path) -> None:
    message = run("--batch_size", "0", "--temperature", "0", "--epochs", "x")
    assert all(flag in message for flag in ("--batch_size", "--temperature", "--epochs"))
    message = run("--model_name_or_path", "/no/base", "--train_dataset", "/no/data.jsonl")
    assert "/no/base" in message
    assert "/no/data.jsonl" in message


def test_batch_of_one_without_negatives_is_refused(run) -> None:
    message = run("--batch_size", "1", rows=[{"query": f"q{i}", "pos": ["p"]} for i in range(3)])
    assert "leave no negatives at all" in message
    assert "--batch_size 2 or more" in message


def test_single_row_without_negatives_is_refused_for_any_batch_size(run) -> None:
    message = run("--batch_size", "8", rows=[{"query": "q", "pos": ["p"]}])
    assert (
        "leave no negatives at all" in message and "there is only one row" in message and "--candidates" not in message
    )


def test_rows_that_share_one_positive_leave_no_negatives(run) -> None:
    rows = [{"query": f"q{i}", "pos": ["the same"]} for i in range(6)]
    message = run("--batch_size", "6", rows=rows)
    assert "leave no negatives at all" in message and "all rows have the same positive" in message
    message = run(
        "--batch_size", "6", "--candidates", "hard", rows=[{"query": "q", "pos": "p"}, {"query": "r", "pos": "s"}]
    )
    assert "--candidates hard takes none from other rows" in message


def test_qlora_without_bitsandbytes_names_the_install_command(run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else real(name, *a)
    )
    assert "pip install bitsandbytes" in run("--finetune_type", "qlora")


def test_device_that_the_machine_lacks_is_refused(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "--device cuda: torch finds no such device" in run("--device", "cuda")


def test_folder_without_a_model_and_adapter_folder_are_distinguished(run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no model" in run("--model_name_or_path", str(tmp_path / "empty"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "merge it first" in run("--model_name_or_path", str(tmp_path / "adapter"))


def test_sentence_transformers_folder_with_an_unknown_module_is_refused(run, tiny_bert: str, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "dense"
    shutil.copytree(tiny_bert, folder)
    kinds = ["Transformer", "Pooling", "Dense"]
    modules = [
        {"idx": i, "name": str(i), "path": "", "type": f"sentence_transformers.models.{k}"} for i, k in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "Dense" in run("--model_name_or_path", str(folder))


def test_output_folder_that_holds_another_run_is_refused(
    tiny_bert: str, write_jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / "final").mkdir(parents=True)
    (tmp_path / "out" / "final" / "adapter_model.safetensors").write_text("precious")
    words = ["--model_name_or_path", tiny_bert, "--train_dataset", str(write_jsonl([GOOD] * 3)), "--batch_size", "2"]
    assert main(["train", *words, "--output_dir", str(tmp_path / "out")]) == 2
    assert "which no run of EmbedRAG wrote there" in capsys.readouterr().err
    assert (tmp_path / "out" / "final" / "adapter_model.safetensors").read_text() == "precious"


def test_bad_data_with_overwrite_does_not_change_the_earlier_run(tiny_bert: str, tmp_path: Path) -> None:
    (tmp_path / "out" / "final").mkdir(parents=True)
    (tmp_path / "bad.jsonl").write_text("{")
    words = ["--model_name_or_path", tiny_bert, "--train_dataset", str(tmp_path / "bad.jsonl"), "--batch_size", "2"]
    assert main(["train", *words, "--output_dir", str(tmp_path / "out"), "--overwrite"]) == 2
    assert (tmp_path / "out" / "final").exists()


def test_base_with_incomplete_weights_is_refused(
    tiny_bert: str, write_jsonl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "incomplete"
    shutil.copytree(tiny_bert, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layer.1.output" not in k}, folder / "model.safetensors", {"format": "pt"}
    )
    data = write_jsonl([GOOD, GOOD | {"query": "other", "pos": ["another"]}])
    words = ["--train_dataset", str(data), "--batch_size", "2", "--output_dir", str(tmp_path / "out")]
    assert main(["train", "--model_name_or_path", str(folder), *words]) == 2
    assert "would be random" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unexpected_failure_is_not_swallowed(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedrag.training.setup.describe_base", lambda *a: builtins.exec("1/0"))
    with pytest.raises(ZeroDivisionError):
        run()


def test_windows_is_refused_with_a_message(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    assert main(["train"]) == 2
    assert "WSL 2" in capsys.readouterr().err


def test_memory_that_runs_out_is_reported_in_words(
    tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.txt").write_text("a frog\n")
    words = ["--model", tiny_bert, "--input", str(tmp_path / "texts.txt"), "--output", str(tmp_path / "vectors.npy")]
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        monkeypatch.setattr("embedrag.models.encoder.Encoder.forward", lambda *_, error=error: throw(error))
        assert main(["encode", *words]) == 1
        assert "memory ran out; on a GPU try --dtype bfloat16" in capsys.readouterr().err
    monkeypatch.setattr("embedrag.models.encoder.Encoder.forward", lambda *_: throw(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(["encode", *words])


def throw(error: Exception) -> None:
    raise error
