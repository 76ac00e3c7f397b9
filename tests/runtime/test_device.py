"""Devices and precisions by name, and what memory a process used."""

from __future__ import annotations

import pytest
import torch

from embedrag.errors import UserError
from embedrag.runtime.device import (
    bfloat16_instructions,
    describe,
    fixed_order_of_sums,
    peak_memory_bytes,
    pick_device,
    pick_dtype,
    settle_dtype,
)

CPU = torch.device("cpu")


def test_device_that_the_machine_lacks_is_refused_with_the_available_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(UserError, match="`device=cuda`: torch finds no such device on this machine; available: cpu"):
        pick_device("cuda")


def test_names_that_no_device_and_no_precision_has_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="`device=gpu`: must be one of auto, cuda, mps, cpu"):
        pick_device("gpu")
    with pytest.raises(UserError, match="`dtype=float61`: must be one of auto, float32, float16, bfloat16; did you"):
        pick_dtype("float61", CPU)


def test_each_process_takes_the_gpu_of_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    assert pick_device("auto") == torch.device("cuda")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert pick_device("auto") == torch.device("cuda", 2) and taken == [2]


def test_precision_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_dtype("auto", CPU) == torch.float32
    assert pick_dtype("float16", CPU) == torch.float16
    for has_bfloat16, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation, found=has_bfloat16: found)
        assert pick_dtype("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize(
    ("found", "used", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": True}, True, "AMX"),
        ({"avx512_bf16": True, "amx_bf16": False}, True, "AVX512-BF16"),
        ({"bf16": True, "neon": True}, True, "the BF16 instructions of ARM"),
        ({"avx512_f": True, "avx512_bf16": False}, True, None),  # AVX512 alone: torch computes it, but slowly
        ({"amx_bf16": True}, False, None),
    ],
)
def test_bfloat16_needs_instructions_that_torch_uses(
    found: dict[str, bool], used: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: found)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: used)
    assert bfloat16_instructions() == expected


@pytest.mark.parametrize(
    ("name", "instructions", "width", "dtype", "reason"),
    [
        ("auto", None, 4096, torch.float32, "this CPU has no instructions for bfloat16"),
        ("auto", "AMX", 384, torch.float32, "a hidden size of 384 is too small for a gain from bfloat16 on a CPU"),
        ("auto", "AMX", 512, torch.bfloat16, "this CPU has AMX, and a hidden size of 512 gains from it"),
        ("float32", "AMX", 4096, torch.float32, "it was asked for"),
        ("bfloat16", None, 64, torch.bfloat16, "it was asked for"),
    ],
)
def test_precision_of_a_training_depends_on_instructions_and_width_and_nothing_is_timed(
    name: str, instructions: str | None, width: int, dtype: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedrag.runtime.device.bfloat16_instructions", lambda: instructions)
    assert settle_dtype(name, CPU, width) == (dtype, reason)


def test_precision_of_a_training_on_a_gpu_is_that_of_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "a GPU")
    assert settle_dtype("auto", torch.device("cuda"), 64) == (torch.bfloat16, "the device is a GPU")


def test_sums_of_several_threads_have_one_order() -> None:
    """torch adds to one element from several threads at once, in any order, unless it is told not to."""
    places = torch.randint(0, 40, (400,), generator=torch.Generator().manual_seed(0))
    weights = torch.randn(400, 384, generator=torch.Generator().manual_seed(1))

    def results() -> int:
        found = set()
        for _ in range(30):
            x = torch.ones(40, 384, requires_grad=True)
            (x[places] * weights).sum().backward()
            found.add(x.grad.numpy().tobytes())
        return len(found)

    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with fixed_order_of_sums(CPU):
            assert results() == 1
        assert results() > 1 and not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(threads)
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory_bytes()
    held = torch.ones(before // 4 + 25_000_000)  # more than the process ever held
    assert peak_memory_bytes(CPU) >= before + 90_000_000 and held.numel()
    assert describe(CPU).startswith("cpu (")
