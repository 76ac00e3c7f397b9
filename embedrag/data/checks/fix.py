"""Training rows without their faults: the data is read a second time, and the rest is written to a new file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from embedrag.data.checks.scan import EvaluationTexts, Scan, kept_of, read_row
from embedrag.data.rows import TrainingRow, row_text
from embedrag.data.sources import raw_rows
from embedrag.data.text import digest
from embedrag.errors import UserError
from embedrag.runtime.console import console
from embedrag.runtime.files import atomic_file

# What was left out of the fixed file: name -> words for people.
LOSSES = {
    "unreadable": "rows that can't be read",
    "leaking": "rows with a query of the evaluation set",
    "query_only": "rows that have no positive other than their query",
    "repeated": "rows that repeat another",
    "positives": "positives (blank, doubled, or the query)",
    "negatives": "negatives (blank, doubled, the query, or a positive of it)",
}


CLEANED = "cleaned"  # rows with HTML or control characters that became plain text


class NoRowLeftError(Exception):
    """Nothing would be left in the fixed file."""


def write_fixed(
    path: Path, found: Scan, evaluation: EvaluationTexts | None = None, stream: bool = False
) -> dict[str, int]:
    """Read the rows again and write those without a fault, as `query`, `pos`, `neg` and their further keys.

    Args:
        path: JSONL file; it appears when it is whole.
        found: what the first pass found in the same files.
        evaluation: rows with its queries are left out.
        stream: read hub data sets as a stream.

    Returns:
        How many rows were `written` and `cleaned`, and what was left out, by the names of `LOSSES`.

    Raises:
        NoRowLeftError: no row is left; nothing is written.
        UserError: the data changed since the first pass.
        RunError: the disk can't be written.
    """
    done: Counter[str] = Counter(dict.fromkeys(("written", CLEANED, *LOSSES), 0))
    with atomic_file(path) as file:
        for place, row in _kept(found, evaluation, stream, done):
            file.write(row_text(place, row) + "\n")
            done["written"] += 1
        if not done["written"]:
            raise NoRowLeftError
    return dict(done)


def _kept(
    found: Scan, evaluation: EvaluationTexts | None, stream: bool, done: Counter[str]
) -> Iterator[tuple[str, TrainingRow]]:
    """The rows that stay, without the texts that are wrong; `done` counts what is left out."""
    contradicted = np.zeros(len(found.texts), bool)
    contradicted[found.contradicted] = True
    seen: set[int] = set()
    at = 0
    with console.progress(found.rows, "row", leave=False, disable=None) as bar:
        for place, raw in (pair for file in found.files for pair in raw_rows(file, stream)):
            bar.update()
            read = read_row(raw)
            row, given = read.row, read.given
            if row is None or given is None:
                done["unreadable"] += 1
                continue
            kept = kept_of(row)
            if kept.pos:
                start, at = at, at + 1 + len(kept.pos) + len(kept.neg)
                if at > len(found.texts) or found.texts[start] != kept.query:
                    break
            if evaluation and evaluation.leak(kept):
                done["leaking"] += 1
                continue
            if not kept.pos:
                done["query_only"] += 1
                continue
            wrong = contradicted[at - len(kept.neg) : at].tolist()
            right = {own: text for (own, text), bad in zip(kept.neg.items(), wrong, strict=True) if not bad}
            key = digest(repr((kept.query, sorted(kept.pos), sorted(right))))
            if key in seen:
                done["repeated"] += 1
                continue
            seen.add(key)
            pos, neg = tuple(kept.pos.values()), tuple(right.values())
            done["positives"] += len(given.positives) - len(pos)
            done["negatives"] += row.dropped + len(row.neg) - len(neg)
            done[CLEANED] += bool(read.cleaned)
            yield place, _with_texts(row, pos, neg)
        else:
            if at == len(found.texts):
                return
    raise UserError("the data changed while it was read; start again")


def _with_texts(row: TrainingRow, pos: tuple[str, ...], neg: tuple[str, ...]) -> TrainingRow:
    """A row with some of its texts, which keep their scores and grades."""
    scores = dict(zip((*row.pos, *row.neg), row.scores, strict=False))  # of all texts, or of none
    grades = dict(zip(row.pos, row.grades, strict=False))
    return replace(
        row,
        pos=pos,
        neg=neg,
        scores=tuple(scores[text] for text in (*pos, *neg) if scores),
        grades=tuple(grades[text] for text in pos if grades),
    )
