"""The data of a run: read, checked, tokenised and ordered; a part of it may be held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from embedrag.data.checks.rules import Rows, short_report, unused_line
from embedrag.data.holdout import held_out_set, hold_out
from embedrag.data.retrieval_dataset import RetrievalDataset, load_retrieval_dataset
from embedrag.data.rows import endless_rows, read_rows, row_texts
from embedrag.data.sampler import ShuffledSampler, WeightedSampler
from embedrag.data.sources import reading_lines
from embedrag.data.streaming import EpochStream, quotas
from embedrag.data.text import PASSAGE, QUERY, identity
from embedrag.data.token_store import TokenStore
from embedrag.data.tokenization import Prompts, open_store
from embedrag.errors import UserError
from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.models.equivalence import choose_probes
from embedrag.models.tokenizer import TextTokenizer
from embedrag.options.field import Source
from embedrag.runtime.console import say
from embedrag.runtime.distributed import ProcessGroup
from embedrag.runtime.paths import cache_folder
from embedrag.training.config.options import TrainOptions

PROBED_ROWS = 200


@dataclass
class TrainingData:
    """The rows of a run and their order.

    Attributes:
        store: the rows; with a stream, the rows of the current epoch.
        order: in which order they come; the same for all epochs of a stream.
        checksum: of rows and order, so that a resumed run can compare; with a stream, of its first epoch.
        stream: the later epochs of a stream.
        epoch: with a stream, the epoch that `store` holds.
    """

    store: TokenStore
    order: ShuffledSampler
    checksum: str
    stream: EpochStream | None = None
    epoch: int = 0

    def at(self, epoch: int) -> TokenStore:
        """The rows of an epoch, counted from 0; a stream only goes forward."""
        if self.stream and epoch != self.epoch:
            self.store, self.epoch = self.stream.store(epoch), epoch
        return self.store


def open_data(
    options: TrainOptions, tokenizer: TextTokenizer, processes: ProcessGroup
) -> tuple[TrainingData, RetrievalDataset | None]:
    """Open the rows to train on, and the set that the model is scored on during the training.

    Args:
        options: of the run, with its data sets named.
        tokenizer: texts -> ids.
        processes: one of them tokenises, the others read the result from the cache.

    Raises:
        UserError: for bad rows, and for settings with which nothing can be learnt from the rows.
    """
    sources = options.train_dataset or []
    paths, cache = [source.path for source in sources], cache_folder(options.cache_dir)
    prompts = [_prompts(source, tokenizer.embedding_config) for source in sources]
    for pair in set(prompts):
        for role, prompt in zip((QUERY, PASSAGE), pair, strict=True):
            tokenizer.check_prompt(role, prompt)
    batch = options.batch_size * processes.size
    evaluation = load_retrieval_dataset(options.eval_dataset, argument="eval_dataset") if options.eval_dataset else None
    stream = None
    if options.stream:
        stream = EpochStream(paths, _quotas(options, batch), tokenizer.ids, prompts, cache)
        store, found = stream.store(0), False
        if len(set(processes.gather(store.checksum))) > 1:
            raise UserError(
                "the processes read different rows; the source must give all of them the same rows", "stream"
            )
    else:
        with processes.main_first():
            store, found = open_store(paths, tokenizer.ids, tokenizer.key, cache, prompts)
    prompt, place = store.report.get("longest_prompt", ["", ""])  # stores of earlier versions do not have it
    if prompt:
        tokenizer.check_prompt(QUERY, prompt, place)
    said = _data_lines(store, found, stream=options.stream)
    for line in (*reading_lines(paths), *said, *_cut_lines(store, tokenizer)):
        say(line)
    if options.eval_split:
        total = len(store)
        store, held = hold_out(store, options.eval_split, options.seed)
        evaluation = held_out_set(paths, held, total, options.seed)
        say(f"evaluation: {len(held):,} rows are held out, {len(store):,} are used for training")
        if store.report.get("rows_with_prompts"):
            say("evaluation: the prompts of single rows are not used in it; all queries get the general prompt")
    for line in _check_negatives(store, options):
        say(line)
    if evaluation:
        say(f"evaluation: {len(evaluation.queries):,} queries, {len(evaluation.passages):,} passages")
        for line in _shared_lines(store, evaluation):
            say(line)
    if not options.gather_negatives and len(store) < 2 * processes.size:
        raise UserError(
            f"{len(store)} rows are too few for {processes.size} processes with rows of their own; lower "
            "`num_processes`",
            "gather_negatives",
            False,
        )
    order, mix = _order(store, options, batch)
    return TrainingData(store, order, store.checksum + mix, stream), evaluation


def _prompts(source: Source, embedding_config: EmbeddingConfig) -> Prompts:
    """The prompts of a data set: its own, otherwise those of the run."""
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
                f"with this weight, an epoch of {rows:,} rows has none of its rows; raise the weight, or "
                "`steps_per_epoch`",
                "train_dataset",
                source,
            )
    return shares


def _order(store: TokenStore, options: TrainOptions, batch: int) -> tuple[ShuffledSampler, str]:
    """The order of the rows, and a text that is different for every different order."""
    sources = options.train_dataset or []
    weights = [1.0 if options.stream else source.weight for source in sources]
    together = batch if options.one_source_per_batch and len(sources) > 1 else 1
    if together == 1 and set(weights) == {1.0}:
        return ShuffledSampler(len(store), options.seed), ""
    sets = [np.flatnonzero(store.row_sets == number) for number in range(len(sources))]
    for source, rows in zip(sources, sets, strict=True):
        if len(rows) < together:
            raise UserError(
                f"{source.path} has {len(rows)} rows, fewer than the {together} rows of a batch; lower `batch_size`, "
                "or leave `one_source_per_batch` out",
                "one_source_per_batch",
            )
    order = WeightedSampler(sets, weights, options.seed, together)
    for source, rows, count in zip(sources, sets, order.positions, strict=True):
        if len(rows) and not count:
            raise UserError(
                f"with this weight, an epoch has none of its {len(rows)} rows; raise the weight",
                "train_dataset",
                source,
            )
        say(f"data: {source.path}: {len(rows):,} rows; {count:,} of the {len(order):,} rows of an epoch come from it")
    return order, f"-{weights}-{together}"


def _data_lines(store: TokenStore, found: bool, stream: bool) -> Iterator[str]:
    report = store.report
    shapes = "; ".join(f"{count:,} × {{{shape}}}" for shape, count in report["shapes"].items())
    first = " of the first epoch" if stream else ""
    yield f"data: {report['rows']:,} rows{first} ({shapes}) from {', '.join(store.sources)}"
    yield (
        f"data: {report['unique_texts']:,} different texts, {len(store.token_ids):,} tokens "
        f"({'tokenised before' if found else 'tokenised now'}); {report['mean_negatives']:.1f} negatives for each row, "
        f"{report['rows_without_negatives']:,} rows have none"
    )
    if report["dropped_negatives"]:
        places = ", ".join(report["dropped_at"])
        count = report["dropped_negatives"]
        yield f"data: {count} negatives were dropped (blank, repeated, or equal to a positive): {places}"
    if keys := report.get("unused_keys"):
        yield unused_line(keys)
    if prompted := report.get("rows_with_prompts"):
        yield (
            f"data: {prompted:,} rows have a prompt of their own, which is put before their query in place of the "
            "general prompt; give the model the same prompt when it embeds such queries"
        )
    yield from short_report(Rows(store.forms[store.row_texts], store.row_offsets, store.row_positives))


def _cut_lines(store: TokenStore, tokenizer: TextTokenizer) -> Iterator[str]:
    """A line for each side of which texts reach the limit."""
    is_query = np.zeros(len(store.row_texts), bool)
    is_query[store.row_offsets[:-1]] = True
    lengths = np.diff(store.text_offsets)
    for role, places, many in ((QUERY, is_query, "queries"), (PASSAGE, ~is_query, "passages")):
        limit, own = tokenizer.limit(role), lengths[np.unique(store.row_texts[places])]
        if cut := int((own >= limit).sum()):
            share = f"{cut:,} of {len(own):,} {many} ({cut / len(own):.1%})"
            yield f"data: {share} have {limit:,} tokens or more and are cut there; `{role}_max_len` sets the limit"


def _shared_lines(store: TokenStore, evaluation: RetrievalDataset) -> Iterator[str]:
    """A line when training rows share queries or relevant passages with the evaluation set."""
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
            f"evaluation: {asked:,} training rows have a query of the evaluation set, {answered:,} have a relevant "
            "passage of it"
            + ("; so its scores say less about new queries; embedrag check --eval lists those rows" * bool(asked))
        )


def _check_negatives(store: TokenStore, options: TrainOptions) -> Iterator[str]:
    """Refuse settings with which nothing can be learnt; lines about rows that will not count."""
    without = store.report["rows_without_negatives"]
    none = without == len(store) or options.neg_nums == 0
    alone = min(options.batch_size, len(store)) == 1 or len(np.unique(store.known_positives)) == 1
    if none and (alone or options.candidates == "hard"):
        raise UserError(
            "these settings leave no negatives at all, so nothing can be learnt: "
            + ("the rows have none" if options.neg_nums else "`neg_nums` is 0")
            + f", and {_why_alone(store, options)}"
        )
    scored = store.report["rows_with_teacher_scores"]
    if options.distillation and not scored:
        raise UserError(
            "no row has teacher_scores; make them with `embedrag mine --cross_encoder MODEL`",
            "distillation",
            options.distillation,
        )
    if options.distillation and scored < store.report["rows"]:
        yield f"data: {scored:,} rows have teacher_scores; the other rows are learnt only from their labels"
    if store.report["rows_with_grades"] and options.pos_nums == 1:
        yield "data: rows have grades; they only count with several positives in one step (`pos_nums=2` or more)"
    if alone and without and options.batch_size == 1:
        yield f"data: {without:,} rows have no negatives; with `batch_size=1` nothing is learnt from them"


def _why_alone(store: TokenStore, options: TrainOptions) -> str:
    """Why the other rows of a batch give no negatives, and the remedies."""
    own = "add negatives to the rows" if options.neg_nums else "raise `neg_nums`"
    if options.candidates == "hard":
        return (
            f"`candidates=hard` takes none from other rows; {own}, or use `candidates=all` with `batch_size=2` or more"
        )
    if len(store) == 1:
        return f"there is only one row, so there are no passages of other rows; {own}, or add rows"
    if options.batch_size == 1:
        return f"a batch of one row has no passages of other rows; {own}, or use `batch_size=2` or more"
    reason = "all rows have the same positive, so there are no passages of other rows"
    return f"{reason}; {own}, or add rows with other positives"


def probe_texts(options: TrainOptions) -> list[tuple[str, str]]:
    """(role, text) pairs of the first rows; a merge is checked with them."""
    paths = [source.path for source in options.train_dataset or []]
    rows = islice(endless_rows(paths[0]) if options.stream else read_rows(paths), PROBED_ROWS)
    return choose_probes([pair for _, row in rows for pair in row_texts(row)])
