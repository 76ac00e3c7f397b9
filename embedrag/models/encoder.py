"""Backbone + pooling + normalisation: a TokenBatch goes in, one vector for each text comes out.

The batch is sorted by length and cut into chunks of texts of nearly equal length (`embedrag.models.chunking`). So
almost nothing is padded, also when the batch mixes queries and passages. The vectors come back in the order of the
batch.

Letters: n texts, D dimensions of a vector, m texts of a chunk, T tokens of a chunk, H hidden size.
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
from embedrag.errors import check_choice
from embedrag.models.chunking import CHUNK_TOKENS, plan_packed, plan_padded
from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.models.kernels.fast_dropout import dropout_on
from embedrag.models.kernels.packed_attention import Packing, pack, packed_states
from embedrag.models.modules.head import build_head
from embedrag.models.pooling import pool_packed
from embedrag.models.tokenizer import TextTokenizer
from embedrag.runtime.fsdp import is_sharded

TEXTS_PER_BLOCK = 1024
ROLES = ("query", "passage")


class TextEncoder(ABC):
    """Anything that turns token ids into vectors, and therefore texts into vectors.

    Attributes:
        tokenizer: (role, texts) -> token ids.
        sharded: whether each of several processes holds only a shard of the weights.
        name: folder, adapter file or hub id that it was loaded from.
    """

    tokenizer: TextTokenizer
    name: str = "(in memory)"
    sharded: bool = False

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """D, the number of dimensions of a vector."""

    @abstractmethod
    def vectors(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors of n texts given as token ids, in any order and of any lengths: [n, D] float32."""

    def encode(
        self,
        texts: Sequence[str],
        role: str,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Vectors of texts, as `query` or `passage`.

        Args:
            texts: n texts, without a prompt.
            role: `query` or `passage`; it decides the prompt and the maximum length.
            progress: called with the number of texts done since the last call.

        Returns:
            [n, D] float32.

        Raises:
            UserError: when there is no such role.
        """
        blocks = list(self.blocks(texts, role, progress))
        return np.concatenate(blocks) if blocks else np.zeros((0, self.dimension), np.float32)

    def blocks(
        self, texts: Sequence[str], role: str, progress: Callable[[int], object] | None = None
    ) -> Iterator[np.ndarray]:
        """The same in blocks [m, D], one after the other, so that not all vectors are in memory together."""
        check_choice("role", role, ROLES)
        for start in range(0, len(texts), TEXTS_PER_BLOCK):
            block = texts[start : start + TEXTS_PER_BLOCK]
            vectors = self.vectors(self.tokenizer(role, block))
            if progress:
                progress(len(block))
            yield vectors


class Encoder(nn.Module, TextEncoder):
    """An embedding model: a transformer, its tokenizer, and how its hidden states become vectors.

    Attributes:
        head: modules that follow the pooling, such as Dense layers; often none. They are trained when all weights of
            the backbone are, and adapters leave them as they are.
        packed: texts lie one after the other without padding; otherwise they are padded.
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
        """Put the parts together. Texts are padded until `pack` is called.

        Args:
            backbone: from `embedrag.models.backbone`.
            tokenizer: texts -> ids.
            embedding_config: pooling and normalisation.
            dtype: of the computation (autocast).
            pad_multiple: padded widths are rounded up to a multiple of it.
        """
        super().__init__()
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.embedding_config = embedding_config
        self.head = build_head(embedding_config.head).to(self.device)
        self.head.requires_grad_(not hasattr(backbone, "peft_config"))
        self.dtype = dtype
        self.pad_multiple = pad_multiple
        self.packed = False
        self.first_position = 0  # position id of the first token of a packed text
        self.chunk_tokens = CHUNK_TOKENS.get(self.device.type, 4096)

    def pack(self) -> None:
        """From now on texts lie one after the other, without padding.

        Raises:
            PackingError: with the reason; texts are then padded as before.
        """
        with self.autocast():
            self.first_position = pack(self.backbone, self.pad_id, self.dtype)
        self.packed = True

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        return self.tokenizer.tokenizer.pad_token_id or 0

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    @cached_property
    def sharded(self) -> bool:  # type: ignore[override]
        """Whether each process holds only a shard of the weights. All processes must then compute at the same time."""
        return is_sharded(self.backbone)

    @property
    def dimension(self) -> int:
        """D, the number of dimensions of a vector."""
        return self.embedding_config.dimension(self.width)

    @property
    def width(self) -> int:
        """H, the number of dimensions of a token vector."""
        return int(self.backbone.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]

    def weights(self) -> dict[str, nn.Parameter]:
        """All parameters: those of the backbone by its own names, those of the head with `head.` before them."""
        return dict(self.backbone.named_parameters()) | dict(self.head.named_parameters(prefix="head"))

    def forward(self, tokens: TokenBatch) -> Tensor:
        """Embed n texts with their graphs; nothing limits the memory that these take.

        Args:
            tokens: the texts, on the CPU.

        Returns:
            [n, D] float32 vectors, in the order of `tokens`.
        """
        order, chunks = self.plan(tokens)
        parts = [self.embed(tokens.select(order[start:stop])) for start, stop in chunks]
        return torch.cat(parts)[order.argsort().to(self.device)]

    def vectors(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Vectors of n texts given as token ids, without a graph and without dropout: [n, D] float32."""
        with torch.no_grad(), dropout_on(self, False):
            return self(TokenBatch.from_lists(ids)).cpu().numpy()  # type: ignore[no-any-return]

    def plan(self, tokens: TokenBatch, limit: int | None = None) -> tuple[Tensor, list[tuple[int, int]]]:
        """How a batch is cut.

        Args:
            tokens: n texts.
            limit: tokens of a chunk, at most; `chunk_tokens` holds too.

        Returns:
            [n] places of the texts, from long to short, and the chunks [start, stop) of that list.
        """
        order = tokens.lengths.argsort(descending=True, stable=True)
        lengths = tokens.lengths[order].tolist()
        most = min(self.chunk_tokens, limit or self.chunk_tokens)
        return order, (plan_packed if self.packed else plan_padded)(lengths, most)

    def area(self, lengths: Sequence[int], start: int, stop: int) -> int:
        """Tokens that the chunk [start, stop) of texts of these lengths computes, padding included."""
        if self.packed:
            return sum(lengths[start:stop])
        return (stop - start) * (-(-lengths[start] // self.pad_multiple) * self.pad_multiple)

    def embed(self, tokens: TokenBatch) -> Tensor:
        """[m, D] of the texts of one chunk, in its order, by one call of the backbone."""
        if not len(tokens):
            # Other processes wait for this process's shard of the weights, and for its gradient, which is zero.
            return self.embed(TokenBatch.from_lists([[self.pad_id]]))[:0]
        cu_seqlens = tokens.cu_seqlens.to(self.device, non_blocking=True)
        with self.autocast():
            hidden = self._packed(tokens, cu_seqlens) if self.packed else self._padded(tokens)
        return self.finish(pool_packed(hidden, cu_seqlens, self.embedding_config.pooling))

    def finish(self, pooled: Tensor) -> Tensor:
        """From pooled states [m, k H] to vectors [m, D]: the modules that follow the pooling, and the normalisation."""
        vectors: Tensor = self.head(pooled.to(torch.promote_types(pooled.dtype, torch.float32)))
        vectors = F.normalize(vectors, dim=-1) if self.embedding_config.normalize else vectors
        return vectors[:, : self.embedding_config.truncate_dim]

    def _packed(self, tokens: TokenBatch, cu_seqlens: Tensor) -> Tensor:
        """[T, H] hidden states; all texts in one row."""
        packing = Packing(cu_seqlens.int(), tokens.lengths.tolist())
        return packed_states(self.backbone, tokens.input_ids.to(self.device), packing, self.first_position)

    def _padded(self, tokens: TokenBatch) -> Tensor:
        """[T, H] hidden states; one row for each text, its padding removed afterwards."""
        ids, mask = tokens.padded(self.pad_id, self.pad_multiple)
        places = mask.flatten().nonzero()[:, 0]  # found on the CPU, so that nothing waits for a GPU
        hidden: Tensor = self.backbone(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device)
        ).last_hidden_state
        return hidden.flatten(0, 1).index_select(0, places.to(self.device))

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The precision of the computation, as a context for calls of the backbone."""
        if self.dtype not in (torch.bfloat16, torch.float16):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)
