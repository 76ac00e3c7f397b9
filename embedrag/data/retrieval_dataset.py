"""Retrieval sets: queries, passages and which passages answer which query, from a folder in the BEIR layout or rows."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedrag.data.rows import TrainingRow, read_rows, titled, whole_text
from embedrag.data.sources import numbered_lines
from embedrag.errors import UserError, flag_named

CORPUS = "corpus.jsonl"


@dataclass(frozen=True)
class RetrievalDataset:
    """What a model is scored on.

    Attributes:
        queries: texts of the q queries.
        passages: texts of the p passages. Equal scores are ranked in this order.
        relevant: for each query, passage number -> gain (above 0).
        negatives: for each query, passages that were labelled as wrong.
        skipped: queries that were left out, for they have no relevant passage.
    """

    queries: list[str]
    passages: list[str]
    relevant: list[dict[int, float]]
    negatives: list[list[int]]
    skipped: int = 0


def load_retrieval_dataset(
    source: str, sample_size: int | None = None, seed: int = 42, flag: str = "--data"
) -> RetrievalDataset:
    """Read a folder in the BEIR layout, or rows in any shape that training reads.

    Args:
        source: folder with corpus.jsonl, queries.jsonl and qrels/test.tsv; or a file, whose passages are the corpus.
        sample_size: so many queries, drawn at random; the corpus stays whole.
        seed: of the draw.
        flag: that named the source, for messages.

    Raises:
        UserError: naming file and line.
    """
    folder = Path(source).expanduser()
    with flag_named(flag, "--train_dataset", "--data"):
        data = load_beir(str(folder)) if folder.is_dir() and not _is_rows(folder) else load_rows(source)
    if sample_size is None or sample_size >= len(data.queries):
        return data
    picked = sorted(random.Random(seed).sample(range(len(data.queries)), sample_size))
    return replace(
        data,
        queries=[data.queries[number] for number in picked],
        relevant=[data.relevant[number] for number in picked],
        negatives=[data.negatives[number] for number in picked],
    )


def fewer_passages(data: RetrievalDataset, count: int, seed: int = 42) -> RetrievalDataset:
    """The same queries among fewer passages: all labelled ones, and others drawn at random, `count` together.

    With fewer passages to confuse, scores are higher than those of the whole set.
    """
    kept = {number for labelled in (*data.relevant, *data.negatives) for number in labelled}
    others = [number for number in range(len(data.passages)) if number not in kept]
    kept |= set(random.Random(seed).sample(others, min(len(others), max(0, count - len(kept)))))
    place = {number: index for index, number in enumerate(sorted(kept))}
    return replace(
        data,
        passages=[data.passages[number] for number in place],
        relevant=[{place[number]: gain for number, gain in gains.items()} for gains in data.relevant],
        negatives=[[place[number] for number in wrong] for wrong in data.negatives],
    )


def load_rows(source: str) -> RetrievalDataset:
    """Rows of any training shape; all their passages are the corpus."""
    return gather_rows(record for _, record in read_rows([source]))


def gather_rows(records: Iterable[TrainingRow], further: Iterable[str] = ()) -> RetrievalDataset:
    """A set of rows; those of one query are one query, and each different passage is there once.

    Args:
        records: the rows.
        further: passages that are searched too.
    """
    numbers: dict[str, int] = {}
    positives: dict[str, dict[int, float]] = {}
    negatives: dict[str, list[int]] = {}
    for record in records:
        sides = (record.pos, record.neg)
        right, wrong = ([numbers.setdefault(text, len(numbers)) for text in texts] for texts in sides)
        gains = record.grades or [1.0] * len(right)
        known = positives.setdefault(record.query, {})
        known.update((n, max(gain, known.get(n, 0.0))) for n, gain in zip(right, gains, strict=True))
        negatives.setdefault(record.query, []).extend(wrong)
    for text in further:
        numbers.setdefault(text, len(numbers))
    labelled = [[n for n in dict.fromkeys(negatives[query]) if n not in positives[query]] for query in positives]
    return RetrievalDataset(list(positives), list(numbers), list(positives.values()), labelled)


def load_beir(folder: str, split: str = "test") -> RetrievalDataset:
    """Read a folder in the BEIR layout.

    Passages are put into falling order of their ids, for that is how trec_eval ranks equal scores.

    Raises:
        UserError: naming file and line.
    """
    root = Path(folder)
    rows = sorted(_jsonl(root / CORPUS), key=lambda row: row["_id"].encode(), reverse=True)
    queries = {row["_id"]: row["text"] for row in _jsonl(root / "queries.jsonl")}
    number = {row["_id"]: index for index, row in enumerate(rows)}
    relevant: dict[str, dict[int, float]] = {}
    path = root / "qrels" / f"{split}.tsv"
    judged: set[tuple[str, str]] = set()
    for line, text in _lines(path):
        query, document, gain = _judgement(text)
        if line == 1 and text.count("\t") == 2 and query not in queries and document not in number and gain is None:
            continue  # the header
        if gain is None:
            raise UserError(f"{path}:{line}: must be query-id, corpus-id and a score, tab-separated")
        for identity, known, name in ((query, queries, "queries.jsonl"), (document, number, CORPUS)):
            if identity not in known:
                raise UserError(f"{path}:{line}: {identity!r} is not in {name}")
        if (query, document) in judged:
            raise UserError(f"{path}:{line}: {query!r} and {document!r} were judged before; keep one line of a pair")
        judged.add((query, document))
        relevant.setdefault(query, {}).update({number[document]: gain} if gain > 0 else {})
    found = {query: gains for query, gains in relevant.items() if gains}
    if not found:
        raise UserError(f"{path}: no query has a relevant passage")
    passages = [row["text"] for row in rows]
    skipped = len(relevant) - len(found)
    return RetrievalDataset([queries[q] for q in found], passages, list(found.values()), [[] for _ in found], skipped)


def _is_rows(folder: Path) -> bool:
    """Whether a folder holds files of rows and is no BEIR folder."""
    return not (folder / CORPUS).exists() and not (folder / "qrels").exists() and any(folder.glob("*.*"))


def _judgement(line: str) -> tuple[str, str, float | None]:
    """Query, document and gain of a qrels line; no gain when it is not one."""
    query, document, gain = [*line.split("\t"), "", "", ""][:3]
    try:
        value = float(gain)
    except ValueError:
        value = math.nan
    return query, document, value if math.isfinite(value) and line.count("\t") == 2 else None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    empty = True
    try:
        for number, line in numbered_lines(path):
            if line.strip():
                empty = False
                yield number, line.rstrip("\r\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; --data needs corpus.jsonl, queries.jsonl, qrels/test.tsv") from None
    if empty:
        raise UserError(f"{path}: is empty")


def _jsonl(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, line in _lines(path):
        try:
            row = json.loads(line)
            identity = row["_id"]
            if not isinstance(row["text"], str) or not isinstance(identity, (str, int)):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f'{path}:{number}: must be an object with an "_id" and a "text"') from None
        identity = whole_text(str(identity), f"{path}:{number}")
        if identity in seen:
            raise UserError(f"{path}:{number}: the _id {identity!r} was there before")
        seen.add(identity)
        rows.append({"_id": identity, "text": whole_text(titled(row.get("title"), row["text"]), f"{path}:{number}")})
    return rows
