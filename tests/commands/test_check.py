"""`embedrag check`: its screen, its files, its exit codes, and wrong words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from embedrag.cli import main
from embedrag.data.formats.lines import MAX_LINE
from embedrag.data.rows import read_rows
from embedrag.errors import UserError
from tests.data.checks.conftest import LINES

GOOD = b'{"query": "q", "pos": ["p"]}\n'
BROKEN: dict[str, tuple[bytes, str]] = {
    "not utf-8": (GOOD + '{"query": "개구리"}'.encode("cp949"), "rows.jsonl:2: not UTF-8"),
    "empty": (b"", "no rows"),
    "blank lines": (b"\n\n  \n", "no rows"),
    "binary": (bytes(range(256)) * 50, "rows.jsonl:2: not UTF-8"),
    "zeros": (bytes(5000), "rows.jsonl:1: not JSON"),
    "array": (b'[{"query": "q", "pos": ["p"]},\n', "rows.jsonl:2: not JSON (it is cut off)"),
    "deep": (GOOD + b"[" * 100_000, "rows.jsonl:2: nested too deeply"),
    "deep text": (b'{"query": ' + b"[" * 100_000, "nested too deeply"),
    "long number": (b'{"query": "q", "pos": "p", "n": ' + b"1" * 5000 + b"}", "a number that is too long"),
    "surrogates": (b'{"query": "\\ud83d", "pos": "p"}', "half of a surrogate pair"),
    "surrogate key": (b'{"\\ud83d": "p"}', "no query"),
    "huge line": (b"x" * (MAX_LINE + 2), "a line of more than 64 MiB"),
}


def check(*words: object) -> int:
    return main(["check", *map(str, words)])


def report_of(tmp_path: Path, *words: object) -> dict[str, Any]:
    """The JSON report of a check, with its exit code verified."""
    path = tmp_path / "report.json"
    code = check(*words, "--output", path, "--overwrite")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["exit_code"] == code
    return report


def test_reader_gives_its_own_words_and_places_are_on_the_screen(write_jsonl, tmp_path: Path, capsys) -> None:
    faulty = tmp_path / "faulty.jsonl"
    faulty.write_text("".join(f"{line}\n" for line, _ in LINES), encoding="utf-8")
    assert check(faulty, "--eval", write_jsonl([{"query": "Eval Query", "pos": ["its answer"]}])) == 2
    text = capsys.readouterr().out
    with pytest.raises(UserError) as caught:
        list(read_rows([str(faulty)]))
    for line in str(caught.value).splitlines():
        assert line in text
    assert f"{faulty}:8: the same as {faulty}:1" in text
    assert f"{faulty}:15: a negative is a positive of {faulty}:14" in text
    assert f"{faulty}:9: 'mine'" in text
    assert "1 of 1 queries" in text


def test_targets_that_would_destroy_something_are_refused(rows, write_jsonl, tmp_path: Path, capsys) -> None:
    data = write_jsonl(rows, "data/rows.jsonl")
    before = data.read_bytes()
    there = write_jsonl(rows, "there.jsonl")
    link = tmp_path / "link.jsonl"
    link.symlink_to(data)
    for words, message in (
        (["--fix", data, "--overwrite"], "is read by this command"),
        (["--fix", link, "--overwrite"], "is read by this command"),
        (["--output", data, "--overwrite"], "is read by this command"),
        (["--fix", there], "exists; name another file, or replace it with --overwrite"),
        (["--output", there], "exists; name another file, or replace it with --overwrite"),
        (["--fix", tmp_path], "a folder"),
        (["--fix", tmp_path / "x.csv"], "must end in .jsonl"),
        (["--fix", tmp_path / "x.jsonl", "--output", tmp_path / "x.jsonl"], "is the file that --fix writes"),
    ):
        assert check(data, *words) == 2
        assert message in capsys.readouterr().err
    assert check(data.parent, "--fix", data.parent / "new.jsonl") == 2
    assert "lies in a folder that is read" in capsys.readouterr().err
    assert data.read_bytes() == before == there.read_bytes()
    assert check(data, "--fix", there, "--overwrite") == 0


def test_lengths_in_characters_and_in_tokens(minilm: str, write_jsonl, tmp_path: Path, capsys) -> None:
    rows = [{"query": "frog", "pos": [f"frog {i} " + "pond " * (i % 10)]} for i in range(100)]
    rows.append({"query": "frog " * 400, "pos": ["pond"]})
    path = write_jsonl(rows)
    report = report_of(tmp_path, path, "--model", minilm, "--query_max_len", "16", "--passage_max_len", "8")
    query, positive = report["lengths"]["query"], report["lengths"]["positive"]
    assert query["characters"] == {"p50": 4, "p95": 4, "p99": 4, "max": 2000}
    assert query["tokens"] == {
        "p50": 3, "p95": 3, "p99": 3, "max": 402, "limit": 16, "cut": pytest.approx(1 / 101), "of_texts": 101
    }  # fmt: skip
    assert positive["tokens"]["cut"] == pytest.approx(50 / 101)  # [CLS] frog 7 pond×5 [SEP] has 9
    assert report["lengths"]["negative"]["texts"] == report["lengths"]["negative"]["tokens"]["of_texts"] == 0
    assert "1.0 % over 16" in capsys.readouterr().out


def test_path_that_is_not_a_model_is_named_by_its_flag(rows, write_jsonl, capsys) -> None:
    assert check(write_jsonl(rows), "--model", "/no/such/model") == 2
    assert "--model /no/such/model: no such folder" in capsys.readouterr().err


def test_keys_that_training_does_not_use_are_named(write_jsonl, capsys) -> None:
    assert check(write_jsonl([{"query": "q", "pos": ["p"], "negativos": ["n"], "id": 3, "neg_ids": [4]}])) == 1
    said = capsys.readouterr().out
    assert "negativos; did you mean negative? (1)" in said and "clean" not in said
    assert "rows.jsonl:1: negativos" in said
    assert check(write_jsonl([{"query": "q", "pos": ["p"], "id": 3, "neg_ids": [4], "neg_scores": [1]}])) == 0


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_explained_and_not_fixed(name: str, tmp_path: Path, capsys) -> None:
    content, message = BROKEN[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert check(path, "--fix", tmp_path / "out.jsonl") == 2
    out, err = capsys.readouterr()
    assert message in out + err
    if not content.startswith(GOOD) or name == "not utf-8":
        assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "is required"),
        (("none.jsonl",), "none.jsonl: no such file"),
        (("none.jsonl", "nor/this.jsonl"), "nor/this.jsonl: no such file"),
        (("x" * 3000 + ".jsonl",), "File name too long"),
        (("FILE", "--evall", "x"), "unknown flag --evall; did you mean --eval?"),
        (("FILE", "--eval", "/no/such"), "--eval /no/such: no such file"),
        (("FILE", "--eval", "EMPTY"), "--eval"),
        (("FILE", "--query_max_len", "x"), "--query_max_len"),
        (("EMPTY",), "no .jsonl"),
    ],
)
def test_wrong_words_are_named(words, message: str, rows, write_jsonl, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    places = {"FILE": write_jsonl(rows), "EMPTY": tmp_path / "empty"}
    assert check(*[places.get(word, word) for word in words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag", [[], ["--train_dataset"]])
@pytest.mark.parametrize("front", [True, False])
def test_files_may_stand_without_their_flag_before_or_after_other_flags(
    flag, front, rows, write_jsonl, tmp_path
) -> None:
    files = [*flag, write_jsonl(rows[:5], "a.jsonl"), write_jsonl(rows[5:], "b.jsonl")]
    others = ["--query_max_len", "9"]
    assert report_of(tmp_path, *(files + others if front else others + files))["rows"] == 12


def test_words_without_a_flag_stay_an_error_elsewhere(capsys) -> None:
    assert main(["evaluate", "--model", "m", "--data", "d", "stray"]) == 2
    assert "unexpected word 'stray'" in capsys.readouterr().err


def test_check_is_a_command_that_loads_no_torch(rows, write_jsonl) -> None:
    code = "import sys, embedrag.cli as c; code = c.main(sys.argv[1:]); sys.exit(9 if 'torch' in sys.modules else code)"
    words = [sys.executable, "-c", code, "check", str(write_jsonl(rows))]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_backticks_in_the_data_are_shown_as_they_are(write_jsonl, capsys) -> None:
    path = write_jsonl([{"query": "what is `model`?", "pos": ["what is `model`?"], "`fix`": 1}])
    assert check(path) == 1
    said = capsys.readouterr().out
    assert f"{path}:1: 'what is `model`?'" in said and "`fix` (1)" in said


def test_report_is_of_the_data_as_it_was_read(write_jsonl, tmp_path: Path) -> None:
    path = write_jsonl([{"query": "q", "pos": ["p"], "neg": ["p", "n"]}])
    report = report_of(tmp_path, path, "--fix", tmp_path / "fixed.jsonl")
    assert (report["level"], report["exit_code"]) == ("fault", 1)
    assert report["findings"]["own_positive"] == {
        "level": "fault",
        "text": "have a positive among their negatives",
        "rows": 1,
        "first": [{"place": f"{path}:1", "text": "'p'"}],
    }
    assert report["fixed"]["written"] == report["fixed"]["negatives"] == 1
    assert report_of(tmp_path, tmp_path / "fixed.jsonl")["exit_code"] == 0


def test_keys_and_places_of_strangers_can_not_steer_the_terminal(tmp_path: Path, capsys) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "q", "pos": "p", "\\u001b]0;pwned\\u0007": 1}\n{"\\u001b[2Jquery": 1}', encoding="utf-8")
    assert check(path) == 2
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\x07" not in out + err and "\\x1b]0;pwned\\x07 (1)" in out
    assert check(tmp_path / "\x1b[2J.jsonl") == 2
    assert "\x1b" not in capsys.readouterr().err


def test_empty_name_is_refused(capsys) -> None:
    assert check("") == 2
    assert "is empty; name a file" in capsys.readouterr().err


def test_html_is_counted_and_mended(write_jsonl, tmp_path: Path, capsys) -> None:
    row = {
        "anchor": "<b>light</b>",
        "positive": "3&nbsp;×&nbsp;10<sup>8</sup> m/s",
        "hard_negatives": ["a<br>b"],
        "id": 7,
    }
    clean = {"query": "q", "pos": ["List<String>, a < b && c > d, AT&T, <stdio.h>"], "neg": []}
    path, out = write_jsonl([row, clean]), tmp_path / "out.jsonl"
    assert check(path, "--fix", out) == 1
    said = capsys.readouterr().out
    assert "rows that have HTML tags or entities in a text" in said and f"{path}:1: '<b>light</b>'" in said
    assert "fixed: rows with HTML or control characters that became plain text: 1" in said
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == [
        {"query": "light", "pos": ["3 × 10^8 m/s"], "neg": ["a\nb"], "id": 7},
        clean,
    ]
    assert check(out) == 0
