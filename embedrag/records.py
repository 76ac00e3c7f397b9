"""Training rows as people write them <-> `Record(query, pos, neg)`.

Five JSONL shapes are read by their keys, and may be mixed; CSV, TSV, Parquet and hub data sets use the same names as
columns. Everything is checked before anything expensive happens, and an error names the file and the line.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from embedrag.errors import UserError, near_miss

QUERY_KEYS = ("query", "anchor")
POSITIVE_KEYS = ("pos", "positive", "pos_doc")
NEGATIVE_KEYS = ("neg", "negative", "hard_negatives")
SCORES_KEY = "teacher_scores"
ACCEPTED = (
    '{"query", "pos": […], "neg": […]}, {"anchor", "positive", "hard_negatives": […]}, {"anchor", "positive"}, '
    '{"query", "pos_doc"} or {"query", "positive", "negative"}'
)
MAX_ERRORS = 20
MAX_LINE = 64 << 20  # bytes; longer ones are no rows, but files of another kind
TABLE_SUFFIXES = {".csv": ",", ".tsv": "\t"}
FILE_SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", *TABLE_SUFFIXES)


@dataclass(frozen=True)
class Record:
    """One training row.

    Attributes:
        query: the text that is searched with.
        pos: texts that answer it, at least one.
        neg: texts that do not, possibly none; never one of `pos`.
        shape: the keys it was read from, for the report.
        extra: the row's other keys, kept as they are.
        dropped: how many negatives were left out (blank, doubled, or equal to a positive).
        source: number of the data set it came from.
        scores: a teacher's score of each of `pos` and then `neg` (key `teacher_scores`), or none.
    """

    query: str
    pos: tuple[str, ...]
    neg: tuple[str, ...]
    shape: str
    extra: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0
    source: int = 0
    scores: tuple[float, ...] = ()


class RowError(Exception):
    """Why a row can't be read; the caller adds file and line."""


def parse_row(row: Any) -> Record:
    """Read one row of any accepted shape.

    Raises:
        RowError: with the reason.

    >>> record = parse_row({"anchor": "a", "positive": "b", "hard_negatives": ["c", "b", ""]})
    >>> record.pos, record.neg, record.dropped
    (('b',), ('c',), 2)
    """
    if not isinstance(row, dict):
        raise RowError(f"must be an object {{…}}, not {_kind(row)}")
    query_key = _only_key(row, QUERY_KEYS, "query")
    positive_key = _only_key(row, POSITIVE_KEYS, "positive")
    negative_key = _only_key(row, NEGATIVE_KEYS, None)
    query = _text(row[query_key], query_key)
    positives = _texts(row[positive_key], positive_key)
    pos = tuple(dict.fromkeys(positives))
    if not pos:
        raise RowError(f"{positive_key} is empty; every row needs at least one positive text")
    given = (
        _texts(row[negative_key], negative_key, blank_allowed=True)
        if negative_key and row[negative_key] is not None
        else []
    )
    neg = tuple(text for text in dict.fromkeys(given) if text.strip() and text not in pos)
    used = [key for key in (query_key, positive_key, negative_key) if key]
    extra = {key: value for key, value in row.items() if key not in (*used, SCORES_KEY)}
    scores = _scores(row.get(SCORES_KEY), [*positives, *given])
    kept = tuple(scores[text] for text in (*pos, *neg)) if scores else ()
    return Record(query, pos, neg, ", ".join(used), extra, dropped=len(given) - len(neg), scores=kept)


