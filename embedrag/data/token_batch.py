"""Token ids of several texts, one after the other.

Dimensions: n texts, T tokens of all texts, L tokens of the longest text (rounded up), m selected texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class TokenBatch:
    """Texts as flat token ids. This is the only form in memory; texts are padded only when a device needs it.

    Attributes:
        input_ids: [T] int64, the texts one after the other.
        cu_seqlens: [n + 1] int64, text i is `input_ids[cu_seqlens[i]:cu_seqlens[i + 1]]`.
    """

    input_ids: Tensor
    cu_seqlens: Tensor

    @classmethod
    def from_lists(cls, texts: Sequence[Sequence[int]]) -> TokenBatch:
        """Join lists of token ids.

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
        """The texts as a rectangle, padded on the right.

        Args:
            pad_id: token id of the padding.
            multiple: the width is rounded up to a multiple of it.

        Returns:
            input_ids [n, L] and attention_mask [n, L], both int64; the mask is 1 on tokens and 0 on padding.

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
        """Some of the texts, in the order of `indices` [m].

        >>> TokenBatch.from_lists([[5, 6], [7]]).select(torch.tensor([1, 0])).input_ids
        tensor([7, 5, 6])
        """
        lengths = self.lengths[indices]
        cu_seqlens = F.pad(lengths.cumsum(0), (1, 0))
        shift = torch.repeat_interleave(self.cu_seqlens[indices] - cu_seqlens[:-1], lengths)
        return TokenBatch(self.input_ids[torch.arange(len(shift)) + shift], cu_seqlens)
