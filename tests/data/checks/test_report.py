"""What is wrong with training data is found with its line, mended, and found no more; what is right is left alone."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedrag.cli import main
from embedrag.data.checks import rules as faults
from embedrag.data.checks.rules import FAULT, KINDS, NOTE, Rows, compare
from embedrag.data.checks.scan import SAMPLED_TEXTS, Sample, survey
from embedrag.data.rows import read_rows
from embedrag.data.sources import MAX_LINE
from embedrag.data.text import normalise, scripts_of
from embedrag.errors import UserError

# One line of every kind of fault; the kinds each line has, in KINDS' names.
LINES: list[tuple[str, set[str]]] = [
    ('{"query": "frogs", "pos": ["in ponds"], "neg": ["herons"], "id": 1}', set()),
    ('{"query": "herons", "positive": "in reeds"}', set()),
    ('{"query": "broken, "pos": ["a"]}', {"unreadable"}),
    ('{"query": 7, "pos": ["a"]}', {"unreadable"}),
    ('{"question": "q", "answer": "a"}', {"unreadable"}),
    ('{"query": " \\u3000", "pos": ["a"]}', {"blank_text"}),
    ('{"query": "half blank", "pos": ["kept", " "]}', {"blank_text"}),
    ('{"anchor": "frogs", "positive": "in ponds", "hard_negatives": ["herons"]}', {"duplicate_row", "repeated_query"}),
    ('{"query": "own", "pos": ["mine", "also"], "neg": ["mine", "not"]}', {"own_positive"}),
    ('{"query": "doubled", "pos": ["p", "p"], "neg": ["n", "n", "m"]}', {"doubled_positive", "doubled_negative"}),
    ('{"query": "blank", "pos": ["p1"], "neg": ["", "n1", " "]}', {"blank_negative"}),
    ('{"query": "same", "pos": ["same "], "neg": ["n2"]}', {"query_is_positive"}),
    ('{"query": "same too", "pos": ["same too", "other"]}', {"query_is_positive"}),
    ('{"query": "split", "pos": ["one"], "neg": ["x"]}', set()),
    ('{"query": "split", "pos": ["two"], "neg": ["one", "y"]}', {"other_positive", "repeated_query"}),
    ('{"query": "  EVAL\\u3000ｑuery", "pos": ["something"]}', {"leaked_query"}),
    ('{"query": "eval query", "pos": ["Its  answer"]}', {"leaked_pair", "repeated_query"}),
    ('{"query": "연못", "pos": ["개구리"], "neg": ["백로"]}', set()),
    (
        '{"query": "lens", "pos": ["A  lens"], "neg": ["a LENS", "Ｌens", "n"]}',
        {"own_positive", "query_is_negative"},
    ),
    ('{"query": "FROGS ", "pos": ["In\\u00a0ponds"], "neg": ["HERONS"]}', {"duplicate_row", "repeated_query"}),
    ('{"query": "cafe\\u0301", "pos": ["Caf\\u00e9"]}', {"query_is_positive"}),
    ('{"query": "Split", "pos": ["three"], "neg": ["ONE ", "z"]}', {"other_positive", "repeated_query"}),
    ('{"query": "twice", "pos": ["p ", "P"], "neg": ["N", "n", "m"]}', {"doubled_positive", "doubled_negative"}),
]
EVAL_ROW = {"query": "Eval Query", "pos": ["its answer", "in ponds"]}


def check(*words: object) -> int:
    return main(["check", *map(str, words)])


def report_of(tmp_path: Path, *words: object) -> dict[str, Any]:
    """The JSON report of a check, with its exit code verified."""
    path = tmp_path / "report.json"
    code = check(*words, "--output", path, "--overwrite")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["exit_code"] == code
    return report


def kinds(report: dict[str, Any], levels: tuple[str, ...] = ("error", "fault")) -> set[str]:
    return {kind for kind, item in report["findings"].items() if item["level"] in levels}


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    path = tmp_path / "faulty.jsonl"
    path.write_text("".join(f"{line}\n" for line, _ in LINES), encoding="utf-8")
    return path


@pytest.fixture
def evaluation(write_jsonl) -> Path:
    return write_jsonl([EVAL_ROW], "eval.jsonl")


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": "d1", "text": "its answer"}, {"_id": "d2", "text": "in ponds"}]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    queries = [{"_id": "q1", "text": "eval query"}, {"_id": "q2", "text": "frogs"}]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n", encoding="utf-8")
    return folder


# Faults and their places


def test_every_fault_is_found_at_its_line_and_nowhere_else(faulty: Path, evaluation: Path, tmp_path: Path) -> None:
    report = report_of(tmp_path, faulty, "--eval", evaluation)
    expected = {kind: [f"{faulty}:{n}" for n, (_, has) in enumerate(LINES, 1) if kind in has] for kind in KINDS}
    found = {kind: [first["place"] for first in item["first"]] for kind, item in report["findings"].items()}
    assert set(expected) - set(found) == {"file"}, "the file should have one of every kind"
    assert found == {kind: places for kind, places in expected.items() if places}
    assert {kind: item["rows"] for kind, item in report["findings"].items()} == {k: len(p) for k, p in found.items()}
    assert report["exit_code"] == 2


def test_reader_gives_its_own_words_and_places_are_on_the_screen(faulty: Path, evaluation: Path, capsys) -> None:
    assert check(faulty, "--eval", evaluation) == 2
    text = capsys.readouterr().out
    with pytest.raises(UserError) as caught:
        list(read_rows([str(faulty)]))
    for line in str(caught.value).splitlines():
        assert line in text
    assert f"{faulty}:8: the same as {faulty}:1" in text
    assert f"{faulty}:15: a negative is a positive of {faulty}:14" in text
    assert f"{faulty}:9: 'mine'" in text
    assert "1 of 1 queries" in text


def test_clean_file_is_left_in_peace(rows, write_jsonl, tmp_path: Path, capsys) -> None:
    report = report_of(tmp_path, write_jsonl(rows))
    assert (report["exit_code"], report["findings"]) == (0, {})
    assert report["rows"] == report["readable_rows"] == 12
    assert report["negatives_per_row"] == {"0": 4, "2": 4, "9": 4}
    assert report["shapes"] == {"query, pos, neg": 12}
    assert "clean: no faults" in capsys.readouterr().out


def test_near_misses_are_no_faults(write_jsonl, tmp_path: Path) -> None:
    rows = [
        {"query": "a", "pos": ["p"], "neg": ["n"]},
        {"query": "a", "pos": ["p"], "neg": ["m"]},  # other negatives: no duplicate
        {"query": "b", "pos": ["n"], "neg": ["p"]},  # positive of another query: a fine negative
        {"query": "c", "pos": ["p."], "neg": ["p", "c?", "co-op", "coop"]},  # texts differ by a sign
        {"query": "p", "pos": ["a"], "neg": []},
    ]
    report = report_of(tmp_path, write_jsonl(rows))
    assert (report["exit_code"], kinds(report)) == (0, set())
    assert kinds(report, (NOTE,)) == {"repeated_query"}


def test_order_of_negatives_and_further_keys_do_not_make_a_row_another(write_jsonl, tmp_path: Path) -> None:
    rows = [
        {"query": "a", "pos": ["p", "r"], "neg": ["n", "m"], "id": 1},
        {"query": "a", "pos": ["r", "p"], "neg": ["m", "n"], "id": 2},
        {"query": "a", "pos": ["r", "m"], "neg": ["p", "n"]},  # the same texts in other roles
    ]
    report = report_of(tmp_path, write_jsonl(rows))
    assert report["findings"]["duplicate_row"]["rows"] == 1
    assert report["findings"]["other_positive"]["rows"] == 3


def test_duplicates_and_contradictions_are_found_across_files(write_jsonl, tmp_path: Path) -> None:
    first = write_jsonl([{"query": "a", "pos": ["p"], "neg": ["n"]}], "a.jsonl")
    table = tmp_path / "b.csv"
    table.write_text("query,pos,neg\na,p,n\na,n,m\n", encoding="utf-8")
    found = report_of(tmp_path, first, "--train_dataset", table)["findings"]
    # files of --train_dataset come first
    assert found["duplicate_row"]["first"] == [{"place": f"{first}:1", "text": f"the same as {table}:2"}]
    assert [item["place"] for item in found["other_positive"]["first"]] == [f"{table}:2", f"{first}:1"]


def test_first_twenty_of_a_kind_are_listed_and_all_are_counted(write_jsonl, tmp_path: Path, capsys) -> None:
    path = write_jsonl([{"query": "", "pos": ["p"]}] * 50 + [{"query": "q", "pos": ["p"]}] * 70)
    found = report_of(tmp_path, path)["findings"]
    assert [(found[k]["rows"], len(found[k]["first"])) for k in ("blank_text", "duplicate_row")] == [(50, 20), (69, 20)]
    assert "… and 30 more" in capsys.readouterr().out


TEXTS = st.integers(0, 4)


@given(
    data=st.lists(
        st.tuples(st.integers(0, 2), st.sets(TEXTS, min_size=1, max_size=3), st.sets(TEXTS, max_size=3)),
        min_size=1,
        max_size=12,
    ),
    small_parts=st.booleans(),
)
def test_comparison_finds_what_double_loops_find(data, small_parts: bool) -> None:
    data = [(query, sorted(pos), sorted(neg - pos)) for query, pos, neg in data]
    flat = [[query, *pos, *neg] for query, pos, neg in data]
    offsets = np.cumsum([0, *map(len, flat)])
    rows = Rows(np.array(sum(flat, [])), offsets, np.array([len(pos) for _, pos, _ in data]))
    default = faults.TEXTS_IN_PART
    faults.TEXTS_IN_PART = 5 if small_parts else default
    try:
        found = compare(rows)
    finally:
        faults.TEXTS_IN_PART = default
    duplicates, contradictions, repeated = [], [], []
    for i, (query, _, neg) in enumerate(data):
        same = [j for j in range(i) if data[j][0] == query]
        repeated += [[i, same[0]]] if same else []
        duplicates += [[i, j] for j in same if data[j] == data[i]][:1]
        for place, text in enumerate(neg, int(offsets[i]) + len(flat[i]) - len(neg)):
            contradictions += [
                [i, j, place] for j, (other, pos, _) in enumerate(data) if other == query and text in pos
            ][:1]
    assert found.repeated.tolist() == repeated
    assert found.duplicates.tolist() == duplicates
    assert found.contradictions.tolist() == contradictions


# Evaluation sets


def test_beir_corpus_is_a_note_and_only_judged_queries_leak(faulty: Path, beir: Path, tmp_path: Path) -> None:
    report = report_of(tmp_path, faulty, "--eval", beir)
    assert report["evaluation"] == {
        "source": str(beir),
        "queries": 1,
        "queries_in_training": 1,
        "passages": 2,
        "passages_in_training": 2,
    }
    assert [first["place"] for first in report["findings"]["leaked_pair"]["first"]] == [f"{faulty}:17"]
    shared = [{"query": "frogs", "pos": ["in ponds"]}]  # a passage of the corpus, a query that is not judged
    path = tmp_path / "shared.jsonl"
    path.write_text(json.dumps(shared[0]), encoding="utf-8")
    report = report_of(tmp_path, path, "--eval", beir)
    assert (report["exit_code"], report["evaluation"]["passages_in_training"]) == (0, 1)


def test_data_that_is_its_own_evaluation_set_leaks_in_every_row(rows, write_jsonl, tmp_path: Path) -> None:
    path = write_jsonl(rows)
    report = report_of(tmp_path, path, "--eval", path)
    assert (report["exit_code"], report["findings"]["leaked_pair"]["rows"]) == (1, 12)
    assert check(path, "--eval", path, "--fix", tmp_path / "out.jsonl") == 2, "no row is left"
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("text", ["Ｆｒｏｇ  pond", "FROG\u00a0POND\n", "ﬁsh"])
def test_text_is_the_same_in_any_case_width_and_white_space(text: str) -> None:
    assert normalise(text) in ("frog pond", "fish")
    assert normalise("frogpond") != normalise("frog pond")


# Mending


def test_mended_file_is_clean_and_keeps_what_was_right(faulty: Path, evaluation: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out" / "clean.jsonl"
    before = faulty.read_bytes()
    report = report_of(tmp_path, faulty, "--eval", evaluation, "--fix", out)
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
    assert rows["연못"]["pos"] == ["개구리"] and "개구리" in out.read_text(encoding="utf-8")
    assert report["fixed"] == {
        "written": 13,
        "unreadable": 4,
        "leaking": 2,
        "query_only": 2,
        "repeated": 2,
        "positives": 4,
        "negatives": 9,
    }
    assert f"fixed: 13 rows in {out}" in capsys.readouterr().out
    again = report_of(tmp_path, out, "--eval", evaluation)
    assert (again["exit_code"], kinds(again)) == (0, set())
    assert [path.name for path in out.parent.iterdir()] == ["clean.jsonl"]


def test_clean_file_is_written_as_it_was(rows, write_jsonl, tmp_path: Path) -> None:
    path, out = write_jsonl(rows), tmp_path / "out.jsonl"
    assert check(path, "--fix", out) == 0
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
def test_any_rows_are_clean_when_mended(rows, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("any")
    path, out = folder / "rows.jsonl", folder / "out.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    check(path, "--fix", out)
    if out.exists():
        report = report_of(folder, out)
        assert (report["exit_code"], kinds(report)) == (0, set())
        list(read_rows([str(out)]))


def test_table_with_columns_of_several_shapes_is_mended_to_rows(tmp_path: Path) -> None:
    path, out = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    path.write_text('query,pos,positive,neg,note\na,"[""p"", ""p""]",,n,x\nb,,r,,\n', encoding="utf-8")
    assert check(path, "--fix", out) == 1
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
    assert check(path, "--fix", out) == 0
    assert json.loads(out.read_text(encoding="utf-8"))["half"] == "\ud83d"
    assert check(out) == 0


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


def test_data_that_changes_between_the_passes_is_noticed(rows, write_jsonl, tmp_path: Path) -> None:
    from embedrag.data.checks.fix import write_fixed

    path = write_jsonl(rows)
    found = survey([str(path)])
    for changed in (rows[:-1], [*rows, rows[0]], rows[::-1]):
        write_jsonl(changed)
        with pytest.raises(UserError, match="changed while it was read"):
            write_fixed(tmp_path / "out.jsonl", found)
    assert {file.name for file in tmp_path.iterdir()} == {"rows.jsonl"}


# Lengths, negatives, scripts


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


def test_model_that_is_none_is_named_by_its_flag(rows, write_jsonl, capsys) -> None:
    assert check(write_jsonl(rows), "--model", "/no/such/model") == 2
    assert "--model /no/such/model: no such folder" in capsys.readouterr().err


def test_sample_is_bounded_and_even() -> None:
    sample = Sample()
    for number in range(3 * SAMPLED_TEXTS):
        sample.add(str(number))
    assert len(set(sample.texts)) == SAMPLED_TEXTS
    assert abs(np.mean([int(text) for text in sample.texts]) / SAMPLED_TEXTS - 1.5) < 0.05


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("frogs ½ & 12", "Latin"),
        ("ＦＲＯＧＳ", "Latin"),
        ("青蛙在池塘边", "Han"),
        ("カエルは池の中", "Kana"),
        ("ｶｴﾙ", "Kana"),
        ("연못가의 개구리", "Hangul"),
        ("лягушки", "Cyrillic"),
        ("ضفادع", "Arabic"),
        ("βάτραχος", "Greek"),
        ("मेंढक", "Devanagari"),
        ("12 + 3 = 🐸", ""),
    ],
)
def test_script_is_that_of_the_letters(text: str, script: str) -> None:
    assert [name for name, _ in scripts_of(text).most_common(1)] == ([script] if script else [])


def test_scripts_of_rows_are_counted(write_jsonl, tmp_path: Path) -> None:
    texts = [("a frog", "a pond"), ("개구리", "연못"), ("a frog", "연못가의 개구리"), ("12", "3"), ("蛙", "池塘 b" * 9)]
    report = report_of(tmp_path, write_jsonl([{"query": query, "pos": [pos]} for query, pos in texts]))
    assert report["scripts"] == {
        "rows": {"Hangul": 2, "Latin": 1, "no letters": 1, "Han": 1},
        "mixed_rows": 2,
        "query_and_positive_differ": 1,
    }


def test_keys_that_training_does_not_use_are_named(write_jsonl, capsys) -> None:
    assert check(write_jsonl([{"query": "q", "pos": ["p"], "negatives": ["n"]}])) == 0
    assert "negatives; did you mean negative? (1)" in capsys.readouterr().out


# Files that are broken, and words that are wrong

GOOD = b'{"query": "q", "pos": ["p"]}\n'
BROKEN: dict[str, tuple[bytes, str]] = {
    "not utf-8": (GOOD + '{"query": "개구리"}'.encode("cp949"), "rows.jsonl:2: not UTF-8"),
    "empty": (b"", "no rows"),
    "blank lines": (b"\n\n  \n", "no rows"),
    "binary": (bytes(range(256)) * 50, "rows.jsonl:2: not UTF-8"),
    "zeros": (bytes(5000), "rows.jsonl:1: not JSON"),
    "array": (b'[{"query": "q", "pos": ["p"]}]', "rows.jsonl:1: a JSON array"),
    "deep": (GOOD + b"[" * 100_000, "rows.jsonl:2: nested too deeply"),
    "deep text": (b'{"query": ' + b"[" * 100_000, "nested too deeply"),
    "long number": (b'{"query": "q", "pos": "p", "n": ' + b"1" * 5000 + b"}", "a number too long"),
    "surrogates": (b'{"query": "\\ud83d", "pos": "p"}', "half of a surrogate pair"),
    "surrogate key": (b'{"\\ud83d": "p"}', "no query"),
    "huge line": (b"x" * (MAX_LINE + 2), "a line of more than 64 MiB"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_explained_and_not_mended(name: str, tmp_path: Path, capsys) -> None:
    content, message = BROKEN[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert check(path, "--fix", tmp_path / "out.jsonl") == 2
    out, err = capsys.readouterr()
    assert message in out + err
    if not content.startswith(GOOD) or name == "not utf-8":
        assert not (tmp_path / "out.jsonl").exists()


def test_file_that_ends_early_does_not_hide_the_next_one(write_jsonl, tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", write_jsonl([{"query": "", "pos": "p"}], "b.jsonl")
    first.write_bytes(GOOD + b"\xff\n")
    found = report_of(tmp_path, first, second)["findings"]
    assert f"{first}:2: not UTF-8" in found["file"]["first"][0]["text"]
    assert found["blank_text"]["first"][0]["place"] == f"{second}:1"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--train_dataset is required"),
        (("none.jsonl",), "none.jsonl: no such file"),
        (("none.jsonl", "nor/this.jsonl"), "nor/this.jsonl: no such file"),
        (("x" * 3000 + ".jsonl",), "File name too long"),
        (("FILE", "--evall", "x"), "unknown flag --evall; did you mean --eval?"),
        (("FILE", "--eval", "/no/such"), "--eval /no/such: no such file"),
        (("FILE", "--eval", "EMPTY"), "--eval"),
        (("FILE", "--query_max_len", "x"), "--query_max_len 'x'"),
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
def test_files_may_stand_without_their_flag_before_or_behind_others(flag, front, rows, write_jsonl, tmp_path) -> None:
    files = [*flag, write_jsonl(rows[:5], "a.jsonl"), write_jsonl(rows[5:], "b.jsonl")]
    others = ["--query_max_len", "9"]
    assert report_of(tmp_path, *(files + others if front else others + files))["rows"] == 12


def test_words_without_a_flag_stay_an_error_elsewhere(capsys) -> None:
    assert main(["evaluate", "--model", "m", "--data", "d", "stray"]) == 2
    assert "unexpected word 'stray'" in capsys.readouterr().err


def test_parquet_and_folders_are_checked(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "data"
    folder.mkdir()
    table = pyarrow.table(
        {"query": ["a", "b"], "pos": [["p"], ["q"]], "neg": [["p", "n"], None], "raw": [b"\xff", b""]}
    )
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("query", "pos"), ("c", "p\nover lines"), ("b", "q")])
    report = report_of(tmp_path, folder, "--fix", tmp_path / "out.jsonl")
    found = {kind: item["first"][0]["place"] for kind, item in report["findings"].items()}
    assert found["own_positive"] == f"{folder}/rows.parquet:1"
    assert found["duplicate_row"] == f"{folder}/rows.parquet:2"
    assert check(tmp_path / "out.jsonl") == 0


def test_check_is_a_command_that_loads_no_torch(rows, write_jsonl) -> None:
    code = "import sys, embedrag.cli as c; code = c.main(sys.argv[1:]); sys.exit(9 if 'torch' in sys.modules else code)"
    words = [sys.executable, "-c", code, "check", str(write_jsonl(rows))]
    result = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


# At the start of a training


def test_start_of_a_training_tells_what_check_finds(tmp_path: Path) -> None:
    from embedrag.data.tokenization import open_store
    from embedrag.training.data import _data_lines

    def lines(rows: list[dict[str, Any]], name: str) -> list[str]:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        store, _ = open_store([str(path)], lambda _, texts: [[1]] * len(texts), name, tmp_path / "cache")
        return list(_data_lines(store, found=False, stream=False))[2:]

    good = [{"query": f"q{i // 2}", "pos": [f"p{i}"], "neg": ["n"]} for i in range(20)]
    assert lines(good, "good") == []
    bad = [*good, good[3], {"query": "q0", "pos": ["x"], "neg": ["p0", "p1"]}]
    [line] = lines(bad, "bad")
    assert "rows that repeat an earlier row: 1;" in line and "another row among their negatives: 1;" in line
    assert line.endswith("embedrag check shows them")


def test_start_of_a_training_compares_as_check_does(tmp_path: Path) -> None:
    from embedrag.data.tokenization import open_store
    from embedrag.training.data import _data_lines

    path = tmp_path / "rows.jsonl"
    rows = [{"query": "a", "pos": ["b"], "neg": ["c"]}, {"query": "A ", "pos": ["B"], "neg": ["C"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prompts = [("query: ", "passage: ")]
    store, _ = open_store([str(path)], lambda _, texts: [[1]] * len(texts), "key", tmp_path / "cache", prompts)
    assert "rows that repeat an earlier row: 1;" in list(_data_lines(store, found=False, stream=False))[-1]
    assert len(store.forms) == 6 and len(set(store.forms)) == 3


def test_every_kind_has_a_level_and_words() -> None:
    assert {level for level, _ in KINDS.values()} == {"error", FAULT, NOTE}


def test_many_equal_queries_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    texts = [[draw.randrange(9), draw.randrange(50), draw.randrange(50, 99)] for _ in range(3000)]
    rows = Rows(np.array(texts).ravel(), np.arange(3001) * 3, np.ones(3000, int))
    whole = compare(rows)
    monkeypatch.setattr(faults, "TEXTS_IN_PART", 500)
    for one, other in zip(vars(whole).values(), vars(compare(rows)).values(), strict=True):
        assert one.tolist() == other.tolist()


def test_scores_of_a_teacher_stay_with_their_texts_when_rows_are_mended(tmp_path: Path) -> None:
    from embedrag.cli import main
    from embedrag.data.rows import read_rows

    rows = [
        {"query": "q", "pos": ["a"], "neg": ["", "b", "c"], "teacher_scores": [5, 0, 1, 2]},
        {"query": "q", "pos": ["b"], "neg": ["d"]},
    ]
    path, fixed = tmp_path / "rows.jsonl", tmp_path / "fixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["check", str(path), "--fix", str(fixed)]) == 1
    records = [record for _, record in read_rows([str(fixed)])]
    assert [(record.neg, record.scores) for record in records] == [(("c",), (5, 2)), (("d",), ())]


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
    assert check(path, "--fix", fixed) == 2
    [(_, record)] = read_rows([str(fixed)])
    assert (record.pos, record.scores, record.grades) == (("a", "b"), (5, 4, 1), (3, 2))
