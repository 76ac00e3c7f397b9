"""Which passages of a batch belong to which query.

Dimensions: B queries, L pairs of a query and one of its positives (L = B unless queries have several), P passages,
b pairs of a tile, E exclusions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Pairs of a query and one of its positives, and what the other passages are to them.

    Attributes:
        labels: [L] the passage that is each pair's positive.
        excluded: [E, 2] (pair, passage): the passage is not a candidate of the pair.
        owner: [P] the query that each passage came with.
        teacher: [P] a teacher's score of each passage for that query, NaN for a passage without one; None: no scores.
        guide: normalised vectors of a frozen model for the queries [B, d] and the passages [P, d]. Their cosines decide
            what is a false negative. None: the cosines of the trained model decide.
        query: [L] the query of each pair; None: query i has pair i and no other.
    """

    labels: Tensor
    excluded: Tensor
    owner: Tensor
    teacher: Tensor | None = None
    guide: tuple[Tensor, Tensor] | None = None
    query: Tensor | None = None

    @cached_property
    def queries(self) -> Tensor:
        """[L] the query of each pair."""
        return self._numbers if self.query is None else self.query

    @cached_property
    def pair_of(self) -> Tensor:
        """[P] the pair that each passage is the positive of; -1 for a passage that is not a positive."""
        pair_of = torch.full_like(self.owner, -1)
        pair_of[self.labels] = self._numbers
        return pair_of

    def excluded_in(self, here: slice) -> tuple[Tensor, Tensor]:
        """The exclusions of some pairs, as two index tensors: row of the tile [e], passage [e].

        Args:
            here: the pairs of the tile, with start and stop.
        """
        pair, passage = self.excluded.unbind(1)
        mine = (pair >= here.start) & (pair < here.stop)
        return pair[mine] - here.start, passage[mine]

    def own_passages(self, here: slice) -> Tensor:
        """[b, P] True for a passage that came with the query of the pair."""
        return self.owner[None] == self.queries[here][:, None]

    @cached_property
    def _numbers(self) -> Tensor:
        return torch.arange(len(self.labels), device=self.owner.device)
