"""Write a model folder: weights or adapter, tokenizer, embedding configuration, settings and model card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from embedrag.models.artifacts import PROBE_TEXTS, TRAINING_CONFIG
from embedrag.models.encoder import Encoder
from embedrag.models.lora_init import subtract_start
from embedrag.models.model_card import write_card
from embedrag.models.quantization import QuantizationConfig
from embedrag.runtime.console import quiet
from embedrag.runtime.files import atomic_folder, check_folder, write_json


def save_model(
    encoder: Encoder,
    output_path: str | Path,
    *,
    settings: dict[str, Any] | None = None,
    probes: Sequence[tuple[str, str]] = (),
    results: str = "",
    weights: dict[str, Tensor] | None = None,
    add_files: Callable[[Path], object] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a trained model, or its adapter (LoRA, QLoRA). `load_model` and `merge` read the folder.

    Args:
        encoder: the trained model.
        output_path: the folder. It appears when everything is written.
        settings: content of training_config.json; None: what is known from the encoder, see `model_settings_of`.
        probes: (role, text) pairs of the training data that a merge is checked with; empty: a few texts of our own.
        results: figures for the model card, as Markdown.
        weights: all weights of the backbone by name, when this process holds only a shard of them.
        add_files: writes further files into the folder before it appears.
        overwrite: replace a model folder that was written before.

    Raises:
        UserError: the folder exists and may not be replaced.
        RunError: the disk can't be written; what was there before is unchanged.
    """
    target = Path(output_path).expanduser()
    check_folder("output_path", target, overwrite, TRAINING_CONFIG, "model folders")
    settings = settings or model_settings_of(encoder)
    with atomic_folder(target) as folder:
        # peft would ask the hub whether the vocabulary grew. Here it never grows.
        peft = {"save_embedding_layers": False} if hasattr(encoder.backbone, "peft_config") else {}
        with quiet():
            encoder.backbone.save_pretrained(folder, state_dict=weights, **peft)  # type: ignore[operator]
        if start := getattr(encoder.backbone, "adapter_start", None):
            subtract_start(folder, start)
        encoder.tokenizer.save(folder)
        encoder.embedding_config.write(folder, encoder.dimension)
        write_json(folder / TRAINING_CONFIG, settings)
        if probes:
            write_json(folder / PROBE_TEXTS, probes)
        write_card(folder, settings["model_name_or_path"], settings, results=results)
        if add_files:
            add_files(folder)


def model_settings_of(encoder: Encoder) -> dict[str, Any]:
    """The settings that are known from a model itself, by the names of the training options."""
    quantization = QuantizationConfig.of(encoder.backbone)
    kind = "qlora" if quantization else "lora" if hasattr(encoder.backbone, "peft_config") else "full"
    config = encoder.embedding_config
    settings = {
        "model_name_or_path": encoder.backbone.config._name_or_path,  # type: ignore[union-attr]
        "finetune_type": kind,
        "pooling": config.pooling,
        "query_prompt": config.query_prompt,
        "passage_prompt": config.passage_prompt,
        "query_max_len": config.query_max_len,
        "passage_max_len": config.passage_max_len,
    }
    return settings | ({"quantization": quantization.record()} if quantization else {})
