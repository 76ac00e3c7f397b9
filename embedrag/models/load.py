"""Open a model for encoding: a trained or merged folder, an adapter with its base, or any base model."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from embedrag.errors import UserError
from embedrag.models.artifacts import MERGE_CONFIG, MODEL_MARKERS, TRAINING_CONFIG
from embedrag.models.backbone import load_backbone
from embedrag.models.base_model import Base, check_local_path, describe_base, model_name
from embedrag.models.embedding_config import EmbeddingConfig, read_embedding_config
from embedrag.models.encoder import Encoder
from embedrag.models.kernels.packed_attention import PackingError
from embedrag.models.lora import attach_adapter
from embedrag.models.quantization import QuantizationConfig, given_quantization
from embedrag.models.tokenizer import TextTokenizer, load_tokenizer
from embedrag.runtime.console import quiet, say
from embedrag.runtime.device import pick_device, pick_dtype
from embedrag.weights.adapter_file import CONFIG, Adapter, adapter_in, read_adapter


def load_model(
    name: str | Path,
    device: str = "auto",
    dtype: str = "float32",
    base_model_path: str | Path | None = None,
    trust_remote_code: bool = False,
    quantization: QuantizationConfig | None = None,
    lora_alpha: int | None = None,
    argument: str = "model",
) -> Encoder:
    """Open a model for encoding: a trained folder, an adapter with its base, or any base model.

    Args:
        name: folder, adapter file, or hub id. A QLoRA adapter gets its base quantised as in training.
        device: `auto`, `cuda`, `mps` or `cpu`.
        dtype: of the computation.
        base_model_path: base of an adapter, when it has moved or the adapter does not name it.
        trust_remote_code: run Python code that comes with the base.
        quantization: how an adapter's base was quantised, when the adapter's folder does not record it.
        lora_alpha: scale of an adapter without adapter_config.json.
        argument: what the caller calls `name`, for messages.

    Returns:
        The encoder; `encode(texts, role)` gives [n, D] float32 vectors.

    Raises:
        UserError: the model or its base can't be read, or they do not belong together.

    Example:
        ```python
        model = embedrag.load_model("merged")
        vectors = model.encode(["What does a relay do?"], role="query")
        ```
    """
    name = model_name(name, argument)
    where = pick_device(device)
    precision = pick_dtype(dtype, where)
    path = Path(name).expanduser()
    if adapter_in(path):
        encoder, adapter = load_base_of(
            path, where, precision, base_model_path, trust_remote_code, quantization, lora_alpha, argument
        )
        if adapter.left_out:
            say(left_out(adapter))
        return with_adapter(encoder, adapter, argument)
    base = describe_base(name, trust_remote_code, argument=argument)
    embedding_config = saved_embedding_config(path, base, argument)
    tokenizer = load_tokenizer(base, embedding_config, trust_remote_code=trust_remote_code, argument=argument)
    backbone = load_backbone(base, precision, where, trust_remote_code=trust_remote_code, argument=argument)
    return _ready(Encoder(backbone, tokenizer, embedding_config, precision), name)


def load_base_of(
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    base_model_path: str | Path | None = None,
    trust_remote_code: bool = False,
    quantization: QuantizationConfig | None = None,
    lora_alpha: int | None = None,
    argument: str = "model",
) -> tuple[Encoder, Adapter]:
    """Read an adapter, and open its base as it was in training; `with_adapter` joins them.

    Args:
        path: folder or file of the adapter.
        device: where the weights go.
        dtype: of the computation.
        base_model_path: see `load_model`, also for the further arguments.
        trust_remote_code: run Python code that comes with the base.
        quantization: how the base was quantised, when the adapter's folder does not record it.
        lora_alpha: scale of an adapter without adapter_config.json.
        argument: what the caller calls the adapter, for messages.

    Raises:
        UserError: the adapter or its base can't be read.
    """
    adapter = read_adapter(str(path), lora_alpha, argument)
    folder = adapter.file.parent
    base = describe_adapter_base(folder, base_model_path, trust_remote_code, argument)
    embedding_config = saved_embedding_config(folder, base, argument)
    tokenizer = load_adapter_tokenizer(folder, base, embedding_config, trust_remote_code, argument)
    quantization = trained_quantization(base, folder) or quantization
    if quantization:
        quantization = replace(quantization, compute_dtype=dtype)
    backbone = load_backbone(
        base, dtype, device, quantization, trust_remote_code=trust_remote_code, argument="base_model_path"
    )
    for parameter in backbone.parameters():
        # The weights were read in the type that training stored them in; from here on they compute in this one.
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return _ready(Encoder(backbone, tokenizer, embedding_config, dtype), str(path)), adapter


def trained_quantization(base: Base, folder: Path) -> QuantizationConfig | None:
    """How the base of an adapter was quantised in training: as its files are, or as the adapter's folder records.

    Args:
        base: the adapter's base.
        folder: of the adapter.

    Returns:
        None when nothing says that it was quantised.

    Raises:
        UserError: this is not the base of the training.
    """
    given = given_quantization(base)
    recorded = model_settings(folder).get("quantization")
    saved = QuantizationConfig.from_record(recorded) if recorded else None
    if given and saved and not saved.given:
        reason = f"its weights are quantised already ({given}), but the training quantised the weights of another base"
        raise UserError(f"{reason} itself ({saved}); name that base", "base_model_path", base.name)
    if saved and saved.given and not given:
        reason = f"the adapter was trained on a base that is quantised already ({saved}), and this one is not"
        raise UserError(f"{reason}; name that base", "base_model_path", base.name)
    return given or saved


def with_adapter(encoder: Encoder, adapter: Adapter, argument: str = "model") -> Encoder:
    """The model of an adapter: the adapter on its base.

    Args:
        encoder: the base, from `load_base_of`; it becomes the model.
        adapter: likewise.
        argument: what the caller calls the adapter, for messages.

    Raises:
        UserError: the two do not belong together.
    """
    encoder.backbone = attach_adapter(encoder.backbone, adapter, argument)
    return encoder.eval()


def left_out(adapter: Adapter) -> str:
    """A line that names the parts of an adapter that are not used."""
    return f"left out of the adapter: {', '.join(adapter.left_out)} (no vector depends on heads and poolers)"


def _ready(encoder: Encoder, name: str) -> Encoder:
    encoder.name = name
    return pack_if_possible(encoder).eval()


def pack_if_possible(encoder: Encoder) -> Encoder:
    """Let texts lie one after the other without padding, if the model and the device can do it; see `Encoder.pack`."""
    with quiet(), contextlib.suppress(PackingError):  # padded texts have the same vectors
        encoder.pack()
    return encoder


def check_model_path(name: str | Path, argument: str = "model") -> None:
    """Reject a path without a model and without an adapter, before anything is loaded.

    Args:
        name: folder, adapter file, or hub id.
        argument: what the caller calls `name`, for messages.

    Raises:
        UserError: with the remedy.
    """
    if not adapter_in(Path(name).expanduser()):
        check_local_path(str(name), argument)


def find_model(folder: Path) -> Path:
    """The model folder in `folder`, at most four levels below it (Azure ML adds levels of its own).

    Raises:
        UserError: when there is none, or several at the same level.
    """
    for depth in range(5):
        found = sorted({path.parent for name in MODEL_MARKERS for path in folder.glob("*/" * depth + name)})
        # The parts of a model (1_Pooling) lie one level below it and have a config.json too.
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{folder}: several models, {', '.join(map(str, found))}; name one of them")
    raise UserError(f"{folder}: no model in it (no {', '.join(MODEL_MARKERS)})")


def model_settings(folder: Path) -> dict[str, Any]:
    """training_config.json of a folder that a run wrote; empty for any other model."""
    return read_json(folder / TRAINING_CONFIG) if (folder / TRAINING_CONFIG).is_file() else {}


def trained_from(name: str | Path, argument: str = "model") -> str:
    """The base of a merged, trained or adapter folder, as its files name it.

    Args:
        name: the folder, or an adapter file in it.
        argument: what the caller calls `name`, for messages.

    Raises:
        UserError: the files do not name the base.
    """
    path = Path(name).expanduser()
    folder = path.parent if path.is_file() else path
    for file, key in (
        (MERGE_CONFIG, "base_model_path"),
        (TRAINING_CONFIG, "model_name_or_path"),
        (CONFIG, "base_model_name_or_path"),
    ):
        if (folder / file).is_file() and (base := read_json(folder / file).get(key)):
            return str(base)
    raise UserError(f"has no {MERGE_CONFIG} and no {TRAINING_CONFIG} that name its base", argument, name)


def saved_embedding_config(folder: Path, base: Base, argument: str = "model") -> EmbeddingConfig:
    """The embedding configuration of a model or adapter folder: from its own files, otherwise the base's.

    The files of sentence-transformers hold one length, training_config.json holds both.

    Args:
        folder: where the model or adapter lies.
        base: its base, from `describe_base`.
        argument: what the caller calls the folder, for messages.
    """
    own = read_embedding_config(str(folder), argument) if folder.is_dir() else None
    embedding_config = own or base.embedding_config
    settings = model_settings(folder)
    limit = base.position_limit or 10**9
    return replace(
        embedding_config,
        query_max_len=min(limit, int(settings.get("query_max_len", embedding_config.query_max_len))),
        passage_max_len=min(limit, int(settings.get("passage_max_len", embedding_config.passage_max_len))),
    )


def describe_adapter_base(
    folder: Path, base_model_path: str | Path | None = None, trust_remote_code: bool = False, argument: str = "model"
) -> Base:
    """The base of an adapter.

    Args:
        folder: of the adapter.
        base_model_path: its base; None: the base that adapter_config.json names.
        trust_remote_code: run Python code that comes with the base.
        argument: what the caller calls the adapter, for messages.

    Raises:
        UserError: the base is not named, or can't be read.
    """
    if base_model_path:
        return describe_base(str(base_model_path), trust_remote_code, argument="base_model_path")
    config = folder / CONFIG
    name = read_json(config).get("base_model_name_or_path") if config.is_file() else None
    if not name:
        raise UserError("the adapter does not name its base; give `base_model_path`", argument, folder)
    try:
        return describe_base(str(name), trust_remote_code)
    except UserError as error:
        reason = f"its base {name}: {error.reason}; if the base has moved, give `base_model_path`"
        raise UserError(reason, argument, folder) from None


def load_adapter_tokenizer(
    folder: Path,
    base: Base,
    embedding_config: EmbeddingConfig,
    trust_remote_code: bool = False,
    argument: str = "model",
) -> TextTokenizer:
    """The tokenizer in an adapter's folder, otherwise its base's.

    Args:
        folder: of the adapter.
        base: its base, from `describe_base`.
        embedding_config: from `saved_embedding_config`.
        trust_remote_code: run Python code that comes with the tokenizer.
        argument: what the caller calls the adapter, for messages.

    Raises:
        UserError: it can't be read.
    """
    own = (folder / "tokenizer_config.json").is_file()
    return load_tokenizer(
        replace(base, name=str(folder), subfolder="") if own else base,
        embedding_config,
        trust_remote_code=trust_remote_code,
        argument=argument if own else "base_model_path",
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model folder; UserError when it is damaged."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({error}); the model folder is damaged") from None
    return data
