"""What the code wrote before it was divided into wings opens today, and its runs go on bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from embedrag.cli import main

FOLDER = Path(__file__).parents[1] / "fixtures" / "before_wings"
FLAGS = (
    "--train_dataset rows.jsonl --output_dir run --batch_size 4 --epochs 2 --finetune_type lora --lora_r 2 "
    "--save_steps 2 --save_total_limit 9 --hardness 0.5 --hardness_of own --further_directions passage_query "
    "--separate --resume auto --model_name_or_path base"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy, because a run that goes on writes into it."""
    folder = Path(shutil.copytree(FOLDER, tmp_path / "copy"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EMBEDRAG_CACHE", str(folder / "cache"))
    return folder


def test_run_begun_by_the_earlier_code_ends_with_the_same_weights(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *FLAGS.split()]) == 0
    assert "step 2 of 6" in capsys.readouterr().out
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (here / "run/final", here / "final"))
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        # Another processor may add in another order; on the one that wrote the folder the bits are the same.
        np.testing.assert_allclose(ours[name].numpy(), values.numpy(), rtol=0, atol=1e-7, err_msg=name)
    start = load_file(here / "run/checkpoint-step-2/adapter_model.safetensors")
    assert any((start[name] - values).abs().max() > 1e-5 for name, values in theirs.items())


def test_the_merged_folder_has_its_vectors() -> None:
    from embedrag.models.load import load_model

    vectors = load_model(str(FOLDER / "merged")).encode(["question 1", "answer 1"], role="query")
    np.testing.assert_allclose(vectors, np.load(FOLDER / "merged_vectors.npy"), rtol=0, atol=1e-6)


def test_another_setting_than_the_earlier_run_had_is_still_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *FLAGS.replace("--lora_r 2", "--lora_r 4").split()]) == 2
    assert "lora_r" in capsys.readouterr().err


def test_its_settings_file_is_a_config(here: Path) -> None:
    config = here / "run" / "checkpoint-step-2" / "training_config.json"
    assert json.loads(config.read_text(encoding="utf-8"))["hardness"] == 0.5
    assert main(["train", "--config", str(config), "--resume", "auto"]) == 0
