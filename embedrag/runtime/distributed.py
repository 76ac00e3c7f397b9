"""How several processes train one model together.

Every process holds the whole model and knows the whole batch. Each one embeds a share of the texts; then vectors and
gradients are added up over all processes. With one process there is nothing to exchange, so the code is the same.
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
from embedrag.runtime.fsdp import is_sharded_tensor

T = TypeVar("T")
BUCKET = 1 << 25  # elements of gradients that are added up at once
PATIENCE = timedelta(hours=2)  # the other processes may tokenise, load or save for a long time


class SharedOutOfMemoryError(MemoryError):
    """Memory ran out in one of several processes. All of them raise this."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process, and how many there are.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_size: number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and speaks to the user."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if self.size > 1:
            with _contact():
                dist.all_reduce(tensor)
        return tensor

    def all_reduce_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Add up the gradients of parameters over all processes; a missing gradient counts as zero.

        Gradients of sharded parameters are skipped, because they were added up when they were computed.
        """
        if self.size == 1:
            return
        for group in _buckets([parameter for parameter in parameters if not is_sharded_tensor(parameter)]):
            for parameter in group:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad.flatten() for parameter in group if parameter.grad is not None]
            flat = self.all_reduce(torch.cat(gradients))
            for parameter, part in zip(group, torch.split(flat, [p.numel() for p in group]), strict=True):
                parameter.grad = part.view_as(parameter).clone()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        return flag if self.size == 1 else any(self.gather(flag))

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; every process gets all of them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _contact():
            dist.all_gather_object(values, value)
        return values

    def run_together(self, function: Callable[[], T], ran_out: Callable[[BaseException], bool]) -> T:
        """Run a function in every process. When memory runs out in one process, the call fails in all of them.

        Args:
            function: it must not exchange anything with other processes.
            ran_out: whether an error means that memory ran out.

        Raises:
            SharedOutOfMemoryError: in every process. It is a new error, because the original one holds the tensors of
                the failed try.
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
        """The main process runs the block first; then the others run it."""
        if not self.main:
            self.barrier()
        yield
        if self.main:
            self.barrier()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            self.gather(None)


@contextlib.contextmanager
def _contact() -> Iterator[None]:
    """Exchange something with the others; an error of the connection means that one of them has ended."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise LostContactError(f"another process has ended, so this one can't go on ({reason})") from error


def world_size() -> int:
    """Number of processes that a launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wants_sharding() -> str | None:
    """The engine that `accelerate launch` asks for, FSDP or DeepSpeed; None if it asks for none.

    Both mean sharded weights here. The request is removed from the environment, because accelerate itself would
    otherwise wrap the optimizer for an engine that is not used.
    """
    engines = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
    asked = [engine for name, engine in engines.items() if os.environ.pop(name, "false").lower() in ("true", "1")]
    return asked[0] if asked else None


def join(device: torch.device) -> ProcessGroup:
    """Connect to the other processes of the launcher: torchrun, accelerate, SLURM with its variables, or our own."""
    if world_size() == 1:
        return ProcessGroup()
    if not dist.is_initialized():
        # On GPUs, too, objects are exchanged over gloo: that must still work when the memory of a GPU has run out.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    rank = dist.get_rank()
    size = dist.get_world_size()
    return ProcessGroup(rank, size, int(os.environ.get("LOCAL_WORLD_SIZE", size)))


def leave() -> None:
    """Disconnect from the other processes. Without it, threads of the connections may abort a process that ends."""
    if dist.is_initialized():
        dist.destroy_process_group()


def share_out(costs: list[int], size: int) -> list[list[int]]:
    """Share out items so that all processes have about the same work.

    The most expensive items come first, and each goes to the process with the least work so far.

    Args:
        costs: of each item.
        size: number of processes.

    Returns:
        The numbers of the items of each process, ascending.

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
    """Groups of parameters of one type, with up to BUCKET elements together."""
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
