"""Hard negatives for training rows: passages that rank high for a query and do not answer it.

What scores as high as a positive probably is one that nobody labelled, so it is left out (positive-aware mining,
NV-Retriever, arXiv 2407.15831). Rows go through in blocks and the corpus's vectors are mapped from the disk, so memory
holds the texts of the corpus (for BM25 its index), 16 bytes for each labelled pair, and a block of rows.
"""

from __future__ import annotations

import hashlib
import json
import time
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from embedrag.bm25 import Bm25
from embedrag.commands import MineOptions
from embedrag.encode import read_texts
from embedrag.encoder import Encoder
from embedrag.errors import UserError
from embedrag.files import atomic_file, check_targets
from embedrag.logs import say
from embedrag.records import GRADES_KEY, SCORES_KEY, Record, read_records
from embedrag.rerank import CrossEncoder
from embedrag.retrieval import CORPUS
from embedrag.saved import load_encoder
from embedrag.search import TopK, best_of
from embedrag.tokens import cache_folder
from embedrag.vectors import cached_vectors, unit

ROWS = 4096  # that are mined at once
SLICE = 16_384  # passages that are read from the disk at once
Judge = Callable[[str, Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Found:
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
    """Different passages, and a fingerprint of each that ignores case, spacing and Unicode form."""

    def __init__(self, texts: Iterator[str]) -> None:
        """Keep the first of texts that are the same."""
        seen: dict[int, str] = {}
        for text in texts:
            if text.strip():
                seen.setdefault(identity(text), text)
        self.texts = list(seen.values())
        self.identities = np.fromiter(seen, np.uint64, len(seen))
        self._order = np.argsort(self.identities)
        self._sorted = self.identities[self._order]

    def number(self, text: str) -> int | None:
        """Place of a passage, if it is there."""
        place = int(np.searchsorted(self._sorted, np.uint64(identity(text))))
        if place == len(self._sorted) or int(self._sorted[place]) != identity(text):
            return None
        return int(self._order[place])


class Known:
    """The labelled positives of each query, over all rows, as fingerprints."""

    def __init__(self, records: Iterator[Record]) -> None:
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


def identity(text: str) -> int:
    """64 bits of a text, the same for texts that differ in case, spacing or Unicode form."""
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return int.from_bytes(hashlib.blake2b(plain.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def run(options: MineOptions) -> int:
    """`embedrag mine`: the rows again, with new negatives and the scores of all passages."""
    sources, output = options.train_dataset, Path(options.output).expanduser()
    check_targets({"--output": options.output}, [*sources, options.corpus], options.overwrite)
    known = Known(record for _, record in read_records(sources))
    corpus = Corpus(read_corpus(options.corpus, options.field) if options.corpus else _passages(sources))
    if not corpus.texts:
        raise UserError(f"--corpus {options.corpus}: no texts in it")
    if len(corpus.texts) <= options.range[0]:
        raise UserError(
            f"--range {options.range[0]} {options.range[1]}: there are {len(corpus.texts)} passages, so none is behind "
            f"rank {options.range[0]}; begin at 0"
        )
    say(f"data: {known.rows:,} rows, {len(corpus.texts):,} different passages to look for negatives in")
    judge = CrossEncoder(options.score_with, options.device, options.trust_remote_code) if options.score_with else None
    search = _lexical(corpus, sources, options) if options.bm25 else _dense(corpus, options)
    start, written, short, doubtful, without = time.monotonic(), 0, 0, 0, 0
    records = (record for _, record in read_records(sources))
    with atomic_file(output) as file, tqdm(total=known.rows, unit="row", dynamic_ncols=True) as bar:
        while block := list(islice(records, ROWS)):
            depth = options.range[1] + max(len(known.of(record.query)) for record in block)
            for record, found in zip(block, search(block, depth), strict=True):
                kept = ~np.isin(corpus.identities[found.numbers], known.of(record.query))
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
                file.write(_line(record, [corpus.texts[number] for number in picked], [*positives, *marks]) + "\n")
                written += len(picked)
                without += not len(picked)
                bar.update()
    seconds = time.monotonic() - start
    if without:
        say(f"mined: {without:,} rows found no negative and keep those they had")
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


def read_corpus(source: str, field: str) -> Iterator[str]:
    """Passages of a file, or of corpus.jsonl in a folder; a title stands before its text.

    Raises:
        UserError: naming file and line.
    """
    path = Path(source).expanduser()
    path = path / CORPUS if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"--corpus {path}: no such file")
    yield from read_texts(path, field, titles=path.suffix == ".jsonl")


def _passages(sources: list[str]) -> Iterator[str]:
    for _, record in read_records(sources):
        yield from (*record.pos, *record.neg)


def _line(record: Record, negatives: list[str], scores: Sequence[float]) -> str:
    """The row with its new negatives and all scores; one that found none keeps its own, with the scores they had."""
    row: dict[str, Any] = {"query": record.query, "pos": list(record.pos), "neg": negatives or list(record.neg)}
    row |= record.extra | ({GRADES_KEY: list(record.grades)} if record.grades else {})
    kept = scores if negatives or not record.neg else record.scores
    row |= {SCORES_KEY: [round(float(score), 6) for score in kept]} if kept else {}
    return json.dumps(row, ensure_ascii=False)


def _dense(corpus: Corpus, options: MineOptions) -> Callable[[list[Record], int], Iterator[Found]]:
    """Search by the vectors of a model."""
    encoder = load_encoder(
        options.model or "",
        options.device,
        base_name=options.base_model_path,
        trust_remote_code=options.trust_remote_code,
    )
    vectors, found = cached_vectors(encoder, corpus.texts, "passage", cache_folder(options.cache_dir))
    say(f"corpus: vectors of {vectors.shape[1]} components, {'found' if found else 'kept'} in the cache")

    def search(block: list[Record], depth: int) -> Iterator[Found]:
        queries = unit(encoder.encode([record.query for record in block], "query"))
        top = TopK(queries, depth, "cuda" if encoder.device.type == "cuda" else "cpu")
        for start in range(0, len(vectors), SLICE):
            top.add(unit(vectors[start : start + SLICE]))
        positives = _positive_vectors(block, corpus, vectors, encoder)
        for row, (numbers, scores) in enumerate(zip(*top.result(), strict=True)):
            own = np.stack([positives[text] for text in block[row].pos])
            yield Found(numbers, scores, own @ queries[row])

    return search


def _positive_vectors(
    block: list[Record], corpus: Corpus, vectors: np.ndarray, encoder: Encoder
) -> dict[str, np.ndarray]:
    """Vector of each positive: that of the corpus where it is there, else a new one."""
    places = {text: corpus.number(text) for record in block for text in record.pos}
    new = [text for text, place in places.items() if place is None]
    found = dict(zip(new, unit(encoder.encode(new, "passage")), strict=True))
    known = [(text, place) for text, place in places.items() if place is not None]
    return found | dict(zip((t for t, _ in known), unit(vectors[[place for _, place in known]]), strict=True))


def _lexical(
    corpus: Corpus, sources: list[str], options: MineOptions
) -> Callable[[list[Record], int], Iterator[Found]]:
    """Search by words; positives that the corpus lacks are indexed too, and never come out."""
    others = {text: None for _, record in read_records(sources) for text in record.pos if corpus.number(text) is None}
    places = {text: len(corpus.texts) + number for number, text in enumerate(others)}
    index = Bm25([*corpus.texts, *others])

    def search(block: list[Record], depth: int) -> Iterator[Found]:
        for record in block:
            scores = index.scores(record.query)
            own = [places[text] if text in places else corpus.number(text) or 0 for text in record.pos]
            numbers = best_of(scores[: len(corpus.texts)], depth)
            numbers = numbers[scores[numbers] > 0]  # the rest shares no word with the query
            yield Found(numbers, scores[numbers], scores[own])

    return search
