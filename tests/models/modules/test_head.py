"""Dense layers and layer norms that follow the pooling: trained, continued, merged and exported as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import embedrag
from embedrag.data.token_batch import TokenBatch
from embedrag.errors import UserError
from embedrag.export.export import export
from embedrag.models.base_model import describe_base
from embedrag.models.encoder import Encoder
from embedrag.models.kernels.fast_dropout import dropout_on
from embedrag.retrieval.vector_cache import fingerprint
from embedrag.training.grad_cache import GradCache
from embedrag.training.memory import TokenBudget
from tests.conftest import Rows, sample_rows
from tests.models.published_folders import WIDTH, bert, gemma, write
from tests.reference import pool_loop

LENGTHS = (9, 2, 30, 5, 17)


@pytest.fixture(scope="module")
def labse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cls pooling, Dense with tanh, LayerNorm, Dense with a residual and GELU, and a normalisation."""
    folder = tmp_path_factory.mktemp("labse")
    bert(folder, "cls_token", "Dense:48:Tanh", "LayerNorm", "Dense:24:GELU", "Normalize")
    config = json.loads((folder / "4_Dense" / "config.json").read_text())
    write(folder / "4_Dense" / "config.json", config | {"use_residual": True})
    path = folder / "4_Dense" / "pytorch_model.bin"
    torch.save(torch.load(path) | {"residual.weight": torch.randn(24, 48)}, path)
    return folder


def batch(vocabulary: int) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    return TokenBatch.from_lists([torch.randint(4, vocabulary, (n,), generator=generator).tolist() for n in LENGTHS])


def obvious(encoder: Any, tokens: TokenBatch) -> torch.Tensor:
    """Each text alone through the backbone, and then step by step through what modules.json says."""
    weights = {name: dict(module.named_parameters()) for name, module in encoder.head.named_children()}
    texts = torch.split(tokens.input_ids, tokens.lengths.tolist())
    states = [encoder.backbone(input_ids=text[None]).last_hidden_state[0] for text in texts]
    x = pool_loop(states, "cls")
    x = torch.tanh(x @ weights["0"]["linear.weight"].T + weights["0"]["linear.bias"])
    centred = x - x.mean(1, keepdim=True)
    x = centred / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    x = x * weights["1"]["norm.weight"] + weights["1"]["norm.bias"]
    y = x @ weights["2"]["linear.weight"].T + weights["2"]["linear.bias"]
    y = y * 0.5 * (1 + torch.erf(y / 2**0.5)) + x @ weights["2"]["residual.weight"].T
    return y / y.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("way", ["packed", "padded", "cached"])
def test_values_and_gradients_are_those_of_the_obvious_form(labse: Path, way: str) -> None:
    encoder = embedrag.build_model(labse, "full")
    if way == "padded":
        encoder.packed = False
        encoder.backbone.set_attn_implementation("sdpa")
    tokens = batch(encoder.backbone.config.vocab_size)
    target = torch.randn(len(LENGTHS), 24, generator=torch.Generator().manual_seed(1))
    gradients = []
    for form in (way, "obvious"):
        if form == "obvious":
            encoder.backbone.set_attn_implementation("sdpa")
        with dropout_on(encoder, False):
            if form == "cached":
                cached = GradCache(encoder, TokenBudget(10)).embed(tokens)
                vectors = cached.vectors
            else:
                vectors = obvious(encoder, tokens) if form == "obvious" else encoder(tokens)
            (vectors * target).sum().backward()
            if form == "cached":
                cached.backward()
        gradients.append({name: weight.grad for name, weight in encoder.weights().items() if weight.grad is not None})
        gradients[-1]["vectors"] = vectors.detach()
        encoder.zero_grad(set_to_none=True)
    assert gradients[0].keys() == gradients[1].keys() and sum(name.startswith("head.") for name in gradients[0]) == 7
    for name, found in gradients[0].items():
        torch.testing.assert_close(found, gradients[1][name], rtol=1e-3, atol=1e-5)


