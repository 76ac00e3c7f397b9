"""Several positives of a query at once, and graded ones, from the file to the loss and the figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from embedrag.cli import main
from embedrag.data.collator import Batch, SamplingSettings, make_batch
from embedrag.data.token_store import TokenStore
from embedrag.data.tokenization import open_store
from embedrag.losses.contrastive import LossSettings, contrastive
from embedrag.losses.pairs import Pairs
from embedrag.losses.tiled import TILE_SCORES
from embedrag.training.memory import TokenBudget
from embedrag.training.objective import ContrastiveObjective
from tests.processes import run_processes
from tests.reference import contrastive_loop
from tests.training.state.test_resume import losses
from tests.training.test_grad_cache import encoder_of
from tests.training.test_objective import command, train

ROWS = [
    {"query": "a", "pos": ["b", "c", "d"], "neg": ["e", "f"], "grades": [1, 3, 1]},
    {"query": "g", "pos": ["h"], "neg": ["c"]},
    {"query": "i", "pos": ["j", "k"], "neg": ["b", "l"], "grades": [2, 1]},
    {"query": "a", "pos": ["m", "b"], "neg": ["j"]},
    {"query": "n", "pos": ["o", "p"]},
]
NAMES = "abcdefghijklmnop"


def letters(role: str, texts: list[str]) -> list[list[int]]:
    return [[10 + 2 * NAMES.index(text) + (role == "query")] * (2 + NAMES.index(text) % 3) for text in texts]


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return open_store([str(path)], letters, "letters", tmp_path / "cache")[0]


def text_of(batch: Batch, number: int) -> str:
    return NAMES[(int(batch.tokens.select(torch.tensor([number])).input_ids[0]) - 10) // 2]


def seen(batch: Batch) -> list[tuple[str, str, float, list[str]]]:
    """Query, positive, share and candidates of each pair."""
    passages = [text_of(batch, n) for n in batch.passage_index.tolist()]
    queries = [text_of(batch, n) for n in batch.query_index.tolist()]
    of = range(len(queries)) if batch.query is None else batch.query.tolist()
    shares = [1.0] * len(queries) if batch.share is None else batch.share.tolist()
    excluded = {tuple(pair) for pair in batch.excluded.tolist()}
    return [
        (queries[q], passages[label], share, [t for j, t in enumerate(passages) if (n, j) not in excluded])
        for n, (q, label, share) in enumerate(zip(of, batch.labels.tolist(), shares, strict=True))
    ]


def test_each_positive_is_a_pair_and_lower_grades_are_its_negatives(store: TokenStore) -> None:
    batch = make_batch(store, [(0, 0), (0, 1)], SamplingSettings(neg_nums=2, pos_nums=3, seed=1))
    assert seen(batch) == [
        ("a", "b", pytest.approx(0.2), ["b", "e", "f", "h"]),
        ("a", "c", pytest.approx(0.6), ["b", "c", "d", "e", "f", "h"]),
        ("a", "d", pytest.approx(0.2), ["d", "e", "f", "h"]),
        ("g", "h", 1.0, ["b", "c", "d", "e", "f", "h", "c"]),
    ]
    assert batch.owner.tolist() == [0] * 5 + [1] * 2 and batch.negatives.tolist() == [2, 1]


def test_positives_of_other_rows_of_the_query_are_never_negatives(store: TokenStore) -> None:
    batch = make_batch(store, [(0, 3), (0, 0)], SamplingSettings(neg_nums=2, pos_nums=2, seed=1))
    for query, positive, _, candidates in seen(batch):
        labelled = {"a": set("bcdm")}[query]
        lower = set("bd") if positive == "c" else set()
        assert set(candidates) & labelled == {positive} | (lower & set(candidates))


def test_positives_take_turns_when_there_are_more(store: TokenStore) -> None:
    for pos_nums, expected in ((2, [["b", "c"], ["d", "b"], ["c", "d"]]), (1, [["b"], ["c"], ["d"]])):
        sampling = SamplingSettings(neg_nums=2, pos_nums=pos_nums, seed=1)
        batches = [make_batch(store, [(visit, 0)], sampling) for visit in range(3)]
        assert [[pair[1] for pair in seen(batch)] for batch in batches] == expected


def test_one_positive_each_needs_no_pairs(store: TokenStore) -> None:
    batch = make_batch(store, [(0, row) for row in range(5)], SamplingSettings(neg_nums=2, seed=1))
    assert batch.query is None and batch.share is None and len(batch.labels) == 5


TERMS = [
    LossSettings(0.1),
    LossSettings(0.1, directions=("query_passage", "passage_query"), partition_mode="separate"),
    LossSettings(0.1, directions=("query_passage", "query_query", "passage_query", "passage_passage")),
    LossSettings(0.1, hardness_strength=2.0, hardness_mode="own", false_negative_margin=0.1),
    LossSettings(0.1, distillation="kl"),
    LossSettings(0.1, distillation="margin_mse", candidates="hard"),
]


@pytest.mark.parametrize("scores", [1, 20, 10_000])
@pytest.mark.parametrize("terms", TERMS, ids=str)
def test_loss_of_pairs_equals_the_loops_in_value_and_gradient(terms, scores, store, monkeypatch) -> None:
    monkeypatch.setitem(TILE_SCORES, "cpu", scores)
    batch = make_batch(store, [(0, row) for row in (0, 3, 1, 2, 4)], SamplingSettings(neg_nums=2, pos_nums=3, seed=1))
    teacher = torch.randn(len(batch.passage_index), generator=torch.Generator().manual_seed(0)).double()
    pairs = Pairs(batch.labels, batch.excluded, batch.owner, teacher, None, batch.query)
    found = []
    for function in (
        lambda q, p: contrastive(q, p, pairs, terms)[0],
        lambda q, p: contrastive_loop(q, p, pairs, terms),
    ):
        torch.manual_seed(3)
        q = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
        p = torch.randn(len(batch.passage_index), 7, dtype=torch.float64, requires_grad=True)
        loss = function(q, p)
        (loss * torch.arange(1, 1 + len(loss))).sum().backward()
        found.append([loss, q.grad, p.grad])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
    part, _ = contrastive(q, p, pairs, terms, slice(2, 6))
    torch.testing.assert_close(part, found[1][0][2:6], rtol=1e-10, atol=1e-12)


def test_step_weights_the_pairs_of_a_query_and_gives_one_loss_for_each_query(store: TokenStore, tiny_bert: str) -> None:
    step = ContrastiveObjective(encoder_of(tiny_bert), LossSettings(0.1))
    batch = make_batch(store, [(0, row) for row in (0, 3, 1, 2, 4)], SamplingSettings(neg_nums=2, pos_nums=3, seed=1))
    vectors = torch.randn(len(batch.tokens), 64, generator=torch.Generator().manual_seed(0))
    whole = step.loss(vectors, batch)
    pairs = Pairs(batch.labels, batch.excluded, batch.owner, None, None, batch.query)
    each = contrastive(vectors[batch.query_index], vectors[batch.passage_index], pairs, LossSettings(0.1))[0]
    expected = [sum(float(each[n] * batch.share[n]) for n in torch.where(batch.query == i)[0]) for i in range(5)]
    assert whole["loss"].tolist() == pytest.approx(expected, rel=1e-5)
    assert len(whole["correct"]) == 5
    for here in (slice(0, 2), slice(2, 5)):
        part = step.loss(vectors, batch, here)
        assert torch.equal(part["loss"], whole["loss"][here]) and torch.equal(part["correct"], whole["correct"][here])


def test_gradient_in_chunks_is_that_of_the_whole_batch(store: TokenStore, tiny_bert: str) -> None:
    encoder = encoder_of(tiny_bert)
    batch = make_batch(store, [(0, row) for row in (0, 3, 1, 2, 4)], SamplingSettings(neg_nums=2, pos_nums=3, seed=1))
    found = []
    for budget in (None, 12):
        encoder.zero_grad()
        objective = ContrastiveObjective(encoder, LossSettings(0.1), budget=TokenBudget(budget))
        objective.backward(batch, 1 / 5)
        found.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_grades_survive_fixing_and_mining(tmp_path: Path) -> None:
    path, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [{"query": f"q{i}", "pos": ["same text", f"p{i}"], "neg": [""], "grades": [2, 1]} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert main(["check", str(path), "--fix", str(out)]) == 1
    assert [json.loads(line)["grades"] for line in out.read_text().splitlines()] == [[2, 1]] * 3
    mined = tmp_path / "mined.jsonl"
    assert main(["mine", "--train_dataset", str(out), "--output", str(mined), "--bm25", "--range", "0", "9"]) == 0
    assert [json.loads(line)["grades"] for line in mined.read_text().splitlines()] == [[2, 1]] * 3


# Trainings


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [
        {
            "query": f"question {i}",
            "pos": [f"answer {i}", f"reply {i}", f"hint {i}"],
            "neg": [f"distractor {i}"],
            "grades": [3, 2, 1],
        }
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_several_positives_and_a_teacher_train_and_two_processes_are_one(
    tiny_bert: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_bert, data, tmp_path / "one") == 0
    assert "rows have grades; they only count with several positives in one step" in capsys.readouterr().out
    words = ["--pos_nums", "3", "--embedding_teacher", tiny_bert]
    assert train(tiny_bert, data, tmp_path / "all", *words) == 0
    assert "rows have grades, which" not in capsys.readouterr().out
    run_processes(command(tiny_bert, data, tmp_path / "two", *words, "--batch_size", "2"))
    single, several, two = (losses(tmp_path / name) for name in ("one", "all", "two"))
    assert [row[3] for row in single] != [row[3] for row in several]
    assert [row[3] for row in two] == pytest.approx([row[3] for row in several], rel=1e-4)
