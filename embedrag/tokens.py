"""Token store and token batch: every unique text is tokenised once, into a memory map.

The idea: the hot loop should neither tokenise nor pad. A data set becomes a folder of flat arrays (token ids with
offsets, rows as integers) under a fingerprint of data, tokenizer, prompts and lengths, so that a second start is
immediate and data larger than memory trains. It trades disk (4 bytes a token of unique text) for time.

Two passes over the source: the first checks every row and hashes its texts (8 bytes each in memory), the second
tokenises each text where it first occurs.

Dimensions: T tokens, n texts, U unique texts, N rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from embedrag.errors import UserError
from embedrag.records import Record, hub_fingerprint, local_files, read_records

FORMAT = 4
TEXTS_PER_CALL = 2048
QUERY, PASSAGE = "query", "passage"
Tokenize = Callable[[str, Sequence[str]], list[list[int]]]
Prompts = tuple[str, str]  # before queries, before passages
Read = Callable[[], Iterable[tuple[str, Record]]]


@dataclass(frozen=True)
class TokenBatch:
    """Texts as flat token ids; the only form in memory, padding happens where a device needs it.

    Attributes:
        input_ids: [T] int64, the texts one after the other.
        cu_seqlens: [n + 1] int64, text i is `input_ids[cu_seqlens[i]:cu_seqlens[i + 1]]`.
    """

    input_ids: Tensor
    cu_seqlens: Tensor

    @classmethod
    def from_lists(cls, texts: Sequence[Sequence[int]]) -> TokenBatch:
        """Build from lists of token ids.

        >>> TokenBatch.from_lists([[5, 6], [7]]).cu_seqlens
        tensor([0, 2, 3])
        """
        lengths = torch.tensor([0, *(len(text) for text in texts)])
        return cls(torch.tensor([token for text in texts for token in text], dtype=torch.long), lengths.cumsum(0))

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> Tensor:
        """[n] tokens of each text."""
        return self.cu_seqlens.diff()

    def padded(self, pad_id: int, multiple: int = 1) -> tuple[Tensor, Tensor]:
        """The texts as a rectangle, filled up at the right.

        Args:
            pad_id: token that fills up.
            multiple: the width is rounded up to it.

        Returns:
            input_ids [n, L] and attention_mask [n, L] (1 on tokens), L the longest text.

        >>> TokenBatch.from_lists([[7], [5, 6]]).padded(pad_id=0)[0]
        tensor([[7, 0],
                [5, 6]])
        """
        width = -(-int(self.lengths.max()) // multiple) * multiple
        column = torch.arange(width)[None, :]
        mask = column < self.lengths[:, None]
        ids = self.input_ids[(self.cu_seqlens[:-1, None] + column).clamp(max=len(self.input_ids) - 1)]
        return ids.masked_fill(~mask, pad_id), mask.long()

    def select(self, indices: Tensor) -> TokenBatch:
        """Some of the texts, [m] indices, in that order.

        >>> TokenBatch.from_lists([[5, 6], [7]]).select(torch.tensor([1, 0])).input_ids
        tensor([7, 5, 6])
        """
        lengths = self.lengths[indices]
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0))
        shift = torch.repeat_interleave(self.cu_seqlens[indices] - cu_seqlens[:-1], lengths)
        return TokenBatch(self.input_ids[torch.arange(len(shift)) + shift], cu_seqlens)


@dataclass(frozen=True)
class TokenStore:
    """A tokenised data set, memory-mapped.

    Attributes:
        token_ids: [T] int32.
        text_offsets: [U + 1] int64 into `token_ids`.
        row_texts: text ids of all rows; a row is its query, its positives, its negatives.
        row_offsets: [N + 1] int64 into `row_texts`.
        row_positives: [N] int32, positives of each row.
        row_lines: [N] int64, line of each row in its source.
        row_sources: [N] int32, index into `sources`.
        row_sets: [N] int32, number of the data set, of those that were named.
        row_scores: a teacher's score of each entry of `row_texts`, NaN: none; empty where no row has any.
        known_offsets: [U + 1] int64 into `known_positives`.
        known_positives: for each query text, every passage that any row calls its positive.
        sources: names of the files.
        tokens_crc: CRC-32 of tokens and text offsets, made when they were written: reading them all would map them all.
        report: what was found while reading.
    """

    token_ids: np.ndarray
    text_offsets: np.ndarray
    row_texts: np.ndarray
    row_offsets: np.ndarray
    row_positives: np.ndarray
    row_lines: np.ndarray
    row_sources: np.ndarray
    row_sets: np.ndarray
    row_scores: np.ndarray
    known_offsets: np.ndarray
    known_positives: np.ndarray
    sources: list[str]
    tokens_crc: int
    report: dict[str, Any]

    def __len__(self) -> int:
        return len(self.row_positives)

    def row(self, index: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Text ids of one row: query, positives [p], negatives [m]."""
        texts = self.row_texts[self.row_offsets[index] : self.row_offsets[index + 1]]
        split = 1 + int(self.row_positives[index])
        return int(texts[0]), texts[1:split], texts[split:]

    def passages(self, index: int) -> np.ndarray:
        """Text ids of a row's passages: positives, then negatives."""
        return self.row_texts[self.row_offsets[index] + 1 : self.row_offsets[index + 1]]

    @property
    def has_scores(self) -> bool:
        """Whether rows carry the scores of a teacher."""
        return len(self.row_scores) > 0

    def scores(self, index: int) -> np.ndarray:
        """A teacher's score of each of a row's passages; NaN where there is none."""
        first, behind = self.row_offsets[index] + 1, self.row_offsets[index + 1]
        return self.row_scores[first:behind] if self.has_scores else np.full(behind - first, np.nan, np.float32)

    def known(self, query: int) -> np.ndarray:
        """All labelled positives of a query text, over all rows."""
        return self.known_positives[self.known_offsets[query] : self.known_offsets[query + 1]]

    @cached_property
    def checksum(self) -> str:
        """Of tokens and rows, to know the data again (CRC-32: against mistakes, not against malice)."""
        value = self.tokens_crc
        for part in (self.row_texts, self.row_offsets, self.row_positives, self.row_scores):
            value = zlib.crc32(np.ascontiguousarray(part).data, value)
        return f"{len(self)}-{len(self.token_ids)}-{value:08x}"

    def place(self, index: int) -> str:
        """Where a row came from, as `file:line`."""
        return f"{self.sources[self.row_sources[index]]}:{self.row_lines[index]}"

    def batch(self, texts: np.ndarray) -> TokenBatch:
        """The tokens of some texts, [len(texts)] ids, in that order."""
        starts, stops = self.text_offsets[texts], self.text_offsets[texts + 1]
        pieces = [self.token_ids[start:stop] for start, stop in zip(starts, stops, strict=True)]
        offsets = np.concatenate([[0], np.cumsum(stops - starts)])
        return TokenBatch(torch.from_numpy(np.concatenate(pieces).astype(np.int64)), torch.from_numpy(offsets))


