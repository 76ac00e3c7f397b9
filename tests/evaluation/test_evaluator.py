"""Scores of a model on a retrieval set, against trec_eval and against figures worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedrag.data.retrieval_dataset import RetrievalDataset, load_retrieval_dataset, sample_queries
from embedrag.errors import RunError
from embedrag.evaluation.evaluator import score
from embedrag.models.embedding_format import EmbeddingFormat
from embedrag.retrieval.vector_cache import unit
from tests.data.test_retrieval_dataset import write_beir


class Fixed:
    """An encoder whose vectors are given."""

    sharded = False

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.vectors = vectors
        self.device = type("device", (), {"type": "cpu"})()

    def encode(self, texts, role, progress=None):
        return np.stack([self.vectors[text] for text in texts])

    def blocks(self, texts, role, progress=None):
        for start in range(0, len(texts), 7):
            yield self.encode(texts[start : start + 7], role)


def test_metrics_equal_those_of_trec_eval_with_ties_and_grades(tmp_path: Path) -> None:
    """Vectors of few different values give many ties."""
    trec = pytest.importorskip("pytrec_eval")
    draw = np.random.default_rng(0)
    queries = {f"q{number}": f"query {number}" for number in range(12)}
    passages = {f"d{number}": f"passage {number}" for number in range(60)}
    vectors = {  # exact products, so that ties are ties
        text: np.eye(3)[draw.integers(3)] * draw.choice([-1, 1]) for text in [*queries.values(), *passages.values()]
    }
    qrels = [(q, f"d{d}", float(draw.integers(0, 4))) for q in queries for d in draw.permutation(60)[:9]]
    data = load_retrieval_dataset(str(write_beir(tmp_path / "set", queries, passages, qrels)))
    ours = score(Fixed(vectors), data, [1, 3, 10, 100]).metrics
    run = {q: {d: float(vectors[queries[q]] @ vectors[passages[d]]) for d in passages} for q in queries}
    judged: dict[str, dict[str, int]] = {}
    for query, document, gain in qrels:
        judged.setdefault(query, {})[document] = int(gain)
    measures = {"ndcg_cut.1,3,10,100", "recall.1,3,10,100", "map_cut.1,3,10,100", "P.1,3,10,100"}
    theirs = trec.RelevanceEvaluator(judged, measures).evaluate(run)
    for number, query in enumerate(q for q in queries if any(judged[q].values())):
        for k in (1, 3, 10, 100):
            for name, other in (("ndcg", "ndcg_cut"), ("recall", "recall"), ("map", "map_cut"), ("precision", "P")):
                assert ours[f"{name}@{k}"][number] == pytest.approx(theirs[query][f"{other}_{k}"], abs=1e-9)
        assert ours["mrr@100"][number] == pytest.approx(
            trec.RelevanceEvaluator(judged, {"recip_rank"}).evaluate(run)[query]["recip_rank"], abs=1e-9
        )
    assert 0 < ours["ndcg@10"].mean() < 1


class Noisy(Fixed):
    """An encoder that gives a text another last bit in each call, as a model does in batches of different texts."""

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        super().__init__(vectors)
        self.draw = np.random.default_rng(7)

    def encode(self, texts, role, progress=None):
        exact = super().encode(texts, role)
        return exact * (1 + 1e-6 * self.draw.standard_normal(exact.shape))


def random_set(width: int, twins: bool = False) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, str], list]:
    """Vectors, queries, passages and judgements; each third passage has a text that two earlier ones have."""
    draw = np.random.default_rng(3)
    queries = {f"q{number}": f"query {number}" for number in range(10)}
    passages = {f"d{number}": f"passage {number % 30 if twins else number}" for number in range(90)}
    vectors = {text: draw.standard_normal(width) for text in [*queries.values(), *passages.values()]}
    qrels = [(q, f"d{d}", float(draw.integers(0, 3))) for q in queries for d in draw.permutation(90)[:9]]
    return vectors, queries, passages, qrels


def trec_mean(run: dict[str, dict[str, float]], qrels: list[tuple[str, str, float]], measure: str) -> float:
    trec = pytest.importorskip("pytrec_eval")
    judged: dict[str, dict[str, int]] = {}
    for query, document, gain in qrels:
        judged.setdefault(query, {})[document] = int(gain)
    found = trec.RelevanceEvaluator(judged, {".".join(measure.rsplit("_", 1))}).evaluate(run)
    return float(np.mean([values[measure] for values in found.values()]))


@pytest.mark.parametrize("precision", ["binary", "int8"])
def test_small_forms_have_the_metrics_that_trec_eval_gives_their_exact_scores(precision: str, tmp_path: Path) -> None:
    vectors, queries, passages, qrels = random_set(16)
    form = EmbeddingFormat(16, precision)
    data = load_retrieval_dataset(write_beir(tmp_path / "set", queries, passages, qrels))
    (_, ours), *_ = score(Fixed(vectors), data, [1, 10], forms=[form]).forms
    whole = {
        text: [int(number) for number in form.of(unit(vector[None].astype(np.float32)))[0]]
        for text, vector in vectors.items()
    }

    def cosine(one: list[int], other: list[int]) -> float:
        lengths = sum(x * x for x in one) * sum(x * x for x in other)
        return sum(x * y for x, y in zip(one, other, strict=True)) / lengths**0.5

    run = {q: {d: cosine(whole[queries[q]], whole[passages[d]]) for d in passages} for q in queries}
    for name, measure in (("ndcg@10", "ndcg_cut_10"), ("recall@1", "recall_1"), ("map@10", "map_cut_10")):
        assert ours[name] == pytest.approx(trec_mean(run, qrels, measure), abs=1e-12)


def test_passages_with_the_same_text_tie_whatever_the_model_computes(tmp_path: Path) -> None:
    vectors, queries, passages, qrels = random_set(8, twins=True)
    data = load_retrieval_dataset(write_beir(tmp_path / "set", queries, passages, qrels))
    ours = score(Noisy(vectors), data, [1, 2, 10, 100])
    exact = {text: vector / np.linalg.norm(vector) for text, vector in vectors.items()}
    run = {q: {d: float(exact[queries[q]] @ exact[passages[d]]) for d in passages} for q in queries}
    for k in (1, 2, 10, 100):
        assert ours.metrics[f"ndcg@{k}"].mean() == pytest.approx(trec_mean(run, qrels, f"ndcg_cut_{k}"), abs=1e-9)
    right = [{data.passages[number] for number in gains} for gains in data.relevant]
    assert all(data.passages[passage] in right[query] for query, passage in ours.places)
    assert len(ours.vectors) == 2 * len(ours.places)


def test_a_query_does_not_find_itself_and_missing_passages_count_as_in_trec_eval() -> None:
    """As in ArguAna: most queries are passages too, and some judged passages are not in the corpus."""
    vectors, queries, passages, _ = random_set(8)
    names, texts = list(passages)[::-1], list(passages.values())[::-1]
    own = {number: number + 40 for number in range(8)}
    vectors |= {queries[f"q{number}"]: vectors[texts[place]] for number, place in own.items()}
    relevant = [{number * 3: 1.0, 89 - number: 2.0} for number in range(9)] + [{}]
    missing = {2: [1.0], 9: [2.0, 1.0]}
    data = RetrievalDataset(list(queries.values()), texts, relevant, [[] for _ in queries], own=own, missing=missing)
    ours = score(Fixed(vectors), data, [1, 10, 90], forms=[EmbeddingFormat(8)])
    unit_of = {text: vector / np.linalg.norm(vector) for text, vector in vectors.items()}
    run = {
        query: {
            name: float(unit_of[queries[query]] @ unit_of[text])
            for place, (name, text) in enumerate(zip(names, texts, strict=True))
            if own.get(number) != place
        }
        for number, query in enumerate(queries)
    }
    qrels = [(f"q{n}", names[place], gain) for n, gains in enumerate(relevant) for place, gain in gains.items()]
    qrels += [(f"q{n}", f"gone{place}", gain) for n, gains in missing.items() for place, gain in enumerate(gains)]
    for name, measure in (("ndcg@10", "ndcg_cut_10"), ("recall@90", "recall_90"), ("map@10", "map_cut_10")):
        assert ours.metrics[name].mean() == pytest.approx(trec_mean(run, qrels, measure), abs=1e-9)
        assert ours.forms[0][1][name] == pytest.approx(ours.metrics[name].mean())
    assert ours.metrics["recall@90"][9] == 0 and ours.metrics["recall@90"][2] == pytest.approx(2 / 3)
    assert all(ours.first[number] != place for number, place in own.items())
    sampled = sample_queries(data, 4)
    again = score(Fixed(vectors), sampled, [10]).metrics["ndcg@10"]
    expected = {text: value for text, value in zip(data.queries, ours.metrics["ndcg@10"], strict=True)}
    assert again.tolist() == pytest.approx([expected[text] for text in sampled.queries])


def test_cosines_of_labelled_pairs_are_reported(write_jsonl: Callable[..., Path]) -> None:
    rows = [{"query": "q", "pos": ["good"], "neg": ["bad", "worse"]}, {"query": "r", "pos": ["fine"], "neg": ["best"]}]
    angles = {"q": 0.0, "good": 0.1, "bad": 0.5, "worse": 0.05, "r": 1.0, "fine": 1.2, "best": 1.0}
    vectors = {text: np.array([np.cos(angle), np.sin(angle)]) for text, angle in angles.items()}
    found = score(Fixed(vectors), load_retrieval_dataset(str(write_jsonl(rows))), [1]).summary()
    assert found["triplet_accuracy"] == pytest.approx(1 / 3)
    assert found["mean_positive_score"] == pytest.approx((np.cos(0.1) + np.cos(0.2)) / 2)
    assert found["mean_negative_score"] == pytest.approx((np.cos(0.5) + np.cos(0.05) + 1) / 3)
    assert found["mean_difference"] == pytest.approx(found["mean_positive_score"] - found["mean_negative_score"])


def test_vectors_that_are_not_finite_are_an_error() -> None:
    data = RetrievalDataset(["q"], ["a"], [{0: 1.0}], [[]])
    with pytest.raises(RunError, match="not finite"):
        score(Fixed({"q": np.array([1.0, 0.0]), "a": np.array([np.nan, 0.0])}), data, [1])


def test_figures_of_wrong_passages_are_left_out_when_there_are_none() -> None:
    data = RetrievalDataset(["q"], ["a"], [{0: 1.0}], [[]])
    found = score(Fixed({"q": np.array([1.0, 0.0]), "a": np.array([0.0, 1.0])}), data, [1])
    assert found.summary() == {
        "ndcg@1": 1.0, "recall@1": 1.0, "mrr@1": 1.0, "map@1": 1.0, "precision@1": 1.0, "mean_positive_score": 0.0,
    }  # fmt: skip


def test_drawn_passages_are_never_relevant_and_have_the_right_number() -> None:
    draw = np.random.default_rng(0)
    vectors = {f"p{i}": draw.standard_normal(4) for i in range(9)} | {"q": np.ones(4)}
    data = RetrievalDataset(["q"], [f"p{i}" for i in range(9)], [{0: 1.0, 3: 1.0, 4: 2.0}], [[]])
    found = score(Fixed(vectors), data, [1])
    wrong = {round(float(vectors[f"p{i}"].sum() / 2 / np.linalg.norm(vectors[f"p{i}"])), 5) for i in (1, 2, 5, 6, 7, 8)}
    assert len(found.negative) == 3 and {round(float(value), 5) for value in found.negative} <= wrong
