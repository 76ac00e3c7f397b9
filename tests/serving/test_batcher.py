"""Texts of many callers share batches, and nobody hurts another."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from embedrag.serving.batcher import Batcher

POISON, NAN = 13, 17


def vector(ids: Sequence[int]) -> list[float]:
    """Of a text: tells its length and its tokens apart from every other's."""
    return [len(ids), sum(ids), sum(place * token for place, token in enumerate(ids, 1))]


class Model:
    """Gives each text its `vector`; fails on one token, and has no number for another. Waits while `gate` is shut."""

    def __init__(self) -> None:
        self.batches: list[list[list[int]]] = []
        self.gate, self.begun = threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        self.batches.append([list(text) for text in ids])
        self.begun.set()
        self.gate.wait()
        if any(POISON in text for text in ids):
            raise RuntimeError("out of memory")
        return np.array([[np.nan] * 3 if NAN in text else vector(text) for text in ids], np.float32)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model: Model) -> Iterator[Batcher]:
    found = Batcher(model, max_tokens=10)
    yield found
    model.gate.set()
    found.close()


def check_own(texts: list[list[int]], vectors: np.ndarray) -> None:
    np.testing.assert_array_equal(vectors, np.array([vector(text) for text in texts], np.float32))


def held_back(model: Model, batcher: Batcher) -> None:
    """The model is at work on something else, so that what is submitted now is queued."""
    model.gate.clear()
    batcher.submit([[1]])
    model.begun.wait()
    model.batches.clear()


def test_many_callers_get_their_own_vectors_in_their_own_order(batcher: Batcher) -> None:
    draw = np.random.default_rng(0)
    jobs = [
        [draw.integers(20, 99, draw.integers(1, 9)).tolist() for _ in range(draw.integers(1, 12))] for _ in range(80)
    ]
    futures = [batcher.submit(texts) for texts in jobs]
    for texts, future in zip(jobs, futures, strict=True):
        check_own(texts, future.result())


def test_swapped_vectors_would_be_found(batcher: Batcher) -> None:
    texts = [[20, 21], [21, 20]]
    with pytest.raises(AssertionError):
        check_own(texts, batcher.submit(texts[::-1]).result())


def test_waiting_texts_share_batches_within_the_budget(model: Model, batcher: Batcher) -> None:
    held_back(model, batcher)
    futures = [batcher.submit([[20, 21, 22]]) for _ in range(4)]
    long = batcher.submit([[20] * 50])
    model.gate.set()
    for future in (*futures, long):
        future.result()
    assert [sum(map(len, batch)) for batch in model.batches] == [9, 3, 50]


def test_short_job_does_not_wait_for_a_large_one_that_came_first(model: Model, batcher: Batcher) -> None:
    held_back(model, batcher)
    large, small = batcher.submit([[20] * 5] * 20), batcher.submit([[30] * 5])
    model.gate.set()
    assert large.result().shape == (20, 3)
    assert small.done()
    assert [30] * 5 in model.batches[0]


@pytest.mark.parametrize("token", [POISON, NAN])
def test_text_that_the_model_fails_on_fails_only_its_own_job(token: int, model: Model, batcher: Batcher) -> None:
    held_back(model, batcher)
    jobs = [[[20, 21], [22]], [[23], [token]], [[24, 25]], [[26]]]
    futures = [batcher.submit(texts) for texts in jobs]
    model.gate.set()
    for number in (0, 2, 3):
        check_own(jobs[number], futures[number].result())
    with pytest.raises(Exception, match="out of memory|not finite"):
        futures[1].result()


def test_memory_of_a_failed_batch_is_free_when_its_halves_are_tried() -> None:
    held: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def model(ids: Sequence[Sequence[int]]) -> np.ndarray:
        alive.append(sum(ref() is not None for ref in held))
        activations = np.zeros(100)
        held.append(weakref.ref(activations))
        if len(ids) > 1:
            raise RuntimeError("out of memory")
        return np.array([vector(text) for text in ids], np.float32)

    batcher = Batcher(model, max_tokens=100)
    check_own([[20]] * 8, batcher.submit([[20]] * 8).result())
    batcher.close()
    assert len(alive) == 15 and alive == [0] * 15


def test_job_that_is_cancelled_is_not_computed(model: Model, batcher: Batcher) -> None:
    held_back(model, batcher)
    gone, kept = batcher.submit([[20]] * 30), batcher.submit([[21]])
    assert gone.cancel()
    model.gate.set()
    check_own([[21]], kept.result())
    assert model.batches == [[[21]]]


def test_job_that_is_cancelled_while_it_is_computed_does_not_affect_others(model: Model, batcher: Batcher) -> None:
    model.gate.clear()
    gone = batcher.submit([[20]] * 30)
    model.begun.wait()
    assert gone.cancel()
    model.gate.set()
    check_own([[21]], batcher.submit([[21]]).result())


def test_close_finishes_what_waits(model: Model) -> None:
    batcher = Batcher(model, max_tokens=2)
    futures = [batcher.submit([[20 + number]] * 7) for number in range(5)]
    batcher.close()
    assert all(future.done() for future in futures)


def test_equal_jobs_are_done_one_after_the_other(model: Model, batcher: Batcher) -> None:
    """If they took turns, all would be done at the end, when clients with a short patience have gone."""
    held_back(model, batcher)
    futures = [batcher.submit([[20 + number]] * 10) for number in range(5)]
    model.gate.set()
    for future in futures:
        future.result()
    assert model.batches == [[[20 + number]] * 10 for number in range(5)]


def test_large_job_is_done_although_short_ones_never_end(model: Model) -> None:
    batcher = Batcher(model, max_tokens=1)
    held_back(model, batcher)
    batcher.submit([[99]] * 6)

    def another(_: object = None) -> None:
        if len(model.batches) < 60:
            batcher.submit([[20]]).add_done_callback(another)

    another()
    model.gate.set()
    batcher.close()
    last = max(number for number, batch in enumerate(model.batches) if batch == [[99]])
    assert 6 < last < 30 < len(model.batches)


def test_seconds_are_estimated_from_the_speed_so_far_and_the_lengths_that_wait(model: Model, batcher: Batcher) -> None:
    assert batcher.seconds_for(200) == 2  # a guess, before the first batch is done
    batcher._texts_done, batcher._tokens_done, batcher._seconds_done = 50, 100, 50.0
    assert batcher.seconds_for(10) == 10  # texts of 2 tokens, at 2 tokens a second
    held_back(model, batcher)
    batcher.submit([[20] * 8])
    assert batcher.seconds_for(10) == 40
