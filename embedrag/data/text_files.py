"""Files of texts: one text on each line, JSONL, or a column of a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedrag.data.formats.lines import RowError, numbered_lines
from embedrag.data.retrieval_dataset import folder_and_split
from embedrag.data.retrieval_sets.layout import CORPUS, corpus_files, set_files
from embedrag.data.retrieval_sets.texts import passages
from embedrag.data.sources import format_of
from embedrag.data.text import titled, whole_text
from embedrag.errors import UserError
from embedrag.runtime.compressed import without_compression
from embedrag.runtime.files import no_file


def read_texts(path: Path, field: str, titles: bool = False) -> Iterator[str]:
    """The texts of a file, in order.

    Args:
        path: a file of a format in `embedrag.data.sources.FORMATS`; any other file is read as one text on each line.
        field: key or column of the text. A JSONL line may also be the text itself.
        titles: put a row's `title` before its text.

    Raises:
        UserError: naming file and line.
    """
    kind = format_of(path)
    if not kind:
        for _, line in numbered_lines(path):
            yield line.rstrip("\r\n")
        return
    for place, row in kind.read(path, {field, "title"}, ""):
        if isinstance(row, RowError):
            raise UserError(f"{place}: {row}")
        yield _text(row, field, place, titles)


def read_corpus(source: str, field: str, titles: bool = True, argument: str = "corpus") -> Iterator[str]:
    """The passages of a file, or of the corpus of a retrieval set in a folder.

    Args:
        source: the file or folder; `folder@split` is the corpus of one split.
        field: key or column of the text in a file.
        titles: in a .jsonl file, put a passage's title before its text.
        argument: what the caller calls the source, for messages.

    Raises:
        UserError: naming file and line; or there is no such file.
    """
    name, split = folder_and_split(source)
    path = Path(name).expanduser()
    if path.is_dir():
        files = corpus_files(path) if split is None else set_files(path, split, argument).corpus
        if not files:
            raise UserError(f"no corpus in this folder, such as {CORPUS}", argument, path)
        yield from passages(files, titles)
        return
    if reason := no_file(path):
        raise UserError(reason, argument, path)
    yield from read_texts(
        path, field, titles=titles and without_compression(path).suffix.lower() == Path(CORPUS).suffix
    )


def _text(row: Any, field: str, place: str, titles: bool) -> str:
    value = row.get(field) if isinstance(row, dict) else row
    if isinstance(value, list):
        raise UserError(f"{place}: a list under {field!r}, but one text is needed; write a line for each text")
    if not isinstance(value, str):
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{place}: no text under {field!r} (there is {keys}); name the right key with `field`")
    text = titled(row.get("title"), value) if titles and isinstance(row, dict) else value
    return whole_text(text, place)
