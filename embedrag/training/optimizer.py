"""Optimizers by name, parameter groups, and the schedule, counted in optimizer steps."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from embedrag.errors import UserError

TORCH = {
    "adamw": "AdamW",
    "adam": "Adam",
    "nadam": "NAdam",
    "radam": "RAdam",
    "adafactor": "Adafactor",
    "sgd": "SGD",
    "rmsprop": "RMSprop",
}
BITSANDBYTES = {"adamw8bit": "AdamW8bit", "paged_adamw8bit": "PagedAdamW8bit", "lion8bit": "Lion8bit"}


def check_optimizer(name: str) -> None:
    """Raise UserError when the optimizer's library is missing."""
    if name in BITSANDBYTES and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("needs bitsandbytes: pip install bitsandbytes (or choose adamw)", "optimizer", name)


def build_optimizer(
    name: str, model: nn.Module, lr: float, weight_decay: float, lora_plus_ratio: float = 1.0
) -> Optimizer:
    """An optimizer over the trainable parameters; biases and norms (vectors) are not decayed.

    Args:
        name: key of `TORCH` or `BITSANDBYTES`.
        model: its trainable parameters are optimized.
        lr: peak learning rate.
        weight_decay: for matrices.
        lora_plus_ratio: learning rate of the adapters' B, divided by that of all others (LoRA+, arXiv 2402.12354).
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    faster = {name for name, p in trainable.items() if "lora_B" in name and p.ndim >= 2 and lora_plus_ratio != 1}
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in trainable.items() if p.ndim >= 2 and n not in faster], "weight_decay": weight_decay},
        {"params": [p for p in trainable.values() if p.ndim < 2], "weight_decay": 0.0},
        {
            "params": [p for n, p in trainable.items() if n in faster],
            "weight_decay": weight_decay,
            "lr": lr * lora_plus_ratio,
        },
    ]
    groups = [group for group in groups if group["params"]]
    if name in BITSANDBYTES:
        import bitsandbytes.optim

        kind: Callable[..., Optimizer] = getattr(bitsandbytes.optim, BITSANDBYTES[name])
        return kind(groups, lr=lr)
    settings: dict[str, Any] = {"fused": True} if name in ("adamw", "adam") else {}
    settings |= {"momentum": 0.9} if name == "sgd" else {}
    kind = getattr(torch.optim, TORCH[name])
    return kind(groups, lr=lr, **settings)


def warmup_steps(total_steps: int, warmup_proportion: float) -> int:
    """Number of optimizer steps in which the learning rate rises."""
    return math.ceil(round(total_steps * warmup_proportion, 6))


def cosine_schedule(optimizer: Optimizer, total_steps: int, warmup: int, done: int = 0) -> LambdaLR:
    """Learning rates that rise linearly over `warmup` optimizer steps and then fall as a cosine.

    Step t = 0 … total_steps - 1 uses factor(t). The first step has a learning rate above 0 and the last one nearly 0,
    for any accumulation.

    Args:
        optimizer: its groups have the peak learning rate.
        total_steps: optimizer steps of the whole run.
        warmup: from `warmup_steps`.
        done: optimizer steps that were done before.
    """
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup + 1) / max(1, total_steps - warmup + 1)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))

    return LambdaLR(optimizer, factor, done - 1)


def temperature_at(step: int, total_steps: int, first: float, last: float | None) -> float:
    """The temperature of a step; from `first` to `last` it changes by equal factors.

    Args:
        step: number of the optimizer step, from 1.
        total_steps: of the run.
        first: temperature of the first step.
        last: temperature of the last step; None: it stays.

    >>> [round(temperature_at(step, 3, 0.04, 0.01), 4) for step in (1, 2, 3)]
    [0.04, 0.02, 0.01]
    """
    return float(first * ((last or first) / first) ** ((step - 1) / max(1, total_steps - 1)))
