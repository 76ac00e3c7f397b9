"""Embeddings without their graph: what is needed for the gradient is computed again when the gradient is known.

GradCache (arXiv 2101.06983) as one autograd function. A chunk that goes through it holds its texts and its vectors and
nothing between, so a batch of any size fits; the price is a second forward pass. Dropout is replayed from the state of
the random generators, so the gradient is that of the first pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def recomputed(function: Callable[[T], Tensor], argument: T, device: torch.device) -> Tensor:
    """`function(argument)`, whose backward pass runs the function again.

    Args:
        function: makes a tensor from the argument and from parameters, whose `.grad` is added to.
        argument: anything; gets no gradient itself.
        device: whose random state is replayed beside the CPU's.
    """
    anchor = torch.ones((), requires_grad=True)  # makes autograd call backward
    result: Tensor = _Recomputed.apply(anchor, function, argument, device)  # type: ignore[no-untyped-call]
    return result


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, function: Callable[[Any], Tensor], argument: Any, device: Any) -> Tensor:
        ctx.call = function, argument
        ctx.device, ctx.state = device, random_state(device)
        return function(argument)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, None]:
        function, argument = ctx.call
        with replay(ctx.state, ctx.device), torch.enable_grad():
            torch.autograd.backward(function(argument), gradients[0])
        return None, None, None, None


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """State of the random generators of the CPU and of a device."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Go back to what `random_state` gave."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@contextlib.contextmanager
def replay(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Draw the same random numbers again; afterwards the generators go on where they were."""
    now = random_state(device)
    set_random_state(state, device)
    try:
        yield
    finally:
        set_random_state(now, device)
