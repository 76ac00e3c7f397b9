"""Several processes that train one model: what they say to each other.

Every process holds the whole model and knows the whole batch; texts are shared out, vectors and gradients are added up.
One process is the case in which nothing has to be said, so there is one way through the code.
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from embedrag.errors import LostContactError
from embedrag.runtime.fsdp import is_part

T = TypeVar("T")
BUCKET = 1 << 25  # elements that are reduced at once
PATIENCE = timedelta(hours=2)  # others may tokenise, load or save for long


class SharedOutOfMemoryError(MemoryError):
    """Memory ran out in one of several processes, and all of them know it."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process among all.

    Attributes:
        rank: number of this process.
        size: how many there are.
        local_size: how many share this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if self.size > 1:
            with _speaking():
                dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of parameters over all processes; one that has none counts as zero.

        Those of parameters in parts were added up when they arose.
        """
        if self.size == 1:
            return
        for group in _buckets([parameter for parameter in parameters if not is_part(parameter)]):
            for parameter in group:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            flat = self.sum_(torch.cat([parameter.grad.flatten() for parameter in group if parameter.grad is not None]))
            for parameter, part in zip(group, torch.split(flat, [p.numel() for p in group]), strict=True):
                parameter.grad = part.view_as(parameter).clone()

    def any(self, flag: bool) -> bool:
        """Whether it holds in any process."""
        return flag if self.size == 1 else any(self.gather(flag))

    def gather(self, value: T) -> list[T]:
        """The value of every process, in all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _speaking():
            dist.all_gather_object(values, value)
        return values

    def together(self, function: Callable[[], T], ran_out: Callable[[BaseException], bool]) -> T:
        """Run a function in every process; when memory runs out in one, it has run out in all.

        Args:
            function: has no word with other processes.
            ran_out: whether an error means that memory ran out.

        Raises:
            SharedOutOfMemoryError: in every process. It is a new error, for the first one holds the tensors of the
                failed try.
        """
        if self.size == 1:
            return function()
        result: list[T] = []
        failed = False
        try:
            result.append(function())
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            failed = True
        if self.any(failed):
            raise SharedOutOfMemoryError("memory ran out in one of the processes")
        return result[0]

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block before the others do."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            self.gather(None)


@contextlib.contextmanager
def _speaking() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise LostContactError(f"another process has ended, so this one can't go on ({reason})") from error


def world_size() -> int:
    """Number of processes that a launcher announced."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wants_sharding() -> str | None:
    """The engine that `accelerate launch` asks for, FSDP or DeepSpeed, both of which mean weights in parts here.

    It is asked for once: accelerate itself would wrap the optimizer for an engine that is not its own.
    """
    engines = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
    asked = [engine for name, engine in engines.items() if os.environ.pop(name, "false").lower() in ("true", "1")]
    return asked[0] if asked else None


def join(device: torch.device) -> ProcessGroup:
    """Meet the other processes that a launcher started (torchrun, accelerate, SLURM with their variables, our own)."""
    if world_size() == 1:
        return ProcessGroup()
    if not dist.is_initialized():
        # Words between processes go over gloo on GPUs too: they must get through when a GPU's memory has run out.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    rank = dist.get_rank()
    size = dist.get_world_size()
    return ProcessGroup(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))


def leave() -> None:
    """Take leave of the others; a process that just ends may be aborted by the threads of its connections."""
    if dist.is_initialized():
        dist.destroy_process_group()


def share_out(costs: list[int], size: int) -> list[list[int]]:
    """Deal items to processes so that all have about the same to do: the longest first, each to who has least.

    >>> share_out([5, 9, 4, 1], 2)
    [[1, 3], [0, 2]]
    """
    order = sorted(range(len(costs)), key=lambda item: -costs[item])
    heap = [(0, rank) for rank in range(size)]
    shares: list[list[int]] = [[] for _ in range(size)]
    for item in order:
        load, rank = heapq.heappop(heap)
        shares[rank].append(item)
        heapq.heappush(heap, (load + costs[item], rank))
    return [sorted(share) for share in shares]


def _buckets(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    group: list[Tensor] = []
    elements = 0
    for parameter in parameters:
        if group and (parameter.dtype != group[0].dtype or elements + parameter.numel() > BUCKET):
            yield group
            group, elements = [], 0
        group.append(parameter)
        elements += parameter.numel()
    if group:
        yield group
