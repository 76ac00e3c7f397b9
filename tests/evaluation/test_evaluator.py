"""Evaluation against trec_eval, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedrag.cli import main
from embedrag.data.retrieval_dataset import RetrievalDataset, load_retrieval_dataset
from embedrag.errors import RunError
from embedrag.evaluation.evaluator import score
from embedrag.evaluation.result import winners
from embedrag.evaluation.significance import comparison, difference, p_value, verdict
from embedrag.models.load import load_model
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


def test_cosines_of_labelled_pairs_are_reported(write_jsonl: Callable[..., Path]) -> None:
    rows = [{"query": "q", "pos": ["good"], "neg": ["bad", "worse"]}, {"query": "r", "pos": ["fine"], "neg": ["best"]}]
    angles = {"q": 0.0, "good": 0.1, "bad": 0.5, "worse": 0.05, "r": 1.0, "fine": 1.2, "best": 1.0}
    vectors = {text: np.array([np.cos(angle), np.sin(angle)]) for text, angle in angles.items()}
    found = score(Fixed(vectors), load_retrieval_dataset(str(write_jsonl(rows))), [1]).summary()
    assert found["triplet_accuracy"] == pytest.approx(1 / 3)
    assert found["mean_positive_score"] == pytest.approx((np.cos(0.1) + np.cos(0.2)) / 2)
    assert found["mean_negative_score"] == pytest.approx((np.cos(0.5) + np.cos(0.05) + 1) / 3)
    assert found["mean_difference"] == pytest.approx(found["mean_positive_score"] - found["mean_negative_score"])


def test_verdict_tells_a_real_gain_from_noise_and_from_a_loss() -> None:
    generator = np.random.default_rng(0)
    base = generator.random(400)
    tuned = base + 0.05 + 0.1 * generator.standard_normal(400)
    gain, low, high = difference(base, tuned)
    assert low < gain < high
    assert verdict(low, high, p_value(base, tuned)) == "better" and p_value(base, tuned) < 0.001
    noise = base + 0.3 * generator.standard_normal(400)
    assert verdict(*difference(base, noise)[1:], p_value(base, noise)) == "no clear difference"
    assert p_value(base, noise) > 0.05
    assert verdict(*difference(base, base - 0.05)[1:], p_value(base, base - 0.05)) == "worse"
    assert difference(base, base) == (0.0, 0.0, 0.0) and p_value(base, base) == 1.0


def test_few_queries_give_no_verdict() -> None:
    """Five that all won have an interval above 0, and two-sided p = 1/16."""
    base = np.zeros(5)
    tuned = np.array([0.1, 0.2, 0.3, 0.2, 0.1])
    _, low, high = difference(base, tuned)
    assert low > 0 and verdict(low, high, p_value(base, tuned)) == "no clear difference"
    six = np.append(tuned, 0.2)
    assert verdict(*difference(np.zeros(6), six)[1:], p_value(np.zeros(6), six)) == "better"


def test_p_value_is_that_of_all_sign_flips() -> None:
    """Eight queries have 256 patterns of signs, so the exact share can be counted."""
    gain = np.array([0.3, 0.1, -0.05, 0.2, 0.4, -0.1, 0.15, 0.25])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)
    exact = float(np.mean(np.abs(gain @ signs) >= abs(gain.sum()) - 1e-12))
    assert p_value(np.zeros(8), gain) == pytest.approx(exact, abs=1e-12)


def test_winners_and_losers_are_named_with_what_came_first() -> None:
    data = RetrievalDataset(["q", "r", "s"], ["a", "b"], [{0: 1.0}, {1: 1.0}, {1: 1.0}], [[], [], []])
    places = {"q": [1, 0], "r": [0, 1], "s": [0, 1], "a": [1, 0], "b": [0, 1]}
    other = places | {"q": [0, 1], "r": [0, 1], "s": [1, 0]}
    base, tuned = (score(Fixed({t: np.array(v, float) for t, v in x.items()}), data, [1]) for x in (other, places))
    found = winners(base, tuned, data, "ndcg@1")
    assert [row["query"] for row in found["won"]] == ["q", "s"] and found["lost"] == []
    assert found["won"][0] == {
        "query": "q", "base": 0.0, "tuned": 1.0, "relevant": "a", "base_first": "b", "tuned_first": "a",
    }  # fmt: skip
    assert [row["query"] for row in winners(tuned, base, data, "ndcg@1")["lost"]] == ["s", "q"]
    assert {row["verdict"] for row in comparison(base.metrics, base.metrics)} == {"no clear difference"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_beir(
        tmp_path / "set", {"q1": "a?", "q2": "b?"}, {"d1": "a", "d2": "b\u2028c"}, [("q1", "d2", 2), ("q1", "d1", 0)]
    )


def test_vectors_that_are_not_finite_are_an_error() -> None:
    data = RetrievalDataset(["q"], ["a"], [{0: 1.0}], [[]])
    with pytest.raises(RunError, match="not finite"):
        score(Fixed({"q": np.array([1.0, 0.0]), "a": np.array([np.nan, 0.0])}), data, [1])


def test_figures_of_wrong_passages_are_left_out_where_there_is_none() -> None:
    data = RetrievalDataset(["q"], ["a"], [{0: 1.0}], [[]])
    found = score(Fixed({"q": np.array([1.0, 0.0]), "a": np.array([0.0, 1.0])}), data, [1])
    assert found.summary() == {
        "ndcg@1": 1.0, "recall@1": 1.0, "mrr@1": 1.0, "map@1": 1.0, "precision@1": 1.0, "mean_positive_score": 0.0,
    }  # fmt: skip


def test_drawn_passages_are_never_relevant_and_as_many() -> None:
    draw = np.random.default_rng(0)
    vectors = {f"p{i}": draw.standard_normal(4) for i in range(9)} | {"q": np.ones(4)}
    data = RetrievalDataset(["q"], [f"p{i}" for i in range(9)], [{0: 1.0, 3: 1.0, 4: 2.0}], [[]])
    found = score(Fixed(vectors), data, [1])
    wrong = {round(float(vectors[f"p{i}"].sum() / 2 / np.linalg.norm(vectors[f"p{i}"])), 5) for i in (1, 2, 5, 6, 7, 8)}
    assert len(found.negative) == 3 and {round(float(value), 5) for value in found.negative} <= wrong


def test_command_compares_with_the_baseline_and_writes_json_and_a_page(
    tiny_bert: str, tiny_qwen3: str, folder: Path, write_jsonl: Callable[..., Path], tmp_path: Path, capsys
) -> None:
    rows = write_jsonl([{"query": f"query {i}", "pos": [f"answer {i}"], "neg": [f"other {i}"]} for i in range(12)])
    out, page = tmp_path / "new" / "metrics.json", tmp_path / "new" / "report.html"
    words = ["--model", tiny_bert, "--baseline", tiny_qwen3, "--data", str(rows), "--k", "1", "5", "--device", "cpu"]
    words += ["--general_data", str(folder), "--output", str(out), "--html", str(page)]
    assert main(["evaluate", *words]) == 0
    said = capsys.readouterr().out
    assert "verdict: " in said and "general data" in said and "95 % interval" in said
    result = json.loads(out.read_text())
    assert {"ndcg@1", "recall@5", "mrr@5", "map@5", "precision@1", "triplet_accuracy"} <= set(result)
    assert result["metric"] == "ndcg@1" and result["queries"] == 12 and result["passages"] == 24
    assert result["comparison"][0]["tuned"] == result["ndcg@1"]
    assert result["baseline_metrics"]["ndcg@1"] == result["comparison"][0]["base"]
    assert sum(result["histograms"]["model"]["positive"]) == 12 and len(result["map"]["points"]) == 24
    assert result["general"]["queries"] == 1
    assert "<html" in page.read_text()


def test_command_equals_a_plain_ranking(tiny_bert: str, write_jsonl: Callable[..., Path], tmp_path: Path) -> None:
    rows = [{"query": f"word {i * 7} x", "pos": [f"text {i} of many"]} for i in range(30)]
    out = tmp_path / "m.json"
    assert main(["evaluate", "--model", tiny_bert, "--data", str(write_jsonl(rows)), "--output", str(out)]) == 0
    encoder = load_model(tiny_bert)
    q, p = (encoder.encode([t for t in texts], role) for texts, role in (
        ([row["query"] for row in rows], "query"), ([row["pos"][0] for row in rows], "passage")
    ))  # fmt: skip
    ranks = [(scores > scores[i]).sum() + 1 for i, scores in enumerate(q @ p.T)]
    assert json.loads(out.read_text())["mrr@100"] == pytest.approx(np.mean([1 / rank for rank in ranks]), abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "{data}"], "lies in a folder that is read"),
        (["--baseline", "./nowhere"], "--baseline ./nowhere"),
        (["--metric", "ndcg@7"], "--metric ndcg@7: not among"),
        (["--general_data", "x"], "--general_data compares with --baseline"),
    ],
)
def test_wrong_flags_are_named(tiny_bert: str, folder: Path, words: list[str], message: str, capsys) -> None:
    words = [word.format(data=folder / "corpus.jsonl") for word in words]
    assert main(["evaluate", "--model", tiny_bert, "--data", str(folder), *words]) == 2
    assert message in capsys.readouterr().err
