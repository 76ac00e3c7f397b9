"""Training rows as people write them <-> `Record(query, pos, neg)`.

Five shapes are read by their keys, and may be mixed (`embedrag.data.sources` says from which files). Everything is
checked before anything expensive happens, and an error names the file and the line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from embedrag.data.sources import RowError, raw_rows
from embedrag.data.token_batch import PASSAGE, QUERY
from embedrag.errors import UserError, near_miss

QUERY_KEYS = ("query", "anchor")
POSITIVE_KEYS = ("pos", "positive", "pos_doc")
NEGATIVE_KEYS = ("neg", "negative", "hard_negatives")
TEXT_KEYS = (*QUERY_KEYS, *POSITIVE_KEYS, *NEGATIVE_KEYS)
SCORES_KEY = "teacher_scores"
GRADES_KEY = "grades"
ACCEPTED = (
    '{"query", "pos": […], "neg": […]}, {"anchor", "positive", "hard_negatives": […]}, {"anchor", "positive"}, '
    '{"query", "pos_doc"} or {"query", "positive", "negative"}'
)
MAX_ERRORS = 20


@dataclass(frozen=True)
class TrainingRow:
    """One training row.

    Attributes:
        query: the text that is searched with.
        pos: texts that answer it, at least one.
        neg: texts that do not, possibly none; never one of `pos`.
        shape: the keys it was read from, for the report.
        extra: the row's other keys, kept as they are.
        dropped: how many negatives were left out (blank, doubled, or equal to a positive).
        source: number of the data set it came from.
        scores: a teacher's score of each of `pos` and then `neg` (key `teacher_scores`), or none.
        grades: how well each of `pos` answers, above 0 (key `grades`), or none: all the same.
    """

    query: str
    pos: tuple[str, ...]
    neg: tuple[str, ...]
    shape: str
    extra: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0
    source: int = 0
    scores: tuple[float, ...] = ()
    grades: tuple[float, ...] = ()


def parse_row(row: Any) -> TrainingRow:
    """Read one row of any accepted shape.

    Raises:
        RowError: with the reason.

    >>> record = parse_row({"anchor": "a", "positive": "b", "hard_negatives": ["c", "b", ""]})
    >>> record.pos, record.neg, record.dropped
    (('b',), ('c',), 2)
    """
    if not isinstance(row, dict):
        raise RowError(f"must be an object {{…}}, not {_kind(row)}")
    query_key = _only_key(row, QUERY_KEYS, "query")
    positive_key = _only_key(row, POSITIVE_KEYS, "positive")
    negative_key = _only_key(row, NEGATIVE_KEYS, None)
    query = _text(row[query_key], query_key)
    positives = _texts(row[positive_key], positive_key)
    pos = tuple(dict.fromkeys(positives))
    if not pos:
        raise RowError(f"{positive_key} is empty; every row needs at least one positive text")
    given = (
        _texts(row[negative_key], negative_key, blank_allowed=True)
        if negative_key and row[negative_key] is not None
        else []
    )
    neg = tuple(text for text in dict.fromkeys(given) if text.strip() and text not in pos)
    used = [key for key in (query_key, positive_key, negative_key) if key]
    # Of the keys of texts, those that are not used are empty, and belong to another shape.
    extra = {key: value for key, value in row.items() if key not in (*TEXT_KEYS, SCORES_KEY, GRADES_KEY)}
    scores = _numbers(row, SCORES_KEY, [*positives, *given], "positive and negative")
    grades = _numbers(row, GRADES_KEY, positives, "positive")
    if any(grade <= 0 for grade in grades.values()):
        raise RowError(f"{GRADES_KEY} must be above 0; a text of grade 0 is a negative")
    return TrainingRow(
        query,
        pos,
        neg,
        ", ".join(used),
        extra,
        dropped=len(given) - len(neg),
        scores=tuple(scores[text] for text in (*pos, *neg) if scores),
        grades=tuple(grades[text] for text in pos if grades),
    )


def read_rows(sources: Sequence[str]) -> Iterator[tuple[str, TrainingRow]]:
    """Read all rows of all sources in order.

    Args:
        sources: files, folders of files, or hub data set ids.

    Yields:
        (place such as `train.jsonl:7`, record).

    Raises:
        UserError: with up to `MAX_ERRORS` bad rows, each with its place; or when nothing was found.
    """
    problems: list[str] = []
    count = 0
    rows = ((number, *pair) for number, source in enumerate(sources) for pair in raw_rows(source))
    while len(problems) < MAX_ERRORS:
        try:
            number, place, row = next(rows)
            count += 1
            record = _parsed(row, number)
        except StopIteration:
            break
        except RowError as error:
            problems.append(f"{place}: {error}")
            continue
        except UserError as error:  # the file can't be read on
            problems.append(str(error))
            break
        yield place, record
    if len(problems) == MAX_ERRORS:
        problems.append("… further rows were not looked at")
    if problems:
        raise UserError("\n".join(problems))
    if not count:
        raise UserError(f"{', '.join(sources)}: no rows; one JSON object a line is expected: {ACCEPTED}")


def endless_rows(source: str, number: int = 0) -> Iterator[tuple[str, TrainingRow]]:
    """The rows of a source as they come, from its beginning again when it ends.

    Args:
        source: a file, a folder of files, or a hub data set id, which is read as a stream.
        number: kept in the records.

    Raises:
        UserError: at the first bad row; when there is no row.
    """
    while True:
        empty = True
        for place, row in raw_rows(source, stream=True):
            try:
                yield place, _parsed(row, number)
            except RowError as error:
                raise UserError(f"{place}: {error}") from None
            empty = False
        if empty:
            raise UserError(f"{source}: no rows; one JSON object a line is expected: {ACCEPTED}")


def _parsed(row: Any, number: int) -> TrainingRow:
    if isinstance(row, RowError):
        raise row
    record = parse_row(row)
    return replace(record, source=number) if number else record


def row_text(place: str, record: TrainingRow) -> str:
    """A row as a line of JSONL: `query`, `pos`, `neg`, their scores and grades, and the further keys.

    Raises:
        UserError: naming the place, when a further key is nothing that JSON can hold.

    >>> row_text("rows.csv:2", parse_row({"anchor": "a", "positive": "b", "query": "", "id": 7}))
    '{"query": "a", "pos": ["b"], "neg": [], "id": 7}'
    """
    row: dict[str, Any] = {"query": record.query, "pos": record.pos, "neg": record.neg}
    row |= {SCORES_KEY: record.scores} if record.scores else {}
    row |= {GRADES_KEY: record.grades} if record.grades else {}
    row |= record.extra
    try:
        text = json.dumps(row, ensure_ascii=False, default=str)
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair in a further key
        text = json.dumps(row, default=str)
    except (RecursionError, ValueError, TypeError) as error:
        raise UserError(f"{place}: a further key can't be written as JSON ({error})") from None
    return text


def titled(title: Any, text: str) -> str:
    """A text behind its title, as BEIR's corpora are encoded.

    >>> titled("Fuse", "It melts."), titled(None, "It melts.")
    ('Fuse It melts.', 'It melts.')
    """
    return f"{title} {text}".strip() if isinstance(title, str) else text


def whole_text(text: str, place: str) -> str:
    """The text, unless it holds half of a surrogate pair, which no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: half of a surrogate pair, which is no text; remove it") from None
    return text


