"""Hard negatives for training rows: passages that rank high for a query and do not answer it.

What scores as high as a positive probably is one that nobody labelled, so it is left out (positive-aware mining,
NV-Retriever, arXiv 2407.15831). Rows go through in blocks and the corpus's vectors are mapped from the disk, so memory
holds the texts of the corpus (for BM25 its index), 16 bytes for each labelled pair, and a block of rows.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from embedrag.commands.mine import MineOptions
from embedrag.data.rows import TrainingRow, read_rows, row_text
from embedrag.data.text import identity
from embedrag.data.text_files import read_corpus
from embedrag.errors import UserError
from embedrag.models.encoder import Encoder
from embedrag.models.load import load_model
from embedrag.retrieval.bm25 import Bm25
from embedrag.retrieval.cross_encoder import CrossEncoder
from embedrag.retrieval.topk import TopK, best_of
from embedrag.retrieval.vector_cache import cached_vectors, unit
from embedrag.runtime.console import say
from embedrag.runtime.files import atomic_file, check_targets
from embedrag.runtime.paths import cache_folder

ROWS = 4096  # that are mined at once


@dataclass(frozen=True)
class SearchResult:
    """What a search says of a row.

    Attributes:
        numbers: passages, best first.
        scores: theirs.
        positives: score of each positive.
    """

    numbers: np.ndarray
    scores: np.ndarray
    positives: np.ndarray


class Corpus:
    """Different passages, each known by fingerprints that ignore case, spacing and Unicode form."""

    def __init__(self, texts: Iterable[str], bare: Iterable[str] | None = None) -> None:
        """Keep the first of texts that are the same.

        Args:
            texts: passages, behind their titles.
            bare: the same without titles, as rows may have them; left out: they have none.
        """
        seen: dict[int, str] = {}
        others = array("Q")
        for text, untitled in zip(texts, bare, strict=True) if bare else ((text, text) for text in texts):
            own = identity(text)
            if text.strip() and own not in seen:
                seen[own] = text
                others.append(own if untitled == text else identity(untitled))
        self.texts = list(seen.values())
        self._titled = _Places(np.fromiter(seen, np.uint64, len(seen)))
        self._bare = _Places(np.frombuffer(others, np.uint64)) if bare else self._titled

    def number(self, text: str) -> int | None:
        """Place of a passage, if it is there just so."""
        found = self._titled.of(np.array([identity(text)], np.uint64))
        return int(found[0]) if len(found) else None

    def places(self, fingerprints: np.ndarray) -> np.ndarray:
        """Places of all passages that are one of some texts, behind a title or without it."""
        return np.union1d(self._titled.of(fingerprints), self._bare.of(fingerprints))


class _Places:
    """Where each of [p] fingerprints is; several may be the same."""

    def __init__(self, fingerprints: np.ndarray) -> None:
        self._order = np.argsort(fingerprints)
        self._sorted = fingerprints[self._order]

    def of(self, wanted: np.ndarray) -> np.ndarray:
        first, behind = (np.searchsorted(self._sorted, wanted, side) for side in ("left", "right"))
        return np.concatenate([self._order[start:stop] for start, stop in zip(first, behind, strict=True)])


class KnownPositives:
    """The labelled positives of each query, over all rows, as fingerprints."""

    def __init__(self, records: Iterator[TrainingRow]) -> None:
        """Read all rows."""
        flat = array("Q")
        self.rows = 0
        for record in records:
            query = identity(record.query)
            for text in record.pos:
                flat.extend((query, identity(text)))
            self.rows += 1
        self._pairs = np.unique(np.frombuffer(flat, np.uint64).reshape(-1, 2), axis=0)

    def of(self, query: str) -> np.ndarray:
        """Fingerprints of everything that can't be a negative of a query: its positives, and itself."""
        own = np.uint64(identity(query))
        start, stop = (np.searchsorted(self._pairs[:, 0], own, side) for side in ("left", "right"))
        return np.append(self._pairs[start:stop, 1], own)


