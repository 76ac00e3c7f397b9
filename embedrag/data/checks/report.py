"""`embedrag check`: what is in training data, what is wrong with it and where, and a file without the faults.

One pass finds everything (`embedrag.data.checks.scan`); `--fix` reads the rows a second time and writes those that stay
(`embedrag.data.checks.fix`). Of a model only the tokenizer is read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from embedrag.commands.check import CheckOptions
from embedrag.data.checks.fix import fixed_line, write_fixed
from embedrag.data.checks.rules import FAULT, KINDS, NOTE
from embedrag.data.checks.scan import SIDES, EvaluationTexts, Scan, expand, survey
from embedrag.data.retrieval_dataset import load_retrieval_dataset
from embedrag.data.rows import NEGATIVE_KEYS
from embedrag.errors import UserError, flag_named, near_miss
from embedrag.models.base_model import describe_base, resolve_embedding_config
from embedrag.models.tokenizer import TextTokenizer, load_tokenizer
from embedrag.runtime.console import say
from embedrag.runtime.files import atomic_file, check_targets

PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
LONGEST = 1 << 30  # tokens; nothing is cut while lengths are measured
TEXTS_PER_CALL = 256
SHOWN_KEYS = 10
BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64)  # first numbers of the lines of a long histogram
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


def run(options: CheckOptions) -> int:
    """`embedrag check`: the report on the screen, and in files as asked; 0 clean, 1 faults, 2 rows that can't be read.

    Raises:
        UserError: when there is nothing to check, or nothing can be written.
    """
    files = expand(options.train_dataset)
    check_targets(
        {"fix": options.fix, "output": options.output},
        [*options.train_dataset, *files, options.eval],
        options.overwrite,
    )
    if options.fix and Path(options.fix).suffix.lower() not in JSON_SUFFIXES:
        raise UserError(f"--fix {options.fix}: must end in .jsonl")
    tokenizer = _tokenizer(options) if options.model else None
    evaluation = None
    if options.eval:
        with flag_named("--eval", "--train_dataset", "--data"):
            evaluation = EvaluationTexts(load_retrieval_dataset(options.eval))
    found = survey(files, evaluation, tokenizer is not None, options.stream)
    report = describe(found, options, evaluation, tokenizer)
    for line in _lines(report):
        say(line.encode("utf-8", "backslashreplace").decode())  # a key may hold half a surrogate pair
    if options.fix and not found.findings.counts["file"]:
        report["fixed"] = write_fixed(Path(options.fix).expanduser(), found, evaluation, options.stream)
        say(fixed_line(options.fix, report["fixed"]))
    if options.output:
        with flag_named("--output"), atomic_file(Path(options.output).expanduser()) as file:
            file.write(json.dumps(report, indent=2) + "\n")
    if options.fix and found.findings.counts["file"]:
        raise UserError(f"--fix {options.fix}: not written, for a file can't be read to its end")
    return found.findings.exit_code


def describe(
    found: Scan,
    options: CheckOptions,
    evaluation: EvaluationTexts | None = None,
    tokenizer: TextTokenizer | None = None,
) -> dict[str, Any]:
    """The report, as `--output` keeps it.

    Args:
        found: what the pass over the rows counted.
        options: of the command.
        evaluation: the evaluation set, if one was given.
        tokenizer: measures the samples of `found`.
    """
    lengths: dict[str, Any] = {}
    for side in SIDES:
        counts = found.lengths[side]
        lengths[side] = {"texts": sum(counts.values()), "characters": percentiles(counts)}
        if tokenizer:
            lengths[side]["tokens"] = _token_lengths(found.samples[side].texts, side, tokenizer)
    report: dict[str, Any] = {
        "files": found.files,
        "rows": found.rows,
        "readable_rows": found.shapes.total(),
        "shapes": dict(found.shapes),
        "further_keys": dict(found.further_keys),
        "lengths": lengths,
        "negatives_per_row": {str(number): rows for number, rows in sorted(found.negatives.items())},
        "scripts": {
            "rows": {script or "no letters": rows for script, rows in found.scripts.most_common()},
            "mixed_rows": found.mixed_rows,
            "query_and_positive_differ": found.crossing_rows,
        },
        "findings": {
            kind: {
                "level": level,
                "text": text,
                "rows": found.findings.counts[kind],
                "first": [{"place": place, "text": detail} for place, detail in found.findings.listed[kind]],
            }
            for kind, (level, text) in KINDS.items()
            if kind in found.findings.counts
        },
        "exit_code": found.findings.exit_code,
    }
    if evaluation:
        report["evaluation"] = {
            "source": options.eval,
            "queries": len(evaluation.positives),
            "queries_in_training": len(found.leaked_queries),
            "passages": len(evaluation.passages),
            "passages_in_training": found.shared_passages,
        }
    return report


def percentiles(counts: Counter[int]) -> dict[str, int]:
    """Percentiles of a histogram: the smallest value that so large a share does not exceed.

    >>> percentiles(Counter({1: 98, 7: 1, 90: 1}))
    {'p50': 1, 'p95': 1, 'p99': 7, 'max': 90}
    """
    if not counts:
        return dict.fromkeys(PERCENTILES, 0)
    values = sorted(counts)
    reached = np.cumsum([counts[value] for value in values])
    return {name: values[int(np.searchsorted(reached, share * reached[-1]))] for name, share in PERCENTILES.items()}


def _tokenizer(options: CheckOptions) -> TextTokenizer:
    """The model's tokenizer with prompts and lengths as training would have them."""
    base = describe_base(str(options.model), options.trust_remote_code, argument="model")
    given = options.model_fields_set
    embedding_config, notices = resolve_embedding_config(
        base,
        query_max_len=options.query_max_len if "query_max_len" in given else None,
        passage_max_len=options.passage_max_len if "passage_max_len" in given else None,
    )
    for line in notices:
        say(line)
    return load_tokenizer(base, embedding_config, trust_remote_code=options.trust_remote_code, argument="model")


