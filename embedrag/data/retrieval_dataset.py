"""Retrieval data sets: queries, passages, and which passages answer which query.

They are read from a folder in the BEIR layout (corpus.jsonl, queries.jsonl, qrels/test.tsv), also in the forms in which
others publish it (`embedrag.data.retrieval_sets`), or from training rows.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from embedrag.data.retrieval_sets.joining import read_set
from embedrag.data.retrieval_sets.layout import is_set
from embedrag.data.rows import TrainingRow, prompts_not_used, read_rows
from embedrag.errors import UserError
from embedrag.runtime.console import say

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
        data: a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv, or with the same in another published form;
            `folder@dev` is its split `dev`. Or a file of rows, a folder of such files, or a hub id. The passages of all
            rows are then the corpus.
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
    name, split = folder_and_split(data)
    folder = Path(name).expanduser()
    if split is not None or is_set(folder):
        found = _read_set(folder, split, argument)
    else:
        prompted = 0

        def rows() -> Iterator[TrainingRow]:
            nonlocal prompted
            for _, row in read_rows([str(data)], argument):
                prompted += row.prompt is not None
                yield row

        found = gather_rows(rows())
        for line in prompts_not_used(prompted, "the evaluation"):
            say(line)
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


def folder_and_split(data: str | Path) -> tuple[str, str | None]:
    """A folder of a retrieval set and the split that its name asks for, as in `folder@dev`.

    >>> folder_and_split("rows.jsonl"), folder_and_split("owner/name@dev")
    (('rows.jsonl', None), ('owner/name@dev', None))
    """
    folder, sign, split = str(data).rpartition("@")
    try:
        named = bool(sign and split) and not Path(data).expanduser().exists() and Path(folder).expanduser().is_dir()
    except OSError:  # a name that is too long; reading it will report that
        named = False
    return (folder, split) if named else (str(data), None)


def _read_set(folder: Path, split: str | None, argument: str) -> RetrievalDataset:
    found = read_set(folder, split, argument)
    for line in found.lines:
        say(f"data: {line}")
    return RetrievalDataset(
        found.queries,
        found.passages,
        found.relevant,
        [[] for _ in found.queries],
        found.skipped,
        found.own,
        found.missing,
    )
