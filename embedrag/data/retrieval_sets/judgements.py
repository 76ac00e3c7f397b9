"""Judgements (qrels): which passage answers which query, in the forms in which they are published."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedrag.data.formats.lines import RowError, numbered_lines
from embedrag.data.retrieval_sets.texts import SHOWN, as_id
from embedrag.data.sources import format_of
from embedrag.errors import UserError, raise_all

# What a column holds -> its names, in lower case.
COLUMNS = {
    "query": ("query-id", "query_id", "queryid", "qid", "query", "topic", "topic_id", "_id"),
    "passage": (
        "corpus-id", "corpus_id", "corpusid", "doc-id", "doc_id", "docid", "docno", "document_id", "passage_id", "pid",
    ),
    "score": ("score", "relevance", "rel", "grade", "label", "rating", "qrel", "judgement", "judgment"),
}  # fmt: skip
FORMS = (
    "a line has a query id, a passage id and a score, or TREC's query id, 0, passage id, score; between tabs, "
    "commas or spaces"
)


@dataclass
class Judgements:
    """Grades of pairs, and what is unusual about them.

    Attributes:
        grades: query id -> passage id -> grade, in the order of the files.
        repeated: pairs that are repeated with the same grade.
        changed: pairs that are repeated with another grade. The last one counts, as in BEIR and MTEB.
        between: number of grades that are no whole numbers.
        headers: (place, cells) of first lines that were taken for headers without a known name.
    """

    grades: dict[str, dict[str, float]] = field(default_factory=dict)
    repeated: list[tuple[str, str]] = field(default_factory=list)
    changed: list[tuple[str, str]] = field(default_factory=list)
    between: int = 0
    headers: list[tuple[str, list[str]]] = field(default_factory=list)


def read_judgements(files: Sequence[Path]) -> Judgements:
    """The judgements of one or several files.

    Raises:
        UserError: with the first problems that were found, each with file and line.
    """
    found = Judgements()
    problems: list[UserError] = []
    further = 0
    for file in files:
        empty = True
        for place, query, passage, grade in _pairs(file, found.headers):
            empty = False
            if query is None or passage is None or grade is None:
                further += len(problems) >= SHOWN
                problems += [UserError(f"{place}: not a judgement; {FORMS}")] if len(problems) < SHOWN else []
                continue
            known = found.grades.setdefault(query, {})
            if passage in known:
                (found.repeated if known[passage] == grade else found.changed).append((query, passage))
            known[passage] = grade
            found.between += not grade.is_integer()
        if empty:
            header = next((place for place, _ in found.headers if place == f"{file}:1"), None)
            problems.append(UserError(f"{header}: not a judgement; {FORMS}" if header else f"{file}: is empty"))
    if further:
        problems.append(UserError(f"… and {further:,} more problems"))
    raise_all(problems)
    return found


def _pairs(
    file: Path, headers: list[tuple[str, list[str]]]
) -> Iterator[tuple[str, str | None, str | None, float | None]]:
    """(place, query id, passage id, grade) of each line; None for a part that is not there."""
    kind = format_of(file)
    if kind and kind.name not in ("TSV", "CSV"):
        for place, row in kind.read(file, set().union(*COLUMNS.values()), ""):
            wrong = isinstance(row, RowError) or not isinstance(row, dict)
            names = {} if wrong else {str(key).casefold(): key for key in row}
            values = [next((row[names[n]] for n in COLUMNS[part] if n in names), None) for part in COLUMNS]
            yield place, as_id(values[0]), as_id(values[1]), _grade(values[2])
        return
    split = order = None
    for number, line in numbered_lines(file):
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        first, split = split is None, split or _Splitter(text)
        cells = split(text)
        if first:
            order = _order(cells)
            if not order and number == 1 and len(cells) in (3, 4) and not _is_number(cells[-1]):
                headers.append((f"{file}:{number}", cells))
            if order or headers[-1:] == [(f"{file}:{number}", cells)]:
                continue
        places = order or {3: (0, 1, 2), 4: (0, 2, 3)}.get(len(cells))
        found = [cells[at] if at < len(cells) else None for at in places] if places else [None] * 3
        yield f"{file}:{number}", as_id(found[0]), as_id(found[1]), _grade(found[2])


class _Splitter:
    """Splits lines into cells: at tabs, commas or white space, as the first line shows. Cells may stand in quotes."""

    def __init__(self, line: str) -> None:
        self._delimiter = next((mark for mark in "\t;," if line.count(mark) >= 2), None)

    def __call__(self, line: str) -> list[str]:
        if self._delimiter is None:
            return [cell.strip('"') for cell in line.split()]
        if '"' not in line:
            cells = line.split(self._delimiter)
        else:
            try:
                cells = next(csv.reader([line], delimiter=self._delimiter, skipinitialspace=True), [])
            except csv.Error:
                return []
        return cells if self._delimiter == "\t" else [cell.strip() for cell in cells]


def _order(header: Sequence[str]) -> tuple[int, ...] | None:
    """Places of query, passage and score in a header; None when it is none, or one with other names."""
    names = [name.strip().casefold() for name in header]
    places = [next((names.index(name) for name in COLUMNS[part] if name in names), None) for part in COLUMNS]
    return None if None in places else tuple(place for place in places if place is not None)


def _is_number(cell: str) -> bool:
    """Whether a cell may be meant as a grade; NaN is none, but it is no name of a column either."""
    return _grade(cell) is not None or cell.strip().casefold() in ("nan", "inf", "-inf", "")


def _grade(value: Any) -> float | None:
    """A grade as a number; True and False are 1 and 0. None for a value that is none."""
    if isinstance(value, str) and re.fullmatch(r"\s*(true|false)\s*", value, re.I):
        value = value.strip().casefold() == "true"
    try:
        grade = float(value)
    except (TypeError, ValueError):
        return None
    return grade if math.isfinite(grade) else None
