"""Figures of an evaluation as people read them."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

NAMES = {
    "ndcg": "nDCG",
    "mrr": "MRR",
    "map": "MAP",
    "triplet_accuracy": "Triplet accuracy",
    "mean_positive_score": "Mean score of positives",
    "mean_negative_score": "Mean score of negatives",
    "mean_difference": "Mean difference of the scores",
}
Row = dict[str, Any]


def cut(text: Any, columns: int) -> str:
    """Text on one line, ended with an ellipsis when it is wider; a CJK sign takes two columns.

    >>> cut("a frog sits by the pond", 10), cut("青蛙在池塘边", 6)
    ('a frog sit…', '青蛙在…')
    """
    line = " ".join(str(text).split())
    for index, sign in enumerate(line):
        columns -= sign_width(sign)
        if columns < 0:
            return line[:index].rstrip() + "…"
    return line


def label(name: str) -> str:
    """Name of a metric as it is written in papers.

    >>> label("ndcg@10"), label("recall@5"), label("triplet_accuracy")
    ('nDCG@10', 'Recall@5', 'Triplet accuracy')
    """
    kind, at, k = str(name).partition("@")
    return NAMES.get(kind, kind.replace("_", " ").capitalize()) + at + k


def plain(value: float) -> str:
    """A value with three digits, with a real minus."""
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def chance(value: float) -> str:
    """A p value; below a thousandth no more than that.

    >>> chance(0.00001), chance(0.0421)
    ('< 0.001', '0.042')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def finite(value: Any) -> float | None:
    """The value if it is a finite number."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None


def comparison_rows(comparison: Any) -> list[Row]:
    """Rows of a comparison that have both values; the rest of a row is a number or None."""
    rows = []
    for row in comparison or []:
        numbers = {key: finite(row.get(key)) for key in ("base", "tuned", "difference", "low", "high", "p_value")}
        if numbers["base"] is None or numbers["tuned"] is None:
            continue
        if numbers["difference"] is None:
            numbers["difference"] = numbers["tuned"] - numbers["base"]
        if numbers["low"] is None or numbers["high"] is None:
            numbers["low"] = numbers["high"] = None
        rows.append({"metric": str(row.get("metric", "")), "verdict": row.get("verdict"), **numbers})
    return rows


def untested(metric: str, base: float, tuned: float) -> Row:
    """Two values that nobody has tested."""
    return comparison_rows([{"metric": metric, "base": base, "tuned": tuned}])[0]


def own_values(result: dict[str, Any]) -> dict[str, float]:
    """Metrics of the model itself, in the order of the result."""
    named = {name: finite(value) for name, value in result.items() if "@" in name or name in NAMES}
    return {name: value for name, value in named.items() if value is not None}


def sign_width(sign: str) -> int:
    """Columns that a sign takes; one of CJK takes two."""
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def kind_of(verdict: Any) -> str:
    """CSS class of a verdict."""
    return verdict if verdict in ("better", "worse") else "unclear"
