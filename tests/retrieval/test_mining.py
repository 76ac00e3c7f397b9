"""Mined negatives against a full sort, and what must never come out as one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from embedrag.cli import main
from embedrag.data.rows import TrainingRow, read_rows
from embedrag.data.text import identity
from embedrag.data.text_files import read_corpus
from embedrag.errors import UserError
from embedrag.models.load import load_model
from embedrag.retrieval import mining
from embedrag.retrieval.bm25 import Bm25
from embedrag.retrieval.corpus import Corpus, KnownPositives
from embedrag.retrieval.cross_encoder import CrossEncoder
from embedrag.retrieval.mining import MiningCounts, MiningSettings, ceiling, mined_rows
from embedrag.retrieval.searches import SearchResult
from embedrag.runtime.console import console

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


def test_passage_that_scores_like_a_positive_is_left_out(
    rows: Path, corpus: Path, tmp_path: Path, tiny_bert: str
) -> None:
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


def test_corpus_vectors_are_kept_in_the_cache(
    rows: Path, corpus: Path, tmp_path: Path, tiny_bert: str, cache: Path, capsys
) -> None:
    more = ["--corpus", str(corpus), "--range", "0", "9", "--device", "cpu", "--model", tiny_bert]
    first = mine(rows, tmp_path / "a.jsonl", *more)
    assert "kept in the cache" in capsys.readouterr().out
    assert mine(rows, tmp_path / "b.jsonl", *more) == first
    assert "found in the cache" in capsys.readouterr().out
    assert len(list(cache.glob("vectors-*"))) == 1


def made(query: str, pos: tuple[str, ...], neg: tuple[str, ...] = ()) -> TrainingRow:
    return TrainingRow(query, pos, neg, "test")


class Lengths:
    """Scores a passage by its length, as if it were a cross-encoder."""

    def scores(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        return np.array([len(passage) for _, passage in pairs], np.float32)


def ranked(block: Sequence[TrainingRow], depth: int) -> Iterator[SearchResult]:
    """Passage n is the nth best, with the score 1 - n / 10; every positive scores 0.85."""
    for row in block:
        numbers = np.arange(min(depth, 8))
        yield SearchResult(numbers, (1 - numbers / 10).astype(np.float32), np.full(len(row.pos), 0.85, np.float32))


def test_rows_are_mined_without_files_and_counted() -> None:
    corpus = Corpus([f"passage {'x' * number}" for number in range(8)])
    rows = [
        ("a:1", made("q", (corpus.texts[2],), ("old",))),
        ("a:2", made("q", ("another",), ("old",))),
        ("a:3", made("r", (corpus.texts[7],), ("old",))),
    ]
    counts, known = MiningCounts(), KnownPositives(row for _, row in rows)
    settings = MiningSettings(neg_nums=3, ranks=(0, 4), max_positive_ratio=1.0)
    mined = list(mined_rows(rows, corpus, ranked, known, settings, counts))
    assert [place for place, _ in mined] == ["a:1", "a:2", "a:3"]
    # 0 and 1 score above the positives, and 2 is a positive of both rows of q
    assert [[corpus.number(text) for text in row.neg] for _, row in mined] == [[3, 4], [3, 4], [2, 3]]
    assert mined[0][1].scores == pytest.approx([0.85, 0.7, 0.6])
    assert counts == MiningCounts(rows=3, negatives=6, short=3, without=0, like_positives=6)
    counts, strict = MiningCounts(), MiningSettings(neg_nums=1, ranks=(0, 2), max_positive_ratio=1.0)
    [(_, none), *_] = mined_rows(rows[:1], corpus, ranked, known, strict, counts)
    assert (none.neg, none.scores) == (("old",), ())
    assert counts == MiningCounts(rows=1, negatives=0, short=1, without=1, like_positives=2)


def test_scores_of_a_cross_encoder_decide() -> None:
    corpus = Corpus([f"passage {'x' * number}" for number in range(8)])
    row, counts = made("q", ("y" * 14,)), MiningCounts()
    settings = MiningSettings(neg_nums=2, ranks=(0, 7), max_positive_ratio=1.0)
    [(_, mined)] = mined_rows([("a:1", row)], corpus, ranked, KnownPositives([row]), settings, counts, Lengths())
    assert [len(text) for text in mined.neg] == [13, 12], "the longest that are shorter than the positive"
    assert mined.scores == (14, 13, 12) and counts.like_positives == 1


def test_cross_encoder_of_the_command_decides_and_its_former_flag_still_works(
    rows: Path, corpus: Path, tmp_path: Path, minilm: str, capsys
) -> None:
    folder = tmp_path / "cross-encoder"
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.5, **sizes)
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    more = ["--corpus", str(corpus), "--bm25", "--range", "0", "12", "--neg_nums", "4", "--device", "cpu"]
    more += ["--max_positive_ratio", "99"]
    mined = mine(rows, tmp_path / "out.jsonl", *more, "--cross_encoder", str(folder))
    row, scorer = mined[0], CrossEncoder(str(folder), "cpu")
    texts = [*row["pos"], *row["neg"]]
    assert row["teacher_scores"] == pytest.approx(scorer.scores([(row["query"], text) for text in texts]), abs=1e-5)
    assert row["teacher_scores"][1:] == sorted(row["teacher_scores"][1:], reverse=True)
    assert mine(rows, tmp_path / "again.jsonl", *more, "--score_with", str(folder)) == mined
    words = ["mine", "--train_dataset", str(rows), "--output", str(tmp_path / "x"), *more]
    capsys.readouterr()
    assert main([*words, "--score_with", "./none"]) == 2
    assert "error: --cross_encoder ./none: no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["mine", "--help"])
    shown = capsys.readouterr().out
    assert "--cross_encoder" in shown and "score_with" not in shown


def test_mining_is_a_function_too(rows: Path, corpus: Path, tmp_path: Path, tiny_bert: str) -> None:
    encoder = load_model(tiny_bert, "cpu")
    with console.silenced():
        result = mining.mine(rows, output=tmp_path / "a.jsonl", model=encoder, corpus=corpus, range=(0, 9))
        mining.mine([rows], output=tmp_path / "b.jsonl", model=tiny_bert, corpus=corpus, range=(0, 9), device="cpu")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert (result.output, result.rows, result.passages) == (tmp_path / "a.jsonl", 10, 64)
    assert result.negatives == sum(len(row.neg) for _, row in read_rows([str(tmp_path / "a.jsonl")]))
    with pytest.raises(UserError) as error:
        mining.mine(rows, output=tmp_path / "c.jsonl", range=(5, 5), neg_nums=0, max_positive_ratio=0)
    assert [problem.argument for problem in error.value.problems] == [None, "neg_nums", "max_positive_ratio", "range"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "name either --model or --bm25"),
        (["--bm25", "--model", "x"], "name either --model or --bm25"),
        (["--bm25", "--range", "9", "9"], "--range 9 9: must be two ranks"),
        (["--bm25", "--range", "0", "3"], "--range 0 3: has fewer ranks than --neg_nums 7"),
        (
            ["--bm25", "--range", "16", "90"],
            "--range 16 90: there are 10 passages, so none of them comes after rank 16",
        ),
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


def test_row_without_new_negatives_keeps_its_right_ones_and_has_no_scores(tmp_path: Path, write_jsonl, capsys) -> None:
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
    assert "no new negative for 2 rows; they keep their old ones, without scores" in capsys.readouterr().out
    assert len(list(read_rows([str(tmp_path / "out.jsonl")]))) == 2


def test_passage_with_a_title_before_it_is_still_a_positive(tmp_path: Path, write_jsonl) -> None:
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


def test_corpus_of_one_split_is_mined_and_a_missing_split_is_named(rows: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "a", "text": "a heron"}\n{"_id": "b", "text": "a stone"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "what"}\n')
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
    words = ["mine", "--train_dataset", str(rows), "--bm25", "--range", "0", "9", "--output"]
    assert main([*words, str(tmp_path / "m.jsonl"), "--corpus", f"{folder}@dev"]) == 0
    assert "in 2 different passages" in capsys.readouterr().out
    assert main([*words, str(tmp_path / "n.jsonl"), "--corpus", f"{folder}@no"]) == 2
    assert "has no split no; there is dev" in capsys.readouterr().err
    assert main([*words, str(folder / "m.jsonl"), "--corpus", f"{folder}@dev"]) == 2
    assert "lies in a folder that is read" in capsys.readouterr().err
