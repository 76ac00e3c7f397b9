"""The two forms of each pooling give the same vectors, and wherever the padding is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedrag.errors import UserError
from embedrag.models.pooling import POOLING, pool, pool_packed
from tests.reference import pool_loop


@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=5), left=st.booleans(), seed=st.integers(0, 99))
@pytest.mark.parametrize("pooling", [*sorted(POOLING), "cls+mean", "last_token+max+weighted_mean"])
def test_flat_and_masked_form_equal_the_obvious_loop(pooling: str, lengths: list[int], left: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randn(length, 3, generator=generator) for length in lengths]
    longest = max(lengths)
    padded = torch.randn(len(texts), longest, 3, generator=generator)  # what lies on padding must not matter
    mask = torch.zeros(len(texts), longest, dtype=torch.long)
    for number, text in enumerate(texts):
        place = slice(longest - len(text), longest) if left else slice(0, len(text))
        padded[number, place], mask[number, place] = text, 1
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    expected = pool_loop(texts, pooling)
    torch.testing.assert_close(pool_packed(torch.cat(texts), cu_seqlens, pooling), expected)
    torch.testing.assert_close(pool(padded, mask, pooling), expected)
    torch.testing.assert_close(pool(padded, mask.bool(), pooling), expected)


@pytest.mark.parametrize("pooling", [*sorted(POOLING), "cls+mean"])
def test_gradient_of_both_forms_is_that_of_the_obvious_loop(pooling: str) -> None:
    lengths = [5, 1, 3]
    texts = [torch.randn(length, 4, dtype=torch.float64) for length in lengths]
    cu_seqlens = torch.tensor([0, 5, 6, 9])
    mask = torch.tensor([[1] * length + [0] * (5 - length) for length in lengths])
    found = []
    for form in ("loop", "packed", "padded"):
        leaves = [text.clone().requires_grad_() for text in texts]
        if form == "loop":
            vectors = pool_loop(leaves, pooling)
        elif form == "packed":
            vectors = pool_packed(torch.cat(leaves), cu_seqlens, pooling)
        else:
            vectors = pool(torch.nn.utils.rnn.pad_sequence(leaves, batch_first=True), mask, pooling)
        (vectors * torch.linspace(-1, 2, vectors.numel(), dtype=torch.float64).view_as(vectors)).sum().backward()
        found.append(torch.cat([leaf.grad for leaf in leaves]))
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_mean_of_half_precision_states_is_summed_in_float32() -> None:
    states = torch.full((1, 4096, 1), 1.01, dtype=torch.bfloat16)
    mask = torch.ones(1, 4096)
    assert pool(states, mask, "mean").dtype == torch.float32
    torch.testing.assert_close(pool(states, mask, "mean"), states[:, 0].float())


def test_unknown_pooling_is_refused_with_the_accepted_ones() -> None:
    with pytest.raises(UserError, match="^`pooling=median`: must be one of cls, max, mean, mean_sqrt_len, "):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), "cls+median")
