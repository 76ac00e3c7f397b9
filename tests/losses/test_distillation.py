"""A teacher's scores as a second target."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from embedrag.losses.contrastive import LossSettings, contrastive
from embedrag.losses.distillation import DISTANCES, kl, margin_mse
from embedrag.losses.pairs import Pairs
from tests.losses.cases import EXCLUDED, LABELS, NONE, OWNER, TEACHER, embeddings


@given(scores=st.lists(st.floats(-20, 20), min_size=9, max_size=9), kind=st.sampled_from(sorted(DISTANCES)))
def test_teacher_that_says_what_the_student_says_leaves_nothing_to_learn(scores, kind) -> None:
    q, p = embeddings(5, 9)
    cosines = torch.nn.functional.normalize(q, dim=1) @ torch.nn.functional.normalize(p, dim=1).T
    agreed = cosines.detach()[OWNER, torch.arange(9)] / 0.1
    settings = LossSettings(0.1, distillation=kind, distillation_weight=1.0)
    has_negatives = torch.tensor([True, False, True, True, False])
    agreeing = contrastive(q, p, Pairs(LABELS, NONE, OWNER, agreed + 7), settings)[0]
    assert agreeing[has_negatives].abs().max() < 1e-9
    other = contrastive(q, p, Pairs(LABELS, NONE, OWNER, torch.tensor(scores).double()), settings)[0]
    assert (other > -1e-9).all()


def test_query_without_a_teacher_learns_only_from_its_label() -> None:
    q, p = embeddings(5, 9)
    alone = contrastive(q, p, Pairs(LABELS, EXCLUDED, OWNER), LossSettings(0.1))[0]
    for kind in DISTANCES:
        settings = LossSettings(0.1, distillation=kind, distillation_weight=1.0)
        loss = contrastive(q, p, Pairs(LABELS, EXCLUDED, OWNER, TEACHER), settings)[0]
        assert torch.equal(loss[[1, 2, 4]], alone[[1, 2, 4]])  # no negatives, no score of the positive, no negatives
        assert not torch.allclose(loss[[0, 3]], alone[[0, 3]]) or kind == "kl"


def test_batch_without_any_teacher_has_the_loss_of_its_labels() -> None:
    q, p = embeddings(5, 9)
    alone = contrastive(q, p, Pairs(LABELS, EXCLUDED, OWNER), LossSettings(0.1))[0]
    asked = contrastive(q, p, Pairs(LABELS, EXCLUDED, OWNER), LossSettings(0.1, distillation="kl"))[0]
    assert torch.equal(asked, alone)


def test_distances_are_those_of_their_papers() -> None:
    """Three passages, the first is the positive and the last belongs to another query."""
    scores, teacher = torch.tensor([[2.0, 1.0, 9.0]]), torch.tensor([5.0, 1.0, 7.0])
    own, labels = torch.tensor([[True, True, False]]), torch.tensor([0])
    expected = torch.nn.functional.kl_div(scores[0, :2].log_softmax(0), teacher[:2].softmax(0), reduction="sum")
    torch.testing.assert_close(kl(scores, teacher, own, labels), expected[None])
    torch.testing.assert_close(margin_mse(scores, teacher, own, labels), torch.tensor([9.0]))  # (1 - 4) ** 2
