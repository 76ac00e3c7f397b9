"""Learning the vectors of another model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from embedrag.data.collator import SamplingSettings, make_batch
from embedrag.data.tokenization import open_store
from embedrag.losses.contrastive import LossSettings
from embedrag.models.load import load_model
from embedrag.training.embedding_teacher import EmbeddingTeacher, procrustes, teacher_vectors
from embedrag.training.objective import ContrastiveObjective
from tests.training.state.test_resume import losses
from tests.training.test_objective import SCORED, data, train  # noqa: F401 - a fixture


@pytest.mark.parametrize("size", [3, 5, 9])
def test_turn_is_the_best_of_all_with_orthonormal_columns(size: int) -> None:
    torch.manual_seed(size)
    source, target = torch.randn(40, size, dtype=torch.float64), torch.randn(40, 5, dtype=torch.float64)
    turn = procrustes(source, target)
    least = min(size, 5)
    product = turn.T @ turn if size >= 5 else turn @ turn.T
    torch.testing.assert_close(product, torch.eye(least, dtype=torch.float64))
    best = float((source @ turn * target).sum())
    for _ in range(50):
        other = torch.linalg.qr(torch.randn(max(size, 5), least, dtype=torch.float64))[0]
        other = other if size >= 5 else other.T
        assert float((source @ other * target).sum()) <= best


def test_turned_copy_of_the_space_is_found_again() -> None:
    source = torch.randn(40, 6, dtype=torch.float64)
    angle = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    torch.testing.assert_close(procrustes(source, source @ angle), angle)


@pytest.fixture
def stored(tiny_bert: str, data: Path, tmp_path: Path):  # noqa: F811
    """A student, its store, and itself as its teacher."""
    student = load_model(tiny_bert, "cpu")
    store = open_store([str(data)], student.tokenizer.ids, student.tokenizer.key, tmp_path / "cache")[0]
    return student, store, teacher_vectors(student, [str(data)], store, 1.0, tmp_path / "cache")


def test_vectors_of_every_text_are_those_the_teacher_gives(stored) -> None:
    student, store, teacher = stored
    rows = SCORED
    for row in (0, 5, 11):
        query, positives, negatives = store.row(row)
        expected = student.encode([rows[row]["query"]], "query")
        np.testing.assert_allclose(teacher.of(np.array([query])), expected, atol=1e-5)
        texts = [*rows[row]["pos"], *rows[row]["neg"]]
        found = teacher.of(np.array([*positives, *negatives]))
        np.testing.assert_allclose(found, student.encode(texts, "passage"), atol=1e-5)


def test_rows_that_were_held_out_are_not_asked_about(stored, data: Path, tmp_path: Path) -> None:  # noqa: F811
    from embedrag.data.holdout import hold_out

    student, store, whole = stored
    kept, held = hold_out(store, 0.3, 1)
    teacher = teacher_vectors(student, [str(data)], kept, 1.0, tmp_path / "cache")
    assert sum(map(len, teacher.vectors)) < sum(map(len, whole.vectors)) and len(held)
    texts = np.unique(kept.row_texts)
    torch.testing.assert_close(teacher.of(texts), whole.of(texts), atol=1e-5, rtol=1e-5)


def test_teacher_that_is_the_student_leaves_nothing_to_learn(stored) -> None:
    student, store, teacher = stored
    turned = teacher.aligned(student, store)
    batch = make_batch(store, [(0, row) for row in range(12)], SamplingSettings(neg_nums=2, seed=1))
    vectors = student(batch.tokens).detach()
    assert turned.distance(vectors, batch.texts).abs().max() < 1e-3
    other = EmbeddingTeacher(teacher.vectors, teacher.place, teacher.rotation.flip(0), 1.0)
    assert other.distance(vectors, batch.texts).min() > 0.1


def test_loss_of_a_query_is_the_mean_over_its_texts_in_value_and_gradient(stored) -> None:
    student, store, teacher = stored
    teacher = EmbeddingTeacher(teacher.vectors, teacher.place, teacher.rotation.flip(0), 0.7)
    batch = make_batch(store, [(0, row) for row in range(5)], SamplingSettings(neg_nums=2, seed=1))
    found = []
    for slow in (False, True):
        vectors = torch.randn(len(batch.tokens), 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        if slow:
            loss = ContrastiveObjective(student, LossSettings(0.1)).loss(vectors, batch)["loss"]
            wanted = teacher.of(batch.texts.numpy()) @ teacher.rotation
            each = [1 - torch.cosine_similarity(v, w, dim=0) for v, w in zip(vectors, wanted, strict=True)]
            owner = batch.owner.tolist()
            further = []
            for i, query in enumerate(batch.query_index.tolist()):
                own = [query, *(text for text, o in zip(batch.passage_index.tolist(), owner, strict=True) if o == i)]
                further.append(sum(each[text] for text in own) / len(own))
            loss = loss + 0.7 * torch.stack(further)
        else:
            loss = ContrastiveObjective(student, LossSettings(0.1), teacher=teacher).loss(vectors, batch)["loss"]
        (loss * torch.arange(1, 6)).sum().backward()
        found.append([loss, vectors.grad])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_larger_teacher_is_learnt(
    tiny_bert: str,
    minilm: str,
    data: Path,  # noqa: F811
    tmp_path: Path,
    capsys,
) -> None:
    words = ["--embedding_teacher", minilm, "--embedding_teacher_weight", "5", "--epochs", "6"]
    assert train(tiny_bert, data, tmp_path / "plain", "--epochs", "6") == 0
    assert train(tiny_bert, data, tmp_path / "one", *words) == 0
    assert f"teacher: {minilm}, 384 dimensions" in capsys.readouterr().out
    texts = [text for row in SCORED for text in (*row["pos"], *row["neg"])]
    cosines = []
    for model in (minilm, tmp_path / "plain" / "final", tmp_path / "one" / "final"):
        vectors = load_model(str(model), "cpu").encode(texts, "passage")
        cosines.append((vectors @ vectors.T)[np.triu_indices(len(texts), 1)])
    agreement = [float(np.corrcoef(cosines[0], other)[0, 1]) for other in cosines[1:]]
    assert agreement[1] > agreement[0] + 0.05


def test_teacher_that_is_not_there_and_a_stream_are_named(tiny_bert, data, tmp_path, capsys) -> None:  # noqa: F811
    assert train(tiny_bert, data, tmp_path / "out", "--embedding_teacher", "./nowhere") == 2
    assert "--embedding_teacher" in capsys.readouterr().err
    words = ["--embedding_teacher", tiny_bert, "--stream", "--steps_per_epoch", "2"]
    assert train(tiny_bert, data, tmp_path / "out", *words) == 2
    assert "and a --stream brings them later" in capsys.readouterr().err


def test_teacher_goes_on_bit_for_bit(tiny_bert, minilm, data, tmp_path) -> None:  # noqa: F811
    words = ["--embedding_teacher", minilm, "--epochs", "2"]
    assert train(tiny_bert, data, tmp_path / "whole", *words) == 0
    checkpoint = tmp_path / "whole" / "checkpoint-epoch-1"
    assert train(tiny_bert, data, tmp_path / "again", *words, "--resume", str(checkpoint)) == 0
    whole, again = losses(tmp_path / "whole"), losses(tmp_path / "again")
    assert [row[3] for row in whole[len(whole) - len(again) :]] == [row[3] for row in again]
    assert json.loads((tmp_path / "again" / "final" / "training_config.json").read_text())["embedding_teacher"]
