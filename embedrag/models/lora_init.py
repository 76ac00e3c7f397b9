"""Two ways to start an adapter: PiSSA and LoftQ. A plain adapter starts as zero.

PiSSA (arXiv 2404.02948) moves the largest singular directions of each weight from the base into its adapter, so that
the training changes these directions. The adapter then fits only the changed base, which nobody else has. Therefore
the saved adapter is the change since the start: it has twice the rank, and fits the published base.

LoftQ (arXiv 2310.08659) starts the adapter as the error of the quantisation. Here it takes one step, on a base that is
already quantised. The base stays as it is, so a merge onto the dequantised weights is exact.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embedrag.errors import UserError
from embedrag.runtime.files import write_json
from embedrag.weights.adapter_file import CONFIG, WEIGHTS
from embedrag.weights.name_matching import match_names
from embedrag.weights.safetensors_io import weight_files

PISSA = "pissa_niter_16"
WRAPPER = "base_model.model."
OVERSAMPLED = 8  # extra directions of a randomised decomposition; they make the wanted directions exact


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the adapter weights of a peft model, by their names in the adapter's file."""
    from peft import get_peft_model_state_dict

    return {name: value.detach().cpu().clone() for name, value in get_peft_model_state_dict(model).items()}


def subtract_start(folder: Path, start: dict[str, Tensor]) -> None:
    """Turn a saved adapter B A into its change since the start, B A - B' A', as the product [B, -B'] [A; A'].

    Args:
        folder: with the adapter's files, which are replaced.
        start: the weights A' and B' at the start, by their names in the file.
    """
    tensors = load_file(folder / WEIGHTS)
    for name, value in tensors.items():
        first = start[name].to(value)
        tensors[name] = torch.cat([value, first]) if ".lora_A" in name else torch.cat([value, -first], 1)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    growth = 2**0.5 if config.get("use_rslora") else 2  # the scale, alpha / r or alpha / sqrt(r), stays
    config |= {"r": 2 * config["r"], "lora_alpha": growth * config["lora_alpha"], "init_lora_weights": True}
    write_json(folder / CONFIG, config)


def start_with_quantization_error(model: nn.Module, base: Path) -> None:
    """LoftQ: start the adapters of a 4-bit model as the best approximation of W - quantised W.

    peft can do this on CUDA only, and it does not divide by the scale of the adapter.

    Args:
        model: a peft model on a base that bitsandbytes quantised.
        base: folder of the base's files.

    Raises:
        UserError: when a layer has no tensor in the files.
    """
    from bitsandbytes.functional import dequantize_4bit
    from peft.tuners.lora import LoraLayer

    files = {name: file for file in weight_files(base) for name in file.names()}
    modules = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    layers = {name: module for name, module in modules.items() if hasattr(module.base_layer.weight, "quant_state")}
    found, missing = match_names({name: f"{name.removeprefix(WRAPPER)}.weight" for name in layers}, files)
    if missing:
        reason = f"{base} has no weights of {', '.join(missing[:4])}; use `lora_init=default`"
        raise UserError(reason, "lora_init", "loftq")
    for name, layer in layers.items():
        weight = layer.base_layer.weight
        taken = files[found[name]].rows(found[name]).to(weight.device).float()
        held = dequantize_4bit(weight.data, weight.quant_state).float()
        if taken.shape != held.shape or (
            taken.T.shape == held.shape and torch.dist(taken.T, held) < torch.dist(taken, held)
        ):
            taken = taken.T  # GPT-2's layers are stored so
        taken = taken - held
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        u, s, v = torch.svd_lowrank(taken, min(len(a) + OVERSAMPLED, *taken.shape), niter=16)
        root = s[: len(a)].sqrt()
        a.data[: len(root)] = root[:, None] * v.T[: len(a)]
        b.data[:, : len(root)] = u[:, : len(a)] * root / layer.scaling["default"]