def _only_key(row: dict[str, Any], keys: tuple[str, ...], needed: str | None) -> str:
    present = [key for key in keys if key in row]
    if len(present) > 1:  # tables that mix shapes have all columns, empty where a row does not use them
        present = [key for key in present if row[key] not in (None, "", [])] or present[:1]
    if len(present) > 1:
        raise RowError(f"has both {present[0]} and {present[1]}; keep one of them")
    if not present and needed:
        unknown = [key for key in row if key not in TEXT_KEYS]
        hint = next((hint for hint in (near_miss(str(key), keys) for key in unknown) if hint), "")
        raise RowError(f"no {needed} ({' or '.join(keys)}) among its keys {', '.join(map(str, row)) or '(none)'}{hint}")
    return present[0] if present else ""


def _numbers(row: dict[str, Any], key: str, texts: list[str], of: str) -> dict[str, float]:
    """The number of each text, of a list that has one for each; of a text that is there twice the first."""
    value = row.get(key)
    if value is None:
        return {}
    numbers = isinstance(value, list) and all(type(item) in (int, float) and math.isfinite(item) for item in value)
    if not numbers or len(value) != len(texts):
        raise RowError(f"{key} must be a list of {len(texts)} numbers, one for each {of}")
    return dict(zip(reversed(texts), reversed(value), strict=True))


def _texts(value: Any, key: str, blank_allowed: bool = False) -> list[str]:
    """A text or a list of texts as a list."""
    if value is None:
        raise RowError(f"{key} is null; give a text or a list of texts")
    if isinstance(value, (list, tuple)):
        return [_text(item, f"{key}[{index}]", blank_allowed) for index, item in enumerate(value)]
    return [_text(value, key, blank_allowed)]


def _text(value: Any, key: str, blank_allowed: bool = False) -> str:
    if not isinstance(value, str):
        raise RowError(f"{key} must be a text, not {_kind(value)}")
    if not blank_allowed and not value.strip():
        raise RowError(f"{key} is blank")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise RowError(f"{key} holds half of a surrogate pair, which is no text; remove it") from None
    return value


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        bool: "true/false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def row_texts(record: TrainingRow) -> Iterator[tuple[str, str]]:
    """(role, text) of a row: query, positives, negatives."""
    yield QUERY, record.query
    for text in (*record.pos, *record.neg):
        yield PASSAGE, text
