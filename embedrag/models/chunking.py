"""Texts sorted by length, cut into chunks: the texts of one call of the backbone.

Chunks of texts of nearly equal length waste almost nothing on padding. The vectors do not depend on the cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

CHUNK_TOKENS = {"cpu": 4096, "cuda": 32768}  # more would not fit the caches of a CPU; a GPU needs few launches
MAX_WASTE = 0.1  # share of a padded chunk that may be padding
SMALL_CHUNK_TOKENS = 256  # a chunk of fewer tokens is not cut because of padding


def plan_packed(lengths: Sequence[int], chunk_tokens: int) -> list[tuple[int, int]]:
    """Cut texts into chunks [start, stop) of at most `chunk_tokens` tokens. A longer text is a chunk of its own.

    >>> plan_packed([60, 50, 40, 30], chunk_tokens=100)
    [(0, 1), (1, 3), (3, 4)]
    """
    bounds, tokens = [0], 0
    for index, length in enumerate(lengths):
        if index > bounds[-1] and tokens + length > chunk_tokens:
            bounds.append(index)
            tokens = 0
        tokens += length
    return list(pairwise([*bounds, len(lengths)])) if len(lengths) else []


def plan_padded(lengths: Sequence[int], chunk_tokens: int, max_waste: float = MAX_WASTE) -> list[tuple[int, int]]:
    """Cut texts that are sorted from long to short into chunks [start, stop).

    The padded area of a chunk is at most `chunk_tokens`; a longer text is a chunk of its own. Its padding is at most
    the share `max_waste`, except in a chunk that is so small that one more chunk would cost more.

    >>> plan_padded([100, 98, 20, 20], chunk_tokens=1000, max_waste=0.1)
    [(0, 2), (2, 4)]
    """
    chunks = []
    start, tokens = 0, 0
    for index, length in enumerate(lengths):
        area = lengths[start] * (index - start + 1)
        wasteful = 1 - (tokens + length) / area > max_waste and area > SMALL_CHUNK_TOKENS
        if index > start and (area > chunk_tokens or wasteful):
            chunks.append((start, index))
            start, tokens = index, 0
        tokens += length
    return [*chunks, (start, len(lengths))] if len(lengths) else []
