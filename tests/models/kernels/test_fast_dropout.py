"""The cheap dropout means what torch's means."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from embedrag.models.kernels.fast_dropout import (
    FastDropout,
    attention_with_dropout,
    dropout_on,
    fast_dropout,
    random_keep,
    replace_dropout,
)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_of_dropped_elements_and_scale_are_those_of_the_probability(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, 1001)
    dropped = FastDropout(p)(x)
    assert abs(float((dropped == 0).double().mean()) - p) < 2e-3
    torch.testing.assert_close(dropped[dropped != 0].unique(), torch.tensor([1 / (1 - p)]), rtol=1e-4, atol=0)
    assert abs(float(dropped.double().mean()) - 1) < 5e-3


def test_neighbours_are_dropped_independently() -> None:
    torch.manual_seed(0)
    keep = random_keep(4_000_000, 0.5).view(-1, 4).double()
    correlation = torch.corrcoef(keep.T) - torch.eye(4, dtype=torch.float64)
    assert float(correlation.abs().max()) < 5e-3


def test_gradient_is_that_of_the_same_mask() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 13, dtype=torch.float64, requires_grad=True)
    dropped = FastDropout(0.3)(x)
    mask = (dropped != 0).double()
    dropped.square().sum().backward()
    scale = float((dropped / x).detach()[dropped != 0].unique().mean())
    torch.testing.assert_close(x.grad, 2 * x.detach() * mask * scale**2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 7])
def test_attention_with_dropout_equals_its_parts_in_value_and_gradient(length: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (3, 2, length, 5)
    states = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for _ in "qkv"]
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = torch.ones(length, length).tril().bool() if masked else None

    def parts(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = 0.3 * q @ k.transpose(2, 3)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return fast_dropout(scores.softmax(-1), 0.4) @ v

    results = []
    for function in (parts, lambda q, k, v: attention_with_dropout(q, k, v, mask, 0.3, 0.4)):
        torch.manual_seed(0)
        out = function(*states)
        results.append([out, *torch.autograd.grad((out * weight).sum(), states)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)
    assert float((results[0][0] - parts(*states)).detach().abs().max()) > 1e-3  # another mask, another value


def test_off_and_in_evaluation_it_changes_nothing() -> None:
    x = torch.randn(5, 5)
    assert torch.equal(FastDropout(0.0)(x), x)
    assert torch.equal(FastDropout(0.5).eval()(x), x)


def test_same_seed_gives_the_same_mask_and_the_state_replays_it() -> None:
    x = torch.ones(100)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, second = FastDropout(0.5)(x), FastDropout(0.5)(x)
    torch.set_rng_state(state)
    assert torch.equal(FastDropout(0.5)(x), first)
    assert not torch.equal(first, second)


def test_every_dropout_of_a_model_is_replaced_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.2)), nn.ModuleDict({"default": nn.Dropout(0.3)}))
    replace_dropout(model)
    assert [module.p for module in model.modules() if isinstance(module, FastDropout)] == [0.2, 0.3]
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    "before", [(False, False, False), (True, True, True), (False, False, True), (True, True, False)]
)
@pytest.mark.parametrize("on", [True, False])
def test_every_layer_has_the_mode_and_then_its_own_again_also_after_an_error(
    before: tuple[bool, ...], on: bool
) -> None:
    module = nn.Sequential(nn.Linear(2, 2), FastDropout(0.5))
    for layer, mode in zip(module.modules(), before, strict=True):
        layer.training = mode
    with pytest.raises(RuntimeError), dropout_on(module, on):
        assert [layer.training for layer in module.modules()] == [on] * 3
        raise RuntimeError
    assert tuple(layer.training for layer in module.modules()) == before


@pytest.mark.parametrize("training", [True, False])
def test_replaced_dropout_keeps_its_mode(training: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train(training)
    replace_dropout(model)
    assert isinstance(model[1], FastDropout) and model[1].training == training
