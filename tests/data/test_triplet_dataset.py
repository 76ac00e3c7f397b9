"""The data set for loops of one's own gives the trainer's batches, and those of a slow obvious loop."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from embedrag.cli import main
from embedrag.data.collator import Batch
from embedrag.data.rows import load_rows
from embedrag.data.triplet_dataset import TripletDataset
from embedrag.errors import UserError
from embedrag.models.load import load_model
from tests.data.test_collator import flat, letters, read_batch


def batches(dataset: TripletDataset, epochs: int, batch_size: int = 4, workers: int = 0) -> list[Batch]:
    found = []
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=dataset.collate, num_workers=workers)
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        found += list(loader)
    return found


def same(some: list[Batch], others: list[Batch]) -> bool:
    pairs = list(zip(map(flat, some), map(flat, others), strict=True))
    return all(len(a) == len(b) and all(map(torch.equal, a, b)) for a, b in pairs)


def draws_slowly(rows: list[dict[str, Any]], epoch: int, neg_nums: int, seed: int) -> list[tuple[str, str, list[str]]]:
    """What an epoch shows, written down without the library: order, positives in turn, drawn negatives."""

    def generator(*place: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *place])))

    shown = []
    for number in generator(epoch).permutation(len(rows)).tolist():
        row = rows[number]
        positive = row["pos"][(number + epoch) % len(row["pos"])]
        negatives = row["neg"]
        if len(negatives) > neg_nums:
            picked = generator(epoch, number + 1).choice(len(negatives), neg_nums, replace=False)
            negatives = [negatives[place] for place in picked]
        shown.append((row["query"], positive, list(negatives)))
    return shown


def test_batches_are_those_of_the_trainer(
    tiny_bert: str, rows, write_jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedrag.training import trainer

    seen: list[Batch] = []

    class Spy(trainer.Batches):
        def __getitem__(self, index: int) -> Batch:
            seen.append(super().__getitem__(index))
            return seen[-1]

    monkeypatch.setattr(trainer, "Batches", Spy)
    path = write_jsonl(rows)
    words = ["--model_name_or_path", tiny_bert, "--train_dataset", str(path), "--output_dir", str(tmp_path / "out")]
    words += ["--finetune_type", "lora", "--batch_size", "4", "--epochs", "2", "--seed", "7", "--use_cpu"]
    assert main(["train", *words, "--neg_nums", "2", "--pos_nums", "2", "--query_prompt", "find: "]) == 0
    tokenizer = load_model(str(tmp_path / "out" / "final"), "cpu").tokenizer
    for source in (path, [str(path)], load_rows(path), rows):
        ours = batches(TripletDataset(source, tokenizer, neg_nums=2, pos_nums=2, seed=7), epochs=2)
        assert len(ours) == 6 and same(ours, seen)
    other = TripletDataset(path, tokenizer, neg_nums=2, pos_nums=2, seed=8)
    assert not torch.equal(batches(other, 1)[0].rows, seen[0].rows)


@pytest.mark.parametrize("neg_nums", [0, 2, 4])
def test_epochs_show_what_a_slow_loop_draws(neg_nums: int, rows) -> None:
    dataset = TripletDataset(rows, letters, neg_nums=neg_nums, seed=3)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        expected = draws_slowly(rows, epoch, neg_nums, seed=3)
        batch = dataset.collate(list(dataset))
        queries, passages = read_batch(batch)
        assert queries == [query for query, _, _ in expected]
        assert passages == [text for _, positive, negatives in expected for text in (positive, *negatives)]
        assert [passages[label] for label in batch.labels] == [positive for _, positive, _ in expected]
        assert [rows[row]["query"] for row in batch.rows] == queries


def test_each_epoch_draws_other_negatives_and_an_epoch_can_be_repeated(rows) -> None:
    dataset = TripletDataset(rows, letters, neg_nums=4)
    first, second = batches(dataset, 1), batches(dataset, 2)[3:]
    assert not same(first, second)
    dataset.set_epoch(0)
    assert same(first, batches(dataset, 1))


def test_positives_of_any_row_are_not_negatives_of_its_query() -> None:
    rows = [{"query": "q", "pos": "a"}, {"query": "r", "pos": "b", "neg": ["a"]}, {"query": "q", "pos": "b"}]
    dataset = TripletDataset(rows, letters, neg_nums=1)
    batch = dataset.collate(list(dataset))
    queries, passages = read_batch(batch)
    right = {"q": {"a", "b"}, "r": {"b"}}
    wanted = {
        (pair, place)
        for pair, query in enumerate(queries)
        for place, text in enumerate(passages)
        if text in right[query] and place != batch.labels[pair]
    }
    assert set(map(tuple, batch.excluded.tolist())) == wanted and len(wanted) > 3


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_copies_give_the_same_batches(workers: int, rows) -> None:
    dataset = TripletDataset(rows, letters, neg_nums=2)
    plain = batches(dataset, 2)
    assert same(plain, batches(dataset, 2, workers=workers))
    assert same(plain, batches(pickle.loads(pickle.dumps(dataset)), 2))


def test_temporary_folder_goes_with_the_data_set(rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dataset = TripletDataset(rows, letters)
    assert len(dataset) == 12 and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(IndexError):
        dataset[12]
    del dataset
    gc.collect()
    with pytest.raises(UserError):
        TripletDataset([*rows, {"query": ""}], letters)
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_files_are_found_tokenised_at_the_next_start(rows, write_jsonl, tmp_path: Path) -> None:
    class Tokenizer:
        key = "letters"
        calls = 0

        def __call__(self, role: str, texts: Any) -> list[list[int]]:
            self.calls += 1
            return letters(role, texts)

    first, second, path = Tokenizer(), Tokenizer(), write_jsonl(rows)
    before = batches(TripletDataset(path, first, cache_dir=tmp_path / "cache"), 1)
    assert same(before, batches(TripletDataset(path, second, cache_dir=tmp_path / "cache"), 1))
    assert first.calls and not second.calls
    with pytest.raises(UserError, match="needs a tokenizer with a `key`"):
        TripletDataset(path, letters, cache_dir=tmp_path / "cache")


def test_bad_rows_are_named_by_their_places(write_jsonl) -> None:
    bad = [{"query": "q", "pos": "p"}, {"query": "", "pos": "p"}, ["q"]]
    with pytest.raises(UserError) as caught:
        TripletDataset(bad, letters)
    assert str(caught.value) == "rows[1]: query is blank\nrows[2]: must be an object {…}, not a list"
    path = write_jsonl(bad)
    with pytest.raises(UserError, match=f"{path}:2: query is blank"):
        TripletDataset(path, letters)
    for nothing in ([], "./none.jsonl"):
        with pytest.raises(UserError) as caught:
            TripletDataset(nothing, letters)
        assert caught.value.argument == "train_dataset"


@pytest.mark.parametrize(("argument", "value", "least"), [("neg_nums", -1, 0), ("pos_nums", 0, 1), ("pos_nums", -3, 1)])
def test_counts_that_no_row_can_show_are_refused(argument: str, value: int, least: int) -> None:
    rows = [{"query": "q", "pos": ["p"], "neg": ["n"]}]
    with pytest.raises(UserError, match=f"`{argument}={value}`: must be {least} or more"):
        TripletDataset(rows, lambda role, texts: [[1] for _ in texts], **{argument: value})
