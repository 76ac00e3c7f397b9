"""Models open from every folder that holds one, and errors name what to change."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from embedrag.errors import UserError
from embedrag.models.base_model import describe_base
from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.models.load import check_model_path, load_model


def test_weights_in_a_subfolder_are_found(tiny_bert: str, tmp_path: Path) -> None:
    target = tmp_path / "old"
    shutil.copytree(tiny_bert, target / "0_Transformer")
    EmbeddingConfig("mean").write(target, 64)
    modules = json.loads((target / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (target / "modules.json").write_text(json.dumps(modules))
    (target / "sentence_bert_config.json").rename(target / "0_Transformer" / "sentence_bert_config.json")
    assert describe_base(str(target)).subfolder == "0_Transformer"
    assert load_model(target, "cpu").encode(["x"], "query").shape == (1, 64)


def test_base_that_has_moved_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/gone/base"}')
    save_file({"q.modules_to_save.weight": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"^`model=/.*`: its base /gone/base: no such folder.*give `base_model_path`"):
        load_model(str(tmp_path), "cpu")
    with pytest.raises(UserError, match=r"^`base_model_path=\./none`: no such folder"):
        load_model(tmp_path, "cpu", base_model_path="./none")


def test_first_check_accepts_paths_of_adapters_and_models_and_no_others(tiny_bert: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    check_model_path(tiny_bert)
    check_model_path(str(tmp_path))
    check_model_path("owner/name")
    with pytest.raises(UserError, match=r"^`baseline=\./none`: no such folder"):
        check_model_path("./none", "baseline")
