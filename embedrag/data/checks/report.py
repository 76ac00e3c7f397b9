"""What is in training data, what is wrong with it, and in which lines; on request, a file without the faults.

One pass over the rows finds everything (`embedrag.data.checks.scan`). To fix the data, the rows are read a second time,
and those without a fault are written (`embedrag.data.checks.fix`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from embedrag.data.checks.fix import CLEANED, LOSSES, NoRowLeftError, write_fixed
from embedrag.data.checks.rules import ERROR, FAULT, KINDS, NOTE, Findings, unused_line
from embedrag.data.checks.scan import SIDES, EvaluationTexts, Scan, expand, scan
from embedrag.data.retrieval_dataset import load_retrieval_dataset
from embedrag.data.sources import JSON_LINES, as_sources, format_of
from embedrag.data.text import PASSAGE, QUERY
from embedrag.errors import UserError
from embedrag.runtime.files import check_targets

CLEAN = "clean"
PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
TEXTS_PER_CALL = 256
BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64)  # first numbers of the lines of a long histogram

Tokenize = Callable[[str, Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class Finding:
    """The rows in which one kind of thing was found.

    Attributes:
        level: `error` (stops a training), `fault` (does not) or `note` (is not a fault).
        text: what these rows have.
        rows: how many they are.
        first: the first of them: `place` (such as `train.jsonl:7`) and `text`.
    """

    level: str
    text: str
    rows: int
    first: list[dict[str, str]]


@dataclass(frozen=True)
class DataReport:
    """What `check_data` found. `print(report)` shows it as text.

    Attributes:
        files: what was read: files and hub ids.
        rows: number of rows, readable or not.
        readable_rows: number of rows that can be read.
        shapes: the keys that a row was read from -> number of rows.
        further_keys: keys that training does not use -> number of rows.
        prompted_rows: number of rows that have a prompt of their own.
        lengths: `query`, `positive` and `negative` -> number of `texts`, percentiles of their `characters`, and with a
            tokenizer of their `tokens`: percentiles, `limit`, the share of texts that is `cut`, number `of_texts`.
        negatives_per_row: number of negatives -> number of rows.
        scripts: `rows` by the script of most of their letters, `mixed_rows`, and `query_and_positive_differ`.
        findings: kind -> what was found, only for kinds that were found; see `embedrag.data.checks.rules.KINDS`.
        evaluation: with an evaluation set, how many of its queries and passages are in the rows.
        fixed: number of rows `written` to the fixed file, of rows `cleaned` of HTML, and of what was left out; None
            when nothing was written.
        not_fixed: why a fixed file that was asked for was not written; empty otherwise.
        fix: the fixed file that was asked for.
    """

    files: list[str]
    rows: int
    readable_rows: int
    shapes: dict[str, int]
    further_keys: dict[str, int]
    prompted_rows: int
    lengths: dict[str, dict[str, Any]]
    negatives_per_row: dict[str, int]
    scripts: dict[str, Any]
    findings: dict[str, Finding]
    evaluation: dict[str, Any] | None = None
    fixed: dict[str, int] | None = None
    not_fixed: str = ""
    fix: str | None = None

    @property
    def level(self) -> str:
        """The worst level that was found: `error`, `fault` or `clean`."""
        levels = {finding.level for finding in self.findings.values()}
        return next((level for level in (ERROR, FAULT) if level in levels), CLEAN)

    @property
    def clean(self) -> bool:
        """Whether there is neither an error nor a fault; there may be notes."""
        return self.level == CLEAN

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {"level": self.level} | {name: value for name, value in asdict(self).items() if value not in (None, "")}

    def lines(self) -> Iterator[str]:
        """The report as lines of text."""
        yield from _overview_lines(self)
        yield from _finding_lines(self)
        if self.fixed:
            lost = [f"{self.fixed[name]:,} {text}" for name, text in LOSSES.items() if self.fixed[name]]
            yield f"fixed: {self.fixed['written']:,} rows in {self.fix}; left out: {'; '.join(lost) or 'nothing'}"
            if self.fixed[CLEANED]:
                yield f"fixed: rows with HTML or control characters that became plain text: {self.fixed[CLEANED]:,}"

    def __str__(self) -> str:
        return "\n".join(self.lines())


def check_data(
    train_dataset: str | Path | Sequence[str | Path],
    *,
    tokenizer: Tokenize | None = None,
    query_max_len: int = 256,
    passage_max_len: int = 1024,
    eval: str | Path | None = None,
    fix: str | Path | None = None,
    stream: bool = False,
    overwrite: bool = False,
) -> DataReport:
    """Look at every training row, and say what is in the data and what is wrong with it.

    Args:
        train_dataset: files, folders of files, or hub data set ids.
        tokenizer: (role, texts) -> token ids, with prompts and without a limit; measures a sample of the texts in
            tokens. None: texts are measured in characters only.
        query_max_len: length to which training cuts queries, in tokens.
        passage_max_len: length to which training cuts passages, in tokens.
        eval: evaluation set that must not occur in the rows: a folder with a retrieval set, or a file of rows.
        fix: JSONL file to write the rows to, without their faults. It is not written when a file can't be read to its
            end or no row is left; `DataReport.not_fixed` then says so.
        stream: read hub data sets as a stream instead of downloading them whole.
        overwrite: replace the file `fix` if it exists.

    Raises:
        UserError: a source is not there or holds no row; `fix` can't be written, or would replace something.
        RunError: the disk can't be written.
    """
    sources = as_sources(train_dataset)
    files = expand(sources)
    check_targets({"fix": fix}, [*sources, *files, str(eval) if eval else None], overwrite)
    if fix and format_of(Path(fix)) is not JSON_LINES:
        raise UserError("must end in .jsonl", "fix", fix)
    evaluation = EvaluationTexts(load_retrieval_dataset(eval, argument="eval")) if eval else None
    found = scan(files, evaluation, tokenizer is not None, stream)
    report = describe(found)
    if tokenizer:
        limits = {QUERY: query_max_len, PASSAGE: passage_max_len}
        for side, lengths in report.lengths.items():
            role = QUERY if side == "query" else PASSAGE
            lengths["tokens"] = _token_lengths(found.samples[side].texts, role, tokenizer, limits[role])
    if evaluation:
        report = replace(report, evaluation={"source": str(eval)} | _shared(found, evaluation))
    return _fixed(report, str(fix), found, evaluation, stream) if fix else report


def describe(found: Scan) -> DataReport:
    """The report of a pass over the rows."""
    return DataReport(
        files=found.files,
        rows=found.rows,
        readable_rows=found.shapes.total(),
        shapes=dict(found.shapes),
        further_keys=dict(found.further_keys),
        prompted_rows=found.prompted,
        lengths={
            side: {"texts": counts.total(), "characters": percentiles(counts)} for side, counts in found.lengths.items()
        },
        negatives_per_row={str(number): rows for number, rows in sorted(found.negatives.items())},
        scripts={
            "rows": {script or "no letters": rows for script, rows in found.scripts.most_common()},
            "mixed_rows": found.mixed_rows,
            "query_and_positive_differ": found.crossing_rows,
        },
        findings=_findings(found.findings),
    )


def percentiles(counts: Counter[int]) -> dict[str, int]:
    """Percentiles of a histogram: the smallest value that a given share of all does not exceed.

    >>> percentiles(Counter({1: 98, 7: 1, 90: 1}))
    {'p50': 1, 'p95': 1, 'p99': 7, 'max': 90}
    """
    if not counts:
        return dict.fromkeys(PERCENTILES, 0)
    values = sorted(counts)
    reached = np.cumsum([counts[value] for value in values])
    return {name: values[int(np.searchsorted(reached, share * reached[-1]))] for name, share in PERCENTILES.items()}


def _findings(found: Findings) -> dict[str, Finding]:
    return {
        kind: Finding(
            level, text, found.counts[kind], [{"place": place, "text": what} for place, what in found.listed[kind]]
        )
        for kind, (level, text) in KINDS.items()
        if kind in found.counts
    }


def _token_lengths(texts: list[str], role: str, tokenizer: Tokenize, limit: int) -> dict[str, Any]:
    """Percentiles in tokens, with prompt and special tokens, and the share of texts that are longer than `limit`."""
    counts: Counter[int] = Counter()
    for start in range(0, len(texts), TEXTS_PER_CALL):
        counts.update(map(len, tokenizer(role, texts[start : start + TEXTS_PER_CALL])))
    cut = sum(count for length, count in counts.items() if length > limit)
    return {**percentiles(counts), "limit": limit, "cut": cut / max(1, len(texts)), "of_texts": len(texts)}


def _shared(found: Scan, evaluation: EvaluationTexts) -> dict[str, int]:
    return {
        "queries": len(evaluation.positives),
        "queries_in_training": len(found.leaked_queries),
        "passages": len(evaluation.passages),
        "passages_in_training": found.shared_passages,
    }


def _fixed(report: DataReport, fix: str, found: Scan, evaluation: EvaluationTexts | None, stream: bool) -> DataReport:
    """Write the fixed file if that is possible; the report then says what was done."""
    if "file" in report.findings:
        return replace(report, fix=fix, not_fixed="not written, because a file can't be read to its end")
    try:
        done = write_fixed(Path(fix).expanduser(), found, evaluation, stream)
    except NoRowLeftError:
        return replace(report, fix=fix, not_fixed="not written, because no row is left")
    return replace(report, fix=fix, fixed=done)


def _overview_lines(report: DataReport) -> Iterator[str]:
    """What is in the data."""
    shapes = "; ".join(f"{count:,} × {{{shape}}}" for shape, count in report.shapes.items())
    yield f"data: {report.rows:,} rows ({shapes or 'none can be read'}) from {', '.join(report.files)}"
    if report.further_keys:
        yield unused_line(report.further_keys)
    if report.prompted_rows:
        yield (
            f"data: {report.prompted_rows:,} rows have a prompt of their own, which training puts before their query "
            "in place of the general one; the lengths do not count it"
        )
    if report.readable_rows:
        yield "\n" + _lengths_table(report.lengths)
        yield "\n" + _share_table("negatives", _buckets(report.negatives_per_row))
        yield "\n" + _share_table("script", report.scripts["rows"])
    if report.scripts["mixed_rows"]:
        yield f"{report.scripts['mixed_rows']:,} rows have letters of several scripts"
    if report.scripts["query_and_positive_differ"]:
        yield f"{report.scripts['query_and_positive_differ']:,} rows have query and positive in different scripts"
    yield ""
    evaluation = report.evaluation
    if evaluation:
        yield (
            f"evaluation: {evaluation['queries_in_training']:,} of {evaluation['queries']:,} queries of "
            f"{evaluation['source']} are in the training data; so are {evaluation['passages_in_training']:,} of its "
            f"{evaluation['passages']:,} passages, which is not a fault by itself\n"
        )


def _finding_lines(report: DataReport) -> Iterator[str]:
    """What is wrong with the data."""
    findings = report.findings
    faults = {kind: finding for kind, finding in findings.items() if finding.level != NOTE}
    if findings:
        cells = [[finding.level, f"{finding.rows:,}", _subject(kind, finding)] for kind, finding in findings.items()]
        yield tabulate(cells, ["", "rows", "what"], disable_numparse=True, colalign=("left", "right", "left")) + "\n"
    for kind, finding in findings.items():
        yield f"{_subject(kind, finding)}:"
        for first in finding.first:
            bare = first["text"].startswith(first["place"])
            yield f"  {first['text']}" if bare else f"  {first['place']}: {first['text']}"
        if finding.rows > len(finding.first):
            yield f"  … and {finding.rows - len(finding.first):,} more"
    if not faults:
        yield "clean: no faults"
    else:
        worst = sum(finding.level == ERROR for finding in faults.values())
        yield f"kinds of faults: {len(faults)}" + (f"; {worst} of them stop a training" if worst else "")


def _subject(kind: str, finding: Finding) -> str:
    return f"{'files' if kind == 'file' else 'rows'} that {finding.text}"


def _lengths_table(lengths: dict[str, Any]) -> str:
    cells = []
    for unit in ("characters", "tokens"):
        for side in SIDES:
            found = lengths[side].get(unit)
            if found:
                over = f"{100 * found['cut']:.1f} % over {found['limit']:,}" if unit == "tokens" else ""
                texts = found.get("of_texts", lengths[side]["texts"])
                cells.append([side, f"{texts:,}", unit, *(f"{found[name]:,}" for name in PERCENTILES), over])
    align = ("left", "right", "left", "right", "right", "right", "right", "right")
    return tabulate(cells, ["side", "texts", "in", *PERCENTILES, "cut"], disable_numparse=True, colalign=align)


def _share_table(title: str, counts: dict[str, int]) -> str:
    total = sum(counts.values())
    cells = [[name, f"{rows:,}", f"{100 * rows / total:.1f} %"] for name, rows in counts.items()]
    return tabulate(cells, [title, "rows", "share"], disable_numparse=True, colalign=("left", "right", "right"))


def _buckets(counts: dict[str, int]) -> dict[str, int]:
    """A histogram with few lines: unchanged if it is short, otherwise in ranges that double.

    >>> _buckets({"0": 2, "7": 3, "9": 1})
    {'0': 2, '7': 3, '9': 1}
    >>> _buckets({str(number): 1 for number in range(20)})
    {'0': 1, '1': 1, '2-3': 2, '4-7': 4, '8-15': 8, '16-31': 4}
    """
    if len(counts) <= len(BUCKETS):
        return counts
    result: Counter[str] = Counter()
    for number, rows in sorted((int(number), rows) for number, rows in counts.items()):
        place = max(place for place, first in enumerate(BUCKETS) if first <= number)
        first, last = BUCKETS[place], BUCKETS[place + 1] - 1 if place + 1 < len(BUCKETS) else None
        result[f"{first}+" if last is None else f"{first}" if first == last else f"{first}-{last}"] += rows
    return dict(result)
