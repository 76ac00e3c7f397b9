"""The Python face: what it exports, what importing it costs, and the chain from rows to scores in one process."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import embedrag
from embedrag.cli import main

ROOT = Path(__file__).parents[2]


# What it exports


def test_every_exported_name_is_there_and_documented_and_nothing_else_is() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = {path.rpartition(".")[2]: path for path in re.findall(r"^::: (embedrag\.[\w.]+)$", page, re.MULTILINE)}
    documented.pop("Console")  # the class of `console`
    assert set(documented) == set(embedrag.__all__) - {"__version__"}
    for name, path in documented.items():
        module, _, attribute = path.rpartition(".")
        assert getattr(embedrag, name) is getattr(importlib.import_module(module), attribute)
    assert set(embedrag.__all__) <= set(dir(embedrag))


def test_a_name_that_is_not_exported_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        _ = embedrag.tarin  # type: ignore[attr-defined]


def test_importing_the_package_costs_one_module() -> None:
    code = "import sys; before = len(sys.modules); import embedrag; print(len(sys.modules) - before)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(found.stdout) == 1


@pytest.mark.parametrize(
    "name", ["check", "train", "merge", "evaluate", "mine", "load_model", "build_model", "info_nce"]
)
def test_docstring_has_an_example(name: str) -> None:
    text = getattr(embedrag, name).__doc__ or ""
    assert "Args:" in text and ("```python" in text or ">>>" in text)


@pytest.mark.parametrize("name", ["check", "train", "merge", "evaluate", "mine"])
def test_command_calls_the_function_of_the_face(name: str) -> None:
    code = (ROOT / "embedrag" / "commands" / f"{name}.py").read_text(encoding="utf-8")
    assert f"embedrag.{name}(" in code


# The chain


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_jsonl: Callable[..., Path], rows: Any) -> Path:
    """A folder with rows.jsonl, in which the code of the page runs."""
    write_jsonl(rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chain_of_the_page(base: str) -> str:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    return code[1].replace('"base"', repr(base))


def test_page_runs_twice_in_one_process_with_the_weights_of_the_command_line(
    here: Path, tiny_bert: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = []
    for _ in range(2):  # as a notebook does; the folders are removed, everything else stays
        found: dict[str, Any] = {}
        exec(compile(chain_of_the_page(tiny_bert), "docs/api.md", "exec"), found)
        assert found["vectors"].shape == (1, 64) and found["vectors"].dtype == np.float32
        assert found["merged"].output_path == Path("merged")
        assert found["scores"].verdict is not None
        assert found["result"].metrics["total_steps"] == 3
        weights.append(load_file(found["result"].model / "adapter_model.safetensors"))
        for folder in ("out", "merged"):
            Path(folder).rename(f"{folder}-{len(weights)}")
    words = ["--model_name_or_path", tiny_bert, "--train_dataset", "rows.jsonl", "--output_dir", "cli"]
    assert main(["train", *words, "--batch_size", "4", "--finetune_type", "lora", "--epochs", "1"]) == 0
    weights.append(load_file(here / "cli" / "final" / "adapter_model.safetensors"))
    for name, values in weights[0].items():
        assert all(np.array_equal(values, other[name]) for other in weights[1:]), name
    assert capsys.readouterr().out


def test_silenced_console_prints_nothing(here: Path, tiny_bert: str, capfd: pytest.CaptureFixture[str]) -> None:
    settings = {
        "model_name_or_path": tiny_bert,
        "train_dataset": "rows.jsonl",
        "batch_size": 4,
        "finetune_type": "lora",
    }
    with embedrag.console.silenced():
        result = embedrag.train(**settings, output_dir="quiet", epochs=1)
        embedrag.merge(result.model, "merged")
        embedrag.check("rows.jsonl")
        embedrag.evaluate("merged", "rows.jsonl")
    assert capfd.readouterr() == ("", "")


def test_options_object_and_keywords_are_the_same(here: Path, tiny_bert: str) -> None:
    options = embedrag.TrainOptions(
        model_name_or_path=tiny_bert, train_dataset=["rows.jsonl"], output_dir="a", batch_size=4, finetune_type="lora"
    )
    first = embedrag.train(options, epochs=1)
    second = embedrag.train(**options.model_dump(exclude_unset=True) | {"output_dir": "b", "epochs": 1})
    one, two = (load_file(result.model / "adapter_model.safetensors") for result in (first, second))
    assert all(np.array_equal(values, two[name]) for name, values in one.items())
    assert first.output_dir == Path("a") and first.verdict is None


def test_mined_rows_have_the_negatives_of_the_corpus(here: Path) -> None:
    result = embedrag.mine("rows.jsonl", output="mined.jsonl", bm25=True, range=(0, 20), neg_nums=3)
    mined = embedrag.load_rows("mined.jsonl")
    assert len(mined) == result.rows == 12
    assert any(row.neg for row in mined)


def test_check_reports_faults_as_data(here: Path) -> None:
    Path("bad.jsonl").write_text('{"query": "q", "pos": ["a"], "neg": ["a"]}\nnot json\n', encoding="utf-8")
    report, clean = embedrag.check("bad.jsonl"), embedrag.check("rows.jsonl")
    assert report.rows == 2 and not report.clean
    assert clean.rows == 12


# Errors


def test_wrong_argument_is_named_as_it_was_passed(here: Path) -> None:
    with pytest.raises(embedrag.UserError) as caught:
        embedrag.train(train_dataset="rows.jsonl", output_dir="out", batch_size=0, epochs=0)
    assert {problem.argument for problem in caught.value.problems} == {"batch_size", "epochs"}
    assert "--" not in str(caught.value)
    with pytest.raises(embedrag.UserError, match="temperature"):
        embedrag.train(train_dataset="rows.jsonl", output_dir="out", batch_size=2, temprature=1.0)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: embedrag.train(output_dir="out", batch_size=2), "train_dataset"),
        (
            lambda: embedrag.train(
                model_name_or_path="./none", train_dataset="rows.jsonl", output_dir="out", batch_size=2
            ),
            "model_name_or_path",
        ),
        (lambda: embedrag.train({"output_dir": "out", "batch_size": 2}), "options"),
        (lambda: embedrag.merge("./none", "merged"), "lora_adapter_path"),
        (lambda: embedrag.load_model("./none"), "model"),
        (lambda: embedrag.evaluate("./none", "rows.jsonl"), "model"),
        (lambda: embedrag.evaluate("./none", "./nothing"), "data"),
        (lambda: embedrag.mine("rows.jsonl", output="x.jsonl", model="./none"), "model"),
        (lambda: embedrag.check("./none.jsonl"), "train_dataset"),
        (lambda: embedrag.check("rows.jsonl", model="./none"), "model"),
        (lambda: embedrag.build_model("./none"), "model_name_or_path"),
    ],
)
def test_error_of_the_library_names_the_argument(call: Callable[[], object], argument: str, here: Path) -> None:
    with pytest.raises(embedrag.UserError) as caught:
        call()
    assert argument in {problem.argument for problem in caught.value.problems}
    assert "--" not in str(caught.value)
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (
            ["merge", "--base_model_path", "./none", "--output_path", "m", "--lora_adapter_path"],
            "--base_model_path ./none",
        ),
        (["check", "rows.jsonl", "--model", "./none"], "--model ./none"),
        (["evaluate", "--model", "./none", "--data", "rows.jsonl"], "--model ./none"),
        (["train", "--train_dataset", "rows.jsonl", "--output_dir", "o", "--batch_size", "2",
          "--model_name_or_path", "./none"], "--model_name_or_path ./none"),
    ],
)  # fmt: skip
def test_command_line_names_the_flag_of_the_command_that_was_typed(
    words: list[str], flag: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = ROOT / "tests" / "fixtures" / "before_wings" / "final"
    assert main([*words, str(adapter)] if words[-1] == "--lora_adapter_path" else words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {flag}: ")
    assert "`" not in said


def test_check_measures_with_the_tokenizer_of_an_adapter(tiny_bert: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "frog", "pos": ["the frog sits by the pond"]}\n' * 3)
    model = embedrag.build_model(tiny_bert, "lora", query_prompt="search: ")
    embedrag.save_model(model, tmp_path / "adapter")
    found, of_base = (embedrag.check(str(rows), model=name) for name in (str(tmp_path / "adapter"), tiny_bert))
    assert found.rows == of_base.rows == 3
