"""Adapters of other programs: each is merged into what peft's live model computes, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification

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
