"""Contrastive losses on embeddings: InfoNCE, and what the best recipes add to it.

All of them are functions of cosines. A tile of cosines (some pairs, all their candidates) is computed, the function
below makes losses of it, and the tile is forgotten (`embedrag.losses.tiled`). So a new loss is a few lines on a matrix
of cosines, and memory does not grow with the square of the batch.

Dimensions: B queries, L pairs of a query and one of its positives (L = B unless queries have several), P passages,
D dimensions, b pairs of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from embedrag.errors import UserError
from embedrag.losses import masking
from embedrag.losses.distillation import distance
from embedrag.losses.pairs import Pairs
from embedrag.losses.tiled import PASSAGES, QUERIES, Block, tiled


@dataclass(frozen=True)
class Direction:
    """Candidates that a pair is scored against, besides its query against the passages.

    Attributes:
        anchor: what is scored: QUERIES, the query of the pair, or PASSAGES, its positive.
        candidates: against all QUERIES or all PASSAGES of the batch.
        closed: (pairs, pairs of the tile, number of candidates n) -> [b, n] True for a candidate that is left out.
    """

    anchor: int
    candidates: int
    closed: Callable[[Pairs, slice, int], Tensor]


MAIN = "query_passage"  # the query against the passages: InfoNCE itself
FURTHER = {
    "passage_query": Direction(PASSAGES, QUERIES, masking.queries_for_positive),
    "query_query": Direction(QUERIES, QUERIES, masking.queries_for_query),
    "passage_passage": Direction(PASSAGES, PASSAGES, masking.passages_for_positive),
}
DIRECTIONS = (MAIN, *FURTHER)


def _joint(logits: list[Tensor]) -> Tensor:
    """[b] log of the denominator of one softmax over the candidates of all directions."""
    return (logits[0] if len(logits) == 1 else torch.cat(logits, 1)).logsumexp(1)


def _separate(logits: list[Tensor]) -> Tensor:
    """[b] mean over the directions of the log of the denominator of each one's softmax."""
    return torch.as_tensor(sum(part.logsumexp(1) for part in logits)) / len(logits)


PARTITION_MODES: dict[str, Callable[[list[Tensor]], Tensor]] = {"joint": _joint, "separate": _separate}


@dataclass(frozen=True)
class LossSettings:
    """What is scored against what, and how the scores become a loss.

    Attributes:
        temperature: cosines are divided by it; above 0.
        candidates: passages that a query is scored against: `all` of the batch, or `hard`: its own positive and the
            hard negatives of all queries.
        directions: keys of `DIRECTIONS`, with `query_passage`. `passage_query`: the positive against all queries too;
            `query_query`: the query against the other queries; `passage_passage`: the positive against the passages of
            other queries (GTE, arXiv 2308.03281).
        partition_mode: `joint`, one softmax over all directions; or `separate`, a softmax for each direction and the
            mean of their losses (for `query_passage` with `passage_query`).
        hardness_strength: a; a * cosine is added to the logit of a negative and is not differentiated (arXiv
            2503.04812).
        hardness_mode: the negatives that this counts for: `all`, the query's `own`, or those `in_batch`, of other
            queries.
        false_negative_margin: a passage is not a negative if its cosine is above the positive's by more than this;
            None: no such limit.
        distillation: a key of `embedrag.losses.distillation.DISTANCES`: learn the scores of a teacher too.
        distillation_weight: w; the loss is (1 - w) * InfoNCE + w * distillation.
        teacher_temperature: the teacher's scores are divided by it.
    """

    temperature: float = 0.02
    candidates: str = "all"
    directions: tuple[str, ...] = (MAIN,)
    partition_mode: str = "joint"
    hardness_strength: float = 0.0
    hardness_mode: str = "all"
    false_negative_margin: float | None = None
    distillation: str | None = None
    distillation_weight: float = 0.5
    teacher_temperature: float = 1.0


def contrastive(
    query_embeddings: Tensor,
    passage_embeddings: Tensor,
    pairs: Pairs,
    settings: LossSettings,
    rows: slice = slice(None),
) -> tuple[Tensor, Tensor]:
    """InfoNCE: each query should score its positive above every other candidate (arXiv 1807.03748, 2004.04906).

    loss_i = -log( exp(s(i, label_i) / t) / sum_{j in candidates(i)} exp(s(i, j) / t) ), s = cosine, in float32, and
    what `LossSettings` adds. Cost: 8 * B * P * D operations; the scores exist in tiles of `TILE_SCORES`.

    Args:
        query_embeddings: [B, D]; of any length.
        passage_embeddings: [P, D]; of any length.
        pairs: what belongs together.
        settings: what is scored against what.
        rows: the pairs that the loss is computed for. The others (of other processes) are only candidates.

    Returns:
        The loss of each pair of `rows`, and whether its positive scored best among the passages.

    >>> queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> pairs = Pairs(torch.tensor([0, 1]), torch.empty(0, 2, dtype=torch.long), torch.tensor([0, 1]))
    >>> loss, correct = contrastive(queries, queries, pairs, LossSettings(temperature=1.0))
    >>> round(loss.mean().item(), 4), correct.tolist()
    (0.3133, [True, True])
    """
    further = [name for name in settings.directions if name != MAIN]

    def blocks(here: slice) -> list[Block]:
        # If a slice is enough, it is used, because it takes a view of the queries and not a copy.
        anchors = here if pairs.query is None else pairs.query[here], pairs.labels[here]
        used = [FURTHER[name] for name in further]
        return [Block(QUERIES, anchors[QUERIES], PASSAGES)] + [
            Block(direction.anchor, anchors[direction.anchor], direction.candidates) for direction in used
        ]

    def loss(cosines: list[Tensor], here: slice) -> tuple[Tensor, Tensor]:
        return _losses(cosines[0], dict(zip(further, cosines[1:], strict=True)), pairs, settings, here)

    start, stop, _ = rows.indices(len(pairs.labels))
    return tiled(_float(query_embeddings), _float(passage_embeddings), slice(start, stop), blocks, loss)


