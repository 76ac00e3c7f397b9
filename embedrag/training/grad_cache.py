"""Vectors of a batch of any size in constant memory, and the way back from their gradient to the parameters.

GradCache (arXiv 2101.06983): the vectors are cut off from the graphs that made them, and the loss gives their gradient.
Then each chunk of texts takes its part of that gradient to the parameters. A chunk without a graph goes through the
model a second time. Dropout is replayed from the state of the random generators, so the gradient is exactly that of
the first pass. How many chunks keep their graph changes no bit of the result; how the texts are cut into chunks does.

Letters: n texts, D dimensions of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from embedrag.data.token_batch import TokenBatch
from embedrag.models.encoder import Encoder
from embedrag.runtime.device import give_memory_back
from embedrag.runtime.distributed import ProcessGroup
from embedrag.runtime.random_state import random_state, replay
from embedrag.training.memory import TokenBudget

TRIM_EVERY = 16  # recomputed chunks; after every chunk it would cost a fifth of the time


class GradCache:
    """An encoder under a token budget: embeds a batch for a loss, and recomputes what did not fit.

    Attributes:
        encoder: the model.
        budget: how much is held; it may be replaced between two steps.
    """

    def __init__(self, encoder: Encoder, budget: TokenBudget = TokenBudget()) -> None:  # noqa: B008 - immutable
        self.encoder = encoder
        self.budget = budget

    def embed(self, tokens: TokenBatch, processes: ProcessGroup = ProcessGroup()) -> CachedVectors:  # noqa: B008
        """Embed n texts for a loss.

        Args:
            tokens: the texts.
            processes: the processes that embed their own texts at the same time. With sharded weights all of them go
                through the same number of chunks (some are empty), and recompute the same number.
        """
        order, chunks = self.encoder.plan(tokens, self.budget.chunk)
        recompute = self._recomputed(tokens.lengths[order].tolist(), chunks)
        places = [order[start:stop] for start, stop in chunks]
        if self.encoder.sharded:
            counts = processes.gather((len(places), recompute))
            most, recompute = (max(column) for column in zip(*counts, strict=True))
            places += [order[:0]] * (most - len(places))
        return CachedVectors(self.encoder.embed, tokens, places, recompute, self.encoder.device, self.encoder.dimension)

    def work(self, tokens: TokenBatch) -> tuple[int, int]:
        """Tokens that a step computes for these texts, padding included, and how many of them it computes twice."""
        order, chunks = self.encoder.plan(tokens, self.budget.chunk)
        lengths = tokens.lengths[order].tolist()
        areas = [self.encoder.area(lengths, *chunk) for chunk in chunks]
        return sum(areas), sum(areas[: self._recomputed(lengths, chunks)])

    def _recomputed(self, lengths: list[int], chunks: list[tuple[int, int]]) -> int:
        """How many of the first chunks are recomputed, because the graphs of the later ones fill the budget."""
        if self.budget.tokens is None or len(chunks) < 2:
            return 0
        room = self.budget.tokens - self.budget.loss_tokens(len(lengths), self.encoder.dimension)
        for number in reversed(range(len(chunks))):
            room -= self.encoder.area(lengths, *chunks[number])
            if room < 0:
                return number + 1
        return 0


class CachedVectors:
    """Vectors of n texts. Make a loss of them, call `backward()` of the loss, then `backward()` of this object.

    Attributes:
        vectors: [n, D], a leaf of the loss's graph.
    """

    vectors: Tensor

    def __init__(
        self,
        embed: Callable[[TokenBatch], Tensor],
        tokens: TokenBatch,
        chunks: Sequence[Tensor],
        recompute: int,
        device: torch.device,
        dimension: int,
    ) -> None:
        """Embed all texts.

        Args:
            embed: texts -> their vectors. Gradients are added to the `.grad` of its parameters.
            tokens: n texts.
            chunks: places of the texts that go through `embed` together.
            recompute: number of the first chunks that keep no graph. The last ones are held, because their graphs are
                freed before the first recomputation starts.
            device: of the vectors; its random state is replayed together with that of the CPU.
            dimension: D.
        """
        self._embed, self._tokens, self._chunks, self._device = embed, tokens, chunks, device
        self._states: list[tuple[Tensor, Tensor | None]] = []
        self._held: list[Tensor] = []
        self.vectors = torch.empty(0, dimension, device=device)  # a process without texts has this
        for number, places in enumerate(chunks):
            if number < recompute:
                self._states.append(random_state(device))
                self._trim(number)
            with torch.set_grad_enabled(number >= recompute):
                part = embed(tokens.select(places))
            if number == 0:
                self.vectors = part.new_empty(len(tokens), dimension)
            # One tensor from the start, because many small ones between large ones would fragment the memory.
            self.vectors[places.to(device)] = part.detach()
            if number >= recompute:
                self._held.append(part)
        self.vectors.requires_grad_()

    def backward(self) -> None:
        """Add the gradient of the loss to the `.grad` of the parameters. The vectors can't be used afterwards."""
        gradient = self.vectors.grad
        if gradient is None:
            raise RuntimeError("call backward() of a loss of these vectors first")
        del self.vectors
        # Always from the last chunk to the first, so the sum does not depend on how many chunks memory could hold.
        for number in reversed(range(len(self._chunks))):
            places = self._chunks[number]
            if number >= len(self._states):
                torch.autograd.backward(self._held.pop(), gradient[places.to(self._device)])
                continue
            self._trim(number)
            with replay(self._states[number], self._device), torch.enable_grad():
                torch.autograd.backward(self._embed(self._tokens.select(places)), gradient[places.to(self._device)])

    def _trim(self, number: int) -> None:
        """Give memory back: chunks differ in size, so the next one can rarely use what the last one left."""
        if self._device.type == "cpu" and number % TRIM_EVERY == TRIM_EVERY - 1:
            give_memory_back()
