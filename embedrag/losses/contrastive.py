"""Contrastive losses on embeddings, in tiles: InfoNCE and what the best recipes add to it.

All of them are functions of cosines. A tile of cosines (some queries, all their candidates) is computed, a plain
function in PyTorch makes a loss a query of it, and its gradient goes back to the vectors; then the tile is forgotten.
So memory is that of one tile whatever the batch, and a new loss is a few lines on a matrix of cosines.

Dimensions: B queries, L pairs of a query and one of its positives (B, unless queries have several), P passages,
D components, b pairs of a tile, E exclusions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TILE_SCORES = {"cpu": 1 << 20, "cuda": 1 << 24}  # larger ones leave the caches of a CPU; a GPU wants few launches
ROWS = 1024
DIRECTIONS = ("query_passage", "passage_query", "query_query", "passage_passage")


@dataclass(frozen=True)
class LossSettings:
    """What is scored against what, and how it becomes a loss.

    Attributes:
        temperature: cosines are divided by it, above 0.
        candidates: `all` passages of the batch, or `hard`: the own positive and the negatives of all queries.
        directions: of `DIRECTIONS`, `query_passage` among them. `passage_query`: the positive against all queries;
            `query_query`: the query against the other queries; `passage_passage`: the positive against the passages of
            other queries. All in one softmax (GTE, arXiv 2308.03281).
        separate: a softmax for each direction, and the mean of their losses; for `passage_query` only.
        hardness: a, the logit of a negative grows by a * its cosine, which is not differentiated (arXiv 2503.04812).
        hardness_of: the negatives it counts for: `all`, a query's `own`, or those `in_batch` of other queries.
        false_negative_margin: a passage that scores more than this above the positive is no negative; None: all are.
        distillation: between the scores (cosine / temperature) of a query's own candidates and those of a teacher: `kl`
            of their distributions, or `margin_mse`, the mean square of the differences of margins (arXiv 2010.02666).
        distillation_weight: w, the loss is (1 - w) * InfoNCE + w * distillation.
        teacher_temperature: a teacher's scores are divided by it (`kl`).
    """

    temperature: float = 0.02
    candidates: str = "all"
    directions: tuple[str, ...] = ("query_passage",)
    separate: bool = False
    hardness: float = 0.0
    hardness_of: str = "all"
    false_negative_margin: float | None = None
    distillation: str | None = None
    distillation_weight: float = 0.5
    teacher_temperature: float = 1.0


@dataclass(frozen=True)
class Pairs:
    """Which passages belong to which query.

    Attributes:
        labels: [L] column of each pair's positive.
        excluded: [E, 2] (pair, passage) that are no candidates.
        owner: [P] the query that a passage came with.
        teacher: [P] a teacher's score of the passage for that query; NaN: none.
        guide: queries [B, d] and passages [P, d] of a frozen model, whose cosines tell what is no negative; left out:
            the model that is trained.
        query: [L] the query of each pair; left out: query i has pair i alone.
    """

    labels: Tensor
    excluded: Tensor
    owner: Tensor
    teacher: Tensor | None = None
    guide: tuple[Tensor, Tensor] | None = None
    query: Tensor | None = None

    def queries(self, here: slice) -> Tensor | slice:
        """The queries of some pairs."""
        return here if self.query is None else self.query[here]


def contrastive(
    query_embeddings: Tensor, passage_embeddings: Tensor, pairs: Pairs, terms: LossSettings, rows: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """InfoNCE: each query should score its positive above every other candidate (arXiv 1807.03748, 2004.04906).

    loss_i = -log( exp(s(i, label_i) / t) / sum_{j in candidates(i)} exp(s(i, j) / t) ), s = cosine, in float32, and
    what `Terms` adds. Without exclusions this is sentence-transformers' MultipleNegativesRankingLoss with
    scale = 1 / t. Cost: 8 * B * P * D operations; the scores exist in tiles of `TILE_SCORES`.

    Args:
        query_embeddings: [B, D].
        passage_embeddings: [P, D].
        pairs: what belongs together.
        terms: what counts.
        rows: pairs whose loss is asked for; those of other processes are candidates only.

    Returns:
        The loss of each pair of `rows`, and whether its positive scored best among the passages.

    >>> q = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> pairs = Pairs(torch.tensor([0, 1]), torch.empty(0, 2, dtype=torch.long), torch.tensor([0, 1]))
    >>> loss, correct = contrastive(q, q, pairs, Terms(temperature=1.0))
    >>> round(loss.mean().item(), 4), correct.tolist()
    (0.3133, [True, True])
    """
    start, stop, _ = rows.indices(len(pairs.labels))
    loss, correct = _Tiled.apply(  # type: ignore[no-untyped-call]
        _float(query_embeddings), _float(passage_embeddings), _Loss(pairs, terms), start, stop
    )
    return loss, correct


class _Loss:
    """From the cosines of some pairs to their losses; everything here is plain, differentiable PyTorch."""

    def __init__(self, pairs: Pairs, terms: LossSettings) -> None:
        self.pairs, self.terms = pairs, terms
        numbers = torch.arange(len(pairs.labels), device=pairs.owner.device)
        self.query = numbers if pairs.query is None else pairs.query
        self.pair_of = torch.full_like(pairs.owner, -1)  # [P] the pair whose positive a passage is
        self.pair_of[pairs.labels] = numbers

    def __call__(self, cosines: list[Tensor], start: int) -> tuple[Tensor, Tensor]:
        """Loss [b] and whether the positive scored best [b].

        Args:
            cosines: a matrix for each of `Terms.directions`, [b, P] or [b, B].
            start: number of the first pair.
        """
        terms, here = self.terms, slice(start, start + len(cosines[0]))
        queries, labels = self.query[here], self.pairs.labels[here]
        by_direction = dict(zip(terms.directions, cosines, strict=True))
        closed = self._closed(by_direction["query_passage"], here)
        scores = by_direction["query_passage"] / terms.temperature
        own = scores.gather(1, labels[:, None])[:, 0]
        candidates = scores.masked_fill(closed, float("-inf"))
        logits = {"query_passage": candidates}
        if terms.hardness:
            logits["query_passage"] = candidates + self._hardness(by_direction["query_passage"], queries, labels)
        for direction in terms.directions[1:]:
            other = by_direction[direction] / terms.temperature
            logits[direction] = other.masked_fill(self._closed_further(direction, here, other.shape[1]), float("-inf"))
        if terms.separate:
            normaliser = sum(part.logsumexp(1) for part in logits.values()) / len(logits)
        elif len(logits) == 1:
            normaliser = logits["query_passage"].logsumexp(1)
        else:
            normaliser = torch.cat(list(logits.values()), 1).logsumexp(1)
        loss = normaliser - own
        if terms.distillation:
            distance, known = self._distance(scores, queries, labels)
            weight = terms.distillation_weight * known.to(loss)
            loss = (1 - weight) * loss + weight * distance
        return loss, candidates.argmax(1) == labels

    def _closed(self, cosines: Tensor, here: slice) -> Tensor:
        """[b, P] True where a passage is no candidate of a pair."""
        closed = torch.zeros_like(cosines, dtype=torch.bool)
        queries, labels = self.query[here], self.pairs.labels[here]
        if self.terms.candidates == "hard":
            closed |= self.pair_of >= 0
        if self.terms.false_negative_margin is not None:
            seen = cosines.detach()
            if self.pairs.guide:
                seen = self.pairs.guide[0][queries] @ self.pairs.guide[1].T
            closed |= seen > seen.gather(1, labels[:, None]) + self.terms.false_negative_margin
        pair, passage = self._excluded(here)
        closed[pair, passage] = True
        closed[torch.arange(len(labels), device=closed.device), labels] = False
        return closed

    def _excluded(self, here: slice) -> tuple[Tensor, Tensor]:
        """Exclusions of some pairs, as places in a tile."""
        pair, passage = self.pairs.excluded.unbind(1)
        mine = (pair >= here.start) & (pair < here.stop)
        return pair[mine] - here.start, passage[mine]

    def _closed_further(self, direction: str, here: slice, columns: int) -> Tensor:
        """[b, columns] True where a column of another direction is no negative.

        Two queries one of which has the other's positive among its own are not each other's negatives, and a positive
        is none of a query that it answers too.
        """
        pairs, queries = self.pairs, self.query[here]
        pair, passage = self._excluded(here)
        if direction == "passage_passage":
            closed = pairs.owner[None] == queries[:, None]
            closed[pair, passage] = True
            return closed
        closed = torch.zeros(len(queries), columns, dtype=torch.bool, device=queries.device)
        # Queries that have a positive which is a labelled one of the pair's query, and the other way round.
        is_label = self.pair_of[passage] >= 0
        closed[pair[is_label], pairs.owner[passage[is_label]]] = True
        other, of_column = pairs.excluded[:, 0], self.pair_of[pairs.excluded[:, 1]]
        mine = (of_column >= here.start) & (of_column < here.stop)
        closed[of_column[mine] - here.start, self.query[other[mine]]] = True
        closed[torch.arange(len(queries), device=queries.device), queries] = direction == "query_query"
        return closed

    def _hardness(self, cosines: Tensor, queries: Tensor, labels: Tensor) -> Tensor:
        """[b, P] what is added to logits."""
        own = self.pairs.owner[None] == queries[:, None]
        counts = {"all": torch.ones_like(own), "own": own, "in_batch": ~own}[self.terms.hardness_of].clone()
        counts[torch.arange(len(queries), device=own.device), labels] = False
        return self.terms.hardness * cosines.detach() * counts

    def _distance(self, scores: Tensor, queries: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """[b] how far the scores of the query's own passages are from the teacher's, and [b] whether it has any."""
        teacher = torch.full_like(scores[0], float("nan")) if self.pairs.teacher is None else self.pairs.teacher
        own = (self.pairs.owner[None] == queries[:, None]) & ~teacher.isnan()
        own &= own.gather(1, labels[:, None])  # without the positive's score there is nothing to compare with
        known = own.sum(1) > 1
        teacher = teacher.nan_to_num().to(scores) / self.terms.teacher_temperature
        if self.terms.distillation == "margin_mse":
            wanted = teacher[labels][:, None] - teacher
            found = scores.gather(1, labels[:, None]) - scores
            negatives = own.scatter(1, labels[:, None], False)
            return ((found - wanted).square() * negatives).sum(1) / negatives.sum(1).clamp(min=1), known
        others = ~own & known[:, None]  # a query without a teacher keeps finite numbers; they count for nothing
        target = teacher.expand_as(scores).masked_fill(others, float("-inf")).log_softmax(1)
        found = scores.masked_fill(others, float("-inf")).log_softmax(1)
        return (target.exp() * (target - found).masked_fill(others, 0.0)).sum(1), known


class _Tiled(torch.autograd.Function):
    """Cosines are computed for some queries at a time, once for the value and once more for the gradient.

    So memory is that of one tile, whatever B and P, for 8 instead of 6 * B * P * D operations (Inf-CL, arXiv
    2410.17243, tiles both sides; a row of scores is small enough to be whole). Vectors are not normalised as a whole
    either, their scores are: copies of the vectors would be the larger part of the memory.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, passages: Tensor, loss: _Loss, start: int, stop: int
    ) -> tuple[Tensor, Tensor]:
        sides = _Side(queries), _Side(passages)
        # Results have their place from the start: small ones left between large ones would scatter the memory.
        losses = queries.new_empty(stop - start)
        correct = torch.empty(stop - start, dtype=torch.bool, device=queries.device)
        for here in _tiles(start, stop, passages):
            tile = slice(here.start - start, here.stop - start)
            losses[tile], correct[tile] = loss([block.cosines() for block in _blocks(loss, sides, here)], here.start)
        ctx.save_for_backward(queries, passages)
        ctx.loss, ctx.bounds = loss, (start, stop)
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        start, stop = ctx.bounds
        sides = tuple(_Side(vectors, torch.zeros_like(vectors)) for vectors in ctx.saved_tensors)
        for here in _tiles(start, stop, sides[1].vectors):
            blocks = _blocks(ctx.loss, sides, here)
            cosines = [block.cosines().requires_grad_() for block in blocks]
            with torch.enable_grad():
                losses, _ = ctx.loss(cosines, here.start)
            of_losses = gradients[0][here.start - start : here.stop - start]
            of_cosines = torch.autograd.grad(losses, cosines, of_losses, allow_unused=True)
            for block, gradient in zip(blocks, of_cosines, strict=True):
                if gradient is not None:
                    block.backward(gradient)
        for side in sides:
            side.remove_radial()
        return sides[0].gradient, sides[1].gradient, None, None, None


