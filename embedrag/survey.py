"""One pass over training rows that counts what is in them and finds what is wrong.

Texts are not kept: a row leaves 8 bytes for each text (hash), so that rows can be compared, histograms of its lengths,
and, for tokens, a place in a sample of bounded size. Every row is looked at, however many are wrong.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from embedrag.errors import UserError
from embedrag.faults import LISTED, Findings, Rows, compare
from embedrag.readers import RowError, local_files, raw_rows
from embedrag.records import POSITIVE_KEYS, Record, parse_row
from embedrag.retrieval import RetrievalSet
from embedrag.texts import Sample, digest, normalise, scripts_of

SIDES = ("query", "positive", "negative")
SCRIPT_CHARACTERS = 200  # of each text that are looked at
MIXED_SHARE = 0.2
KEYS_KEPT = 1000


class EvalTexts:
    """Hashes of an evaluation set, of texts as `normalise` gives them."""

    def __init__(self, data: RetrievalSet) -> None:
        passages = [digest(normalise(text)) for text in data.passages]
        self.passages = np.unique(np.array(passages, np.uint64))
        self.positives: dict[int, set[int]] = {}
        for query, relevant in zip(data.queries, data.relevant, strict=True):
            self.positives.setdefault(digest(normalise(query)), set()).update(passages[number] for number in relevant)

    def leak(self, record: Record) -> str:
        """The kind of fault a row is beside this set; empty when it is none."""
        positives = self.positives.get(digest(normalise(record.query)))
        if positives is None:
            return ""
        return "leaked_pair" if any(digest(normalise(text)) in positives for text in record.pos) else "leaked_query"


@dataclass
class Survey:
    """What a data set holds. Rows that can be read have numbers 0 … N - 1, in order.

    Attributes:
        files: what was read: files and hub ids.
        rows: how many rows were looked at, readable or not.
        findings: what is wrong, each with its place.
        shapes: keys that rows were read from -> rows.
        further_keys: other keys -> rows.
        lengths: side -> characters -> texts.
        samples: side -> some of its texts.
        negatives: negatives of a row, as training uses them -> rows.
        scripts: script that most letters of a row are of -> rows.
        mixed_rows: rows in which a second script has a fifth of the letters or more.
        crossing_rows: rows whose query and positive are mainly in different scripts.
        leaked_queries: hashes of the evaluation queries that occur.
        shared_passages: different passages that are in the evaluation set too.
        texts: hashes of all texts, row by row; see `embedrag.faults.Rows`.
        offsets: [N + 1] into `texts`.
        positives: [N] positives of each row.
        lines: [N] line of each row.
        sources: [N] index into `names`.
        names: what places are named after.
        contradicted: negatives that another row calls positives of the same query, as places in `texts`.
    """

    files: list[str] = field(default_factory=list)
    rows: int = 0
    findings: Findings = field(default_factory=Findings)
    shapes: Counter[str] = field(default_factory=Counter)
    further_keys: Counter[str] = field(default_factory=Counter)
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


def survey(
    sources: Sequence[str], evaluation: EvalTexts | None = None, sampled: bool = False, stream: bool = False
) -> Survey:
    """Read all rows and find everything that is wrong with them.

    Args:
        sources: files, folders of files, or hub data set ids.
        evaluation: texts that must not occur.
        sampled: keep a sample of the texts, to measure them in tokens.
        stream: read hub data sets as a stream.

    Raises:
        UserError: when a source is not there, or nothing holds a row.
    """
    result = Survey(files=expand(sources))
    seen_passages = array("Q")
    for place, row in tqdm(_all_rows(result, stream), unit=" rows", disable=None, leave=False):
        result.rows += 1
        record, error = read_row(row)
        if error:
            result.findings.add("blank_text" if error.endswith(" is blank") else "unreadable", place, error)
        if record is None:
            continue
        _own_faults(result.findings, place, row, record)
        _count(result, record)
        if sampled:
            _sample(result, record)
        if evaluation:
            kind = evaluation.leak(record)
            if kind:
                result.leaked_queries.add(digest(normalise(record.query)))
                result.findings.add(kind, place, _quoted(record.query))
            seen_passages.extend(digest(normalise(text)) for text in (*record.pos, *record.neg))
        _number(result, place, record)
    if not result.rows and not result.findings.counts:
        raise UserError(f"{', '.join(sources)}: no rows; see docs/check.md for what a row is")
    if evaluation:
        seen = np.unique(np.frombuffer(seen_passages, np.uint64))
        result.shared_passages = int(np.isin(seen, evaluation.passages).sum())
    if result.positives:
        _compare(result)
    return result


def expand(sources: Sequence[str]) -> list[str]:
    """Sources as single files and hub ids; a source that is not there is an error, all of them together."""
    problems, files = [], []
    for source in dict.fromkeys(sources):
        try:
            files += [str(path) for path in local_files(source)] or [source]
        except UserError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"--train_dataset {source[:200]}: {error.strerror or error}")
    if problems:
        raise UserError("\n".join(problems))
    return list(dict.fromkeys(files))


def read_row(row: Any) -> tuple[Record | None, str]:
    """A row and what is wrong with it; a row that is right but for blank positives is given without them."""
    try:
        if isinstance(row, RowError):
            raise row
        return parse_row(row), ""
    except RowError as error:
        reason = str(error)
    try:
        return (parse_row(_without_blanks(row)) if isinstance(row, dict) else None), reason
    except RowError:
        return None, reason


def _all_rows(result: Survey, stream: bool) -> Iterator[tuple[str, Any]]:
    """Rows of all files; a file that can't be read on is a finding, and the next one follows."""
    for file in result.files:
        try:
            yield from raw_rows(file, stream)
        except UserError as error:
            result.findings.add("file", file, str(error))
        except OSError as error:
            result.findings.add("file", file, f"{file}: {error.strerror or error}")


