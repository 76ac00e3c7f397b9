"""Texts become the same ids everywhere: with prompt, end token and length."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from embedrag.cli import main
from embedrag.errors import UserError
from embedrag.models.base_model import describe_base
from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.models.tokenizer import TextTokenizer, load_tokenizer
from tests.tokenizers import DECODERS, ENCODERS, Family, fast

LIMIT = 12
# Empty, one token, some tokens, and far too long.
TEXTS = ["", "a", "a frog sits", "Über 12 青蛙!", "a frog sits by the pond " * 20]


def tokenizer_of(folder: Path, pooling: str = "last_token", **settings: Any) -> TextTokenizer:
    config = EmbeddingConfig(pooling, **{"query_max_len": LIMIT, "passage_max_len": LIMIT} | settings)
    return load_tokenizer(describe_base(str(folder)), config)


def authors_ids(folder: Path, texts: list[str], limit: int = LIMIT) -> list[list[int]]:
    """Ids by the call of transformers itself."""
    own = transformers.AutoTokenizer.from_pretrained(folder)
    return [own(text, truncation=True, max_length=limit)["input_ids"] for text in texts]


def full_text(tokenizer: TextTokenizer) -> str:
    """A text that has exactly as many tokens as are allowed."""
    return next(text for n in range(40) if len(tokenizer.tokenizer(text := "a, " * n + "1")["input_ids"]) >= LIMIT)


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_has_its_authors_ids_and_one_end_token(name: str, tmp_path: Path) -> None:
    family = DECODERS[name]
    folder = family.save(tmp_path / "base")
    ours = tokenizer_of(folder)
    end = ours.tokenizer.eos_token_id
    texts = [*TEXTS, full_text(ours)]
    if family.end:
        expected = authors_ids(folder, texts)
    else:
        expected = [[*ids, end] for ids in authors_ids(folder, texts, LIMIT - 1)]
    assert ours("query", texts) == expected
    assert [ours("passage", [text])[0] for text in texts] == expected
    assert {len(ids) for ids in expected[-2:]} == {LIMIT}
    last = ours.tokenizer.convert_tokens_to_ids(family.end) if family.end else end
    assert all(ids[-1] == last and last not in ids[2:-1] for ids in expected)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_has_its_authors_ids(name: str, tmp_path: Path) -> None:
    family = ENCODERS[name]
    folder = family.save(tmp_path / "base")
    if family.model_type == "t5":  # not a base yet; its tokenizer is read alone
        (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 999}))
    ours = tokenizer_of(folder, "mean")
    texts = [*TEXTS, full_text(ours)]
    assert ours("query", texts) == authors_ids(folder, texts)
    assert all(ours.tokenizer.convert_ids_to_tokens(ids[-1]) == family.end for ids in ours("query", texts))


@pytest.mark.parametrize("name", ["llama 3", "llama", "gemma", "gpt2 with bos", "ends"])
def test_decoder_with_another_pooling_has_exactly_its_authors_ids(name: str, tmp_path: Path) -> None:
    folder = DECODERS[name].save(tmp_path / "base")
    assert tokenizer_of(folder, "mean")("query", TEXTS[1:]) == authors_ids(folder, TEXTS[1:])


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
@pytest.mark.parametrize("adapter", [False, True], ids=["model", "adapter"])
def test_saved_folder_gives_the_same_ids_in_transformers_and_again_in_ours(
    name: str, adapter: bool, tmp_path: Path
) -> None:
    family = (DECODERS | ENCODERS)[name]
    folder = family.save(tmp_path / "base")
    if family.model_type == "t5":
        (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 999}))
    pooling = "last_token" if name in DECODERS else "cls"
    ours = tokenizer_of(folder, pooling)
    saved = tmp_path / "saved"
    saved.mkdir()
    ours.save(saved)
    if not adapter:
        shutil.copy(folder / "config.json", saved)
    texts = [*TEXTS, full_text(ours)]
    assert authors_ids(saved, texts) == ours("query", texts)
    again = transformers.AutoTokenizer.from_pretrained(saved)
    assert again.padding_side == ours.tokenizer.padding_side
    assert again.model_input_names == ours.tokenizer.model_input_names
    shutil.copy(folder / "config.json", saved)
    reread = tokenizer_of(saved, pooling)
    assert reread("query", texts) == ours("query", texts)
    assert reread.key == ours.key


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_is_cut_at_the_side_that_the_base_says_and_keeps_both_ends(side: str, tmp_path: Path) -> None:
    ours = tokenizer_of(Family(fast("<s> $A", truncation_side=side), "llama").save(tmp_path / "base"))
    whole = ours.tokenizer("a frog sits by the pond " * 20, truncation=False)["input_ids"]
    inner = whole[1:-1]
    kept = inner[: LIMIT - 2] if side == "right" else inner[-(LIMIT - 2) :]
    assert ours("query", ["a frog sits by the pond " * 20]) == [[whole[0], *kept, whole[-1]]]


@pytest.mark.parametrize(
    ("kind", "given", "pooling", "side"),
    [
        ("gpt2", None, "last_token", "right"),
        ("gpt2", "left", "last_token", "right"),
        ("qwen3", None, "last_token", "left"),
        ("qwen3", "right", "last_token", "right"),
        ("qwen3", None, "mean", "right"),
        ("qwen3", "left", "mean", "left"),
        ("qwen3", "left", "cls+mean", "right"),
        ("bloom", "left", "weighted_mean", "right"),
    ],
)
def test_padding_side_of_a_decoder_suits_its_positions_and_its_pooling(
    kind: str, given: str | None, pooling: str, side: str, tmp_path: Path
) -> None:
    folder = Family(fast(**({"padding_side": given} if given else {})), kind).save(tmp_path / "base")
    assert tokenizer_of(folder, pooling).tokenizer.padding_side == side


def with_two_end_tokens(folder: Path) -> Path:
    """A folder as earlier versions wrote it: `<s></s>text</s>`."""
    from tokenizers import processors

    Family(fast("<s> $A"), "gpt2").save(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    backend = tokenizer.backend_tokenizer
    ending = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    backend.post_processor = processors.Sequence([backend.post_processor, ending])
    tokenizer.save_pretrained(folder)
    return folder


def test_folder_that_was_trained_with_two_end_tokens_computes_as_it_was_trained(tmp_path: Path) -> None:
    folder = with_two_end_tokens(tmp_path / "old")
    ours = tokenizer_of(folder)
    texts = TEXTS[1:]
    assert ours("query", texts) == authors_ids(folder, texts)
    assert ours("query", ["a"])[0][:2] == [0, 1] and ours("query", ["a"])[0][-1] == 1
    ours.save(tmp_path / "merged")
    assert authors_ids(tmp_path / "merged", texts) == ours("query", texts)
    # Only at the end of the positions they are cut, because the model could not read them.
    assert len(tokenizer_of(folder, query_max_len=64)("query", TEXTS[-1:])[0]) == 64


@pytest.mark.parametrize("name", ["llama", "bert", "no post-processor"])
@pytest.mark.parametrize("prompt", ["", "Instruct: given a query, find it\nQuery: "])
def test_limit_that_leaves_hardly_any_token_of_a_text_is_refused(name: str, prompt: str, tmp_path: Path) -> None:
    folder = (DECODERS | ENCODERS)[name].save(tmp_path / "base")
    pooling = "mean" if name == "bert" else "last_token"
    taken = len(tokenizer_of(folder, pooling, query_max_len=999).tokenizer(prompt)["input_ids"])
    with pytest.raises(
        UserError, match=rf"take {taken} tokens, so the limit leaves 3 .*`query_max_len={taken + 4}` or more"
    ) as found:
        tokenizer_of(folder, pooling, query_prompt=prompt, query_max_len=taken + 3)
    assert found.value.argument == "query_max_len"
    assert ("`query_prompt`" in found.value.reason) == bool(prompt)
    ours = tokenizer_of(folder, pooling, query_prompt=prompt, query_max_len=taken + 4)
    assert len({tuple(ids) for ids in ours("query", ["frog", "pond", "water"])}) == 3
    with pytest.raises(UserError, match="the passage prompt" if prompt else "the special tokens"):
        tokenizer_of(folder, pooling, passage_prompt=prompt, passage_max_len=3)


def test_prompt_is_tokenised_together_with_the_text(tiny_bert: str) -> None:
    base = describe_base(tiny_bert)
    embedding_config = EmbeddingConfig("mean", query_prompt="query: ", passage_prompt="")
    tokenizer = load_tokenizer(base, embedding_config)
    assert tokenizer("query", ["abc"]) == [tokenizer.tokenizer("query: abc")["input_ids"]]
    assert tokenizer("passage", ["abc"]) == [tokenizer.tokenizer("abc")["input_ids"]]


def test_key_changes_with_prompt_and_length_and_not_with_use(tiny_bert: str) -> None:
    base = describe_base(tiny_bert)
    tokenizer = load_tokenizer(base, EmbeddingConfig("mean"))
    before = tokenizer.key
    tokenizer("query", ["some text " * 50])
    assert tokenizer.key == before
    others = [
        EmbeddingConfig("mean", query_prompt="q"),
        EmbeddingConfig("mean", query_max_len=9),
        EmbeddingConfig("mean", passage_max_len=9),
    ]
    assert len({before, *(load_tokenizer(base, embedding_config).key for embedding_config in others)}) == 4


def test_decoder_whose_tokenizer_has_no_end_token_is_refused(tiny_qwen3: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_qwen3, tmp_path / "q")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "q")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "q")
    base = describe_base(str(tmp_path / "q"))
    with pytest.raises(UserError, match="no end token"):
        load_tokenizer(base, EmbeddingConfig("last_token"))
    assert load_tokenizer(base, EmbeddingConfig("mean"))("query", ["a"])


def test_tokenizer_with_more_tokens_than_the_model_is_refused(tiny_qwen3: str, minilm: str) -> None:
    base = describe_base(tiny_qwen3)
    with pytest.raises(UserError, match=r"^`tokenizer_id=.*the model has vectors for"):
        load_tokenizer(base, EmbeddingConfig("mean"), tokenizer_id=minilm)


def test_prompt_longer_than_all_positions_can_only_be_shortened(tmp_path: Path) -> None:
    folder = DECODERS["gpt2"].save(tmp_path / "base")  # 64 positions
    with pytest.raises(UserError) as found:
        tokenizer_of(folder, query_prompt="a, " * 99, query_max_len=64)
    assert "shorten `query_prompt`" in found.value.reason and "or more" not in found.value.reason


def test_prompt_longer_than_the_name_of_a_file_is_taken_from_the_command_line(
    tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"query": "frog", "pos": ["pond"], "neg": ["stone"]}\n' * 2)
    words = ["--model_name_or_path", tiny_bert, "--train_dataset", str(data), "--output_dir", str(tmp_path / "out")]
    words += ["--batch_size", "2"]
    assert main(["train", *words, "--use_cpu", "--query_prompt", "a b c " * 60, "--query_max_len", "32"]) == 2
    assert "the query prompt 'a b c" in capsys.readouterr().err


def test_saved_model_of_which_a_prompt_leaves_no_token_is_refused_by_every_command(
    tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    EmbeddingConfig("mean", query_prompt="find passages that answer: ", query_max_len=8, passage_max_len=8).write(
        folder, 64
    )
    data = tmp_path / "rows.jsonl"
    data.write_text('{"query": "frog", "pos": ["pond"], "neg": ["stone"]}\n' * 2)
    encode = ["encode", "--input", str(data), "--field", "query", "--output", str(tmp_path / "v.npy")]
    mine = ["mine", "--train_dataset", str(data), "--output", str(tmp_path / "m.jsonl")]
    mine += ["--neg_nums", "1", "--range", "1", "2"]
    check = ["check", "--train_dataset", str(data)]
    for command in (encode, mine, check, ["evaluate", "--data", str(data)], ["serve", "--port", "0"]):
        assert main([*command, "--model", str(folder)]) == 2
        assert "so the limit leaves 1 for the text of a query" in capsys.readouterr().err
