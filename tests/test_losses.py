"""InfoNCE against a double loop and against sentence-transformers, value and gradient."""

from __future__ import annotations

import pytest
import torch

from embedrag.losses import info_nce
from tests.reference import info_nce_loop

NONE = torch.empty(0, 2, dtype=torch.long)


def embeddings(queries: int, passages: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(queries * 100 + passages)
    q, p = torch.randn(queries, 7, dtype=dtype), torch.randn(passages, 7, dtype=dtype)
    return q.requires_grad_(), p.requires_grad_()


@pytest.mark.parametrize(("queries", "passages"), [(1, 3), (2, 2), (3, 8), (5, 11)])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_loss_and_gradient_equal_a_double_loop(queries: int, passages: int, temperature: float) -> None:
    q, p = embeddings(queries, passages)
    labels = torch.arange(queries) * (passages // queries)
    pairs = {(0, passages - 1)} | ({(queries - 1, 0)} if queries > 1 else set())
    loss, _ = info_nce(q, p, labels, torch.tensor(sorted(pairs)), temperature)
    loss.sum().backward()
    gradients = q.grad.clone(), p.grad.clone()
    q.grad = p.grad = None
    expected = info_nce_loop(q, p, labels.tolist(), pairs, temperature)
    expected.sum().backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, (q.grad, p.grad), rtol=1e-10, atol=1e-12)


def test_leaving_out_an_exclusion_changes_the_loss() -> None:
    q, p = embeddings(3, 6)
    labels = torch.tensor([0, 2, 4])
    with_mask, _ = info_nce(q, p, labels, torch.tensor([[0, 1]]), 0.05)
    without, _ = info_nce(q, p, labels, NONE, 0.05)
    assert with_mask[0] < without[0]
    assert torch.equal(with_mask[1:], without[1:])


def test_narrow_candidates_are_the_own_positive_and_all_hard_negatives() -> None:
    q, p = embeddings(3, 6)
    labels, hard = torch.tensor([0, 2, 4]), torch.tensor([False, True] * 3)
    others = {(i, j) for i in range(3) for j in (0, 2, 4)}
    loss, _ = info_nce(q, p, labels, NONE, 0.05, shared=hard)
    torch.testing.assert_close(loss, info_nce_loop(q, p, labels.tolist(), others, 0.05))


def test_value_equals_multiple_negatives_ranking_loss_on_the_same_batch(minilm: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(minilm, device="cpu").eval()
    columns = [["what is lora", "capital of france"], ["low-rank adapters", "Paris is it"], ["a radio", "Rome is not"]]
    features = [model.preprocess(column) for column in columns]
    with torch.no_grad():
        theirs = MultipleNegativesRankingLoss(model, scale=50.0)(features, None)
        q, pos, neg = (model(dict(feature))["sentence_embedding"] for feature in features)
        passages = torch.stack([pos[0], neg[0], pos[1], neg[1]])
        ours, _ = info_nce(q, passages, torch.tensor([0, 2]), NONE, temperature=1 / 50)
    assert abs(ours.mean().item() - theirs.item()) < 1e-6
    wrong, _ = info_nce(q, passages, torch.tensor([1, 3]), NONE, temperature=1 / 50)
    assert abs(wrong.mean().item() - theirs.item()) > 1e-2


def test_accuracy_counts_queries_whose_positive_scores_best() -> None:
    q = torch.eye(3)
    _, correct = info_nce(q, q[[0, 2, 1]], torch.tensor([0, 1, 2]), NONE, 0.1)
    assert correct.tolist() == [True, False, False]


def test_half_precision_embeddings_give_a_float32_loss() -> None:
    q, p = embeddings(2, 4, torch.float32)
    loss, _ = info_nce(q.bfloat16(), p.bfloat16(), torch.tensor([0, 2]), NONE, 0.02)
    assert loss.dtype == torch.float32


def test_query_with_no_candidate_but_its_positive_has_loss_zero() -> None:
    q, p = embeddings(1, 1)
    loss, correct = info_nce(q, p, torch.tensor([0]), NONE, 0.02)
    assert loss.item() == 0
    assert bool(correct)


@pytest.mark.parametrize("scores", [1, 8, 20, 10_000])
def test_every_tile_size_gives_the_same_loss_and_gradient(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uneven tiles, exclusions in several of them, and an own positive that is excluded and closed for the others."""
    q, p = embeddings(5, 8)
    labels, hard = torch.tensor([0, 2, 3, 5, 7]), torch.tensor([False, True] * 4)
    pairs = {(0, 3), (1, 1), (4, 7), (4, 1)}
    closed = pairs | {(i, j) for i in range(5) for j in range(0, 8, 2)}
    expected = info_nce_loop(q, p, labels.tolist(), closed, 0.1)
    (expected * torch.arange(1, 6)).sum().backward()
    gradients = q.grad.clone(), p.grad.clone()
    q.grad = p.grad = None
    monkeypatch.setattr("embedrag.losses.TILE_SCORES", scores)
    loss, correct = info_nce(q, p, labels, torch.tensor(sorted(pairs)), 0.1, shared=hard)
    (loss * torch.arange(1, 6)).sum().backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((q.grad, p.grad), gradients, rtol=1e-10, atol=1e-12)
    assert correct.shape == (5,)


def test_scores_are_never_there_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedrag.losses.TILE_SCORES", 100)
    q, p = embeddings(40, 50)
    sizes: list[int] = []
    whole = torch.Tensor.logsumexp
    monkeypatch.setattr(torch.Tensor, "logsumexp", lambda self, dim: sizes.append(self.numel()) or whole(self, dim))
    info_nce(q, p, torch.arange(40), NONE, 0.1)[0].sum().backward()
    assert len(sizes) == 20 and max(sizes) <= 100
