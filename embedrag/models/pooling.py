"""From token vectors to text vectors.

Each pooling has two forms with the same result. The flat form takes the tokens of all texts one after the other and
without padding; `cu_seqlens` says where each text starts. The masked form takes padded texts and a mask; the padding
may be on either side. A new pooling is one entry of `POOLING`.

Several poolings may be joined: the vector of `cls+mean` is that of `cls`, followed by that of `mean`.

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
        sentence_transformers: the end of its key in the pooling config of sentence-transformers up to version 5.3.
        mode: its name in the pooling config of later versions.
    """

    flat: Callable[[Tensor, Tensor], Tensor]
    masked: Callable[[Tensor, Tensor], Tensor]
    sentence_transformers: str
    mode: str


def pool(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool padded texts; the padding may be on either side.

    Args:
        states: token vectors [n, T, H].
        mask: [n, T], 1 (or True) on tokens and 0 on padding. Each text has at least one token.
        pooling: `mean`, `cls` (first token), `last_token`, `max`, `weighted_mean` or `mean_sqrt_len`; or several of
            them, as in `cls+mean`.

    Returns:
        Text vectors [n, H]; [n, k H] for k poolings.

    Raises:
        UserError: there is no such pooling.

    >>> states = torch.tensor([[[9.0], [1.0], [3.0]]])
    >>> mask = torch.tensor([[0, 1, 1]])
    >>> pool(states, mask, "mean"), pool(states, mask, "cls"), pool(states, mask, "last_token")
    (tensor([[2.]]), tensor([[1.]]), tensor([[3.]]))
    """
    return _joined([entry.masked(states, mask.long()) for entry in poolings(pooling)])


def pool_packed(states: Tensor, cu_seqlens: Tensor, pooling: str) -> Tensor:
    """Pool texts that lie one after the other.

    Args:
        states: token vectors [T, H].
        cu_seqlens: where the texts start, and where the last one ends [n + 1].
        pooling: as in `pool`.

    Returns:
        Text vectors [n, H]; [n, k H] for k poolings.
    """
    return _joined([entry.flat(states, cu_seqlens) for entry in poolings(pooling)])


def poolings(pooling: str) -> list[Pooling]:
    """The entries of `POOLING` that a name stands for: one, or several joined by `+`.

    Raises:
        UserError: there is no such pooling.
    """
    names = pooling.split("+") if isinstance(pooling, str) else [pooling]
    for name in names:
        check_choice("pooling", name, POOLING)
    return [POOLING[name] for name in names]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def mean(states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Mean over the tokens of each text, computed in float32 or more: [T, H], [n + 1] -> [n, H].

    >>> mean(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 2, 3]))
    tensor([[2.],
            [5.]])
    """
    return _sums(states, cu_seqlens) / cu_seqlens.diff()[:, None]


def mean_sqrt_len(states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Sum over the tokens of each text, divided by the root of their number: [T, H], [n + 1] -> [n, H]."""
    sums = _sums(states, cu_seqlens)
    return sums / cu_seqlens.diff()[:, None].to(sums.dtype).sqrt()


def weighted_mean(states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Mean over the tokens of each text; the i-th token counts i times (SGPT, arXiv 2202.08904).

    >>> weighted_mean(torch.tensor([[1.0], [4.0], [5.0]]), torch.tensor([0, 2, 3]))
    tensor([[3.],
            [5.]])
    """
    lengths = cu_seqlens.diff()
    place = torch.arange(len(states), device=states.device) - cu_seqlens[:-1][_text_of(states, cu_seqlens)] + 1
    dtype = torch.promote_types(states.dtype, torch.float32)
    return _sums(states.to(dtype) * place[:, None].to(dtype), cu_seqlens) / (lengths * (lengths + 1) // 2)[:, None]


def maximum(states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Largest number of each dimension over the tokens of each text: [T, H], [n + 1] -> [n, H]."""
    text = _text_of(states, cu_seqlens)[:, None].expand_as(states)
    start = states.new_full((len(cu_seqlens) - 1, states.shape[1]), float("-inf"))
    return start.scatter_reduce(0, text, states, "amax", include_self=False)


def _text_of(states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """[T] number of the text that each token belongs to."""
    lengths = cu_seqlens.diff()
    numbers = torch.arange(len(lengths), device=lengths.device)
    return torch.repeat_interleave(numbers, lengths, output_size=len(states))


def _sums(states: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Sum over the tokens of each text, computed in float32 or more: [T, H], [n + 1] -> [n, H]."""
    dtype = torch.promote_types(states.dtype, torch.float32)
    sums = states.new_zeros(len(cu_seqlens) - 1, states.shape[1], dtype=dtype)
    return sums.index_add(0, _text_of(states, cu_seqlens), states.to(dtype))


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each text, computed in float32 or more: [n, T, H], [n, T] -> [n, H]."""
    return _masked_mean(states, mask)


def masked_mean_sqrt_len(states: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens of each text, divided by the root of their number: [n, T, H], [n, T] -> [n, H]."""
    means = _masked_mean(states, mask)
    return means * mask.sum(1, keepdim=True).to(means.dtype).sqrt()


def masked_weighted_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each text; the i-th token counts i times: [n, T, H], [n, T] -> [n, H]."""
    return _masked_mean(states, mask.cumsum(1) * mask)


def masked_maximum(states: Tensor, mask: Tensor) -> Tensor:
    """Largest number of each dimension over the tokens of each text: [n, T, H], [n, T] -> [n, H]."""
    return states.masked_fill(mask[:, :, None] == 0, float("-inf")).amax(1)


def _masked_mean(states: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over tokens, computed in float32 or more: [n, T, H], [n, T] -> [n, H]."""
    dtype = torch.promote_types(states.dtype, torch.float32)
    shares = weights[:, :, None].to(dtype)
    return (states.to(dtype) * shares).sum(1) / shares.sum(1)


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


# In the order in which sentence-transformers joins them, when its file has a key for each.
POOLING = {
    "cls": Pooling(first_token, masked_first_token, "cls_token", "cls"),
    "max": Pooling(maximum, masked_maximum, "max_tokens", "max"),
    "mean": Pooling(mean, masked_mean, "mean_tokens", "mean"),
    "mean_sqrt_len": Pooling(mean_sqrt_len, masked_mean_sqrt_len, "mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    "weighted_mean": Pooling(weighted_mean, masked_weighted_mean, "weightedmean_tokens", "weightedmean"),
    "last_token": Pooling(last_token, masked_last_token, "lasttoken", "lasttoken"),
}
