"""Write a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from embedrag.models.artifacts import PROBE_TEXTS, TRAINING_CONFIG
from embedrag.models.encoder import Encoder
from embedrag.models.lora_init import subtract_start
from embedrag.models.model_card import write_card
from embedrag.runtime.console import quiet
from embedrag.runtime.files import atomic_folder, write_json
from embedrag.training.state.checkpoint import write_state


def save_model(
    encoder: Encoder,
    base: str,
    settings: dict[str, Any],
    probes: list[tuple[str, str]],
    results: str,
    target: Path,
    state: dict[str, Any] | None = None,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write the trained model (full) or adapter (LoRA, QLoRA) with tokenizer, contract and settings.

    Args:
        encoder: what was trained.
        base: name of the base model.
        settings: every setting of the run, for training_config.json.
        probes: (role, text) pairs of the training data, which a merge is proved with.
        results: figures for the model card, as Markdown.
        target: folder that appears when all is written.
        state: what a run needs to go on from here; left out: a model and no more.
        weights: of the backbone by name, where this process holds but a part of them.
    """
    with atomic_folder(target) as folder:
        # peft would ask the hub whether the vocabulary grew; it never does here.
        extra = {"save_embedding_layers": False} if hasattr(encoder.backbone, "peft_config") else {}
        with quiet():
            encoder.backbone.save_pretrained(folder, state_dict=weights, **extra)  # type: ignore[operator]
        if start := getattr(encoder.backbone, "adapter_start", None):
            subtract_start(folder, start)
        encoder.tokenizer.save(folder)
        encoder.embedding_config.write(folder, encoder.dimension)
        write_json(folder / TRAINING_CONFIG, settings)
        write_json(folder / PROBE_TEXTS, probes)
        write_card(folder, base, settings, results=results)
        if state is not None:
            write_state(folder, encoder.backbone, state, weights)
