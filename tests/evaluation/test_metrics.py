"""Retrieval metrics against their formulas, written as slow loops."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedrag.errors import UserError
from embedrag.evaluation.metrics import METRICS, mrr, ndcg, recall
from embedrag.training.config.options import TrainOptions


def dcg_slowly(gains: list[float], k: int) -> float:
    total = 0.0
    for place in range(1, k + 1):
        if place <= len(gains):
            total += gains[place - 1] / math.log2(1 + place)
    return total


def ndcg_slowly(gains: list[float], relevant: list[float], k: int) -> float:
    """The best order is searched for among all orders."""
    best = max(dcg_slowly(list(order), k) for order in itertools.permutations(relevant))
    return dcg_slowly(gains, k) / best


def recall_slowly(gains: list[float], relevant: list[float], k: int) -> float:
    found = 0
    for place in range(min(k, len(gains))):
        if gains[place] > 0:
            found += 1
    return found / len(relevant)


def mrr_slowly(gains: list[float], relevant: list[float], k: int) -> float:
    for place in range(min(k, len(gains))):
        if gains[place] > 0:
            return 1 / (place + 1)
    return 0.0


def average_precision_slowly(gains: list[float], relevant: list[float], k: int) -> float:
    total = 0.0
    for place in range(1, min(k, len(gains)) + 1):
        if gains[place - 1] > 0:
            total += sum(gain > 0 for gain in gains[:place]) / place
    return total / len(relevant)


def precision_slowly(gains: list[float], relevant: list[float], k: int) -> float:
    return recall_slowly(gains, relevant, k) * len(relevant) / k


SLOW = {
    "ndcg": ndcg_slowly,
    "recall": recall_slowly,
    "mrr": mrr_slowly,
    "map": average_precision_slowly,
    "precision": precision_slowly,
}
RELEVANT = st.lists(st.sampled_from([1, 2, 3, 0.5]), min_size=1, max_size=5)


@pytest.mark.parametrize("name", METRICS)
@given(relevant=RELEVANT, others=st.integers(0, 6), k=st.integers(1, 15), data=st.data())
def test_metric_of_any_ranking_equals_its_formula(name, relevant, others, k, data) -> None:
    ranking = data.draw(st.permutations(relevant + [0] * others))
    ranking = ranking[: data.draw(st.integers(0, len(ranking)))]
    value = METRICS[name](ranking, relevant, k)
    assert value == pytest.approx(SLOW[name](ranking, relevant, k), abs=1e-12)
    assert 0 <= value <= 1 + 1e-12


def test_metrics_are_those_that_options_accept() -> None:
    """A metric is one entry of the registry; the options of a training must know it too."""
    assert set(METRICS) == set(SLOW)
    needed = {"train_dataset": "rows.jsonl", "output_dir": "out", "batch_size": 2}
    for name in METRICS:
        assert TrainOptions(**needed, metric_for_best=f"{name}@7").metric_for_best == f"{name}@7"
    with pytest.raises(UserError, match="must be ") as error:
        TrainOptions(**needed, metric_for_best="accuracy@7")
    accepted = re.search(r"must be (.*) with a cut-off", str(error.value))
    assert accepted and accepted[1].replace(" or ", ", ").split(", ") == list(METRICS)
    text = TrainOptions.model_fields["metric_for_best"].description or ""
    assert all(name in text for name in METRICS)


def test_values_of_a_known_ranking_are_as_worked_out_by_hand() -> None:
    gains, relevant = [0, 2, 0, 1, 3], [3, 2, 1, 1]
    assert mrr(gains, relevant, 10) == 1 / 2
    assert recall(gains, relevant, 4) == 2 / 4 and recall(gains, relevant, 5) == 3 / 4
    best = 3 / 1 + 2 / math.log2(3) + 1 / 2 + 1 / math.log2(5)
    assert ndcg(gains, relevant, 10) == pytest.approx((2 / math.log2(3) + 1 / math.log2(5) + 3 / math.log2(6)) / best)


@pytest.mark.parametrize("name", METRICS)
def test_perfect_ranking_scores_one_and_empty_ranking_nothing(name) -> None:
    assert METRICS[name]([3, 2, 1], [1, 3, 2], 3) == 1
    assert METRICS[name]([0, 0], [1], 2) == 0 == METRICS[name]([], [1], 2)


def test_graded_gains_count_and_their_order_matters() -> None:
    better, worse = ndcg([3, 1], [1, 3], 10), ndcg([1, 3], [1, 3], 10)
    assert better == 1 > worse
    assert ndcg([1, 1], [1, 1], 10) == 1


@pytest.mark.parametrize("name", METRICS)
def test_order_in_which_relevant_documents_are_listed_does_not_matter(name) -> None:
    values = {METRICS[name]([0, 2, 1, 3], list(order), 3) for order in itertools.permutations([2, 2, 1, 3])}
    assert len(values) == 1 and METRICS[name]([2, 0, 1, 3], [2, 2, 1, 3], 2) not in values


@pytest.mark.parametrize("name", sorted(METRICS.keys() - {"precision"}))
def test_cut_off_beyond_the_list_is_the_whole_list(name) -> None:
    gains, relevant = [0, 1, 0, 2], [2, 1]
    assert METRICS[name](gains, relevant, 4) == METRICS[name](gains, relevant, 1000) > 0


@pytest.mark.parametrize("name", METRICS)
def test_only_the_first_k_count(name) -> None:
    assert METRICS[name]([0, 0, 1], [1], 2) == 0 < METRICS[name]([0, 0, 1], [1], 3)


def test_recall_counts_all_relevant_documents_even_beyond_k() -> None:
    assert recall([1, 1], [1] * 8, 2) == 0.25
    assert ndcg([1, 1], [1] * 8, 2) == 1
