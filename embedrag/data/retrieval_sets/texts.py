"""Texts with ids: the passages of a corpus, or queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedrag.data.formats.lines import RowError, numbered_lines
from embedrag.data.sources import format_of
from embedrag.data.text import titled, whole_text
from embedrag.errors import UserError, raise_all

ID_KEYS = (
    "_id", "id", "docid", "doc_id", "doc-id", "docno", "pid", "passage_id", "corpus-id", "corpus_id", "query-id",
    "query_id", "qid",
)  # fmt: skip
TEXT_KEYS = ("text", "contents", "content", "body", "passage", "query", "question")
SHOWN = 10  # problems in a message
EXAMPLES = 3  # in a line
CONVERT = "ir_datasets export SET docs --format jsonl (or queries), and put the file into the folder"


@dataclass
class Texts:
    """Texts by their ids, and what is unusual about them.

    Attributes:
        texts: id -> text, in the order of the files. A passage begins with its title.
        repeated: ids that are repeated with the same text.
        empty: ids of empty texts.
    """

    texts: dict[str, str] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def read_texts_by_id(files: Sequence[Path]) -> Texts:
    """The texts of one or several files.

    Raises:
        UserError: with the first problems that were found, each with file and line.
    """
    found = Texts()
    problems: list[UserError] = []
    further = 0
    for file in files:
        before = len(found.texts)
        for place, row in _rows(file):
            try:
                _add(found, place, row)
            except UserError as error:
                further += len(problems) >= SHOWN
                problems += [error] if len(problems) < SHOWN else []
        if len(found.texts) == before and not problems and not found.repeated:
            problems.append(UserError(f"{file}: is empty"))
    if further:
        problems.append(UserError(f"… and {further:,} more problems"))
    raise_all(problems)
    return found


def passages(files: Sequence[Path], titles: bool = True) -> Iterator[str]:
    """The passages of a corpus, in the order of its files, without a check of their ids.

    Args:
        files: of the corpus.
        titles: put a passage's title before its text.

    Raises:
        UserError: naming file and line.
    """
    for file in files:
        for place, row in _rows(file):
            if isinstance(row, RowError):
                raise UserError(f"{place}: {row}")
            yield _text(row, place, titles)


def as_id(value: Any) -> str | None:
    """An id as text; None for a value that is no id. Whole numbers lose the `.0` that spreadsheets add.

    >>> as_id("q1"), as_id(7), as_id(7.0), as_id(None)
    ('q1', '7', '7', None)
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "" else None


def examples(names: Sequence[str]) -> str:
    """The first names, for a line.

    >>> examples(["a", "b", "c", "d"])
    "'a', 'b', 'c' …"
    """
    return ", ".join(map(repr, names[:EXAMPLES])) + " …" * (len(names) > EXAMPLES)


def _add(found: Texts, place: str, row: Any) -> None:
    if isinstance(row, RowError):
        raise UserError(f"{place}: {row}")
    identity = next((as_id(row[key]) for key in ID_KEYS if key in row), None) if isinstance(row, dict) else None
    if identity is None:
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise UserError(f'{place}: no id: it must have an "_id" that is a text or a number (there is {keys})')
    identity, text = whole_text(identity, place), _text(row, place)
    if identity not in found.texts:
        found.texts[identity] = text
        if not text.strip():
            found.empty.append(identity)
    elif found.texts[identity] == text:
        found.repeated.append(identity)
    else:
        raise UserError(f"{place}: the _id {identity!r} was there before with another text; rename one of them")


def _text(row: Any, place: str, titles: bool = True) -> str:
    """The text of a row, after its title if `titles` says so; a row with the key and no text has an empty one."""
    key = next((key for key in TEXT_KEYS if key in row), None) if isinstance(row, dict) else None
    title = row.get("title") if isinstance(row, dict) else None
    value = row[key] if key else None
    if isinstance(value, (dict, list, bool)) or (key is None and not isinstance(title, str)):
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise UserError(f'{place}: no text: it must have a "text" (there is {keys})')
    return whole_text(titled(title if titles else None, "" if value is None else str(value)), place)


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of a file: rows with keys, or lines of an id and a text between tabs (MS MARCO, MIRACL)."""
    kind = format_of(file)
    if kind and kind.name != "TSV":
        yield from kind.read(file, {*ID_KEYS, *TEXT_KEYS, "title"}, "")
        return
    header: list[str] | None = None
    for number, line in numbered_lines(file):
        text, place = line.rstrip("\r\n"), f"{file}:{number}"
        if not text.strip():
            continue
        if number == 1 and text.lstrip().casefold().startswith(("<doc", "<top", "<?xml")):
            raise UserError(f"{place}: a TREC file in SGML or XML; convert it: {CONVERT}")
        cells = text.split("\t")
        if number == 1:
            names = [cell.strip().strip('"').casefold() for cell in cells]
            if set(names) & set(ID_KEYS) and set(names) & {*TEXT_KEYS, "title"}:
                header = names
                continue
        if header is None and len(cells) != 2:
            reason = f"{len(cells)} columns between tabs, without a header; write one, such as id, title, text"
            yield place, RowError(reason)
            continue
        yield place, dict(zip(header or ("id", "text"), cells, strict=False))
