"""Retrieval data sets: queries, passages, and which passages answer which query.

They are read from a folder in the BEIR layout (corpus.jsonl, queries.jsonl, qrels/test.tsv) or from training rows.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedrag.data.formats.lines import numbered_lines
from embedrag.data.rows import TrainingRow, read_rows
from embedrag.data.text import titled, whole_text
from embedrag.errors import UserError

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels/test.tsv"
SEED = 42  # of the draws of queries and passages


@dataclass(frozen=True)
class RetrievalDataset:
    """What a model is evaluated on: q queries and p passages.

    Attributes:
        queries: [q] texts.
        passages: [p] texts. Passages with equal scores are ranked in this order.
        relevant: [q] for each query: number of a passage that answers it -> gain (above 0).
        negatives: [q] for each query: numbers of the passages that are labelled as wrong.
        skipped: how many queries were left out because they have no relevant passage.
        own: number of a query -> number of the passage that is this query itself. It is left out of its ranking.
        missing: number of a query -> gains of its relevant passages that are not among `passages`. They count as
            passages that no model can find.
    """

    queries: list[str]
    passages: list[str]
    relevant: list[dict[int, float]]
    negatives: list[list[int]]
    skipped: int = 0
    own: dict[int, int] = field(default_factory=dict)
    missing: dict[int, list[float]] = field(default_factory=dict)


def load_retrieval_dataset(
    data: str | Path, sample_size: int | None = None, argument: str = "data"
) -> RetrievalDataset:
    """Read a folder in the BEIR layout, or rows in any shape that training reads.

    Args:
        data: a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv; or a file of rows, a folder of such files,
            or a hub id. The passages of all rows are then the corpus.
        sample_size: draw this many queries at random, always the same; None: all. The corpus stays whole.
        argument: what the caller calls `data`, for messages.

    Raises:
        UserError: naming file and line; or `data` is not there.

    Example:
        ```python
        data = embedrag.load_retrieval_dataset("datasets/sample_data.jsonl")
        len(data.queries), len(data.passages)
        ```
    """
    folder = Path(data).expanduser()
    if _is_beir(folder):
        found = _read_beir(folder, argument)
    else:
        found = gather_rows(row for _, row in read_rows([str(data)], argument))
    return found if sample_size is None else sample_queries(found, sample_size)


def sample_queries(data: RetrievalDataset, sample_size: int) -> RetrievalDataset:
    """`sample_size` of the queries, drawn at random and always the same, among all passages.

    Raises:
        UserError: when `sample_size` is below 1.
    """
    if sample_size < 1:
        raise UserError("must be 1 or more", "sample_size", sample_size)
    if sample_size >= len(data.queries):
        return data
    picked = sorted(random.Random(SEED).sample(range(len(data.queries)), sample_size))
    return replace(
        data,
        queries=[data.queries[number] for number in picked],
        relevant=[data.relevant[number] for number in picked],
        negatives=[data.negatives[number] for number in picked],
        own={place: data.own[number] for place, number in enumerate(picked) if number in data.own},
        missing={place: data.missing[number] for place, number in enumerate(picked) if number in data.missing},
    )


def fewer_passages(data: RetrievalDataset, count: int) -> RetrievalDataset:
    """The same queries among `count` passages: all labelled ones, and others that are drawn at random.

    Scores are higher than those of the whole set, because there are fewer passages to confuse.
    """
    kept = {number for labelled in (*data.relevant, *data.negatives) for number in labelled}
    others = [number for number in range(len(data.passages)) if number not in kept]
    kept |= set(random.Random(SEED).sample(others, min(len(others), max(0, count - len(kept)))))
    place = {number: index for index, number in enumerate(sorted(kept))}
    return replace(
        data,
        passages=[data.passages[number] for number in place],
        relevant=[{place[number]: gain for number, gain in gains.items()} for gains in data.relevant],
        negatives=[[place[number] for number in wrong] for wrong in data.negatives],
        own={query: place[number] for query, number in data.own.items() if number in place},
    )


def gather_rows(rows: Iterable[TrainingRow], further: Iterable[str] = ()) -> RetrievalDataset:
    """Training rows as a retrieval data set. Rows with the same query are one query; equal passages are one passage.

    Args:
        rows: training rows.
        further: more passages of the corpus.
    """
    numbers: dict[str, int] = {}
    positives: dict[str, dict[int, float]] = {}
    negatives: dict[str, list[int]] = {}
    for row in rows:
        right, wrong = ([numbers.setdefault(text, len(numbers)) for text in texts] for texts in (row.pos, row.neg))
        known = positives.setdefault(row.query, {})
        for number, gain in zip(right, row.grades or [1.0] * len(right), strict=True):
            known[number] = max(gain, known.get(number, 0.0))
        negatives.setdefault(row.query, []).extend(wrong)
    for text in further:
        numbers.setdefault(text, len(numbers))
    labelled = [[n for n in dict.fromkeys(negatives[query]) if n not in positives[query]] for query in positives]
    return RetrievalDataset(list(positives), list(numbers), list(positives.values()), labelled)


def _is_beir(folder: Path) -> bool:
    """Whether a path is a folder that has a part of the BEIR layout."""
    try:
        return (folder / CORPUS).is_file() or (folder / "qrels").is_dir()
    except OSError:  # a name that is too long; reading the rows will report it
        return False


def _read_beir(folder: Path, argument: str) -> RetrievalDataset:
    """A folder in the BEIR layout. Its passages are put into falling order of their ids, as trec_eval ranks ties."""
    missing = [name for name in (CORPUS, QUERIES, QRELS) if not (folder / name).exists()]
    if missing:
        layout = f"a folder in the BEIR layout has {CORPUS}, {QUERIES} and {QRELS}"
        raise UserError(f"no {' and no '.join(missing)} in this folder; {layout}", argument, folder)
    passages = sorted(_json_lines(folder / CORPUS), key=lambda row: row["_id"].encode(), reverse=True)
    queries = {row["_id"]: row["text"] for row in _json_lines(folder / QUERIES)}
    numbers = {row["_id"]: index for index, row in enumerate(passages)}
    relevant = _read_qrels(folder / QRELS, queries, numbers)
    found = {query: gains for query, gains in relevant.items() if gains}
    if not found:
        raise UserError(f"{folder / QRELS}: no query has a relevant passage")
    return RetrievalDataset(
        queries=[queries[query] for query in found],
        passages=[row["text"] for row in passages],
        relevant=list(found.values()),
        negatives=[[] for _ in found],
        skipped=len(relevant) - len(found),
    )


def _read_qrels(path: Path, queries: dict[str, str], numbers: dict[str, int]) -> dict[str, dict[int, float]]:
    """Id of each judged query -> passage number -> gain, of the gains above 0.

    Args:
        path: the file of judgements.
        queries: id -> text.
        numbers: id of a passage -> its number.
    """
    relevant: dict[str, dict[int, float]] = {}
    judged: set[tuple[str, str]] = set()
    for line, text in _lines(path):
        query, document, gain = _judgement(text)
        if line == 1 and text.count("\t") == 2 and query not in queries and document not in numbers and gain is None:
            continue  # the header
        if gain is None:
            raise UserError(f"{path}:{line}: must be query-id, corpus-id and a score, tab-separated")
        for identity, known, name in ((query, queries, QUERIES), (document, numbers, CORPUS)):
            if identity not in known:
                raise UserError(f"{path}:{line}: {identity!r} is not in {name}")
        if (query, document) in judged:
            raise UserError(f"{path}:{line}: {query!r} and {document!r} were judged before; keep one line of a pair")
        judged.add((query, document))
        relevant.setdefault(query, {}).update({numbers[document]: gain} if gain > 0 else {})
    return relevant


def _judgement(line: str) -> tuple[str, str, float | None]:
    """Query, document and gain of a line of judgements; the gain is None when the line is not a judgement."""
    query, document, gain = [*line.split("\t"), "", "", ""][:3]
    try:
        value = float(gain)
    except ValueError:
        value = math.nan
    return query, document, value if math.isfinite(value) and line.count("\t") == 2 else None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    empty = True
    for number, line in numbered_lines(path):
        if line.strip():
            empty = False
            yield number, line.rstrip("\r\n")
    if empty:
        raise UserError(f"{path}: is empty")


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Objects with an `_id` and a `text`; the text begins with its title."""
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, line in _lines(path):
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
            identity = row["_id"]
            if not isinstance(row["text"], str) or not isinstance(identity, (str, int)):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f'{place}: must be an object with an "_id" and a "text"') from None
        identity = whole_text(str(identity), place)
        if identity in seen:
            raise UserError(f"{place}: the _id {identity!r} was there before")
        seen.add(identity)
        rows.append({"_id": identity, "text": whole_text(titled(row.get("title"), row["text"]), place)})
    return rows
