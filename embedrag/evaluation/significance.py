"""Is one model better than another: paired by query, with an interval and a p-value."""

from __future__ import annotations

from typing import Any

import numpy as np
from tabulate import tabulate

RESAMPLES = 10_000
SIGNIFICANT = 0.05
BATCH = 500  # resamples that are held at once


def difference(base: np.ndarray, tuned: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean of tuned - base over the queries, and its 95 % bootstrap interval (paired, percentile).

    Args:
        base: [q] of one model.
        tuned: [q] of the other, same queries.
        seed: of the resampling.
    """
    from scipy.stats import bootstrap

    gain = tuned - base
    if len(gain) < 2 or np.ptp(gain) == 0:
        return float(gain.mean()), float(gain.mean()), float(gain.mean())
    found = bootstrap(
        (gain,), np.mean, n_resamples=RESAMPLES, batch=BATCH, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    return float(gain.mean()), float(found.low), float(found.high)


def p_value(base: np.ndarray, tuned: np.ndarray, seed: int = 0) -> float:
    """Chance of a mean difference this large if neither model were better (paired permutation test, two-sided)."""
    from scipy.stats import permutation_test

    if len(base) < 2 or np.array_equal(base, tuned):
        return 1.0
    return float(
        permutation_test(
            (tuned, base),
            lambda a, b, axis: np.mean(a - b, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=BATCH,
            rng=np.random.default_rng(seed),
        ).pvalue
    )


def verdict(low: float, high: float, p: float) -> str:
    """In words: better when the whole interval is above 0 and p below 0.05, worse when it is below 0.

    Of five queries the interval alone is wrong more often than it should be, and no p-value of theirs is below 0.05.
    """
    if p >= SIGNIFICANT:
        return "no clear difference"
    return "better" if low > 0 else "worse" if high < 0 else "no clear difference"


def comparison(base: dict[str, np.ndarray], tuned: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row a metric: both means, the difference with its interval and p-value, and the verdict."""
    rows = []
    for name in tuned:
        gain, low, high = difference(base[name], tuned[name])
        p = p_value(base[name], tuned[name])
        rows.append(
            {
                "metric": name,
                "base": float(base[name].mean()),
                "tuned": float(tuned[name].mean()),
                "difference": gain,
                "low": low,
                "high": high,
                "p_value": p,
                "verdict": verdict(low, high, p),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A comparison as text."""
    cells = [
        [
            row["metric"],
            f"{row['base']:.4f}",
            f"{row['tuned']:.4f}",
            f"{row['difference']:+.4f}",
            f"{row['low']:+.4f} … {row['high']:+.4f}",
            "< 0.001" if row["p_value"] < 0.001 else f"{row['p_value']:.3f}",
            row["verdict"],
        ]
        for row in rows
    ]
    headers = ["metric", "base", "tuned", "difference", "95 % interval", "p", "tuned is"]
    return tabulate(cells, headers, disable_numparse=True)
