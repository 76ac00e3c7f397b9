"""`embedrag export`: the graph is the model, the folder is complete, and what is broken leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import torch
from onnx import numpy_helper
from transformers import AutoModel, ModernBertConfig, PretrainedConfig, XLMRobertaConfig

from embedrag.cli import main
from embedrag.data.token_batch import TokenBatch
from embedrag.errors import UserError
from embedrag.export import export, onnx_encoder, onnx_graph
from embedrag.export.onnx_encoder import OUTPUT, OnnxEncoder, load_onnx_encoder
from embedrag.models.artifacts import PROBE_TEXTS
from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.models.encoder import Encoder
from embedrag.models.equivalence import closeness
from embedrag.models.load import load_model
from embedrag.runtime.console import quiet
from tests.families import MODERN, SIZES, TEXTS

ONE_LAYER = SIZES | {"num_hidden_layers": 1}
XLM_ROBERTA = XLMRobertaConfig(**ONE_LAYER, pad_token_id=1, max_position_embeddings=66)
MODERNBERT = ModernBertConfig(**ONE_LAYER, **MODERN, local_attention=8, layer_types=["sliding_attention"])


@pytest.fixture(scope="module")
def bert(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A model with prompts, and its export."""
    path = tmp_path_factory.mktemp("bert")
    model = str(shutil.copytree(tiny_bert, path / "model"))
    EmbeddingConfig("cls", False, "query: ", "passage: ", 32, 64).write(path / "model", 64)
    rows = [{"query": f"question {i}", "pos": [f"answer {i}"]} for i in range(12)]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", model, "--output", str(path / "out"), "--data", str(path / "rows.jsonl")]
    assert main(["export", "--int8", *words]) == 0
    return model, str(path / "out")


