"""Rows of every shape that docs/data.md lists are read, and what is not used is not lost in silence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from embedrag.data.formats.documents import DOCUMENTS
from embedrag.data.formats.lines import RowError
from embedrag.data.rows import load_rows, parse_row, row_text, unused_keys
from embedrag.data.shapes import PEERS, SHAPES, given_texts

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\| `([{\[].*[}\]])` \| (.+) \|$", PAGE, re.M)


@pytest.mark.parametrize("example", [example for example, _ in EXAMPLES])
def test_every_example_of_the_page_is_read(example: str, write) -> None:
    for text in (example, json.dumps(json.loads(example), indent=2)):
        [row] = load_rows(write(text, "rows.json"))
        title = "t " if '"title": "t"' in text and "paragraphs" not in text else ""
        negatives = [("u n" if '"title": "u"' in text else "n")] * ('"n"' in text and "relevant_docs" not in text)
        assert (row.query, row.pos) == ("q", (f"{title}p",))
        assert row.neg == (*negatives, *["m"] * ('"m"' in text))


def test_the_page_has_an_example_of_every_shape() -> None:
    keys = [set(raw) for example, _ in EXAMPLES if isinstance(raw := json.loads(example), dict)]
    for shape in (*SHAPES, *PEERS):
        assert any(set(shape) <= there for there in keys), shape
    assert len(EXAMPLES) >= len(SHAPES) + len(PEERS) + len(DOCUMENTS)


ROW = {"query": "q", "pos": ["p", "r"], "neg": ["n"]}


@pytest.mark.parametrize(
    ("raw", "negatives"),
    [
        ({"anchor": "q", "positive": "p", "negative_10": "j", "negative_2": "b", "negative_1": "a"}, ("a", "b", "j")),
        ({"query": "q", "pos": "p", "negative1": "a", "negative2": ["b", "c"]}, ("a", "b", "c")),
        ({"query": "q", "pos": "p", "negative": "a", "negative_1": "b"}, ("a", "b")),
        ({"query": "q", "pos": "p", "neg": ["a"], "negatives": ["b"]}, ("a", "b")),
        ({"query": "q", "pos": "p", "neg_1": None, "neg_2": float("nan"), "neg_3": "", "neg_4": "d"}, ("d",)),
        ({"query": "q", "pos": "p", "neg": [None, float("nan"), "a", "\u200b", "nan", "\u2800"]}, ("a",)),
    ],
)
def test_negatives_of_all_keys_are_used(raw: dict[str, Any], negatives: tuple[str, ...]) -> None:
    row = parse_row(raw)
    assert row.neg == negatives and list(unused_keys(row)) == []


def test_positives_may_be_numbered_too() -> None:
    row = parse_row({"anchor": "q", "positive_1": "a", "positive_2": "b", "positive_3": None, "negative": "n"})
    assert row.pos == ("a", "b") and row.shape == "anchor, positive_1 … positive_3, negative"


def test_scores_in_two_lists_are_those_of_a_teacher() -> None:
    row = parse_row(ROW | {"pos_scores": [3, 2.5], "neg_scores": [1]})
    assert row.scores == (3, 2.5, 1) and row.extra == {}
    assert json.loads(row_text("", row))["teacher_scores"] == [3, 2.5, 1]
    assert parse_row({"query": "q", "pos": ["p"], "pos_scores": [3]}).scores == (3,)
    assert parse_row(ROW | {"teacher_scores": [1, 2, 3], "pos_scores": [9, 9], "neg_scores": [9]}).scores == (1, 2, 3)
    half = parse_row(ROW | {"pos_scores": [3, 2.5], "neg_scores": None})
    assert half.scores == () and list(unused_keys(half)) == ["pos_scores"]
    with pytest.raises(RowError, match="pos_scores with neg_scores must be a list of 3 numbers"):
        parse_row(ROW | {"pos_scores": [3], "neg_scores": [1]})


@pytest.mark.parametrize(("prompt", "taken"), [("Find: ", "Find: "), ("", ""), (None, None), (7, None)])
def test_prompt_of_a_row_is_kept(prompt: Any, taken: str | None) -> None:
    row = parse_row(ROW | {"prompt": prompt})
    assert row.prompt == taken
    assert json.loads(row_text("", row))["prompt"] == prompt


@pytest.mark.parametrize(
    ("raw", "extra"),
    [
        ({"query": "q", "positive": "p", "answer": "a", "context": "c"}, {"answer": "a", "context": "c"}),
        ({"query": "q", "pos": "p", "question": "x"}, {"question": "x"}),
        ({"question": "q", "context": "p", "answer": "a"}, {"answer": "a"}),
        ({"anchor": "q", "answer": "p", "sentence2": "s"}, {"sentence2": "s"}),
    ],
)
def test_keys_of_other_tools_count_only_where_ours_are_missing(raw: dict[str, Any], extra: dict[str, Any]) -> None:
    row = parse_row(raw)
    assert (row.query, row.pos, row.extra) == ("q", ("p",), extra)


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        ({"sentence1": "a", "sentence2": "b", "score": 0.4}, "score says how similar"),
        ({"query": "a", "response": "b", "label": 0.3}, "label is 0.3"),
        ({"question": "a", "answer": "b", "label": 0}, "label is 0, so the two texts do not answer each other"),
        ({"sentence2": "b", "query": "a"}, "no positive"),
        ({"id": 1, "input": "q", "output": [{"provenance": []}]}, "KILT names pages by id"),
        ({"query": "q", "query_id": "1", "positive_document_ids": ["2"]}, "name passages by id"),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}, "no positive"),
        (
            {"messages": [{"role": "system", "content": "s"}, {"role": "user"}], "positive_messages": []},
            "messages must be one message {role, content}; put an instruction under prompt",
        ),
        ({"query": "q", "positive_passages": [{"docid": "1"}]}, "positive_passages[0] has no text; its keys are docid"),
        ({"query": "q", "positive_passages": []}, "positive_passages is empty"),
        ({"query": "\u200b", "pos": "p"}, "query is blank"),
        ({"query": "q", "pos": ["\u2800"]}, "pos[0] is blank"),
        ({"query": "q", "pos": ["p", None]}, "pos[1] must be a text, not null"),
        ({"set": ["a", "b"]}, "texts that are alike"),
    ],
)
def test_rows_that_do_not_say_what_answers_are_refused(raw: dict[str, Any], part: str) -> None:
    with pytest.raises(RowError) as error:
        parse_row(raw)
    assert part in str(error.value)


def test_label_1_is_a_pair_and_votes_of_an_answer_are_no_similarity() -> None:
    assert parse_row({"sentence1": "a", "sentence2": "b", "label": 1}).pos == ("b",)
    assert parse_row({"question": "a", "answer": "b", "score": 17}).extra == {"score": 17}


def test_shape_is_named_by_its_keys() -> None:
    assert given_texts(["q", "p"]).shape == "anchor, positive"
    assert given_texts({"query": "q", "pos": "p", "neg": None}).shape == "query, pos, neg"
