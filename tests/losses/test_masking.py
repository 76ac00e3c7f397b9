"""What is left out of the softmax, and which negatives count more."""

from __future__ import annotations

import pytest
import torch

from embedrag.losses.contrastive import LossSettings
from embedrag.losses.masking import passages_for_positive, queries_for_positive, queries_for_query
from embedrag.losses.pairs import Pairs
from tests.losses.cases import NONE, both, embeddings, plain
from tests.reference import info_nce_loop


def test_leaving_out_an_exclusion_changes_the_loss() -> None:
    q, p = embeddings(3, 6)
    labels = torch.tensor([0, 2, 4])
    with_mask, _ = plain(q, p, labels, torch.tensor([[0, 1]]), 0.05)
    without, _ = plain(q, p, labels, NONE, 0.05)
    assert with_mask[0] < without[0]
    assert torch.equal(with_mask[1:], without[1:])


def test_narrow_candidates_are_the_own_positive_and_all_hard_negatives() -> None:
    q, p = embeddings(3, 6)
    labels = torch.tensor([0, 2, 4])
    others = {(i, j) for i in range(3) for j in (0, 2, 4)}
    loss, _ = plain(q, p, labels, NONE, 0.05, "hard")
    torch.testing.assert_close(loss, info_nce_loop(q, p, labels.tolist(), others, 0.05))


@pytest.mark.parametrize("margin", [-0.2, 0.0, 0.3])
def test_guide_decides_what_is_not_a_negative(margin: float) -> None:
    settings = LossSettings(0.1, false_negative_margin=margin)
    ours, slow = both(settings, guide=True)
    torch.testing.assert_close(ours, slow, rtol=1e-10, atol=1e-12)
    unguided, _ = both(settings)
    assert not torch.allclose(ours[0], unguided[0])


def test_queries_with_a_common_positive_are_not_negatives_of_each_other() -> None:
    """Pair 0 excludes passage 2, the positive of query 1: query 1 has an answer of query 0."""
    pairs = Pairs(torch.tensor([0, 2, 4]), torch.tensor([[0, 2]]), torch.arange(6) // 2)
    whole = slice(0, 3)
    own = torch.eye(3, dtype=torch.bool)
    related = torch.tensor([[False, True, False], [True, False, False], [False, False, False]])
    assert torch.equal(queries_for_query(pairs, whole, 3), own | related)
    assert torch.equal(queries_for_positive(pairs, whole, 3), related)
    assert torch.equal(queries_for_positive(pairs, slice(1, 2), 3), related[1:2])
    assert passages_for_positive(pairs, whole, 6).int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 1],
    ]
