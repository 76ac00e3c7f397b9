"""Token store and token batch: every unique text is tokenised once, into a memory map.

The idea: the hot loop should neither tokenise nor pad. A data set becomes a folder of flat arrays (token ids with
offsets, rows as integers) under a fingerprint of data, tokenizer, prompts and lengths, so that a second start is
immediate and data larger than memory trains. It trades disk (4 bytes a token of unique text) for time.

`embedrag.data.tokenization` makes it.

Dimensions: T tokens, n texts, U unique texts, N rows.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from embedrag.data.rows import Record

QUERY, PASSAGE = "query", "passage"


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
        text_identities: [U] uint64, the same for texts that differ in case, spacing, Unicode form or prompt alone.
        row_texts: text ids of all rows; a row is its query, its positives, its negatives.
        row_offsets: [N + 1] int64 into `row_texts`.
        row_positives: [N] int32, positives of each row.
        row_lines: [N] int64, line of each row in its source.
        row_sources: [N] int32, index into `sources`.
        row_sets: [N] int32, number of the data set, of those that were named.
        row_scores: a teacher's score of each entry of `row_texts`, NaN: none; empty where no row has any.
        row_grades: how well each positive in `row_texts` answers, NaN: not graded; empty where no row has grades.
        known_offsets: [U + 1] int64 into `known_positives`.
        known_positives: for each query text, every passage that any row calls its positive.
        sources: names of the files.
        tokens_crc: CRC-32 of tokens and text offsets, made when they were written: reading them all would map them all.
        report: what was found while reading.
    """

    token_ids: np.ndarray
    text_offsets: np.ndarray
    text_identities: np.ndarray
    row_texts: np.ndarray
    row_offsets: np.ndarray
    row_positives: np.ndarray
    row_lines: np.ndarray
    row_sources: np.ndarray
    row_sets: np.ndarray
    row_scores: np.ndarray
    row_grades: np.ndarray
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

    def grades(self, index: int) -> np.ndarray:
        """The grade of each of a row's positives; 1 where it has none."""
        first = self.row_offsets[index] + 1
        behind = first + self.row_positives[index]
        return (
            np.nan_to_num(self.row_grades[first:behind], nan=1.0) if len(self.row_grades) else np.ones(behind - first)
        )

    def known(self, query: int) -> np.ndarray:
        """All labelled positives of a query text, over all rows."""
        return self.known_positives[self.known_offsets[query] : self.known_offsets[query + 1]]

    @cached_property
    def forms(self) -> np.ndarray:
        """[U] number of each text, the same where `text_identities` are."""
        return np.unique(self.text_identities, return_inverse=True)[1].astype(np.int32).ravel()

    @cached_property
    def checksum(self) -> str:
        """Of tokens and rows, to know the data again (CRC-32: against mistakes, not against malice)."""
        value = self.tokens_crc
        for part in (self.row_texts, self.row_offsets, self.row_positives, self.row_scores, self.row_grades):
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


def record_texts(record: Record) -> Iterator[tuple[str, str]]:
    """(role, text) of a row: query, positives, negatives."""
    yield QUERY, record.query
    for text in (*record.pos, *record.neg):
        yield PASSAGE, text


def load_store(folder: Path) -> TokenStore:
    """The store that a folder holds."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    rows = ("texts", "offsets", "positives", "lines", "sources", "sets", "scores", "grades")
    names = ("text_offsets", "text_identities", *(f"row_{name}" for name in rows))
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*names, "known_offsets", "known_positives")
    }
    token_ids = np.memmap(folder / "token_ids.bin", np.int32, mode="r")
    return TokenStore(token_ids=token_ids, **meta, **arrays)
