"""Files and hub data sets -> rows as they stand there. `FORMATS` lists the file formats.

Every row comes with its place (`train.jsonl:7`), so that messages can name it. Only one line or one block of a file is
in memory at a time.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from embedrag.errors import UserError

MAX_LINE = 64 << 20  # bytes; a file with a longer line does not hold one row a line


class RowError(Exception):
    """Why a row can't be read; the caller adds file and line."""


@dataclass(frozen=True)
class FileFormat:
    """How files of one format are read.

    Attributes:
        name: what people call it.
        read: path -> (place, row) of every row; a row that can't be read is a `RowError`.
        lists_as_text: the format has no lists, so a text that is a JSON list of texts stands for the list.
    """

    name: str
    read: Callable[[Path], Iterator[tuple[str, Any]]]
    lists_as_text: bool = False


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, numbered from 1, without a byte-order mark; one line is in memory.

    Raises:
        UserError: the file can't be opened, a line is too long, or a line is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(iter(partial(file.readline, MAX_LINE + 1), b""), 1):
                if len(raw) > MAX_LINE:
                    limit = f"{MAX_LINE >> 20} MiB"
                    raise UserError(f"{path}:{number}: a line of more than {limit}; write one row on each line")
                try:
                    yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line); convert it first, "
                        f"for example: iconv -f CP949 -t UTF-8 {path.name} > utf8{path.suffix}"
                    ) from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of each line of a JSONL file; blank lines are skipped.

    Raises:
        UserError: the file can't be read further, or it is one JSON array.
    """
    for number, line in numbered_lines(path):
        text = line.strip()
        if not text:
            continue
        if number == 1 and text.startswith("["):
            raise UserError(
                f"{path}:1: a JSON array; write one object on each line: jq -c '.[]' {path.name} > rows.jsonl"
            )
        try:
            yield f"{path}:{number}", json.loads(text)
        except json.JSONDecodeError as error:
            yield f"{path}:{number}", RowError(f"not JSON ({error.msg}, column {error.colno})")
        except (RecursionError, ValueError):
            yield f"{path}:{number}", RowError("nested too deeply, or has a number that is too long")


def table_rows(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, str | None] | RowError]]:
    """(place, row) of a table of texts with a header; a cell that a short row does not have is None.

    Raises:
        UserError: the file can't be read further, or two columns have the same name.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # Strict, because otherwise one cell would hold the rest of the file after a quote that is never closed.
    reader = csv.reader((line for _, line in numbered_lines(path)), delimiter=delimiter, strict=True)
    try:
        columns = next(reader, [])
        doubled = sorted({name for name in columns if columns.count(name) > 1})
        if doubled:
            raise UserError(f"{path}:1: the column {', '.join(doubled)} occurs twice; rename or join them")
        for cells in filter(None, reader):
            row: dict[str, str | None] | RowError = dict(zip_longest(columns, cells))
            if len(cells) > len(columns):
                row = RowError(f"more cells than the header has columns ({len(columns)})")
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not a readable table ({error}); check the quotes") from None


def parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of a Parquet file.

    Raises:
        UserError: the file can't be read further.
    """
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file after row {number} ({error})") from None


JSON_LINES = FileFormat("JSONL", json_rows)
# Suffix in small letters -> format. A new format is one entry here.
FORMATS = {
    ".jsonl": JSON_LINES,
    ".json": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".csv": FileFormat("CSV", partial(table_rows, delimiter=","), lists_as_text=True),
    ".tsv": FileFormat("TSV", partial(table_rows, delimiter="\t"), lists_as_text=True),
    ".parquet": FileFormat("Parquet", parquet_rows),
}


def format_of(path: Path) -> FileFormat | None:
    """The format that a file's suffix stands for; None for an unknown suffix."""
    return FORMATS.get(path.suffix.lower())


def as_sources(train_dataset: str | Path | Sequence[str | Path]) -> list[str]:
    """One source, or several, as a list of texts.

    >>> as_sources("train.jsonl"), as_sources([Path("a.csv"), "owner/name"])
    (['train.jsonl'], ['a.csv', 'owner/name'])
    """
    return list(map(str, [train_dataset] if isinstance(train_dataset, (str, Path)) else train_dataset))


def local_files(source: str, argument: str = "train_dataset") -> list[Path]:
    """The files of a source: the file itself, or the files of a folder in the order of their names.

    Args:
        source: file, folder or hub id.
        argument: what the caller calls the source, for messages.

    Returns:
        The files; none for a hub id.

    Raises:
        UserError: the source looks like a path and nothing is there, or it holds no file of a known format.
    """
    path = Path(source).expanduser()
    try:
        if path.is_file():
            if not format_of(path):
                raise UserError(f"unknown file type; accepted are {', '.join(FORMATS)}", argument, source)
            return [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and format_of(file))
            if not files:
                raise UserError(f"no {', '.join(FORMATS)} file in this folder", argument, source)
            return files
    except OSError as error:
        raise UserError(error.strerror or str(error), argument, source[:200]) from None
    if format_of(path) or source.count("/") != 1 or source.startswith((".", "~", "/")):
        reason = "no such file; give a path that exists, or a hub id such as owner/name"
        raise UserError(reason, argument, source)
    return []


def raw_rows(source: str, stream: bool = False, argument: str = "train_dataset") -> Iterator[tuple[str, Any]]:
    """(place, row) of every row of a source; a row that can't be read is a `RowError`.

    Args:
        source: file, folder or hub id.
        stream: read a hub data set as a stream instead of downloading it whole.
        argument: what the caller calls the source, for messages.

    Raises:
        UserError: the source is not there, or a file can't be read further.
    """
    files = local_files(source, argument)
    if not files:
        yield from _hub_rows(source, stream, argument)
    for path in files:
        kind = FORMATS[path.suffix.lower()]
        for place, row in kind.read(path):
            yield place, _with_lists(row) if kind.lists_as_text else row


def _with_lists(row: dict[str, str | None] | RowError) -> dict[str, Any] | RowError:
    """A row of a table with lists in place of the texts that stand for them."""
    try:
        return row if isinstance(row, RowError) else {key: _value_of(cell) for key, cell in row.items()}
    except RowError as error:
        return error


def _value_of(cell: str | None) -> Any:
    """What a table cell means: None if it is empty, a list if it is a JSON list of texts, otherwise its text.

    Raises:
        RowError: it is a list as Python or NumPy prints it; training would read the brackets as text.
    """
    if not cell:
        return None
    if not (cell.startswith("[") and cell.endswith("]")):
        return cell
    try:
        items = json.loads(cell)
    except (ValueError, RecursionError):
        if cell.startswith(("['", '["')):
            raise RowError(f'the cell {cell[:40]!r}… is not a JSON list; write it as ["a", "b"]') from None
        return cell
    return items if all(isinstance(item, str) for item in items) else cell


def hub_fingerprint(source: str, argument: str = "train_dataset") -> str:
    """A text that changes when a hub data set changes.

    Raises:
        UserError: the hub does not give the data set.
    """
    from datasets import load_dataset_builder

    with _hub_errors(source, argument):
        return str(load_dataset_builder(source).hash)


@contextmanager
def _hub_errors(source: str, argument: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub client raises many kinds; all mean that the data set can't be read
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"not a file here, and can't be read from the hub ({reason})", argument, source) from None


def _hub_rows(source: str, stream: bool, argument: str) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    with _hub_errors(source, argument):
        data = load_dataset(source, split="train", streaming=stream)
    for number, row in enumerate(data, 1):
        yield f"{source}:{number}", dict(row)
