"""`embedrag encode` writes the vector of every text in order, from any kind of file, and leaves nothing half done."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from embedrag.cli import main
from embedrag.errors import UserError
from embedrag.models.embedding_format import EmbeddingFormat
from embedrag.models.load import load_model
from embedrag.retrieval.encode_file import encode_file

TEXTS = ["what is a diode", "a diode lets current flow one way only " * 4, "다이오드"]


@pytest.fixture(scope="module")
def adapter(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA adapter on tiny_bert that changes its vectors."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    layers = LoraConfig(r=4, lora_alpha=32, target_modules=["query", "value"], init_lora_weights=False)
    get_peft_model(AutoModel.from_pretrained(tiny_bert), layers).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "\n".join(TEXTS) + "\n"),
        ("a.jsonl", "\n".join(json.dumps({"text": text}) for text in TEXTS)),
        ("a.csv", "id,text\n" + "\n".join(f'{i},"{text}"' for i, text in enumerate(TEXTS))),
    ],
)
def test_vectors_of_every_text_are_written_in_order(name: str, content: str, adapter: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    words = ["--model", adapter, "--input", str(tmp_path / name), "--output", str(tmp_path / "out.npy")]
    assert main(["encode", *words]) == 0
    expected = load_model(adapter, "cpu").encode(TEXTS, "passage")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)
    assert main(["encode", *words]) == 2, "exists"


def test_blocks_formats_and_roles(tiny_bert: str, texts: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("embedrag.retrieval.encode_file.TEXTS_PER_BLOCK", 2)
    encoder = load_model(tiny_bert, "cpu")
    whole = encoder.encode(TEXTS, "query")
    for form in (EmbeddingFormat(), EmbeddingFormat(16), EmbeddingFormat(16, "int8"), EmbeddingFormat(None, "binary")):
        output = tmp_path / "out.npy"
        found = encode_file(
            encoder, texts, output, dim=form.dim, precision=form.precision, role="query", overwrite=True
        )
        stored = np.load(output)
        expected = whole if form == EmbeddingFormat() else form.stored(whole)
        assert stored.dtype == expected.dtype
        np.testing.assert_allclose(stored, expected, atol=1e-6)
        assert (found.texts, found.dimensions, found.bytes) == (3, form.dim or 64, stored[0].nbytes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--field", "txt", "--input", "{folder}/a.csv"], "a.csv:2: no text under 'txt'"),
        (["--input", "{folder}/none.txt"], "--input {folder}/none.txt: no such file"),
        (["--input", "{folder}/empty.txt"], "--input {folder}/empty.txt: no texts in it"),
        (["--output", "{folder}/x.bin"], "--output {folder}/x.bin: must end in .npy"),
        (["--output", "{folder}/texts.txt"], "is read by this command"),
        (["--model", "./none"], "--model ./none: no such folder"),
        (["--dim", "65"], "--dim 65: must be from 1 to 64, the dimensions of the model's vectors"),
    ],
)
def test_wrong_flag_is_named_and_nothing_is_written(
    words: list[str], message: str, tiny_bert: str, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("id,text\n1,a frog\n")
    (tmp_path / "empty.txt").touch()
    flags = {"--model": tiny_bert, "--input": str(texts), "--output": str(tmp_path / "x.npy")}
    flags |= dict(zip(words[::2], (word.format(folder=tmp_path) for word in words[1::2]), strict=True))
    assert main(["encode", *(word for pair in flags.items() for word in pair)]) == 2
    assert message.format(folder=tmp_path) in capsys.readouterr().err
    assert not list(tmp_path.glob("*x.*"))


def test_wrong_argument_is_named(tiny_bert: str, texts: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ({"role": "document"}, "`role=document`: must be one of query, passage"),
        ({"precision": "int4"}, "`precision=int4`: must be one of float32, int8, binary"),
    ):
        with pytest.raises(UserError, match=message):
            encode_file(tiny_bert, texts, tmp_path / "x.npy", **arguments)


def test_adapter_that_does_not_fit_is_refused(adapter: str, texts: Path, tmp_path: Path, capsys) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in Path(adapter).iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "adapter_model.safetensors")
    renamed = {name.replace("layer.1.attention", "layer.7.attention"): tensor for name, tensor in weights.items()}
    save_file(renamed, broken / "adapter_model.safetensors")
    words = ["--model", str(broken), "--input", str(texts), "--output", str(tmp_path / "x.npy")]
    assert main(["encode", *words]) == 2
    assert "adapter_config.json names the base" in capsys.readouterr().err
    assert not (tmp_path / "x.npy").exists()
