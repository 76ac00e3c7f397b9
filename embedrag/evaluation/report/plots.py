"""The plots of an evaluation, as Plotly specifications in the colours of the page.

Plotly reads HTML tags in hover labels, so the texts of users are escaped there.
"""

from __future__ import annotations

import html
import re
import textwrap
from pathlib import Path
from typing import Any

from embedrag.evaluation.report.formatting import (
    Row,
    comparison_rows,
    cut,
    finite,
    kind_of,
    label,
    own_values,
    plain,
    signed,
    width,
)

TEMPLATES = Path(__file__).parent / "templates"
HOVER_COLUMNS = 44
HOVER_LINES = 6
TITLES = {
    "bars": "Metrics",
    "differences": "Tuned − base, with 95 % interval",
    "histogram-baseline": "Scores of positives and negatives: base",
    "histogram-model": "Scores of positives and negatives: the model",
    "curve": "Training",
    "map": "Map of queries and passages: the model finds near texts similar",
}
Figure = dict[str, Any]


def figures(result: dict[str, Any], rows: list[Row]) -> dict[str, Figure]:
    """The Plotly figures that the result has data for. Their colours are names of CSS variables.

    Args:
        result: `Evaluation.to_dict()`.
        rows: of its comparison, from `comparison_rows`.
    """
    metric = result.get("metric", "ndcg@10")
    made = {
        "bars": _bars(_bar_rows(result, rows), metric, bool(rows)),
        "differences": _differences([row for row in rows if row["low"] is not None], metric),
        **_histograms(result.get("histograms") or {}),
        "curve": _curve(result.get("curve") or [], metric),
        "map": _map((result.get("map") or {}).get("points") or []),
    }
    return {name: figure for name, figure in made.items() if figure}


def drawings(result: dict[str, Any]) -> dict[str, Any]:
    """The same figures as Plotly's own objects, for a notebook, with titles and the page's light colours."""
    from plotly.graph_objects import Figure as Drawing

    light = (TEMPLATES / "report.html").read_text(encoding="utf-8").partition("@media")[0]
    colours = dict(re.findall(r"(--[a-z]+): (#\w+);", light))
    made = {}
    for name, figure in figures(result, comparison_rows(result.get("comparison"))).items():
        drawing = made[name] = Drawing(_coloured(figure, colours))
        title = {"text": TITLES[name], "font_size": 15, "x": 0, "xref": "paper", "yref": "container", "y": 0.98}
        drawing.update_layout(
            title=title | {"yanchor": "top"},
            height=drawing.layout.height + 34,
            margin_t=70,
            paper_bgcolor=colours["--page"],
        )
    return made


def _coloured(value: Any, colours: dict[str, str], key: str = "") -> Any:
    """The figure with colours instead of CSS variables (keys that end in "color"), as the page's script shows it."""
    if isinstance(value, dict):
        return {name: _coloured(item, colours, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_coloured(item, colours, key) for item in value]
    named = isinstance(value, str) and key.endswith("color") and value.startswith("var(")
    return colours[value[4:-1]] if named else value


def _bar_rows(result: dict[str, Any], rows: list[Row]) -> list[Row]:
    """The metrics between 0 and 1. Mean scores are cosines, so only the table shows them."""
    found = rows or [{"metric": name, "tuned": value} for name, value in own_values(result).items()]
    return [row for row in found if not row["metric"].startswith("mean_")]


def _bars(rows: list[Row], metric: str, compared: bool) -> Figure | None:
    """Values of base and tuned model, a pair of bars for each metric."""
    if not rows:
        return None
    sides = [("base", "Base"), ("tuned", "Tuned")] if compared else [("tuned", "Model")]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": [_axis_name(row["metric"], metric) for row in rows],
            "x": [row[side] for row in rows],
            "text": [plain(row[side]) for row in rows],
            "textposition": "outside",
            "cliponaxis": False,
            "hoverinfo": "skip",
            "marker": {"color": f"var(--{side})"},
        }
        for side, name in sides
    ]
    highest = max(row[side] for row in rows for side, _ in sides)
    layout = _layout(80 + (38 if compared else 26) * len(rows), showlegend=compared, bargap=0.3, bargroupgap=0.08)
    # room for the number after the longest bar
    layout["xaxis"] |= {"range": [0, max(highest, 0.01) * 1.18]}
    layout["yaxis"] |= {"range": [len(rows) - 0.5, -0.5], "showgrid": False}
    return {"data": data, "layout": layout}