def cache_folder(named: str | None) -> Path:
    """Where things are kept that can be computed again: `--cache_dir`, $EMBEDRAG_CACHE, or a folder of the user's."""
    return Path(named or os.environ.get("EMBEDRAG_CACHE") or "~/.cache/embedrag").expanduser()


def open_store(
    sources: Sequence[str],
    tokenize: Tokenize,
    tokenize_key: str,
    cache_dir: Path,
    prompts: Sequence[Prompts] | None = None,
) -> tuple[TokenStore, bool]:
    """Tokenise a data set, or find it tokenised.

    Args:
        sources: files, folders or hub ids, see `read_records`.
        tokenize: (role, texts) -> token ids; role is `query` or `passage`.
        tokenize_key: changes whenever `tokenize` would give other ids.
        cache_dir: folder of all stores; the new one is built beside and renamed, so it is whole or absent.
        prompts: of each source, put before its texts; left out: none.

    Returns:
        The store, and whether it was there already.

    Raises:
        UserError: for bad rows, before anything is written.
    """
    prompts = prompts or [("", "")] * len(sources)
    final = cache_dir / f"tokens-{_fingerprint(sources, f'{tokenize_key}|{list(prompts)}')}"
    if (final / "meta.json").exists():
        return _load(final), True
    index = _index(partial(read_records, sources), prompts)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tokens-", dir=cache_dir))
    except OSError as error:
        raise UserError(f"--cache_dir {cache_dir}: {error.strerror}; name a folder that can be written") from None
    try:
        _write(temporary, partial(read_records, sources), prompts, index, tokenize)
        try:
            temporary.rename(final)
        except OSError:
            if not (final / "meta.json").exists():  # else another process was first, and wrote the same
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _load(final), False


