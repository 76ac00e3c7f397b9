"""From token vectors to text vectors, on flat hidden states.

Flat means that there is no padding, hence no padding side: the first and last token of a text are where `cu_seqlens`
says. Dimensions: T tokens, n texts, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def cls(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """First token of each text: [T, H], [n + 1] -> [n, H]."""
    return hidden_states[cu_seqlens[:-1]]


def last_token(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Last token of each text: [T, H], [n + 1] -> [n, H]."""
    return hidden_states[cu_seqlens[1:] - 1]


def mean(hidden_states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Mean over the tokens of each text, in float32: [T, H], [n + 1] -> [n, H].

    >>> mean(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 2, 3]))
    tensor([[2.],
            [5.]])
    """
    lengths = cu_seqlens.diff()
    numbers = torch.arange(len(lengths), device=lengths.device)
    text = torch.repeat_interleave(numbers, lengths, output_size=len(hidden_states))
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    sums = hidden_states.new_zeros(len(lengths), hidden_states.shape[1], dtype=dtype)
    return sums.index_add(0, text, hidden_states.to(dtype)) / lengths[:, None]


POOLING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": mean, "cls": cls, "last_token": last_token}
