"""One pass over training rows that counts what is in them and finds what is wrong.

Texts are not kept. A row leaves 8 bytes for each of its texts (a hash), so that rows can be compared, and its lengths
in histograms. To measure texts in tokens, a sample of limited size is kept. Every row is looked at, even if many are
wrong.
"""

from __future__ import annotations

import random
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from embedrag.data.checks.rules import LISTED, Findings, Rows, compare
from embedrag.data.formats.lines import RowError
from embedrag.data.markup import has_controls, has_markup
from embedrag.data.retrieval_dataset import RetrievalDataset
from embedrag.data.rows import KEYS_KEPT, NO_ROWS, TrainingRow, cleaned_row, row_of, unused_keys
from embedrag.data.shapes import MISSING, GivenTexts, given_texts
from embedrag.data.sources import raw_rows, single_sources
from embedrag.data.text import identity, is_blank, scripts_of
from embedrag.errors import UserError, all_problems
from embedrag.runtime.console import console

SIDES = ("query", "positive", "negative")
SCRIPT_CHARACTERS = 200  # only the first ones of each text are looked at
MIXED_SHARE = 0.2  # a row with this share of its letters in a second script is of several scripts
SAMPLED_TEXTS = 10_000  # of each side
# Names of keys that hold negatives, and not something about them.
_NEGATIVES = re.compile(r"(?i)(?:hard[_ ]?)?neg(?!.*(?:ids?|idx|scores?|num|count|type|prompt)$)")


@dataclass(frozen=True)
class Kept:
    """The texts that a row keeps: each different text once. Texts with the same `identity` are not different.

    Attributes:
        query: identity of the query.
        pos: identity -> positive; none of them is the query. It may be empty.
        neg: identity -> negative; none of them is the query or a positive.
    """

    query: int
    pos: dict[int, str]
    neg: dict[int, str]


def kept_of(row: TrainingRow) -> Kept:
    """The texts that are kept of a row that can be read.

    >>> from embedrag.data.rows import parse_row
    >>> kept = kept_of(parse_row({"query": "a", "pos": ["A ", "b"], "neg": ["c", "B", "C"]}))
    >>> list(kept.pos.values()), list(kept.neg.values())
    (['b'], ['c'])
    """
    query = identity(row.query)
    positives: dict[int, str] = {}
    negatives: dict[int, str] = {}
    for text in row.pos:
        positives.setdefault(identity(text), text)
    for text in row.neg:
        own = identity(text)
        if own != query and own not in positives:
            negatives.setdefault(own, text)
    positives.pop(query, None)
    return Kept(query, positives, negatives)


class EvaluationTexts:
    """Hashes of the texts of an evaluation set. Texts that differ only in case, spacing or Unicode form are equal."""

    def __init__(self, data: RetrievalDataset) -> None:
        passages = list(map(identity, data.passages))
        self.passages = np.unique(np.array(passages, np.uint64))
        self.positives: dict[int, set[int]] = {}
        for query, relevant in zip(data.queries, data.relevant, strict=True):
            self.positives.setdefault(identity(query), set()).update(passages[number] for number in relevant)

    def leak(self, kept: Kept) -> str:
        """The kind of fault of a row that is in this evaluation set; empty when it is not in the set."""
        positives = self.positives.get(kept.query)
        if positives is None:
            return ""
        return "leaked_query" if positives.isdisjoint(kept.pos) else "leaked_pair"


