"""Learn the scores of a teacher: how far the scores of a query's own passages are from the teacher's.

A new distance is a function below and an entry of `DISTANCES`.

Dimensions: P passages, b pairs of a tile. Scores are cosines divided by the temperature.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def kl(scores: Tensor, teacher: Tensor, own: Tensor, labels: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the two distributions over the query's own passages: sum p * log(p / q).

    Args:
        scores: [b, P] of the model.
        teacher: [P] of the teacher, finite.
        own: [b, P] True for the passages that are compared.
        labels: [b] the positive of each pair; not used.

    Returns:
        [b], 0 or more.
    """
    # A pair with nothing to compare is compared over all passages: its numbers stay finite, and they do not count.
    others = ~own & compared(own)[:, None]
    target = teacher.expand_as(scores).masked_fill(others, float("-inf")).log_softmax(1)
    found = scores.masked_fill(others, float("-inf")).log_softmax(1)
    return (target.exp() * (target - found).masked_fill(others, 0.0)).sum(1)


def margin_mse(scores: Tensor, teacher: Tensor, own: Tensor, labels: Tensor) -> Tensor:
    """Mean square of the difference between the two margins, positive minus negative (arXiv 2010.02666).

    Args:
        scores: [b, P] of the model.
        teacher: [P] of the teacher, finite.
        own: [b, P] True for the passages that are compared.
        labels: [b] the positive of each pair.

    Returns:
        [b], 0 or more.
    """
    wanted = teacher[labels][:, None] - teacher
    found = scores.gather(1, labels[:, None]) - scores
    negatives = own.scatter(1, labels[:, None], False)
    return ((found - wanted).square() * negatives).sum(1) / negatives.sum(1).clamp(min=1)


DISTANCES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {"kl": kl, "margin_mse": margin_mse}


def distance(
    name: str, scores: Tensor, teacher: Tensor, own: Tensor, labels: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Distance between the scores of a query's own passages and those of a teacher.

    Args:
        name: a key of `DISTANCES`.
        scores: [b, P] of the model: cosines divided by the temperature.
        teacher: [P] of the teacher for the query that each passage came with; NaN for a passage without a score.
        own: [b, P] True for a passage that came with the query.
        labels: [b] the positive of each pair.
        temperature: the teacher's scores are divided by it.

    Returns:
        The distances [b], and whether each of them counts [b]: it does when the positive and at least one more passage
        have a score.
    """
    own = own & ~teacher.isnan()
    own &= own.gather(1, labels[:, None])  # without a score of the positive there is nothing to compare with
    return DISTANCES[name](scores, teacher.nan_to_num().to(scores) / temperature, own, labels), compared(own)


def compared(own: Tensor) -> Tensor:
    """[b] whether a pair has two passages or more to compare."""
    return own.sum(1) > 1