def train(folder: Path, data: Path, output: Path, **more: Any) -> Path:
    settings = {"batch_size": 4, "epochs": 2, "lr": 1e-3, "use_cpu": True, "dtype": "float32", "finetune_type": "full"}
    embedrag.train(
        model_name_or_path=str(folder), train_dataset=str(data), output_dir=str(output), **{**settings, **more}
    )
    return output / "final"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows: Rows = sample_rows()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_training_moves_the_layers_and_goes_on_bit_for_bit(labse: Path, data: Path, tmp_path: Path) -> None:
    whole = train(labse, data, tmp_path / "whole", matryoshka_dims=[24, 8])
    again = train(
        labse, data, tmp_path / "again", matryoshka_dims=[24, 8], resume=str(tmp_path / "whole" / "checkpoint-epoch-1")
    )
    before = torch.load(labse / "2_Dense" / "pytorch_model.bin")
    for name in (
        "model.safetensors",
        *(f"{place}/model.safetensors" for place in ("2_Dense", "3_LayerNorm", "4_Dense")),
    ):
        one, other = load_file(whole / name), load_file(again / name)
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert not torch.equal(load_file(whole / "2_Dense/model.safetensors")["linear.weight"], before["linear.weight"])
    config = json.loads((whole / "config.json").read_text())
    assert (config["is_matryoshka"], config["matryoshka_dimensions"]) == (True, [8, 24])  # vLLM reads both
    assert json.loads((whole / "4_Dense" / "config.json").read_text())["use_residual"] is True


def test_adapters_leave_the_layers_as_they_are_and_are_merged(data: Path, tmp_path: Path, capsys: Any) -> None:
    base = tmp_path / "gemma"
    gemma(base)
    write(base / "generation_config.json", {"do_sample": True})
    final = train(base, data, tmp_path / "run", finetune_type="lora", epochs=1, lr=3e-2)
    assert (
        "after the pooling Dense 32 → 96 (Identity), Dense 96 → 32 (Identity); not trained" in capsys.readouterr().out
    )
    report = embedrag.merge(final, tmp_path / "merged")
    assert report.proof and report.proof.merged_to_trained.min_cosine > 0.99999
    for place in ("2_Dense", "3_Dense"):
        own = load_file(base / place / "model.safetensors")
        for folder in (final, tmp_path / "merged"):
            held = load_file(folder / place / "model.safetensors")
            assert own.keys() == held.keys() and all(torch.equal(own[key], held[key]) for key in own)
    settings = json.loads((tmp_path / "merged" / "config_sentence_transformers.json").read_text())
    assert settings["prompts"]["Clustering"] == "task: Clustering | query: "
    assert (tmp_path / "merged" / "generation_config.json").exists()


def test_cached_vectors_depend_on_the_layers(labse: Path) -> None:
    model = embedrag.load_model(labse)
    first = fingerprint(model)
    with torch.no_grad():
        model.head[0].linear.weight[0, 0] += 1
    assert fingerprint(model) != first