def build_store(read: Read, tokenize: Tokenize, prompts: Sequence[Prompts], folder: Path) -> TokenStore:
    """Tokenise rows that `read` gives, twice the same, into a folder that is there."""
    _write(folder, read, prompts, _index(read, prompts), tokenize)
    return _load(folder)


@dataclass
class _Index:
    """First pass: what the rows are, with each text as the rank of its first occurrence.

    `twins` gives texts that differ by their prompt alone the same number.
    """

    text_ids: np.ndarray
    twins: np.ndarray
    is_first: np.ndarray
    row_offsets: np.ndarray
    row_positives: np.ndarray
    row_lines: np.ndarray
    row_sources: np.ndarray
    row_sets: np.ndarray
    row_scores: np.ndarray
    sources: list[str]
    report: dict[str, Any]


def record_texts(record: Record) -> Iterator[tuple[str, str]]:
    """(role, text) of a row: query, positives, negatives."""
    yield QUERY, record.query
    for text in (*record.pos, *record.neg):
        yield PASSAGE, text


def _prompted(record: Record, prompts: Sequence[Prompts]) -> Iterator[tuple[str, str]]:
    """(role, text) of a row, the texts behind their prompts."""
    query_prompt, passage_prompt = prompts[record.source]
    for role, text in record_texts(record):
        yield role, (query_prompt if role == QUERY else passage_prompt) + text


def _digest(role: str, text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=role.encode()).digest(), "little")


