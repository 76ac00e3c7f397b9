"""A glossary, or any two columns, as training rows with hard negatives.

All definitions of a term are positives of one row. Its negatives are the definitions of other terms that lie nearest
to it, for a model learns most from those. A definition that belongs to the term too, wherever it stands, is none; nor
is one of a synonym: a term that shares a name or a definition with it, or with another synonym. Negatives of a column
`negative` come first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedrag.commands.compose import ComposeOptions
from embedrag.datagen.glossary.negatives import by_model, by_words, different
from embedrag.datagen.glossary.tables import Pair, bare, read_table
from embedrag.datagen.glossary.terms import Item, groups_of
from embedrag.errors import flag_named
from embedrag.runtime.console import say
from embedrag.runtime.files import check_targets, write_lines


def run(options: ComposeOptions) -> int:
    """`embedrag compose`: write training rows from a table."""
    source, output = Path(options.input).expanduser(), Path(options.output).expanduser()
    check_targets({"--output": options.output}, [options.input], options.overwrite)
    table = read_table(source, options.columns, options.encoding)
    for line in table.report():
        say(f"{source}: {line}")
    with flag_named("--model", "--model_name_or_path"):
        rows = list(compose(table.pairs, options))
    write_lines(output, rows)
    bare_rows = sum(not row["neg"] for row in rows)
    short = sum(len(row["neg"]) < options.hard_k for row in rows)
    say(
        f"composed: {len(rows):,} rows of {len(table.pairs):,} pairs into {output}; "
        f"{short:,} have fewer than {options.hard_k} negatives, {bare_rows:,} have none"
    )
    return 0


def compose(pairs: list[Pair], options: ComposeOptions) -> Iterator[dict[str, Any]]:
    """Rows `{"query", "pos", "neg", "term"}`, one a term, in order of first appearance."""
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
    marks = [bare(text) for text in passages]
    depth = min(len(passages), options.hard_k + max(map(len, synonyms.values())))
    if options.model:
        found = by_model(terms, passages, depth, options.model, options.device, options.trust_remote_code)
    else:
        # A term's few words often occur nowhere else; together with what it means they do.
        found = by_words([" ".join([term, *own]) for term, own in zip(terms, answers, strict=True)], passages, depth)
    for (name, row), term, own, numbers in zip(rows.items(), terms, answers, found, strict=True):
        barred = synonyms[group_of[name]]
        given = different([pair.negative for pair in row if pair.negative and bare(pair.negative) not in barred])
        near = [passages[number] for number in numbers if marks[number] not in barred]
        kept = different([*given, *near])[: max(options.hard_k, len(given))]
        yield {"query": term, "pos": own, "neg": kept, "term": term}
