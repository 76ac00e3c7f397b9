"""A stream gives each epoch the next rows of every source, shared out by weight."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedrag.data.streaming import EpochStream, quotas
from embedrag.data.token_store import TokenStore
from tests.data.test_collator import SamplingSettings, letters, make_batch, read_batch

FRUIT = [{"query": f"fruit {i}", "pos": [f"apple {i}"], "neg": [f"stone {i}"]} for i in range(6)]
METAL = [{"query": f"metal {i}", "pos": [f"iron {i}"], "neg": [f"wool {i}"]} for i in range(9)]


@pytest.fixture
def two(write_jsonl) -> list[str]:
    return [str(write_jsonl(FRUIT, "fruit.jsonl")), str(write_jsonl(METAL, "metal.jsonl"))]


def queries_of(store: TokenStore) -> list[str]:
    picked = [(0, row) for row in range(len(store))]
    return read_batch(make_batch(store, picked, SamplingSettings(neg_nums=0, seed=7)))[0]


def stream(paths, quotas, cache_folder) -> EpochStream:
    return EpochStream(paths, quotas, letters, [("", "")] * len(paths), cache_folder)


def test_each_epoch_takes_the_next_rows_and_a_source_that_ends_begins_again(two, cache_folder) -> None:
    found = stream(two, [4, 2], cache_folder)
    assert queries_of(found.store(0)) == [*(f"fruit {i}" for i in range(4)), "metal 0", "metal 1"]
    assert queries_of(found.store(1)) == [*(f"fruit {i}" for i in (4, 5, 0, 1)), "metal 2", "metal 3"]
    later = stream(two, [4, 2], cache_folder).store(3)
    for epoch in (2, 3):
        last = found.store(epoch)
    assert queries_of(later) == queries_of(last) and later.checksum == last.checksum


def test_nothing_of_a_stream_stays_on_the_disk(two, tmp_path) -> None:
    found = stream(two, [4, 2], tmp_path / "cache")
    found.store(0)
    found.store(1)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    del found
    assert list((tmp_path / "cache").iterdir()) == []


@given(weights=st.lists(st.sampled_from([0.3, 1, 2, 2.5]), min_size=1, max_size=5), rows=st.integers(5, 200))
def test_shares_of_a_stream_add_up_and_follow_the_weights(weights, rows) -> None:
    shares = quotas(weights, rows)
    assert sum(shares) == rows
    assert all(abs(share - rows * weight / sum(weights)) < 1 for share, weight in zip(shares, weights, strict=True))
