"""Search in blocks against a full sort."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from embedrag.errors import UserError
from embedrag.models.embedding_format import EmbeddingFormat
from embedrag.retrieval.topk import TopK, best_of, cosines, search, search_faiss


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
    queries, passages = (directions(n, 8, n) for n in (5, 50))
    top = TopK(queries, 7, block=4)
    for part in np.split(passages, [0, 1, 17, 18, 49]):
        top.add(part)
    assert np.array_equal(top.result()[0], slowly(queries, passages, 7))


def test_scores_of_every_sign_and_size_keep_their_order() -> None:
    values = np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 1.5, -1.5, 0.0], np.float32)
    assert best_of(values, 9).tolist() == [4, 6, 2, 0, 1, 8, 3, 7, 5]
    assert best_of(values, 3).tolist() == [4, 6, 2]


def directions(count: int, size: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("size", [24, 128])
@pytest.mark.parametrize("block", [37, 2048])
def test_binary_vectors_have_the_order_of_their_hamming_distances(size: int, block: int) -> None:
    form = EmbeddingFormat(size, "binary")
    queries, passages = directions(20, 128), directions(700, 128, 1)
    bits, others = (form.stored(vectors) for vectors in (queries, passages))
    distances = np.unpackbits(bits[:, None] ^ others[None], axis=2).sum(2)
    expected = [sorted(range(700), key=lambda n: (row[n], n))[:30] for row in distances.tolist()]
    numbers, scores = search(form.of(queries), form.of(passages), 30, block)
    assert numbers.tolist() == expected
    assert np.array_equal(scores, (1 - 2 * np.take_along_axis(distances, numbers, 1) / size).astype(np.float32))


@pytest.mark.parametrize("block", [37, 2048])
def test_int8_vectors_have_the_order_of_their_exact_cosines(block: int) -> None:
    form = EmbeddingFormat(8, "int8")
    queries, passages = directions(5, 8), np.concatenate([directions(300, 8, 1)] * 2)
    assert (form.of(passages) == form.stored(passages)).all()
    whole = [form.stored(vectors).tolist() for vectors in (queries, passages)]
    numbers, _ = search(form.of(queries), form.of(passages), 40, block)
    for query, found in zip(whole[0], numbers.tolist(), strict=True):
        exact = [
            np.float32(
                sum(map(operator.mul, query, other)) / math.sqrt(sum(x * x for x in query) * sum(x * x for x in other))
            )
            for other in whole[1]
        ]
        assert found == sorted(range(600), key=lambda n: (-exact[n], n))[:40]


def test_scores_do_not_depend_on_blocks_threads_or_other_queries() -> None:
    """The same text under several numbers has one score, and the first of them is the best."""
    queries, once = directions(40, 96), directions(150, 96, 1)
    passages = np.concatenate([once, once[::-1], once])
    numbers, scores = search(queries, passages, 450, block=450)
    places = np.argsort(numbers, axis=1)
    of_passage = np.take_along_axis(scores, places, 1)
    assert np.array_equal(of_passage[:, :150], of_passage[:, 300:])
    assert np.array_equal(of_passage[:, :150], of_passage[:, 299:149:-1])
    assert (places[:, :150] < places[:, 300:]).all()
    threads = torch.get_num_threads()
    try:
        for block, count in ((7, 1), (64, 2), (1000, 3)):
            torch.set_num_threads(count)
            again = search(queries, passages, 450, block)
            assert np.array_equal(again[0], numbers) and np.array_equal(again[1], scores)
    finally:
        torch.set_num_threads(threads)
    for number in (0, 39):
        alone = search(queries[number : number + 1], passages, 450)
        assert np.array_equal(alone[0][0], numbers[number]) and np.array_equal(alone[1][0], scores[number])
        assert np.array_equal(cosines(queries[number], passages[numbers[number]]), scores[number])


def test_a_vector_of_zeros_has_cosine_0_with_all_vectors() -> None:
    numbers, scores = search(np.array([[1, -1]], np.int8), np.array([[-1, 1], [0, 0], [127, -127]], np.int8), 3)
    assert numbers.tolist() == [[2, 1, 0]] and scores.tolist() == [[1.0, 0.0, -1.0]]


def test_faiss_finds_the_same_and_its_mistakes_are_explained() -> None:
    pytest.importorskip("faiss")
    queries, passages = (directions(n, 8, n) for n in (5, 300))
    numbers, scores = search_faiss(queries, [passages[:100], passages[100:]], 4, "Flat")
    assert np.array_equal(numbers, slowly(queries, passages, 4)) and (np.diff(scores) <= 0).all()
    twins = np.concatenate([passages] * 3)
    assert np.array_equal(search_faiss(queries, [twins], 6, "Flat")[0], slowly(queries, twins, 6))
    with pytest.raises(UserError, match="`faiss_index=Flut`"):
        search_faiss(queries, [passages], 4, "Flut")


def test_wrong_name_of_an_index_is_reported_before_passages_are_computed() -> None:
    pytest.importorskip("faiss")

    def encoded() -> Iterator[np.ndarray]:
        raise AssertionError("a passage was encoded")
        yield

    with pytest.raises(UserError, match="`faiss_index=Flut`"):
        search_faiss(np.eye(4, dtype=np.float32), encoded(), 4, "Flut")
