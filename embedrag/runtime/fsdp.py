"""Weights, gradients and optimizer state in parts, one for each process: full fine-tunes that do not fit one device.

ZeRO stage 3 (arXiv 1910.02054) as torch has it (FSDP2, `fully_shard`): the weights of a block are gathered when it
computes, and each process keeps and updates its part. What is saved is whole, so it does not tell how it was trained.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn


def shard(backbone: nn.Module, device: torch.device, processes: int) -> None:
    """Cut the weights of a backbone, block by block; gradients of the processes are then added up as they arise.

    Args:
        backbone: on the CPU, the same in every process; its parts go to `device`.
        device: of this process.
        processes: how many there are.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    for module in [*_blocks(backbone), backbone]:
        # The outermost too: between steps `parameters()` are the parts, whatever was computed last.
        part = fully_shard(module, mesh=mesh, reshard_after_forward=True)
        part.set_gradient_divide_factor(1.0)  # a sum, not a mean: each process has a part of the gradient
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other


def is_part(value: object) -> bool:
    """Whether a tensor is this process's part of one; false where torch's module for parts (a second) is not loaded."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was called on it."""
    return any(is_part(parameter) for parameter in module.parameters())


def gather_full(value: Any, keep: bool = True) -> Any:
    """A tensor, or nested dicts and lists of them, with parts put together; all processes must call it.

    Args:
        value: what may hold parts of tensors.
        keep: False: take part in it, and get None in the place of what was put together.
    """
    if is_part(value):
        gathered: Tensor = value.full_tensor()
        return gathered.detach().cpu() if keep else None
    if isinstance(value, dict):
        return {key: gather_full(item, keep) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [gather_full(item, keep) for item in value]
    return value


def own_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor, without a word with the others."""
    return cast(Any, value).to_local() if is_part(value) else value


def local_shard(parameter: Tensor, saved: Tensor) -> Tensor:
    """What this process holds of a whole tensor that is laid out as a parameter is."""
    if not is_part(parameter) or saved.shape != parameter.shape:
        return saved
    from torch.distributed.tensor import DTensor, distribute_tensor

    held = cast(DTensor, parameter)
    return distribute_tensor(saved.to(held.device), held.device_mesh, held.placements, src_data_rank=None)


def _blocks(backbone: nn.Module) -> Iterator[nn.Module]:
    """The layers of a transformer: items of the outermost module lists."""
    inner: set[nn.Module] = set()
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and module not in inner:
            inner.update(module.modules())
            yield from module
