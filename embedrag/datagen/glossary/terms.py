"""Read terms and acronyms, and split them into two sides that share nothing.

Items that share a text are one group. The text may be a term, its acronym, the words that the acronym stands for, or
a definition. Groups are never split, so no test query asks for something that was trained on. Texts that differ in
spacing or punctuation only are the same text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedrag.data.formats.lines import numbered_lines
from embedrag.data.rows import MAX_ERRORS
from embedrag.datagen.glossary.tables import Table, bare, existing_file, existing_table, plain, read_table
from embedrag.errors import UserError, near_miss, raise_all

JSON = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Item:
    """A term or an acronym.

    Attributes:
        fields: what templates may use. An acronym has no field `term`, because it has templates of its own.
        term: the term itself, or the term that the acronym stands for.
        place: the file and line that it was read from.
    """

    fields: dict[str, str]
    term: str
    place: str

    @property
    def definition(self) -> str:
        """What it means."""
        return self.fields["definition"]

    @property
    def is_acronym(self) -> bool:
        """Whether it is an acronym, not a term."""
        return "acronym" in self.fields

    def texts(self) -> set[str]:
        """Every text that stands for it: its term and its fields, without the category."""
        return {plain(text) for key, text in self.fields.items() if key != "category"} | {plain(self.term)}

    def names(self) -> set[str]:
        """The same texts in the form in which they are compared."""
        return {bare(text) for key, text in self.fields.items() if key != "category"} | {bare(self.term)}

    def aliases(self) -> set[str]:
        """Parts of a name with brackets. Each part may be the name of another item.

        >>> sorted(Item({"term": "발광 다이오드(LED)", "definition": "빛"}, "발광 다이오드(LED)", "").aliases())
        ['led', '발광다이오드']
        """
        parts = [re.fullmatch(r"(.+?)\s*\((.+)\)", text) for text in self.texts() - {plain(self.definition)}]
        return {bare(text) for part in parts if part for text in part.groups()}


def read_items(
    terms: str | None, acronyms: str | None, encoding: str | None = None, columns: Sequence[str] | None = None
) -> tuple[list[Item], list[str]]:
    """Read both lists.

    Args:
        terms: CSV, TSV or JSONL file of term, definition and perhaps category.
        acronyms: JSONL file of acronym, full, definition and perhaps term, category.
        encoding: of a table; None: detected.
        columns: names of the column of terms and the column of definitions in a table; None: found by name.

    Returns:
        Items without repeats, and lines about what was left out.

    Raises:
        UserError: with file and line.
    """
    items: list[Item] = []
    notes: list[str] = []
    if columns and (not terms or Path(terms).suffix.lower() in JSON):
        reason = "is for a table in `terms`; in JSONL the keys are always term, definition, category"
        raise UserError(reason, "columns", columns)
    if terms:
        path, sheet = existing_table(terms, "terms")
        if path.suffix.lower() in JSON:
            for place, row in _objects(path, ("term", "definition"), ("category",)):
                items.append(Item(row, row["term"], place))
        else:
            table: Table = read_table(path, columns, encoding, sheet)
            notes += [f"{path}: {line}" for line in table.report()]
            for pair in table.pairs:
                fields = {"term": pair.term, "definition": pair.definition, "category": pair.category}
                items.append(Item({key: text for key, text in fields.items() if text}, pair.term, pair.place))
    if acronyms:
        path = existing_file(acronyms, "acronyms")
        for place, row in _objects(path, ("acronym", "full", "definition"), ("term", "category")):
            term = row.pop("term", row["full"])
            items.append(Item(row, term, place))
    kept: dict[tuple[tuple[str, str], ...], Item] = {}
    for item in items:
        key = tuple(sorted((name, bare(text)) for name, text in item.fields.items() if name != "category"))
        kept.setdefault(key, item)
    if len(kept) < len(items):
        first = {id(item) for item in kept.values()}
        doubled = [item.place for item in items if id(item) not in first]
        notes.append(f"left out, same as an earlier row: {len(doubled):,} ({', '.join(doubled[:MAX_ERRORS])})")
    return list(kept.values()), notes


def groups_of(items: Sequence[Item]) -> list[int]:
    """The group of each item: the number of the first item that it is connected to through shared names."""
    parent = list(range(len(items)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    owner: dict[str, int] = {}
    for number, item in enumerate(items):
        for name in item.names():
            first, second = sorted((root(number), root(owner.setdefault(name, number))))
            parent[second] = first
    for number, item in enumerate(items):  # a word in brackets that names no item, such as a unit, connects nothing
        for name in item.aliases() & owner.keys():
            first, second = sorted((root(number), root(owner[name])))
            parent[second] = first
    return [root(number) for number in range(len(items))]


def split(items: Sequence[Item], groups: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the items to train on, and of the items to test with.

    Groups stay whole. They are taken in the order of a hash of seed and name.

    Args:
        items: all items.
        groups: from `groups_of`.
        share: of the items that go to the test side, 0 to 1.
        seed: another seed gives another split.

    Raises:
        UserError: when no group fits into the test side, or when nothing would be left to train on.
    """
    members: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    names = {group: min(min(items[number].texts()) for number in numbers) for group, numbers in members.items()}
    order = sorted(members, key=lambda g: (hashlib.sha256(f"{seed}:{names[g]}".encode()).digest(), names[g]))
    room, test = max(1, round(share * len(items))) if share else 0, set[int]()
    for group in order:
        if len(members[group]) <= room and len(test) + 1 < len(members):
            test.add(group)
            room -= len(members[group])
    if share and not test:
        raise UserError(
            f"{len(items)} terms and acronyms in {len(members)} groups that share texts can't be split; give more "
            "terms, a larger share, or 0",
            "test_split",
            share,
        )
    numbers = range(len(items))
    return [n for n in numbers if groups[n] not in test], [n for n in numbers if groups[n] in test]


def _objects(path: Path, needed: Sequence[str], allowed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, known fields) of each line of a JSONL file; raises UserError with all problems together."""
    problems: list[str] = []
    count = 0
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        count += 1
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{place}: not JSON ({getattr(error, 'msg', error)})")
            continue
        if problem := _wrong(row, needed, allowed):
            problems.append(f"{place}: {problem}")
        elif not problems:
            texts = {key: " ".join(str(row[key]).split()) for key in (*needed, *allowed) if row.get(key)}
            yield place, {key: text for key, text in texts.items() if text}
        if len(problems) == MAX_ERRORS:
            problems.append("… the rows after it were not checked")
            break
    if not count:
        problems.append(f"{path}: no rows; one object {{{', '.join(needed)}}} is expected on each line")
    raise_all(map(UserError, problems))


def _wrong(row: Any, needed: Sequence[str], allowed: Sequence[str]) -> str:
    """What is wrong with a row; empty when nothing is."""
    if not isinstance(row, dict):
        return f"must be an object {{{', '.join(needed)}}}"
    for key in needed:
        if key not in row:
            return f"no key {key}; its keys are {', '.join(row) or '(none)'}{near_miss(key, row)}"
    for key in (*needed, *allowed):
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            return f"{key} must be a text"
        if key in needed and not str(value or "").strip():
            return f"{key} is blank"
        if value and any("\ud800" <= letter <= "\udfff" for letter in value):
            return f"{key} holds half of a surrogate pair, which is not text; remove it"
    return ""
