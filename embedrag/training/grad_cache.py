"""Vectors of a batch of any size in constant memory, and the way back from their gradient to the parameters.

GradCache (arXiv 2101.06983): the vectors are cut off from the graphs that made them, the loss gives their gradient, and
then each chunk of texts takes its part of it to the parameters. Chunks whose graph is not held go through the model
again then; dropout is replayed from the state of the random generators, so the gradient is that of the first pass.

Dimensions: n texts, D components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from embedrag.data.token_batch import TokenBatch
from embedrag.runtime.device import give_memory_back
from embedrag.runtime.random_state import random_state, replay

TRIM_EVERY = 16  # recomputed chunks; at every chunk it would cost a fifth of the time


class CachedVectors:
    """Vectors of n texts; make a loss of them, call its `backward()`, then this one's.

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
            embed: texts -> their vectors, through parameters whose `.grad` is added to.
            tokens: n texts.
            chunks: places of the texts that go through `embed` together.
            recompute: so many of the first chunks keep no graph. The last ones are held, because their graphs are freed
                before the first recomputation starts.
            device: of the vectors; its random state is replayed beside the CPU's.
            dimension: D.
        """
        self._embed, self._tokens, self._chunks, self._device = embed, tokens, chunks, device
        self._states: list[tuple[Tensor, Tensor | None]] = []
        self._held: list[Tensor] = []
        self.vectors = torch.empty(0, dimension, device=device)  # what a process without texts has
        for number, places in enumerate(chunks):
            if number < recompute:
                self._states.append(random_state(device))
                self._trim(number)
            with torch.set_grad_enabled(number >= recompute):
                part = embed(tokens.select(places))
            if number == 0:
                self.vectors = part.new_empty(len(tokens), dimension)
            # One tensor from the start: many small ones between the large ones of the passes would scatter the memory.
            self.vectors[places.to(device)] = part.detach()
            if number >= recompute:
                self._held.append(part)
        self.vectors.requires_grad_()

    def backward(self) -> None:
        """Add the gradient of the loss to the `.grad` of the parameters; the vectors are gone afterwards."""
        gradient = self.vectors.grad
        if gradient is None:
            raise RuntimeError("call backward() of a loss of these vectors first")
        del self.vectors
        for places in reversed(self._chunks[len(self._states) :]):
            torch.autograd.backward(self._held.pop(), gradient[places.to(self._device)])
        for number, (places, state) in enumerate(zip(self._chunks, self._states, strict=False)):
            self._trim(number)
            with replay(state, self._device), torch.enable_grad():
                torch.autograd.backward(self._embed(self._tokens.select(places)), gradient[places.to(self._device)])

    def _trim(self, number: int) -> None:
        """Chunks differ in size, so what one leaves is rarely what the next can use."""
        if self._device.type == "cpu" and number % TRIM_EVERY == TRIM_EVERY - 1:
            give_memory_back()
