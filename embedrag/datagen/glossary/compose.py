"""Training rows with hard negatives from a glossary, or from any table of two columns.

All definitions of a term are positives of one row. The negatives of a row are the definitions of other terms that are
nearest to the term, because a model learns most from those. A definition that also belongs to the term is never its
negative. A definition of a synonym is not a negative either; a synonym is a term that shares a name or a definition
with the term, or with another synonym of it. Texts of a column `negative` come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedrag.datagen.glossary.negatives import by_model, by_words, different
from embedrag.datagen.glossary.tables import Pair, bare, existing_table, read_table
from embedrag.datagen.glossary.terms import Item, groups_of
from embedrag.models.encoder import TextEncoder
from embedrag.models.load import load_model
from embedrag.runtime.console import say
from embedrag.runtime.files import check_targets, write_lines


@dataclass(frozen=True)
class ComposeResult:
    """What `compose` wrote.

    Attributes:
        output: the JSONL file.
        rows: how many rows it has, one for each term.
        pairs: how many pairs of the table they are made of.
        short: rows that have fewer negatives than asked for.
        without_negatives: rows that have none.
    """

    output: Path
    rows: int
    pairs: int
    short: int
    without_negatives: int


def compose(
    input: str | Path,
    output: str | Path,
    *,
    hard_k: int = 3,
    columns: Sequence[str] | None = None,
    encoding: str | None = None,
    model: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> ComposeResult:
    """Write training rows from a table of terms and definitions, or of anchors and positives.

    Args:
        input: CSV or TSV file with a header, also compressed, or a workbook; `book.xlsx:Sheet` names a sheet.
        output: JSONL file to write.
        hard_k: hard negatives of a row.
        columns: names of the two columns, the term first, or their numbers from 1; None: found by name.
        encoding: of the table; None: detected.
        model: model or adapter folder, or hub id, that finds the negatives; None: BM25 finds them.
        device: where the model computes: `auto`, `cuda`, `mps` or `cpu`.
        overwrite: replace the output if it exists.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        UserError: when the table, the model or an argument is wrong.
        RunError: when the file can't be written.
    """
    target = Path(output).expanduser()
    check_targets({"output": str(output)}, [str(input)], overwrite)
    source, sheet = existing_table(str(input), "input")
    table = read_table(source, columns, encoding, sheet)
    for line in table.report():
        say(f"{source}: {line}")
    encoder = load_model(model, device, trust_remote_code=trust_remote_code) if model else None
    rows = list(_rows(table.pairs, hard_k, encoder))
    write_lines(target, rows)
    return ComposeResult(
        output=target,
        rows=len(rows),
        pairs=len(table.pairs),
        short=sum(len(row["neg"]) < hard_k for row in rows),
        without_negatives=sum(not row["neg"] for row in rows),
    )


def _rows(pairs: Sequence[Pair], hard_k: int, encoder: TextEncoder | None) -> Iterator[dict[str, Any]]:
    """Rows `{"query", "pos", "neg", "term"}`, one for each term, in the order in which the terms first appear."""
    items = [Item({"term": pair.term, "definition": pair.definition}, pair.term, pair.place) for pair in pairs]
    rows: dict[str, list[Pair]] = {}
    synonyms: dict[int, set[str]] = {}
    group_of: dict[str, int] = {}
    for pair, group in zip(pairs, groups_of(items), strict=True):
        rows.setdefault(bare(pair.term), []).append(pair)
        synonyms.setdefault(group, set()).update((bare(pair.term), bare(pair.definition)))
        group_of[bare(pair.term)] = group
    terms = [row[0].term for row in rows.values()]
    answers = [different([pair.definition for pair in row]) for row in rows.values()]
    passages = different([text for texts in answers for text in texts])
    keys = [bare(text) for text in passages]
    depth = min(len(passages), hard_k + max(map(len, synonyms.values())))
    if encoder:
        found = by_model(terms, passages, depth, encoder)
    else:
        # The few words of a term often occur nowhere else; those of its definitions do.
        found = by_words([" ".join([term, *own]) for term, own in zip(terms, answers, strict=True)], passages, depth)
    for (name, row), term, own, numbers in zip(rows.items(), terms, answers, found, strict=True):
        barred = synonyms[group_of[name]]
        given = different([pair.negative for pair in row if pair.negative and bare(pair.negative) not in barred])
        near = [passages[number] for number in numbers if keys[number] not in barred]
        kept = different([*given, *near])[: max(hard_k, len(given))]
        yield {"query": term, "pos": own, "neg": kept, "term": term}
