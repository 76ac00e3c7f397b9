"""Training rows as people write them -> `TrainingRow`. `embedrag.data.shapes` lists the sets of keys that are accepted.

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

from embedrag.data.formats.lines import RowError
from embedrag.data.markup import as_seen
from embedrag.data.shapes import GRADES_KEY, MISSING, PROMPT_KEY, SCORES_KEY, SHAPES, GivenTexts, given_texts
from embedrag.data.sources import as_sources, raw_rows
from embedrag.data.text import PASSAGE, QUERY, is_blank
from embedrag.errors import UserError, raise_all

NO_ROWS = "no rows; write one JSON object on each line, with the keys " + " or ".join(
    "{" + ", ".join(f'"{key}"' for key in shape) + "}" for shape in SHAPES
)
ROWS_FORMAT = 2  # changes when the same file gives other rows than before
MAX_ERRORS = 20
KEYS_KEPT = 1000  # different keys that are not used are counted


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
        prompt: the row's own instruction (key `prompt`); training puts it before the query in place of the general one.
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
    prompt: str | None = None


def load_rows(train_dataset: str | Path | Sequence[str | Path]) -> list[TrainingRow]:
    """Read all training rows of a data set.

    Args:
        train_dataset: a file of a format that docs/data.md names, a folder of them, a hub id, or several of these.

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


def parse_row(raw: Any, drop_blank: bool = False) -> TrainingRow:
    """Check one row and bring it into one form.

    Args:
        raw: an object with the keys of one of the shapes in `embedrag.data.shapes`, or a list of texts; a positive or
            negative is a text or a list of texts.
        drop_blank: leave out blank positives, with their scores and grades, if others are left.

    Raises:
        RowError: with the reason.

    >>> row = parse_row({"anchor": "a", "positive": "b", "hard_negatives": ["c", "b", ""]})
    >>> row.pos, row.neg, row.dropped
    (('b',), ('c',), 2)
    """
    return row_of(raw, given_texts(raw, blank_allowed=drop_blank), drop_blank)


def row_of(raw: Any, given: GivenTexts, drop_blank: bool = False) -> TrainingRow:
    """The row of which `given` has the texts; see `parse_row`."""
    positives, negatives = given.positives, given.negatives
    pos = tuple(text for text in dict.fromkeys(positives) if not (drop_blank and is_blank(text)))
    if not pos:
        reason = "blank" if positives else "empty; every row needs at least one positive text"
        raise RowError(f"{given.positive_key} is {reason}")
    right = set(pos)
    neg = tuple(text for text in dict.fromkeys(negatives) if not (text in right or text in MISSING or is_blank(text)))
    scores, grades = {}, {}
    if given.scores is not None:
        scores = _numbers(given.scores, given.scores_key, [*positives, *negatives], "positive and negative")
    keys = raw if isinstance(raw, dict) else {}
    if keys.get(GRADES_KEY) is not None:
        grades = _numbers(keys[GRADES_KEY], GRADES_KEY, positives, "positive")
        if any(grade <= 0 for grade in grades.values()):
            raise RowError(f"{GRADES_KEY} must be above 0; a text of grade 0 is a negative")
    return TrainingRow(
        given.query,
        pos,
        neg,
        shape=given.shape,
        extra={key: value for key, value in keys.items() if key not in given.used},
        dropped=len(negatives) - len(neg),
        scores=tuple(scores[text] for text in (*pos, *neg)) if scores else (),
        grades=tuple(grades[text] for text in pos) if grades else (),
        prompt=given.prompt,
    )


def cleaned_row(raw: Any, given: GivenTexts) -> dict[str, Any]:
    """A row as `query`, `pos`, `neg` and its further keys, its texts without HTML and control characters.

    >>> raw = {"anchor": "<b>ohm</b>", "positive": "a&nbsp;unit", "id": 7}
    >>> cleaned_row(raw, given_texts(raw))
    {'query': 'ohm', 'pos': ['a unit'], 'neg': [], 'id': 7}
    """
    texts = {
        "query": as_seen(given.query),
        "pos": [as_seen(text) for text in given.positives],
        "neg": [as_seen(text) for text in given.negatives],
    }
    rest = dict(raw) if isinstance(raw, dict) else {}
    kept = {key: value for key, value in rest.items() if key not in given.used or key == GRADES_KEY}
    kept |= {SCORES_KEY: given.scores} if given.scores is not None else {}
    kept |= {PROMPT_KEY: given.prompt} if given.prompt is not None else {}
    return texts | kept


def unused_keys(row: TrainingRow) -> Iterator[str]:
    """The keys of a row that have a value and that training does not use.

    >>> list(unused_keys(parse_row({"query": "a", "pos": "b", "id": 7, "note": "", "negatif": ["c"]})))
    ['id', 'negatif']
    """
    return (str(key) for key, value in row.extra.items() if not (value is None or value == "" or value == []))


def prompts_not_used(count: int, what: str) -> Iterator[str]:
    """A line when rows have a prompt of their own and a command gives their queries the general one.

    Args:
        count: number of such rows.
        what: what gives it, such as `this evaluation`.
    """
    if count:
        yield (
            f"data: {count:,} rows have a prompt of their own, which only training uses; {what} gives their queries "
            "the general prompt of the model"
        )


def row_texts(row: TrainingRow) -> Iterator[tuple[str, str]]:
    """(role, text) of a row: its query, its positives, its negatives."""
    yield QUERY, row.query
    for text in (*row.pos, *row.neg):
        yield PASSAGE, text


def row_text(place: str, row: TrainingRow) -> str:
    """A row as a line of JSONL: `query`, `pos`, `neg`, their scores and grades, its prompt, and the further keys.

    Raises:
        UserError: JSON can't hold one of the further keys; the message names the place.

    >>> row_text("rows.csv:2", parse_row({"anchor": "a", "positive": "b", "query": "", "id": 7}))
    '{"query": "a", "pos": ["b"], "neg": [], "id": 7}'
    """
    data: dict[str, Any] = {"query": row.query, "pos": row.pos, "neg": row.neg}
    data |= {SCORES_KEY: row.scores} if row.scores else {}
    data |= {GRADES_KEY: row.grades} if row.grades else {}
    data |= {PROMPT_KEY: row.prompt} if row.prompt is not None else {}
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


def _numbers(value: Any, key: str, texts: list[str], of: str) -> dict[str, float]:
    """Text -> its number, from a list with one number for each text; of a doubled text the first number counts."""
    numbers = isinstance(value, list) and all(type(item) in (int, float) and math.isfinite(item) for item in value)
    if not numbers or len(value) != len(texts):
        raise RowError(f"{key} must be a list of {len(texts)} numbers, one for each {of}")
    return dict(zip(reversed(texts), reversed(value), strict=True))
