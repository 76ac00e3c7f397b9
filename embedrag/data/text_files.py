"""Files of texts: one a line, JSONL, or a column of a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedrag.data.retrieval_dataset import CORPUS
from embedrag.data.rows import titled, whole_text
from embedrag.data.sources import TABLE_SUFFIXES, RowError, numbered_lines, table_rows
from embedrag.errors import UserError

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")


def read_texts(path: Path, field: str, titles: bool = False) -> Iterator[str]:
    """Texts of a file, in order.

    Args:
        path: JSONL (objects, or bare texts), CSV or TSV with a header, or any other file as one text a line.
        field: key or column of the text.
        titles: a `title` stands before its text.

    Raises:
        UserError: naming file and line.
    """
    suffix = path.suffix.lower()
    if suffix in TABLE_SUFFIXES:
        for place, row in table_rows(path):
            if isinstance(row, RowError):
                raise UserError(f"{place}: {row}")
            yield _field(row, field, place, titles)
        return
    for number, line in numbered_lines(path):
        if suffix not in JSON_SUFFIXES:
            yield line.rstrip("\r\n")
        elif line.strip():
            yield _field(_parse(line, f"{path}:{number}"), field, f"{path}:{number}", titles)


def _parse(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error})") from None


def _field(row: Any, field: str, place: str, titles: bool) -> str:
    value = row.get(field) if isinstance(row, dict) else row
    if not isinstance(value, str):
        if isinstance(value, list):
            raise UserError(f"{place}: a list, where one text is wanted ({field!r}); write a line for each text")
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{place}: no text under {field!r} (there is {keys}); name the right key with --field")
    text = titled(row.get("title"), value) if titles and isinstance(row, dict) else value
    return whole_text(text, place)


def read_corpus(source: str, field: str, titles: bool = True) -> Iterator[str]:
    """Passages of a file, or of corpus.jsonl in a folder.

    Args:
        source: the file or folder.
        field: key or column of the text.
        titles: in JSONL, a title stands before its text.

    Raises:
        UserError: naming file and line.
    """
    path = Path(source).expanduser()
    path = path / CORPUS if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"--corpus {path}: no such file")
    yield from read_texts(path, field, titles=titles and path.suffix.lower() == ".jsonl")
