"""Model and loss: what a batch adds to the gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from embedrag.encoder import Encoder
from embedrag.losses import info_nce
from embedrag.sampling import Batch


class ContrastiveStep(nn.Module):
    """Encoder + InfoNCE."""

    def __init__(self, encoder: Encoder, temperature: float, candidates: str = "all") -> None:
        """Put the parts together.

        Args:
            encoder: the model that is trained.
            temperature: the cosine is divided by it.
            candidates: `all` passages of the batch, or `hard`: the own positive and the batch's hard negatives.
        """
        super().__init__()
        self.encoder = encoder
        self.temperature = temperature
        self.candidates = candidates

    def loss(self, embeddings: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Loss [B] and whether the positive scored best [B], of the vectors [n, D] of a batch."""
        loss, correct = info_nce(
            embeddings[batch.query_index],
            embeddings[batch.passage_index],
            batch.labels,
            batch.excluded,
            self.temperature,
            shared=batch.hard if self.candidates == "hard" else None,
        )
        return {"loss": loss, "correct": correct}

    def backward(
        self, batch: Batch, weight: Tensor | float, backward: Callable[[Tensor], object] = torch.autograd.backward
    ) -> dict[str, Tensor]:
        """Add the gradient of sum(weight * loss) to the parameters, within the encoder's token budget.

        Args:
            batch: B queries, on the device.
            weight: of the losses, [B] or one for all.
            backward: of the weighted sum; a loss scaler's, for example.

        Returns:
            What `loss` says, without graphs.
        """
        cached = self.encoder.cached(batch.tokens)
        output = self.loss(cached.vectors, batch)
        backward((output["loss"] * weight).sum())
        output = {name: value.detach() for name, value in output.items()}  # lets go of the loss's graph
        cached.backward()
        return output
