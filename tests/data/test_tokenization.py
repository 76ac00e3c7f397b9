"""The token store gives exactly what the tokenizer gives, calls it once a text, and is whole or absent."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import embedrag.data.tokenization
from embedrag.data.rows import read_rows
from embedrag.data.text import PASSAGE, QUERY
from embedrag.data.token_batch import TokenBatch
from embedrag.data.token_store import TokenStore
from embedrag.data.tokenization import build_store, open_store
from embedrag.errors import RunError, UserError
from tests.data.conftest import write_xlsx

MARKS = {QUERY: 1, PASSAGE: 2}
TWICE = [
    {"query": "same", "pos": ["p1"], "neg": ["n1", "same"]},
    {"query": "other", "pos": ["p1", "p3"], "neg": ["p2"]},
    {"query": "same", "pos": ["p2", "p1"]},
    {"anchor": "same", "positive": "n1"},
]


class Tokenizer:
    """A stub: a mark of the role, then the character codes; remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []

    def __call__(self, role: str, texts: Sequence[str]) -> list[list[int]]:
        self.calls.append((role, list(texts)))
        return [[MARKS[role], *map(ord, text)] for text in texts]


def read(store: TokenStore, text: int) -> tuple[str, str]:
    """Role and text behind a text id."""
    mark, *codes = store.batch(np.array([text])).input_ids.tolist()
    return {number: role for role, number in MARKS.items()}[mark], "".join(map(chr, codes))


def read_row(store: TokenStore, index: int) -> dict[str, object]:
    query, positives, negatives = store.row(index)
    assert read(store, query)[0] == QUERY
    passages = [[read(store, text) for text in texts] for texts in (positives, negatives)]
    assert all(role == PASSAGE for texts in passages for role, _ in texts)
    pos, neg = ([text for _, text in texts] for texts in passages)
    return {"query": read(store, query)[1], "pos": pos, "neg": neg}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "stores"


@pytest.fixture
def make(write_jsonl, cache) -> Callable[..., tuple[TokenStore, bool, Tokenizer]]:
    """A function from rows to (store, found, tokenizer)."""

    def build(rows: list, key: str = "key") -> tuple[TokenStore, bool, Tokenizer]:
        tokenizer = Tokenizer()
        return *open_store([str(write_jsonl(rows))], tokenizer, key, cache), tokenizer

    return build


def unusable(role: str, texts: Sequence[str]) -> list[list[int]]:
    raise RuntimeError("must not be called")


# The store


@pytest.mark.parametrize("at_once", [1, 3, 2048])
def test_every_row_comes_back_for_any_size_of_a_call(at_once, rows, make, monkeypatch) -> None:
    monkeypatch.setattr(embedrag.data.tokenization, "TEXTS_PER_CALL", at_once)
    store, found, tokenizer = make(rows)
    assert not found and len(store) == len(rows)
    assert [read_row(store, i) for i in range(len(store))] == rows
    assert max(len(texts) for _, texts in tokenizer.calls) <= at_once


def test_ids_are_exactly_those_of_the_tokenizer(rows, make) -> None:
    store, _, tokenizer = make(rows)
    wanted = [ids for role, texts in tokenizer.calls for ids in Tokenizer()(role, texts)]
    stored = [store.batch(np.array([text])).input_ids.tolist() for text in range(len(store.text_offsets) - 1)]
    assert sorted(stored) == sorted(wanted)
    assert store.token_ids.dtype == np.int32
    assert len(store.token_ids) == sum(map(len, wanted)) == store.text_offsets[-1]


@pytest.mark.parametrize("at_once", [1, 2, 2048])
def test_each_different_text_is_tokenised_once_for_each_role(at_once, make, monkeypatch) -> None:
    monkeypatch.setattr(embedrag.data.tokenization, "TEXTS_PER_CALL", at_once)
    store, _, tokenizer = make(TWICE * 5)
    asked = [(role, text) for role, texts in tokenizer.calls for text in texts]
    pairs = {(QUERY, row.get("query") or row.get("anchor")) for row in TWICE} | {
        (PASSAGE, text) for text in ("p1", "p2", "p3", "n1", "same")
    }
    assert sorted(asked) == sorted(pairs)
    assert store.report["unique_texts"] == len(pairs)