def info_nce(
    queries: Tensor,
    passages: Tensor,
    temperature: float = 0.02,
    labels: Tensor | None = None,
    excluded: Tensor | None = None,
) -> Tensor:
    """InfoNCE for a training loop of your own: each query against all passages, one of which is its positive.

    The same as MultipleNegativesRankingLoss of sentence-transformers with scale = 1 / temperature, in the memory of one
    tile of scores. Every passage except the positive counts as a negative, unless `excluded` names it. For more than
    this see `contrastive`.

    Args:
        queries: [B, D]; of any length.
        passages: [P, D], P >= B: the positives first, then any number of hard negatives.
        temperature: cosines are divided by it.
        labels: [B] number of each query's positive among the passages; None: passage i is that of query i.
        excluded: [E, 2] pairs (query, passage) that are not negatives, such as copies of the positive; None: none.

    Returns:
        [B] losses, float32 (float64 if the vectors are float64).

    Raises:
        UserError: naming the argument that does not fit the others.

    Examples:
        >>> queries, passages = torch.eye(2, 4), torch.eye(3, 4)  # two positives and a hard negative
        >>> [round(loss, 4) for loss in info_nce(queries, passages, temperature=0.5).tolist()]
        [0.2395, 0.2395]
        >>> [round(loss, 4) for loss in info_nce(queries, passages, 0.5, labels=torch.tensor([2, 1])).tolist()]
        [2.2395, 0.2395]
    """
    if queries.ndim != 2 or passages.ndim != 2 or queries.shape[1] != passages.shape[1]:
        shapes = f"{list(queries.shape)} and {list(passages.shape)}"
        raise UserError(f"`queries` [B, D] and `passages` [P, D] must have the same D; they are {shapes}")
    if not temperature > 0:
        raise UserError("must be greater than 0", "temperature", temperature)
    if labels is None:
        if len(passages) < len(queries):
            raise UserError(
                f"{len(queries)} queries need as many positives, and there are {len(passages)} passages; give `labels`",
                "passages",
            )
        labels = torch.arange(len(queries), device=queries.device)
    elif labels.shape != (len(queries),) or bool(((labels < 0) | (labels >= len(passages))).any()):
        raise UserError(f"must be [{len(queries)}] numbers of passages, from 0 to {len(passages) - 1}", "labels")
    if excluded is None:
        excluded = torch.empty(0, 2, dtype=torch.long, device=queries.device)
    owner = torch.full((len(passages),), -1, device=queries.device)  # plain InfoNCE does not use it
    losses, _ = contrastive(queries, passages, Pairs(labels, excluded, owner), LossSettings(temperature))
    return losses


def _losses(
    cosines: Tensor, further: dict[str, Tensor], pairs: Pairs, settings: LossSettings, here: slice
) -> tuple[Tensor, Tensor]:
    """The losses of the pairs of a tile [b], and whether the positive scored best among the passages [b].

    Args:
        cosines: [b, P] of the queries with the passages.
        further: direction -> its cosines, [b, B] or [b, P].
        pairs: what belongs together.
        settings: what is scored against what.
        here: the pairs of the tile.
    """
    labels = pairs.labels[here]
    closed = masking.passages_for_query(
        cosines, pairs, here, settings.candidates == "hard", settings.false_negative_margin
    )
    scores = cosines / settings.temperature
    positive = scores.gather(1, labels[:, None])[:, 0]
    candidates = scores.masked_fill(closed, float("-inf"))
    logits = [candidates]
    if settings.hardness_strength:
        harder = masking.hardness(cosines, pairs, here, settings.hardness_strength, settings.hardness_mode)
        logits = [candidates + harder]
    for name, others in further.items():
        left_out = FURTHER[name].closed(pairs, here, others.shape[1])
        logits.append((others / settings.temperature).masked_fill(left_out, float("-inf")))
    loss = PARTITION_MODES[settings.partition_mode](logits) - positive
    if settings.distillation and pairs.teacher is not None:
        own, temperature = pairs.own_passages(here), settings.teacher_temperature
        far, known = distance(settings.distillation, scores, pairs.teacher, own, labels, temperature)
        weight = settings.distillation_weight * known.to(loss)
        loss = (1 - weight) * loss + weight * far
    return loss, candidates.argmax(1) == labels


def _float(embeddings: Tensor) -> Tensor:
    """At least float32; float64 stays."""
    return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
