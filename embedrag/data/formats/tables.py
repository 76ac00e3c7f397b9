"""Tables as people store them: any delimiter and encoding, titles above the header, workbooks. The only reader of them.

`find_layout` looks at the beginning of a file, and `table_rows` reads the rows one by one. The delimiter and the header
are those under which the header has the names that the caller looks for.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

from embedrag.data.formats.encodings import KNOWN, detect
from embedrag.data.formats.lines import MAX_LINE
from embedrag.data.formats.workbooks import is_workbook, sheet_rows
from embedrag.errors import UserError, near_miss
from embedrag.runtime.compressed import open_bytes, open_text, without_compression

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "pipe"}
USUAL = {".tsv": "\t", ".tab": "\t"}  # delimiter by suffix; otherwise a comma
SAMPLE = 4 << 20  # bytes by which encoding and layout are found
LOOKED_AT = 40  # rows by which the layout is found
TITLES = 20  # lines above a header, at most
SENTENCE = 20  # characters; a table with longer cells may have no header
WORKBOOK = "workbook"

# Names of columns -> how well they fit what is looked for; the smallest is the best. None: they don't.
Fit = Callable[[Sequence[str]], Any]


@dataclass(frozen=True)
class Layout:
    """How a table is stored.

    Attributes:
        encoding: of the file, or `workbook`.
        delimiter: what stands between its cells; empty for a workbook.
        header: the names of the columns, without blanks around them.
        first: line of the header; 0 if there is none, and the names were given.
        titles: how many lines above the header were left out.
        fits: the header has what was looked for.
        quotes: cells may stand in quotes.
        wrapped: each whole line stands in quotes.
        sheet: name of the sheet of a workbook; empty: the first.
    """

    encoding: str
    delimiter: str
    header: tuple[str, ...]
    first: int
    titles: int = 0
    fits: bool = True
    quotes: bool = True
    wrapped: bool = False
    sheet: str = ""

    def __str__(self) -> str:
        mark = DELIMITERS.get(self.delimiter, self.delimiter)
        between = f", {mark} between cells" if mark else ""
        more = [
            "each whole line is in quotes" * self.wrapped,
            "no header" * (not self.first),
            f"{self.titles} lines above the header are left out" * bool(self.titles),
        ]
        return "; ".join([f"read as {self.encoding}{between}", *filter(None, more)])

    def is_usual(self, path: Path) -> bool:
        """Whether the table is UTF-8 with a header and the delimiter that its name says."""
        told = self.titles or self.wrapped or not self.first
        usual = self.encoding.startswith("utf-8") and self.delimiter == _usual(path)
        return not told and (usual or self.encoding == WORKBOOK)


def find_layout(
    path: Path,
    fit: Fit,
    *,
    encoding: str | None = None,
    sheet: str = "",
    names: Sequence[str] = (),
    argument: str | None = None,
) -> Layout:
    """Find out how a table is stored.

    Args:
        path: a text table, perhaps compressed, or a workbook.
        fit: tells how well the names of columns fit. If no line fits, the first one is taken for the header.
        encoding: of the file; None: detected.
        sheet: of a workbook.
        names: of the columns of a table between tabs that has no header, but a sentence in each cell after the first.
        argument: what the caller calls `encoding`, for messages; None: there is no such argument.

    Raises:
        UserError: the encoding is not certain or wrong, or the header can't be read.
    """
    with open_bytes(path) as file:
        sample = file.read(SAMPLE + 1)
    if is_workbook(sample):
        rows = list(islice(sheet_rows(path, sheet), LOOKED_AT))
        found = _header(rows, fit)
        place, header = (found[0], found[2]) if found else (0, _names(rows[0][1]) if rows else ())
        return Layout(WORKBOOK, "", header, rows[place][0] if rows else 1, place, bool(found), sheet=sheet)
    cut = len(sample) > SAMPLE
    name = encoding or detect(sample, cut)
    if name is None:
        what = f"name the encoding with `{argument}`, or save" if argument else "save"
        raise UserError(
            f"{path}: it is not certain whether this is UTF-8, UTF-16, CP949, GB18030 or Big5; {what} the file as UTF-8"
        )
    text = _decoded(path, sample, name, cut, argument)
    return _text_layout(path, text, name, fit, names)


def table_rows(path: Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """(line on which it begins, cells) of each row below the header that is not blank; one row is in memory.

    A row has at least as many cells as it has in the file; empty cells after the last column are left out.

    Raises:
        UserError: the file can't be read further.
    """
    if layout.encoding == WORKBOOK:
        rows = sheet_rows(path, layout.sheet)
    else:
        rows = _text_rows(path, layout)
    for line, cells in rows:
        if line > layout.first:
            yield line, [*cells[: len(layout.header)], *_without_tail(cells[len(layout.header) :])]


def _decoded(path: Path, sample: bytes, name: str, cut: bool, argument: str | None) -> str:
    try:
        decoder = io.TextIOWrapper(io.BytesIO(sample), encoding=name, errors="replace" if cut else "strict", newline="")
        return decoder.read().removeprefix("\ufeff")
    except LookupError:
        raise UserError(f"unknown{near_miss(name, KNOWN)}; try {', '.join(KNOWN)}", argument, name) from None
    except UnicodeError as error:
        raise _wrong_encoding(path, name, argument, sample[: getattr(error, "start", 0)].count(b"\n") + 1) from None


def _wrong_encoding(path: Path, name: str, argument: str | None = None, line: int | None = None) -> UserError:
    place = path if line is None else f"{path}:{line}"
    remedy = f"name the right encoding with `{argument}`" if argument else "save the file as UTF-8"
    return UserError(f"{place}: not {name}; {remedy}")


def _text_layout(path: Path, text: str, encoding: str, fit: Fit, names: Sequence[str]) -> Layout:
    told = re.match(r"sep=(.)[ \t]*[\r\n]", text)  # Excel writes the delimiter there
    best: tuple[Any, Layout] | None = None
    tables: dict[str, list[tuple[int, list[str]]]] = {}
    for mark in [told[1]] if told else DELIMITERS:
        quotes = mark != "\t" or _is_quoted(text, mark)
        tables[mark] = rows = _first_rows(text, mark, quotes)
        for wrapped in (False, True):
            if wrapped:
                rows = [(line, _unwrapped(cells, mark)) for line, cells in rows]
            found = _header(rows, fit)
            if found and (best is None or found[1] < best[0]):
                place, rank, header = found
                best = (
                    rank,
                    Layout(encoding, mark, header, rows[place][0], place - bool(told), quotes=quotes, wrapped=wrapped),
                )
            if found:
                break
    if best:
        return best[1]
    usual = _usual(path)
    if not tables[told[1] if told else usual]:
        if text.strip():
            raise UserError(f"{path}:1: the header can't be read; check the quotes")
        return Layout(encoding, usual, (), 1, fits=False)
    rows = tables.get("\t", [])
    if names and rows and all(_is_sentence(cells, len(names)) for _, cells in rows):
        return Layout(encoding, "\t", tuple(names), 0, quotes=_is_quoted(text, "\t"))
    mark = max(tables, key=lambda sign: (len(tables[sign][0][1]) if tables[sign] else 0, sign == usual))
    (line, cells), quotes = tables[mark][0], mark != "\t" or _is_quoted(text, mark)
    return Layout(encoding, mark, _names(cells), line, fits=False, quotes=quotes)


def _header(rows: Sequence[tuple[int, list[str]]], fit: Fit) -> tuple[int, Any, tuple[str, ...]] | None:
    """(place, how well it fits, names) of the header; above it are only titles, or the letters of a spreadsheet."""
    for place, (_, cells) in enumerate(rows[: TITLES + 1]):
        names = _names(cells)
        rank = fit(names)
        if rank is not None:
            return place, rank, names
        filled = [name for name in names if name]
        if len(filled) > 1 and filled != [chr(ord("A") + number) for number in range(len(filled))]:
            return None
    return None


def _names(cells: Sequence[str]) -> tuple[str, ...]:
    return tuple(cell.strip().removeprefix("\ufeff") for cell in _without_tail(list(cells)))


def _usual(path: Path) -> str:
    return USUAL.get(without_compression(path).suffix.lower(), ",")


def _is_sentence(cells: list[str], count: int) -> bool:
    return len(cells) == count and all(len(cell.strip()) >= SENTENCE for cell in cells[1:])


def _without_tail(cells: list[str]) -> list[str]:
    """Cells without the empty ones at the end, which spreadsheets add."""
    return cells[: max((place + 1 for place, cell in enumerate(cells) if cell.strip()), default=0)]


def _unwrapped(cells: list[str], delimiter: str) -> list[str]:
    """The cells of a line that stands in quotes as a whole."""
    filled = _without_tail(cells)
    if len(filled) != 1 or delimiter not in filled[0]:
        return cells
    try:
        return next(csv.reader([filled[0]], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return cells


def _is_quoted(text: str, delimiter: str) -> bool:
    """Whether quotes surround cells. Many programs that write tabs between cells use quotes as ordinary letters."""
    if '"' not in text:
        return True
    try:
        return all(True for _ in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        return "unexpected end" in str(error) and len(text) > SAMPLE // 4


def _reader(lines: Iterator[str], delimiter: str, quotes: bool) -> Any:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    # Strict, because otherwise one cell would hold the rest of the file after a quote that is never closed.
    if quotes:
        return csv.reader(lines, delimiter=delimiter, strict=True)
    return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)


def _first_rows(text: str, delimiter: str, quotes: bool) -> list[tuple[int, list[str]]]:
    """The first rows that are not blank, up to one that can't be read with this delimiter."""
    rows: list[tuple[int, list[str]]] = []
    reader = _reader(io.StringIO(text, newline=""), delimiter, quotes)
    while len(rows) < LOOKED_AT:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except (StopIteration, csv.Error):
            break
        if any(cell.strip() for cell in cells):
            rows.append((line, cells))
    return rows


