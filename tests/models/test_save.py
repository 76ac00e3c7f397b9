"""A model folder tells later programs what they need."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from embedrag.errors import UserError
from embedrag.models.build import build_model
from embedrag.models.save import save_model


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
