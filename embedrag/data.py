"""The data of a run: read, checked, tokenised, and a part of it held out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from embedrag.config import TrainOptions
from embedrag.contract import TextTokenizer
from embedrag.errors import UserError
from embedrag.faults import Rows, short_report
from embedrag.logs import say
from embedrag.processes import Processes
from embedrag.retrieval import RetrievalSet, load_set
from embedrag.split import held_out_set, hold_out
from embedrag.tokens import TokenStore, cache_folder, open_store

DEFAULT_DATASETS = ("data/pairs.jsonl", "tools/data/pairs.jsonl")


def open_data(
    options: TrainOptions, tokenizer: TextTokenizer, processes: Processes
) -> tuple[TokenStore, RetrievalSet | None]:
    """Rows to train on, and what the model is scored on meanwhile.

    Args:
        options: of the run, with its data sets named.
        tokenizer: texts -> ids.
        processes: one tokenises, the others find it in the cache.

    Raises:
        UserError: for bad rows, for settings in which nothing can be learnt from them.
    """
    sources = options.train_dataset or []
    evaluation = load_set(options.eval_dataset, flag="--eval_dataset") if options.eval_dataset else None
    with processes.main_first():
        store, found = open_store(
            sources, tokenizer, tokenizer.key, cache_folder(options.cache_dir), stream=options.stream
        )
    for line in _data_lines(store, found):
        say(line)
    if options.eval_split:
        total = len(store)
        store, held = hold_out(store, options.eval_split, options.seed)
        evaluation = held_out_set(sources, held, total, options.seed, options.stream)
        say(f"evaluation: {len(held):,} rows are held out, {len(store):,} are trained on")
    for line in _check_negatives(store, options):
        say(line)
    if evaluation:
        say(f"evaluation: {len(evaluation.queries):,} queries, {len(evaluation.passages):,} passages")
    if not options.gather_negatives and len(store) < 2 * processes.size:
        raise UserError(
            f"--gather_negatives false: {len(store)} rows are too few for {processes.size} processes with rows of "
            "their own; lower --num_processes"
        )
    return store, evaluation


def default_dataset(options: TrainOptions) -> list[str]:
    """Where data is looked for when none is named: two well-known paths, then a demo set that is written here."""
    for name in DEFAULT_DATASETS:
        if Path(name).is_file():
            say(f"data: no --train_dataset named; {name} is used")
            return [name]
    from embedrag.tools.docstrings import collect, to_rows

    cache = cache_folder(options.cache_dir)
    path = cache / "demo_pairs.jsonl"
    say(f"data: no --train_dataset named, and no {' or '.join(DEFAULT_DATASETS)}; a demo set is written to {path}")
    cache.mkdir(parents=True, exist_ok=True)
    rows = to_rows(collect(["stdlib"]), neg_nums=4, seed=42)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return [str(path)]


def _data_lines(store: TokenStore, found: bool) -> Iterator[str]:
    report = store.report
    shapes = "; ".join(f"{count:,} × {{{shape}}}" for shape, count in report["shapes"].items())
    yield f"data: {report['rows']:,} rows ({shapes}) from {', '.join(store.sources)}"
    yield (
        f"data: {report['unique_texts']:,} different texts, {len(store.token_ids):,} tokens "
        f"({'tokenised before' if found else 'tokenised now'}); {report['mean_negatives']:.1f} negatives a row, "
        f"{report['rows_without_negatives']:,} rows with none"
    )
    if report["dropped_negatives"]:
        places = ", ".join(report["dropped_at"])
        count = report["dropped_negatives"]
        yield f"data: {count} negatives dropped (blank, doubled, or equal to a positive): {places}"
    yield from short_report(Rows(store.row_texts, store.row_offsets, store.row_positives))


def _check_negatives(store: TokenStore, options: TrainOptions) -> Iterator[str]:
    """Refuse a setting in which nothing can be learnt, and tell of rows that will not count."""
    without = store.report["rows_without_negatives"]
    none = without == len(store) or options.neg_nums == 0
    alone = min(options.batch_size, len(store)) == 1 or len(np.unique(store.known_positives)) == 1
    if none and (alone or options.candidates == "hard"):
        raise UserError(
            "this setting leaves no negatives at all, so nothing can be learnt: "
            + ("the rows have none" if options.neg_nums else "--neg_nums is 0")
            + f", and --candidates {options.candidates} with --batch_size {options.batch_size} adds none of other rows"
            + "; give rows negatives, or use --candidates all with --batch_size 2 or more"
        )
    if alone and without and options.batch_size == 1:
        yield f"data: {without:,} rows have no negatives and, with --batch_size 1, teach nothing"