def read_records(sources: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """Read all rows of all sources in order.

    Args:
        sources: files, folders of files, or hub data set ids.

    Yields:
        (place such as `train.jsonl:7`, record).

    Raises:
        UserError: with up to `MAX_ERRORS` bad rows, each with its place; or when nothing was found.
    """
    problems: list[str] = []
    count = 0
    rows = ((number, *pair) for number, source in enumerate(sources) for pair in raw_rows(source))
    while len(problems) < MAX_ERRORS:
        try:
            number, place, row = next(rows)
            count += 1
            record = _parsed(row, number)
        except StopIteration:
            break
        except RowError as error:
            problems.append(f"{place}: {error}")
            continue
        except UserError as error:  # the file can't be read on
            problems.append(str(error))
            break
        yield place, record
    if len(problems) == MAX_ERRORS:
        problems.append("… further rows were not looked at")
    if problems:
        raise UserError("\n".join(problems))
    if not count:
        raise UserError(f"{', '.join(sources)}: no rows; one JSON object a line is expected: {ACCEPTED}")


def endless_records(source: str, number: int = 0) -> Iterator[tuple[str, Record]]:
    """The rows of a source as they come, from its beginning again when it ends.

    Args:
        source: a file, a folder of files, or a hub data set id, which is read as a stream.
        number: kept in the records.

    Raises:
        UserError: at the first bad row; when there is no row.
    """
    while True:
        empty = True
        for place, row in raw_rows(source, stream=True):
            try:
                yield place, _parsed(row, number)
            except RowError as error:
                raise UserError(f"{place}: {error}") from None
            empty = False
        if empty:
            raise UserError(f"{source}: no rows; one JSON object a line is expected: {ACCEPTED}")


def _parsed(row: Any, number: int) -> Record:
    if isinstance(row, RowError):
        raise row
    record = parse_row(row)
    return replace(record, source=number) if number else record


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
            yield from _table_rows(path, TABLE_SUFFIXES[suffix])
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


def titled(title: Any, text: str) -> str:
    """A text behind its title, as BEIR's corpora are encoded.

    >>> titled("Fuse", "It melts."), titled(None, "It melts.")
    ('Fuse It melts.', 'It melts.')
    """
    return f"{title} {text}".strip() if isinstance(title, str) else text


def whole_text(text: str, place: str) -> str:
    """The text, unless it holds half of a surrogate pair, which no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: half of a surrogate pair, which is no text; remove it") from None
    return text


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


def _table_rows(path: Path, delimiter: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.DictReader((line for _, line in numbered_lines(path)), delimiter=delimiter, strict=True)
    columns = list(reader.fieldnames or [])
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    if doubled:
        raise UserError(f"{path}:1: the column {', '.join(doubled)} occurs twice; rename or join them")
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            line = reader.reader.line_num
            raise UserError(f"{path}:{line}: not a readable table ({error}); check the quotes") from None
        place = f"{path}:{reader.line_num}"
        if None in row:
            yield place, RowError(f"more cells than the header has columns ({len(reader.fieldnames or [])})")
        else:
            try:
                yield place, {key: _cell(value) for key, value in row.items()}
            except RowError as error:
                yield place, error


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


def _only_key(row: dict[str, Any], keys: tuple[str, ...], needed: str | None) -> str:
    present = [key for key in keys if key in row]
    if len(present) > 1:  # tables that mix shapes have all columns, empty where a row does not use them
        present = [key for key in present if row[key] not in (None, "", [])] or present[:1]
    if len(present) > 1:
        raise RowError(f"has both {present[0]} and {present[1]}; keep one of them")
    if not present and needed:
        unknown = [key for key in row if key not in (*QUERY_KEYS, *POSITIVE_KEYS, *NEGATIVE_KEYS)]
        hint = next((hint for hint in (near_miss(str(key), keys) for key in unknown) if hint), "")
        raise RowError(f"no {needed} ({' or '.join(keys)}) among its keys {', '.join(map(str, row)) or '(none)'}{hint}")
    return present[0] if present else ""


def _scores(value: Any, texts: list[str]) -> dict[str, float]:
    """A teacher's score of each text, of a list that has one for each."""
    if value is None:
        return {}
    numbers = isinstance(value, list) and all(type(score) in (int, float) and math.isfinite(score) for score in value)
    if not numbers or len(value) != len(texts):
        raise RowError(f"{SCORES_KEY} must be a list of {len(texts)} numbers, one for each positive and negative")
    return dict(zip(reversed(texts), reversed(value), strict=True))


def _texts(value: Any, key: str, blank_allowed: bool = False) -> list[str]:
    """A text or a list of texts as a list."""
    if value is None:
        raise RowError(f"{key} is null; give a text or a list of texts")
    if isinstance(value, (list, tuple)):
        return [_text(item, f"{key}[{index}]", blank_allowed) for index, item in enumerate(value)]
    return [_text(value, key, blank_allowed)]


def _text(value: Any, key: str, blank_allowed: bool = False) -> str:
    if not isinstance(value, str):
        raise RowError(f"{key} must be a text, not {_kind(value)}")
    if not blank_allowed and not value.strip():
        raise RowError(f"{key} is blank")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise RowError(f"{key} holds half of a surrogate pair, which is no text; remove it") from None
    return value


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        bool: "true/false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
