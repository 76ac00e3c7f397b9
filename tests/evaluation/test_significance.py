"""The verdict tells a gain from noise, and its p-value is the exact one where that can be counted."""

from __future__ import annotations

import numpy as np
import pytest

from embedrag.evaluation.significance import difference, p_value, verdict


def judged(base: np.ndarray, tuned: np.ndarray) -> str:
    _, low, high = difference(base, tuned)
    return verdict(low, high, p_value(base, tuned))


def test_verdict_tells_a_real_gain_from_noise_and_from_a_loss() -> None:
    generator = np.random.default_rng(0)
    base = generator.random(150)
    tuned = base + 0.05 + 0.1 * generator.standard_normal(150)
    gain, low, high = difference(base, tuned)
    assert low < gain < high
    assert judged(base, tuned) == "better"
    assert judged(tuned, base) == "worse"
    assert judged(base, base + 0.3 * generator.standard_normal(150)) == "no clear difference"
    assert difference(base, base) == (0.0, 0.0, 0.0) and p_value(base, base) == 1.0
    assert judged(base, base - 0.05) == "worse"


def test_few_queries_give_no_verdict() -> None:
    """Five that all won have an interval above 0, and two-sided p = 1/16."""
    base = np.zeros(5)
    tuned = np.array([0.1, 0.2, 0.3, 0.2, 0.1])
    _, low, high = difference(base, tuned)
    assert low > 0 and verdict(low, high, p_value(base, tuned)) == "no clear difference"
    six = np.append(tuned, 0.2)
    assert verdict(*difference(np.zeros(6), six)[1:], p_value(np.zeros(6), six)) == "better"


def test_p_value_is_that_of_all_sign_flips() -> None:
    """Eight queries have 256 patterns of signs, so the exact share can be counted."""
    gain = np.array([0.3, 0.1, -0.05, 0.2, 0.4, -0.1, 0.15, 0.25])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)
    exact = float(np.mean(np.abs(gain @ signs) >= abs(gain.sum()) - 1e-12))
    assert p_value(np.zeros(8), gain) == pytest.approx(exact, abs=1e-12)
