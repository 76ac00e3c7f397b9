"""A fixed file has no faults, and keeps what was right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedrag.cli import main
from embedrag.data.checks.fix import write_fixed
from embedrag.data.checks.report import check_data
from embedrag.data.checks.scan import scan
from embedrag.data.rows import load_rows
from embedrag.errors import RunError, UserError
from tests.data.checks.test_scan import kinds


def test_fixed_file_is_clean_and_keeps_what_was_right(faulty: Path, evaluation: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "clean.jsonl"
    before = faulty.read_bytes()
    report = check_data(faulty, eval=evaluation, fix=out)
    assert faulty.read_bytes() == before
    rows = {row["query"]: row for row in map(json.loads, out.read_text(encoding="utf-8").splitlines()) if row}
    assert rows["frogs"] == {"query": "frogs", "pos": ["in ponds"], "neg": ["herons"], "id": 1}
    assert rows["half blank"]["pos"] == ["kept"]
    assert rows["own"] == {"query": "own", "pos": ["mine", "also"], "neg": ["not"]}
    assert rows["doubled"] == {"query": "doubled", "pos": ["p"], "neg": ["n", "m"]}
    assert rows["blank"]["neg"] == ["n1"]
    assert rows["same too"]["pos"] == ["other"]
    assert rows["lens"] == {"query": "lens", "pos": ["A  lens"], "neg": ["n"]}
    assert rows["Split"]["neg"] == ["z"] and rows["twice"]["pos"] == ["p "] and rows["twice"]["neg"] == ["N", "m"]
    assert rows["split"] == {"query": "split", "pos": ["two"], "neg": ["y"]}
    assert rows["volt"] == {"query": "volt", "pos": ["10^3 mV"], "neg": ["N2"]}
    assert rows["nul"]["pos"] == ["a char"] and rows["nul"]["neg"] == ["a < b && c > d, List<T>"]
    assert rows["연못"]["pos"] == ["개구리"] and "개구리" in out.read_text(encoding="utf-8")
    assert report.fixed == {
        "written": 15,
        "cleaned": 2,
        "unreadable": 4,
        "leaking": 2,
        "query_only": 2,
        "repeated": 2,
        "positives": 4,
        "negatives": 9,
    }
    assert f"fixed: 15 rows in {out}" in str(report)
    again = check_data(out, eval=evaluation)
    assert (again.level, kinds(again)) == ("clean", set())
    assert [path.name for path in out.parent.iterdir()] == ["clean.jsonl"]


def test_clean_file_is_written_as_it_was(rows, write_jsonl, tmp_path: Path) -> None:
    path, out = write_jsonl(rows), tmp_path / "out.jsonl"
    assert check_data(path, fix=out).clean
    assert out.read_bytes() == path.read_bytes()


WORDS = st.sampled_from(["a", "b", "c", " ", "A", "", "a ", "\u00e9", "e\u0301"])
ANY = st.one_of(
    st.fixed_dictionaries(
        {"query": WORDS, "pos": st.one_of(WORDS, st.lists(WORDS, max_size=3))},
        optional={"neg": st.one_of(WORDS, st.none(), st.lists(WORDS, max_size=4)), "positive": st.just("")},
    ),
    st.just({"query": 1}),
)


@given(rows=st.lists(ANY, min_size=1, max_size=8))
def test_any_rows_are_clean_when_fixed(rows, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("any")
    path, out = folder / "rows.jsonl", folder / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    check_data(path, fix=out)
    if out.exists():
        report = check_data(out)
        assert (report.level, kinds(report)) == ("clean", set())
        load_rows(out)


def test_table_with_columns_of_several_shapes_is_fixed_to_rows(tmp_path: Path) -> None:
    path, out = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    path.write_text('query,pos,positive,neg,note\na,"[""p"", ""p""]",,n,x\nb,,r,,\n', encoding="utf-8")
    assert check_data(path, fix=out).level == "fault"
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == [
        {"query": "a", "pos": ["p"], "neg": ["n"], "note": "x"},
        {"query": "b", "pos": ["r"], "neg": [], "note": None},
    ]


def test_odd_further_keys_are_written_so_that_they_can_be_read(tmp_path: Path) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    odd = (
        '{"query": "a", "pos": "p", "half": "\\ud83d", "\\ud83d": 1, "nan": NaN, "deep": ' + "[" * 300 + "]" * 300 + "}"
    )
    path.write_text(odd, encoding="utf-8")
    assert check_data(path, fix=out).clean
    assert json.loads(out.read_text(encoding="utf-8"))["half"] == "\ud83d"
    assert check_data(out).clean


def test_data_that_changes_between_the_passes_is_noticed(rows, write_jsonl, tmp_path: Path) -> None:
    path = write_jsonl(rows)
    found = scan([str(path)])
    for changed in (rows[:-1], [*rows, rows[0]], rows[::-1]):
        write_jsonl(changed)
        with pytest.raises(UserError, match="changed while it was read"):
            write_fixed(tmp_path / "out.jsonl", found)
    assert {file.name for file in tmp_path.iterdir()} == {"rows.jsonl"}


def test_nothing_is_written_when_no_row_is_left(rows, write_jsonl, tmp_path: Path) -> None:
    path, out = write_jsonl(rows), tmp_path / "out.jsonl"
    report = check_data(path, eval=path, fix=out)
    assert (report.level, report.findings["leaked_pair"].rows) == ("fault", 12)
    assert (report.fixed, report.not_fixed) == (None, "not written, because no row is left")
    assert not out.exists()
    assert main(["check", str(path), "--eval", str(path), "--fix", str(out)]) == 2


def test_nothing_is_written_when_a_file_ends_early(tmp_path: Path, capsys) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(b'{"query": "q", "pos": ["p"]}\n\xff')
    report = check_data(path, fix=out)
    assert report.level == "error" and report.fixed is None and "read to its end" in report.not_fixed
    assert main(["check", str(path), "--fix", str(out)]) == 2
    said = capsys.readouterr()
    assert "rows.jsonl:2: not UTF-8" in said.out
    assert f"--fix {out}: not written, because a file can't be read to its end" in said.err
    assert not out.exists()


def test_full_disk_is_not_called_a_mistake_of_the_user(rows, write_jsonl, tmp_path: Path, monkeypatch, capsys) -> None:
    path, out = write_jsonl(rows), tmp_path / "out.jsonl"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        check_data(path, fix=out)
    assert main(["check", str(path), "--fix", str(out)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not out.exists()


def test_scores_of_a_teacher_stay_with_their_texts_when_rows_are_fixed(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "pos": ["a"], "neg": ["", "b", "c"], "teacher_scores": [5, 0, 1, 2]},
        {"query": "q", "pos": ["b"], "neg": ["d"]},
    ]
    path, fixed = tmp_path / "rows.jsonl", tmp_path / "fixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert check_data(path, fix=fixed).level == "fault"
    assert [(row.neg, row.scores) for row in load_rows(fixed)] == [(("c",), (5, 2)), (("d",), ())]


def test_scores_and_grades_go_with_the_blank_positives_they_are_of(tmp_path: Path) -> None:
    row = {
        "query": "q",
        "pos": ["", "a", " ", "b"],
        "neg": ["c"],
        "teacher_scores": [9, 5, 8, 4, 1],
        "grades": [1, 3, 1, 2],
    }
    path, fixed = tmp_path / "rows.jsonl", tmp_path / "fixed.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    assert check_data(path, fix=fixed).level == "error"
    [row] = load_rows(fixed)
    assert (row.pos, row.scores, row.grades) == (("a", "b"), (5, 4, 1), (3, 2))
