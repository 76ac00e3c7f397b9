"""Rows as people write them: every accepted shape is read, and every bad row is named by file and line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedrag.data.formats.lines import RowError
from embedrag.data.rows import MAX_ERRORS, NO_ROWS, TrainingRow, load_rows, parse_row, read_rows
from embedrag.data.shapes import SHAPES
from embedrag.data.text import is_blank
from embedrag.errors import UserError

Texts = tuple[str, tuple[str, ...], tuple[str, ...]]
GOOD = '{"query": "q", "pos": ["p"], "neg": ["n"]}'
EXAMPLES: list[tuple[dict[str, Any], Texts]] = [
    ({"query": "q", "pos": ["a", "b"], "neg": ["c", "d"]}, ("q", ("a", "b"), ("c", "d"))),
    ({"anchor": "q", "positive": "a", "hard_negatives": ["c", "d"]}, ("q", ("a",), ("c", "d"))),
    ({"anchor": "q", "positive": "a"}, ("q", ("a",), ())),
    ({"query": "q", "pos_doc": "a"}, ("q", ("a",), ())),
    ({"query": "q", "positive": "a", "negative": "c", "term": "t", "type": 7}, ("q", ("a",), ("c",))),
]


def records(*sources: Path) -> list[TrainingRow]:
    return [record for _, record in read_rows([str(source) for source in sources])]


def texts(*sources: Path) -> list[Texts]:
    return [(record.query, record.pos, record.neg) for record in records(*sources)]


def problems(*sources: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        records(*sources)
    return str(caught.value).splitlines()


# Shapes


def test_rows_of_all_shapes_in_one_file_are_read_in_order_and_reported(write_jsonl) -> None:
    path = write_jsonl([row for row, _ in EXAMPLES])
    assert texts(path) == [expected for _, expected in EXAMPLES]
    assert [row.shape for row in load_rows(path)] == [", ".join(shape) for shape in SHAPES]
    assert load_rows([path, str(path)]) == [*load_rows(path), *(replace(row, source=1) for row in load_rows(path))]


@pytest.mark.parametrize("page", ["README.md", "datasets/README.md"])
def test_pages_and_the_message_list_the_shapes(page: str) -> None:
    lines = (Path(__file__).parents[2] / page).read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    for shape in SHAPES:
        assert any(all(f"{mark}{key}{mark}" in row for key in shape) for row in rows for mark in '`"')
        assert "{" + ", ".join(f'"{key}"' for key in shape) + "}" in NO_ROWS


def test_further_keys_are_kept_as_they_are() -> None:
    assert parse_row(EXAMPLES[4][0]).extra == {"term": "t", "type": 7}
    assert parse_row(EXAMPLES[0][0]).extra == {}


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


TEXT = st.text(min_size=1, max_size=30).filter(lambda text: not is_blank(text))
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
        ('{"frage": "q", "antwort": "a"}', "no query (query or anchor) among its keys frage, antwort"),
        ('{"quary": "q", "pos": "p"}', "did you mean query?"),
        ('{"query": "q", "postive": "p"}', "did you mean positive?"),
        ("{}", "no query (query or anchor) among its keys (none)"),
        ('{"query": "q", "anchor": "q", "pos": "p"}', "both query and anchor"),
        ('{"query": "q", "pos": "p", "positive": "p"}', "both pos and positive"),
        ('{"query": "q", "pos": "p", "neg": "n", "negative": "n"}', "both neg and negative"),
        ('["q"]', "must be an object {…}, not a list"),
        ('"q"', "must be an object {…}, not str"),
        ('{"query": "\\ud83d", "pos": "p"}', "surrogate"),
        ('{"query": "q", "pos": ["p"}', "not JSON"),
        ('{"query": "q", "pos": "p"', "not JSON (it is cut off)"),
        ('{"query": "q", "pos": "p", "pos": "r"}', "the key 'pos' occurs twice"),
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


def test_several_bad_rows_of_several_files_are_reported_together(write) -> None:
    first = write("\n".join([GOOD, '{"query": ""}', "{", GOOD]), "a.jsonl")
    second = write("query,pos\na,\n", "b.csv")
    lines = problems(first, second)
    assert [line.split(": ")[0] for line in lines] == [f"{first}:2", f"{first}:3", f"{second}:2"]


def test_after_many_bad_rows_the_other_rows_are_not_checked(write) -> None:
    lines = problems(write("{\n" * 500))
    assert len(lines) == MAX_ERRORS + 1 and "not looked at" in lines[-1]
    assert len(problems(write("{\n" * (MAX_ERRORS - 1)))) == MAX_ERRORS - 1


def test_bad_row_before_a_line_that_is_not_utf8_is_reported_too(write) -> None:
    assert len(problems(write(b'{"query": ""}\n\xff\n'))) == 2


def test_row_error_has_no_place() -> None:
    with pytest.raises(RowError, match="^query is blank$"):
        parse_row({"query": "", "pos": "p"})


# Grades


@pytest.mark.parametrize(
    ("grades", "message"),
    [
        ([1], "grades must be a list of 2 numbers, one for each positive"),
        ([1, "2"], "grades must be a list of 2 numbers"),
        ([1, float("nan")], "grades must be a list of 2 numbers"),
        ([1, 0], "grades must be above 0; a text of grade 0 is a negative"),
    ],
)
def test_wrong_grades_are_named(grades: list, message: str) -> None:
    with pytest.raises(RowError, match=message):
        parse_row({"query": "q", "pos": ["a", "b"], "grades": grades})


@given(grades=st.lists(st.floats(0.5, 9, width=16), min_size=1, max_size=6))
def test_grades_stay_with_their_texts(grades: list[float]) -> None:
    texts = [f"t{i % 4}" for i in range(len(grades))]
    row = parse_row({"query": "q", "positive": texts, "neg": ["t0", "n"], "grades": grades})
    assert dict(zip(row.pos, row.grades, strict=True)) == dict(zip(texts[:4], grades, strict=False))
