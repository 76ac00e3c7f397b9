"""The size of a tile changes neither losses nor gradients, and the whole matrix of scores never exists."""

from __future__ import annotations

import pytest
import torch

from embedrag.losses.tiled import TILE_SCORES
from tests.losses.cases import NONE, embeddings, plain
from tests.reference import info_nce_loop


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
    loss, correct = plain(q, p, labels, torch.tensor(sorted(pairs)), 0.1, "hard")
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
    plain(q, p, torch.arange(40), NONE, 0.1)[0].sum().backward()
    assert len(sizes) == 2 * 20 and max(sizes) <= 100  # once for the value, once for the gradient
