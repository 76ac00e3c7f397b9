"""One definition of all options: flags, flat and nested files agree, and every problem is told at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedrag import cli
from embedrag.commands.check import CheckOptions
from embedrag.commands.evaluate import EvaluateOptions
from embedrag.errors import UserError
from embedrag.options.field import Source, extra
from embedrag.options.parsing import build_parser, config_keys, parse
from embedrag.options.reference import markdown_table
from embedrag.training.config.options import TrainOptions

ROOT = Path(__file__).parents[2]
REQUIRED = ("--output_dir", "out", "--batch_size", "4")

# Every nested key that ../shared/requirements.md promises, with a value that is not the default.
NESTED: dict[str, Any] = {
    "model_id": "some/model",
    "tokenizer_id": "some/tokenizer",
    "device": "cpu",
    "dtype": "bfloat16",
    "train": {
        "batch_size": 7,
        "epochs": 3,
        "max_length": 99,
        "grad_accum_steps": 5,
        "steps_per_epoch": 11,
        "grad_checkpointing": True,
        "num_workers": 2,
        "pad_to_multiple_of": 8,
    },
    "optim": {"name": "sgd", "lr": 0.003, "weight_decay": 0.2, "warmup_ratio": 0.3},
    "data": {"pairs_path": ["a.jsonl", "b.csv"], "stream": True},
    "output": {"save_dir": "runs/here", "save_name": "first", "save_metrics": False},
    "hf": {"trust_remote_code": True, "local_files_only": True},
}
FLAT: dict[str, Any] = {
    "model_name_or_path": "some/model",
    "tokenizer_id": "some/tokenizer",
    "device": "cpu",
    "dtype": "bfloat16",
    "batch_size": 7,
    "epochs": 3,
    "max_seq_length": 99,
    "gradient_accumulation_steps": 5,
    "steps_per_epoch": 11,
    "gradient_checkpointing": True,
    "num_workers": 2,
    "pad_to_multiple_of": 8,
    "optimizer": "sgd",
    "lr": 0.003,
    "weight_decay": 0.2,
    "warmup_proportion": 0.3,
    "train_dataset": ["a.jsonl", "b.csv"],
    "stream": True,
    "output_dir": "runs/here",
    "run_name": "first",
    "save_metrics": False,
    "trust_remote_code": True,
    "local_files_only": True,
}


def train_options(*words: str) -> TrainOptions:
    return parse(TrainOptions, words, "train.py", "", config_file=True)


def problems(*words: str) -> list[str]:
    """As the command line tells them."""
    with pytest.raises(UserError) as caught:
        train_options(*words)
    return caught.value.text(cli.spelling(TrainOptions)).splitlines()


@pytest.fixture
def config(tmp_path: Path) -> Callable[[Any], str]:
    """A function that writes a config file and gives its path."""

    def write(content: Any) -> str:
        path = tmp_path / "config.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return str(path)

    return write


# Precedence and spellings


@pytest.mark.parametrize(
    ("name", "default", "in_file", "as_flag"),
    [
        ("epochs", 2, 5, 9),
        ("lora_dropout", 0.1, 0.0, 0.5),
        ("overwrite", False, True, False),
        ("save_metrics", True, False, True),
        ("pooling", "auto", "cls", "mean"),
        ("query_prompt", None, "ask: ", ""),
        ("lora_target_modules", None, ["key"], ["query", "value"]),
    ],
)
def test_flag_beats_file_and_file_beats_default(name, default, in_file, as_flag, config) -> None:
    path = config({name: in_file})
    words = [str(word) for word in (as_flag if isinstance(as_flag, list) else [as_flag])]
    assert getattr(train_options(*REQUIRED), name) == default
    assert getattr(train_options(*REQUIRED, "--config", path), name) == in_file
    assert getattr(train_options(*REQUIRED, "--config", path, f"--{name}", *words), name) == as_flag
    assert getattr(train_options(f"--{name}", *words, "--config", path, *REQUIRED), name) == as_flag


def test_flag_replaces_a_bad_value_of_the_file(config) -> None:
    path = config({"epochs": 0})
    assert train_options(*REQUIRED, "--config", path, "--epochs", "3").epochs == 3
    assert problems(*REQUIRED, "--config", path)


def test_flat_file_nested_file_and_flags_give_equal_options(config) -> None:
    flat = train_options("--config", config(FLAT))
    nested = train_options("--config", config(NESTED))
    words = [(f"--{name}", *map(str, value if isinstance(value, list) else [value])) for name, value in FLAT.items()]
    flags = train_options(*(word for part in words for word in part))
    assert flat.model_dump() == nested.model_dump() == flags.model_dump()
    assert {name: flat.model_dump()[name] for name in FLAT} == FLAT
    untouched = train_options(*REQUIRED).model_dump()
    assert not [name for name, value in FLAT.items() if untouched[name] == value], "a default would prove nothing"


def test_nested_keys_are_those_that_were_promised() -> None:
    promised = {
        f"{section}.{key}" if isinstance(value, dict) else section
        for section, value in NESTED.items()
        for key in (value if isinstance(value, dict) else [""])
    }
    assert {extra(field)["nested"] for field in TrainOptions.model_fields.values()} - {""} == promised


def test_key_spelled_with_dots_in_a_flat_file_is_read(config) -> None:
    assert train_options(*REQUIRED, "--config", config({"train.epochs": 6})).epochs == 6


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("max_length", "max_seq_length", 64),
        ("grad_accum_steps", "gradient_accumulation_steps", 3),
        ("learning_rate", "lr", 0.5),
        ("warmup_ratio", "warmup_proportion", 0.5),
    ],
)
def test_alias_means_the_same_as_flag_and_as_key(alias, name, value, config) -> None:
    assert getattr(train_options(*REQUIRED, f"--{alias}", str(value)), name) == value
    assert getattr(train_options(*REQUIRED, "--config", config({alias: value})), name) == value
    assert getattr(train_options(*REQUIRED), name) != value


@pytest.mark.parametrize("second", [{"learning_rate": 0.2}, {"optim": {"lr": 0.2}}])
def test_two_spellings_in_a_file_must_have_one_value(second, config) -> None:
    [line] = problems(*REQUIRED, "--config", config({"lr": 0.1} | second))
    assert "lr" in line and "different values" in line and "config.json" in line
    assert train_options(*REQUIRED, "--config", config({"lr": 0.2} | second)).lr == 0.2


def test_two_spellings_on_the_command_line_must_have_one_value() -> None:
    assert problems(*REQUIRED, "--lr", "0.1", "--learning_rate", "0.2")


# Values


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), False),
        (("--overwrite",), True),
        (("--overwrite", "true"), True),
        (("--overwrite", "True"), True),
        (("--overwrite=1",), True),
        (("--overwrite", "false"), False),
        (("--overwrite", "no"), False),
        (("--overwrite", "--seed", "1"), True),
    ],
)
def test_truth_value_is_read_with_and_without_a_word(words, expected) -> None:
    assert train_options(*REQUIRED, *words).overwrite is expected


def test_truth_value_that_is_on_can_be_switched_off() -> None:
    assert train_options(*REQUIRED).save_metrics is True
    assert train_options(*REQUIRED, "--save_metrics", "false").save_metrics is False
    assert problems(*REQUIRED, "--save_metrics", "maybe")


@pytest.mark.parametrize("files", [["one.jsonl"], ["one.jsonl", "two.csv", "three.parquet"]])
def test_list_takes_one_or_several_words(files, config) -> None:
    for options in (
        train_options("--train_dataset", *files, *REQUIRED),
        train_options(*REQUIRED, "--config", config({"train_dataset": files})),
    ):
        assert [source.path for source in options.train_dataset] == files
        assert options.model_dump()["train_dataset"] == files


def test_list_in_a_file_may_be_a_single_text(config) -> None:
    options = train_options(*REQUIRED, "--config", config({"data": {"pairs_path": "a.jsonl"}}))
    assert options.train_dataset == [Source(path="a.jsonl")]


@pytest.mark.parametrize(
    ("written", "source", "again"),
    [
        ("a.jsonl", Source(path="a.jsonl"), "a.jsonl"),
        ("a.jsonl:2", Source(path="a.jsonl", weight=2), "a.jsonl:2"),
        ("owner/name:0.25", Source(path="owner/name", weight=0.25), "owner/name:0.25"),
        ("a:b.jsonl:1", Source(path="a:b.jsonl"), "a:b.jsonl"),
        ({"path": "a.jsonl", "weight": 3}, Source(path="a.jsonl", weight=3), "a.jsonl:3"),
        (
            '{"path": "a.jsonl", "query_prompt": "ask: "}',
            Source(path="a.jsonl", query_prompt="ask: "),
            {"path": "a.jsonl", "weight": 1.0, "query_prompt": "ask: "},
        ),
        ({"path": "a:2"}, Source(path="a:2"), {"path": "a:2", "weight": 1.0}),
    ],
)
def test_data_set_with_a_weight_and_prompts_of_its_own(written, source, again, config) -> None:
    from_file = train_options(*REQUIRED, "--config", config({"train_dataset": [written]}))
    assert from_file.train_dataset == [source]
    assert from_file.model_dump()["train_dataset"] == [again]
    assert train_options(*REQUIRED, "--config", config(from_file.model_dump())).train_dataset == [source]
    if isinstance(written, str):
        assert train_options(*REQUIRED, "--train_dataset", written, "b.csv").train_dataset[0] == source


def test_file_whose_name_ends_like_a_weight_is_a_file(tmp_path) -> None:
    (tmp_path / "a:2").mkdir()
    assert Source.model_validate(f"{tmp_path}/a:2") == Source(path=f"{tmp_path}/a:2")
    assert Source.model_validate(f"{tmp_path}/a:3") == Source(path=f"{tmp_path}/a", weight=3)


@pytest.mark.parametrize(
    "written", ["a.jsonl:0", {"path": "a", "weight": -1}, {"weight": 2}, {"path": "a", "prompt": "b"}, "{path: a}", 3]
)
def test_wrong_data_set_is_named(written, config) -> None:
    assert any(
        "train_dataset" in line for line in problems(*REQUIRED, "--config", config({"train_dataset": [written]}))
    )


@pytest.mark.parametrize("given_bits", [8, "8"])
def test_quantization_bits_from_text_or_number_are_a_number(given_bits, config) -> None:
    assert train_options(*REQUIRED, "--quantization_bits", str(given_bits)).quantization_bits == 8
    bits = train_options(*REQUIRED, "--config", config({"quantization_bits": given_bits})).quantization_bits
    assert bits == 8 and isinstance(bits, int)


@pytest.mark.parametrize(
    ("flag", "word", "expected"),
    [("finetune_type", "LoRA", "lora"), ("optimizer", "AdamW8bit", "adamw8bit"), ("dtype", "BFloat16", "bfloat16")],
)
def test_choice_is_read_in_any_case(flag, word, expected) -> None:
    assert getattr(train_options(*REQUIRED, f"--{flag}", word), flag) == expected


def test_null_in_a_file_is_the_default(config) -> None:
    nothing = dict.fromkeys(config_keys(TrainOptions))
    assert train_options(*REQUIRED, "--config", config(nothing)) == train_options(*REQUIRED)
    assert train_options(*REQUIRED, "--config", config(nothing | {"epochs": 5})) != train_options(*REQUIRED)


def test_empty_prompt_is_kept_and_is_not_the_default() -> None:
    assert train_options(*REQUIRED, "--query_prompt", "").query_prompt == ""
    assert train_options(*REQUIRED).query_prompt is None


def test_saved_settings_given_to_config_repeat_the_run(config) -> None:
    for words in (REQUIRED, ("--config", config(NESTED))):
        options = train_options(*words)
        saved = options.model_dump() | {
            "environment": {"torch": "2.9.0", "lr": 7},
            "quantization": {"bits": 4, "quant_type": "nf4"},
        }
        assert train_options("--config", config(saved)).model_dump() == options.model_dump()


@given(
    changes=st.fixed_dictionaries(
        {},
        optional={
            "lr": st.floats(1e-9, 10),
            "seed": st.integers(0, 2**31),
            "neg_nums": st.integers(0, 50),
            "query_prompt": st.text(max_size=20).filter(lambda text: not text.startswith("-")),
            "lora_target_modules": st.lists(st.text("abc_.", min_size=1), min_size=1, max_size=3),
            "double_quantization": st.booleans(),
            "pooling": st.sampled_from(["auto", "last_token", "mean", "cls"]),
        },
    )
)
def test_any_options_survive_a_file_and_the_command_line(changes, tmp_path_factory) -> None:
    options = TrainOptions(output_dir="o", batch_size=2, **changes)
    path = tmp_path_factory.mktemp("saved") / "training_config.json"
    path.write_text(json.dumps(options.model_dump()), encoding="utf-8")
    assert train_options("--config", str(path)).model_dump() == options.model_dump()
    words = [(f"--{name}", *map(str, value if isinstance(value, list) else [value])) for name, value in changes.items()]
    spoken = train_options("--output_dir", "o", "--batch_size", "2", *(word for part in words for word in part))
    assert spoken.model_dump() == options.model_dump()


# Problems


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--temprature", "1"), ["--temprature", "did you mean --temperature?"]),
        (("--batchsize=3",), ["--batchsize", "did you mean --batch_size?"]),
        (("--xyzzy", "1"), ["--xyzzy"]),
        (("stray",), ["'stray'"]),
        (("--batch_size", "0"), ["--batch_size 0: must be 1 or more"]),
        (("--batch_size", "two"), ["--batch_size two: must be a whole number"]),
        (("--temperature", "0"), ["--temperature 0: must be greater than 0"]),
        (("--temperature", "nan"), ["--temperature nan: must be finite"]),
        (("--lr", "inf"), ["--lr inf: must be finite"]),
        (("--neg_nums", "-1"), ["--neg_nums -1: must be 0 or more"]),
        (("--quantization_bits", "5"), ["--quantization_bits 5: must be one of 4, 8"]),
        (("--finetune_type", "lroa"), ["--finetune_type lroa: ", "qlora, lora, full", "did you mean lora?"]),
        (("--pooling", "first"), ["--pooling first: must be one of auto, last_token, mean, cls"]),
        (("--optimizer", "adamv"), ["--optimizer adamv: ", "did you mean adam"]),
        (("--warmup_proportion", "1"), ["--warmup_proportion 1: must be less than 1"]),
        (("--output_dir", ""), ["--output_dir: must not be empty"]),
        (("--overwrite", "maybe"), ["--overwrite maybe: must be true or false"]),
        (("--run_name", "a/b"), ["--run_name a/b: must be the name of one folder"]),
        (("--metric_for_best", "ndgc@10"), ["--metric_for_best ndgc@10: must be ndcg, recall", "such as ndcg@10"]),
        (("--train_dataset", "a:0"), ["--train_dataset: weight 0.0: must be greater than 0"]),
        (("--distillation", "k1"), ["--distillation k1: must be one of kl, margin_mse"]),
        (("--directions", "query_passage", "query"), ["--directions query: must be one of query_passage"]),
        (("--use_cpu", "--device", "cuda"), ["--use_cpu", "--device cuda"]),
        (("--candidates", "hard", "--neg_nums", "0"), ["--candidates hard", "--neg_nums 0"]),
        (("--device", "cpu", "--dtype", "float16"), ["--dtype float16", "CPU"]),
    ],
)
def test_bad_word_gives_one_line_with_place_value_and_remedy(words, parts) -> None:
    [line] = problems(*REQUIRED, *words)
    assert [part for part in parts if part not in line] == [], line


@pytest.mark.parametrize("words", [("--lr",), ("--train_dataset", "--lr", "1")])
def test_flag_without_its_value_is_named(words) -> None:
    [line] = problems(*REQUIRED, *words)
    assert words[0] in line and "--help" in line


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"epocs": 3}, ["epocs", "did you mean epochs?"]),
        ({"train": {"bathc_size": 3}}, ["train.bathc_size", "did you mean train.batch_size?"]),
        ({"trane": {"batch_size": 3}}, ["trane.batch_size"]),
        ({"train": 5}, ["train"]),
        ({"train": {"epochs": "three"}}, ["train.epochs 'three': must be a whole number"]),
        ({"optim": {"name": "adamx"}}, ["optim.name", "'adamx'", "did you mean adam"]),
        ({"lr": {"peak": 1}}, ["lr"]),
        ('{"lr": NaN}', ["lr", "finite"]),
        ("[1]", ["must hold one JSON object"]),
        ('{"lr": 1,\n"epochs": }', ["config.json:2", "not JSON"]),
        ("", ["config.json:1", "not JSON"]),
    ],
)
def test_bad_file_gives_one_line_with_file_key_and_remedy(content, parts, config) -> None:
    path = config(content)
    [line] = problems(*REQUIRED, "--config", path)
    assert [part for part in [path, *parts] if part not in line] == [], line


def test_file_that_is_missing_or_not_utf8_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "cp949.json"
    bad.write_bytes(b'{"run_name": "\xb0\xa1"}')
    assert "No such file" in problems(*REQUIRED, "--config", str(tmp_path / "none.json"))[0]
    assert "directory" in problems(*REQUIRED, "--config", str(tmp_path))[0]
    assert "not UTF-8" in problems(*REQUIRED, "--config", str(bad))[0]


@pytest.mark.parametrize("content", ["[" * 200_000, '{"seed": ' + "1" * 5000 + "}"], ids=["deep", "long number"])
def test_file_that_json_refuses_for_its_size_is_a_user_error(content, config) -> None:
    assert problems(*REQUIRED, "--config", config(content))


def test_all_problems_are_reported_together(config) -> None:
    path = config({"epocs": 3, "optim": {"lr": -1, "naem": "sgd"}, "neg_nums": "many"})
    lines = problems("--config", path, "--batch_size", "0", "--temprature", "1", "--finetune_type", "lroa")
    named = ("--temprature", "epocs", "optim.naem", "--output_dir", "--batch_size", "optim.lr", "neg_nums", "lroa")
    assert [name for name in named if sum(name in line for line in lines) != 1] == []
    assert len(lines) == len(named)


def test_all_contradictions_are_reported_together() -> None:
    text = "\n".join(problems(*REQUIRED, "--use_cpu", "--device", "cuda", "--candidates", "hard", "--neg_nums", "0"))
    assert "--use_cpu" in text and "--candidates hard" in text


def test_contradiction_is_reported_together_with_a_bad_value() -> None:
    text = "\n".join(problems(*REQUIRED, "--use_cpu", "--device", "cuda", "--temperature", "0"))
    assert "--temperature" in text and "--use_cpu" in text


def test_misspelled_config_flag_is_reported_with_a_near_miss() -> None:
    assert "did you mean --config?" in problems(*REQUIRED, "--confg", "x.json")[0]


def test_words_without_a_flag_are_not_blamed_for_an_unknown_flag_after_them() -> None:
    with pytest.raises(UserError) as caught:
        parse(CheckOptions, ["rows.jsonl", "--bogus", "1"], "embedrag check", "")
    assert str(caught.value) == "unknown flag --bogus"


def test_nested_key_as_flag_is_not_suggested_to_itself() -> None:
    assert "did you mean --model_id?" not in problems(*REQUIRED, "--model_id", "x")[0]


def test_negative_number_in_scientific_form_is_a_bad_value() -> None:
    assert "greater than 0" in problems(*REQUIRED, "--lr", "-1e-4")[0]


@pytest.mark.parametrize("key", ["batch_size", "seed"])
def test_truth_value_in_a_file_is_not_a_number(key, config) -> None:
    assert problems("--config", config({"output_dir": "o", "batch_size": 4} | {key: True}))


def test_seed_that_numpy_refuses_is_refused_here() -> None:
    assert problems(*REQUIRED, "--seed", str(2**32))


def test_cut_off_below_one_is_refused() -> None:
    with pytest.raises(UserError):
        parse(EvaluateOptions, ["--model", "m", "--data", "d", "--k", "0"], "evaluate", "")


# Help and the commands


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_and_table_have_every_flag_of_every_command(name: str) -> None:
    command = cli.load_command(name)
    text = build_parser(command.options, name, command.text, command.config_file).format_help()
    table = markdown_table(command.options)
    fields = command.options.model_fields.items()
    flags = [f"--{flag}" for name, field in fields for flag in (name, *extra(field)["aliases"])]
    assert [flag for flag in flags if not re.search(rf"{flag}\b", text) or f"`{flag}`" not in table] == []
    assert (" --config " in text) == (command.config_file or "config" in command.options.model_fields)
    assert "--no_such_flag" not in text + table


def test_help_in_a_fresh_process_answers_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "train.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert {"pydantic", "embedrag.training.config.options", "embedrag.options.parsing"} <= imported, (
        "the list of imports was not read"
    )
    assert not imported & {"torch", "transformers", "numpy", "accelerate", "datasets"}
    assert "usage: python train.py" in done.stdout
    assert [name for name in TrainOptions.model_fields if f"--{name}" not in done.stdout] == []


def test_bad_flags_in_a_fresh_process_exit_with_2_and_no_traceback() -> None:
    words = ["--batch_size", "0", "--temprature", "1", "--quantization_bits", "5"]
    done = subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 4, done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())


def test_unknown_command_is_reported_with_its_near_miss(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian", "--lr", "1"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_no_command_lists_all_commands(words, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert [name for name in cli.COMMANDS if f"  {name} " not in shown] == []


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_full_disk_ends_the_overview_with_one_line(word: str, full_device: Path) -> None:
    with full_device.open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "embedrag", word], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert ended.returncode == 1 and ended.stderr == "error: No space left on device\n"


def test_interrupted_command_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupted)
    assert cli.main(["train"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
