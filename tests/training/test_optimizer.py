"""Optimizers by name, decay groups, and a schedule that ends near zero."""

from __future__ import annotations

import typing

import pytest
import torch
from torch import nn

from embedrag.errors import UserError
from embedrag.training.config.options import TrainOptions
from embedrag.training.optimizer import (
    BITSANDBYTES,
    TORCH,
    build_optimizer,
    check_optimizer,
    cosine_schedule,
    warmup_steps,
)

CHOICES = typing.get_args(TrainOptions.model_fields["optimizer"].annotation)


def small_model() -> nn.Module:
    """A matrix, its bias, a norm, and a matrix that is frozen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8, bias=False))
    model[2].weight.requires_grad_(False)
    return model


def rates(total: int, warmup: int, peak: float = 0.5) -> list[float]:
    """The rate that each optimizer step uses."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    schedule = cosine_schedule(optimizer, total, warmup)
    used = []
    for _ in range(total):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return used


def test_every_choice_of_the_config_is_known_here_and_nothing_else() -> None:
    assert set(CHOICES) == TORCH.keys() | BITSANDBYTES.keys() and not TORCH.keys() & BITSANDBYTES.keys()


@pytest.mark.filterwarnings("ignore:Paged optimizers")
@pytest.mark.parametrize("name", CHOICES)
def test_optimizer_steps_downhill_and_leaves_frozen_weights(name) -> None:
    check_optimizer(name)
    if name in BITSANDBYTES:
        pytest.importorskip("bitsandbytes")
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inputs = torch.randn(16, 8)
    optimizer = build_optimizer(name, model, lr=1e-3, weight_decay=0.01)
    losses = []
    for _ in range(5):
        loss = (model(inputs) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert losses[-1] < losses[0]


def test_missing_library_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="`optimizer=lion8bit`: needs bitsandbytes: pip install bitsandbytes"):
        check_optimizer("lion8bit")
    check_optimizer("adamw")


def test_matrices_decay_and_biases_and_norms_do_not() -> None:
    model = small_model()
    decayed, plain = build_optimizer("adamw", model, lr=1e-3, weight_decay=0.3).param_groups
    assert decayed["weight_decay"] == 0.3 and plain["weight_decay"] == 0
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight)]
    assert {id(p) for p in plain["params"]} == {id(model[0].bias), id(model[1].weight), id(model[1].bias)}


def test_model_with_only_matrices_has_one_group() -> None:
    assert len(build_optimizer("adamw", nn.Linear(4, 4, bias=False), 1e-3, 0.1).param_groups) == 1


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_decay_shrinks_only_matrices_when_there_is_no_gradient(name) -> None:
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(name, model, lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(model[0].weight, before["0.weight"] * (1 - 0.1 * 0.5))
    for key in ("0.bias", "1.weight", "1.bias", "2.weight"):
        assert torch.equal(model.state_dict()[key], before[key])


@pytest.mark.parametrize(("total", "warmup"), [(12, 0), (12, 1), (20, 5), (100, 5), (100, 50), (1000, 50), (37, 20)])
def test_learning_rate_rises_to_the_peak_at_the_end_of_warmup_and_falls_near_zero(total, warmup) -> None:
    used = rates(total, warmup, peak=0.5)
    assert used[0] > 0
    assert 0.98 * 0.5 < max(used) == used[max(0, warmup - 1)] <= 0.5
    if warmup:
        assert used[warmup - 1] == 0.5
        assert used[:warmup] == pytest.approx([0.5 * (step + 1) / warmup for step in range(warmup)])
    falling = used[max(0, warmup - 1) :]
    assert all(before > after for before, after in zip(falling[:-1], falling[1:], strict=True))
    assert 0 < used[-1] < 0.02 * 0.5


def test_in_the_middle_of_the_fall_the_learning_rate_is_half() -> None:
    assert rates(99, 0, peak=1.0)[49] == pytest.approx(0.5)
    assert rates(109, 10, peak=1.0)[59] == pytest.approx(0.5)


def test_steps_after_the_last_one_stay_at_zero() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = cosine_schedule(optimizer, 10, 2)
    assert [schedule.lr_lambdas[0](step) for step in (10, 11, 500)] == [0, 0, 0]


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (2, 1), (2, 2), (3, 0)])
def test_tiny_runs_have_a_learning_rate_above_zero_in_every_step(total, warmup) -> None:
    assert all(0 < rate <= 0.5 for rate in rates(total, warmup))


@pytest.mark.parametrize(
    ("total", "share", "expected"),
    [(100, 0.05, 5), (101, 0.05, 6), (1, 0.05, 1), (10, 0.0, 0), (60, 0.05, 3), (3, 0.99, 3), (1000, 0.1, 100)],
)
def test_warmup_is_a_share_of_the_optimizer_steps_rounded_up(total, share, expected) -> None:
    assert warmup_steps(total, share) == expected


def test_warmup_of_a_whole_number_of_steps_is_that_number() -> None:
    assert [warmup_steps(total, 0.07) for total in (100, 200, 300)] == [7, 14, 21]


def test_adapters_b_has_its_own_learning_rate_under_the_same_schedule() -> None:
    from embedrag.training.optimizer import build_optimizer, cosine_schedule

    model = torch.nn.ModuleDict({name: torch.nn.Linear(3, 3) for name in ("lora_A", "lora_B", "head")})
    optimizer = build_optimizer("adamw", model, 0.1, 0.01, lora_plus_ratio=16)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model["lora_B"].weight)] == pytest.approx(1.6)
    others = [p for name, p in model.named_parameters() if name != "lora_B.weight"]
    assert {rates[id(p)] for p in others} == {0.1} and len(rates) == 6
    schedule = cosine_schedule(optimizer, 10, 0)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    first, *_, last = schedule.get_last_lr()
    assert last == pytest.approx(16 * first) and first < 0.1
    assert len(build_optimizer("adamw", model, 0.1, 0.01).param_groups) == 2
