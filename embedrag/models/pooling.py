"""From token vectors to text vectors.

Each pooling has two forms with the same result. The flat form takes the tokens of all texts one after the other and
without padding; `cu_seqlens` says where each text starts. The masked form takes padded texts and a mask; the padding
may be on either side. A new pooling is one entry of `POOLING`.

Dimensions: T tokens (of all texts, or of the longest one), n texts, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from embedrag.errors import check_choice


@dataclass(frozen=True)
class Pooling:
    """One way to make a text vector from token vectors.

    Attributes:
        flat: hidden states [T, H] and cu_seqlens [n + 1] -> [n, H].
        masked: hidden states [n, T, H] and mask [n, T], 1 on tokens -> [n, H].
        sentence_transformers: the end of its key in the pooling config of sentence-transformers.
    """

    flat: Callable[[Tensor, Tensor], Tensor]
    masked: Callable[[Tensor, Tensor], Tensor]
    sentence_transformers: str


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool padded texts; the padding may be on either side.

    Args:
        states: token vectors [n, T, H].
        mask: [n, T], 1 (or True) on tokens and 0 on padding. Each text has at least one token.
        pooling: `mean`, `cls` (first token) or `last_token`.

    Returns:
        Text vectors [n, H].

    Raises:
        UserError: there is no such pooling.

    >>> states = torch.tensor([[[9.0], [1.0], [3.0]]])
    >>> mask = torch.tensor([[0, 1, 1]])
    >>> pool(states, mask, "mean"), pool(states, mask, "cls"), pool(states, mask, "last_token")
    (tensor([[2.]]), tensor([[1.]]), tensor([[3.]]))
    """
    check_choice("pooling", pooling, POOLING)
    return POOLING[pooling].masked(states, mask.long())


def mean(states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Mean over the tokens of each text, computed in float32 or more: [T, H], [n + 1] -> [n, H].

    >>> mean(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 2, 3]))
    tensor([[2.],
            [5.]])
    """
    lengths = cu_seqlens.diff()
    numbers = torch.arange(len(lengths), device=lengths.device)
    text = torch.repeat_interleave(numbers, lengths, output_size=len(states))
    dtype = torch.promote_types(states.dtype, torch.float32)
    sums = states.new_zeros(len(lengths), states.shape[1], dtype=dtype)
    return sums.index_add(0, text, states.to(dtype)) / lengths[:, None]


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each text, computed in float32 or more: [n, T, H], [n, T] -> [n, H]."""
    dtype = torch.promote_types(states.dtype, torch.float32)
    weights = mask[:, :, None].to(dtype)
    return (states.to(dtype) * weights).sum(1) / weights.sum(1)


def first_token(states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """First token of each text: [T, H], [n + 1] -> [n, H]."""
    return states[cu_seqlens[:-1]]


def masked_first_token(states: Tensor, mask: Tensor) -> Tensor:
    """First token of each text: [n, T, H], [n, T] -> [n, H]."""
    return _at(states, mask.argmax(1))


def last_token(states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Last token of each text: [T, H], [n + 1] -> [n, H]."""
    return states[cu_seqlens[1:] - 1]


def masked_last_token(states: Tensor, mask: Tensor) -> Tensor:
    """Last token of each text: [n, T, H], [n, T] -> [n, H]."""
    return _at(states, (mask * (torch.arange(mask.shape[1], device=mask.device) + 1)).argmax(1))


def _at(states: Tensor, places: Tensor) -> Tensor:
    """The token at one place of each text: [n, T, H], [n] -> [n, H]."""
    return states.gather(1, places[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]


POOLING = {
    "mean": Pooling(mean, masked_mean, "mean_tokens"),
    "cls": Pooling(first_token, masked_first_token, "cls_token"),
    "last_token": Pooling(last_token, masked_last_token, "lasttoken"),
}
