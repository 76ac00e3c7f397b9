"""Terms and acronyms as they are read, and their split into two sides that share nothing.

Whatever shares a text (a term, its acronym, the words that this stands for, a definition) is one group, and groups
are never split: no test query asks for something that was trained on. Spacing and punctuation make no other text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedrag.data.rows import MAX_ERRORS
from embedrag.data.sources import numbered_lines
from embedrag.datagen.glossary.tables import Table, bare, plain, read_table
from embedrag.errors import UserError, near_miss

JSON = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Item:
    """A term or an acronym.

    Attributes:
        fields: what templates may use; never `term` for an acronym, whose templates are its own.
        term: the term that it is, or stands for.
        place: where it was read.
    """

    fields: dict[str, str]
    term: str
    place: str

    @property
    def definition(self) -> str:
        """What it means."""
        return self.fields["definition"]

    def texts(self) -> set[str]:
        """Every text that stands for it: its fields but the category, and its term."""
        return {plain(text) for key, text in self.fields.items() if key != "category"} | {plain(self.term)}

    def names(self) -> set[str]:
        """Those texts as they are compared."""
        return {bare(text) for key, text in self.fields.items() if key != "category"} | {bare(self.term)}

    def aliases(self) -> set[str]:
        """What may be another's name: the parts of a name with brackets.

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
        encoding: of a table; left out: detected.
        columns: of a table, those of terms and of definitions; left out: found by name.

    Returns:
        Items without repeats, and lines about what was left out.

    Raises:
        UserError: naming file and line.
    """
    items: list[Item] = []
    notes: list[str] = []
    if columns and (not terms or Path(terms).suffix.lower() in JSON):
        raise UserError("--columns: names columns of a table in --terms; keys of JSONL are term, definition, category")
    if terms:
        path = _file("--terms", terms)
        if path.suffix.lower() in JSON:
            for place, row in _objects(path, ("term", "definition"), ("category",)):
                items.append(Item(row, row["term"], place))
        else:
            table: Table = read_table(path, columns, encoding)
            notes += [f"{path}: {line}" for line in table.report()]
            for pair in table.pairs:
                fields = {"term": pair.term, "definition": pair.definition, "category": pair.category}
                items.append(Item({key: text for key, text in fields.items() if text}, pair.term, pair.place))
    if acronyms:
        for place, row in _objects(
            _file("--acronyms", acronyms), ("acronym", "full", "definition"), ("term", "category")
        ):
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
    """Number of the group of each item: that of the first item it is bound to through shared names."""
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
    for number, item in enumerate(items):  # a word in brackets that nobody is called by, such as a unit, binds nothing
        for name in item.aliases() & owner.keys():
            first, second = sorted((root(number), root(owner[name])))
            parent[second] = first
    return [root(number) for number in range(len(items))]


def split(items: Sequence[Item], groups: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the items to train on and of those to test with; whole groups, in an order fixed by seed and name.

    Raises:
        UserError: when no group fits into the test set, or nothing is left to train on.
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
            f"--test_split {share}: {len(items)} terms and acronyms that hang together in {len(members)} groups "
            "can't be split; give more terms, a larger share, or 0"
        )
    numbers = range(len(items))
    return [n for n in numbers if groups[n] not in test], [n for n in numbers if groups[n] in test]


def _file(flag: str, name: str) -> Path:
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"{flag} {name}: no such file")
    return path


def _objects(path: Path, needed: Sequence[str], allowed: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, known fields) of each line of a JSONL file; all problems together."""
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
            problems.append("… further rows were not looked at")
            break
    if not count:
        problems.append(f"{path}: no rows; one object {{{', '.join(needed)}}} a line is expected")
    if problems:
        raise UserError("\n".join(problems))


def _wrong(row: Any, needed: Sequence[str], allowed: Sequence[str]) -> str:
    if not isinstance(row, dict):
        return f"must be an object {{{', '.join(needed)}}}"
    for key in needed:
        if key not in row:
            return f"no {key} among its keys {', '.join(row) or '(none)'}{near_miss(key, row)}"
    for key in (*needed, *allowed):
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            return f"{key} must be a text"
        if key in needed and not str(value or "").strip():
            return f"{key} is blank"
        if value and any("\ud800" <= letter <= "\udfff" for letter in value):
            return f"{key} holds half of a surrogate pair, which is no text; remove it"
    return ""
