"""Which device, which precision, and what memory was used."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch

from embedrag.errors import UserError


def pick_device(name: str) -> torch.device:
    """`auto` takes a GPU where there is one; of several, the one that a launcher gave this process.

    Raises:
        UserError: when a device is asked for that this machine lacks.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        there = ", ".join(kind for kind, yes in available.items() if yes)
        raise UserError(f"--device {name}: torch finds none on this machine; available: {there}")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on GPUs that have it, float16 on older ones, float32 elsewhere (see `fastest` for CPUs)."""
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def fastest(tries: Mapping[torch.dtype, Callable[[], object]], repeats: int = 3) -> torch.dtype:
    """The precision whose function takes the least time (best of some repeats, in turns)."""
    seconds = dict.fromkeys(tries, float("inf"))
    for function in tries.values():
        function()  # warms up
    for _ in range(repeats):
        for dtype, function in tries.items():
            start = time.perf_counter()
            function()
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return min(seconds, key=lambda dtype: seconds[dtype])


@lru_cache
def bfloat16_multiplies_faster() -> bool:
    """Whether this CPU is faster with bfloat16 at all (some are a hundred times slower, then this takes 0.3 s).

    Smaller products take less time than it takes to wake a thread, and would say nothing on a busy machine.
    """
    a = torch.randn(384, 384, generator=torch.Generator().manual_seed(0))
    b = a.bfloat16()
    return fastest({torch.float32: lambda: a @ a, torch.bfloat16: lambda: b @ b}) == torch.bfloat16


def describe(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def peak_memory_bytes(device: torch.device | None = None) -> int:
    """Most memory used so far: on the GPU by torch, elsewhere (resident) by the process."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # ru_maxrss would start at the size of the process that started this one
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def give_memory_back() -> None:
    """Hand freed memory back to the system where glibc manages it.

    It keeps what lies between living tensors, and tensors of another size do not fit there, so a process that frees
    all it allocates still grows.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)
