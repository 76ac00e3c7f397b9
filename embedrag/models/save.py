"""Write a model folder: weights or adapter, tokenizer, embedding configuration, settings and model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from embedrag.models.artifacts import PROBE_TEXTS, TRAINING_CONFIG
from embedrag.models.embedding_format import matryoshka_keys
from embedrag.models.encoder import Encoder
from embedrag.models.lora_init import subtract_start
from embedrag.models.model_card import write_card
from embedrag.models.quantization import QuantizationConfig
from embedrag.runtime.console import quiet
from embedrag.runtime.files import atomic_folder, check_folder, write_json

# model_type -> older names of (the base of the angles, the base for layers with a window, the rotated share)
ROPE_NAMES = {
    "modernbert": ("global_rope_theta", "local_rope_theta", ""),
    "gpt_neox": ("rotary_emb_base", "", "rotary_pct"),
}
ROPE_DEFAULT = ("rope_theta", "rope_local_base_freq", "partial_rotary_factor")
ONE_CALL = ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "is_local", "local_files_only")


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
        add_older_names(folder)
        if (folder / "config.json").is_file() and (keys := matryoshka_keys(settings)):
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            write_json(folder / "config.json", config | keys)
        encoder.embedding_config.write(folder, encoder.width, encoder.head)
        write_json(folder / TRAINING_CONFIG, settings)
        if probes:
            write_json(folder / PROBE_TEXTS, probes)
        write_card(folder, settings["model_name_or_path"], settings, results=results)
        if add_files:
            add_files(folder)


def add_older_names(folder: Path) -> None:
    """Let programs with transformers 4, fastembed and transformers.js read a folder as transformers 5 does.

    transformers 5 renamed some settings. Programs that look for the older names do not fail: they take a default and
    give other vectors. Here the older names are written next to the newer ones; transformers 5 reads both.

    Args:
        folder: with tokenizer_config.json, and config.json unless it holds an adapter.
    """
    path = folder / "config.json"
    if path.is_file():
        write_json(path, with_older_rope(json.loads(path.read_text(encoding="utf-8"))))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    # Settings of one call that the base was saved with. fastembed would cut texts at such a max_length.
    settings = {name: value for name, value in settings.items() if name not in ONE_CALL}
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):  # transformers 4 fails on a list under this name
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    write_json(path, settings)
    tokens = {name: value for name, value in settings.items() if name.endswith(("_token", "l_special_tokens"))}
    write_json(folder / "special_tokens_map.json", {name: value for name, value in tokens.items() if value})


def with_older_rope(config: dict[str, Any]) -> dict[str, Any]:
    """Content of config.json, with the settings of rotary positions also under the names of transformers 4.

    >>> config = with_older_rope({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})
    >>> config["rope_theta"], config["rope_parameters"]["rope_theta"]
    (1000000.0, 1000000.0)
    """
    parts = {name: with_older_rope(part) for name, part in config.items() if isinstance(part, dict) and part}
    config = config | parts
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return config
    full = rope.get("full_attention") or rope
    theta, local_theta, share = ROPE_NAMES.get(config.get("model_type", ""), ROPE_DEFAULT)
    older = {theta: full.get("rope_theta"), share: full.get("partial_rotary_factor")}
    older[local_theta] = (rope.get("sliding_attention") or {}).get("rope_theta")
    scaling = {name: value for name, value in full.items() if name not in ("rope_theta", "partial_rotary_factor")}
    if full.get("rope_type", "default") != "default" and theta == "rope_theta":
        older["rope_scaling"] = scaling
    added = {name: value for name, value in older.items() if name and value is not None and config.get(name) is None}
    return config | added


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