class _Lines:
    """The lines of a file, with a limit to what one row may take; a quote that is never closed takes all lines."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path, self.lines = path, iter(partial(file.readline, MAX_LINE + 1), "")
        self.left = MAX_LINE

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.left -= len(line)
        if self.left < 0:
            raise csv.Error(f"it has more than {MAX_LINE >> 20} MiB")
        return line


def _text_rows(path: Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    with open_text(path, encoding=layout.encoding, newline="") as file:
        lines = _Lines(path, file)
        reader = _reader(lines, layout.delimiter, layout.quotes)
        while True:
            line = reader.line_num + 1
            lines.left = MAX_LINE
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(f"{path}:{line}: not a readable table ({error}); check the quotes") from None
            except UnicodeError:
                raise _wrong_encoding(path, layout.encoding, line=_faulty_line(path, layout.encoding)) from None
            if any(cell.strip() for cell in cells):
                yield line, _unwrapped(cells, layout.delimiter) if layout.wrapped else cells


def _faulty_line(path: Path, encoding: str) -> int | None:
    """The first line that is not in an encoding; None for UTF-16, which can't be cut into lines as bytes."""
    if encoding.startswith("utf-16"):
        return None
    with open_bytes(path) as file:
        for number, raw in enumerate(iter(partial(file.readline, MAX_LINE), b""), 1):
            try:
                raw.decode(encoding)
            except UnicodeError:
                return number
    return None
