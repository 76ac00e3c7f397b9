"""Training rows as people write them -> `TrainingRow`. `SHAPES` lists the sets of keys that are accepted.

A file may mix the shapes (`embedrag.data.sources` says which files are read). Every row is checked before anything
expensive happens, and an error names the file and the line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedrag.data.sources import RowError, as_sources, raw_rows
from embedrag.data.text import PASSAGE, QUERY
from embedrag.errors import UserError, near_miss, raise_all

# Keys of the query, of its positives and, if a shape has negatives, of its negatives. A new shape is one line here.
# Keys of two shapes may be combined: `query` with `pos_doc` and `hard_negatives` is read too.
SHAPES = (
    ("query", "pos", "neg"),
    ("anchor", "positive", "hard_negatives"),
    ("anchor", "positive"),
    ("query", "pos_doc"),
    ("query", "positive", "negative"),
)
QUERY_KEYS, POSITIVE_KEYS, NEGATIVE_KEYS = (
    tuple(dict.fromkeys(shape[part] for shape in SHAPES if part < len(shape))) for part in range(3)
)
TEXT_KEYS = (*QUERY_KEYS, *POSITIVE_KEYS, *NEGATIVE_KEYS)
SCORES_KEY = "teacher_scores"
GRADES_KEY = "grades"
NO_ROWS = "no rows; write one JSON object on each line, with the keys " + " or ".join(
    "{" + ", ".join(f'"{key}"' for key in shape) + "}" for shape in SHAPES
)
MAX_ERRORS = 20


@dataclass(frozen=True)
class TrainingRow:
    """One training row.

    Attributes:
        query: the text that is searched with.
        pos: texts that answer it, at least one.
        neg: texts that do not answer it, possibly none; none of them is in `pos`.
        shape: the keys that it was read from, for the report.
        extra: the row's other keys, unchanged.
        dropped: how many negatives were left out (blank, doubled, or equal to a positive).
        source: number of the data set that it came from.
        scores: a teacher's score of each text in `pos` and then in `neg` (key `teacher_scores`), or none.
        grades: how well each text in `pos` answers, above 0 (key `grades`); none: all answer equally well.
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


def load_rows(train_dataset: str | Path | Sequence[str | Path]) -> list[TrainingRow]:
    """Read all training rows of a data set.

    Args:
        train_dataset: a JSONL, CSV, TSV or Parquet file, a folder of such files, a hub id, or several of these.

    Raises:
        UserError: rows that can't be read, each with file and line; or there is no row.

    Example:
        ```python
        rows = embedrag.load_rows("datasets/sample_data.jsonl")
        rows[0].query, rows[0].pos, rows[0].neg
        ```
    """
    return [row for _, row in read_rows(as_sources(train_dataset))]


def read_rows(sources: Sequence[str], argument: str = "train_dataset") -> Iterator[tuple[str, TrainingRow]]:
    """Read all rows of all sources in order.

    Args:
        sources: files, folders of files, or hub data set ids.
        argument: what the caller calls the sources, for messages.

    Yields:
        (place such as `train.jsonl:7`, row).

    Raises:
        UserError: with up to `MAX_ERRORS` bad rows, each with its place; or there is no row.
    """
    problems: list[UserError] = []
    count = 0
    rows = ((number, *pair) for number, source in enumerate(sources) for pair in raw_rows(source, argument=argument))
    while len(problems) < MAX_ERRORS:
        try:
            number, place, raw = next(rows)
            count += 1
            row = _parsed(raw, number)
        except StopIteration:
            break
        except RowError as error:
            problems.append(UserError(f"{place}: {error}"))
            continue
        except UserError as error:  # the file can't be read further
            problems.append(error)
            break
        yield place, row
    if len(problems) == MAX_ERRORS:
        problems.append(UserError("… the rows after these were not looked at"))
    raise_all(problems)
    if not count:
        raise UserError(NO_ROWS, argument, sources)


def endless_rows(source: str, number: int = 0, argument: str = "train_dataset") -> Iterator[tuple[str, TrainingRow]]:
    """The rows of a source in order; when it ends, it is read from its beginning again.

    Args:
        source: a file, a folder of files, or a hub data set id, which is read as a stream.
        number: of the source; kept in its rows.
        argument: what the caller calls the source, for messages.

    Raises:
        UserError: at the first bad row; or there is no row.
    """
    while True:
        empty = True
        for place, raw in raw_rows(source, stream=True, argument=argument):
            try:
                yield place, _parsed(raw, number)
            except RowError as error:
                raise UserError(f"{place}: {error}") from None
            empty = False
        if empty:
            raise UserError(NO_ROWS, argument, source)


