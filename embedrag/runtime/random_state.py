"""Random numbers that can be drawn again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


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


def generator(seed: int, *place: int) -> np.random.Generator:
    """A generator of its own for each place; the same one wherever and whenever it is asked for."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *place])))
