"""The losses against loops and against sentence-transformers, value and gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedrag.losses.contrastive import TILE_SCORES, LossSettings, Pairs, contrastive
from embedrag.models.embedding_format import EmbeddingFormat, views
from tests.reference import contrastive_loop, info_nce_loop

NONE = torch.empty(0, 2, dtype=torch.long)


def info_nce(q, p, labels, excluded, temperature, candidates="all"):
    """The loss without additions; passages behind a positive are its query's own."""
    owner = torch.bucketize(torch.arange(len(p)), labels, right=True) - 1
    return contrastive(q, p, Pairs(labels, excluded, owner), LossSettings(temperature, candidates))


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
    labels = torch.tensor([0, 2, 4])
    others = {(i, j) for i in range(3) for j in (0, 2, 4)}
    loss, _ = info_nce(q, p, labels, NONE, 0.05, "hard")
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
    labels = torch.tensor([0, 2, 3, 5, 7])
    pairs = {(0, 3), (1, 1), (4, 7), (4, 1)}
    closed = pairs | {(i, j) for i in range(5) for j in labels.tolist()}
    expected = info_nce_loop(q, p, labels.tolist(), closed, 0.1)
    (expected * torch.arange(1, 6)).sum().backward()
    gradients = q.grad.clone(), p.grad.clone()
    q.grad = p.grad = None
    monkeypatch.setitem(TILE_SCORES, "cpu", scores)
    loss, correct = info_nce(q, p, labels, torch.tensor(sorted(pairs)), 0.1, "hard")
    (loss * torch.arange(1, 6)).sum().backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((q.grad, p.grad), gradients, rtol=1e-10, atol=1e-12)
    assert correct.shape == (5,)


def test_scores_are_never_there_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TILE_SCORES, "cpu", 100)
    q, p = embeddings(40, 50)
    sizes: list[int] = []
    whole = torch.Tensor.logsumexp
    monkeypatch.setattr(torch.Tensor, "logsumexp", lambda self, dim: sizes.append(self.numel()) or whole(self, dim))
    info_nce(q, p, torch.arange(40), NONE, 0.1)[0].sum().backward()
    assert len(sizes) == 2 * 20 and max(sizes) <= 100  # once for the value, once for the gradient


# Additions

OWNER = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 4])
LABELS = torch.tensor([0, 3, 4, 6, 8])
EXCLUDED = torch.tensor([[0, 4], [1, 2], [3, 8], [4, 6], [2, 5]])
TEACHER = torch.tensor([3.0, 1.0, -2.0, 5.0, math.nan, 0.5, 2.0, math.nan, 1.0])
TERMS = [
    LossSettings(0.1),
    LossSettings(0.1, directions=("query_passage", "passage_query")),
    LossSettings(0.1, directions=("query_passage", "passage_query"), separate=True),
    LossSettings(0.1, directions=("query_passage", "query_query", "passage_query", "passage_passage")),
    LossSettings(0.1, hardness=2.0),
    LossSettings(0.1, hardness=2.0, hardness_of="own"),
    LossSettings(0.1, hardness=2.0, hardness_of="in_batch", directions=("query_passage", "query_query")),
    LossSettings(0.1, false_negative_margin=0.0),
    LossSettings(0.1, false_negative_margin=-0.1, candidates="hard"),
    LossSettings(0.1, distillation="kl", distillation_weight=0.3),
    LossSettings(0.1, distillation="kl", distillation_weight=1.0, teacher_temperature=2.0),
    LossSettings(0.1, distillation="margin_mse", distillation_weight=0.5),
    LossSettings(0.1, distillation="margin_mse", hardness=1.0, directions=("query_passage", "passage_passage")),
]