def _without_blanks(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the blank texts in its lists of positives."""
    return {
        key: [text for text in value if not isinstance(text, str) or text.strip()]
        if key in POSITIVE_KEYS and isinstance(value, list)
        else value
        for key, value in row.items()
    }


def _own_faults(findings: Findings, place: str, row: dict[str, Any], record: Record) -> None:
    """What is wrong inside one row that can be read."""
    keys = record.shape.split(", ")
    given = row[keys[1]]
    if isinstance(given, (list, tuple)) and len(given) > len(record.pos):
        found = next((text for text, count in Counter(filter(str.strip, given)).items() if count > 1), None)
        if found is not None:
            findings.add("doubled_positive", place, _quoted(found))
    query = record.query.strip()
    if any(query == text.strip() for text in record.pos):
        findings.add("query_is_positive", place, _quoted(query))
    if not record.dropped:
        return
    negatives = row[keys[2]]
    if isinstance(negatives, str):
        negatives = [negatives] if negatives else []
    counts = Counter(negatives)
    blank = sum(count for text, count in counts.items() if not text.strip())
    if blank:
        findings.add("blank_negative", place, f"{blank} of {len(negatives)}")
    for kind, texts in (
        ("own_positive", [text for text in counts if text in record.pos]),
        ("doubled_negative", [text for text, count in counts.items() if count > 1 and text in record.neg]),
    ):
        if texts:
            findings.add(kind, place, _quoted(texts[0]) + (f" and {len(texts) - 1} more" if len(texts) > 1 else ""))


def _count(result: Survey, record: Record) -> None:
    result.shapes[record.shape] += 1
    for key in record.extra:
        if len(result.further_keys) < KEYS_KEPT:
            result.further_keys[str(key)] += 1
    for side, texts in zip(SIDES, ((record.query,), record.pos, record.neg), strict=True):
        counts = result.lengths[side]
        for text in texts:
            counts[len(text)] += 1
    result.negatives[len(record.neg)] += 1
    query, positive = record.query[:SCRIPT_CHARACTERS], record.pos[0][:SCRIPT_CHARACTERS]
    if query.isascii() and positive.isascii():
        result.scripts["Latin" if query.upper() != query.lower() or positive.upper() != positive.lower() else ""] += 1
        return
    of_query, of_positive = scripts_of(query), scripts_of(positive)
    both = (of_query + of_positive).most_common(2)
    result.scripts[both[0][0] if both else ""] += 1
    result.mixed_rows += len(both) == 2 and both[1][1] >= MIXED_SHARE * sum((of_query + of_positive).values())
    if of_query and of_positive:
        result.crossing_rows += of_query.most_common(1)[0][0] != of_positive.most_common(1)[0][0]


def _sample(result: Survey, record: Record) -> None:
    for side, texts in zip(SIDES, ((record.query,), record.pos, record.neg), strict=True):
        for text in texts:
            result.samples[side].add(text)


def _number(result: Survey, place: str, record: Record) -> None:
    result.texts.extend(map(digest, (record.query, *record.pos, *record.neg)))
    result.offsets.append(len(result.texts))
    result.positives.append(len(record.pos))
    name, line = place.rsplit(":", 1)
    result.lines.append(int(line))
    result.sources.append(result.names.setdefault(name, len(result.names)))


def _compare(result: Survey) -> None:
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
