"""Files and hub data sets -> rows as they stand there. `FORMATS` lists the file formats.

Every row comes with its place (`train.jsonl:7`), so that messages can name it. Only one row or one block of a file is
in memory at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from embedrag.data.formats.documents import rows_of
from embedrag.data.formats.hub import hub_lines, hub_name, hub_rows
from embedrag.data.formats.json_values import json_values
from embedrag.data.formats.lines import RowError
from embedrag.data.formats.tables import Layout, find_layout
from embedrag.data.formats.tables import table_rows as rows_below
from embedrag.data.formats.workbooks import SUFFIXES as WORKBOOKS
from embedrag.data.shapes import KNOWN_KEYS, MISSING, NUMBERED
from embedrag.errors import UserError
from embedrag.runtime.claims import claimed
from embedrag.runtime.compressed import COMPRESSIONS, without_compression
from embedrag.runtime.files import no_file

TRIPLES = ("query", "positive", "negative")  # the columns of MS MARCO's triples, which have no header
# Files that programs write beside rows; they are no rows. In a folder they are passed over.
BESIDE_ROWS = frozenset(
    "dataset_info.json dataset_infos.json dataset_dict.json state.json metrics.json training_config.json "
    "config.json package.json manifest.json".split()
)


@dataclass(frozen=True)
class FileFormat:
    """How files of one format are read.

    Attributes:
        name: what people call it.
        read: (path, names of the columns that are looked for, sheet) -> (place, row) of every row; a row that can't be
            read is a `RowError`.
        lists_as_text: the format has no lists, so a text that is a JSON list of texts stands for the list.
    """

    name: str
    read: Callable[[Path, Collection[str], str], Iterator[tuple[str, Any]]]
    lists_as_text: bool = False


def json_rows(path: Path, names: Collection[str] = (), sheet: str = "") -> Iterator[tuple[str, Any]]:
    """(place, value) of each row of a JSON file: JSONL, values over several lines, an array, or a document of rows.

    Raises:
        UserError: the file can't be read further.
    """
    for line, value in json_values(path):
        rows = rows_of(value)
        if rows is None:
            yield f"{path}:{line}", value
        else:
            for number, row in enumerate(rows, 1):
                yield f"{path}:{number}", row


def layout_of(path: Path, names: Collection[str] = KNOWN_KEYS, sheet: str = "") -> Layout:
    """How a table of rows is stored; the columns with these names are looked for."""

    def fit(header: Sequence[str]) -> int | None:
        return -sum(name in names or bool(NUMBERED.fullmatch(name)) for name in _as_known(header, names)) or None

    return find_layout(path, fit, sheet=sheet, names=TRIPLES if names is KNOWN_KEYS else ())


def table_rows(path: Path, names: Collection[str], sheet: str = "") -> Iterator[tuple[str, Any]]:
    """(place, row) of a table of texts with a header; a cell that a short row does not have is None.

    Raises:
        UserError: the file can't be read further, or two columns have the same name.
    """
    layout = layout_of(path, names, sheet)
    columns = _as_known(layout.header, names)
    doubled = sorted({name for name in columns if name and columns.count(name) > 1})
    if doubled:
        raise UserError(f"{path}:{layout.first}: the column {', '.join(doubled)} occurs twice; rename or join them")
    for line, cells in rows_below(path, layout):
        row: dict[str, str | None] | RowError = dict(zip_longest(columns, cells))
        if len(cells) > len(columns):
            row = RowError(f"more cells than the header has columns ({len(columns)})")
        yield f"{path}:{line}", row


def _as_known(header: Sequence[str], names: Collection[str]) -> list[str]:
    """Names of columns; one that differs from a known name in case or spaces only is that name."""
    known = {name.casefold(): name for name in names}
    return [name if name in names else known.get("_".join(name.casefold().split()), name) for name in header]


def parquet_rows(path: Path, names: Collection[str] = (), sheet: str = "") -> Iterator[tuple[str, Any]]:
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


def arrow_rows(path: Path, names: Collection[str] = (), sheet: str = "") -> Iterator[tuple[str, Any]]:
    """(place, row) of an Arrow file, as `save_to_disk` of datasets writes them.

    Raises:
        UserError: the file can't be read further.
    """
    import pyarrow

    number = 0
    try:
        with pyarrow.memory_map(str(path)) as file:
            for batch in pyarrow.ipc.open_stream(file):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable Arrow file after row {number} ({error})") from None


JSON_LINES = FileFormat("JSONL", json_rows)
# Suffix in lower case -> format. A new format is one entry here. A suffix of `COMPRESSIONS` may follow.
FORMATS = {
    ".jsonl": JSON_LINES,
    ".json": JSON_LINES,
    ".ndjson": JSON_LINES,
    ".csv": FileFormat("CSV", table_rows, lists_as_text=True),
    ".tsv": FileFormat("TSV", table_rows, lists_as_text=True),
    **dict.fromkeys(WORKBOOKS, FileFormat("Excel", table_rows, lists_as_text=True)),
    ".parquet": FileFormat("Parquet", parquet_rows),
    ".arrow": FileFormat("Arrow", arrow_rows),
}
_SHEET = re.compile(rf"(.+(?:{'|'.join(map(re.escape, WORKBOOKS))})):([^/\\:]+)", re.I)


def format_of(path: Path) -> FileFormat | None:
    """The format that a file's suffix stands for, before that of a compression; None for an unknown suffix."""
    return FORMATS.get(without_compression(path).suffix.lower())


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
    if not source.strip():
        raise UserError("is empty; name a file, a folder or a hub id", argument, repr(source))
    path = path_and_sheet(source)[0]
    try:
        if path.is_file():
            if not format_of(path):
                raise UserError(f"unknown file type; accepted are {_accepted()}", argument, source)
            return [path]
        if path.is_dir():
            return _files_in(path, source, argument)
        if path.exists():
            raise UserError(no_file(path), argument, source)
    except OSError as error:
        raise UserError(error.strerror or str(error), argument, source[:200]) from None
    if format_of(path) or source.startswith((".", "~", "/")) or not hub_name(source):
        reason = "no such file; give a path that exists, or a hub id such as owner/name or owner/name:subset@split"
        raise UserError(reason, argument, source)
    return []