def _differences(rows: list[Row], metric: str) -> Figure | None:
    """Tuned - base with its interval, and a line at 0."""
    rows = [row for row in rows if not row["metric"].startswith("mean_")]
    if not rows:
        return None
    colours = [f"var(--{kind_of(row['verdict'])})" for row in rows]
    names = [_axis_name(row["metric"], metric) for row in rows]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [row["low"], row["high"]],
            "y": [name, name],
            "line": {"width": 3, "color": colour},
            "hoverinfo": "skip",
        }
        for row, name, colour in zip(rows, names, colours, strict=True)
    ]
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "x": [row["difference"] for row in rows],
            "y": names,
            "marker": {"size": 11, "color": colours},
            "hoverinfo": "text",
            "hovertext": [
                f"{_safe(label(row['metric']))} {signed(row['difference'])}<br>"
                f"95 % interval {signed(row['low'])} … {signed(row['high'])}<br>{_safe(row['verdict'] or '')}"
                for row in rows
            ],
        }
    )
    layout = _layout(80 + 38 * len(rows), showlegend=False)
    layout["xaxis"] |= {"zeroline": True, "zerolinewidth": 2, "zerolinecolor": "var(--muted)", "tickformat": "+.3~f"}
    low, high = min(0, *(row["low"] for row in rows)), max(0, *(row["high"] for row in rows))
    edge = 0.06 * (high - low) or 0.01
    layout["xaxis"] |= {"range": [low - edge, high + edge]}
    layout["yaxis"] |= {"range": [len(rows) - 0.5, -0.5]}
    return {"data": data, "layout": layout}


def _histograms(histograms: dict[str, Any]) -> dict[str, Figure]:
    """One histogram for each model. Both have the same axes, so that they can be compared."""
    edges = histograms.get("edges") or []
    shares: dict[str, dict[str, list[float]]] = {}
    for side in ("baseline", "model"):
        for sign, counts in (histograms.get(side) or {}).items():
            if sign in ("positive", "negative") and len(counts) == len(edges) - 1 and sum(counts) > 0:
                shares.setdefault(side, {})[sign] = [100 * count / sum(counts) for count in counts]
    if not shares:
        return {}
    every = [share for signs in shares.values() for values in signs.values() for share in values]
    used = [
        index
        for index in range(len(edges) - 1)
        if any(values[index] for signs in shares.values() for values in signs.values())
    ]
    return {
        f"histogram-{side}": _histogram(edges, signs, [edges[used[0]], edges[used[-1] + 1]], max(every))
        for side, signs in shares.items()
    }


def _histogram(edges: list[float], signs: dict[str, list[float]], scores: list[float], highest: float) -> Figure:
    """Shares of positives and negatives in each bin of scores."""
    spans = list(zip(edges[:-1], edges[1:], strict=True))
    data = [
        {
            "type": "bar",
            "name": {"positive": "Positives", "negative": "Negatives"}[sign],
            "x": [(low + high) / 2 for low, high in spans],
            "width": [high - low for low, high in spans],
            "y": signs[sign],
            "opacity": 0.65,
            "marker": {"color": f"var(--{sign})", "line": {"width": 0}},
            "hoverinfo": "text",
            "hovertext": [
                f"{share:.1f} % of the {sign}s score<br>{plain(low)} … {plain(high)}"
                for share, (low, high) in zip(signs[sign], spans, strict=True)
            ],
        }
        for sign in ("negative", "positive")
        if sign in signs
    ]
    layout = _layout(300, barmode="overlay", bargap=0)
    layout["xaxis"] |= {"title": {"text": "cosine"}, "range": scores}
    layout["yaxis"] |= {"range": [0, highest * 1.05], "ticksuffix": " %"}
    return {"data": data, "layout": layout}


