"""Backbone + pooling + normalisation: a TokenBatch goes in, one vector a text comes out.

The batch is sorted by length and cut into chunks of texts of near-equal length, so almost nothing is padded, whatever
mixture of queries and passages it holds; the vectors come back in the order of the batch. The vectors do not depend on
the cut.

Dimensions: n texts, D components, m texts of a chunk.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embedrag.data.token_batch import TokenBatch
from embedrag.models.chunking import CHUNK_TOKENS, plan_packed, plan_padded
from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.models.kernels.fast_dropout import dropout_on
from embedrag.models.kernels.packed_attention import Packing, pack, packed_states
from embedrag.models.pooling import POOLING
from embedrag.models.tokenizer import TextTokenizer
from embedrag.runtime.distributed import ProcessGroup
from embedrag.runtime.fsdp import is_sharded
from embedrag.training.grad_cache import CachedVectors

TEXTS_PER_BLOCK = 1024


class TextEncoder(ABC):
    """Whatever turns token ids into vectors, and what follows from that: texts into vectors.

    Attributes:
        tokenizer: (role, texts) -> token ids.
        sharded: whether each of several processes holds a part of the weights.
    """

    tokenizer: TextTokenizer
    sharded: bool = False

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """D, length of a vector."""

    @abstractmethod
    def vectors(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors of n texts that are token ids, whatever their order and lengths: [n, D] float32."""

    def encode(
        self,
        texts: Sequence[str],
        role: str,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Vectors of texts, as `query` or `passage`.

        Args:
            texts: n texts, without prompt.
            role: decides prompt and length.
            progress: called with the number of texts done since the last call.

        Returns:
            [n, D] float32.
        """
        blocks = list(self.blocks(texts, role, progress))
        return np.concatenate(blocks) if blocks else np.zeros((0, self.dimension), np.float32)

    def blocks(
        self, texts: Sequence[str], role: str, progress: Callable[[int], object] | None = None
    ) -> Iterator[np.ndarray]:
        """The same in parts [m, D], one after the other, for texts whose vectors need not be held."""
        for start in range(0, len(texts), TEXTS_PER_BLOCK):
            block = texts[start : start + TEXTS_PER_BLOCK]
            vectors = self.vectors(self.tokenizer(role, block))
            if progress:
                progress(len(block))
            yield vectors


class Encoder(nn.Module, TextEncoder):
    """An embedding model under its contract.

    Attributes:
        position_offset: first position of a text where texts are packed; None pads them.
        token_budget: tokens whose graphs are held at once in training; None holds them all.
        token_bytes: of a token's graph, where it was weighed.
        chunk_tokens: tokens of one call of the backbone, at most.
    """

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: TextTokenizer,
        embedding_config: EmbeddingConfig,
        dtype: torch.dtype = torch.float32,
        pad_multiple: int = 1,
    ) -> None:
        """Put the parts together; texts are padded until `pack` was called.

        Args:
            backbone: from `embedrag.models.backbone`.
            tokenizer: texts -> ids.
            embedding_config: pooling and normalisation.
            dtype: of the computation (autocast).
            pad_multiple: padded widths are rounded up to it.
        """
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.embedding_config = embedding_config
        self.dtype = dtype
        self.pad_multiple = pad_multiple
        self.position_offset: int | None = None
        self.token_budget: int | None = None
        self.token_bytes: float | None = None
        self.chunk_tokens = CHUNK_TOKENS.get(self.device.type, 4096)

    def pack(self) -> None:
        """From now on texts lie one after the other, without padding.

        Raises:
            PackingError: with the reason; texts are then padded as before.
        """
        with self.autocast():
            self.position_offset = pack(self.backbone, self.pad_id, self.dtype)

    @property
    def pad_id(self) -> int:
        """Token that fills up."""
        return self.tokenizer.tokenizer.pad_token_id or 0

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    @cached_property
    def sharded(self) -> bool:  # type: ignore[override]
        """Whether each process holds a part of the weights; all must then compute at the same time."""
        return is_sharded(self.backbone)

    @property
    def dimension(self) -> int:
        """D, length of a vector."""
        return int(self.backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def forward(self, tokens: TokenBatch) -> Tensor:
        """Embed n texts, whatever memory their graphs take.

        Args:
            tokens: the texts, on the CPU.

        Returns:
            [n, D] float32 vectors, in the order of `tokens`.
        """
        order, chunks = self._plan(tokens)
        parts = [self._embed(tokens.select(order[start:stop])) for start, stop in chunks]
        return torch.cat(parts)[order.argsort().to(self.device)]

    def cached(self, tokens: TokenBatch, processes: ProcessGroup = ProcessGroup()) -> CachedVectors:  # noqa: B008 - immutable
        """Embed n texts for a loss, within the token budget.

        Args:
            tokens: the texts.
            processes: that embed texts of their own now. With weights in parts all of them go through as many chunks,
                some of them empty, and recompute as many.
        """
        order, chunks = self._plan(tokens)
        recompute = self._recomputed_chunks(tokens.lengths[order].tolist(), chunks)
        places = [order[start:stop] for start, stop in chunks]
        if self.sharded:
            counts = processes.gather((len(places), recompute))
            most, recompute = (max(column) for column in zip(*counts, strict=True))
            places += [order[:0]] * (most - len(places))
        return CachedVectors(self._embed, tokens, places, recompute, self.device, self.dimension)

    def frozen(self, tokens: TokenBatch) -> Tensor:
        """[n, D] of the base model: adapters off, no dropout, no graph."""
        with torch.no_grad(), dropout_on(self, False), self.backbone.disable_adapter():  # type: ignore[operator]
            vectors: Tensor = self(tokens)
        return F.normalize(vectors, dim=1)

    def work(self, tokens: TokenBatch) -> tuple[int, int]:
        """Tokens that a training step computes, padding included, and those of them that it computes once more."""
        order, chunks = self._plan(tokens)
        lengths = tokens.lengths[order].tolist()
        areas = [self._area(lengths, *chunk) for chunk in chunks]
        return sum(areas), sum(areas[: self._recomputed_chunks(lengths, chunks)])

    def vectors(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors of n texts that are token ids, without a graph and without dropout: [n, D] float32."""
        with torch.no_grad(), dropout_on(self, False):
            return self(TokenBatch.from_lists(ids)).cpu().numpy()  # type: ignore[no-any-return]

    def _plan(self, tokens: TokenBatch) -> tuple[Tensor, list[tuple[int, int]]]:
        """Texts by falling length, and where that list is cut."""
        order = tokens.lengths.argsort(descending=True, stable=True)
        lengths = tokens.lengths[order].tolist()
        limit = min(self.chunk_tokens, self.token_budget or self.chunk_tokens)
        return order, (plan_padded if self.position_offset is None else plan_packed)(lengths, limit)

    def _area(self, lengths: list[int], start: int, stop: int) -> int:
        """Tokens of a chunk, padding included."""
        if self.position_offset is not None:
            return sum(lengths[start:stop])
        return (stop - start) * (-(-lengths[start] // self.pad_multiple) * self.pad_multiple)

    def _recomputed_chunks(self, lengths: list[int], chunks: list[tuple[int, int]]) -> int:
        """How many of the first chunks are recomputed, for the graphs of the later ones fill the budget."""
        if self.token_budget is None or len(chunks) < 2:
            return 0
        room = self.token_budget - self._loss_tokens(len(lengths))
        for number in reversed(range(len(chunks))):
            room -= self._area(lengths, *chunks[number])
            if room < 0:
                return number + 1
        return 0

    def _loss_tokens(self, texts: int) -> float:
        """Tokens whose graphs would take the memory that the vectors need while a loss is made of them.

        That is the vectors, their copies as queries and passages, and the gradients of both. A twentieth of the budget
        is theirs anyway.
        """
        if self.token_budget is None or self.token_bytes is None:
            return 0
        return max(0, 4 * texts * self.dimension * 4 / self.token_bytes - self.token_budget / 20)

    def _embed(self, tokens: TokenBatch) -> Tensor:
        """[m, D] of the texts of a chunk, in its order."""
        if not len(tokens):
            # Others wait for this process's part of the weights, and for its part of the gradient, which is zero.
            return self._embed(TokenBatch.from_lists([[self.pad_id]]))[:0]
        cu_seqlens = tokens.cu_seqlens.to(self.device, non_blocking=True)
        with self.autocast():
            hidden = self._padded(tokens) if self.position_offset is None else self._packed(tokens, cu_seqlens)
        embeddings = POOLING[self.embedding_config.pooling](hidden, cu_seqlens)
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        return F.normalize(embeddings, dim=-1) if self.embedding_config.normalize else embeddings

    def _packed(self, tokens: TokenBatch, cu_seqlens: Tensor) -> Tensor:
        """[T, H] hidden states; all texts in one row."""
        packing = Packing(cu_seqlens.int(), tokens.lengths.tolist())
        return packed_states(self.backbone, tokens.input_ids.to(self.device), packing, self.position_offset or 0)

    def _padded(self, tokens: TokenBatch) -> Tensor:
        """[T, H] hidden states; a row a text."""
        ids, mask = tokens.padded(self.pad_id, self.pad_multiple)
        places = mask.flatten().nonzero()[:, 0]  # found here, so that a GPU need not be waited for
        hidden: Tensor = self.backbone(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
        ).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, places.to(self.device))

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The precision of the computation, as a context of the backbone's calls."""
        if self.dtype not in (torch.bfloat16, torch.float16):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)
