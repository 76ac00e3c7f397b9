"""Random numbers that can be drawn a second time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The state of the random generators of the CPU and of a device."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Restore a state that `random_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@contextlib.contextmanager
def replay(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Draw the same random numbers again inside the block. After it, the generators continue where they were."""
    now = random_state(device)
    set_random_state(state, device)
    try:
        yield
    finally:
        set_random_state(now, device)


def generator(seed: int, *place: int) -> np.random.Generator:
    """A generator that depends on nothing but its arguments.

    Every place, such as (epoch, row), has a generator of its own. What is drawn there does not depend on what was
    drawn before, so a run can continue from any place.

    Args:
        seed: of the run.
        place: numbers that name the place. Zeros at the end are ignored: (1, 0) is the same place as (1,).
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *place])))
