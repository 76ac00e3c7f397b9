"""A model folder tells later programs what they need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from embedrag.errors import UserError
from embedrag.models.build import build_model
from embedrag.models.load import load_model
from embedrag.models.save import save_model, with_older_rope


def test_settings_of_a_saved_model_are_found_by_later_programs(tiny_bert: str, tmp_path: Path) -> None:
    model = build_model(tiny_bert, "qlora", passage_max_len=99, device="cpu")
    save_model(model, tmp_path / "saved", settings=None)
    settings = json.loads((tmp_path / "saved" / "training_config.json").read_text())
    assert settings["model_name_or_path"] == tiny_bert and settings["finetune_type"] == "qlora"
    assert (settings["query_max_len"], settings["passage_max_len"]) == (256, 99)
    assert settings["quantization"]["storage_dtype"] == "float32"
    with pytest.raises(UserError, match="`output_path=.*exists"):
        save_model(model, tmp_path / "saved")
    save_model(model, tmp_path / "saved", overwrite=True)


ROPES = {
    "Qwen3Config": ({"rope_theta": 1e6}, {"rope_theta": 1e6}),
    "LlamaConfig": (
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "Gemma3TextConfig": (
        {"rope_theta": 1e6, "rope_local_base_freq": 7e3},
        {"rope_theta": 1e6, "rope_local_base_freq": 7e3},
    ),
    "ModernBertConfig": (
        {"global_rope_theta": 16e4, "local_rope_theta": 9e3},
        {"global_rope_theta": 16e4, "local_rope_theta": 9e3},
    ),
    "GPTNeoXConfig": ({"rotary_emb_base": 2e4, "rotary_pct": 0.5}, {"rotary_emb_base": 2e4, "rotary_pct": 0.5}),
    "PhiConfig": ({"partial_rotary_factor": 0.25}, {"rope_theta": 1e4, "partial_rotary_factor": 0.25}),
    "BertConfig": ({}, {}),
}


@pytest.mark.parametrize("family", ROPES)
def test_rotary_positions_are_written_for_transformers_4_and_5(family: str, tmp_path: Path) -> None:
    """transformers 4 takes its default of 10,000 without a word when it does not find the name that it knows."""
    import transformers

    settings, older = ROPES[family]
    config = getattr(transformers, family)(num_hidden_layers=2, layer_types=None, **settings)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    newer = json.loads(path.read_text())
    both = with_older_rope(newer)
    assert both == newer | older
    path.write_text(json.dumps(both))
    assert getattr(type(config).from_pretrained(tmp_path), "rope_parameters", {}) == newer.get("rope_parameters", {})


def test_saved_tokenizer_is_read_by_transformers_4_and_fastembed(tiny_qwen3: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_qwen3, base)
    path = base / "tokenizer_config.json"
    stray = {"max_length": 128, "stride": 0, "truncation_strategy": "longest_first", "pad_to_multiple_of": None}
    newer = {"extra_special_tokens": ["<|im_end|>"], "truncation_side": "right"}
    path.write_text(json.dumps(json.loads(path.read_text()) | stray | newer))
    model = build_model(str(base), "full", device="cpu")
    save_model(model, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert not set(saved) & {*stray, "is_local", "local_files_only", "extra_special_tokens"}
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast" and saved["model_max_length"] == 512
    tokens = json.loads((tmp_path / "saved" / "special_tokens_map.json").read_text())
    expected = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_end|>"]}
    assert tokens == expected
    again = load_model(tmp_path / "saved", "cpu")
    texts = ["a frog", "a<|im_end|>b", ""]
    assert again.tokenizer("query", texts) == model.tokenizer("query", texts)
    assert again.tokenizer.tokenizer.extra_special_tokens == ["<|im_end|>"]
