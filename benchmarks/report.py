"""From what the runs measured to the figures and tables that are published."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
from tabulate import tabulate

TOLERANCE = 1e-4
MIB = 2**20
# Model FLOPs of a token and a weight, forward and backward; a frozen weight needs no gradient of its own.
FLOPS = {"full": 6, "lora": 4}
REFERENCES = {"all": "embedrag", "hard": "embedrag_hard"}
HEADERS = {
    "contestant": "contestant",
    "tokens_per_second": "useful tok/s",
    "step_seconds": "step s",
    "useful_share": "useful share",
    "repeated_share": "computed twice",
    "memory_mib": "memory MiB",
    "cpu_seconds": "CPU s/step",
    "gemm_share": "of GEMM",
    "first_step_seconds": "to 1st step s",
    "ratio": "embedrag is … times as fast",
}
LEGEND = """\
Median of the rounds (smallest-largest). useful tok/s: real tokens of the measured steps / wall time, data loading \
included; useful share: real tokens / computed tokens, the rest is padding; computed twice: tokens that went through \
a first forward pass without a graph, per token computed with one; memory: peak resident memory above the loaded \
model; of GEMM: useful model FLOPs (6 or, for LoRA, 4 a weight and token) / the best float32 matrix product of the \
same shapes in the same process; to 1st step: from the start of the process to the end of its first step. \
No ratio is given unless the losses of the equality run agree to {tolerance:g} and the very same number of real \
tokens was trained in each step."""


def figures(result: dict[str, Any], tokens: Sequence[int], warmup: int, finetune: str, weights: int) -> dict[str, Any]:
    """The figures of one run.

    Args:
        result: what the contestant's meter wrote.
        tokens: real tokens of each step, as the workload knows them.
        warmup: first steps that do not count, at least 1.
        finetune: `full` or `lora`.
        weights: of the linear layers.
    """
    ends = result["ends"]
    first, last = ends[warmup - 1], ends[-1]
    steps = len(ends) - warmup
    seconds = last["clock"] - first["clock"]
    useful = sum(tokens[warmup : len(ends)])
    computed, repeated, real = (last[name] - first[name] for name in ("computed", "repeated", "real"))
    return {
        "tokens_per_second": useful / seconds,
        "step_seconds": median(b["clock"] - a["clock"] for a, b in pairwise(ends[warmup - 1 :])),
        "useful_share": real / computed,
        "repeated_share": repeated / computed,
        "memory_mib": (last["peak_bytes"] - result["loaded_bytes"]) / MIB,
        "peak_mib": last["peak_bytes"] / MIB,
        "cpu_seconds": (last["cpu"] - first["cpu"]) / steps,
        "gemm_gflops": result["gflops"],
        "gemm_share": FLOPS[finetune] * weights * useful / seconds / (result["gflops"] * 1e9),
        "first_step_seconds": ends[0]["since_start"],
        "same_tokens": real == useful,
        "threads": result["threads"],
        "losses": result["losses"],
    }


def difference(losses: Sequence[float], reference: Sequence[float]) -> float:
    """Largest difference of two rows of losses of one length; NaN where one of them is.

    >>> difference([2.0, 1.5], [2.0, 1.25])
    0.25
    """
    return float(np.abs(np.subtract(losses, reference)).max())


def document(results: dict[str, Any]) -> str:
    """Everything as markdown."""
    parts = ["# Speed", "\n".join(f"- {name}: {value}" for name, value in results["head"].items())]
    parts += [f"- {note}" for note in results["notes"]]
    rows = [[row[name] for name in ("model", "mix", "side", "mean", "sd", "p95", "max")] for row in results["lengths"]]
    parts.append("Lengths in tokens:\n\n" + _github(rows, ["model", "mix", "side", "mean", "sd", "p95", "max"]))
    if results["sweeps"]:
        rows = [[*_cell(row), row["knobs"], _sweep(row)] for row in results["sweeps"]]
        parts.append("Knobs tried:\n\n" + _github(rows, ["model", "fine-tune", "contestant", "knobs", "useful tok/s"]))
    if results["equality"]:
        others = [row for row in results["equality"] if row["contestant"] not in REFERENCES.values() or "error" in row]
        rows = [[*_cell(row), _verdict(row)] for row in others]
        title = "Losses compared with EmbedRAG's, dropout off, largest difference:"
        parts.append(f"{title}\n\n" + _github(rows, ["model", "fine-tune", "contestant", "difference"]))
    cells = dict.fromkeys((run["model"], run["finetune"], run["mix"]) for run in results["runs"])
    parts += [cell_table(results, *cell) for cell in cells]
    return "\n\n".join([*parts, LEGEND.format(tolerance=TOLERANCE)]) + "\n"


def cell_table(results: dict[str, Any], model: str, finetune: str, mix: str) -> str:
    """The table of one model, fine-tune and mix of lengths."""
    runs = [run for run in results["runs"] if (run["model"], run["finetune"], run["mix"]) == (model, finetune, mix)]
    checks = {
        row["contestant"]: row for row in results["equality"] if (row["model"], row["finetune"]) == (model, finetune)
    }
    tables = []
    for candidates, title in (("all", "all passages of the batch"), ("hard", "own positive + all hard negatives")):
        part = [run for run in runs if run["candidates"] == candidates]
        names = dict.fromkeys(run["contestant"] for run in part)
        rows = [_row(name, part, checks.get(name)) for name in names]
        if rows:
            tables.append(f"A query is scored against: {title}.\n\n" + _github(rows, list(HEADERS.values())))
    return "\n\n".join([f"## {model}, {finetune}, {mix}", *tables])


def _row(name: str, runs: list[dict[str, Any]], check: dict[str, Any] | None) -> list[str]:
    own = [run for run in runs if run["contestant"] == name]
    good = [run for run in own if "error" not in run]
    title = name + (f" {own[0]['knobs']}" if own[0]["knobs"] else "")
    errors = [run["error"] for run in own if "error" in run]
    if not good:
        return [title, f"failed: {errors[0]}", *[""] * (len(HEADERS) - 2)]
    note = f"{len(errors)} of {len(own)} runs failed: {errors[0]}; " if errors else ""
    shown: dict[str, Callable[[float], str]] = {
        "tokens_per_second": "{:.0f}".format,
        "step_seconds": "{:.3f}".format,
        "useful_share": "{:.3f}".format,
        "repeated_share": "{:.2f}".format,
        "memory_mib": "{:.0f}".format,
        "cpu_seconds": "{:.2f}".format,
        "gemm_share": "{:.0%}".format,
        "first_step_seconds": "{:.1f}".format,
    }
    cells = [_spread([run[key] for run in good], form) for key, form in shown.items()]
    return [title, *cells, note + _ratio(name, good, runs, check)]


def _ratio(name: str, good: list[dict[str, Any]], runs: list[dict[str, Any]], check: dict[str, Any] | None) -> str:
    if name == reference(good[0]["candidates"]):
        return "1"
    if check is None:
        return "losses not compared: no ratio"
    if "error" in check:
        return f"equality run failed: {check['error']}: no ratio"
    if not check["difference"] <= TOLERANCE:
        return f"losses differ by {check['difference']:.1e}: no ratio"
    if not all(run["same_tokens"] for run in good):
        return "other tokens were trained: no ratio"
    rival = reference(good[0]["candidates"])
    ours = {run["round"]: run for run in runs if run["contestant"] == rival and "error" not in run}
    if not all(run["same_tokens"] for run in ours.values()):
        return "embedrag trained other tokens: no ratio"
    pairs = [(ours[run["round"]], run) for run in good if run["round"] in ours]
    ratios = [our["tokens_per_second"] / run["tokens_per_second"] for our, run in pairs]
    return _spread(ratios, "{:.2f}".format) if ratios else "no run of embedrag in the same round: no ratio"


def reference(candidates: str) -> str:
    """The contestant that others with these candidates are compared with."""
    return REFERENCES[candidates]


def length_row(model: str, mix: str, side: str, lengths: np.ndarray) -> dict[str, Any]:
    """Mean, deviation and tail of some lengths in tokens."""
    row: dict[str, Any] = {"model": model, "mix": mix, "side": side}
    row |= {"mean": f"{lengths.mean():.0f}", "sd": f"{lengths.std():.0f}"}
    return row | {"p95": f"{np.quantile(lengths, 0.95):.0f}", "max": int(lengths.max())}


def _spread(values: Iterable[float], form: Callable[[float], str]) -> str:
    """Median and, of several values, the extremes.

    >>> _spread([3, 1, 2], "{:.0f}".format)
    '2 (1-3)'
    """
    values = sorted(values)
    return form(median(values)) + (f" ({form(values[0])}-{form(values[-1])})" if len(values) > 1 else "")


def _cell(row: dict[str, Any]) -> list[str]:
    return [row["model"], row["finetune"], row["contestant"]]


def _sweep(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"failed: {row['error']}"
    return f"{row['tokens_per_second']:.0f}" + (" (chosen)" if row["chosen"] else "")


def _verdict(row: dict[str, Any]) -> str:
    return (
        f"failed: {row['error']}"
        if "error" in row
        else f"{row['difference']:.1e} (mean loss {row['mean_loss']:.2f}, {row['steps']} steps)"
    )


def _github(rows: list[list[Any]], headers: list[str]) -> str:
    text: str = tabulate(rows, headers, "github", disable_numparse=True)
    return text
