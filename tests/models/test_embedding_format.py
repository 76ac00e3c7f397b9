"""A vector's formats: what is stored, what it costs, and how a model is trained for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedrag.losses.contrastive import LossSettings, contrastive
from embedrag.losses.pairs import Pairs
from embedrag.models.embedding_format import EmbeddingFormat, trained_formats
from tests.losses.cases import NONE, embeddings
from tests.reference import info_nce_loop


def test_matryoshka_is_the_sum_of_the_losses_of_cut_vectors() -> None:
    q, p = embeddings(3, 6)
    pairs = Pairs(torch.tensor([0, 2, 4]), NONE, torch.arange(6) // 2)
    forms = trained_formats([7, 4, 2], [1.0, 0.5, 0.25], [])
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
    bits = np.unpackbits(EmbeddingFormat(None, "binary").stored(vectors), axis=1)[:, :7]
    assert (np.where(bits, 1.0, -1.0) == EmbeddingFormat(None, "binary").of(vectors)).all()
