"""One optimizer step: what counts as one in half precision."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from embedrag.training.train_step import StepOutcome, TrainStep


@pytest.mark.parametrize("fused", [True, False])
def test_float16_continues_after_a_skipped_step_and_reports_an_overflow(fused: bool) -> None:
    Accelerator(cpu=True)  # its optimizer reads the state of the process
    weight = torch.nn.Parameter(torch.ones(3))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    train_step = object.__new__(TrainStep)
    train_step.accelerator = SimpleNamespace(scaler=scaler)
    train_step.optimizer = AcceleratedOptimizer(
        torch.optim.AdamW([weight], lr=0.1, fused=fused), device_placement=False, scaler=scaler
    )
    applied = []
    for factor, finite in ((1.0, False), (float("inf"), True), (1.0, True)):
        before = weight.detach().clone()
        scaler.scale((weight * factor).sum()).backward()
        scaler.unscale_(train_step.optimizer.optimizer)
        applied.append((train_step._apply(finite), not torch.equal(weight, before)))
        train_step.optimizer.zero_grad()
    assert applied == [
        (StepOutcome(finite=False), False),
        (StepOutcome(finite=True, overflowed=True), False),
        (StepOutcome(finite=True), True),
    ]
    assert [outcome.counted for outcome, _ in applied] == [True, False, True]
    assert scaler.get_scale() == 4.0
