"""What is wrong with training data is found with its place, and what is right is not reported."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from embedrag.data.checks.report import DataReport, check_data
from embedrag.data.checks.rules import KINDS, NOTE
from embedrag.data.checks.scan import SAMPLED_TEXTS, Sample
from tests.data.checks.conftest import LINES


def kinds(report: DataReport, levels: tuple[str, ...] = ("error", "fault")) -> set[str]:
    return {kind for kind, item in report.findings.items() if item.level in levels}


def test_every_fault_is_found_at_its_line_and_nowhere_else(faulty: Path, evaluation: Path) -> None:
    report = check_data(faulty, eval=evaluation)
    expected = {kind: [f"{faulty}:{n}" for n, (_, has) in enumerate(LINES, 1) if kind in has] for kind in KINDS}
    found = {kind: [first["place"] for first in item.first] for kind, item in report.findings.items()}
    assert set(expected) - set(found) == {"file", "unused_texts"}, "the file should have one of every kind"
    assert found == {kind: places for kind, places in expected.items() if places}
    assert {kind: item.rows for kind, item in report.findings.items()} == {k: len(p) for k, p in found.items()}
    assert report.level == "error" and not report.clean


def test_nothing_is_found_in_clean_rows_and_nothing_is_printed(rows, write_jsonl, capsys) -> None:
    report = check_data(write_jsonl(rows))
    assert (report.level, report.findings) == ("clean", {})
    assert report.rows == report.readable_rows == 12
    assert report.negatives_per_row == {"0": 4, "2": 4, "9": 4}
    assert report.shapes == {"query, pos, neg": 12}
    assert report.clean and "clean: no faults" in str(report)
    assert capsys.readouterr().out == ""


def test_near_misses_are_not_faults(write_jsonl) -> None:
    rows = [
        {"query": "a", "pos": ["p"], "neg": ["n"]},
        {"query": "a", "pos": ["p"], "neg": ["m"]},  # other negatives: no duplicate
        {"query": "b", "pos": ["n"], "neg": ["p"]},  # positive of another query: a fine negative
        {"query": "c", "pos": ["p."], "neg": ["p", "c?", "co-op", "coop"]},  # texts differ by a sign
        {"query": "p", "pos": ["a"], "neg": []},
    ]
    report = check_data(write_jsonl(rows))
    assert (report.level, kinds(report)) == ("clean", set())
    assert kinds(report, (NOTE,)) == {"repeated_query"}


def test_order_of_negatives_and_further_keys_do_not_make_a_row_another(write_jsonl) -> None:
    rows = [
        {"query": "a", "pos": ["p", "r"], "neg": ["n", "m"], "id": 1},
        {"query": "a", "pos": ["r", "p"], "neg": ["m", "n"], "id": 2},
        {"query": "a", "pos": ["r", "m"], "neg": ["p", "n"]},  # the same texts in other roles
    ]
    report = check_data(write_jsonl(rows))
    assert report.findings["duplicate_row"].rows == 1
    assert report.findings["other_positive"].rows == 3


def test_duplicates_and_contradictions_are_found_across_files(write_jsonl, tmp_path: Path) -> None:
    first = write_jsonl([{"query": "a", "pos": ["p"], "neg": ["n"]}], "a.jsonl")
    table = tmp_path / "b.csv"
    table.write_text("query,pos,neg\na,p,n\na,n,m\n", encoding="utf-8")
    found = check_data([first, table]).findings
    assert found["duplicate_row"].first == [{"place": f"{table}:2", "text": f"the same as {first}:1"}]
    assert [item["place"] for item in found["other_positive"].first] == [f"{first}:1", f"{table}:2"]


def test_first_twenty_of_a_kind_are_listed_and_all_are_counted(write_jsonl) -> None:
    path = write_jsonl([{"query": "", "pos": ["p"]}] * 50 + [{"query": "q", "pos": ["p"]}] * 70)
    report = check_data(path)
    found = report.findings
    assert [(found[kind].rows, len(found[kind].first)) for kind in ("blank_text", "duplicate_row")] == [
        (50, 20),
        (69, 20),
    ]
    assert "… and 30 more" in str(report)


def test_beir_corpus_is_a_note_and_only_judged_queries_leak(faulty: Path, beir: Path, tmp_path: Path) -> None:
    report = check_data(faulty, eval=beir)
    assert report.evaluation == {
        "source": str(beir),
        "queries": 1,
        "queries_in_training": 1,
        "passages": 2,
        "passages_in_training": 2,
    }
    assert [first["place"] for first in report.findings["leaked_pair"].first] == [f"{faulty}:17"]
    path = tmp_path / "shared.jsonl"  # a passage of the corpus, a query that is not judged
    path.write_text(json.dumps({"query": "frogs", "pos": ["in ponds"]}), encoding="utf-8")
    report = check_data(path, eval=beir)
    assert (report.level, report.evaluation["passages_in_training"]) == ("clean", 1)


def test_file_that_ends_early_does_not_hide_the_next_one(write_jsonl, tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", write_jsonl([{"query": "", "pos": "p"}], "b.jsonl")
    first.write_bytes(b'{"query": "q", "pos": ["p"]}\n\xff\n')
    found = check_data([first, second]).findings
    assert f"{first}:2: not UTF-8" in found["file"].first[0]["text"]
    assert found["blank_text"].first[0]["place"] == f"{second}:1"


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
    report = check_data(folder, fix=tmp_path / "out.jsonl")
    found = {kind: item.first[0]["place"] for kind, item in report.findings.items()}
    assert found["own_positive"] == f"{folder}/rows.parquet:1"
    assert found["duplicate_row"] == f"{folder}/rows.parquet:2"
    assert check_data(tmp_path / "out.jsonl").clean


def test_scripts_of_rows_are_counted(write_jsonl) -> None:
    texts = [("a frog", "a pond"), ("개구리", "연못"), ("a frog", "연못가의 개구리"), ("12", "3"), ("蛙", "池塘 b" * 9)]
    report = check_data(write_jsonl([{"query": query, "pos": [pos]} for query, pos in texts]))
    assert report.scripts == {
        "rows": {"Hangul": 2, "Latin": 1, "no letters": 1, "Han": 1},
        "mixed_rows": 2,
        "query_and_positive_differ": 1,
    }


def test_sample_is_bounded_and_even() -> None:
    sample = Sample()
    for number in range(3 * SAMPLED_TEXTS):
        sample.add(str(number))
    assert len(set(sample.texts)) == SAMPLED_TEXTS
    assert abs(np.mean([int(text) for text in sample.texts]) / SAMPLED_TEXTS - 1.5) < 0.05
