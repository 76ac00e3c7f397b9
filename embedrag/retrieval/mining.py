"""Hard negatives for training rows: passages that rank high for a query and do not answer it.

A passage that scores as high as a positive probably answers the query, but nobody labelled it. So it is left out
(positive-aware mining, NV-Retriever, arXiv 2407.15831).

Rows are mined block by block, and the vectors of the corpus are memory-mapped from the disk. So memory holds the texts
of the corpus (with BM25 also its index), 16 bytes for each labelled pair, and one block of rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from embedrag.data.retrieval_dataset import folder_and_split
from embedrag.data.rows import TrainingRow, prompts_not_used, read_rows, row_text
from embedrag.data.sources import as_sources
from embedrag.data.text import identity
from embedrag.data.text_files import read_corpus
from embedrag.errors import UserError, raise_all
from embedrag.models.base_model import check_local_path
from embedrag.models.encoder import Encoder
from embedrag.models.load import check_model_path, load_model
from embedrag.retrieval.corpus import Corpus, KnownPositives
from embedrag.retrieval.cross_encoder import CrossEncoder
from embedrag.retrieval.searches import Search, SearchResult, dense_search, lexical_search
from embedrag.runtime.console import console, say
from embedrag.runtime.files import atomic_file, check_targets
from embedrag.runtime.paths import cache_folder

ROWS = 4096  # rows that are mined at once


class Scorer(Protocol):
    """Anything that scores pairs as a `CrossEncoder` does."""

    def scores(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """[pairs] scores of (query, passage)."""


@dataclass(frozen=True)
class MiningSettings:
    """Which candidates become negatives.

    Attributes:
        neg_nums: negatives of a row, at most.
        ranks: (first, last): the passages after rank `first` and up to rank `last` are candidates. Positives are not
            counted.
        max_positive_ratio: a negative must score below this share of the score of the row's weakest positive.
    """

    neg_nums: int = 7
    ranks: tuple[int, int] = (10, 100)
    max_positive_ratio: float = 0.95


@dataclass
class MiningCounts:
    """What happened to the rows that were mined so far.

    Attributes:
        rows: number of rows.
        negatives: mined negatives, of all rows together.
        short: rows that got fewer negatives than were asked for.
        without: rows that got none, and keep their old negatives.
        like_positives: candidates that were left out because they scored like a positive.
    """

    rows: int = 0
    negatives: int = 0
    short: int = 0
    without: int = 0
    like_positives: int = 0


@dataclass(frozen=True)
class MiningResult:
    """What was mined.

    Attributes:
        output: the file with the rows.
        rows: number of rows.
        negatives: mined negatives, of all rows together.
        short: rows that got fewer negatives than were asked for.
        without: rows that got none, and keep the negatives that they had.
        like_positives: candidates that were left out because they scored like a positive.
        passages: number of different passages that were searched.
        neg_nums: negatives of a row, at most.
        seconds: time of searching, scoring and writing.
    """

    output: Path
    rows: int
    negatives: int
    short: int
    without: int
    like_positives: int
    passages: int
    neg_nums: int
    seconds: float

    def lines(self) -> Iterator[str]:
        """The result as text for a terminal."""
        if self.without:
            yield f"mined: no new negative for {self.without:,} rows; they keep their old ones, without scores"
        yield (
            f"mined: {self.negatives:,} negatives for {self.rows:,} rows into {self.output}; {self.short:,} rows have "
            f"fewer than {self.neg_nums}; {self.like_positives:,} candidates were left out because they scored like a "
            "positive"
        )
        comparisons = self.rows * self.passages
        yield f"mined: {self.seconds:.1f} s, {1e6 * self.seconds / comparisons:.3f} s for a million comparisons"


def mine(
    train_dataset: str | Path | Sequence[str | Path],
    *,
    output: str | Path,
    model: Encoder | str | Path | None = None,
    bm25: bool = False,
    corpus: str | Path | None = None,
    field: str = "text",
    neg_nums: int = 7,
    range: Sequence[int] = (10, 100),
    max_positive_ratio: float = 0.95,
    cross_encoder: str | Path | None = None,
    base_model_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> MiningResult:
    """Find hard negatives for training rows, and write the rows with them and with the scores of all passages.

    Args:
        train_dataset: rows in any shape that training reads: a file, a folder, a hub id, or several of these.
        output: JSONL file for the rows.
        model: ranks the corpus by its vectors: the model, or its folder or hub id. Either `model` or `bm25` is given.
        bm25: rank the corpus by words.
        corpus: where negatives are searched: a file of texts, or a folder with a retrieval set. None: the passages of
            the rows.
        field: key or column of the corpus that holds the text.
        neg_nums: negatives of a row, at most.
        range: two ranks: negatives are the passages after the first rank, up to the second. Positives are not counted.
        max_positive_ratio: a negative must score below this share of the score of the row's weakest positive.
        cross_encoder: folder or hub id of a model that scores positives and candidates; its scores then decide.
        base_model_path: base of an adapter, when it has moved.
        cache_dir: where the vectors of the corpus are kept; None: `$EMBEDRAG_CACHE` or `~/.cache/embedrag`.
        device: where to compute: `auto`, `cuda`, `mps` or `cpu`.
        dtype: of the computation: `auto`, `float32`, `float16` or `bfloat16`.
        overwrite: replace the output file.
        trust_remote_code: run Python code that comes with the models.

    Returns:
        Counts of rows and negatives.

    Raises:
        UserError: naming the argument that is wrong, or file and line of the data; nothing was written.
        RunError: when a model gives numbers that are not finite, or the file can't be written; no part of it is left.

    Example:
        ```python
        result = embedrag.mine("rows.jsonl", model="base", output="mined.jsonl", range=(0, 10))
        result.rows, result.negatives
        ```
    """
    ranks = list(range)
    settings = MiningSettings(neg_nums, (ranks[0], ranks[-1]) if ranks else (0, 0), max_positive_ratio)
    raise_all(_wrong(settings, model, bm25, ranks))
    sources, target = as_sources(train_dataset), Path(output).expanduser()
    read = [*sources, folder_and_split(corpus)[0] if corpus else None]
    check_targets({"output": str(output)}, read, overwrite)
    if isinstance(model, (str, Path)):
        check_model_path(model, "model")
    if cross_encoder:
        check_local_path(str(cross_encoder), "cross_encoder")
    known = KnownPositives(row for _, row in read_rows(sources))
    passages = _corpus(sources, str(corpus) if corpus else None, field)
    if len(passages.texts) <= settings.ranks[0]:
        count, first = len(passages.texts), settings.ranks[0]
        reason = f"there are {count} passages, so none of them comes after rank {first}; begin at a lower rank"
        raise UserError(reason, "range", settings.ranks)
    say(f"data: {known.rows:,} rows; negatives are searched in {len(passages.texts):,} different passages")
    if model is not None:
        for line in prompts_not_used(known.prompted, "the search"):
            say(line)
    scorer = CrossEncoder(str(cross_encoder), device, trust_remote_code) if cross_encoder else None
    if model is None:
        search = lexical_search(passages, (row for _, row in read_rows(sources)))
    else:
        if isinstance(model, (str, Path)):
            model = load_model(model, device, dtype, base_model_path, trust_remote_code)
        search = dense_search(passages, model, cache_folder(str(cache_dir) if cache_dir else None))
    start, counts = time.monotonic(), MiningCounts()
    with console.progress(known.rows, "row") as bar:
        mined = mined_rows(read_rows(sources), passages, search, known, settings, counts, scorer)
        write_mined(target, mined, bar.update)
    seconds = time.monotonic() - start
    return MiningResult(target, **vars(counts), passages=len(passages.texts), neg_nums=neg_nums, seconds=seconds)


def mined_rows(
    rows: Iterable[tuple[str, TrainingRow]],
    corpus: Corpus,
    search: Search,
    known: KnownPositives,
    settings: MiningSettings,
    counts: MiningCounts,
    scorer: Scorer | None = None,
) -> Iterator[tuple[str, TrainingRow]]:
    """Rows with new negatives and new scores, in the order of the rows.

    Args:
        rows: (place, row).
        corpus: the passages that are searched.
        search: ranks them for a block of rows, see `dense_search` and `lexical_search`.
        known: the positives of all rows.
        settings: which candidates become negatives.
        counts: brought up to date with each row.
        scorer: scores positives and candidates again, and its scores decide; None: the scores of the search decide.

    Yields:
        (place, row).
    """
    rest = iter(rows)
    while block := list(islice(rest, ROWS)):
        barred = [corpus.numbers(known.of(row.query)) for _, row in block]
        depth = settings.ranks[1] + max(map(len, barred))
        found = search([row for _, row in block], depth)
        for (place, row), result, positives in zip(block, found, barred, strict=True):
            candidates = _candidates(result, positives, settings)
            if scorer:
                candidates = _rescored(row, candidates, corpus, scorer)
            numbers, scores, like_positives = _picked(candidates, settings)
            counts.rows += 1
            counts.negatives += len(numbers)
            counts.short += len(numbers) < settings.neg_nums
            counts.without += not len(numbers)
            counts.like_positives += like_positives
            negatives = [corpus.texts[number] for number in numbers]
            yield place, _mined(row, negatives, [*candidates.positives, *scores], known)


def write_mined(
    output: Path, rows: Iterable[tuple[str, TrainingRow]], progress: Callable[[int], object] | None = None
) -> None:
    """Write rows as JSONL. The file appears when it is whole.

    Args:
        output: the file.
        rows: (place, row).
        progress: called with 1 after each row.

    Raises:
        RunError: when the file can't be written.
    """
    with atomic_file(output) as file:
        for place, row in rows:
            file.write(row_text(place, row) + "\n")
            if progress:
                progress(1)


def ceiling(positives: np.ndarray, ratio: float) -> float:
    """The score that a negative must stay below: `ratio` of the score of the weakest positive.

    A score below 0 is lowered by the same share of its size.

    >>> round(ceiling(np.array([0.8, 0.9]), 0.95), 3)
    0.76
    """
    weakest = float(np.min(positives))
    return weakest - (1 - ratio) * abs(weakest)


def _wrong(settings: MiningSettings, model: object, bm25: bool, ranks: list[int]) -> Iterator[UserError]:
    """What is wrong with the arguments; no file is read for this."""
    if (model is None) != bm25:
        yield UserError("name either `model` or `bm25`; it ranks the corpus")
    if settings.neg_nums < 1:
        yield UserError("must be 1 or more", "neg_nums", settings.neg_nums)
    if not settings.max_positive_ratio > 0:
        yield UserError("must be above 0", "max_positive_ratio", settings.max_positive_ratio)
    first, last = settings.ranks
    if len(ranks) != 2 or not 0 <= first < last:
        yield UserError("must be two ranks, the smaller one first, such as 10 100", "range", ranks)
    elif last - first < settings.neg_nums:
        yield UserError(f"has fewer ranks than `neg_nums={settings.neg_nums}`", "range", ranks)


def _corpus(sources: list[str], corpus: str | None, field: str) -> Corpus:
    if corpus is None:
        return Corpus(text for _, row in read_rows(sources) for text in (*row.pos, *row.neg))
    found = Corpus(*(read_corpus(corpus, field, titles) for titles in (True, False)))
    if not found.texts:
        raise UserError("no texts in it", "corpus", corpus)
    return found


def _candidates(result: SearchResult, positives: np.ndarray, settings: MiningSettings) -> SearchResult:
    """The passages of the wanted ranks; known positives are not counted."""
    kept = ~np.isin(result.numbers, positives)
    window = slice(*settings.ranks)
    return SearchResult(result.numbers[kept][window], result.scores[kept][window], result.positives)


def _rescored(row: TrainingRow, candidates: SearchResult, corpus: Corpus, scorer: Scorer) -> SearchResult:
    """The same candidates with the scores of a cross-encoder, positives too."""
    texts = [*row.pos, *(corpus.texts[number] for number in candidates.numbers)]
    positives, scores = np.split(scorer.scores([(row.query, text) for text in texts]), [len(row.pos)])
    return SearchResult(candidates.numbers, scores, positives)


def _picked(candidates: SearchResult, settings: MiningSettings) -> tuple[np.ndarray, np.ndarray, int]:
    """Numbers and scores of the negatives, best first, and how many candidates scored like a positive."""
    safe = candidates.scores < ceiling(candidates.positives, settings.max_positive_ratio)
    order = np.argsort(-candidates.scores[safe], kind="stable")[: settings.neg_nums]
    return candidates.numbers[safe][order], candidates.scores[safe][order], int((~safe).sum())


def _mined(row: TrainingRow, negatives: list[str], scores: list[float], known: KnownPositives) -> TrainingRow:
    """The row with its new negatives and the scores of all its passages.

    A row without new negatives keeps its own, except known positives of its query, and has no scores: its earlier
    scores may be on another scale than those of the other rows.
    """
    right = set(known.of(row.query).tolist())
    kept = () if negatives else tuple(text for text in row.neg if identity(text) not in right)
    rounded = () if kept else tuple(round(float(score), 6) for score in scores)
    return replace(row, neg=tuple(negatives) or kept, scores=rounded)