def test_exported_graph_pools_and_projects_as_the_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = tmp_path / "model"
    bert(folder, "cls_token", "Dense:24:Tanh", "LayerNorm", "Normalize")
    write(
        folder / "1_Pooling" / "config.json", {"pooling_mode": ["weightedmean", "max", "mean_sqrt_len_tokens", "cls"]}
    )
    write(folder / "2_Dense" / "config.json", {"in_features": 4 * WIDTH, "out_features": 24})
    weights = {"linear.weight": torch.randn(24, 4 * WIDTH), "linear.bias": torch.randn(24)}
    torch.save(weights, folder / "2_Dense" / "pytorch_model.bin")
    [file] = export(str(folder), str(tmp_path / "out")).files
    assert file.to_model.min_cosine > 0.9999
    assert describe_base(str(tmp_path / "out")).embedding_config.pooling == "weighted_mean+max+mean_sqrt_len+cls"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("2_Dense/config.json", {"in_features": 31}, "its Dense module takes vectors of 31 dimensions, and gets 32"),
        (
            "2_Dense/config.json",
            {"activation_function": "own.Swish"},
            "2_Dense/config.json: activation_function is 'own",
        ),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Linear"}, "activation_function is 'torch.nn.Linear'"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Threshold"}, "can't be made without arguments"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, "module_input_name is 'token_embeddings'"),
        ("2_Dense/config.json", {"gate": True}, "2_Dense/config.json: gate is not a setting of Dense"),
        ("2_Dense/config.json", {"out_features": None}, "2_Dense/config.json: out_features is missing or not a number"),
        ("2_Dense/config.json", {"out_features": 25}, "2_Dense/pytorch_model.bin: does not fit its config.json"),
        ("sentence_bert_config.json", {"modality_config": {"message": {}}}, "modality_config is {'message': {}}"),
        ("sentence_bert_config.json", {"max_seq_length": "512"}, "sentence_bert_config.json: max_seq_length is '512'"),
        ("config_sentence_transformers.json", {"truncate_dim": -1}, "truncate_dim is -1 and no number above 0"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "prompts must be an object of names and texts"),
        ("config_sentence_transformers.json", {"prompts": {"query": {}}}, "prompts must be an object of names and"),
        ("modules.json", None, "modules.json: not a list of modules"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask'"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "model_type is SparseEncoder"),
    ],
)
def test_what_would_change_the_vectors_is_named_by_file_and_key(
    tmp_path: Path, file: str, change: dict[str, Any] | None, message: str
) -> None:
    bert(tmp_path, "mean_tokens", "Dense:24:Tanh", settings={})
    old = json.loads((tmp_path / file).read_text())
    write(tmp_path / file, {} if change is None else old | change)
    with pytest.raises(UserError) as error:
        embedrag.load_model(tmp_path) if "25" in str(change) else embedrag.build_model(tmp_path, "full")
    assert message in str(error.value)


def test_missing_weights_and_another_order_of_modules_are_refused(tmp_path: Path) -> None:
    bert(tmp_path, "mean_tokens", "Dense:24:Tanh")
    (tmp_path / "2_Dense" / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"2_Dense has no model.safetensors"):
        describe_base(str(tmp_path))
    rows = json.loads((tmp_path / "modules.json").read_text())
    write(tmp_path / "modules.json", [rows[0], rows[2], rows[1]])
    with pytest.raises(UserError, match="modules.json has Transformer, Dense, Pooling"):
        describe_base(str(tmp_path))


def test_another_pooling_must_fit_the_first_layer(labse: Path) -> None:
    assert embedrag.build_model(labse, "full", pooling="mean").embedding_config.pooling == "mean"


def test_head_in_half_precision_files_is_used_in_float32(tmp_path: Path) -> None:
    bert(tmp_path, "mean_tokens", "Dense:24:Identity", "Normalize")
    path = tmp_path / "2_Dense" / "model.safetensors"
    save_file({name: weight.half() for name, weight in load_file(path).items()}, path)
    encoder: Encoder = embedrag.load_model(tmp_path)
    assert {parameter.dtype for parameter in encoder.head.parameters()} == {torch.float32}
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(["a frog"], "query")), 1, rtol=1e-6)


def test_normalisation_between_two_layers_is_kept(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    bert(tmp_path, "mean_tokens", "Normalize", "Dense:24:Tanh")
    encoder = embedrag.load_model(tmp_path)
    assert not encoder.embedding_config.normalize
    found = encoder.encode(["a frog", "stones and rain"], "query")
    other = SentenceTransformer(str(tmp_path), device="cpu").encode(["a frog", "stones and rain"])
    np.testing.assert_allclose(found, other, atol=1e-6)