def both(
    terms: LossSettings, guide: bool = False, rows: slice = slice(None)
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Loss and gradients of queries and passages: ours, and by loops."""
    found = []
    for loop in (False, True):
        q, p = embeddings(5, 9)
        frozen = tuple(torch.nn.functional.normalize(side.detach().flip(0), dim=1) for side in (q, p))
        pairs = Pairs(LABELS, EXCLUDED, OWNER, TEACHER.double(), frozen if guide else None)
        if loop:
            loss = contrastive_loop(q, p, pairs, terms, guide)[rows]
        else:
            loss = contrastive(q, p, pairs, terms, rows)[0]
        (loss * torch.arange(1, 6)[rows]).sum().backward()
        found.append([loss, q.grad, p.grad])
    return found[0], found[1]


@pytest.mark.parametrize("scores", [1, 20, 10_000])
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_every_term_equals_the_loops_in_value_and_gradient(terms, scores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TILE_SCORES, "cpu", scores)
    ours, slow = both(terms)
    torch.testing.assert_close(ours, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_queries_of_one_process_have_the_loss_they_have_among_all(terms) -> None:
    ours, slow = both(terms, rows=slice(1, 4))
    torch.testing.assert_close(ours, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("margin", [-0.2, 0.0, 0.3])
def test_guide_decides_what_is_no_negative(margin: float) -> None:
    terms = LossSettings(0.1, false_negative_margin=margin)
    ours, slow = both(terms, guide=True)
    torch.testing.assert_close(ours, slow, rtol=1e-10, atol=1e-12)
    unguided, _ = both(terms)
    assert not torch.allclose(ours[0], unguided[0])


@pytest.mark.parametrize("terms", TERMS[1:], ids=str)
def test_every_term_changes_the_loss(terms) -> None:
    plain, _ = both(TERMS[0])
    ours, _ = both(terms)
    assert not torch.allclose(ours[0], plain[0])


@given(scores=st.lists(st.floats(-20, 20), min_size=9, max_size=9), kind=st.sampled_from(["kl", "margin_mse"]))
def test_teacher_that_says_what_the_student_says_leaves_nothing_to_learn(scores, kind) -> None:
    q, p = embeddings(5, 9)
    cosines = torch.nn.functional.normalize(q, dim=1) @ torch.nn.functional.normalize(p, dim=1).T
    agreed = cosines.detach()[OWNER, torch.arange(9)] / 0.1
    terms = LossSettings(0.1, distillation=kind, distillation_weight=1.0)
    has_negatives = torch.tensor([True, False, True, True, False])
    agreeing = contrastive(q, p, Pairs(LABELS, NONE, OWNER, agreed + 7), terms)[0]
    assert agreeing[has_negatives].abs().max() < 1e-9
    other = contrastive(q, p, Pairs(LABELS, NONE, OWNER, torch.tensor(scores).double()), terms)[0]
    assert (other > -1e-9).all()


def test_query_without_a_teacher_learns_from_its_label_alone() -> None:
    q, p = embeddings(5, 9)
    plain = contrastive(q, p, Pairs(LABELS, EXCLUDED, OWNER), LossSettings(0.1))[0]
    for kind in ("kl", "margin_mse"):
        terms = LossSettings(0.1, distillation=kind, distillation_weight=1.0)
        loss = contrastive(q, p, Pairs(LABELS, EXCLUDED, OWNER, TEACHER), terms)[0]
        assert torch.equal(loss[[1, 2, 4]], plain[[1, 2, 4]])  # no negatives, no score of the positive, no negatives
        assert not torch.allclose(loss[[0, 3]], plain[[0, 3]]) or kind == "kl"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            {"directions": ("query_passage", "passage_query"), "separate": True},
            {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
        ),
        (
            {"directions": ("query_passage", "query_query", "passage_query", "passage_passage")},
            {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")},
        ),
        ({"hardness": 5.0, "hardness_of": "own"}, {"hardness_mode": "hard_negatives", "hardness_strength": 5.0}),
        (
            {"hardness": 9.0, "hardness_of": "in_batch"},
            {"hardness_mode": "in_batch_negatives", "hardness_strength": 9.0},
        ),
        ({"hardness": 2.0, "hardness_of": "all"}, {"hardness_mode": "all_negatives", "hardness_strength": 2.0}),
    ],
)
def test_directions_and_hardness_are_those_of_sentence_transformers(ours, theirs, minilm: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    columns = [torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    loss = MultipleNegativesRankingLoss(SentenceTransformer(minilm, device="cpu"), scale=20.0, **theirs)
    expected = loss.compute_loss_from_embeddings(columns, None)
    passages = torch.stack(columns[1:], 1).flatten(0, 1)
    pairs = Pairs(torch.arange(0, 8, 2), NONE, torch.arange(8) // 2)
    found, _ = contrastive(columns[0], passages, pairs, LossSettings(1 / 20, **ours))
    torch.testing.assert_close(found.mean(), expected, rtol=1e-9, atol=1e-9)
    plain, _ = contrastive(columns[0], passages, pairs, LossSettings(1 / 20))
    assert abs(float(plain.mean() - expected)) > 1e-6


# Forms of the vectors


def test_matryoshka_is_the_sum_of_the_losses_of_cut_vectors() -> None:
    q, p = embeddings(3, 6)
    pairs = Pairs(torch.tensor([0, 2, 4]), NONE, torch.arange(6) // 2)
    forms = views([7, 4, 2], [1.0, 0.5, 0.25], [])
    total = sum(form.weight * contrastive(form(q), form(p), pairs, LossSettings(0.1))[0] for form in forms)
    total.sum().backward()
    gradients = q.grad.clone(), p.grad.clone()
    q.grad = p.grad = None
    expected = sum(
        weight * info_nce_loop(q[:, :dim], p[:, :dim], [0, 2, 4], set(), 0.1)
        for dim, weight in ((7, 1.0), (4, 0.5), (2, 0.25))
    )
    expected.sum().backward()
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients, (q.grad, p.grad), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_rounded_vectors_have_the_loss_of_what_is_stored_and_the_gradient_of_what_is_not(precision: str) -> None:
    q, _ = embeddings(3, 6)
    form = EmbeddingFormat(None, precision)
    rounded = form(q)
    stored = torch.from_numpy(form.of(q.detach().numpy())).double()
    torch.testing.assert_close(rounded, torch.nn.functional.normalize(stored, dim=1), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(rounded, torch.nn.functional.normalize(q, dim=1), atol=1e-4)
    (rounded * torch.arange(7)).sum().backward()
    through = q.grad.clone()
    q.grad = None
    (torch.nn.functional.normalize(q, dim=1) * torch.arange(7)).sum().backward()
    torch.testing.assert_close(through, q.grad)


def test_form_says_what_is_stored_and_how_large_it_is() -> None:
    vectors = torch.nn.functional.normalize(embeddings(5, 6)[0].detach(), dim=1).numpy()
    for form, size in (
        (EmbeddingFormat(), 28),
        (EmbeddingFormat(4), 16),
        (EmbeddingFormat(5, "int8"), 5),
        (EmbeddingFormat(None, "binary"), 1),
    ):
        stored = form.stored(vectors)
        assert stored[0].nbytes == form.bytes(7) == size
    import numpy as np

    bits = np.unpackbits(EmbeddingFormat(None, "binary").stored(vectors), axis=1)[:, :7]
    assert (np.where(bits, 1.0, -1.0) == EmbeddingFormat(None, "binary").of(vectors)).all()
