"""Backbone + pooling + normalisation: a TokenBatch goes in, one vector a text comes out.

The batch is sorted by length and cut into chunks of texts of near-equal length, so almost nothing is padded, whatever
mixture of queries and passages it holds; the vectors come back in the order of the batch. The vectors do not depend on
the cut.

Dimensions: n texts, D components, m texts of a chunk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embedrag.contract import Contract, TextTokenizer
from embedrag.pooling import POOLING
from embedrag.tokens import TokenBatch

CHUNK_TOKENS = 16384
MAX_WASTE = 0.1
SMALL_CHUNK_TOKENS = 256
TEXTS_PER_BLOCK = 1024


def plan_chunks(lengths: Sequence[int], chunk_tokens: int, max_waste: float = MAX_WASTE) -> list[tuple[int, int]]:
    """Cut texts that are sorted by falling length into chunks [start, stop).

    A chunk's padded area stays within `chunk_tokens` (a single longer text is a chunk of its own) and its padding
    within `max_waste`, unless the chunk is so small that a further one would cost more.

    >>> plan_chunks([100, 98, 20, 20], chunk_tokens=1000, max_waste=0.1)
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


class Encoder(nn.Module):
    """An embedding model under its contract."""

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: TextTokenizer,
        contract: Contract,
        dtype: torch.dtype = torch.float32,
        pad_multiple: int = 1,
    ) -> None:
        """Put the parts together.

        Args:
            backbone: from `embedrag.backbone`.
            tokenizer: texts -> ids.
            contract: pooling and normalisation.
            dtype: of the computation (autocast).
            pad_multiple: padded widths are rounded up to it.
        """
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.contract = contract
        self.dtype = dtype
        self.pad_multiple = pad_multiple

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    @property
    def dimension(self) -> int:
        """D, length of a vector."""
        return int(self.backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, tokens: TokenBatch, chunk_tokens: int = CHUNK_TOKENS) -> Tensor:
        """Embed n texts.

        Args:
            tokens: the texts.
            chunk_tokens: padded tokens of one call of the backbone, at most.

        Returns:
            [n, D] float32 vectors, in the order of `tokens`.
        """
        order = tokens.lengths.argsort(descending=True, stable=True)
        lengths = tokens.lengths[order].tolist()
        parts = [self._chunk(tokens, order[a:b]) for a, b in plan_chunks(lengths, chunk_tokens)]
        embeddings = torch.cat(parts)
        return embeddings[torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))]

    def padded_tokens(self, tokens: TokenBatch, chunk_tokens: int = CHUNK_TOKENS) -> int:
        """Tokens that `forward` computes, padding included."""
        lengths = sorted(tokens.lengths.tolist(), reverse=True)
        multiple = self.pad_multiple
        return sum((b - a) * (-(-lengths[a] // multiple) * multiple) for a, b in plan_chunks(lengths, chunk_tokens))

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[str],
        role: str,
        chunk_tokens: int = CHUNK_TOKENS,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Vectors of texts, as `query` or `passage`.

        Args:
            texts: n texts, without prompt.
            role: decides prompt and length.
            chunk_tokens: padded tokens of one call of the backbone.
            progress: called with the number of texts done since the last call.

        Returns:
            [n, D] float32.
        """
        was_training = self.training
        self.eval()
        blocks = []
        try:
            for start in range(0, len(texts), TEXTS_PER_BLOCK):
                block = texts[start : start + TEXTS_PER_BLOCK]
                tokens = TokenBatch.from_lists(self.tokenizer(role, block)).to(self.device)
                blocks.append(self(tokens, chunk_tokens).cpu().numpy())
                if progress:
                    progress(len(block))
        finally:
            self.train(was_training)
        return np.concatenate(blocks) if blocks else np.zeros((0, self.dimension), np.float32)

    def _chunk(self, tokens: TokenBatch, indices: Tensor) -> Tensor:
        pad_id = self.tokenizer.tokenizer.pad_token_id or 0
        input_ids, mask = tokens.padded(indices, pad_id, self.pad_multiple)
        with self._autocast():
            hidden = self.backbone(input_ids=input_ids, attention_mask=mask).last_hidden_state
        cu_seqlens = F.pad(tokens.lengths[indices].cumsum(0), (1, 0))
        embeddings = POOLING[self.contract.pooling](hidden[mask.bool()], cu_seqlens)
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        return F.normalize(embeddings, dim=-1) if self.contract.normalize else embeddings

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.dtype not in (torch.bfloat16, torch.float16):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)
