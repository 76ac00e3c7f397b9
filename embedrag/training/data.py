"""The data of a run: read, checked, tokenised, ordered, and a part of it held out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from embedrag.data.checks.rules import Rows, short_report
from embedrag.data.holdout import held_out_set, hold_out
from embedrag.data.retrieval_dataset import RetrievalDataset, load_retrieval_dataset
from embedrag.data.rows import endless_rows, read_rows, row_texts
from embedrag.data.sampler import ShuffledSampler, WeightedSampler
from embedrag.data.streaming import Slices, quotas
from embedrag.data.text import identity
from embedrag.data.token_store import TokenStore
from embedrag.data.tokenization import Prompts, open_store
from embedrag.errors import UserError
from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.models.equivalence import choose_probes
from embedrag.models.tokenizer import TextTokenizer
from embedrag.options.field import Source
from embedrag.runtime.console import say
from embedrag.runtime.distributed import ProcessGroup
from embedrag.runtime.files import atomic_file
from embedrag.runtime.paths import cache_folder
from embedrag.training.config.options import TrainOptions

DEFAULT_DATASETS = ("data/pairs.jsonl", "tools/data/pairs.jsonl")


@dataclass
class TrainingData:
    """The rows of a run and their order.

    Attributes:
        store: the rows; of a stream, those of the present epoch.
        order: which comes when; the same for all epochs of a stream.
        checksum: of rows and order, to know them again; of a stream, of its first epoch.
        slices: the further epochs of a stream.
        epoch: the one that `store` holds, where it is a stream's.
    """

    store: TokenStore
    order: ShuffledSampler
    checksum: str
    slices: Slices | None = None
    epoch: int = 0

    def at(self, epoch: int) -> TokenStore:
        """The rows of an epoch, from 0; a stream only goes forward."""
        if self.slices and epoch != self.epoch:
            self.store, self.epoch = self.slices.store(epoch), epoch
        return self.store


def open_data(
    options: TrainOptions, tokenizer: TextTokenizer, processes: ProcessGroup
) -> tuple[TrainingData, RetrievalDataset | None]:
    """Rows to train on, and what the model is scored on meanwhile.

    Args:
        options: of the run, with its data sets named.
        tokenizer: texts -> ids.
        processes: one tokenises, the others find it in the cache.

    Raises:
        UserError: for bad rows, for settings in which nothing can be learnt from them.
    """
    sources = options.train_dataset or []
    paths, cache = [source.path for source in sources], cache_folder(options.cache_dir)
    prompts = [_prompts(source, tokenizer.embedding_config) for source in sources]
    batch = options.batch_size * processes.size
    evaluation = load_retrieval_dataset(options.eval_dataset, flag="--eval_dataset") if options.eval_dataset else None
    slices = None
    if options.stream:
        slices = Slices(paths, _quotas(options, batch), tokenizer.ids, prompts, cache)
        store, found = slices.store(0), False
        if len(set(processes.gather(store.checksum))) > 1:
            raise UserError("--stream: the processes were given different rows; the source must give all the same")
    else:
        with processes.main_first():
            store, found = open_store(paths, tokenizer.ids, tokenizer.key, cache, prompts)
    for line in _data_lines(store, found, stream=options.stream):
        say(line)
    if options.eval_split:
        total = len(store)
        store, held = hold_out(store, options.eval_split, options.seed)
        evaluation = held_out_set(paths, held, total, options.seed)
        say(f"evaluation: {len(held):,} rows are held out, {len(store):,} are trained on")
    for line in _check_negatives(store, options):
        say(line)
    if evaluation:
        say(f"evaluation: {len(evaluation.queries):,} queries, {len(evaluation.passages):,} passages")
        for line in _shared_lines(store, evaluation):
            say(line)
    if not options.gather_negatives and len(store) < 2 * processes.size:
        raise UserError(
            f"--gather_negatives false: {len(store)} rows are too few for {processes.size} processes with rows of "
            "their own; lower --num_processes"
        )
    order, mix = _order(store, options, batch)
    return TrainingData(store, order, store.checksum + mix, slices), evaluation


def _prompts(source: Source, embedding_config: EmbeddingConfig) -> Prompts:
    """What stands before the texts of a data set: its own prompts, or those of all."""
    query, passage = source.query_prompt, source.passage_prompt
    return (
        embedding_config.query_prompt if query is None else query,
        embedding_config.passage_prompt if passage is None else passage,
    )


def _quotas(options: TrainOptions, batch: int) -> list[int]:
    """Rows that each source of a stream gives to an epoch."""
    sources = options.train_dataset or []
    rows = batch * options.gradient_accumulation_steps * (options.steps_per_epoch or 0)
    shares = quotas([source.weight for source in sources], rows, batch if options.one_source_per_batch else 1)
    for source, share in zip(sources, shares, strict=True):
        if not share:
            raise UserError(
                f"--train_dataset {source}: its weight gives it none of the {rows:,} rows of an epoch; raise it, or "
                "--steps_per_epoch"
            )
    return shares


def _order(store: TokenStore, options: TrainOptions, batch: int) -> tuple[ShuffledSampler, str]:
    """The order of the rows, and what tells it from others."""
    sources = options.train_dataset or []
    weights = [1.0 if options.stream else source.weight for source in sources]
    together = batch if options.one_source_per_batch and len(sources) > 1 else 1
    if together == 1 and set(weights) == {1.0}:
        return ShuffledSampler(len(store), options.seed), ""
    sets = [np.flatnonzero(store.row_sets == number) for number in range(len(sources))]
    for source, rows in zip(sources, sets, strict=True):
        if len(rows) < together:
            raise UserError(
                f"--one_source_per_batch: {source.path} has {len(rows)} rows, fewer than the {together} of a batch; "
                "lower --batch_size, or leave the flag out"
            )
    order = WeightedSampler(sets, weights, options.seed, together)
    for source, rows, count in zip(sources, sets, order.positions, strict=True):
        if len(rows) and not count:
            raise UserError(
                f"--train_dataset {source}: its weight leaves none of its {len(rows)} rows in an epoch; raise it"
            )
        say(f"data: {source.path}: {len(rows):,} rows, {count:,} of the {len(order):,} that an epoch shows")
    return order, f"-{weights}-{together}"


def default_dataset(options: TrainOptions) -> list[Source]:
    """Where data is looked for when none is named: two well-known paths, then a demo set that is written here."""
    for name in DEFAULT_DATASETS:
        if Path(name).is_file():
            say(f"data: no --train_dataset named; {name} is used")
            return [Source(path=name)]
    from embedrag.datagen.docstrings import collect, to_rows

    cache = cache_folder(options.cache_dir)
    path = cache / "demo_pairs.jsonl"
    say(f"data: no --train_dataset named, and no {' or '.join(DEFAULT_DATASETS)}; a demo set is written to {path}")
    with atomic_file(path) as file:  # other processes write the same at the same time
        for row in to_rows(collect(["stdlib"]), neg_nums=4, seed=42):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return [Source(path=str(path))]


def _data_lines(store: TokenStore, found: bool, stream: bool) -> Iterator[str]:
    report = store.report
    shapes = "; ".join(f"{count:,} × {{{shape}}}" for shape, count in report["shapes"].items())
    first = " of the first epoch" if stream else ""
    yield f"data: {report['rows']:,} rows{first} ({shapes}) from {', '.join(store.sources)}"
    yield (
        f"data: {report['unique_texts']:,} different texts, {len(store.token_ids):,} tokens "
        f"({'tokenised before' if found else 'tokenised now'}); {report['mean_negatives']:.1f} negatives a row, "
        f"{report['rows_without_negatives']:,} rows with none"
    )
    if report["dropped_negatives"]:
        places = ", ".join(report["dropped_at"])
        count = report["dropped_negatives"]
        yield f"data: {count} negatives dropped (blank, doubled, or equal to a positive): {places}"
    yield from short_report(Rows(store.forms[store.row_texts], store.row_offsets, store.row_positives))


def _shared_lines(store: TokenStore, evaluation: RetrievalDataset) -> Iterator[str]:
    """A line when rows have queries that the model is scored on, or passages that answer these as positives."""
    right = {number for gains in evaluation.relevant for number in gains}
    queries, answers = (
        np.isin(store.text_identities, np.array([identity(text) for text in texts], np.uint64))
        for texts in (evaluation.queries, [evaluation.passages[number] for number in right])
    )
    asked = int(queries[store.row_texts[store.row_offsets[:-1]]].sum())
    places = np.flatnonzero(answers[store.row_texts])
    rows = np.searchsorted(store.row_offsets, places, side="right") - 1
    within = places - store.row_offsets[rows]
    answered = len(np.unique(rows[(within > 0) & (within <= store.row_positives[rows])]))
    if asked or answered:
        yield (
            f"evaluation: {asked:,} training rows have one of its queries, {answered:,} a passage that answers one"
            + ("; its scores say less about new queries then, and embedrag check --eval shows those rows" * bool(asked))
        )


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
    scored = store.report["rows_with_teacher_scores"]
    if options.distillation and not scored:
        raise UserError(
            f"--distillation {options.distillation}: no row has teacher_scores; make them with embedrag mine "
            "(--score_with names a cross-encoder)"
        )
    if options.distillation and scored < store.report["rows"]:
        yield f"data: {scored:,} rows have teacher_scores; the others learn from their labels alone"
    if store.report["rows_with_grades"] and options.pos_nums == 1:
        yield "data: rows have grades, which count where several positives are scored at once (--pos_nums 2 or more)"
    if alone and without and options.batch_size == 1:
        yield f"data: {without:,} rows have no negatives and, with --batch_size 1, teach nothing"


PROBED_ROWS = 200


def _probes(options: TrainOptions) -> list[tuple[str, str]]:
    paths = [source.path for source in options.train_dataset or []]
    records = islice(endless_rows(paths[0]) if options.stream else read_rows(paths), PROBED_ROWS)
    return choose_probes([pair for _, record in records for pair in row_texts(record)])
