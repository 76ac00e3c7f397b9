"""A tokenised data set in a memory map. `embedrag.data.tokenization` makes it.

The training loop should neither tokenise nor pad. So each unique text is tokenised once, and a data set becomes a
folder of flat arrays: token ids with offsets, and rows as integers. The folder's name is a fingerprint of data,
tokenizer, prompts and lengths. A second start is then immediate, and the data may be larger than the memory. This costs
disk space: 4 bytes for each token of the unique texts.

Dimensions: T tokens, n texts, U unique texts, N rows.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedrag.data.token_batch import TokenBatch
from embedrag.errors import RunError


@dataclass(frozen=True)
class TokenStore:
    """A tokenised data set, memory-mapped.

    Attributes:
        token_ids: [T] int32.
        text_offsets: [U + 1] int64 into `token_ids`.
        text_identities: [U] uint64, the same for texts that differ only in case, spacing, Unicode form or prompt.
        row_texts: text ids of all rows, row by row: the query, the positives, the negatives.
        row_offsets: [N + 1] int64 into `row_texts`.
        row_positives: [N] int32, number of positives of each row.
        row_lines: [N] int64, line of each row in its file.
        row_sources: [N] int32, index into `sources`.
        row_sets: [N] int32, number of the data set, in the order in which the data sets were given.
        row_scores: a teacher's score of each entry of `row_texts`, NaN for one without; empty if no row has any.
        row_grades: how well each positive in `row_texts` answers, NaN for one without; empty if no row has any.
        known_offsets: [U + 1] int64 into `known_positives`.
        known_positives: of each query text, all passages that any row calls its positive.
        sources: names of the files.
        tokens_crc: CRC-32 of tokens and text offsets. It is computed when they are written, so they are not read again.
        largest_id: the largest token id.
        report: counts of rows and texts.
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
    largest_id: int
    report: dict[str, Any]

    def __len__(self) -> int:
        return len(self.row_positives)

    def row(self, index: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Text ids of one row: query, positives [p], negatives [m]."""
        texts = self.row_texts[self.row_offsets[index] : self.row_offsets[index + 1]]
        split = 1 + int(self.row_positives[index])
        return int(texts[0]), texts[1:split], texts[split:]

    @property
    def has_scores(self) -> bool:
        """Whether any row has the scores of a teacher."""
        return len(self.row_scores) > 0

    def scores(self, index: int) -> np.ndarray:
        """[p + m] a teacher's score of each of a row's passages; NaN for a passage without one."""
        first, stop = self.row_offsets[index] + 1, self.row_offsets[index + 1]
        return self.row_scores[first:stop] if self.has_scores else np.full(stop - first, np.nan, np.float32)

    def grades(self, index: int) -> np.ndarray:
        """[p] the grade of each of a row's positives; 1 for a positive without one."""
        first = self.row_offsets[index] + 1
        stop = first + self.row_positives[index]
        return np.nan_to_num(self.row_grades[first:stop], nan=1.0) if len(self.row_grades) else np.ones(stop - first)

    def known(self, query: int) -> np.ndarray:
        """All passages that any row calls a positive of this query text."""
        return self.known_positives[self.known_offsets[query] : self.known_offsets[query + 1]]

    @cached_property
    def forms(self) -> np.ndarray:
        """[U] a number for each text; texts with equal `text_identities` have the same."""
        return np.unique(self.text_identities, return_inverse=True)[1].astype(np.int32).ravel()

    @cached_property
    def checksum(self) -> str:
        """A text that changes with tokens and rows, to recognise the data (CRC-32: against mistakes, not attacks)."""
        value = self.tokens_crc
        for part in (self.row_texts, self.row_offsets, self.row_positives, self.row_scores, self.row_grades):
            value = zlib.crc32(np.ascontiguousarray(part).data, value)
        return f"{len(self)}-{len(self.token_ids)}-{value:08x}"

    def place(self, index: int) -> str:
        """Where a row came from, as `file:line`."""
        return f"{self.sources[self.row_sources[index]]}:{self.row_lines[index]}"

    def batch(self, texts: np.ndarray) -> TokenBatch:
        """The tokens of some texts, given by their ids [n], in that order.

        Raises:
            RunError: the files changed or are damaged in a block that was not read when they were opened.
        """
        try:
            starts, stops = self.text_offsets[texts], self.text_offsets[texts + 1]
            pieces = [self.token_ids[start:stop] for start, stop in zip(starts, stops, strict=True)]
            ids = np.concatenate(pieces).astype(np.int64)
            whole = len(ids) == (stops - starts).sum() and (
                not len(ids) or 0 <= ids.min() <= ids.max() <= self.largest_id
            )
        except IndexError:
            whole = False
        if not whole:
            folder = Path(getattr(self.token_ids, "filename", None) or ".").parent
            raise RunError(
                f"{folder}: the tokenised data is damaged; remove this folder, and the next start makes it again"
            )
        offsets = np.concatenate([[0], np.cumsum(stops - starts)])
        return TokenBatch(torch.from_numpy(ids), torch.from_numpy(offsets))


def load_store(folder: Path) -> TokenStore:
    """Open the store in a folder."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    rows = ("texts", "offsets", "positives", "lines", "sources", "sets", "scores", "grades")
    names = ("text_offsets", "text_identities", *(f"row_{name}" for name in rows))
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*names, "known_offsets", "known_positives")
    }
    token_ids = np.memmap(folder / "token_ids.bin", np.int32, mode="r")
    return TokenStore(token_ids=token_ids, **meta, **arrays)
