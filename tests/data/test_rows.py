"""Rows as people write them: every accepted shape and file type, and every bad row named by file and line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedrag.data.rows import MAX_ERRORS, TrainingRow, parse_row, read_rows
from embedrag.data.sources import RowError, local_files
from embedrag.errors import UserError

Texts = tuple[str, tuple[str, ...], tuple[str, ...]]
GOOD = '{"query": "q", "pos": ["p"], "neg": ["n"]}'
SHAPES: dict[str, tuple[dict[str, Any], Texts]] = {
    "E": ({"query": "q", "pos": ["a", "b"], "neg": ["c", "d"]}, ("q", ("a", "b"), ("c", "d"))),
    "P": ({"anchor": "q", "positive": "a", "hard_negatives": ["c", "d"]}, ("q", ("a",), ("c", "d"))),
    "S": ({"anchor": "q", "positive": "a"}, ("q", ("a",), ())),
    "C": ({"query": "q", "pos_doc": "a"}, ("q", ("a",), ())),
    "K": ({"query": "q", "positive": "a", "negative": "c", "term": "t", "type": 7}, ("q", ("a",), ("c",))),
}


def records(*sources: Path) -> list[TrainingRow]:
    return [record for _, record in read_rows([str(source) for source in sources])]


def texts(*sources: Path) -> list[Texts]:
    return [(record.query, record.pos, record.neg) for record in records(*sources)]


def problems(*sources: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        records(*sources)
    return str(caught.value).splitlines()


@pytest.fixture
def write(tmp_path: Path):
    """A function that writes a file of text or bytes."""

    def write(content: str | bytes, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# Shapes


@pytest.mark.parametrize("shape", SHAPES)
def test_row_of_each_shape_gives_its_texts(shape, write_jsonl) -> None:
    row, expected = SHAPES[shape]
    assert texts(write_jsonl([row])) == [expected]


def test_mixed_shapes_in_one_file_are_read_in_order_and_reported(write_jsonl) -> None:
    found = records(write_jsonl([row for row, _ in SHAPES.values()]))
    assert [(record.query, record.pos, record.neg) for record in found] == [expected for _, expected in SHAPES.values()]
    assert [record.shape for record in found] == [
        "query, pos, neg",
        "anchor, positive, hard_negatives",
        "anchor, positive",
        "query, pos_doc",
        "query, positive, negative",
    ]


def test_further_keys_are_kept_as_they_are() -> None:
    assert parse_row(SHAPES["K"][0]).extra == {"term": "t", "type": 7}
    assert parse_row(SHAPES["E"][0]).extra == {}


@pytest.mark.parametrize("neg", [None, [], ""])
def test_row_without_negatives_is_read(neg) -> None:
    assert parse_row({"query": "q", "pos": "p", "neg": neg}).neg == ()


def test_negatives_that_are_blank_double_or_positive_are_dropped_and_counted() -> None:
    row = {"query": "q", "pos": ["p", "r"], "neg": ["n", "", " \t\u3000", "p", "m", "n", "r"]}
    record = parse_row(row)
    assert (record.neg, record.dropped) == (("n", "m"), 5)
    assert parse_row(row | {"neg": ["n", "P", "p "]}).dropped == 0


def test_double_positives_are_kept_once() -> None:
    assert parse_row({"query": "q", "pos": ["p", "r", "p"]}).pos == ("p", "r")


TEXT = st.text(min_size=1, max_size=30).filter(str.strip)
POSITIVE = st.one_of(TEXT, st.lists(TEXT, min_size=1, max_size=3))
NEGATIVE = st.one_of(TEXT, st.lists(TEXT, max_size=4))
ANY_ROW = st.one_of(
    st.fixed_dictionaries({"query": TEXT, "pos": POSITIVE}, optional={"neg": NEGATIVE}),
    st.fixed_dictionaries({"anchor": TEXT, "positive": POSITIVE}, optional={"hard_negatives": NEGATIVE}),
    st.fixed_dictionaries({"query": TEXT, "pos_doc": POSITIVE}),
    st.fixed_dictionaries({"query": TEXT, "positive": POSITIVE}, optional={"negative": NEGATIVE, "term": TEXT}),
)


def plain(row: dict[str, Any]) -> Texts:
    """What a row says, written down a second time and slowly."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in row.items() if key != "term"}
    query = next(lists[key][0] for key in lists if key in ("query", "anchor"))
    pos = next(lists[key] for key in lists if key in ("pos", "positive", "pos_doc"))
    neg = next((lists[key] for key in lists if key in ("neg", "negative", "hard_negatives")), [])
    kept = [text for i, text in enumerate(neg) if text not in pos and text not in neg[:i]]
    return query, tuple(text for i, text in enumerate(pos) if text not in pos[:i]), tuple(kept)


@given(rows=st.lists(ANY_ROW, min_size=1, max_size=4), ascii_only=st.booleans())
def test_any_rows_of_accepted_shapes_come_back_from_a_file_with_the_same_texts(
    rows, ascii_only, tmp_path_factory
) -> None:
    path = tmp_path_factory.mktemp("any") / "rows.jsonl"
    path.write_bytes("".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows).encode())
    assert texts(path) == [plain(row) for row in rows]


@given(rows=st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4), tab=st.booleans())
def test_any_texts_come_back_from_a_table(rows, tab, tmp_path_factory) -> None:
    rows = [row for row in rows if not any(text.startswith("[") or "\0" in text for text in row)]
    path = tmp_path_factory.mktemp("any") / ("rows.tsv" if tab else "rows.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t" if tab else ",").writerows([("query", "positive", "negative"), *rows])
    expected = [(query, (pos,), () if neg == pos else (neg,)) for query, pos, neg in rows]
    assert texts(path) == expected if rows else problems(path)


