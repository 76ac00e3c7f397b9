"""Search in blocks against a full sort."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from embedrag.errors import UserError
from embedrag.retrieval.topk import TopK, search, search_faiss


def slowly(queries: np.ndarray, passages: np.ndarray, k: int) -> np.ndarray:
    scores = queries @ passages.T
    return np.stack([sorted(range(len(passages)), key=lambda j: (-row[j], j))[:k] for row in scores])


@pytest.mark.parametrize("block", [1, 3, 64])
@pytest.mark.parametrize("k", [1, 5, 40])
def test_search_in_blocks_equals_a_full_sort_with_ties_to_the_earlier(block: int, k: int) -> None:
    generator = np.random.default_rng(0)
    queries, passages = (generator.integers(-1, 2, (n, 4)).astype(np.float32) for n in (7, 23))
    numbers, scores = search(queries, passages, k, block)
    assert np.array_equal(numbers, slowly(queries, passages, k))
    assert np.array_equal(scores, np.take_along_axis(queries @ passages.T, numbers, 1))


def test_passages_may_come_in_any_parts() -> None:
    generator = np.random.default_rng(1)
    queries, passages = (generator.standard_normal((n, 8)).astype(np.float32) for n in (5, 50))
    top = TopK(queries, 7, block=4)
    for part in np.split(passages, [0, 1, 17, 18, 49]):
        top.add(part)
    assert np.array_equal(top.result()[0], slowly(queries, passages, 7))


def test_scores_of_every_sign_and_size_keep_their_order() -> None:
    values = np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 1.5, -1.5, 0.0], np.float32)
    numbers, scores = search(np.ones((1, 1), np.float32), values[:, None], 9)
    assert numbers[0].tolist() == [4, 6, 2, 0, 1, 8, 3, 7, 5]
    assert np.array_equal(scores[0], values[numbers[0]])


def test_faiss_finds_the_same_and_its_mistakes_are_explained() -> None:
    pytest.importorskip("faiss")
    generator = np.random.default_rng(2)
    queries, passages = (generator.standard_normal((n, 8)).astype(np.float32) for n in (5, 300))
    numbers, scores = search_faiss(queries, [passages[:100], passages[100:]], 4, "Flat")
    assert np.array_equal(numbers, slowly(queries, passages, 4)) and (np.diff(scores) <= 0).all()
    with pytest.raises(UserError, match="`faiss_index=Flut`"):
        search_faiss(queries, [passages], 4, "Flut")


def test_wrong_name_of_an_index_is_reported_before_passages_are_computed() -> None:
    pytest.importorskip("faiss")

    def encoded() -> Iterator[np.ndarray]:
        raise AssertionError("a passage was encoded")
        yield

    with pytest.raises(UserError, match="`faiss_index=Flut`"):
        search_faiss(np.eye(4, dtype=np.float32), encoded(), 4, "Flut")