@pytest.fixture(scope="module")
def qwen3(tiny_qwen3: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A decoder that pools the last token, and its export; one layer, because the exporter's time grows with them."""
    path = tmp_path_factory.mktemp("qwen3")
    model = str(shutil.copytree(tiny_qwen3, path / "model"))
    with quiet():
        one = AutoModel.from_pretrained(model, num_hidden_layers=1, layer_types=["full_attention"])
        one.save_pretrained(model)
    report = export.export(model, str(path / "out"))
    assert [file.path for file in report.files] == ["onnx/model.onnx"]
    assert report.output == path / "out" and report.files[0].to_model.min_cosine > 0.9999
    return model, str(report.output)


@pytest.mark.parametrize("family", ["bert", "qwen3"])
@pytest.mark.parametrize("role", ["query", "passage"])
def test_export_gives_the_vectors_of_the_model_single_and_batched(
    family: str, role: str, request: pytest.FixtureRequest
) -> None:
    model, output = request.getfixturevalue(family)
    exported = load_onnx_encoder(output, device="cpu")
    expected = load_model(model, "cpu").encode(TEXTS, role)
    batch = exported.batch(TokenBatch.from_lists(exported.tokenizer(role, TEXTS)))
    alone = np.concatenate([exported.encode([text], role) for text in TEXTS])
    for found in (exported.encode(TEXTS, role), batch, alone):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert exported.dimension == expected.shape[1]
    assert np.abs(expected - np.roll(expected, 1, axis=0)).max() > 1e-2  # texts can be told apart


def test_texts_may_be_padded_on_the_left_as_in_other_programs(qwen3: tuple[str, str]) -> None:
    exported = load_onnx_encoder(qwen3[1], device="cpu")
    rows = exported.tokenizer("passage", TEXTS)
    width = max(map(len, rows))
    ids = np.array([[0] * (width - len(row)) + row for row in rows])
    mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    found = exported._session.run([OUTPUT], {"input_ids": ids, "attention_mask": mask})[0]
    assert closeness(found, exported.encode(TEXTS, "passage")).min_cosine > 0.9999


def test_tokenizer_of_an_export_pads_on_the_right_so_that_learnt_positions_are_right(
    qwen3: tuple[str, str],
) -> None:
    assert load_model(qwen3[0], "cpu").tokenizer.tokenizer.padding_side == "left"
    assert json.loads(Path(qwen3[1], "tokenizer_config.json").read_text())["padding_side"] == "right"


def test_memory_of_a_large_batch_is_given_back_with_a_later_one(
    bert: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exported, process = load_onnx_encoder(bert[1], device="cpu"), psutil.Process()
    exported.batch(TokenBatch.from_lists([[5] * 64] * 1024))
    before, held = exported.vectors([[5, 6]]), process.memory_info().rss
    monkeypatch.setattr(onnx_encoder, "SHRINK_SECONDS", 0)
    np.testing.assert_array_equal(exported.vectors([[5, 6]]), before)
    assert held - process.memory_info().rss > 30 << 20


def test_eight_bits_make_the_file_smaller_and_the_record_has_the_closeness(bert: tuple[str, str]) -> None:
    folder = Path(bert[1])
    plain, int8 = (folder / "onnx" / name for name in ("model.onnx", "model_int8.onnx"))
    assert int8.stat().st_size < 0.4 * plain.stat().st_size
    files = json.loads((folder / "export_config.json").read_text())["files"]
    assert files["onnx/model.onnx"]["to_model"]["min_cosine"] >= 0.9999
    assert 0.9 < files["onnx/model_int8.onnx"]["to_model"]["min_cosine"] < 0.99999
    differences = [entry["single_to_batched"]["max_abs_difference"] for entry in files.values()]
    assert differences[0] < 1e-4 and differences[1] > 1e-3
    quantized = load_onnx_encoder(bert[1], "onnx_int8", "cpu").encode(TEXTS, "query")
    assert closeness(quantized, load_model(bert[0], "cpu").encode(TEXTS, "query")).min_cosine > 0.9


def test_files_for_other_programs_hold_no_path_of_this_machine(bert: tuple[str, str]) -> None:
    """torch writes the places of its source code into each node of a graph."""
    folder = Path(bert[1])
    for name in ("model.onnx", "model_int8.onnx", "model_quantized.onnx"):
        content = (folder / "onnx" / name).read_bytes()
        assert b"site-packages" not in content and b".py" not in content and str(Path.home()).encode() not in content
    assert (folder / "onnx/model_quantized.onnx").read_bytes() == (folder / "onnx/model_int8.onnx").read_bytes()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert "max_length" not in settings
    assert (folder / "special_tokens_map.json").is_file()


def test_folder_keeps_embedding_config_and_tokenizer(bert: tuple[str, str]) -> None:
    model, output = (load_model(bert[0], "cpu").tokenizer, load_onnx_encoder(bert[1]).tokenizer)
    assert output.embedding_config == model.embedding_config
    assert output.key == model.key
    assert not list(Path(bert[1]).glob("*.safetensors"))


def test_evaluation_data_shows_the_loss_of_eight_bits(bert: tuple[str, str]) -> None:
    files = json.loads(Path(bert[1], "export_config.json").read_text())["files"]
    [plain, int8] = (entry["comparison"] for entry in files.values())
    assert plain["metric"] == int8["metric"] == "ndcg@10"
    assert plain["base"] == plain["tuned"] == int8["base"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("config", [XLM_ROBERTA, MODERNBERT], ids=["own positions", "windows"])
def test_own_positions_and_windows_are_exported_too(config: PretrainedConfig, tiny_bert: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = load_model(tiny_bert, "cpu").tokenizer
    own.tokenizer.pad_token_id = config.pad_token_id
    encoder = Encoder(AutoModel.from_config(config).eval(), own, EmbeddingConfig("mean"))
    draw = np.random.default_rng(0)
    ids = [draw.integers(3, 99, length).tolist() for length in (20, 3, 33, 1)]
    expected = np.concatenate([encoder.vectors([text]) for text in ids])
    onnx_graph.write_graph(encoder, tmp_path / "model.onnx")
    found = OnnxEncoder(tmp_path / "model.onnx", own, "cpu").batch(TokenBatch.from_lists(ids))
    assert closeness(found, expected).min_cosine > 0.9999


def test_graph_that_is_not_the_model_is_caught_and_leaves_nothing(
    bert: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(encoder: Encoder, file: Path, model: str) -> None:
        graph = onnx.load(Path(bert[1], "onnx", "model.onnx"))
        [weight] = [w for w in graph.graph.initializer if w.name.endswith("word_embeddings.weight")]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), weight.name))
        onnx.save(graph, file)

    monkeypatch.setattr(export, "write_graph", wrong)
    assert main(["export", "--model", bert[0], "--output", str(tmp_path / "out")]) == 1
    assert "the exported graph does not give the model's vectors: cosine min" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_vector_that_is_not_a_number_and_texts_that_were_swapped_are_found() -> None:
    alike = 1 + 1e-3 * np.eye(3)
    export.check(closeness(alike, alike), alike)
    for wrong in (np.where(alike > 1, np.nan, alike), alike[::-1]):
        with pytest.raises(export.RunError):
            export.check(closeness(wrong, alike), alike)


def test_model_that_torch_cant_export_is_reported(
    bert: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: object, **keywords: object) -> None:
        print("a graph of many lines", file=sys.stderr)
        raise ValueError("this is how to report it") from RuntimeError("\nno decomposition\nlong story")

    monkeypatch.setattr(torch.onnx, "export", fails)
    assert main(["export", "--model", bert[0], "--output", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert f"--model {bert[0]}: torch can't export a bert model (RuntimeError: no decomposition)" in errors
    assert "many lines" not in errors
    assert not list(tmp_path.iterdir())


def test_full_disk_while_the_graph_is_written_is_not_the_models_fault(
    bert: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch.onnx, "export", full)
    assert main(["export", "--model", bert[0], "--output", str(tmp_path / "out")]) == 1
    errors = capsys.readouterr().err
    assert "out: not written (No space left on device" in errors and "can't export" not in errors
    assert not list(tmp_path.iterdir())


def test_wrong_flags_are_reported_before_the_model_is_loaded(
    bert: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("embedrag.models.load.load_backbone", None)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    out = str(tmp_path / "out")
    for words, part in (
        (["--model", str(tmp_path / "adapter"), "--output", out], "an adapter; merge it first"),
        (
            ["--model", str(tmp_path / "full" / "file"), "--output", out],
            "this is a file; name the folder that holds it",
        ),
        (["--model", bert[0], "--output", bert[1]], "exists; name another folder"),
        (["--model", bert[0], "--output", str(tmp_path / "full"), "--overwrite"], "--overwrite replaces only exports"),
        (["--model", bert[0], "--output", f"{bert[0]}/onnx"], "overlaps the model's folder"),
        (["--model", bert[0], "--output", out, "--data", "/no/such/set"], "--data"),
        (["--model", bert[0]], "--output: is required"),
    ):
        assert main(["export", *words]) == 2
        assert part in capsys.readouterr().err
    assert (tmp_path / "full" / "file").read_text() == "mine"
    assert not Path(out).exists()


def test_file_that_is_not_a_graph_of_ours_is_refused(bert: tuple[str, str], tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(bert[1], tmp_path / "out")
    (tmp_path / "out" / "onnx" / "model.onnx").write_bytes(b"no graph")
    words = ["--model", str(tmp_path / "out"), "--backend", "onnx", "--port", "0"]
    assert main(["serve", *words]) == 2
    assert "ONNX Runtime can't read it" in capsys.readouterr().err
    assert main(["serve", *words, "--device", "mps"]) == 2
    assert "--device mps: ONNX Runtime has no such device here" in capsys.readouterr().err
    assert main(["serve", "--model", bert[1]]) == 2
    assert "an export; serve it with --backend onnx" in capsys.readouterr().err
    for record in ('{"lengths": 3}', "{}", "{"):
        (tmp_path / "out" / "export_config.json").write_text(record)
        assert main(["serve", *words]) == 2
        assert "export_config.json: " in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_graph_that_falls_back_to_the_cpu_says_so(bert: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime for GPUs lists CUDA also where a library of it is missing; sessions then take the CPU."""
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: names)
    assert load_onnx_encoder(bert[1]).device.type == "cpu"
    with pytest.raises(UserError, match="`device=cuda`: ONNX Runtime can't use this device"):
        load_onnx_encoder(bert[1], device="cuda")


def test_damaged_probe_texts_are_named(bert: tuple[str, str], tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(bert[0], tmp_path / "model")
    for text in ("{", "3", "[[1]]"):
        (tmp_path / "model" / PROBE_TEXTS).write_text(text)
        assert main(["export", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")]) == 2
        assert f"{PROBE_TEXTS}: can't be read" in capsys.readouterr().err
