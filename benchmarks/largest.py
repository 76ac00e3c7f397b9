"""The largest batch under a cap of memory, and the speed of those that can have as many rows.

python -m benchmarks.largest --cap_gib 4

MiniLM, LoRA, the mixed lengths of the speed benchmark. First the plain loss of sentence-transformers is given one row
more at a time until its step needs more memory than the cap (peak above the loaded model); then EmbedRAG and its Cached
loss get `--factor` times as many rows. Fresh processes in turns, one measured step behind one that warms up.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks import speed
from benchmarks.workload import make_model

WARMUP, STEPS = 1, 2


def main() -> None:
    """Look for the largest batch, then measure the others."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.largest", description=__doc__.split("\n")[0])
    parser.add_argument("--cap_gib", type=float, default=4.0)
    parser.add_argument("--factor", type=int, default=16, help="rows of the others / the largest plain batch")
    parser.add_argument("--start", type=int, default=4, help="rows that the search begins with")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--token_budget", type=int, default=4096, help="of EmbedRAG")
    parser.add_argument("--mini_batch_size", type=int, default=4, help="of the Cached loss")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/out/largest"))
    own = parser.parse_args()
    options = speed.parse(["--models", "minilm", "--steps", str(STEPS), "--warmup", str(WARMUP)])
    options.output = own.output
    with tempfile.TemporaryDirectory(prefix="largest-") as scratch:
        bench = speed.Benchmark(options, Path(scratch))
        model = make_model("minilm", Path(scratch))
        setting = speed.Setting("minilm", model, "lora", bench._adapter(model))

        def step(name: str, rows: int, knobs: dict[str, Any]) -> dict[str, Any]:
            made = bench._make_rows(setting, "mixed", rows, STEPS)
            found = bench._speed_run(setting, name, knobs, made, WARMUP)
            if "error" in found:
                sys.exit(f"{name} with {rows} rows: {found['error']}")
            print(f"{name}, {rows} rows: {found['memory_mib']:.0f} MiB", flush=True)
            return found

        rows = own.start
        while (found := step("st", rows, {}))["memory_mib"] <= own.cap_gib * 1024:
            largest, plain, rows = rows, found, rows + 1
        if rows == own.start:
            sys.exit(f"{rows} rows already need more than {own.cap_gib} GiB; lower --start")
        many = own.factor * largest
        others = {
            "embedrag": {"token_budget": own.token_budget},
            "st_cached": {"cached": True, "mini_batch_size": own.mini_batch_size},
        }
        runs = {name: [] for name in others}  # type: dict[str, list[dict[str, Any]]]
        for _ in range(own.repeats):
            for name, knobs in others.items():
                runs[name].append(step(name, many, knobs))
    table = [
        ["sentence-transformers, plain", largest, f"{plain['memory_mib']:.0f}", f"{plain['tokens_per_second']:.0f}"]
    ]
    for name, measured in runs.items():
        figures = [statistics.median(run[key] for run in measured) for key in ("memory_mib", "tokens_per_second")]
        table.append([f"{name} {others[name]}", many, *(f"{figure:.0f}" for figure in figures)])
    ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(*runs.values(), strict=True)]
    print(tabulate(table, ["", "rows", "MiB above the model", "useful tok/s"], "github", disable_numparse=True))
    print(f"embedrag / st_cached, same rows: {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main()
