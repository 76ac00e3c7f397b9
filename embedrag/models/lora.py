"""LoRA adapters: which layers get them, and what is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from embedrag.errors import UserError
from embedrag.models.kernels.fast_lora import speed_up_adapters
from embedrag.models.lora_init import PISSA, adapter_weights
from embedrag.runtime.console import quiet
from embedrag.training.config.options import TrainOptions


def add_adapters(model: nn.Module, options: TrainOptions) -> nn.Module:
    """Put LoRA adapters (arXiv 2106.09685) on the linear layers of a frozen backbone.

    Raises:
        UserError: when `--lora_target_modules` names layers that the model lacks.
    """
    with quiet():
        from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=_in_top_layers(model, lora_targets(model, options.lora_target_modules), options.lora_top_layers),
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        init_lora_weights=PISSA if options.lora_init == "pissa" else True,
        task_type=TaskType.FEATURE_EXTRACTION,
        bias="none",
    )
    with quiet():
        adapted = cast(nn.Module, get_peft_model(model, config))
    speed_up_adapters(adapted)
    if options.lora_init == "pissa":
        adapted.adapter_start = adapter_weights(adapted)  # type: ignore[assignment]
    return adapted


def _in_top_layers(model: nn.Module, names: list[str], count: int | None) -> list[str]:
    """Names of layers that get adapters: those given, or their whole paths in the last `count` blocks of the model.

    Raises:
        UserError: when the model has fewer, or none of the layers is in them.
    """
    blocks = int(model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    if count and count > blocks:
        raise UserError(f"--lora_top_layers {count}: the model has {blocks} layers")
    if not count or count == blocks:
        return names
    # peft's own layers_to_transform does not find decoders' blocks, whose paths begin with `layers`.
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    wanted = [name for name in linears if any(f".{name}".endswith(f".{last}") for last in names)]
    found = [name for name in wanted if (number := re.search(r"\.(\d+)\.", name)) and int(number[1]) >= blocks - count]
    if not found:
        raise UserError(f"--lora_top_layers {count}: none of {', '.join(names)} lies in them")
    return found


def lora_targets(model: nn.Module, asked: Sequence[str] | None = None) -> list[str]:
    """Last names of the linear layers that get adapters.

    Args:
        model: the backbone.
        asked: names from `--lora_target_modules`; each must match. Left out: all linear layers.

    Raises:
        UserError: listing the names that exist.

    >>> lora_targets(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    ['0']
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    names = sorted({_target_name(name) for name in linears})
    if not names:
        raise UserError("the model has no linear layers that LoRA could adapt; use --finetune_type full")
    missing = [name for name in asked or [] if not any(f".{linear}".endswith(f".{name}") for linear in linears)]
    if missing:
        raise UserError(
            f"--lora_target_modules {' '.join(missing)}: no such linear layer; there are {', '.join(names)}"
        )
    return list(asked) if asked else names


def _target_name(name: str) -> str:
    """The last name of a layer; two for `dense`, which BERT's pooler is called too, where plain peft would adapt it."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1] == "dense" else parts[-1]


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters; 4-bit weights count as what they stand for."""
    total = trainable = 0
    for parameter in model.parameters():
        shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        count = int(torch.Size(shape).numel()) if shape is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return total, trainable


def without_gradient(model: nn.Module) -> list[str]:
    """Names of trainable parameters that the last backward pass did not reach."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]


def _lift_norms(model: nn.Module) -> None:
    """Norms of a frozen base compute in float32 (and nothing else is blown up: token embeddings stay small)."""
    for module in model.modules():
        if "norm" in type(module).__name__.lower() and not list(module.children()):
            module.float()
