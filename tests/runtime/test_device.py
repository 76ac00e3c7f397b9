"""Devices and precisions by name, and what memory a process used."""

from __future__ import annotations

import time

import pytest
import torch

from embedrag.errors import UserError
from embedrag.runtime.device import (
    bfloat16_multiplies_faster,
    describe,
    fastest,
    peak_memory_bytes,
    pick_device,
    pick_dtype,
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


def test_fastest_is_the_one_that_takes_the_least_time() -> None:
    tries = {torch.float32: lambda: time.sleep(0.02), torch.bfloat16: lambda: time.sleep(0.002)}
    assert fastest(tries) == torch.bfloat16
    assert isinstance(bfloat16_multiplies_faster(), bool)


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory_bytes()
    held = torch.ones(before // 4 + 25_000_000)  # more than the process ever held
    assert peak_memory_bytes(CPU) >= before + 90_000_000 and held.numel()
    assert describe(CPU).startswith("cpu (")