def _accepted() -> str:
    return f"{', '.join(FORMATS)}, all text formats also with {', '.join(COMPRESSIONS)}"


def path_and_sheet(source: str) -> tuple[Path, str]:
    """Path and sheet of a source such as `book.xlsx:Sheet 2`; a file that has this whole name is the file."""
    path = Path(source).expanduser()
    found = _SHEET.fullmatch(source)
    try:
        if found and not path.exists():
            return Path(found[1]).expanduser(), found[2]
    except OSError:  # a name that is too long; the caller reports it
        pass
    return path, ""


def _files_in(folder: Path, source: str, argument: str) -> list[Path]:
    beside = BESIDE_ROWS | (claimed(folder) or set())  # also the logs of a training that wrote into this folder
    files = sorted(
        file
        for file in folder.iterdir()
        if format_of(file) and file.name not in beside and not file.name.startswith((".", "~$")) and file.is_file()
    )
    if not files:
        raise UserError(f"no {_accepted()} file in this folder", argument, source)
    seen: dict[Path, Path] = {}
    for file in files:
        other = seen.setdefault(without_compression(file), file)
        if other != file:
            reason = f"{other.name} and {file.name} have the same name except for the compression; remove one of them"
            raise UserError(reason, argument, source)
    return files


def sheet_of(source: str) -> str:
    """The sheet of a workbook that a source names; empty if it names none."""
    return path_and_sheet(source)[1]


def single_sources(source: str, argument: str = "train_dataset") -> list[str]:
    """The files of a source, each as a source of its own; a hub id or a sheet of a workbook is one already.

    Raises:
        UserError: as `local_files`.
    """
    files = local_files(source, argument)
    return list(map(str, files)) if files and not sheet_of(source) else [source]


def raw_rows(
    source: str, stream: bool = False, argument: str = "train_dataset", names: Collection[str] = KNOWN_KEYS
) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row of a source; a row that can't be read is a `RowError`.

    Args:
        source: file, folder or hub id.
        stream: read a hub data set as a stream instead of downloading it whole.
        argument: what the caller calls the source, for messages.
        names: keys that the caller looks for; the header of a table is found by them.

    Raises:
        UserError: the source is not there, or a file can't be read further.
    """
    files = local_files(source, argument)
    if not files:
        yield from hub_rows(source, stream, argument)
    for path in files:
        yield from file_rows(path, names, sheet_of(source))


def file_rows(path: Path, names: Collection[str] = KNOWN_KEYS, sheet: str = "") -> Iterator[tuple[str, Any]]:
    """(place, row) of every row of a file of a known format; a row that can't be read is a `RowError`."""
    kind = FORMATS[without_compression(path).suffix.lower()]
    for place, row in kind.read(path, names, sheet):
        yield place, _with_lists(row) if kind.lists_as_text else row


def reading_lines(sources: Sequence[str]) -> Iterator[str]:
    """Lines for people about files that are not read as their names say: tables of other delimiters, hub splits."""
    for source in sources:
        files = local_files(source)
        sheet = sheet_of(source)
        if not files:
            yield from hub_lines(source)
        for path in files:
            if (kind := format_of(path)) and kind.read is table_rows:
                layout = layout_of(path, sheet=sheet)
                if not layout.is_usual(without_compression(path)):
                    yield f"data: {path}: {layout}"


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
    if not cell or cell in MISSING:
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
