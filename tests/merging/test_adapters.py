"""Adapters of other programs: each is merged into what peft's live model computes, or refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen3MoeConfig,
    Qwen3MoeModel,
)

from embedrag.cli import main
from embedrag.errors import UserError
from embedrag.merging.merge import merge
from embedrag.models.load import load_model
from embedrag.runtime.console import console

IDS = torch.tensor([[5, 9, 31, 77, 4], [6, 8, 12, 3, 2]])
QV = ["q_proj", "v_proj"]
Q = ["query", "value"]
TEXTS = ["what is a diode", "a diode lets current flow one way only"]


@pytest.fixture
def adapt(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., tuple[str, Path, Tensor]]:
    """Make an adapter with random weights: its base, its folder, and the last hidden states of peft's live model."""

    def run(
        base: str, loader: Any = AutoModel, kind: Any = peft.LoraConfig, **settings: Any
    ) -> tuple[str, Path, Tensor]:
        name = request.getfixturevalue(base)
        if kind is peft.LoraConfig:
            settings = {"r": 4, "lora_alpha": 6} | settings
        torch.manual_seed(1)
        with console.silenced():
            model = peft.get_peft_model(loader.from_pretrained(name), kind(**settings)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
            states = model.get_base_model()(input_ids=IDS, output_hidden_states=True).hidden_states[-1]
        model.save_pretrained(tmp_path / "adapter")
        return name, tmp_path / "adapter", states

    return run


def check_merged(base: str, adapter: Path, states: Tensor) -> Any:
    """Merge with the proof; the merged model and the adapter folder itself compute what the live model computes."""
    with console.silenced():
        report = merge(adapter, adapter.with_name("merged"), base_model_path=base)
    model = AutoModel.from_pretrained(adapter.with_name("merged")).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).last_hidden_state, states, atol=1e-5, rtol=1e-5)
    opened = [load_model(folder, "cpu", base_model_path=base) for folder in (adapter, adapter.with_name("merged"))]
    np.testing.assert_allclose(*(encoder.encode(TEXTS, "query") for encoder in opened), atol=1e-5)
    assert report.proof and report.proof.merged_to_trained.min_cosine > 0.99999
    return report