class Sample:
    """Up to `SAMPLED_TEXTS` of the texts that were added; each has the same chance to be among them."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.seen = 0
        self._random = random.Random(0)

    def add(self, text: str) -> None:
        """Count a text, and perhaps keep it."""
        self.seen += 1
        if len(self.texts) < SAMPLED_TEXTS:
            self.texts.append(text)
        elif (place := int(self._random.random() * self.seen)) < SAMPLED_TEXTS:
            self.texts[place] = text


@dataclass
class Scan:
    """What a data set holds. The N rows that keep a positive (`Kept`) have the numbers 0 … N - 1, in order.

    Attributes:
        files: what was read: files and hub ids.
        rows: how many rows were looked at, readable or not.
        findings: what is wrong, each with its place.
        shapes: the keys that a row was read from -> number of rows.
        further_keys: other key -> number of rows.
        prompted: rows that have a prompt of their own.
        lengths: side -> characters -> number of texts.
        samples: side -> some of its texts.
        negatives: negatives of a row, as training uses them -> number of rows.
        scripts: script of most letters of a row -> number of rows.
        mixed_rows: rows in which a second script has a fifth of the letters or more.
        crossing_rows: rows with most letters of the query in another script than most letters of the positive.
        leaked_queries: hashes of the evaluation queries that occur in the rows.
        shared_passages: number of different passages that are in the evaluation set too.
        texts: hashes of the texts that are kept, row by row; see `embedrag.data.checks.rules.Rows`.
        offsets: [N + 1] into `texts`.
        positives: [N] number of positives of each row.
        lines: [N] line of each row.
        sources: [N] index into `names`.
        names: the names of the files, as places begin with them.
        contradicted: negatives that another row calls positives of the same query, as places in `texts`.
    """

    files: list[str] = field(default_factory=list)
    rows: int = 0
    findings: Findings = field(default_factory=Findings)
    shapes: Counter[str] = field(default_factory=Counter)
    further_keys: Counter[str] = field(default_factory=Counter)
    prompted: int = 0
    lengths: dict[str, Counter[int]] = field(default_factory=lambda: {side: Counter() for side in SIDES})
    samples: dict[str, Sample] = field(default_factory=lambda: {side: Sample() for side in SIDES})
    negatives: Counter[int] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    mixed_rows: int = 0
    crossing_rows: int = 0
    leaked_queries: set[int] = field(default_factory=set)
    shared_passages: int = 0
    texts: array[int] = field(default_factory=lambda: array("Q"))
    offsets: array[int] = field(default_factory=lambda: array("q", [0]))
    positives: array[int] = field(default_factory=lambda: array("i"))
    lines: array[int] = field(default_factory=lambda: array("q"))
    sources: array[int] = field(default_factory=lambda: array("i"))
    names: dict[str, int] = field(default_factory=dict)
    contradicted: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def place(self, row: int) -> str:
        """Where a row came from, as `file:line`."""
        return f"{list(self.names)[self.sources[row]]}:{self.lines[row]}"

    def numbers(self) -> Rows:
        """The readable rows as numbers."""
        return Rows(
            np.frombuffer(self.texts, np.uint64), np.frombuffer(self.offsets, np.int64), np.array(self.positives)
        )


def scan(
    sources: Sequence[str], evaluation: EvaluationTexts | None = None, sampled: bool = False, stream: bool = False
) -> Scan:
    """Read all rows and find everything that is wrong with them.

    Args:
        sources: files, folders of files, or hub data set ids.
        evaluation: texts that must not occur in the rows.
        sampled: keep a sample of the texts, to measure them in tokens.
        stream: read hub data sets as a stream.

    Raises:
        UserError: a source is not there, or no source holds a row.
    """
    result = Scan(files=expand(sources))
    seen_passages = array("Q")
    for place, raw in _all_rows(result, stream):
        result.rows += 1
        read = read_row(raw)
        row, given, error = read.row, read.given, read.reason
        if error:
            result.findings.add("blank_text" if error.endswith(" is blank") else "unreadable", place, error)
        if row is None or given is None:
            continue
        for kind, text in read.cleaned.items():
            result.findings.add(kind, place, _quoted(text))
        if lost := [key for key in unused_keys(row) if _NEGATIVES.match(key)]:
            result.findings.add("unused_texts", place, ", ".join(lost))
        result.prompted += row.prompt is not None
        kept = kept_of(row)
        _own_faults(result.findings, place, given, row, kept)
        _count(result, row)
        if sampled:
            _sample(result, row)
        if evaluation:
            kind = evaluation.leak(kept)
            if kind:
                result.leaked_queries.add(kept.query)
                result.findings.add(kind, place, _quoted(row.query))
            seen_passages.extend((*kept.pos, *kept.neg))
        if kept.pos:
            _number(result, place, kept)
    if not result.rows and not result.findings.counts:
        raise UserError(NO_ROWS, "train_dataset", sources)
    if evaluation:
        seen = np.unique(np.frombuffer(seen_passages, np.uint64))
        result.shared_passages = int(np.isin(seen, evaluation.passages).sum())
    if result.positives:
        _compare(result)
    return result


def expand(sources: Sequence[str]) -> list[str]:
    """Sources as single files and hub ids, each once.

    Raises:
        UserError: with all sources that are not there.
    """
    files: list[str] = []

    def add(source: str) -> None:
        files.extend(single_sources(source))

    all_problems(partial(add, source) for source in sources)
    return list(dict.fromkeys(files))


@dataclass(frozen=True)
class ReadRow:
    """A row as it was read.

    Attributes:
        row: the row; None: it can't be read.
        reason: what is wrong with it; empty: nothing. A row with blank positives, and nothing else wrong, is given
            without them.
        raw: the row as it stands there, without HTML and control characters.
        given: its texts; None: they can't be read.
        cleaned: kind of fault -> the first text that had it.
    """

    row: TrainingRow | None
    reason: str
    raw: Any
    given: GivenTexts | None
    cleaned: dict[str, str]


def read_row(raw: Any) -> ReadRow:
    """Read a row and what is wrong with it."""
    cleaned: dict[str, str] = {}
    try:
        if isinstance(raw, RowError):
            raise raw
        given = given_texts(raw, blank_allowed=True)
    except RowError as error:
        return ReadRow(None, str(error), raw, None, cleaned)
    shape, texts = given.shape, [given.query, *given.positives, *given.negatives]
    for kind, has in (("markup", has_markup), ("control", has_controls)):
        if first := next((text for text in texts if has(text)), ""):
            cleaned[kind] = first
    try:
        if cleaned:
            raw = cleaned_row(raw, given)
            given = given_texts(raw, blank_allowed=True)
        blank = next((n for n, text in enumerate(given.positives) if is_blank(text)), None)
        row = row_of(raw, given, drop_blank=True)
    except RowError as error:
        return ReadRow(None, str(error), raw, None, cleaned)
    several = len(given.positives) > 1
    reason = "" if blank is None else f"{given.positive_key}{f'[{blank}]' if several else ''} is blank"
    return ReadRow(replace(row, shape=shape) if cleaned else row, reason, raw, given, cleaned)


def _all_rows(result: Scan, stream: bool) -> Iterator[tuple[str, Any]]:
    """Rows of all files. A file that can't be read further is a finding, and the next file is read."""
    with console.progress(None, "row", leave=False, disable=None) as bar:
        for file in result.files:
            try:
                for pair in raw_rows(file, stream):
                    bar.update()
                    yield pair
            except UserError as error:
                text = f"{file}: {error.reason}" if error.argument else str(error)
                result.findings.add("file", file, text)


