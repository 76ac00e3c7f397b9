"""Models and tokenizers with Python code of their own: refused without a question, and used when they are trusted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from embedrag.cli import main
from embedrag.errors import UserError
from embedrag.export.onnx_encoder import load_onnx_encoder
from embedrag.models.load import load_model
from embedrag.retrieval.cross_encoder import CrossEncoder

TOKENIZER = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({ran!r}).touch()
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
CONFIG = """
from transformers import BertConfig
class OwnConfig(BertConfig):
    model_type = "own_bert"
"""
MODEL = """
from transformers import BertForSequenceClassification, BertModel
from .configuration_own import OwnConfig
class OwnModel(BertModel):
    config_class = OwnConfig
class OwnJudge(BertForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input would answer yes."""

    def asked(*words: object) -> str:
        raise AssertionError(f"a question on standard input: {words}")

    monkeypatch.setattr("builtins.input", asked)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that exists when the tokenizer's code has run."""
    return tmp_path / "ran"


@pytest.fixture
def own(tiny_bert: str, tmp_path: Path, ran: Path) -> Path:
    """A BERT of which model, configuration and tokenizer have code of their own."""
    folder = tmp_path / "own"
    shutil.copytree(tiny_bert, folder)
    classes = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    classes |= {"AutoModelForSequenceClassification": "modeling_own.OwnJudge"}
    change(folder / "config.json", model_type="own_bert", auto_map=classes, num_labels=1)
    (folder / "configuration_own.py").write_text(CONFIG)
    (folder / "modeling_own.py").write_text(MODEL)
    give_tokenizer_code(folder, ran)
    return folder


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def give_tokenizer_code(folder: Path, ran: Path) -> None:
    (folder / "tokenization_own.py").write_text(TOKENIZER.format(ran=str(ran)))
    classes = [None, "tokenization_own.OwnTokenizer"]
    change(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map={"AutoTokenizer": classes})


def test_adapter_folder_with_code_in_its_tokenizer_is_refused_and_read_when_trusted(
    tiny_bert: str, tmp_path: Path, ran: Path, write_jsonl, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl([{"query": f"frog {i}", "pos": [f"pond {i}"]} for i in range(4)])
    words = ["--model_name_or_path", tiny_bert, "--finetune_type", "lora", "--train_dataset", str(data), "--use_cpu"]
    assert main(["train", *words, "--output_dir", str(tmp_path / "run"), "--batch_size", "4", "--epochs", "1"]) == 0
    adapter = tmp_path / "run" / "final"
    give_tokenizer_code(adapter, ran)
    command = ["encode", "--model", str(adapter), "--input", str(data), "--field", "query", "--output"]
    assert main([*command, str(tmp_path / "a.npy")]) == 2
    error = capsys.readouterr().err
    assert "the tokenizer has Python code of its own" in error and "add --trust_remote_code" in error
    assert main(["merge", "--lora_adapter_path", str(adapter), "--output_path", str(tmp_path / "merged")]) == 2
    assert "--trust_remote_code" in capsys.readouterr().err
    assert not ran.exists()
    assert main([*command, str(tmp_path / "a.npy"), "--trust_remote_code"]) == 0
    assert ran.exists()


@pytest.mark.parametrize("part", ["config", "tokenizer"])
def test_model_with_code_in_one_part(part: str, own: Path, ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = {"config": "tokenizer_config.json", "tokenizer": "config.json"}[part]
    settings = json.loads((own / file).read_text())
    del settings["auto_map"]
    settings |= {"tokenizer_class": "BertTokenizer"} if part == "config" else {"model_type": "bert"}
    (own / file).write_text(json.dumps(settings))
    # A class of transformers itself needs no code: it is taken instead of the tokenizer's own.
    if part == "config":
        with pytest.raises(UserError, match="code of its own.*add `trust_remote_code`"):
            load_model(own)
    else:
        load_model(own)
        assert "has Python code of its own, which is not run" in capsys.readouterr().out
    assert not ran.exists()


def test_cross_encoder_is_refused_and_scores_when_it_is_trusted(own: Path, ran: Path) -> None:
    with pytest.raises(UserError, match="code of its own.*add `trust_remote_code`"):
        CrossEncoder(str(own), "cpu")
    assert not ran.exists()
    with pytest.raises(UserError, match="not a cross-encoder"):  # its weights are those of an embedding model
        CrossEncoder(str(own), "cpu", trust_remote_code=True)
    assert ran.exists()


def test_trained_merged_and_encoded_when_it_is_trusted(own: Path, tmp_path: Path, write_jsonl) -> None:
    rows = [{"query": f"frog {i}", "pos": [f"pond {i}"], "neg": [f"stone {i}"]} for i in range(4)]
    data, trust = write_jsonl(rows), "--trust_remote_code"
    words = ["--model_name_or_path", str(own), "--finetune_type", "lora", "--train_dataset", str(data), "--use_cpu"]
    words += ["--lora_target_modules", "query", "value", "--batch_size", "4", "--epochs", "1", "--dtype", "float32"]
    assert main(["train", *words, "--output_dir", str(tmp_path / "run"), "--lr", "1e-2", trust]) == 0
    adapter, merged = tmp_path / "run" / "final", tmp_path / "merged"
    assert main(["merge", "--lora_adapter_path", str(adapter), "--output_path", str(merged), trust]) == 0
    trained, whole = (load_model(name, "cpu", trust_remote_code=True) for name in (adapter, merged))
    np.testing.assert_allclose(trained.encode(["frog"], "query"), whole.encode(["frog"], "query"), atol=1e-5)
    for name in (adapter, merged):
        with pytest.raises(UserError, match="trust_remote_code"):
            load_model(name, "cpu")
    texts = ["--input", str(data), "--field", "query", "--output", str(tmp_path / "v.npy")]
    assert main(["encode", "--model", str(merged), *texts, trust]) == 0
    mine = ["mine", "--train_dataset", str(data), "--output", str(tmp_path / "mined.jsonl"), "--neg_nums", "1"]
    assert main([*mine, "--range", "1", "5", "--model", str(merged), trust]) == 0
    assert main(["evaluate", "--model", str(merged), "--data", str(data), trust]) == 0
    assert main(["check", "--train_dataset", str(data), "--model", str(own), trust]) == 0
    assert main(["check", "--train_dataset", str(data), "--model", str(own)]) == 2


@pytest.mark.slow
def test_exported_when_it_is_trusted(own: Path, tmp_path: Path) -> None:
    exported = str(tmp_path / "exported")
    assert main(["export", "--model", str(own), "--output", exported]) == 2
    assert main(["export", "--model", str(own), "--output", exported, "--trust_remote_code"]) == 0
    whole, onnx = load_model(own, "cpu", trust_remote_code=True), load_onnx_encoder(exported, trust_remote_code=True)
    np.testing.assert_allclose(onnx.encode(["frog"], "query"), whole.encode(["frog"], "query"), atol=1e-4)
    with pytest.raises(UserError, match="trust_remote_code"):
        load_onnx_encoder(exported)