def _curve(rows: list[Row], metric: str) -> Figure | None:
    """The loss (below) and the metric (above) over the optimizer steps."""
    data: list[dict[str, Any]] = []
    for key, name, colour, mode in (("loss", "loss", "base", "lines"), (metric, label(metric), "tuned", "")):
        points = [(finite(row.get("step")), finite(row.get(key))) for row in rows]
        points = [(step, value) for step, value in points if step is not None and value is not None]
        if points:
            data.append(
                {
                    "type": "scatter",
                    "mode": mode or "lines+markers",
                    "name": _safe(name),
                    "x": [step for step, _ in points],
                    "y": [value for _, value in points],
                    "yaxis": "y2" if data else "y",
                    "line": {"color": f"var(--{colour})", "width": 2},
                    "hovertemplate": "step %{x}: %{y:.4~f}",
                }
            )
    if not data:
        return None
    layout = _layout(230 * len(data), showlegend=False)
    layout["xaxis"] |= {"title": {"text": "step"}}
    layout["yaxis"] |= {"title": {"text": data[0]["name"]}}
    if len(data) == 2:
        layout["yaxis"] |= {"domain": [0, 0.46]}
        layout["yaxis2"] = {**layout["yaxis"], "domain": [0.54, 1], "title": {"text": data[1]["name"]}}
    return {"data": data, "layout": layout}


def _map(points: list[Row]) -> Figure | None:
    """Queries and passages as dots; a line joins a query and its passage."""
    points = [point for point in points if finite(point.get("x")) is not None and finite(point.get("y")) is not None]
    if not points:
        return None
    pairs: dict[Any, dict[str, Row]] = {}
    for point in points:
        if point.get("pair") is not None:
            pairs.setdefault(point["pair"], {})[point.get("kind", "")] = point
    whole = [pair for pair in pairs.values() if {"query", "passage"} <= set(pair)]
    lines: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "name": "Pairs",
        "hoverinfo": "skip",
        "opacity": 0.45,
        "line": {"color": "var(--base)", "width": 1},
        **{axis: [v for pair in whole for v in (pair["query"][axis], pair["passage"][axis], None)] for axis in "xy"},
    }
    data = [lines] if whole else []
    for kind, name, colour, symbol in (
        ("passage", "Passages", "passage", "circle"),
        ("query", "Queries", "query", "diamond"),
    ):
        found = [point for point in points if point.get("kind") == kind]
        if found:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "x": [point["x"] for point in found],
                    "y": [point["y"] for point in found],
                    "marker": {"color": f"var(--{colour})", "symbol": symbol, "size": 8, "opacity": 0.85},
                    "hoverinfo": "text",
                    "hovertext": [_hover(kind, point.get("text", "")) for point in found],
                    "customdata": [[kind, str(point.get("text", "")), point.get("pair")] for point in found],
                }
            )
    layout = _layout(540, hovermode="closest")
    bare = {"showticklabels": False, "showgrid": False, "ticks": ""}
    layout["xaxis"] |= bare
    layout["yaxis"] |= bare
    layout["legend"] |= {"y": 0, "yanchor": "top"}  # below the dots; the tool bar lies above them
    return {"data": data, "layout": layout}


def _axis_name(metric: str, main: str) -> str:
    """Name of a metric on an axis; the verdict's metric is bold."""
    name = _safe(label(metric))
    return f"<b>{name}</b>" if metric == main else name


def _layout(height: int, **more: Any) -> dict[str, Any]:
    """The layout that all figures share."""
    axis = {"gridcolor": "var(--line)", "zeroline": False, "automargin": True, "linecolor": "var(--line)"}
    return {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 36, "b": 36},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--text)", "size": 13},
        "hoverlabel": {
            "align": "left",
            "bgcolor": "var(--raised)",
            "bordercolor": "var(--line)",
            "font": {"color": "var(--text)"},
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "var(--muted)", "activecolor": "var(--text)"},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
        "xaxis": dict(axis),
        "yaxis": dict(axis),
        **more,
    }


def _hover(kind: str, text: Any) -> str:
    """A hover label: cut, wrapped, and escaped, because Plotly reads tags in it."""
    line = cut(text, HOVER_COLUMNS * HOVER_LINES)
    letters = HOVER_COLUMNS * len(line) // max(sum(map(width, line)), 1)
    return "<br>".join([f"<b>{kind}</b>", *map(_safe, textwrap.wrap(line, max(letters, 1)))])


def _safe(text: str) -> str:
    return html.escape(text, quote=False)
