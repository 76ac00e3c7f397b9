"""The device and the precision of a run, and the memory that it used."""

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

from embedrag.errors import UserError, check_choice

DTYPES = ("auto", "float32", "float16", "bfloat16")


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` takes a GPU if there is one.

    Of several GPUs, each process takes the one that its launcher gave to it.

    Raises:
        UserError: when there is no such name, or when this machine does not have the device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    check_choice("device", name, ("auto", *available))
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        there = ", ".join(kind for kind, yes in available.items() if yes)
        raise UserError(f"torch finds no such device on this machine; available: {there}", "device", name)
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of a name; `auto` is bfloat16 on GPUs that have it, float16 on older ones, and float32 elsewhere.

    On a CPU, a training may then still choose bfloat16 with `fastest`.

    Raises:
        UserError: when there is no such name.
    """
    check_choice("dtype", name, DTYPES)
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def fastest(tries: Mapping[torch.dtype, Callable[[], object]], repeats: int = 3) -> torch.dtype:
    """Measure the same work in several precisions, and return the fastest.

    Args:
        tries: precision -> function that does the work in it.
        repeats: how often each function is measured, in turns; its shortest time counts.
    """
    seconds = dict.fromkeys(tries, float("inf"))
    for function in tries.values():
        function()  # the first call is slower
    for _ in range(repeats):
        for dtype, function in tries.items():
            start = time.perf_counter()
            function()
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return min(seconds, key=lambda dtype: seconds[dtype])


@lru_cache
def bfloat16_multiplies_faster() -> bool:
    """Whether this CPU multiplies matrices faster in bfloat16.

    Some CPUs need a hundred times as long for bfloat16; the measurement then takes 0.3 seconds. With smaller matrices,
    the time to wake the threads of a busy machine would be larger than the time of the multiplication.
    """
    a = torch.randn(384, 384, generator=torch.Generator().manual_seed(0))
    b = a.bfloat16()
    return fastest({torch.float32: lambda: a @ a, torch.bfloat16: lambda: b @ b}) == torch.bfloat16


def describe(device: torch.device) -> str:
    """The name of the device, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def peak_memory_bytes(device: torch.device | None = None) -> int:
    """The most memory that was used so far, in bytes: by torch on a GPU, else by the whole process (resident)."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # ru_maxrss begins with the size of the process that started this one
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def give_memory_back() -> None:
    """Give freed memory back to the system, if glibc manages the memory.

    glibc keeps the gaps between tensors that are in use. Tensors of another size do not fit into them, so a process
    would grow although it frees everything.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)
