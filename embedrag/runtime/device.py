"""The device and the precision of a run, and the memory that it used."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from embedrag.errors import UserError, check_choice

DTYPES = ("auto", "float32", "float16", "bfloat16")
# Capability in torch's list -> name for people.
BFLOAT16_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "the BF16 instructions of ARM"}
# Hidden size from which a training step on a CPU is faster in bfloat16. With AVX512-BF16, steps of a hidden size of 512
# take 0.4 to 0.6 of the time of float32, and those of 384 take 1.25 times as long (`python -m benchmarks.precision`).
BFLOAT16_WIDTH = 512


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

    A training on a CPU asks `settle_dtype` instead.

    Raises:
        UserError: when there is no such name.
    """
    check_choice("dtype", name, DTYPES)
    if name != "auto":
        return getattr(torch, name)  # type: ignore[no-any-return]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def bfloat16_instructions() -> str | None:
    """The instructions with which torch multiplies bfloat16 matrices on this CPU; None when there are none.

    A CPU without them needs ten times as long for bfloat16 as for float32.
    """
    found = torch.cpu.get_capabilities()
    # A build without oneDNN, or a limit in ONEDNN_MAX_CPU_ISA, leaves the instructions unused.
    used = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    used = used and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return next((name for key, name in BFLOAT16_INSTRUCTIONS.items() if used and found.get(key)), None)


def settle_dtype(name: str, device: torch.device, width: int) -> tuple[torch.dtype, str]:
    """The precision of a training, and the reason.

    `auto` depends on the machine and on the model only. Nothing is timed, because a busy machine would then give
    another precision, and so another result, than an idle one.

    Args:
        name: `auto`, or a precision, which is then taken.
        device: that computes.
        width: hidden size of the model.

    Raises:
        UserError: when there is no such name.
    """
    if name != "auto" or device.type != "cpu":
        dtype = pick_dtype(name, device)
        return dtype, "it was asked for" if name != "auto" else f"the device is {describe(device)}"
    instructions = bfloat16_instructions()
    if instructions is None:
        return torch.float32, "this CPU has no instructions for bfloat16"
    if width < BFLOAT16_WIDTH:
        return torch.float32, f"a hidden size of {width} is too small for a gain from bfloat16 on a CPU"
    return torch.bfloat16, f"this CPU has {instructions}, and a hidden size of {width} gains from it"


def dtype_name(dtype: torch.dtype) -> str:
    """The name by which options and files call a precision.

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def fixed_order_of_sums(device: torch.device) -> Iterator[None]:
    """Let sums on a CPU have the same order in every run, while the block runs.

    Without it, torch lets several threads add to one element in the order in which they come (the gradient of
    `x[index]` where an index occurs more than once). On a GPU nothing changes.
    """
    if device.type != "cpu":
        yield
        return
    settings: Any = torch.utils.deterministic
    on, only_warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # it would write every new tensor once more
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(on, warn_only=only_warns)
        settings.fill_uninitialized_memory = fills


def describe(device: torch.device) -> str:
    """The name of the device, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.get_num_threads()} threads)"


def kernels_of(device: torch.device) -> str:
    """What decides, besides the versions of the packages, how sums are rounded on a device."""
    if device.type != "cpu":
        return describe(device)
    model = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


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
