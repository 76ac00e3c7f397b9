"""`embedrag synth`: training and test rows from terms and acronyms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator

from embedrag.options.command import Command
from embedrag.options.field import Options, as_list, option
from embedrag.runtime.console import say

if TYPE_CHECKING:
    from embedrag.datagen.glossary.synth import SynthSide

SHOWN = 10  # terms that are named; the others are counted


class SynthOptions(Options):
    """Options of `embedrag synth`."""

    terms: str | None = option(
        None, "CSV, TSV or JSONL file with term, definition and, if you like, category", group="synth", min_length=1
    )
    acronyms: str | None = option(
        None,
        "JSONL file with acronym, full, definition and, if you like, term and category",
        group="synth",
        min_length=1,
    )
    templates: str | None = option(
        None,
        "JSON file of query templates, or ko, zh, en; default: those for the language of the terms",
        group="synth",
        min_length=1,
    )
    pairs_per_term: int = option(6, "rows that are made for each term", group="synth", ge=0)
    pairs_per_acronym: int = option(8, "rows that are made for each acronym", group="synth", ge=0)
    test_split: float = option(
        0.2,
        "share of the terms and acronyms that go to the test set; 0: there is no test set",
        group="synth",
        ge=0,
        lt=1,
    )
    seed: int = option(42, "seed of the split and of the draws", group="synth", ge=0, le=2**32 - 1)
    output_dir: str = option(..., "folder for train.jsonl and test.jsonl", group="synth", min_length=1)
    columns: Annotated[list[str] | None, BeforeValidator(as_list)] = option(
        None,
        "names of the two columns of a table, the term first, or their numbers if there is no header; default: they "
        "are found by name, in several languages",
        group="synth",
        min_length=2,
        max_length=2,
    )
    encoding: str | None = option(None, "encoding of a CSV or TSV file; default: it is detected", group="synth")
    llm_base_url: str | None = option(
        None, "OpenAI-compatible server that writes further queries (key: $OPENAI_API_KEY)", group="synth"
    )
    llm_model: str | None = option(None, "name of the model on that server", group="synth")
    llm_queries: int = option(4, "queries that it writes for each definition", group="synth", ge=1)
    llm_timeout: float = option(60.0, "seconds that one answer may take", group="synth", gt=0)
    overwrite: bool = option(False, "replace train.jsonl and test.jsonl", group="synth")


def run(options: SynthOptions) -> int:
    """Write the rows and print what each side has."""
    from embedrag.datagen.glossary.synth import synth

    result = synth(**options.model_dump())
    for name, side in (("train", result.train), ("test", result.test)):
        if side:
            _print_side(name, side)
    if result.language_model:
        did = result.language_model
        say(
            f"language model: {did.requests:,} requests; {did.dropped:,} queries dropped as repeats, as copies of the "
            f"definition or as empty; {did.ambiguous:,} more dropped because they fit several things; "
            f"{did.unanswered:,} definitions without a readable answer"
        )
    say(f"rows are in {result.output_dir}")
    return 0


def _print_side(name: str, side: SynthSide) -> None:
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(side.kinds.items()))
    say(f"{name}: {side.rows:,} rows of {side.terms:,} terms and {side.acronyms:,} acronyms ({kinds})")
    if side.short:
        shown = ", ".join(side.short[:SHOWN]) + (" …" if len(side.short) > SHOWN else "")
        say(f"{name}: {len(side.short):,} have fewer rows than asked for, because their templates are used up: {shown}")
    if side.without_negative:
        say(
            f"{name}: {side.without_negative:,} rows have no negative, because this side has no other text that could "
            "be one"
        )


COMMAND = Command(SynthOptions, run, "make training and test rows from terms and acronyms")
