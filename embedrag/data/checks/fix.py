"""Training rows without their faults: read a second time, and written as they should have been."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from embedrag.data.checks.scan import EvaluationTexts, Scan, kept_of, read_row
from embedrag.data.rows import TrainingRow, row_text
from embedrag.data.sources import raw_rows
from embedrag.data.text import digest
from embedrag.errors import UserError, flag_named
from embedrag.runtime.files import atomic_file

# What a mended file has lost: why -> how it is said.
LOSSES = {
    "unreadable": "rows that can't be read",
    "leaking": "rows with a query of the evaluation set",
    "query_only": "rows whose positives were all their query",
    "repeated": "rows that repeat another",
    "positives": "positives (blank, doubled, or the query)",
    "negatives": "negatives (blank, doubled, the query, or a positive of it)",
}


def write_fixed(
    path: Path, found: Scan, evaluation: EvaluationTexts | None = None, stream: bool = False
) -> dict[str, int]:
    """Read the rows again and write those that stay, as `query`, `pos`, `neg` and their further keys.

    Args:
        path: JSONL file; it appears when it is whole.
        found: what the first pass found in the same files.
        evaluation: rows that leak from it are left out.
        stream: read hub data sets as a stream.

    Returns:
        Rows `written`, and what was left out, by the names of `LOSSES`.

    Raises:
        UserError: when the data changed since the first pass, no row is left, or nothing can be written.
    """
    done: Counter[str] = Counter(dict.fromkeys(("written", *LOSSES), 0))
    with flag_named("--fix"), atomic_file(path) as file:
        for place, record in _kept(found, evaluation, stream, done):
            file.write(row_text(place, record) + "\n")
            done["written"] += 1
        if not done["written"]:
            raise UserError(f"--fix {path}: no row is left, so nothing is written")
    return dict(done)


def fixed_line(path: str, done: dict[str, int]) -> str:
    """What `write_fixed` did, in a line."""
    lost = [f"{done[name]:,} {text}" for name, text in LOSSES.items() if done[name]]
    return f"fixed: {done['written']:,} rows in {path}; left out: {'; '.join(lost) or 'nothing'}"


def _kept(
    found: Scan, evaluation: EvaluationTexts | None, stream: bool, done: Counter[str]
) -> Iterator[tuple[str, TrainingRow]]:
    """The rows that stay, without what is wrong in them; `done` counts what goes."""
    contradicted = np.zeros(len(found.texts), bool)
    contradicted[found.contradicted] = True
    seen: set[int] = set()
    at = 0
    rows = (pair for file in found.files for pair in raw_rows(file, stream))
    for place, row in tqdm(rows, total=found.rows, unit=" rows", disable=None, leave=False):
        record, _ = read_row(row)
        if record is None:
            done["unreadable"] += 1
            continue
        kept = kept_of(record)
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
        pos, neg = tuple(kept.pos.values()), tuple(right.values())
        key = digest(repr((kept.query, sorted(kept.pos), sorted(right))))
        if key in seen:
            done["repeated"] += 1
            continue
        seen.add(key)
        given = row[record.shape.split(", ")[1]]
        done["positives"] += (len(given) if isinstance(given, (list, tuple)) else 1) - len(pos)
        done["negatives"] += record.dropped + len(record.neg) - len(neg)
        scores = dict(zip((*record.pos, *record.neg), record.scores, strict=False))  # of all texts, or of none
        grades = dict(zip(record.pos, record.grades, strict=False))
        yield (
            place,
            replace(
                record,
                pos=pos,
                neg=neg,
                scores=tuple(scores[text] for text in (*pos, *neg) if scores),
                grades=tuple(grades[text] for text in pos if grades),
            ),
        )
    else:
        if at == len(found.texts):
            return
    raise UserError("--fix: the data changed while it was read; start again")
