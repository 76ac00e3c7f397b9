"""Model and loss as one module, so that a distributed wrapper sees one forward a step."""

from __future__ import annotations

from torch import Tensor, nn

from embedrag.encoder import Encoder
from embedrag.losses import info_nce
from embedrag.sampling import Batch


class ContrastiveStep(nn.Module):
    """Encoder + InfoNCE: a `Batch` goes in, the loss of each query comes out."""

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

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Loss [B] and whether the positive scored best [B]."""
        embeddings = self.encoder(batch.tokens)
        loss, correct = info_nce(
            embeddings[batch.query_index],
            embeddings[batch.passage_index],
            batch.labels,
            batch.excluded,
            self.temperature,
            shared=batch.hard if self.candidates == "hard" else None,
        )
        return {"loss": loss, "correct": correct}
