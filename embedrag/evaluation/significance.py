"""Whether one model is better than another on the same queries: paired differences, an interval, and a p-value."""

from __future__ import annotations

from typing import Any

import numpy as np
from tabulate import tabulate

RESAMPLES = 10_000
SIGNIFICANT = 0.05
BATCH = 500  # resamples that are in memory at once


def difference(base: np.ndarray, tuned: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean of tuned - base over the queries, with its 95 % bootstrap interval (paired, percentile).

    Args:
        base: [q] a metric of one model.
        tuned: [q] the same metric of the other model, for the same queries.
        seed: of the resampling.

    Returns:
        The mean, and the two ends of the interval.
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
    """Chance of a mean difference at least this large if neither model were better.

    It is a paired permutation test, two-sided: the sign of each query's difference is drawn at random.
    """
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
    """The verdict in words. `better`: the whole interval is above 0, and p is below 0.05; `worse`: it is below 0.

    With only a few queries, the interval is wrong too often. So p decides too: with five queries it is never below
    0.05.
    """
    if p >= SIGNIFICANT:
        return "no clear difference"
    return "better" if low > 0 else "worse" if high < 0 else "no clear difference"


def comparison(base: dict[str, np.ndarray], tuned: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row for each metric: both means, the difference with its interval and p-value, and the verdict.

    Args:
        base: name of each metric -> [q] values of one model.
        tuned: the same of the other model, for the same queries.
    """
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
    """A comparison as text, one line for each metric."""
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


def sentence(row: dict[str, Any], queries: int) -> str:
    """A row of a comparison as one sentence.

    Args:
        row: from `comparison`.
        queries: number of queries.
    """
    p = "p < 0.001" if row["p_value"] < 0.001 else f"p = {row['p_value']:.3f}"
    return (
        f"{row['verdict']}: {row['metric']} {row['base']:.4f} -> {row['tuned']:.4f}, {row['difference']:+.4f} "
        f"(95 % interval {row['low']:+.4f} … {row['high']:+.4f}, {p}, {queries:,} queries)"
    )
