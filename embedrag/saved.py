"""Open what a run saved, or any base model, for encoding."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from embedrag.backbone import load_backbone, quantization_config, quiet
from embedrag.contract import Base, Contract, describe_base, load_tokenizer, read_contract
from embedrag.device import pick_device, pick_dtype
from embedrag.encoder import Encoder
from embedrag.errors import UserError

ADAPTER_CONFIG = "adapter_config.json"
SETTINGS = "training_config.json"


def load_encoder(
    name: str,
    device: str = "auto",
    dtype: str = "float32",
    base_name: str | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """Open a model for encoding: a trained folder, an adapter folder with its base, or any base model.

    Args:
        name: folder or hub id. An adapter folder names its base; a QLoRA adapter gets it quantised as in training.
        device: `auto`, `cuda`, `mps` or `cpu`.
        dtype: of the computation.
        base_name: base of an adapter folder, when it has moved.
        trust_remote_code: run code that comes with the base.

    Raises:
        UserError: when it, or its base, can't be read.
    """
    where = pick_device(device)
    precision = pick_dtype(dtype, where)
    folder = Path(name).expanduser()
    if not (folder / ADAPTER_CONFIG).is_file():
        base = describe_base(name, trust_remote_code)
        contract = saved_contract(folder, base)
        backbone = load_backbone(base, precision, where, trust_remote_code=trust_remote_code)
        return Encoder(backbone, load_tokenizer(base, contract), contract, precision).eval()
    base = describe_base(base_name or _base_of(folder), trust_remote_code)
    contract = saved_contract(folder, base)
    own_tokenizer = (folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(replace(base, name=str(folder), subfolder="") if own_tokenizer else base, contract)
    return Encoder(
        _with_adapter(folder, base, precision, where, trust_remote_code), tokenizer, contract, precision
    ).eval()


def model_settings(folder: Path) -> dict[str, Any]:
    """training_config.json of a folder that a run wrote; empty for any other model."""
    return _json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}


def saved_contract(folder: Path, base: Base) -> Contract:
    """The contract of a model or adapter folder: its own files, else the base's, else that of its family.

    sentence-transformers' files know one length, training_config.json both.
    """
    contract = (read_contract(str(folder)) if folder.is_dir() else None) or base.contract or _family_contract(base)
    settings = model_settings(folder)
    limit = base.position_limit or 10**9
    return replace(
        contract,
        query_max_len=min(limit, int(settings.get("query_max_len", contract.query_max_len))),
        passage_max_len=min(limit, int(settings.get("passage_max_len", contract.passage_max_len))),
    )


def _with_adapter(
    folder: Path, base: Base, dtype: torch.dtype, device: torch.device, trust_remote_code: bool
) -> torch.nn.Module:
    with quiet():
        from peft import PeftModel

    stored = model_settings(folder).get("quantization")
    quantization = None
    if stored:
        quantization = quantization_config(stored["bits"], stored["double_quantization"], torch.bfloat16)
        dtype = getattr(torch, stored.get("storage_dtype", "float32"))
    backbone = load_backbone(base, dtype, device, quantization, trust_remote_code=trust_remote_code)
    try:
        with quiet():
            model: torch.nn.Module = PeftModel.from_pretrained(backbone, str(folder))
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{folder}: the adapter does not load onto {base.name} ({str(error).splitlines()[0]})"
        ) from None
    return model


def _base_of(folder: Path) -> str:
    name = _json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not name:
        raise UserError(f"{folder / ADAPTER_CONFIG}: names no base_model_name_or_path; the base is not known")
    return str(name)


def _family_contract(base: Base) -> Contract:
    return Contract(pooling="last_token" if base.is_decoder else "mean")


def _json(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({error}); the model folder is damaged") from None
    return data
