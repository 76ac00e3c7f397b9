"""What an adapter does to a tensor, by rows and whole."""

from __future__ import annotations

import torch

from embedrag.weights.tensor_changes import LowRank, TensorChange, TokenRows


def test_new_values_come_first_then_the_low_rank_change_then_single_rows() -> None:
    torch.manual_seed(0)
    base, replaced = torch.randn(6, 4), torch.randn(6, 4)
    a, b = torch.randn(2, 6), torch.randn(4, 2)
    values = torch.randn(2, 4)
    change = TensorChange(replaced, LowRank(a, b, 0.5, transposed=True, embedding=True), TokenRows((4, 1), values))
    expected = replaced + 0.5 * (b @ a).T
    expected[[4, 1]] = values
    torch.testing.assert_close(change.merged(base, 0, 6), expected)
    for start, stop in ((0, 1), (1, 5), (4, 6)):
        torch.testing.assert_close(change.merged(base[start:stop], start, stop), expected[start:stop])


def test_bias_gets_what_is_added_and_a_scalar_is_replaced() -> None:
    added = TensorChange(added=torch.tensor([1.0, 2.0, 3.0]))
    assert added.merged(torch.ones(2, dtype=torch.bfloat16), 1, 3).tolist() == [3.0, 4.0]
    assert TensorChange(replaced=torch.tensor(7.0)).merged(torch.tensor(1.0), 0, 1).item() == 7
    assert not TensorChange(added=torch.tensor([torch.inf])).is_finite()
