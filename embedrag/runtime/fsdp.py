"""Sharded weights, gradients and optimizer state, for full fine-tunes that do not fit one device.

This is ZeRO stage 3 (arXiv 1910.02054) in the form that torch has it (FSDP2, `fully_shard`). Each process keeps and
updates one shard of every weight. When a block computes, its weights are gathered for that moment. Models are saved
whole, so a saved model does not depend on the number of processes that trained it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn


def shard(backbone: nn.Module, device: torch.device, processes: int) -> None:
    """Shard the weights of a backbone, block by block. Gradients are then added up as soon as they are computed.

    Args:
        backbone: on the CPU, and the same in every process; its shards go to `device`.
        device: of this process.
        processes: number of processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    for module in [*_blocks(backbone), backbone]:
        # The outermost module too: between steps, `parameters()` must always be the shards.
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True)
        sharded.set_gradient_divide_factor(1.0)  # a sum and not a mean, because each process has a part of the gradient
        sharded.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction


def is_sharded_tensor(value: object) -> bool:
    """Whether a value is a sharded tensor."""
    module = sys.modules.get("torch.distributed.tensor")  # takes a second to import; without it nothing is sharded
    return module is not None and isinstance(value, module.DTensor)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was called on a module."""
    return any(is_sharded_tensor(parameter) for parameter in module.parameters())


def gather_full(value: Any, keep: bool = True) -> Any:
    """Replace sharded tensors by whole ones, on the CPU. All processes must call it.

    Args:
        value: a tensor, or nested dicts and lists of them.
        keep: False for a process that only sends its shards; it gets None in the place of each whole tensor.
    """
    if is_sharded_tensor(value):
        gathered: Tensor = value.full_tensor()
        return gathered.detach().cpu() if keep else None
    if isinstance(value, dict):
        return {key: gather_full(item, keep) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [gather_full(item, keep) for item in value]
    return value


def to_local(value: Tensor) -> Tensor:
    """The shard that this process holds of a tensor; the tensor itself when it is not sharded."""
    return cast(Any, value).to_local() if is_sharded_tensor(value) else value


def local_shard(parameter: Tensor, saved: Tensor) -> Tensor:
    """Shard a whole tensor in the same way as a parameter; the inverse of `gather_full`.

    A tensor is returned unchanged if its shape is not that of the parameter, or if the parameter is not sharded.
    """
    if not is_sharded_tensor(parameter) or saved.shape != parameter.shape:
        return saved
    from torch.distributed.tensor import DTensor, distribute_tensor

    held = cast(DTensor, parameter)
    return distribute_tensor(saved.to(held.device), held.device_mesh, held.placements, src_data_rank=None)


def _blocks(backbone: nn.Module) -> Iterator[nn.Module]:
    """The layers of a transformer, which are the items of its outermost module lists."""
    inner: set[nn.Module] = set()
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and module not in inner:
            inner.update(module.modules())
            yield from module