def parse_row(raw: Any) -> TrainingRow:
    """Check one row and bring it into one form.

    Args:
        raw: an object with the keys of one of `SHAPES`; a positive or negative is a text or a list of texts.

    Raises:
        RowError: with the reason.

    >>> row = parse_row({"anchor": "a", "positive": "b", "hard_negatives": ["c", "b", ""]})
    >>> row.pos, row.neg, row.dropped
    (('b',), ('c',), 2)
    """
    if not isinstance(raw, dict):
        raise RowError(f"must be an object {{…}}, not {_kind(raw)}")
    query_key = _only_key(raw, QUERY_KEYS, "query")
    positive_key = _only_key(raw, POSITIVE_KEYS, "positive")
    negative_key = _only_key(raw, NEGATIVE_KEYS, None)
    query = _text(raw[query_key], query_key)
    positives = _texts(raw[positive_key], positive_key)
    pos = tuple(dict.fromkeys(positives))
    if not pos:
        raise RowError(f"{positive_key} is empty; every row needs at least one positive text")
    negatives: list[str] = []
    if negative_key and raw[negative_key] is not None:
        negatives = _texts(raw[negative_key], negative_key, blank_allowed=True)
    neg = tuple(text for text in dict.fromkeys(negatives) if text.strip() and text not in pos)
    # Keys of texts that are not used are empty; they belong to another shape of the same table.
    extra = {key: value for key, value in raw.items() if key not in (*TEXT_KEYS, SCORES_KEY, GRADES_KEY)}
    scores = _numbers(raw, SCORES_KEY, [*positives, *negatives], "positive and negative")
    grades = _numbers(raw, GRADES_KEY, positives, "positive")
    if any(grade <= 0 for grade in grades.values()):
        raise RowError(f"{GRADES_KEY} must be above 0; a text of grade 0 is a negative")
    return TrainingRow(
        query,
        pos,
        neg,
        shape=", ".join(key for key in (query_key, positive_key, negative_key) if key),
        extra=extra,
        dropped=len(negatives) - len(neg),
        scores=tuple(scores[text] for text in (*pos, *neg) if scores),
        grades=tuple(grades[text] for text in pos if grades),
    )


def row_texts(row: TrainingRow) -> Iterator[tuple[str, str]]:
    """(role, text) of a row: its query, its positives, its negatives."""
    yield QUERY, row.query
    for text in (*row.pos, *row.neg):
        yield PASSAGE, text


def row_text(place: str, row: TrainingRow) -> str:
    """A row as a line of JSONL: `query`, `pos`, `neg`, their scores and grades, and the further keys.

    Raises:
        UserError: JSON can't hold one of the further keys; the message names the place.

    >>> row_text("rows.csv:2", parse_row({"anchor": "a", "positive": "b", "query": "", "id": 7}))
    '{"query": "a", "pos": ["b"], "neg": [], "id": 7}'
    """
    data: dict[str, Any] = {"query": row.query, "pos": row.pos, "neg": row.neg}
    data |= {SCORES_KEY: row.scores} if row.scores else {}
    data |= {GRADES_KEY: row.grades} if row.grades else {}
    data |= row.extra
    try:
        text = json.dumps(data, ensure_ascii=False, default=str)
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair in a further key
        text = json.dumps(data, default=str)
    except (RecursionError, ValueError, TypeError) as error:
        raise UserError(f"{place}: a further key can't be written as JSON ({error})") from None
    return text


def _parsed(raw: Any, number: int) -> TrainingRow:
    if isinstance(raw, RowError):
        raise raw
    row = parse_row(raw)
    return replace(row, source=number) if number else row


def _only_key(raw: dict[str, Any], keys: tuple[str, ...], needed: str | None) -> str:
    present = [key for key in keys if key in raw]
    if len(present) > 1:  # a table of several shapes has all their columns; those that a row does not use are empty
        present = [key for key in present if raw[key] not in (None, "", [])] or present[:1]
    if len(present) > 1:
        raise RowError(f"has both {present[0]} and {present[1]}; keep one of them")
    if not present and needed:
        unknown = [key for key in raw if key not in TEXT_KEYS]
        hint = next((hint for hint in (near_miss(str(key), keys) for key in unknown) if hint), "")
        raise RowError(f"no {needed} ({' or '.join(keys)}) among its keys {', '.join(map(str, raw)) or '(none)'}{hint}")
    return present[0] if present else ""


def _numbers(raw: dict[str, Any], key: str, texts: list[str], of: str) -> dict[str, float]:
    """Text -> its number, from a list with one number for each text; of a doubled text the first number counts."""
    value = raw.get(key)
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
            raise RowError(f"{key} holds half of a surrogate pair, which is not text; remove it") from None
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
