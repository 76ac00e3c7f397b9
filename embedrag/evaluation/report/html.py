"""One page about an evaluation: whether the tuned model is better than the base, by how much, and how sure that is.

The page is one file that loads nothing. Its plots are Plotly specifications, kept as JSON in the page. A small script
draws them in the page's colours, and draws them again when the browser changes between light and dark.

Texts of users enter the page in three ways, and each way has its own escape: HTML (jinja2 escapes it), JSON in a script
tag (it has no `<`), and hover labels (Plotly reads tags there, so they are escaped once more). If an escape failed, the
page's content security policy would still stop the text: it names the page's two scripts by their hashes, and no other
script runs.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embedrag.evaluation.report.formatting import (
    Row,
    chance,
    comparison_rows,
    cut,
    finite,
    kind_of,
    label,
    own_values,
    plain,
    signed,
    untested,
)
from embedrag.evaluation.report.plots import TEMPLATES, figures
from embedrag.runtime.files import write_atomic
from embedrag.runtime.paths import public_name

TEXT_COLUMNS = 120
WORDS = {
    "better": "The tuned model is better",
    "worse": "The tuned model is worse",
    "no clear difference": "No clear difference between the tuned model and the base",
}
FORGOTTEN = {
    "better": "Nothing forgotten, better here too",
    "worse": "Something was forgotten",
    "no clear difference": "No forgetting seen",
}


def write_html(result: dict[str, Any], path: Path) -> None:
    """Write the page of an evaluation. Parts that `result` has no data for are left out.

    Args:
        result: `Evaluation.to_dict()`.
        path: the file.

    Raises:
        RunError: when the file can't be written; the earlier file is then unchanged.
    """
    write_atomic(path, render(result))


def render(result: dict[str, Any]) -> str:
    """The page as HTML."""
    from jinja2 import Environment, FileSystemLoader
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    result = _without_folders(result)
    environment.filters.update(cut=cut, label=label, plain=plain, signed=signed, chance=chance, kind=kind_of)
    scripts = [get_plotlyjs(), (TEMPLATES / "report.js").read_text(encoding="utf-8")]
    rows, metric = comparison_rows(result.get("comparison")), result.get("metric", "ndcg@10")
    general = result.get("general") or {}
    page = environment.get_template("report.html").render(
        result=result,
        metric=metric,
        columns=TEXT_COLUMNS,
        headline=headline(result),
        forgetting=forgetting(general, metric),
        forms=[form for form in result.get("forms") or [] if finite(form.get(metric)) is not None],
        tables=_tables(result, rows, general),
        examples=[
            (key, title, nothing, _examples(result[key]))
            for key, title, nothing in (
                ("won", "Queries that won most", "No query won."),
                ("lost", "Queries that lost most", "No query lost."),
            )
            if key in result
        ],
        figures=figures(result, rows),
        scripts=scripts,
        hashes=[base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts],
    )
    # a text may end in half an emoji, which UTF-8 can't hold
    return page.encode("utf-8", "replace").decode("utf-8")


def _without_folders(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the names of models and data, and without the folders of this machine: the page is sent on."""
    named: dict[str, Any] = {
        key: public_name(str(result[key])) for key in ("model", "baseline", "data") if result.get(key)
    }
    general = result.get("general") or {}
    if general.get("data"):
        named["general"] = {**general, "data": public_name(str(general["data"]))}
    return {**result, **named}


def headline(result: dict[str, Any]) -> tuple[str, str]:
    """The verdict in words, and its figures.

    >>> row = {"metric": "ndcg@10", "base": 0.5, "tuned": 0.6, "low": 0.05, "high": 0.15, "p_value": 0.0001}
    >>> headline({"verdict": "better", "queries": 450, "comparison": [row]})[1]
    'nDCG@10 0.500 → 0.600, +0.100 (95 % interval +0.050 … +0.150, p < 0.001, 450 queries)'
    """
    metric = result.get("metric", "ndcg@10")
    row = _main_row(comparison_rows(result.get("comparison")), metric)
    if row:
        return WORDS.get(str(result.get("verdict", row["verdict"])), "Tuned model and base"), _line(row, result)
    value = finite(result.get(metric))
    words = WORDS.get(str(result.get("verdict")), "The model's own figures, without a base to compare with")
    if value is None:
        return words, ""
    return words, f"{label(metric)} {plain(value)}" + _in_brackets([_queries(result)])


def forgetting(general: dict[str, Any], metric: str) -> tuple[str, str, str] | None:
    """The result on general data: the verdict, the verdict in words, and its figures."""
    row = _main_row(comparison_rows(general.get("comparison")), metric)
    found = general.get("verdict", row.get("verdict") if row else None)
    if found not in FORGOTTEN:
        return None
    return found, FORGOTTEN[found], _line(row, general) if row else ""


def _main_row(rows: list[Row], metric: str) -> Row | None:
    """The row of the verdict's metric."""
    return next((row for row in rows if row["metric"] == metric), None)


def _line(row: Row, data: dict[str, Any]) -> str:
    """Both values of a metric, the difference, and how sure the difference is."""
    sure = []
    if row["low"] is not None:
        sure.append(f"95 % interval {signed(row['low'])} … {signed(row['high'])}")
    if row["p_value"] is not None:
        found = chance(row["p_value"])
        sure.append(f"p {found}" if found.startswith("<") else f"p = {found}")
    values = f"{label(row['metric'])} {plain(row['base'])} → {plain(row['tuned'])}, {signed(row['difference'])}"
    return values + _in_brackets([*sure, _queries(data)])


def _queries(data: dict[str, Any]) -> str:
    return f"{data['queries']:,} queries" if finite(data.get("queries")) is not None else ""


def _in_brackets(parts: Iterable[str]) -> str:
    inside = ", ".join(filter(None, parts))
    return f" ({inside})" if inside else ""


def _tables(result: dict[str, Any], rows: list[Row], general: dict[str, Any]) -> list[tuple[str, list[Row]]]:
    """Title and rows of each table. A metric that is not compared has only the model's value."""
    compared = {row["metric"] for row in rows}
    base = result.get("baseline_metrics") or {}
    own = [
        {"metric": name, "tuned": value} if finite(base.get(name)) is None else untested(name, base[name], value)
        for name, value in own_values(result).items()
        if name not in compared
    ]
    tables = [("This data", [*rows, *own]), ("General data", comparison_rows(general.get("comparison")))]
    return [(title, found) for title, found in tables if found]


def _examples(rows: Any) -> list[Row]:
    """Queries with their texts. An answer that is the relevant passage is marked."""
    examples = []
    for row in rows or []:
        texts = {key: str(row[key]) for key in ("query", "relevant", "base_first", "tuned_first") if row.get(key)}
        hits = {f"{key}_hit": texts.get(f"{key}_first") == texts.get("relevant", "") for key in ("base", "tuned")}
        examples.append({**texts, **hits, "base": finite(row.get("base")), "tuned": finite(row.get("tuned"))})
    return examples