def test_text_that_is_query_and_passage_has_two_forms(make) -> None:
    store, _, _ = make(TWICE)
    query, _, negatives = store.row(0)
    assert read(store, query) == (QUERY, "same") and read(store, negatives[1]) == (PASSAGE, "same")


def test_long_token_ids_and_uneven_lengths_are_kept(write_jsonl, cache) -> None:
    ids = {"q": [2**31 - 1, 0], "p": list(range(5000)), "n": [7]}
    path = write_jsonl([{"query": "q", "pos": "p", "neg": "n"}])
    store, _ = open_store([str(path)], lambda role, texts: [ids[text] for text in texts], "key", cache)
    query, positives, negatives = store.row(0)
    batch = store.batch(np.array([query, *positives, *negatives]))
    assert batch.lengths.tolist() == [2, 5000, 1]
    assert batch.input_ids.tolist() == ids["q"] + ids["p"] + ids["n"]


def test_batch_of_any_texts_keeps_order_and_repetitions(rows, make) -> None:
    store, _, _ = make(rows)
    texts = np.array([5, 0, 5, 17, 3])
    batch = store.batch(texts)
    bounds = batch.cu_seqlens.tolist()
    pieces = [batch.input_ids[a:b].tolist() for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    assert pieces == [store.batch(texts[i : i + 1]).input_ids.tolist() for i in range(len(texts))]
    assert len(batch) == 5 and batch.input_ids.dtype == torch.int64


def test_known_positives_of_a_query_come_from_all_its_rows(make) -> None:
    store, _, _ = make(TWICE)
    known = {read(store, store.row(i)[0])[1]: [read(store, t) for t in store.known(store.row(i)[0])] for i in range(4)}
    assert {query: sorted(text for _, text in texts) for query, texts in known.items()} == {
        "same": ["n1", "p1", "p2"],
        "other": ["p1", "p3"],
    }
    passages = {text for i in range(4) for part in store.row(i)[1:] for text in part.tolist()}
    assert [text for text in passages if len(store.known(text))] == []


def test_place_is_file_and_line_over_several_files_and_blank_lines(tmp_path: Path, cache) -> None:
    row = '{"query": "q%d", "pos": "p"}\n'
    first, second = tmp_path / "a.jsonl", tmp_path / "b: odd.jsonl"
    first.write_text(row % 1 + "\n\n" + row % 2)
    second.write_text("\n" + row % 3)
    store, _ = open_store([str(first), str(second)], Tokenizer(), "key", cache)
    assert [store.place(i) for i in range(3)] == [f"{first}:1", f"{first}:4", f"{second}:2"]


def test_report_counts_rows_shapes_texts_and_dropped_negatives(make) -> None:
    store, _, _ = make([*TWICE, {"query": "x", "pos": "y", "neg": ["y", "", "z", "z"]}])
    assert store.report == {
        "rows": 5,
        "shapes": {"query, pos, neg": 3, "query, pos": 1, "anchor, positive": 1},
        "unique_texts": 3 + 7,
        "dropped_negatives": 3,
        "dropped_at": [f"{store.sources[0]}:5"],
        "rows_without_negatives": 2,
        "rows_with_teacher_scores": 0,
        "rows_with_grades": 0,
        "rows_with_prompts": 0,
        "longest_prompt": ["", ""],
        "unused_keys": {},
        "mean_negatives": 4 / 5,
    }


# The cache


def test_second_start_finds_the_store_and_calls_nothing(rows, make, write_jsonl, cache) -> None:
    first, _, _ = make(rows)
    again, found = open_store([str(write_jsonl(rows))], unusable, "key", cache)
    assert found and again.report == first.report
    assert [read_row(again, i) for i in range(len(again))] == rows
    assert len(list(cache.iterdir())) == 1


def test_store_is_mapped_and_not_in_memory(rows, make) -> None:
    store, _, _ = make(rows)
    assert isinstance(store.token_ids, np.memmap) and isinstance(store.row_texts, np.memmap)


def test_changed_file_gives_a_new_store(rows, make) -> None:
    make(rows)
    assert make(rows)[1], "an unchanged file must be found"
    changed = [{**rows[0], "query": "question X"}, *rows[1:]]
    store, found, tokenizer = make(changed)
    assert not found and tokenizer.calls
    assert read_row(store, 0)["query"] == "question X"


def test_changed_tokenizer_key_gives_a_new_store(rows, make) -> None:
    make(rows, key="512 tokens")
    assert not make(rows, key="256 tokens")[1]
    assert make(rows, key="512 tokens")[1] and make(rows, key="256 tokens")[1]


def test_further_file_in_the_folder_gives_a_new_store(rows, write_jsonl, tmp_path, cache) -> None:
    folder = str(write_jsonl(rows, "data/a.jsonl").parent)
    open_store([folder], Tokenizer(), "key", cache)
    assert open_store([folder], Tokenizer(), "key", cache)[1]
    write_jsonl(rows[:1], "data/b.jsonl")
    store, found = open_store([folder], Tokenizer(), "key", cache)
    assert not found and len(store) == len(rows) + 1


@pytest.mark.parametrize("calls_before", [0, 2])
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_failure_while_tokenising_leaves_nothing(
    calls_before, failure, rows, make, write_jsonl, cache, monkeypatch
) -> None:
    monkeypatch.setattr(embedrag.data.tokenization, "TEXTS_PER_CALL", 4)
    tokenizer = Tokenizer()

    def fail(role: str, texts: Sequence[str]) -> list[list[int]]:
        if len(tokenizer.calls) >= calls_before:
            raise failure
        return tokenizer(role, texts)

    with pytest.raises(failure):
        open_store([str(write_jsonl(rows))], fail, "key", cache)
    assert list(cache.iterdir()) == []
    assert not make(rows)[1], "the next start must not find a half store"


def test_bad_row_at_the_end_is_reported_before_anything_is_tokenised_or_written(rows, write_jsonl, cache) -> None:
    path = write_jsonl([*rows, {"query": "", "pos": "p"}])
    with pytest.raises(UserError, match=rf"{path.name}:{len(rows) + 1}: query is blank"):
        open_store([str(path)], unusable, "key", cache)
    assert not cache.exists()


@pytest.mark.parametrize(("mode", "found"), [("a", "the data changed"), ("w", "rows.jsonl")])
def test_file_that_changes_while_it_is_read_is_reported_and_nothing_is_written(
    mode, found, write_jsonl, cache, monkeypatch
) -> None:
    monkeypatch.setattr(embedrag.data.tokenization, "TEXTS_PER_CALL", 1)
    path = write_jsonl({"query": f"q{i}", "pos": "p" * 30_000} for i in range(40))

    def disturb(role: str, texts: Sequence[str]) -> list[list[int]]:
        with path.open(mode) as file:
            file.write('{"query": "late", "pos": "p"}\n')
        return [[1]] * len(texts)

    with pytest.raises(UserError, match=found):
        open_store([str(path)], disturb, "key", cache)
    assert list(cache.iterdir()) == []


def test_store_that_another_process_finished_first_is_taken(rows, write_jsonl, cache) -> None:
    """On a second machine with a disk of its own, all processes tokenise at once."""
    path = str(write_jsonl(rows))
    others: list[TokenStore] = []

    def slow(role: str, texts: Sequence[str]) -> list[list[int]]:
        if not others:
            others.append(open_store([path], Tokenizer(), "key", cache)[0])
        return Tokenizer()(role, texts)

    store, found = open_store([path], slow, "key", cache)
    assert not found and store.checksum == others[0].checksum
    assert len(list(cache.iterdir())) == 1


def test_value_error_of_the_tokenizer_is_not_reported_as_changed_data(rows, write_jsonl, cache) -> None:
    def fail(role: str, texts: Sequence[str]) -> list[list[int]]:
        raise ValueError("no such role")

    with pytest.raises(ValueError, match="no such role"):
        open_store([str(write_jsonl(rows))], fail, "key", cache)


STORE = [
    "token_ids.bin",
    "meta.json",
    "checksums.json",
    *(f"{name}.npy" for name in ("text_offsets", "text_identities", "known_offsets", "known_positives")),
    *(f"row_{name}.npy" for name in ("texts", "offsets", "positives", "lines", "sources", "sets", "scores", "grades")),
]
DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "lengthened": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "lost": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "first byte": lambda path: flip(path, 0),
    "last byte": lambda path: flip(path, -1),
    "middle byte": lambda path: flip(path, path.stat().st_size // 2),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", STORE)
def test_damaged_store_is_named_and_made_again(name, rows, make, capsys) -> None:
    """Never trained on, never a traceback, and the start after it finds a whole one."""
    good, _, _ = make(rows)
    checksum = good.checksum
    assert {path.name for path in Path(good.token_ids.filename).parent.iterdir()} == set(STORE)
    for kind, damage in DAMAGE.items():
        folder = Path(make(rows)[0].token_ids.filename).parent
        damage(folder / name)
        capsys.readouterr()
        store, found, tokenizer = make(rows)
        assert not found and tokenizer.calls, kind
        assert store.checksum == checksum and [read_row(store, i) for i in range(len(store))] == rows
        said = capsys.readouterr().out
        assert f"cache: {folder} is damaged (" in said and "; it is made again" in said, kind
        assert name in said or name == "checksums.json", (kind, said)
        assert make(rows)[1] and list(folder.parent.iterdir()) == [folder], kind


def test_store_of_an_earlier_version_is_made_again(rows, make, cache, capsys) -> None:
    make(rows)
    [folder] = cache.iterdir()
    (folder / "checksums.json").unlink()
    assert not make(rows)[1]
    assert "it has no checksums.json; earlier versions wrote none" in capsys.readouterr().out
    assert make(rows)[1]


def test_ids_that_no_tokenizer_gave_end_with_the_name_of_the_folder(rows, make) -> None:
    """Damage in a block that was not read at the start: no `index out of range` in the model."""
    store, _, _ = make(rows)
    for field, values in (
        ("token_ids", np.full_like(store.token_ids, store.largest_id + 1)),
        ("token_ids", np.full_like(store.token_ids, -1)),
        ("text_offsets", store.text_offsets + 10**6),
        ("text_offsets", store.text_offsets[::-1]),
        ("text_offsets", store.text_offsets[:1]),
    ):
        with pytest.raises(RunError, match="the tokenised data is damaged; remove this folder, and the next start"):
            replace(store, **{field: values}).batch(np.array([0, 1]))


def test_full_disk_names_the_cache_and_what_to_do(rows, write_jsonl, cache, monkeypatch) -> None:
    def full(*rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("embedrag.data.tokenization.write_npy", full)
    words = rf"{cache}/tokens-\w+: not written \(No space left.*MiB free.*`cache_dir`, or \$EMBEDRAG_CACHE"
    with pytest.raises(RunError, match=words):
        open_store([str(write_jsonl(rows))], Tokenizer(), "key", cache)
    assert list(cache.iterdir()) == []
    with pytest.raises(RunError, match="not written .No space left"):
        build_store(lambda: read_rows([str(write_jsonl(rows))]), Tokenizer(), [("", "")], write_jsonl([]).parent)


def test_cache_that_can_not_be_written_is_named(rows, write_jsonl) -> None:
    path = write_jsonl(rows)
    with pytest.raises(UserError, match="^`cache_dir=.*: Not a directory"):
        open_store([str(path)], Tokenizer(), "key", path / "cache")


def test_hub_id_that_can_not_be_read_is_named(cache) -> None:
    with pytest.raises(UserError, match="^`train_dataset=owner/no-such-set`"):
        open_store(["owner/no-such-set"], unusable, "key", cache)


# The batch


def pad_slowly(texts: list[list[int]], pad: int, multiple: int) -> tuple[list, list]:
    width = max(len(text) for text in texts)
    while width % multiple:
        width += 1
    fills = [width - len(text) for text in texts]
    ids = [text + [pad] * fill for text, fill in zip(texts, fills, strict=True)]
    return ids, [[1] * len(text) + [0] * fill for text, fill in zip(texts, fills, strict=True)]


@given(
    texts=st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=6),
    data=st.data(),
    multiple=st.sampled_from([1, 2, 8, 7]),
)
def test_selected_and_padded_texts_equal_a_double_loop(texts, data, multiple) -> None:
    picked = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=8))
    batch = TokenBatch.from_lists(texts).select(torch.tensor(picked))
    chosen = [texts[i] for i in picked]
    assert batch.input_ids.tolist() == [token for text in chosen for token in text]
    assert batch.lengths.tolist() == [len(text) for text in chosen]
    ids, mask = batch.padded(pad_id=-5, multiple=multiple)
    assert (ids.tolist(), mask.tolist()) == pad_slowly(chosen, -5, multiple)
    assert ids.dtype == mask.dtype == torch.int64


