"""Numbers and names of an evaluation in the form in which people read them."""

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
    """Text on one line of this width, cut with an ellipsis if it is longer; a CJK character takes two columns.

    >>> cut("a frog sits by the pond", 10), cut("青蛙在池塘边", 6)
    ('a frog sit…', '青蛙在…')
    """
    line = " ".join(str(text).split())
    for index, character in enumerate(line):
        columns -= width(character)
        if columns < 0:
            return line[:index].rstrip() + "…"
    return line


def label(name: str) -> str:
    """Name of a metric as papers write it.

    >>> label("ndcg@10"), label("recall@5"), label("triplet_accuracy")
    ('nDCG@10', 'Recall@5', 'Triplet accuracy')
    """
    kind, at, k = str(name).partition("@")
    return NAMES.get(kind, kind.replace("_", " ").capitalize()) + at + k


def plain(value: float) -> str:
    """A value with three decimals, and with a minus sign instead of a hyphen."""
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """A difference with three decimals and its sign."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def chance(value: float) -> str:
    """A p-value with three decimals, or `< 0.001`.

    >>> chance(0.00001), chance(0.0421)
    ('< 0.001', '0.042')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def finite(value: Any) -> float | None:
    """The value if it is a finite number, otherwise None."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None


def comparison_rows(comparison: Any) -> list[Row]:
    """The rows of a comparison that have both values; all other values of a row are numbers or None."""
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
    """A row for two values; their difference was not tested."""
    return comparison_rows([{"metric": metric, "base": base, "tuned": tuned}])[0]


def own_values(result: dict[str, Any]) -> dict[str, float]:
    """The metrics of the model itself, in the order of the result."""
    named = {name: finite(value) for name, value in result.items() if "@" in name or name in NAMES}
    return {name: value for name, value in named.items() if value is not None}


def width(character: str) -> int:
    """Columns that a character takes; a CJK character takes two."""
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def kind_of(verdict: Any) -> str:
    """CSS class of a verdict."""
    return verdict if verdict in ("better", "worse") else "unclear"