def _index(read: Read, prompts: Sequence[Prompts]) -> _Index:
    hashes, bare, offsets = array("Q"), array("Q"), array("q", [0])
    positives, lines, files, sets = array("i"), array("q"), array("i"), array("i")
    scores = array("f")
    differ = len(set(prompts)) > 1
    names: dict[str, int] = {}
    shapes: Counter[str] = Counter()
    dropped: list[str] = []
    dropped_count = scored = 0
    for place, record in read():
        hashes.extend(_digest(*pair) for pair in _prompted(record, prompts))
        if differ:
            bare.extend(_digest(*pair) for pair in record_texts(record))
        offsets.append(len(hashes))
        positives.append(len(record.pos))
        sets.append(record.source)
        if record.scores and not scores:
            scores.extend([math.nan] * offsets[-2])
        if record.scores or scores:
            given = record.scores or [math.nan] * (len(record.pos) + len(record.neg))
            scores.extend([math.nan, *given])
        name, line = place.rsplit(":", 1)
        files.append(names.setdefault(name, len(names)))
        lines.append(int(line))
        shapes[record.shape] += 1
        dropped_count += record.dropped
        scored += bool(record.scores)
        if record.dropped and len(dropped) < 5:
            dropped.append(place)
    _, first, inverse = np.unique(np.frombuffer(hashes, np.uint64), return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    is_first = np.zeros(len(hashes), bool)
    is_first[first] = True
    row_offsets, row_positives = np.array(offsets), np.array(positives, np.int32)
    negatives = np.diff(row_offsets) - 1 - row_positives
    report = {
        "rows": len(positives),
        "shapes": dict(shapes),
        "unique_texts": len(first),
        "dropped_negatives": dropped_count,
        "dropped_at": dropped,
        "rows_without_negatives": int((negatives == 0).sum()),
        "mean_negatives": float(negatives.mean()),
        "rows_with_teacher_scores": scored,
    }
    text_ids = rank[inverse]
    return _Index(
        text_ids=text_ids,
        twins=np.unique(np.frombuffer(bare, np.uint64), return_inverse=True)[1] if differ else text_ids,
        is_first=is_first,
        row_offsets=row_offsets,
        row_positives=row_positives,
        row_lines=np.array(lines),
        row_sources=np.array(files),
        row_sets=np.array(sets),
        row_scores=np.array(scores, np.float32),
        sources=list(names),
        report=report,
    )


def _write(folder: Path, read: Read, prompts: Sequence[Prompts], index: _Index, tokenize: Tokenize) -> None:
    lengths = array("q", [0])
    firsts = _first_occurrences(read, prompts, index)
    crc = 0
    with (folder / "token_ids.bin").open("wb") as file:
        while part := list(islice(firsts, TEXTS_PER_CALL)):
            for ids in _tokenize_pairs(part, tokenize):
                lengths.append(len(ids))
                data = np.asarray(ids, np.int32).tobytes()
                crc = zlib.crc32(data, crc)
                file.write(data)
    known_offsets, known = _known_positives(index)
    arrays = {
        "text_offsets": np.cumsum(np.array(lengths)),
        "row_texts": index.text_ids.astype(np.int32),
        "row_offsets": index.row_offsets,
        "row_positives": index.row_positives,
        "row_lines": index.row_lines,
        "row_sources": index.row_sources,
        "row_sets": index.row_sets,
        "row_scores": index.row_scores,
        "known_offsets": known_offsets,
        "known_positives": known,
    }
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    crc = zlib.crc32(arrays["text_offsets"].tobytes(), crc)
    meta = {"sources": index.sources, "tokens_crc": crc, "report": index.report}
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")


def _first_occurrences(read: Read, prompts: Sequence[Prompts], index: _Index) -> Iterator[tuple[str, str]]:
    """Second pass: each different (role, text) where it first occurs."""
    occurrences = (pair for _, record in read() for pair in _prompted(record, prompts))
    position = 0
    for pair in occurrences:
        if position < len(index.is_first) and index.is_first[position]:
            yield pair
        position += 1
    if position != len(index.is_first):
        raise UserError(f"{', '.join(index.sources)}: the data changed while it was read; start again")


def _tokenize_pairs(pairs: list[tuple[str, str]], tokenize: Tokenize) -> list[list[int]]:
    """Tokenise (role, text) pairs with one call a role, keeping their order."""
    result: list[list[int]] = [[]] * len(pairs)
    for role in (QUERY, PASSAGE):
        positions = [position for position, pair in enumerate(pairs) if pair[0] == role]
        if positions:
            for position, ids in zip(positions, tokenize(role, [pairs[p][1] for p in positions]), strict=True):
                result[position] = ids
    return result


def _known_positives(index: _Index) -> tuple[np.ndarray, np.ndarray]:
    """Positives of each query text over all rows, as offsets [U + 1] and flat text ids."""
    starts = index.row_offsets[:-1]
    query = np.repeat(index.twins[starts], index.row_positives)
    within = np.arange(len(query)) - np.repeat(
        np.cumsum(index.row_positives) - index.row_positives, index.row_positives
    )
    passage = index.twins[np.repeat(starts + 1, index.row_positives) + within]
    pairs = np.unique(np.stack([query, passage]), axis=1)
    texts = int(index.is_first.sum())
    if index.twins is not index.text_ids:
        pairs = _every_twin(pairs, index.twins[index.is_first], index.text_ids[index.is_first])
    counts = np.bincount(pairs[0], minlength=texts)
    return np.concatenate([[0], np.cumsum(counts)]), pairs[1].astype(np.int32)


def _every_twin(pairs: np.ndarray, twins: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Pairs [2, n] of numbers that twins share -> the pairs of all texts behind them.

    Args:
        pairs: numbers of queries and passages.
        twins: [U] number of each text.
        texts: [U] id of each text.
    """
    order = np.argsort(twins, kind="stable")
    twins, texts = twins[order], texts[order]
    for side in (0, 1):
        first, behind = np.searchsorted(twins, pairs[side]), np.searchsorted(twins, pairs[side], side="right")
        counts = behind - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        pairs = np.repeat(pairs, counts, axis=1)
        pairs[side] = texts[np.repeat(first, counts) + within]
    return pairs[:, np.lexsort((pairs[1], pairs[0]))]


def _load(folder: Path) -> TokenStore:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    rows = ("texts", "offsets", "positives", "lines", "sources", "sets", "scores")
    names = ("text_offsets", *(f"row_{name}" for name in rows))
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*names, "known_offsets", "known_positives")
    }
    token_ids = np.memmap(folder / "token_ids.bin", np.int32, mode="r")
    return TokenStore(token_ids=token_ids, **meta, **arrays)


def _fingerprint(sources: Sequence[str], tokenize_key: str) -> str:
    """Hash of everything that the store depends on."""
    digest = hashlib.sha256(f"{FORMAT}|{tokenize_key}".encode())
    for number, source in enumerate(sources):
        digest.update(f"|{number}|".encode())
        files = local_files(source)
        if not files:
            digest.update(f"{source}@{hub_fingerprint(source)}".encode())
        for path in files:
            digest.update(f"{path}|".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()[:24]