def run(options: MineOptions) -> int:
    """`embedrag mine`: the rows again, with new negatives and the scores of all passages."""
    sources, output = options.train_dataset, Path(options.output).expanduser()
    check_targets({"--output": options.output}, [*sources, options.corpus], options.overwrite)
    known = KnownPositives(record for _, record in read_rows(sources))
    corpus = _corpus(options)
    if not corpus.texts:
        raise UserError(f"--corpus {options.corpus}: no texts in it")
    if len(corpus.texts) <= options.range[0]:
        raise UserError(
            f"--range {options.range[0]} {options.range[1]}: there are {len(corpus.texts)} passages, so none is behind "
            f"rank {options.range[0]}; begin at 0"
        )
    say(f"data: {known.rows:,} rows, {len(corpus.texts):,} different passages to look for negatives in")
    judge = CrossEncoder(options.score_with, options.device, options.trust_remote_code) if options.score_with else None
    search = _lexical(corpus, sources) if options.bm25 else _dense(corpus, options)
    start, written, short, doubtful, without = time.monotonic(), 0, 0, 0, 0
    rows = read_rows(sources)
    with atomic_file(output) as file, tqdm(total=known.rows, unit="row", dynamic_ncols=True) as bar:
        while block := list(islice(rows, ROWS)):
            barred = [corpus.places(known.of(record.query)) for _, record in block]
            depth = options.range[1] + max(map(len, barred))
            searched = search([record for _, record in block], depth)
            for (place, record), found, right in zip(block, searched, barred, strict=True):
                kept = ~np.isin(found.numbers, right)
                window = slice(*options.range)
                numbers, scores, positives = found.numbers[kept][window], found.scores[kept][window], found.positives
                if judge:
                    texts = [*record.pos, *(corpus.texts[number] for number in numbers)]
                    judged = judge.scores([(record.query, text) for text in texts])
                    positives, scores = np.split(judged, [len(record.pos)])
                safe = scores < ceiling(positives, options.max_positive_ratio)
                order = np.argsort(-scores[safe], kind="stable")[: options.neg_nums]
                picked, marks = numbers[safe][order], scores[safe][order]
                doubtful += int((~safe).sum())
                short += len(picked) < options.neg_nums
                mined = _mined(record, [corpus.texts[number] for number in picked], [*positives, *marks], known)
                file.write(row_text(place, mined) + "\n")
                written += len(picked)
                without += not len(picked)
                bar.update()
    seconds = time.monotonic() - start
    if without:
        say(f"mined: {without:,} rows found no negative and keep those they had, without scores")
    say(
        f"mined: {written:,} negatives for {known.rows:,} rows into {output}; {short:,} rows have fewer than "
        f"{options.neg_nums}; {doubtful:,} candidates scored like a positive and were left out"
    )
    say(f"mined: {seconds:.1f} s, {1e6 * seconds / (known.rows * len(corpus.texts)):.3f} s a million comparisons")
    return 0


def ceiling(positives: np.ndarray, ratio: float) -> float:
    """Score that a negative must stay below: `ratio` of that of the weakest positive.

    >>> round(ceiling(np.array([0.8, 0.9]), 0.95), 3)
    0.76
    """
    weakest = float(np.min(positives))
    return weakest - (1 - ratio) * abs(weakest)


def _corpus(options: MineOptions) -> Corpus:
    if not options.corpus:
        return Corpus(_passages(options.train_dataset))
    return Corpus(*(read_corpus(options.corpus, options.field, titles) for titles in (True, False)))


def _passages(sources: list[str]) -> Iterator[str]:
    for _, record in read_rows(sources):
        yield from (*record.pos, *record.neg)


def _mined(record: TrainingRow, negatives: list[str], scores: list[float], known: KnownPositives) -> TrainingRow:
    """The row with its new negatives and all scores.

    One that found none keeps its own but for known positives of its query, and no scores: the earlier ones may be on
    another scale than those of the other rows.
    """
    right = set(known.of(record.query).tolist())
    kept = () if negatives else tuple(text for text in record.neg if identity(text) not in right)
    rounded = () if kept else tuple(round(float(score), 6) for score in scores)
    return replace(record, neg=tuple(negatives) or kept, scores=rounded)


def _dense(corpus: Corpus, options: MineOptions) -> Callable[[list[TrainingRow], int], Iterator[SearchResult]]:
    """Search by the vectors of a model."""
    encoder = load_model(
        options.model or "",
        options.device,
        options.dtype,
        base_name=options.base_model_path,
        trust_remote_code=options.trust_remote_code,
    )
    vectors, found = cached_vectors(encoder, corpus.texts, "passage", cache_folder(options.cache_dir))
    say(f"corpus: vectors of {vectors.shape[1]} components, {'found' if found else 'kept'} in the cache")

    def search(block: list[TrainingRow], depth: int) -> Iterator[SearchResult]:
        queries = unit(encoder.encode([record.query for record in block], "query"))
        top = TopK(queries, depth, "cuda" if encoder.device.type == "cuda" else "cpu")
        top.add(vectors)
        positives = _positive_vectors(block, corpus, vectors, encoder)
        for row, (numbers, scores) in enumerate(zip(*top.result(), strict=True)):
            own = np.stack([positives[text] for text in block[row].pos])
            yield SearchResult(numbers, scores, own @ queries[row])

    return search


def _positive_vectors(
    block: list[TrainingRow], corpus: Corpus, vectors: np.ndarray, encoder: Encoder
) -> dict[str, np.ndarray]:
    """Vector of each positive: that of the corpus where it is there, else a new one."""
    places = {text: corpus.number(text) for record in block for text in record.pos}
    new = [text for text, place in places.items() if place is None]
    found = dict(zip(new, unit(encoder.encode(new, "passage")), strict=True))
    known = [(text, place) for text, place in places.items() if place is not None]
    return found | dict(zip((t for t, _ in known), vectors[[place for _, place in known]], strict=True))


def _lexical(corpus: Corpus, sources: list[str]) -> Callable[[list[TrainingRow], int], Iterator[SearchResult]]:
    """Search by words; positives that the corpus lacks are indexed too, and never come out."""
    others = {text: None for _, record in read_rows(sources) for text in record.pos if corpus.number(text) is None}
    places = {text: len(corpus.texts) + number for number, text in enumerate(others)}
    index = Bm25([*corpus.texts, *others])

    def search(block: list[TrainingRow], depth: int) -> Iterator[SearchResult]:
        for record in block:
            scores = index.scores(record.query)
            own = [places[text] if text in places else corpus.number(text) or 0 for text in record.pos]
            numbers = best_of(scores[: len(corpus.texts)], depth)
            numbers = numbers[scores[numbers] > 0]  # the rest shares no word with the query
            yield SearchResult(numbers, scores[numbers], scores[own])

    return search
