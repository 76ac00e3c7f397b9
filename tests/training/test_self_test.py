"""The checks at the start pass on sound models and find spoilt ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from embedrag.cli import main
from embedrag.data.token_batch import TokenBatch
from embedrag.models.encoder import Encoder
from tests.tokenizers import bpe, fast


@pytest.fixture
def data(write_jsonl: Callable[..., Path], rows: list[dict[str, object]]) -> Path:
    return write_jsonl(rows)


def train(model: str, data: Path, output: Path, *more: str) -> int:
    fixed = ["--model_name_or_path", model, "--train_dataset", str(data), "--output_dir", str(output), "--use_cpu"]
    return main(["train", *fixed, "--batch_size", "6", "--epochs", "1", "--finetune_type", "lora", *more])


@pytest.mark.parametrize("attention", ["packed", "padded"])
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_qwen3"])
def test_results_are_in_the_log(
    model: str, attention: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert train(request.getfixturevalue(model), data, tmp_path / "out", "--attention", attention) == 0
    found = json.loads((tmp_path / "out" / "detailed_training_logs.json").read_text())["model_info"]["self_tests"]
    assert found["end_token_survives_truncation"] is True
    assert abs(found["batch_equals_single"]) < 1e-5
    assert abs(found["equals_transformers"]) < 1e-5


def test_vectors_that_depend_on_the_batch_stop_the_run_unless_no_self_test_is_set(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Encoder.embed

    def leaks(self: Encoder, tokens: TokenBatch) -> torch.Tensor:
        vectors = whole(self, tokens)
        return vectors + 0.1 * vectors.mean(0)

    monkeypatch.setattr(Encoder, "embed", leaks)
    assert train(tiny_bert, data, tmp_path / "out") == 2
    assert "depends on the batch" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert train(tiny_bert, data, tmp_path / "out", "--no_self_test") == 0


def test_lost_end_token_is_found_when_the_pooling_needs_it(
    tiny_qwen3: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from embedrag.models.tokenizer import TextTokenizer

    whole = TextTokenizer.__call__
    monkeypatch.setattr(
        TextTokenizer,
        "__call__",
        lambda self, role, texts: [ids[:-1] if len(ids) > 200 else ids for ids in whole(self, role, texts)],
    )
    assert train(tiny_qwen3, data, tmp_path / "out") == 2
    assert "end token" in capsys.readouterr().err


TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}


def save(config: transformers.PretrainedConfig, tokenizer: transformers.PreTrainedTokenizerFast, folder: Path) -> str:
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_padding_goes_to_the_right_when_the_left_is_measured_to_change_the_vectors(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("embedrag.models.tokenizer.PADDED_RIGHT", set())  # as for a family that nobody has measured
    model = save(transformers.GPT2Config(vocab_size=400, **TINY), fast("$A </s>")(), tmp_path / "gpt2")
    assert train(model, data, tmp_path / "out", "--finetune_type", "full") == 0
    assert "pad texts at the right" in capsys.readouterr().out
    settings = json.loads((tmp_path / "out" / "final" / "tokenizer_config.json").read_text())
    assert settings["padding_side"] == "right"


def test_model_that_reads_padding_is_refused_before_the_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save(transformers.FNetConfig(vocab_size=400, **TINY), fast("<s> $A </s>")(), tmp_path / "fnet")
    assert train(model, data, tmp_path / "out", "--finetune_type", "full") == 2
    error = capsys.readouterr().err
    assert "padding changes the vectors of this model" in error and "--no_self_test" in error
    assert not (tmp_path / "out").exists()
    assert train(model, data, tmp_path / "out", "--finetune_type", "full", "--no_self_test") == 0


def test_tokenizer_that_transformers_would_read_in_another_way_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = transformers.GPTNeoXConfig(vocab_size=400, **TINY)
    model = save(config, bpe("GPTNeoXTokenizer")(), tmp_path / "neox")
    assert train(model, data, tmp_path / "right") == 0
    monkeypatch.setattr("embedrag.models.tokenizer.PLAIN_CLASS", "GPTNeoXTokenizer")  # it drops our end token
    assert train(model, data, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "(GPTNeoXTokenizer), it gives other token ids for 'word'" in error and "--tokenizer_id" in error


def test_packed_vectors_that_are_not_those_of_transformers_stop_the_run(
    tiny_bert: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Encoder._packed

    def turned(self: Encoder, tokens: TokenBatch, cu_seqlens: torch.Tensor) -> torch.Tensor:
        return whole(self, tokens, cu_seqlens).roll(1, -1)  # the same alone and in a batch

    monkeypatch.setattr(Encoder, "_packed", turned)
    assert train(tiny_bert, data, tmp_path / "out") == 2
    assert "not those of transformers" in capsys.readouterr().err
    assert train(tiny_bert, data, tmp_path / "out", "--attention", "padded") == 0


def test_texts_that_are_all_cut_are_compared_too(tiny_qwen3: str, data: Path, tmp_path: Path) -> None:
    assert train(tiny_qwen3, data, tmp_path / "out", "--query_max_len", "5", "--passage_max_len", "6") == 0


def test_folder_with_two_end_tokens_is_trained_on_up_to_its_last_position(
    data: Path, write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    from tests.models.test_tokenizer import with_two_end_tokens

    folder = with_two_end_tokens(tmp_path / "old")
    config = transformers.GPT2Config(vocab_size=400, n_positions=16, **TINY)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    long = write_jsonl([{"query": "frog " * 40, "pos": [f"pond {i} " * 40]} for i in range(4)], "long.jsonl")
    assert train(str(folder), long, tmp_path / "out", "--finetune_type", "full") == 0
    settings = json.loads((tmp_path / "out" / "final" / "training_config.json").read_text())
    assert settings["passage_max_len"] == 16
