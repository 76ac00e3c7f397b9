"""What a step sees is a function of (seed, pass, row); slow loops say what it should be."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedrag.data.collator import Batch, SamplingSettings, draw, make_batch, steps_of_epoch
from embedrag.data.sampler import ShuffledSampler
from embedrag.data.token_store import TokenStore
from embedrag.data.tokenization import open_store

PASSES = range(40)


def letters(role: str, texts: Sequence[str]) -> list[list[int]]:
    return [[1 if role == "query" else 2, *map(ord, text)] for text in texts]


def read(store: TokenStore, text: int) -> str:
    return "".join(map(chr, store.batch(np.array([text])).input_ids.tolist()[1:]))


def read_batch(batch: Batch) -> tuple[list[str], list[str]]:
    """Queries and passages of a batch as texts."""
    bounds = batch.tokens.cu_seqlens.tolist()
    ids = batch.tokens.input_ids.tolist()
    texts = ["".join(map(chr, ids[a + 1 : b])) for a, b in itertools.pairwise(bounds)]
    return [texts[i] for i in batch.query_index], [texts[i] for i in batch.passage_index]


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory, cache_folder) -> Callable[[list], TokenStore]:
    """A function from rows to a store of letters."""

    def build(rows: list) -> TokenStore:
        path = tmp_path_factory.mktemp("data") / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return open_store([str(path)], letters, "letters", cache_folder)[0]

    return build


@pytest.fixture
def store(rows, make_store) -> TokenStore:
    return make_store(rows)


def drawn(store: TokenStore, row: int, seed: int, data_pass: int, neg_nums: int = 4) -> tuple[str, str, list[str]]:
    found = draw(store, row, data_pass, SamplingSettings(neg_nums=neg_nums, seed=seed))
    [positive] = found.pos
    return read(store, found.query), read(store, positive), [read(store, text) for text in found.neg]


# Draws


def test_same_seed_pass_and_row_give_the_same_draw_in_any_order(store) -> None:
    places = list(itertools.product(range(len(store)), range(3)))
    first = {place: drawn(store, *place[:1], 7, place[1]) for place in places}
    assert {place: drawn(store, *place[:1], 7, place[1]) for place in reversed(places)} == first


def test_other_pass_or_other_seed_gives_other_negatives(store) -> None:
    row = 2
    first = set(drawn(store, row, 7, 0)[2])
    assert any(set(drawn(store, row, 7, data_pass)[2]) != first for data_pass in range(1, 4))
    assert any(set(drawn(store, row, seed, 0)[2]) != first for seed in range(8, 12))


def test_rows_draw_independently_of_each_other(store) -> None:
    places = [[text.split("-")[1] for text in drawn(store, row, 7, 0)[2]] for row in (2, 5, 8, 11)]
    assert len({tuple(place) for place in places}) > 1


def test_every_negative_gets_its_turn(store, rows) -> None:
    counts = [drawn(store, 2, 7, data_pass)[2] for data_pass in range(200)]
    share = {text: sum(text in texts for texts in counts) / 200 for text in rows[2]["neg"]}
    assert len(share) == 9 and all(0.3 < value < 0.6 for value in share.values()), share


@pytest.mark.parametrize("neg_nums", [0, 1, 4, 9, 20])
def test_ragged_rows_give_the_negatives_they_have(neg_nums, store, rows) -> None:
    for row, data_pass in itertools.product(range(len(rows)), range(3)):
        query, positive, negatives = drawn(store, row, 7, data_pass, neg_nums)
        assert query == rows[row]["query"] and positive in rows[row]["pos"]
        assert len(negatives) == min(neg_nums, len(rows[row]["neg"]))
        assert set(negatives) <= set(rows[row]["neg"]) and len(set(negatives)) == len(negatives)
    assert {len(row["neg"]) for row in rows} == {0, 2, 9}


def test_negatives_never_repeat_and_never_equal_a_positive(make_store) -> None:
    store = make_store([{"query": "q", "pos": ["p", "r"], "neg": ["p", "n", "n", "", "m", "r", "n"]}])
    for data_pass in PASSES:
        assert sorted(drawn(store, 0, 7, data_pass)[2]) == ["m", "n"]


def test_several_positives_take_turns_from_pass_to_pass(store, rows) -> None:
    for row in (0, 5, 10):
        seen = [drawn(store, row, 7, data_pass)[1] for data_pass in range(6)]
        assert set(seen) == set(rows[row]["pos"]) and len(set(seen)) == 2
        assert all(before != after for before, after in itertools.pairwise(seen))
    assert len({drawn(store, 1, 7, data_pass)[1] for data_pass in range(6)}) == 1


def order_of(rows: int, seed: int, data_pass: int) -> tuple[int, ...]:
    return tuple(row for _, row in ShuffledSampler(rows, seed).between(rows * data_pass, rows * (data_pass + 1)))


def test_order_is_another_one_each_pass_and_each_seed() -> None:
    orders = [order_of(50, seed, data_pass) for seed in range(3) for data_pass in range(3)]
    assert len(set(orders)) == 9 and all(sorted(order) == list(range(50)) for order in orders)
    assert order_of(50, 1, 2) == orders[5]


# Steps


def steps_slowly(rows: int, batch_size: int, accumulation: int, epoch: int) -> list[list[list[int]]]:
    """Positions of each micro-batch of each step, one after the other."""
    batches: list[list[int]] = []
    for position in range(epoch * rows, (epoch + 1) * rows):
        if not batches or len(batches[-1]) == batch_size:
            batches.append([])
        batches[-1].append(position)
    if len(batches) > 1 and len(batches[-1]) == 1 and batch_size > 1:
        last = batches.pop()
        batches[-1] += last
    return [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]


SIZES = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 40),
        "batch_size": st.integers(1, 12),
        "accumulation": st.integers(1, 5),
        "epoch": st.integers(0, 3),
    }
)


@given(sizes=SIZES)
def test_steps_of_an_epoch_equal_the_slow_definition(sizes) -> None:
    steps = [[list(range(*bounds)) for bounds in step] for step in steps_of_epoch(**sizes)]
    assert steps == steps_slowly(**sizes)


@given(sizes=SIZES, seed=st.integers(0, 3))
def test_every_row_comes_exactly_once_an_epoch(sizes, seed) -> None:
    rows, epoch = sizes["rows"], sizes["epoch"]
    bounds = [bound for step in steps_of_epoch(**sizes) for bound in step]
    picked = [place for bound in bounds for place in ShuffledSampler(rows, seed).between(*bound)]
    assert sorted(row for _, row in picked) == list(range(rows))
    assert {data_pass for data_pass, _ in picked} == {epoch}


@pytest.mark.parametrize(
    ("rows", "batch_size", "accumulation", "steps"),
    [(8, 4, 1, 2), (9, 4, 1, 2), (10, 4, 1, 3), (10, 4, 2, 2), (1, 4, 3, 1), (5, 1, 1, 5), (5, 1, 8, 1), (64, 8, 4, 2)],
)
def test_number_of_steps_is_as_counted_by_hand(rows, batch_size, accumulation, steps) -> None:
    found = steps_of_epoch(rows=rows, batch_size=batch_size, accumulation=accumulation, epoch=0)
    assert len(found) == steps


def test_last_single_row_joins_the_batch_before_it_and_two_rows_do_not() -> None:
    sizes = {"batch_size": 4, "accumulation": 1, "epoch": 0}
    assert steps_of_epoch(rows=9, **sizes) == [[(0, 4)], [(4, 9)]]
    assert steps_of_epoch(rows=10, **sizes) == [[(0, 4)], [(4, 8)], [(8, 10)]]


@given(sizes=SIZES, steps_per_epoch=st.integers(1, 6))
def test_fixed_steps_continue_through_the_data_without_a_gap(sizes, steps_per_epoch) -> None:
    rows, batch_size, accumulation = sizes["rows"], sizes["batch_size"], sizes["accumulation"]
    epochs = [steps_of_epoch(**sizes | {"epoch": epoch}, steps_per_epoch=steps_per_epoch) for epoch in range(4)]
    assert all(len(steps) == steps_per_epoch for steps in epochs)
    assert all(len(step) == accumulation for steps in epochs for step in steps)
    bounds = [bound for steps in epochs for step in steps for bound in step]
    total = 4 * steps_per_epoch * accumulation * batch_size
    assert [position for bound in bounds for position in range(*bound)] == list(range(total))
    order = ShuffledSampler(rows, 7)
    picked = [place for bound in bounds for place in order.between(*bound)]
    assert picked == [(p // rows, order_of(rows, 7, p // rows)[p % rows]) for p in range(total)]


# Batches

CLASHES = [
    {"query": "q0", "pos": ["a"], "neg": ["b", "x"]},
    {"query": "q0", "pos": ["c"], "neg": ["y"]},
    {"query": "q1", "pos": ["a", "d"], "neg": ["c", "x"]},
    {"query": "q2", "pos": ["b"]},
    {"query": "q0", "pos": ["b"]},
    {"query": "q3", "pos": ["q1"], "neg": ["q3"]},
]


def check_batch(store: TokenStore, rows: list[dict], picked: list[tuple[int, int]], neg_nums: int) -> Batch:
    """Compare a batch with a double loop over its texts; gives the batch back."""
    batch = make_batch(store, picked, SamplingSettings(neg_nums=neg_nums, seed=7))
    queries, passages = read_batch(batch)
    labels = batch.labels.tolist()
    wanted = [drawn(store, row, 7, data_pass, neg_nums) for data_pass, row in picked]
    assert queries == [query for query, _, _ in wanted]
    assert passages == [text for _, positive, negatives in wanted for text in (positive, *negatives)]
    assert [passages[label] for label in labels] == [positive for _, positive, _ in wanted]
    excluded = [tuple(pair) for pair in batch.excluded.tolist()]
    positives = {row["query"]: {text for r in rows if r["query"] == row["query"] for text in r["pos"]} for row in rows}
    slow = [
        (i, j)
        for i, query in enumerate(queries)
        for j, text in enumerate(passages)
        if j != labels[i] and text in positives[query]
    ]
    assert sorted(excluded) == slow
    assert batch.owner.tolist() == [i for i, (_, _, own) in enumerate(wanted) for _ in range(1 + len(own))]
    assert batch.negatives.tolist() == [len(negatives) for _, _, negatives in wanted]
    assert batch.rows.tolist() == [row for _, row in picked]
    assert len(batch.tokens) == len(set(queries)) + len(set(passages))
    return batch


def test_batch_of_distinct_rows_excludes_nothing(store, rows) -> None:
    batch = check_batch(store, rows, [(0, row) for row in range(12)], neg_nums=4)
    assert batch.excluded.shape == (0, 2) and batch.excluded.dtype == torch.int64
    assert len(batch.passage_index) == 12 + 4 * 2 + 4 * 4


@pytest.mark.parametrize("neg_nums", [0, 1, 4])
def test_batch_of_clashing_rows_equals_the_double_loop(neg_nums, make_store) -> None:
    store = make_store(CLASHES)
    for data_pass in range(4):
        batch = check_batch(store, CLASHES, [(data_pass, row) for row in (5, 0, 3, 1, 2, 4)], neg_nums)
        assert len(batch.excluded) > 0


ROW = st.fixed_dictionaries(
    {
        "query": st.sampled_from(["q0", "q1", "q2"]),
        "pos": st.lists(st.sampled_from("abcde"), min_size=1, max_size=3, unique=True),
        "neg": st.lists(st.sampled_from("abcdefg"), max_size=6),
    }
)


@given(rows=st.lists(ROW, min_size=1, max_size=6), neg_nums=st.integers(0, 4), data=st.data())
def test_batch_of_any_rows_equals_the_double_loop(rows, neg_nums, data, make_store) -> None:
    place = st.tuples(st.integers(0, 3), st.integers(0, len(rows) - 1))
    picked = data.draw(st.lists(place, min_size=1, max_size=8))
    check_batch(make_store(rows), rows, picked, neg_nums)


def test_identical_positives_of_two_rows_exclude_each_other(make_store) -> None:
    rows = [{"query": "q0", "pos": "a"}, {"query": "q1", "pos": "a"}, {"query": "q2", "pos": "b"}]
    batch = make_batch(make_store(rows), [(0, 0), (0, 1), (0, 2)], SamplingSettings(neg_nums=0, seed=7))
    assert sorted(map(tuple, batch.excluded.tolist())) == [(0, 1), (1, 0)]


def test_positive_of_another_row_of_the_same_query_is_excluded_even_if_that_row_is_in_another_batch(make_store) -> None:
    rows = [{"query": "q0", "pos": "a"}, {"query": "q1", "pos": "b", "neg": ["c"]}, {"query": "q0", "pos": "c"}]
    batch = make_batch(make_store(rows), [(0, 0), (0, 1)], SamplingSettings(neg_nums=4, seed=7))
    assert batch.excluded.tolist() == [[0, 2]]
    without = make_batch(make_store(rows[:2]), [(0, 0), (0, 1)], SamplingSettings(neg_nums=4, seed=7))
    assert without.excluded.tolist() == []


def test_row_that_meets_itself_in_a_batch_is_not_its_own_negative(make_store) -> None:
    store = make_store([{"query": "q0", "pos": "a"}, {"query": "q1", "pos": "b"}])
    picked = list(ShuffledSampler(2, seed=7).between(0, 4))
    batch = make_batch(store, picked, SamplingSettings(neg_nums=0, seed=7))
    _, passages = read_batch(batch)
    closed = {tuple(pair) for pair in batch.excluded.tolist()}
    same = {(i, j) for i, j in itertools.permutations(range(4), 2) if passages[i] == passages[j]}
    assert closed == same and len(same) == 4


def test_batch_moves_to_a_device_except_its_tokens(store) -> None:
    batch = make_batch(store, [(0, 0), (0, 2)], SamplingSettings(neg_nums=2, seed=7))
    moved = batch.to("meta")
    assert vars(moved).keys() == vars(batch).keys()
    here = {"tokens", "texts"}
    tensors = {name: value for name, value in vars(moved).items() if value is not None and name not in here}
    assert len(tensors) == 6 and all(value.device.type == "meta" for value in tensors.values())
    assert moved.tokens is batch.tokens


def flat(batch: Batch) -> list[torch.Tensor]:
    parts = {**vars(batch), **vars(batch.tokens)}
    return [value for name, value in parts.items() if name != "tokens" and value is not None]


def test_workers_give_the_same_batches_as_none(store) -> None:
    from torch.utils.data import DataLoader

    from embedrag.data.collator import Batches

    sizes = {"rows": 12, "batch_size": 5, "accumulation": 2}
    bounds = [bound for epoch in range(2) for step in steps_of_epoch(**sizes, epoch=epoch) for bound in step]
    results = [
        [
            flat(batch)
            for batch in DataLoader(
                Batches(store, ShuffledSampler(12, seed), bounds, SamplingSettings(neg_nums=4, seed=seed)),
                batch_size=None,
                num_workers=workers,
            )
        ]
        for workers, seed in ((0, 7), (2, 7), (0, 8))
    ]
    alone, together, other = results
    assert len(alone) == len(together) == len(bounds)
    pairs = [pair for a, b in zip(alone, together, strict=True) for pair in zip(a, b, strict=True)]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not all(torch.equal(a, b) for a, b in zip(alone[0], other[0], strict=True))


SCORED = [
    {"query": "q0", "pos": ["a", "b"], "neg": ["c", "d", "c"], "teacher_scores": [4, 3.5, 1, -2, 1]},
    {"query": "q1", "pos": "e", "neg": ["f"]},
]


def test_scores_of_a_teacher_go_with_their_passages(make_store) -> None:
    store = make_store(SCORED)
    wanted = {"a": 4.0, "b": 3.5, "c": 1.0, "d": -2.0}
    for visit in range(4):
        batch = make_batch(store, [(visit, 0), (visit, 1)], SamplingSettings(neg_nums=1, seed=7))
        _, passages = read_batch(batch)
        assert [wanted.get(text) for text in passages] == [
            None if score != score else score for score in batch.teacher.tolist()
        ]
    assert make_batch(make_store(SCORED[1:]), [(0, 0)], SamplingSettings(neg_nums=1, seed=7)).teacher is None


# Prompts of data sets


def test_prompt_of_a_data_set_stands_only_before_its_texts(write_jsonl, cache_folder) -> None:
    rows = [{"query": f"q{i}", "pos": [f"p{i}"], "neg": [f"n{i}"]} for i in range(4)]
    paths = [str(write_jsonl(rows[:2], "one.jsonl")), str(write_jsonl(rows[2:], "two.jsonl"))]
    store, _ = open_store(paths, letters, "letters", cache_folder, [("find: ", ""), ("", "doc: ")])
    queries, passages = read_batch(
        make_batch(store, [(0, row) for row in range(4)], SamplingSettings(neg_nums=1, seed=7))
    )
    assert queries == ["find: q0", "find: q1", "q2", "q3"]
    assert passages == ["p0", "n0", "p1", "n1", "doc: p2", "doc: n2", "doc: p3", "doc: n3"]


def test_texts_that_differ_only_in_their_prompt_are_never_each_others_negative(write_jsonl, cache_folder) -> None:
    rows = [{"query": "q", "pos": "a"}, {"query": "r", "pos": "b"}]
    paths = [str(write_jsonl(rows, name)) for name in ("one.jsonl", "two.jsonl")]
    for prompts, texts in (([("", ""), ("1 ", "2 ")], 8), ([("", ""), ("", "")], 4)):
        store, _ = open_store(paths, letters, "letters", cache_folder, prompts)
        batch = make_batch(store, [(0, row) for row in range(4)], SamplingSettings(neg_nums=0, seed=7))
        assert len(batch.tokens) == texts
        assert sorted(map(tuple, batch.excluded.tolist())) == [(0, 2), (1, 3), (2, 0), (3, 1)]
