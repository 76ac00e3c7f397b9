"""Several data sets by weight: each row its share of times, in batches of one data set when asked."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embedrag.data.sampler import ShuffledSampler, WeightedSampler

SETS = st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.2, 0.5, 1, 1.7, 2, 3])), min_size=1, max_size=4)


def mixed(sizes: list[tuple[int, float]], seed: int = 7, batch_size: int = 1) -> tuple[WeightedSampler, np.ndarray]:
    """An order, and the data set of each row; rows of the data sets lie between each other."""
    owner = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), [size for size, _ in sizes]))
    sets = [np.flatnonzero(owner == number) for number in range(len(sizes))]
    return WeightedSampler(sets, [weight for _, weight in sizes], seed, batch_size), owner


@given(sizes=SETS, passes=st.integers(1, 4))
def test_each_row_comes_as_often_as_the_weight_of_its_data_set_says(sizes, passes) -> None:
    if not any(round(size * weight) for size, weight in sizes):
        return
    order, owner = mixed(sizes)
    seen = Counter(row for _, row in order.between(0, passes * len(order)))
    for number, (size, weight) in enumerate(sizes):
        counts = [seen[int(row)] for row in np.flatnonzero(owner == number)]
        assert sum(counts) == passes * round(size * weight)
        assert max(counts) - min(counts) <= 1  # all of them, before one comes again


@given(sizes=SETS, batch_size=st.integers(2, 6), seed=st.integers(0, 3))
def test_batch_of_one_data_set_never_mixes_two_and_loses_no_row(sizes, batch_size, seed) -> None:
    order, owner = mixed([(size + 5, weight) for size, weight in sizes], seed, batch_size)
    assert len(order) % batch_size == 0
    rows = [row for _, row in order.between(0, 3 * len(order))]
    for start in range(0, len(rows), batch_size):
        assert len(set(owner[rows[start : start + batch_size]])) == 1
    seen = Counter(rows)
    for number, (_, weight) in enumerate(sizes):
        own = np.flatnonzero(owner == number)
        counts = [seen[int(row)] for row in own]
        assert max(counts) - min(counts) <= 1
        assert weight < 1 or set(own) <= set(rows[: len(order)])


def test_batches_of_different_data_sets_alternate_and_by_default_they_mix() -> None:
    together, owner = mixed([(40, 1), (40, 1)], batch_size=4)
    batches = np.array([row for _, row in together.between(0, 80)]).reshape(-1, 4)
    turns = owner[batches[:, 0]]
    assert 3 < np.count_nonzero(turns[1:] != turns[:-1]) < 19
    apart, owner = mixed([(40, 1), (40, 1)])
    batches = np.array([row for _, row in apart.between(0, 80)]).reshape(-1, 4)
    assert any(len(set(owner[batch])) == 2 for batch in batches)


def test_order_depends_only_on_seed_and_position() -> None:
    order, _ = mixed([(10, 2), (7, 0.5)])
    whole = list(order.between(0, 100))
    again, _ = mixed([(10, 2), (7, 0.5)])
    assert [pair for start in (40, 0, 70) for pair in again.between(start, start + 10)] == [
        pair for start in (40, 0, 70) for pair in whole[start : start + 10]
    ]
    other, _ = mixed([(10, 2), (7, 0.5)], seed=8)
    assert list(other.between(0, 100)) != whole
    assert len(set(whole)) == len(whole)  # a row that comes again is another visit, and draws anew


def test_visits_count_how_often_the_data_set_was_gone_through() -> None:
    order, _ = mixed([(4, 2)])
    visits = Counter(visit for visit, _ in order.between(0, len(order)))
    assert visits == {0: 4, 1: 4}
    assert Counter(visit for visit, _ in order.between(len(order), 2 * len(order))) == {2: 4, 3: 4}


def test_one_data_set_has_the_order_of_earlier_versions() -> None:
    expected = np.random.Generator(np.random.Philox(np.random.SeedSequence([42, 3]))).permutation(9)
    assert [row for _, row in ShuffledSampler(9, 42).between(27, 36)] == expected.tolist()