def _token_lengths(texts: list[str], side: str, tokenizer: TextTokenizer) -> dict[str, Any]:
    """Percentiles in tokens, prompt and special tokens included, and the share of texts that are cut."""
    role = "query" if side == "query" else "passage"
    limit = getattr(tokenizer.embedding_config, f"{role}_max_len")
    embedding_config = tokenizer.embedding_config
    whole = replace(embedding_config, query_max_len=LONGEST, passage_max_len=LONGEST)
    counts: Counter[int] = Counter()
    try:
        tokenizer.embedding_config, tokenizer.tokenizer.model_max_length = whole, LONGEST
        for start in range(0, len(texts), TEXTS_PER_CALL):
            counts.update(map(len, tokenizer(role, texts[start : start + TEXTS_PER_CALL])))
    finally:
        tokenizer.embedding_config, tokenizer.tokenizer.model_max_length = embedding_config, embedding_config.max_len
    cut = sum(count for length, count in counts.items() if length > limit)
    return {**percentiles(counts), "limit": limit, "cut": cut / max(1, len(texts)), "of_texts": len(texts)}


def _lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as text."""
    shapes = "; ".join(f"{count:,} × {{{shape}}}" for shape, count in report["shapes"].items())
    yield f"data: {report['rows']:,} rows ({shapes or 'none can be read'}) from {', '.join(report['files'])}"
    if report["further_keys"]:
        keys = sorted(report["further_keys"].items(), key=lambda item: -item[1])
        named = [f"{key}{near_miss(key, NEGATIVE_KEYS)} ({rows:,})" for key, rows in keys[:SHOWN_KEYS]]
        yield f"data: keys that training does not use: {', '.join(named)}{', …' if len(keys) > SHOWN_KEYS else ''}"
    if report["readable_rows"]:
        yield "\n" + _lengths_table(report["lengths"])
        yield "\n" + _share_table("negatives", _buckets(report["negatives_per_row"]))
        yield "\n" + _share_table("script", report["scripts"]["rows"])
    if report["scripts"]["mixed_rows"]:
        yield f"{report['scripts']['mixed_rows']:,} rows are of several scripts"
    if report["scripts"]["query_and_positive_differ"]:
        yield f"{report['scripts']['query_and_positive_differ']:,} rows have query and positive in different scripts"
    yield ""
    evaluation = report.get("evaluation")
    if evaluation:
        yield (
            f"evaluation: {evaluation['queries_in_training']:,} of {evaluation['queries']:,} queries of "
            f"{evaluation['source']} are in the training data; of its {evaluation['passages']:,} passages "
            f"{evaluation['passages_in_training']:,} are, which is no fault by itself\n"
        )
    yield from _finding_lines(report["findings"])


def _finding_lines(findings: dict[str, Any]) -> Iterator[str]:
    faults = {kind: item for kind, item in findings.items() if item["level"] != NOTE}
    if findings:
        cells = [[item["level"], f"{item['rows']:,}", _subject(kind, item)] for kind, item in findings.items()]
        yield tabulate(cells, ["", "rows", "what"], disable_numparse=True, colalign=("left", "right", "left")) + "\n"
    for kind, item in findings.items():
        yield f"{_subject(kind, item)}:"
        for first in item["first"]:
            bare = first["text"].startswith(first["place"])
            yield f"  {first['text']}" if bare else f"  {first['place']}: {first['text']}"
        if item["rows"] > len(item["first"]):
            yield f"  … and {item['rows'] - len(item['first']):,} more"
    if not faults:
        yield "clean: no faults"
    else:
        worst = sum(item["level"] != FAULT for item in faults.values())
        yield f"kinds of faults: {len(faults)}" + (f", of which {worst} stop a training" if worst else "")


def _subject(kind: str, item: dict[str, Any]) -> str:
    return f"{'files' if kind == 'file' else 'rows'} that {item['text']}"


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
    """A histogram of few lines: as it is, or in ranges that double.

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
