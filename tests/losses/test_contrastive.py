"""The contrastive loss against loops and against sentence-transformers, in value and gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from embedrag.errors import UserError
from embedrag.losses.contrastive import LossSettings, contrastive, info_nce
from embedrag.losses.pairs import Pairs
from embedrag.losses.tiled import TILE_SCORES
from tests.losses.cases import NONE, SETTINGS, both, embeddings, plain
from tests.reference import info_nce_loop


@pytest.mark.parametrize(("queries", "passages"), [(1, 3), (2, 2), (3, 8), (5, 11)])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_loss_and_gradient_equal_a_double_loop(queries: int, passages: int, temperature: float) -> None:
    q, p = embeddings(queries, passages)
    labels = torch.arange(queries) * (passages // queries)
    pairs = {(0, passages - 1)} | ({(queries - 1, 0)} if queries > 1 else set())
    loss, _ = plain(q, p, labels, torch.tensor(sorted(pairs)), temperature)
    loss.sum().backward()
    gradients = q.grad.clone(), p.grad.clone()
    q.grad = p.grad = None
    expected = info_nce_loop(q, p, labels.tolist(), pairs, temperature)
    expected.sum().backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, (q.grad, p.grad), rtol=1e-10, atol=1e-12)


def test_info_nce_equals_multiple_negatives_ranking_loss_on_the_same_batch(minilm: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = SentenceTransformer(minilm, device="cpu").eval()
    columns = [["what is lora", "capital of france"], ["low-rank adapters", "Paris is it"], ["a radio", "Rome is not"]]
    features = [model.preprocess(column) for column in columns]
    with torch.no_grad():
        theirs = MultipleNegativesRankingLoss(model, scale=50.0)(features, None)
        q, pos, neg = (model(dict(feature))["sentence_embedding"] for feature in features)
    ours = info_nce(q, torch.cat([pos, neg]), temperature=1 / 50)
    assert abs(ours.mean().item() - theirs.item()) < 1e-6
    wrong = info_nce(q, torch.cat([pos, neg]), temperature=1 / 50, labels=torch.tensor([2, 3]))
    assert abs(wrong.mean().item() - theirs.item()) > 1e-2


def test_info_nce_has_the_value_and_the_gradient_of_the_plain_formula() -> None:
    q, p = embeddings(4, 9)
    labels = torch.tensor([8, 1, 1, 3])
    losses = info_nce(q, p, 0.1, labels)
    losses.mean().backward()
    found, q.grad, p.grad = (q.grad, p.grad), None, None
    scores = torch.nn.functional.normalize(q, dim=1) @ torch.nn.functional.normalize(p, dim=1).T / 0.1
    expected = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    expected.mean().backward()
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, (q.grad, p.grad), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 0.0}, "`temperature=0.0`"),
        ({"passages": torch.ones(1, 7)}, "2 queries need as many positives"),
        ({"passages": torch.ones(3, 6)}, r"\[2, 7\] and \[3, 6\]"),
        ({"queries": torch.ones(7)}, "`queries`"),
        ({"labels": torch.tensor([0])}, r"`labels`: must be \[2\]"),
        ({"labels": torch.tensor([0, 3])}, "`labels`: .* from 0 to 2"),
    ],
)
def test_arguments_of_info_nce_that_do_not_fit_are_named(change: dict[str, Any], words: str) -> None:
    right = {"queries": torch.ones(2, 7), "passages": torch.ones(3, 7)}
    info_nce(**right)
    with pytest.raises(UserError, match=words):
        info_nce(**right | change)


def test_accuracy_counts_queries_whose_positive_scores_best() -> None:
    q = torch.eye(3)
    _, correct = plain(q, q[[0, 2, 1]], torch.tensor([0, 1, 2]), NONE, 0.1)
    assert correct.tolist() == [True, False, False]


def test_half_precision_embeddings_give_a_float32_loss() -> None:
    q, p = embeddings(2, 4, torch.float32)
    loss, _ = plain(q.bfloat16(), p.bfloat16(), torch.tensor([0, 2]), NONE, 0.02)
    assert loss.dtype == torch.float32


def test_query_with_only_its_positive_as_candidate_has_loss_zero() -> None:
    q, p = embeddings(1, 1)
    loss, correct = plain(q, p, torch.tensor([0]), NONE, 0.02)
    assert loss.item() == 0
    assert bool(correct)


@pytest.mark.parametrize("scores", [1, 20, 10_000])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_setting_equals_the_loops_in_value_and_gradient(
    settings, scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TILE_SCORES, "cpu", scores)
    ours, slow = both(settings)
    torch.testing.assert_close(ours, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_queries_of_one_process_have_the_loss_they_have_among_all(settings) -> None:
    ours, slow = both(settings, rows=slice(1, 4))
    torch.testing.assert_close(ours, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("settings", SETTINGS[1:], ids=str)
def test_every_setting_changes_the_loss(settings) -> None:
    without, _ = both(SETTINGS[0])
    ours, _ = both(settings)
    assert not torch.allclose(ours[0], without[0])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            {"directions": ("query_passage", "passage_query"), "partition_mode": "separate"},
            {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
        ),
        (
            {"directions": ("query_passage", "query_query", "passage_query", "passage_passage")},
            {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")},
        ),
        ({"hardness_mode": "own"}, {"hardness_mode": "hard_negatives"}),
        ({"hardness_mode": "in_batch"}, {"hardness_mode": "in_batch_negatives"}),
        ({"hardness_mode": "all"}, {"hardness_mode": "all_negatives"}),
    ],
)
def test_directions_and_hardness_are_those_of_sentence_transformers(ours, theirs, minilm: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    if "hardness_mode" in ours:
        ours, theirs = ours | {"hardness_strength": 5.0}, theirs | {"hardness_strength": 5.0}
    columns = [torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    loss = MultipleNegativesRankingLoss(SentenceTransformer(minilm, device="cpu"), scale=20.0, **theirs)
    expected = loss.compute_loss_from_embeddings(columns, None)
    passages = torch.stack(columns[1:], 1).flatten(0, 1)
    pairs = Pairs(torch.arange(0, 8, 2), NONE, torch.arange(8) // 2)
    found, _ = contrastive(columns[0], passages, pairs, LossSettings(1 / 20, **ours))
    torch.testing.assert_close(found.mean(), expected, rtol=1e-9, atol=1e-9)
    without, _ = contrastive(columns[0], passages, pairs, LossSettings(1 / 20))
    assert abs(float(without.mean() - expected)) > 1e-6