class _Side:
    """Vectors [n, D], 1 / their lengths [n], and the sum of their gradients."""

    def __init__(self, vectors: Tensor, gradient: Tensor | None = None) -> None:
        self.vectors = vectors
        self.inverse_norms: Tensor = vectors.norm(dim=1).clamp(min=1e-12).reciprocal()
        self.gradient = torch.empty(0) if gradient is None else gradient

    def remove_radial(self) -> None:
        """Take out of the gradient, in place, what would lengthen the vectors: a cosine does not depend on that."""
        for start in range(0, len(self.vectors), ROWS):
            here = slice(start, start + ROWS)
            along = (self.gradient[here] * self.vectors[here]).sum(1) * self.inverse_norms[here].square()
            self.gradient[here].addcmul_(self.vectors[here], along[:, None], value=-1)


@dataclass(frozen=True)
class _Block:
    """Cosines between some vectors of one side and all of another."""

    rows: _Side
    places: slice | Tensor
    columns: _Side

    def cosines(self) -> Tensor:
        """[b, n]."""
        products = self.rows.vectors[self.places] @ self.columns.vectors.T
        return products.mul_(self.rows.inverse_norms[self.places][:, None]).mul_(self.columns.inverse_norms)

    def backward(self, gradient: Tensor) -> None:
        """Add what the gradient [b, n] of the cosines is for the vectors, but for its radial part."""
        gradient = gradient * self.rows.inverse_norms[self.places][:, None] * self.columns.inverse_norms
        of_rows = gradient @ self.columns.vectors
        self.columns.gradient.addmm_(gradient.T, self.rows.vectors[self.places])
        if isinstance(self.places, slice):
            self.rows.gradient[self.places] += of_rows
        else:
            self.rows.gradient.index_add_(0, self.places, of_rows)


def _blocks(loss: _Loss, sides: tuple[_Side, ...], here: slice) -> list[_Block]:
    """The matrices of cosines that the directions need, for the pairs of a tile."""
    queries, passages = sides
    rows, labels = loss.pairs.queries(here), loss.pairs.labels[here]
    made = {
        "query_passage": _Block(queries, rows, passages),
        "query_query": _Block(queries, rows, queries),
        "passage_query": _Block(passages, labels, queries),
        "passage_passage": _Block(passages, labels, passages),
    }
    return [made[direction] for direction in loss.terms.directions]


def _tiles(start: int, stop: int, passages: Tensor) -> Iterator[slice]:
    rows = max(1, TILE_SCORES.get(passages.device.type, 1 << 20) // len(passages))
    return (slice(first, min(first + rows, stop)) for first in range(start, stop, rows))


def _float(embeddings: Tensor) -> Tensor:
    """At least float32; float64 stays."""
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
