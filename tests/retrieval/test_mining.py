"""Mined negatives against a full sort, and what must never come out as one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from embedrag.cli import main
from embedrag.data.rows import read_rows
from embedrag.data.text import identity
from embedrag.data.text_files import read_corpus
from embedrag.errors import RunError, UserError
from embedrag.models.load import load_model
from embedrag.retrieval.bm25 import Bm25, words
from embedrag.retrieval.mining import Corpus, ceiling
from embedrag.retrieval.vector_cache import cached_vectors, unit

TOPICS = ["battery", "diode", "fuse", "relay", "coil", "lens", "valve", "motor"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBEDRAG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts = [f"the {topic} of type {number} carries {number * 3} units" for topic in TOPICS for number in range(8)]
    path = tmp_path / "corpus.jsonl"
    rows = [{"_id": str(i), "title": "Note" if i % 2 else "", "text": text} for i, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def rows(write_jsonl: Callable[..., Path]) -> Path:
    data = [
        {"query": f"which {topic} carries 6 units", "pos": [f"the {topic} of type 2 carries 6 units"], "term": topic}
        for topic in TOPICS
    ]
    # The same query again with another positive, and one in other letters and spaces.
    data += [{"query": "which fuse carries 6 units", "pos": ["Note the fuse of type 1 carries 3 units"]}]
    data += [{"query": "WHICH  fuse carries 6 units", "pos": ["The  FUSE of type 0 carries 0 units"]}]
    return write_jsonl(data)


def mine(rows: Path, output: Path, *more: str) -> list[dict]:
    assert main(["mine", "--train_dataset", str(rows), "--output", str(output), *more]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.mark.parametrize(("way", "ratio"), [("dense", 1.2), ("bm25", 0.95)])
def test_negatives_are_those_of_a_full_sort(
    way: str, ratio: float, rows: Path, corpus: Path, tmp_path: Path, tiny_bert: str
) -> None:
    more = ["--model", tiny_bert, "--device", "cpu"] if way == "dense" else ["--bm25"]
    more += ["--corpus", str(corpus), "--neg_nums", "3", "--range", "2", "20", "--max_positive_ratio", str(ratio)]
    mined = mine(rows, tmp_path / "out.jsonl", *more)
    texts = list(read_corpus(str(corpus), "text"))
    places = {identity(text): number for number, text in enumerate(texts)}
    if way == "dense":
        encoder = load_model(tiny_bert)
    else:
        for text in (text for row in mined for text in row["pos"]):
            places.setdefault(identity(text), len(places))
            texts += [text] if len(texts) < len(places) else []
        index = Bm25(texts)

    def scores(query: str, passages: list[str]) -> np.ndarray:
        if way == "dense":
            return encoder.encode(passages, "passage") @ encoder.encode([query], "query")[0]
        return index.scores(query)[[places[identity(text)] for text in passages]]

    fuse = {identity(text) for row in mined if "fuse" in row["query"].lower() for text in row["pos"]}
    for row in mined:
        known = fuse if "fuse" in row["query"].lower() else {identity(text) for text in row["pos"]}
        others = [text for text in texts[:64] if identity(text) not in known]
        found = scores(row["query"], others)
        order = sorted(range(len(others)), key=lambda j: (-found[j], j))
        order = [j for j in order if way == "dense" or found[j] > 0][2:20]
        limit = ratio * scores(row["query"], row["pos"]).min()
        picked = [j for j in order if found[j] < limit][:3]
        assert row["neg"] == [others[j] for j in picked], row["query"]
        assert row["teacher_scores"][1:] == pytest.approx(found[picked], abs=1e-5)
    assert all(len(row["neg"]) == 3 for row in mined[:4]) and mined[0]["term"] == "battery"


def test_no_positive_of_the_query_and_no_copy_of_it_comes_out(rows: Path, corpus: Path, tmp_path: Path) -> None:
    more = ["--bm25", "--neg_nums", "50", "--range", "0", "60", "--max_positive_ratio", "99"]
    mined = mine(rows, tmp_path / "out.jsonl", "--corpus", str(corpus), *more)
    for row in mined:
        known = {
            identity(t) for other in mined if identity(other["query"]) == identity(row["query"]) for t in other["pos"]
        }
        assert not known & {identity(text) for text in row["neg"]}
        assert len(row["neg"]) == len({identity(text) for text in row["neg"]}) > 20
        assert len(row["teacher_scores"]) == len(row["pos"]) + len(row["neg"])
    assert sum("type 1 carries" in text for row in mined if "coil" in row["query"] for text in row["neg"]) > 1


def test_what_scores_like_a_positive_is_left_out(rows: Path, corpus: Path, tmp_path: Path, tiny_bert: str) -> None:
    more = ["--corpus", str(corpus), "--model", tiny_bert, "--neg_nums", "5", "--range", "0", "60", "--device", "cpu"]
    strict = mine(rows, tmp_path / "strict.jsonl", *more, "--max_positive_ratio", "0.9")
    loose = mine(rows, tmp_path / "loose.jsonl", *more, "--max_positive_ratio", "10")
    for row in strict:
        weakest = min(row["teacher_scores"][: len(row["pos"])])
        assert all(score < 0.9 * weakest for score in row["teacher_scores"][len(row["pos"]) :])
    assert any(max(row["teacher_scores"][1:]) > 0.95 * row["teacher_scores"][0] for row in loose)
    assert ceiling(np.array([-0.4]), 0.95) == pytest.approx(-0.42)


def test_output_is_read_as_training_data_and_mined_again(rows: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    mined = mine(rows, out, "--bm25", "--corpus", str(corpus), "--range", "0", "30")
    records = [record for _, record in read_rows([str(out)])]
    assert [list(record.neg) for record in records] == [row["neg"] for row in mined]
    assert list(records[0].scores) == mined[0]["teacher_scores"]
    again = mine(out, tmp_path / "again.jsonl", "--bm25", "--corpus", str(corpus), "--range", "0", "30")
    assert again == mined


def test_corpus_vectors_are_kept_for_the_model_and_its_texts(
    rows: Path, corpus: Path, tmp_path: Path, tiny_bert: str, tiny_qwen3: str, cache: Path, capsys
) -> None:
    more = ["--corpus", str(corpus), "--range", "0", "9", "--device", "cpu"]
    first = mine(rows, tmp_path / "a.jsonl", *more, "--model", tiny_bert)
    assert "kept in the cache" in capsys.readouterr().out
    assert mine(rows, tmp_path / "b.jsonl", *more, "--model", tiny_bert) == first
    assert "found in the cache" in capsys.readouterr().out
    mine(rows, tmp_path / "c.jsonl", *more, "--model", tiny_qwen3)
    assert "kept in the cache" in capsys.readouterr().out
    assert len(list(cache.glob("vectors-*.npy"))) == 2
    encoder = load_model(tiny_bert)
    texts = Corpus(read_corpus(str(corpus), "text")).texts
    vectors, found = cached_vectors(encoder, texts, "passage", cache)
    assert found and np.array_equal(vectors, unit(encoder.encode(texts, "passage")))


DAMAGED: dict[str, tuple[Callable[[Path, np.ndarray], object], str]] = {
    "other shape": (lambda path, good: np.save(path, good[:, :3]), r"holds float32 \[9, 3\]"),
    "empty": (lambda path, good: path.write_bytes(b""), "damaged"),
    "archive": (lambda path, good: np.savez(path.open("wb"), good), "damaged"),
    "cut off": (lambda path, good: path.write_bytes(path.read_bytes()[:-9]), "damaged"),
    "not a number": (lambda path, good: np.save(path, np.where(np.arange(9) == 6, np.nan, good.T).T), r"vector 7 is"),
    "zeros": (lambda path, good: np.save(path, good * (np.arange(9) < 8)[:, None]), r"vector 9 is not of length 1"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_vectors_in_the_cache_are_named_by_their_file(damage: str, tiny_bert: str, cache: Path) -> None:
    texts, encoder = [f"text {number}" for number in range(9)], load_model(tiny_bert, "cpu")
    good = np.array(cached_vectors(encoder, texts, "passage", cache)[0])
    [path] = cache.glob("vectors-*.npy")
    spoil, message = DAMAGED[damage]
    spoil(path, good)
    with pytest.raises(UserError, match=f"{path.name}: .*{message}.*remove it"):
        cached_vectors(encoder, texts, "passage", cache)


def test_vectors_without_a_direction_are_not_kept(tiny_bert: str, cache: Path, monkeypatch) -> None:
    encoder = load_model(tiny_bert, "cpu")
    monkeypatch.setattr(type(encoder), "blocks", lambda *_: iter([np.zeros((2, encoder.dimension), np.float32)]))
    with pytest.raises(RunError, match="a vector of length 0"):
        cached_vectors(encoder, ["a", "b"], "passage", cache)
    assert not list(cache.iterdir())


@pytest.fixture
def judge(minilm: str, tmp_path: Path) -> tuple[Path, Any, Any]:
    """Folder of a small cross-encoder, the model and its tokenizer."""
    folder = tmp_path / "judge"
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        num_labels=1, initializer_range=0.5,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def test_cross_encoder_decides(rows: Path, corpus: Path, tmp_path: Path, judge, tiny_bert: str) -> None:
    folder, model, tokenizer = judge
    more = ["--corpus", str(corpus), "--bm25", "--range", "0", "12", "--neg_nums", "4", "--device", "cpu"]
    mined = mine(rows, tmp_path / "out.jsonl", *more, "--score_with", str(folder), "--max_positive_ratio", "99")
    row = mined[0]
    for text, score in zip([*row["pos"], *row["neg"]], row["teacher_scores"], strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(row["query"], text, return_tensors="pt")).logits.sigmoid().item()
        assert score == pytest.approx(expected, abs=1e-4)
    assert row["teacher_scores"][1:] == sorted(row["teacher_scores"][1:], reverse=True)
    assert (
        main(["mine", "--train_dataset", str(rows), "--output", str(tmp_path / "x"), *more, "--score_with", tiny_bert])
        == 2
    )


def test_cross_encoder_that_is_damaged_is_named(rows: Path, tmp_path: Path, judge, capsys) -> None:
    folder, model, _ = judge
    words = ["mine", "--train_dataset", str(rows), "--output", str(tmp_path / "x.jsonl"), "--bm25", "--range", "0", "9"]
    words += ["--score_with", str(folder), "--device", "cpu"]
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    model.save_pretrained(folder)
    assert main(words) == 1
    assert "gives scores that are NaN" in capsys.readouterr().err
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:99])
    assert main(words) == 2
    assert f"--score_with {folder}: can't be loaded" in capsys.readouterr().err
    assert not (tmp_path / "x.jsonl").exists()


def test_words_of_scripts_without_spaces_are_pairs() -> None:
    assert words("電容器の電圧 ABC-12") == ["電容", "容器", "器の", "の電", "電圧", "abc", "12"]
    index = Bm25(["저항은 전류를 제한한다", "콘덴서는 전하를 저장한다"])
    assert index.scores("저항이란?")[0] > index.scores("저항이란?")[1] == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "name either --model or --bm25"),
        (["--bm25", "--model", "x"], "name either --model or --bm25"),
        (["--bm25", "--range", "9", "9"], "--range must be two ranks"),
        (["--bm25", "--range", "0", "3"], "fewer ranks than --neg_nums 7"),
        (["--bm25", "--range", "16", "90"], "there are 10 passages, so none is behind rank 16"),
        (["--bm25", "--corpus", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_wrong_flags_are_named(rows: Path, tmp_path: Path, more: list[str], message: str, capsys) -> None:
    assert main(["mine", "--train_dataset", str(rows), "--output", str(tmp_path / "out.jsonl"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_input_is_not_overwritten(rows: Path, capsys) -> None:
    before = rows.read_text()
    assert main(["mine", "--train_dataset", str(rows), "--output", str(rows), "--bm25"]) == 2
    assert main(["mine", "--train_dataset", str(rows), "--output", str(rows), "--bm25", "--overwrite"]) == 2
    assert rows.read_text() == before


def test_row_that_finds_nothing_keeps_what_is_wrong_of_its_negatives_and_no_scores(
    tmp_path: Path, write_jsonl, capsys
) -> None:
    rows = [
        {
            "query": "which fuse",
            "pos": ["zzz"],
            "neg": ["old", "ZZZ ", "yyy", "older"],
            "teacher_scores": [3, 1, 1, 1, 2],
        },
        {"query": "Which  FUSE", "pos": ["YYY"], "neg": ["zzz"], "teacher_scores": [3, 1]},
    ]
    first, second = mine(write_jsonl(rows), tmp_path / "out.jsonl", "--bm25", "--range", "0", "20")
    assert first["neg"] == ["old", "older"] and "teacher_scores" not in first
    assert second["neg"] == [] and second["teacher_scores"] == [0], "the score of its positive is a new one"
    assert "2 rows found no negative and keep those they had, without scores" in capsys.readouterr().out
    assert len(list(read_rows([str(tmp_path / "out.jsonl")]))) == 2


def test_passage_is_a_positive_behind_a_title_too(tmp_path: Path, write_jsonl) -> None:
    text, other = "the fuse of type 2 carries 6 units", "the fuse of type 3 carries 6 units"
    corpus = [{"title": title, "text": text} for title in ("Fuses", "Parts", "")] + [{"title": "", "text": other}]
    path = write_jsonl(corpus, "corpus.jsonl")
    rows = write_jsonl([{"query": "which fuse carries 6 units", "pos": [text.upper()]}])
    more = ["--bm25", "--corpus", str(path), "--neg_nums", "9", "--range", "0", "9", "--max_positive_ratio", "99"]
    [row] = mine(rows, tmp_path / "out.jsonl", *more)
    assert row["neg"] == [other]


def test_rows_of_tables_with_columns_of_several_shapes_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "query,pos,neg,anchor,positive,hard_negatives,note\n"
        "which fuse,red fuse,a fuse,,,,x\n"
        ',,,which relay,blue relay,"[""red relay""]",\n'
    )
    first, second = mine(path, tmp_path / "out.jsonl", "--bm25", "--range", "0", "9")
    assert (first["query"], first["pos"], first["neg"]) == ("which fuse", ["red fuse"], ["a fuse"])
    assert (second["query"], second["pos"], second["neg"]) == ("which relay", ["blue relay"], ["red relay"])
    assert set(first) == {"query", "pos", "neg", "note"}


def test_further_keys_of_any_kind_are_written(tmp_path: Path) -> None:
    import datetime

    import pyarrow
    import pyarrow.parquet

    table = {"query": ["which fuse"], "pos": [["red fuse"]], "neg": [["a fuse"]], "day": [datetime.date(2024, 2, 29)]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "rows.parquet")
    [row] = mine(tmp_path / "rows.parquet", tmp_path / "out.jsonl", "--bm25", "--range", "0", "9")
    assert row["day"] == "2024-02-29" and row["neg"] == ["a fuse"]
