"""Random numbers that can be drawn a second time."""

from __future__ import annotations

import torch

from embedrag.runtime.random_state import generator, random_state, replay, set_random_state

CPU = torch.device("cpu")


def test_a_block_draws_the_same_numbers_and_the_generator_continues_where_it_was() -> None:
    state = random_state(CPU)
    first, second = torch.rand(3), torch.rand(3)
    set_random_state(state, CPU)
    assert torch.equal(torch.rand(3), first)
    with replay(state, CPU):
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.rand(3), second)


def test_each_place_has_numbers_of_its_own_and_always_the_same() -> None:
    places = [(0, 1), (1, 1), (2,), (1, 0, 1)]
    found = [generator(42, *place).integers(1 << 60) for place in places]
    assert len(set(found)) == len(places)
    assert found == [generator(42, *place).integers(1 << 60) for place in places]
    assert generator(43, 0, 1).integers(1 << 60) != found[0]
