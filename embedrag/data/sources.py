"""Rows of files and of hub data sets, as they stand there: JSONL, CSV, TSV, Parquet.

Each comes with its place (`train.jsonl:7`), for messages. One line or one block is in memory at a time.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from embedrag.errors import UserError

MAX_LINE = 64 << 20  # bytes; longer ones are no rows, but files of another kind
TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t"}
FILE_SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", *TABLE_SUFFIXES)


class RowError(Exception):
    """Why a row can't be read; the caller adds file and line."""


def local_files(source: str) -> list[Path]:
    """The files behind a source: itself, or those of a folder in order of name; none for a hub id.

    Raises:
        UserError: when it looks like a path and nothing is there.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() not in FILE_SUFFIXES:
            raise UserError(f"--train_dataset {source}: unknown file type; accepted are {', '.join(FILE_SUFFIXES)}")
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and file.suffix.lower() in FILE_SUFFIXES)
        if not files:
            raise UserError(f"--train_dataset {source}: no {', '.join(FILE_SUFFIXES)} file in this folder")
        return files
    if path.suffix.lower() in FILE_SUFFIXES or source.count("/") != 1 or source.startswith((".", "~", "/")):
        raise UserError(
            f"--train_dataset {source}: no such file; give a path that exists, or a hub id such as owner/name"
        )
    return []


def raw_rows(source: str, stream: bool = False) -> Iterator[tuple[str, Any]]:
    """(place, row) of a source, for `parse_row`; the row is a `RowError` where there is none to be parsed.

    Raises:
        UserError: when a file can't be read on.
    """
    files = local_files(source)
    if not files:
        yield from _hub_rows(source, stream)
    for path in files:
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            yield from _parquet_rows(path)
        elif suffix in TABLE_SUFFIXES:
            yield from ((place, _cells(row)) for place, row in table_rows(path))
        else:
            yield from _json_rows(path)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file, without a byte-order mark; one line in memory."""
    with path.open("rb") as file:
        for number, raw in enumerate(iter(partial(file.readline, MAX_LINE + 1), b""), 1):
            if len(raw) > MAX_LINE:
                raise UserError(f"{path}:{number}: a line of more than {MAX_LINE >> 20} MiB; one row a line is needed")
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line); convert it first, "
                    f"for example: iconv -f CP949 -t UTF-8 {path.name} > utf8{path.suffix}"
                ) from None


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in numbered_lines(path):
        text = line.strip()
        if not text:
            continue
        if number == 1 and text.startswith("["):
            raise UserError(
                f"{path}:1: a JSON array; one object a line is needed: jq -c '.[]' {path.name} > rows.jsonl"
            )
        try:
            yield f"{path}:{number}", json.loads(text)
        except json.JSONDecodeError as error:
            yield f"{path}:{number}", RowError(f"not JSON ({error.msg}, column {error.colno})")
        except (RecursionError, ValueError):
            yield f"{path}:{number}", RowError("nested too deeply, or a number too long, to be read")


def table_rows(path: Path) -> Iterator[tuple[str, dict[str, str | None] | RowError]]:
    """(place, row) of a CSV or TSV file with a header; a cell that a short row lacks is None.

    Raises:
        UserError: when the file can't be read on, or a column occurs twice.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    delimiter = TABLE_SUFFIXES[path.suffix.lower()]
    # Strict: else an unclosed quote would swallow the rest of the file into one cell.
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


def _cells(row: dict[str, str | None] | RowError) -> dict[str, Any] | RowError:
    """A row of a table with its cells as they are meant."""
    try:
        return row if isinstance(row, RowError) else {key: _cell(value) for key, value in row.items()}
    except RowError as error:
        return error


def _cell(value: str | None) -> Any:
    """A table cell: a JSON list of texts where it reads as one, nothing where it is empty, else the text.

    Raises:
        RowError: for a list as Python or numpy print it, which would be trained on brackets and all.
    """
    if not value:
        return None
    if not (value.startswith("[") and value.endswith("]")):
        return value
    try:
        items = json.loads(value)
    except (ValueError, RecursionError):
        if value.startswith(("['", '["')):
            raise RowError(f'the cell {value[:40]!r}… is no JSON list; write it as ["a", "b"]') from None
        return value
    return items if all(isinstance(item, str) for item in items) else value


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Parquet file behind row {number} ({error})") from None


def hub_fingerprint(source: str) -> str:
    """Changes when a hub data set changes.

    Raises:
        UserError: when the hub does not give it.
    """
    from datasets import load_dataset_builder

    with _hub_errors(source):
        return str(load_dataset_builder(source).hash)


@contextmanager
def _hub_errors(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub client raises many kinds; all mean that the name can't be had
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"--train_dataset {source}: neither a file here nor a data set that the hub gives ({reason})"
        ) from None


def _hub_rows(source: str, stream: bool) -> Iterator[tuple[str, Any]]:
    from datasets import load_dataset

    with _hub_errors(source):
        data = load_dataset(source, split="train", streaming=stream)
    for number, row in enumerate(data, 1):
        yield f"{source}:{number}", dict(row)