def test_batch_knows_its_texts() -> None:
    batch = TokenBatch.from_lists([[1], [2, 3, 4]])
    assert len(batch) == 2 and batch.lengths.tolist() == [1, 3] and batch.input_ids.tolist() == [1, 2, 3, 4]


# Prompts of rows


def test_prompt_of_a_row_stands_before_its_query_in_place_of_the_general_one(make, write_jsonl, cache) -> None:
    rows = [
        {"query": "a", "pos": "p", "neg": ["n"], "prompt": "own: "},
        {"query": "a", "pos": "r", "neg": ["p"]},
        {"query": "b", "pos": "p", "prompt": ""},
        {"query": "b", "pos": "p", "prompt": None},
    ]
    store, _ = open_store([str(write_jsonl(rows))], Tokenizer(), "key", cache, [("Q: ", "P: ")])
    assert [read_row(store, number)["query"] for number in range(4)] == ["own: a", "Q: a", "b", "Q: b"]
    assert all(read_row(store, number)["pos"] == [f"P: {rows[number]['pos']}"] for number in range(4))
    assert store.report["rows_with_prompts"] == 2 and store.report["unused_keys"] == {}
    first, second = store.row(0)[0], store.row(1)[0]
    known = [{read(store, text)[1] for text in store.known(query)} for query in (first, second)]
    assert known == [{"P: p", "P: r"}] * 2, "positives of a query are known under each of its prompts"
    assert store.forms[first] == store.forms[second]
    other = [{**row, "prompt": "other: "} for row in rows]
    again, found = open_store([str(write_jsonl(other))], Tokenizer(), "key", cache, [("Q: ", "P: ")])
    assert not found and read_row(again, 0)["query"] == "other: a"


def test_sheet_of_a_workbook_is_part_of_the_name_of_a_store(tmp_path: Path, cache) -> None:
    sheets = {name: [["query", "pos"], [name, "p"]] for name in ("A", "B")}
    path = write_xlsx(tmp_path / "book.xlsx", sheets)
    stores = [open_store([f"{path}:{name}"], Tokenizer(), "key", cache) for name in sheets]
    assert [read_row(store, 0)["query"] for store, found in stores if not found] == ["A", "B"]
    assert open_store([f"{path}:B"], unusable, "key", cache)[1]