def _own_faults(findings: Findings, place: str, given: GivenTexts, row: TrainingRow, kept: Kept) -> None:
    """Add what is wrong inside one row that can be read."""
    if len(given.positives) > len(kept.pos):
        alike = _alike(given.positives)
        _add_texts(findings, "doubled_positive", place, [texts[0] for texts in alike.values() if len(texts) > 1])
        _add_texts(findings, "query_is_positive", place, alike.get(kept.query, [])[:1])
    if not row.dropped and len(row.neg) == len(kept.neg):
        return
    blank = sum(text in MISSING or is_blank(text) for text in given.negatives)
    if blank:
        findings.add("blank_negative", place, f"{blank} of {len(given.negatives)}")
    positives = set(map(identity, row.pos))
    found: dict[str, list[str]] = {"own_positive": [], "query_is_negative": [], "doubled_negative": []}
    for own, texts in _alike(given.negatives).items():
        if own in positives:
            found["own_positive"].append(texts[0])
        elif own == kept.query:
            found["query_is_negative"].append(texts[0])
        elif len(texts) > 1:
            found["doubled_negative"].append(texts[0])
    for kind, wrong in found.items():
        _add_texts(findings, kind, place, wrong)


def _alike(texts: list[str]) -> dict[int, list[str]]:
    """Identity -> the texts that have it; blank texts are left out."""
    found: dict[int, list[str]] = {}
    for text in texts:
        if text not in MISSING and not is_blank(text):
            found.setdefault(identity(text), []).append(text)
    return found


def _add_texts(findings: Findings, kind: str, place: str, texts: list[str]) -> None:
    if texts:
        findings.add(kind, place, _quoted(texts[0]) + (f" and {len(texts) - 1} more" if len(texts) > 1 else ""))


def _count(result: Scan, row: TrainingRow) -> None:
    result.shapes[row.shape] += 1
    keys = result.further_keys
    keys.update(key for key in unused_keys(row) if key in keys or len(keys) < KEYS_KEPT)
    for side, texts in zip(SIDES, ((row.query,), row.pos, row.neg), strict=True):
        counts = result.lengths[side]
        for text in texts:
            counts[len(text)] += 1
    result.negatives[len(row.neg)] += 1
    query, positive = row.query[:SCRIPT_CHARACTERS], row.pos[0][:SCRIPT_CHARACTERS]
    if query.isascii() and positive.isascii():
        result.scripts["Latin" if query.upper() != query.lower() or positive.upper() != positive.lower() else ""] += 1
        return
    of_query, of_positive = scripts_of(query), scripts_of(positive)
    both = (of_query + of_positive).most_common(2)
    result.scripts[both[0][0] if both else ""] += 1
    result.mixed_rows += len(both) == 2 and both[1][1] >= MIXED_SHARE * sum((of_query + of_positive).values())
    if of_query and of_positive:
        result.crossing_rows += of_query.most_common(1)[0][0] != of_positive.most_common(1)[0][0]


def _sample(result: Scan, row: TrainingRow) -> None:
    for side, texts in zip(SIDES, ((row.query,), row.pos, row.neg), strict=True):
        for text in texts:
            result.samples[side].add(text)


def _number(result: Scan, place: str, kept: Kept) -> None:
    result.texts.extend((kept.query, *kept.pos, *kept.neg))
    result.offsets.append(len(result.texts))
    result.positives.append(len(kept.pos))
    name, line = place.rsplit(":", 1)
    result.lines.append(int(line))
    result.sources.append(result.names.setdefault(name, len(result.names)))


def _compare(result: Scan) -> None:
    """Add the faults between rows."""
    found = compare(result.numbers())
    findings = result.findings
    result.contradicted = found.contradictions[:, 2]
    for kind, pairs, text in (
        ("repeated_query", found.repeated, "the query of {}"),
        ("duplicate_row", found.duplicates, "the same as {}"),
        ("other_positive", _first_of_row(found.contradictions), "a negative is a positive of {}"),
    ):
        for row, other in pairs[:LISTED, :2].tolist():
            findings.add(kind, result.place(row), text.format(result.place(other)))
        if len(pairs) > LISTED:
            findings.counts[kind] = len(pairs)


def _first_of_row(found: np.ndarray) -> np.ndarray:
    return found[np.unique(found[:, 0], return_index=True)[1]]


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= 50 else f"{text[:50]!r}…"