# File types


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
        ("question,answer\na,b\n", 2, "no query (query or anchor) among its keys question, answer"),
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


def test_file_that_only_claims_to_be_parquet_is_named(write) -> None:
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


def test_hub_id_is_no_local_file() -> None:
    assert local_files("owner/name") == []


# Bad input


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"query": "q", "pos": []}', "pos is empty"),
        ('{"query": "q"}', "no positive (pos or positive or pos_doc) among its keys query"),
        ('{"query": "q", "pos": null}', "pos is null"),
        ('{"query": "q", "pos": 7}', "pos must be a text, not a number"),
        ('{"query": "q", "pos": ["a", 7]}', "pos[1] must be a text, not a number"),
        ('{"query": "q", "pos": ["a", null]}', "pos[1] must be a text, not null"),
        ('{"query": "q", "pos": {"text": "a"}}', "pos must be a text, not an object"),
        ('{"query": "q", "pos": [["a"]]}', "pos[0] must be a text, not a list"),
        ('{"query": "q", "pos": ["a", " "]}', "pos[1] is blank"),
        ('{"query": "q", "pos": ""}', "pos is blank"),
        ('{"query": "q", "pos": "p", "neg": 7}', "neg must be a text, not a number"),
        ('{"query": "q", "pos": "p", "neg": [true]}', "neg[0] must be a text, not true/false"),
        ('{"query": "", "pos": "p"}', "query is blank"),
        ('{"query": " \\u3000\\n", "pos": "p"}', "query is blank"),
        ('{"query": null, "pos": "p"}', "query must be a text, not null"),
        ('{"query": ["q"], "pos": "p"}', "query must be a text, not a list"),
        ('{"question": "q", "answer": "a"}', "no query (query or anchor) among its keys question, answer"),
        ('{"quary": "q", "pos": "p"}', "did you mean query?"),
        ('{"query": "q", "postive": "p"}', "did you mean positive?"),
        ("{}", "no query (query or anchor) among its keys (none)"),
        ('{"query": "q", "anchor": "q", "pos": "p"}', "both query and anchor"),
        ('{"query": "q", "pos": "p", "positive": "p"}', "both pos and positive"),
        ('{"query": "q", "pos": "p", "neg": "n", "negative": "n"}', "both neg and negative"),
        ('["q", "p"]', "must be an object {…}, not a list"),
        ('"q"', "must be an object {…}, not str"),
        ('{"query": "\\ud83d", "pos": "p"}', "surrogate"),
        ('{"query": "q", "pos": ["p"}', "not JSON"),
        ('{"query": "q", "pos": "p"} {}', "not JSON"),
        ("query: q", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_row_is_named_by_file_line_and_reason(line, part, write) -> None:
    path = write("\n".join([GOOD, "", line, GOOD]))
    [message] = problems(path)
    assert message.startswith(f"{path}:3: ") and part in message
    assert len(texts(write("\n".join([GOOD, "", GOOD, GOOD])))) == 3


def test_broken_json_on_line_7_is_named_with_its_column(write) -> None:
    path = write("\n".join([GOOD] * 6 + ['{"query": "q" "pos": "p"}'] + [GOOD] * 3))
    [message] = problems(path)
    assert message.startswith(f"{path}:7: not JSON (") and "column 15" in message


def test_several_bad_rows_of_several_files_are_told_together(write) -> None:
    first = write("\n".join([GOOD, '{"query": ""}', "{", GOOD]), "a.jsonl")
    second = write("query,pos\na,\n", "b.csv")
    lines = problems(first, second)
    assert [line.split(": ")[0] for line in lines] == [f"{first}:2", f"{first}:3", f"{second}:2"]


def test_after_many_bad_rows_the_rest_is_not_looked_at(write) -> None:
    lines = problems(write("{\n" * 500))
    assert len(lines) == MAX_ERRORS + 1 and "not looked at" in lines[-1]
    assert len(problems(write("{\n" * (MAX_ERRORS - 1)))) == MAX_ERRORS - 1


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


@pytest.mark.parametrize("first", [f"[{GOOD}]", "[\n"])
def test_json_array_is_named_with_the_remedy(first, write) -> None:
    path = write(first, "rows.json")
    [message] = problems(path)
    assert message.startswith(f"{path}:1: a JSON array") and "jq" in message


@pytest.mark.parametrize("name", ["none.jsonl", "deep/er/none", "/no/such/folder", "./none", "rows"])
def test_missing_file_is_named(name) -> None:
    with pytest.raises(UserError, match="no such file; give a path that exists, or a hub id"):
        local_files(name)


def test_unknown_file_type_and_folder_without_data_are_named(tmp_path: Path, write) -> None:
    with pytest.raises(UserError, match=r"rows.txt: unknown file type; accepted are .jsonl"):
        local_files(str(write("x", "rows.txt")))
    with pytest.raises(UserError, match="in this folder"):
        local_files(str(tmp_path))


# Once wrong


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


def test_bad_row_before_a_line_that_is_not_utf8_is_told_too(write) -> None:
    assert len(problems(write(b'{"query": ""}\n\xff\n'))) == 2


def test_row_error_carries_no_place_of_its_own() -> None:
    with pytest.raises(RowError, match="^query is blank$"):
        parse_row({"query": "", "pos": "p"})