MERGED = {
    "lora": ("tiny_bert", AutoModel, {"target_modules": Q}),
    "task of a causal model": ("tiny_llama", AutoModelForCausalLM, {"target_modules": QV, "task_type": "CAUSAL_LM"}),
    "causal model of a base without head": (
        "tiny_qwen3",
        AutoModelForCausalLM,
        {"target_modules": QV, "task_type": "CAUSAL_LM"},
    ),
    "task of feature extraction": ("tiny_llama", AutoModel, {"target_modules": QV, "task_type": "FEATURE_EXTRACTION"}),
    "task of classification": (
        "tiny_bert",
        AutoModelForSequenceClassification,
        {"target_modules": Q, "task_type": "SEQ_CLS"},
    ),
    "trained as a masked language model": ("tiny_bert", AutoModelForMaskedLM, {"target_modules": "all-linear"}),
    "all layers, pooler too": ("tiny_bert", AutoModel, {"target_modules": "all-linear"}),
    "bias all": ("tiny_bert", AutoModel, {"target_modules": Q, "bias": "all"}),
    "bias all, rslora": ("tiny_bert", AutoModel, {"target_modules": Q, "bias": "all", "use_rslora": True}),
    "bias lora_only, dora": ("tiny_bert", AutoModel, {"target_modules": Q, "bias": "lora_only", "use_dora": True}),
    "bias all of a base without biases": ("tiny_llama", AutoModel, {"target_modules": QV, "bias": "all"}),
    "lora_bias": ("tiny_bert", AutoModel, {"target_modules": Q, "lora_bias": True}),
    "token vectors": ("tiny_llama", AutoModelForCausalLM, {"target_modules": [*QV, "embed_tokens"]}),
    "head": ("tiny_llama", AutoModelForCausalLM, {"target_modules": [*QV, "lm_head"], "task_type": "CAUSAL_LM"}),
    "layers trained whole": (
        "tiny_llama",
        AutoModelForCausalLM,
        {"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
    "single tokens": ("tiny_llama", AutoModelForCausalLM, {"target_modules": QV, "trainable_token_indices": [5, 77]}),
    "single tokens by module": (
        "tiny_bert",
        AutoModel,
        {"target_modules": Q, "trainable_token_indices": {"word_embeddings": [3, 9]}},
    ),
    "patterns": (
        "tiny_llama",
        AutoModelForCausalLM,
        {
            "target_modules": r"model\.layers\.\d+\.self_attn\.(q|k|v)_proj",
            "rank_pattern": {"q_proj": 2, r"^model\.layers\.1\.self_attn\.k_proj": 3},
            "alpha_pattern": {"proj": 50, "q_proj": 9, r"^model\.layers\.0\.self_attn\.k_proj": 2},
        },
    ),
    "some layers": (
        "tiny_llama",
        AutoModel,
        {"target_modules": QV, "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    "excluded layers": ("tiny_llama", AutoModel, {"target_modules": "all-linear", "exclude_modules": ["down_proj"]}),
    "transposed layers": ("tiny_gpt2", AutoModelForCausalLM, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "transposed layers, biases": (
        "tiny_gpt2",
        AutoModelForCausalLM,
        {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True, "task_type": "CAUSAL_LM"},
    ),
    "orthogonal start": ("tiny_llama", AutoModel, {"target_modules": QV, "init_lora_weights": "orthogonal"}),
    "gaussian start": ("tiny_llama", AutoModel, {"target_modules": QV, "init_lora_weights": "gaussian"}),
}


@pytest.mark.parametrize("case", MERGED)
def test_merged_model_computes_what_the_live_model_of_peft_computes(case: str, adapt: Any) -> None:
    base, loader, settings = MERGED[case]
    report = check_merged(*adapt(base, loader, **settings))
    left_out = report.record["left_out"]
    assert bool(left_out) == (case in LEFT_OUT), left_out
    assert all(any(word in name for word in ("lm_head", "classifier", "pooler", "cls")) for name in left_out)


LEFT_OUT = (
    "task of classification",
    "trained as a masked language model",
    "all layers, pooler too",
    "bias all",
    "bias all, rslora",
    "head",
    "layers trained whole",
)


WITH_PEFT = "merge it with peft"
CHANGED = "changed the base's own weights at the start"
REFUSED = {
    "LoHa": (peft.LoHaConfig, {"target_modules": Q}, WITH_PEFT),
    "LoKr": (peft.LoKrConfig, {"target_modules": Q}, WITH_PEFT),
    "VeRA": (peft.VeraConfig, {"target_modules": Q}, WITH_PEFT),
    "IA3": (peft.IA3Config, {"target_modules": Q, "feedforward_modules": []}, WITH_PEFT),
    "OFT": (peft.OFTConfig, {"target_modules": Q, "oft_block_size": 32}, WITH_PEFT),
    "AdaLoRA": (peft.AdaLoraConfig, {"target_modules": Q, "total_step": 9}, WITH_PEFT),
    "LN tuning": (peft.LNTuningConfig, {"target_modules": ["LayerNorm"]}, WITH_PEFT),
    "target_parameters": (
        peft.LoraConfig,
        {"target_modules": Q, "target_parameters": ["intermediate.dense.weight"]},
        WITH_PEFT,
    ),
    "DoRA on token vectors": (peft.LoraConfig, {"target_modules": ["word_embeddings"], "use_dora": True}, WITH_PEFT),
    "PiSSA": (peft.LoraConfig, {"target_modules": Q, "init_lora_weights": "pissa"}, CHANGED),
    "OLoRA": (peft.LoraConfig, {"target_modules": Q, "init_lora_weights": "olora"}, CHANGED),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_merged_exactly_is_refused_and_the_remedy_works(case: str, adapt: Any, tmp_path: Path) -> None:
    kind, settings, reason = REFUSED[case]
    base, adapter, states = adapt("tiny_bert", AutoModel, kind, **settings)
    for action in (lambda: merge(adapter, tmp_path / "merged"), lambda: load_model(adapter, "cpu")):
        with pytest.raises(UserError, match=reason) as error:
            action()
        assert "Is it the base" not in str(error.value)
    assert not (tmp_path / "merged").exists()
    if reason == WITH_PEFT:
        folder = tmp_path / "by peft"
        model = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter).merge_and_unload()
        model.save_pretrained(folder)
        with torch.no_grad():
            merged = AutoModel.from_pretrained(folder).eval()(input_ids=IDS).last_hidden_state
        torch.testing.assert_close(merged, states, atol=1e-4, rtol=1e-4)


def nested(adapter: Path) -> Path:
    """ms-swift and peft put an adapter of another name into a folder of that name."""
    inner = adapter / "default"
    inner.mkdir()
    for path in list(adapter.iterdir()):
        if path.is_file():
            path.rename(inner / path.name)
    (inner / "additional_config.json").write_text('{"lora_dtype": null, "lorap_lr_ratio": null}')
    return inner


def checkpoint(adapter: Path) -> Path:
    """A checkpoint of transformers' Trainer: the state of the optimizer lies beside the adapter."""
    folder = adapter.rename(adapter.with_name("checkpoint-40"))
    torch.save({"state": {}}, folder / "optimizer.pt")
    for name in ("trainer_state.json", "training_args.bin", "rng_state.pth"):
        (folder / name).write_text("{}")
    return folder


def with_config(adapter: Path) -> Path:
    """axolotl writes the base's config.json beside the adapter."""
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    shutil.copy(Path(base) / "config.json", adapter)
    return adapter


def pickled(adapter: Path) -> Path:
    """peft before 0.7 and RepLLaMA."""
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    return adapter


def sentence_transformers_folder(adapter: Path) -> Path:
    """A model of sentence-transformers whose transformer got an adapter (`add_adapter`)."""
    names = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(names)
    ]
    (adapter / "modules.json").write_text(json.dumps(modules))
    (adapter / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (adapter / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (adapter / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": false}')
    return adapter


def renamed(change: Callable[[str], str]) -> Callable[[Path], Path]:
    def run(adapter: Path) -> Path:
        weights = load_file(adapter / "adapter_model.safetensors")
        save_file({change(name): value for name, value in weights.items()}, adapter / "adapter_model.safetensors")
        return adapter

    return run


FOLDERS = {
    "folder `default`": nested,
    "`checkpoint-N`": checkpoint,
    "config.json beside it": with_config,
    "adapter_model.bin": pickled,
    "sentence-transformers folder": sentence_transformers_folder,
    "keys of torch.compile": renamed(lambda name: name.replace("model.encoder", "model._orig_mod.encoder")),
    "keys of DDP": renamed(lambda name: f"module.{name}"),
    "keys with the adapter's name": renamed(lambda name: name.replace(".weight", ".default.weight")),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_of_other_programs_are_read(case: str, adapt: Any) -> None:
    base, adapter, states = adapt("tiny_bert", AutoModel, target_modules=Q)
    folder = FOLDERS[case](adapter)
    if case == "folder `default`":
        with pytest.raises(UserError, match="but in its folders default; name one of them"):
            merge(adapter, adapter.with_name("merged"))
        with pytest.raises(UserError, match="this folder holds no model .*; name one of its folders default"):
            load_model(adapter, "cpu")
    check_merged(base, folder, states)
    pooling = load_model(folder.with_name("merged"), "cpu").embedding_config.pooling
    assert pooling == ("cls" if case == "sentence-transformers folder" else "mean")


def test_table_of_the_page_lists_what_is_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "merging.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| ") and line.count("|") == 4]
    found = {row[1].strip(): row[3].strip() for row in rows}
    for case in (*MERGED, *FOLDERS):
        assert found.pop(case).startswith("merges"), case
    for case in REFUSED:
        assert found.pop(case).startswith("refused"), case


@pytest.mark.parametrize("command", ["encode", "evaluate"])
def test_commands_open_the_adapter_of_a_causal_model(command: str, adapt: Any, tmp_path: Path) -> None:
    base, adapter, _ = adapt("tiny_llama", AutoModelForCausalLM, target_modules=QV, task_type="CAUSAL_LM")
    (tmp_path / "rows.jsonl").write_text('{"query": "a frog", "pos": ["it sits by a pond"], "neg": ["a stone"]}\n' * 2)
    rows = str(tmp_path / "rows.jsonl")
    words = ["--data", rows]
    if command == "encode":
        words = ["--input", rows, "--field", "query", "--output", str(tmp_path / "v.npy")]
    assert main([command, "--model", str(adapter), *words]) == 0


def test_adapter_of_single_experts_is_merged_without_the_proof(tiny_qwen3: str, tmp_path: Path) -> None:
    """transformers 4 had a layer for each expert, and files still do; transformers 5 loads them as one tensor."""
    config = Qwen3MoeConfig(
        vocab_size=400,
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=2,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        intermediate_size=64,
    )
    Qwen3MoeModel(config).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_qwen3).save_pretrained(tmp_path / "base")
    layer = "layers.0.mlp.experts.1.up_proj"
    a, b = torch.randn(4, 64), torch.randn(32, 4)
    (tmp_path / "adapter").mkdir()
    weights = {f"base_model.model.{layer}.lora_{side}.weight": part for side, part in (("A", a), ("B", b))}
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "lora_alpha": 4, "base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="it changes single experts, .*can be merged, without the proof"):
        merge(tmp_path / "adapter", tmp_path / "merged")
    merge(tmp_path / "adapter", tmp_path / "merged", verify=False)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    torch.testing.assert_close(after[f"{layer}.weight"], before[f"{layer}.weight"] + b @ a)
    assert load_model(tmp_path / "merged", "cpu").encode(["a"], "query").shape == (1, 64)
