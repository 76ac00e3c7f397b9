"""Every file format gives the same rows, and what can't be read is named by file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedrag.data.rows import read_rows
from embedrag.data.shapes import MISSING
from embedrag.data.sources import FORMATS, local_files, raw_rows
from embedrag.errors import UserError
from embedrag.runtime.claims import claim
from embedrag.training.config.options import TrainOptions
from tests.data.conftest import write_xlsx
from tests.data.test_rows import GOOD, TEXT, problems, records, texts

ROWS = [
    {"query": "연못", "pos": "a, b", "neg": ["c", "d"]},
    {"query": 'a "frog"', "pos": "p", "neg": ["n"]},
]


def write_table(path: Path, delimiter: str) -> None:
    cells = [[json.dumps(value) if isinstance(value, list) else value for value in row.values()] for row in ROWS]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([list(ROWS[0]), *cells])


def write_parquet(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def write_workbook(path: Path) -> None:
    cells = [[json.dumps(value) if isinstance(value, list) else str(value) for value in row.values()] for row in ROWS]
    write_xlsx(path, {"Sheet": [list(ROWS[0]), *cells]})


def write_arrow(path: Path) -> None:
    import pyarrow

    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)


WRITERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson"), lambda path: path.write_text("\n".join(map(json.dumps, ROWS)))),
    ".csv": lambda path: write_table(path, ","),
    ".tsv": lambda path: write_table(path, "\t"),
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods"), write_workbook),  # the contents decide, not the name
    ".parquet": write_parquet,
    ".arrow": write_arrow,
}


# Formats


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    assert set(WRITERS) == set(FORMATS), "a new format needs a writer here"
    for suffix, write_rows in WRITERS.items():
        path = tmp_path / f"rows{suffix.upper()}"
        write_rows(path)
        assert texts(path) == [("연못", ("a, b",), ("c", "d")), ('a "frog"', ("p",), ("n",))]
    assert len(local_files(str(tmp_path))) == len(FORMATS)


def test_page_and_help_name_every_format() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    help_line = TrainOptions.model_fields["train_dataset"].description or ""
    for name in {kind.name for kind in FORMATS.values()}:
        assert name in page and name in help_line


def test_source_that_is_not_there_is_named_by_the_argument_of_the_caller() -> None:
    with pytest.raises(UserError, match="^`eval=./none`: no such file"):
        list(raw_rows("./none", argument="eval"))
    with pytest.raises(UserError, match="^`train_dataset=./none`: no such file"):
        list(raw_rows("./none"))


def test_file_that_can_not_be_opened_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert problems(path) == [f"{path}: Permission denied"]


# Files


def test_line_separators_inside_a_text_do_not_split_the_line(write) -> None:
    odd = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven"
    path = write(json.dumps({"query": odd, "pos": ["p"]}, ensure_ascii=False) + "\r\n" + GOOD)
    assert [query for query, _, _ in texts(path)] == [odd, "q"]
    assert len(path.read_text(encoding="utf-8").splitlines()) > 2, "the text has nothing that could split it"


def test_byte_order_mark_blank_lines_and_missing_last_newline_are_no_trouble(write) -> None:
    path = write(f"\ufeff{GOOD}\n\n  \n{GOOD}\r\n{GOOD}")
    assert [place for place, _ in read_rows([str(path)])] == [f"{path}:{line}" for line in (1, 4, 5)]


@pytest.mark.parametrize(("name", "tab"), [("rows.csv", ","), ("rows.tsv", "\t")])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_table_with_lists_quotes_and_newlines_gives_its_texts(name, tab, mark, write) -> None:
    lines = [
        "query|pos|neg|note\r\n",
        'plain|"one, ""two""; \tthree"|other|x\r\n',
        '"over\r\ntwo lines"|"[""a"", ""b""]"|"[""c"", ""d""]"|\r\n',
        "no negatives|a||\r\n",
    ]
    path = write(mark + "".join(lines).replace("|", tab), name)
    assert texts(path) == [
        ("plain", ('one, "two"; \tthree',), ("other",)),
        ("over\r\ntwo lines", ("a", "b"), ("c", "d")),
        ("no negatives", ("a",), ()),
    ]
    assert records(path)[0].extra == {"note": "x"}


def test_table_of_each_shape_of_plain_texts_is_read(write) -> None:
    for header in ("query,pos,neg", "anchor,positive,hard_negatives", "query,positive,negative", "query,pos_doc"):
        cells = ",".join("qpn"[: header.count(",") + 1])
        assert texts(write(f"{header}\n{cells}\n", "rows.csv")) == [("q", ("p",), tuple(cells.split(",")[2:]))]


@pytest.mark.parametrize(
    ("content", "line", "part"),
    [
        ("query,pos\na,b\nc,d,e\n", 3, "more cells than the header has columns (2)"),
        ("query,pos\na,b\nc\n", 3, "pos is null"),
        ("query,pos\na,b\n,d\n", 3, "query must be a text, not null"),
        ("frage,antwort\na,b\n", 2, "no query (query or anchor) among its keys frage, antwort"),
    ],
)
def test_bad_table_row_is_named_by_file_and_line(content, line, part, write) -> None:
    path = write(content, "rows.csv")
    [message] = problems(path)
    assert message.startswith(f"{path}:{line}: ") and part in message


@pytest.mark.parametrize("lists", [True, False])
def test_parquet_gives_its_texts_and_row_numbers(lists, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pos = [[f"p{i}", f"r{i}"] if lists else f"p{i}" for i in range(1500)]
    neg = [None if i % 2 else ([f"n{i}"] if lists else f"n{i}") for i in range(1500)]
    path = tmp_path / "rows.parquet"
    table = {"query": [f"q{i}" for i in range(1500)], "pos": pos, "neg": neg}
    pyarrow.parquet.write_table(pyarrow.table(table), path, row_group_size=700)
    found = list(read_rows([str(path)]))
    assert [place for place, _ in found] == [f"{path}:{i + 1}" for i in range(1500)]
    expected = [
        (f"q{i}", (f"p{i}", f"r{i}") if lists else (f"p{i}",), () if i % 2 else (f"n{i}",)) for i in range(1500)
    ]
    assert [(record.query, record.pos, record.neg) for _, record in found] == expected


def test_bad_parquet_row_is_named_by_its_number(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"query": ["a", " ", "b"], "pos": ["p", "p", None]}), path)
    assert problems(path) == [
        f"{path}:2: query is blank",
        f"{path}:3: pos is null; give a text or a list of texts",
    ]


def test_file_that_is_parquet_only_by_its_name_is_named(write) -> None:
    path = write(GOOD, "rows.parquet")
    [message] = problems(path)
    assert str(path) in message and "not a readable Parquet file" in message


def test_folder_gives_all_its_files_by_name_and_nothing_else(tmp_path: Path, write) -> None:
    write('{"query": "2", "pos": "p"}', "b.jsonl")
    write("query,pos\n1,p\n", "a.csv")
    write('{"query": "3", "pos": "p"}', "c.ndjson")
    write("no data", "README.md")
    assert [query for query, _, _ in texts(tmp_path)] == ["1", "2", "3"]


def test_several_sources_are_read_one_after_the_other(write) -> None:
    first, second = write('{"query": "1", "pos": "p"}', "z.jsonl"), write('{"query": "2", "pos": "p"}', "a.jsonl")
    assert [query for query, _, _ in texts(first, second)] == ["1", "2"]


def test_hub_id_is_not_a_local_file() -> None:
    assert local_files("owner/name") == []


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_file_without_rows_is_named_with_what_is_expected(content, write) -> None:
    path = write(content)
    [message] = problems(path)
    assert str(path) in message and "no rows" in message and '"query"' in message


def test_table_without_rows_is_named(write) -> None:
    assert "no rows" in problems(write("query,pos\n", "rows.csv"))[0]


def test_file_that_is_not_utf8_is_named_by_line_with_the_remedy(write) -> None:
    path = write(GOOD.encode() + '\n{"query": "개구리", "pos": "p"}'.encode("cp949"))
    [message] = problems(path)
    assert message.startswith(f"{path}:2: not UTF-8 (byte 12 of the line)") and "iconv" in message


@pytest.mark.parametrize("name", ["none.jsonl", "deep/er/none", "/no/such/folder", "./none", "rows"])
def test_missing_file_is_named(name) -> None:
    with pytest.raises(UserError, match="no such file; give a path that exists, or a hub id"):
        local_files(name)


def test_unknown_file_type_and_folder_without_data_are_named(tmp_path: Path, write) -> None:
    with pytest.raises(UserError, match="rows.txt`: unknown file type; accepted are " + ", ".join(FORMATS)):
        local_files(str(write("x", "rows.txt")))
    with pytest.raises(UserError, match="in this folder"):
        local_files(str(tmp_path))


def test_very_long_number_is_a_bad_row(write) -> None:
    content = f'{{"query": "q", "pos": "p", "id": {"1" * 5000}}}'
    assert "rows.jsonl:1" in problems(write(content, "rows.jsonl"))[0]


def test_folder_named_like_a_file_is_passed_over(tmp_path: Path, write) -> None:
    (tmp_path / "a.jsonl").mkdir()
    write(GOOD, "b.jsonl")
    assert texts(tmp_path) == [("q", ("p",), ("n",))]


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"query": [f"q{i}" for i in range(5000)], "pos": ["p"] * 5000}), path)
    path.write_bytes(path.read_bytes()[:100] + bytes(1900) + path.read_bytes()[2000:])
    assert str(path) in problems(path)[0]


@pytest.mark.parametrize("cell", ["['a', 'b']", "['a' 'b']"])
def test_table_cell_with_a_python_list_is_not_taken_for_a_text(cell, write) -> None:
    assert "rows.csv:2" in problems(write(f'query,pos\nq,"{cell}"\n', "rows.csv"))[0]


@pytest.mark.parametrize("cell", ["[1]", "[2024]"])
def test_table_cell_in_brackets_that_holds_no_texts_is_a_text(cell, write) -> None:
    assert texts(write(f"query,pos\n{cell},p\n", "rows.csv")) == [(cell, ("p",), ())]


@pytest.mark.parametrize("row", ['c,"d', 'c,"d"x'])
def test_table_with_broken_quotes_is_named_by_the_broken_line(row, write) -> None:
    path = write(f"query,pos\na,b\n{row}\n", "rows.csv")
    assert problems(path)[0].startswith(f"{path}:3: not a readable table")


def test_table_with_two_columns_of_one_name_is_refused(write) -> None:
    assert "neg" in problems(write("query,pos,neg,neg\nq,p,n,m\n", "rows.csv"))[0]


@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4), tab=st.booleans())
def test_any_texts_come_back_from_a_table(rows, tab, tmp_path_factory) -> None:
    rows = [row for row in rows if not any(text.startswith("[") or "\0" in text or text in MISSING for text in row)]
    path = tmp_path_factory.mktemp("any") / ("rows.tsv" if tab else "rows.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t" if tab else ",").writerows([("query", "positive", "negative"), *rows])
    expected = [(query, (pos,), () if neg == pos else (neg,)) for query, pos, neg in rows]
    assert texts(path) == expected if rows else problems(path)


def test_logs_of_a_training_in_the_folder_of_its_data_are_no_rows(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "evaluation.json", "training_losses.json", "more.json"):
        (tmp_path / name).write_text("{}")
    claim(tmp_path, "evaluation.json", "training_losses.json", "final")
    assert [path.name for path in local_files(str(tmp_path))] == ["more.json", "rows.jsonl"]
    (tmp_path / ".embedrag-run.json").unlink()
    assert len(local_files(str(tmp_path))) == 4, "only the marker says whose they are"
