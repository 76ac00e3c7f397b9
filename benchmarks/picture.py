"""The picture of the README: base against tuned model, as an SVG file that is drawn from the result of a run.

python -m benchmarks.picture demo_output/run/evaluation.json docs/images/base_against_tuned.svg README*.md

The left half has a pair of bars for each metric. The right half has the difference with its 95 % interval. Every figure
comes from the file that `embedrag demo`, `embedrag evaluate --output` or a training with an evaluation set wrote. The
picture has a background and colours of its own for light and for dark pages. In the pages that are named, the table of
the result is written anew, so that table and picture are of one run.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from embedrag.evaluation.report.formatting import Row, comparison_rows, kind_of, label
from embedrag.evaluation.report.html import headline
from embedrag.evaluation.significance import table
from embedrag.runtime.files import write_atomic

BARS = (130.0, 360.0)  # left and right end of the bars; the value stands to the right of its bar
INTERVALS = (448.0, 692.0)
TOP = 108.0
ROW = 48.0
DIGITS = 4
TABLE = re.compile(r"^    metric  +base  .*?^    [\d,]+ queries [^\n]*$", re.MULTILINE | re.DOTALL)


def draw(result: dict[str, Any]) -> str:
    """Draw the comparison of a result.

    Args:
        result: the content of evaluation.json.

    Returns:
        The picture as SVG text.

    Raises:
        ValueError: when the result compares nothing.
    """
    rows = [row for row in comparison_rows(result.get("comparison")) if row["low"] is not None]
    rows = [row for row in rows if "@" in row["metric"]]  # cosines have another scale
    if not rows:
        raise ValueError("there is no comparison with a base in it")
    bar = scale(0.0, max(max(row["base"], row["tuned"]) for row in rows) or 1.0, BARS)
    low, high = min(0.0, *(row["low"] for row in rows)), max(0.0, *(row["high"] for row in rows))
    edge = 0.08 * (high - low) or 0.01
    place = scale(low - edge, high + edge, INTERVALS)
    step = tick_step(high - low + 2 * edge)
    ticks = range(math.ceil((low - edge) / step), math.floor((high + edge) / step) + 1)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    return environment.get_template("picture.svg.jinja").render(
        title=headline(result)[0],
        size=f"{result['queries']:,} queries, {result['passages']:,} passages",
        top=TOP,
        bottom=TOP + ROW * len(rows),
        start=BARS[0],
        zero=place(0.0),
        ticks=[(place(step * number), number_text(step * number, f"+.{decimals(step)}f")) for number in ticks],
        rows=[shapes(row, TOP + ROW * number, bar, place) for number, row in enumerate(rows)],
    )


def shapes(row: Row, top: float, bar: Callable[[float], float], place: Callable[[float], float]) -> dict[str, Any]:
    """Where the shapes of a metric lie, and what is written at them."""
    return {
        "name": label(row["metric"]),
        "verdict": kind_of(row["verdict"]),
        "top": top,
        "bars": [
            (side, top + 15 * number, bar(row[side]), number_text(row[side], f".{DIGITS}f"))
            for number, side in enumerate(("base", "tuned"))
        ],
        "low": place(row["low"]),
        "high": place(row["high"]),
        "middle": place(row["difference"]),
        "difference": number_text(row["difference"], f"+.{DIGITS}f"),
    }


def with_table(page: str, result: dict[str, Any]) -> str:
    """A page with the table of this result in the place of the one that it has.

    Raises:
        ValueError: when the page does not have exactly one.
    """
    counts = f"{result['queries']:,} queries of modules that were not trained on, {result['passages']:,} passages"
    lines = [*table(comparison_rows(result["comparison"])).splitlines(), "", counts]
    written, number = TABLE.subn("\n".join(f"    {line}".rstrip() for line in lines), page)
    if number != 1:
        raise ValueError(f"{number} tables of a result, not 1")
    return written


def scale(low: float, high: float, ends: tuple[float, float]) -> Callable[[float], float]:
    """A function from values between `low` and `high` to places between the two ends, in pixels."""
    left, right = ends
    return lambda value: round(left + (value - low) / (high - low) * (right - left), 1)


def tick_step(width: float) -> float:
    """The distance of the ticks of an axis: 1, 2 or 5 times a power of ten; at most six ticks.

    >>> tick_step(0.087), tick_step(0.3)
    (0.02, 0.1)
    """
    power = 10.0 ** math.floor(math.log10(width / 5))
    factor = next(factor for factor in (1, 2, 5, 10) if factor * power >= width / 5 * (1 - 1e-9))
    return float(f"{factor * power:.10g}")


def decimals(step: float) -> int:
    """Digits after the point that a multiple of the step needs.

    >>> decimals(0.02), decimals(0.1), decimals(1.0)
    (2, 1, 0)
    """
    return max(0, -math.floor(math.log10(step) + 1e-9))


def number_text(value: float, form: str) -> str:
    """A number with a real minus sign; zero has no sign."""
    text = format(value, form).replace("-", "\N{MINUS SIGN}")
    return "0" if float(format(value, form)) == 0 and form.startswith("+") else text


def main() -> None:
    """Read the result, draw it, write the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture", description=__doc__.split("\n")[0])
    parser.add_argument("evaluation", type=Path, help="evaluation.json of a run that was compared with its base")
    parser.add_argument("picture", type=Path, help="the SVG file; it is replaced")
    parser.add_argument("pages", type=Path, nargs="*", help="Markdown pages that have the table of such a result")
    arguments = parser.parse_args()
    path = arguments.evaluation
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        written = {arguments.picture: draw(result)}
        for path in arguments.pages:
            written[path] = with_table(path.read_text(encoding="utf-8"), result).removesuffix("\n")
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{path}: {error}")
    for path, text in written.items():
        write_atomic(path, text)
        print(path)


if __name__ == "__main__":
    main()
