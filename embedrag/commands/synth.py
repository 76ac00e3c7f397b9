"""`embedrag synth`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, model_validator

from embedrag.options.command import Command
from embedrag.options.field import Options, as_list, option


class SynthOptions(Options):
    """Options of `embedrag synth`."""

    terms: str | None = option(
        None, "CSV, TSV or JSONL file of term, definition and perhaps category", group="synth", min_length=1
    )
    acronyms: str | None = option(
        None, "JSONL file of acronym, full, definition and perhaps term, category", group="synth", min_length=1
    )
    templates: str | None = option(
        None,
        "JSON file of query templates, or ko, zh, en; left out: the one for the language of the terms",
        group="synth",
        min_length=1,
    )
    pairs_per_term: int = option(6, "rows of a term", group="synth", ge=0)
    pairs_per_acronym: int = option(8, "rows of an acronym", group="synth", ge=0)
    test_split: float = option(
        0.2, "share of the terms and acronyms that only the test set has; 0: no test set", group="synth", ge=0, lt=1
    )
    seed: int = option(42, "seed of the split and of the draws", group="synth", ge=0, le=2**32 - 1)
    output_dir: str = option(..., "folder for train.jsonl and test.jsonl", group="synth", min_length=1)
    columns: Annotated[list[str] | None, BeforeValidator(as_list)] = option(
        None,
        "names of the two columns of a CSV or TSV file, term first; left out: found by name in several languages",
        group="synth",
        min_length=2,
        max_length=2,
    )
    encoding: str | None = option(None, "encoding of a CSV or TSV file; left out: detected", group="synth")
    llm_base_url: str | None = option(
        None, "OpenAI-compatible server that writes further queries (key: $OPENAI_API_KEY)", group="synth"
    )
    llm_model: str | None = option(None, "name of the model on that server", group="synth")
    llm_queries: int = option(4, "queries that it writes for a definition", group="synth", ge=1)
    llm_timeout: float = option(60.0, "seconds that one answer may take", group="synth", gt=0)
    overwrite: bool = option(False, "replace train.jsonl and test.jsonl", group="synth")

    @model_validator(mode="after")
    def _agree(self) -> SynthOptions:
        problems = []
        if not self.terms and not self.acronyms:
            problems.append("name --terms, --acronyms or both")
        if bool(self.llm_base_url) != bool(self.llm_model):
            problems.append("--llm_base_url and --llm_model go together; name both or none")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def run(options: SynthOptions) -> int:
    """Do what the options say."""
    from embedrag.datagen.glossary.synth import run

    return run(options)


COMMAND = Command(SynthOptions, run, "make training and test rows from terms and acronyms")
