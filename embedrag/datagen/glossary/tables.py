"""Glossaries as people store them: CSV files of any delimiter, also in the encodings of Windows and of old systems.

How the encoding is found: a byte-order mark decides. Otherwise valid UTF-8 is taken as UTF-8, because text in another
encoding is valid UTF-8 only by accident. Otherwise charset-normalizer ranks the national encodings, and its choice
must pass a check: text that is read in the wrong encoding is full of rare characters. If the encoding is still not
certain, an error asks for `encoding`.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from embedrag.datagen.glossary.column_names import columns_of
from embedrag.errors import UserError, near_miss

NATIONAL = ("cp949", "gb18030", "big5")
# (first and last lead byte, first trail byte) of everyday characters: the Hangul syllables in use, the common hanzi.
EVERYDAY = {"cp949": (0xB0, 0xC8, 0xA1), "gb18030": (0xB0, 0xD7, 0xA1), "big5": (0xA4, 0xC6, 0x40)}
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "pipe"}
CATEGORY_COLUMNS = frozenset(
    "category topic field domain subject 분류 분야 범주 类别 分类 领域 類別 分類 領域 カテゴリ".split()
)
FEW = 8  # wide letters that are needed to tell one national encoding from another
NEGATIVE_COLUMNS = frozenset("negative negatives neg neg_doc hard_negative 오답 负例 負例".split())
SHOWN = 20  # faulty lines that are named; the others are counted


@dataclass(frozen=True)
class Pair:
    """One row of a glossary.

    Attributes:
        term: the term.
        definition: what it means.
        category: its category, or empty.
        negative: a wrong answer, or empty.
        place: file and line.
    """

    term: str
    definition: str
    category: str
    negative: str
    place: str


@dataclass
class Table:
    """The rows of a table that were read, and what was wrong with the others.

    Attributes:
        encoding: how the file was read.
        delimiter: what stands between its cells.
        columns: names of the two columns, as the file spells them.
        pairs: the good rows, in order.
        faults: kind of fault -> places.
    """

    encoding: str
    delimiter: str
    columns: tuple[str, str]
    pairs: list[Pair] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def fault(self, kind: str, place: str) -> None:
        """Count a faulty row."""
        self.faults.setdefault(kind, []).append(place)

    def report(self) -> Iterator[str]:
        """Lines for people: how the file was read, then each kind of fault with its places."""
        yield f"read as {self.encoding}, {DELIMITERS[self.delimiter]} between cells, columns {', '.join(self.columns)}"
        for kind, places in self.faults.items():
            more = f" and {len(places) - SHOWN:,} more" if len(places) > SHOWN else ""
            yield f"left out, {kind}: {len(places):,} ({', '.join(places[:SHOWN])}{more})"


def plain(text: str) -> str:
    """A text without differences that people do not see: case, spacing and Unicode form.

    >>> plain("  ＬＥＤ  Lamp")
    'led lamp'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


_PLURAL = re.compile(r"((?<=[A-Z]{2})|(?<=[A-Za-z]{2}[a-hj-rtv-z]))s(?![A-Za-z])")  # LEDs, diodes; not HTTPS, bus
_TELLING = re.compile(r"((?<=[a-z])[+#]+(?![a-z0-9])|(?<=[0-9])\.(?=[0-9]))")  # C++, 1.5


def bare(text: str) -> str:
    """The form in which names and definitions are compared: without spacing, punctuation, case and plural.

    >>> bare("압전 효과") == bare("압전효과"), bare("Light-Emitting Diodes.") == bare("light emitting diode")
    (True, True)
    >>> [bare(text) for text in ("C++", "C#", "1.5 V", "--")]
    ['c++', 'c#', '1.5v', '--']
    """
    folded = _PLURAL.sub("", unicodedata.normalize("NFKC", text)).casefold()
    parts = _TELLING.split(folded)
    parts[::2] = ["".join(sign for sign in part if unicodedata.category(sign)[0] in "LMN") for part in parts[::2]]
    return "".join(parts) or plain(text)


def existing_file(name: str, argument: str) -> Path:
    """The path of a file.

    Args:
        name: as the caller wrote it.
        argument: what the caller calls it, for messages.

    Raises:
        UserError: when there is no such file.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError("no such file", argument, name)
    return path


def decode(path: Path, encoding: str | None) -> tuple[str, str]:
    """Text of a file, and its encoding.

    Args:
        path: the file.
        encoding: its encoding; None: detected.

    Raises:
        UserError: when it can't be read, or when no encoding fits.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    if not data.strip():
        raise UserError(f"{path}: the file is empty; a header and rows are needed")
    name = encoding or detect(data)
    if name is None:
        raise UserError(
            f"{path}: it is not certain whether this is UTF-8, UTF-16, CP949, GB18030 or Big5; name the encoding with "
            "`encoding`, or save the file as UTF-8"
        )
    try:
        text = data.decode(name)
    except LookupError:
        known = ("utf-8", "utf-16", "latin-1", "shift_jis", "euc-kr", *NATIONAL)
        raise UserError(f"unknown{near_miss(name, known)}; try {', '.join(known)}", "encoding", name) from None
    except UnicodeError as error:
        line = data[: getattr(error, "start", 0)].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not {name}; name the right encoding with `encoding`") from None
    return text.removeprefix("\ufeff"), name


def detect(data: bytes) -> str | None:
    r"""Name of the encoding; None when it is not certain.

    >>> detect("용어,정의\n저항,전류를 막는 소자".encode("cp949"))
    'cp949'
    """
    for mark, name in MARKS:
        if data.startswith(mark):
            return name
    for zero, name in ((1, "utf-16-le"), (0, "utf-16-be")):  # where commas, line ends and Latin letters have a zero
        if len(data) % 2 == 0 and data[zero::2].count(0) > max(1, 4 * data[1 - zero :: 2].count(0)):
            return name
    if is_utf8(data):
        return "utf-8"
    from charset_normalizer import from_bytes

    ranked = [match.encoding for match in from_bytes(data, cp_isolation=list(NATIONAL))]
    sane = [name for name in dict.fromkeys([*ranked, *NATIONAL]) if _sane(data, name)]
    doubtful = len(sane) > 1 and sum(byte > 0x7F for byte in data) < 2 * FEW
    return sane[0] if sane and not doubtful else None


def is_utf8(data: bytes) -> bool:
    """Whether all bytes are valid UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _sane(data: bytes, encoding: str) -> bool:
    """Whether nine of ten wide letters are everyday letters of the encoding."""
    try:
        wide = [letter for letter in data.decode(encoding) if unicodedata.category(letter) == "Lo"]
    except UnicodeDecodeError:
        return False
    low, high, trail = EVERYDAY[encoding]
    codes = [letter.encode(encoding) for letter in wide]
    return sum(len(code) == 2 and low <= code[0] <= high and code[1] >= trail for code in codes) > 0.9 * len(codes)


def read_table(path: Path, columns: Sequence[str] | None = None, encoding: str | None = None) -> Table:
    """Read a glossary with a header.

    Args:
        path: CSV or TSV file.
        columns: names of the column of terms and of the column of definitions; None: found by name.
        encoding: of the file; None: detected.

    Raises:
        UserError: when it is not a table, when it lacks the columns, or when it has no good row.
    """
    text, name = decode(path, encoding)
    text = re.sub(r"\Asep=.[ \t]*(?=[\r\n])", "", text)  # Excel writes the delimiter there; the header shows it too
    delimiter, header, places = _layout(path, text, columns)
    table = Table(name, delimiter, (header[places[0]], header[places[1]]))
    topic, wrong = (
        next((place for place, title in enumerate(header) if plain(title) in names), None)
        for names in (CATEGORY_COLUMNS, NEGATIVE_COLUMNS)
    )
    seen = set[tuple[str, str]]()
    for line, cells in islice(_rows(path, text, delimiter), 1, None):
        place = f"{path}:{line}"
        cells = [*cells[: len(header)], *_without_tail(cells[len(header) :])]
        if len(cells) != len(header):
            table.fault(f"not the {len(header)} cells of the header", place)
            continue
        term, definition = (" ".join(cells[number].split()) for number in places)
        if not term or not definition:
            table.fault("empty cell", place)
        elif bare(term) == bare(definition):
            table.fault("the definition repeats the term", place)
        elif (bare(term), bare(definition)) in seen:
            table.fault("same as an earlier row", place)
        else:
            seen.add((bare(term), bare(definition)))
            category, negative = ("" if n is None else " ".join(cells[n].split()) for n in (topic, wrong))
            table.pairs.append(Pair(term, definition, category, negative, place))
    if not table.pairs:
        raise UserError("\n".join([f"{path}: no row has both a term and a definition", *table.report()]))
    return table


def _without_tail(cells: list[str]) -> list[str]:
    """Cells without the empty ones at the end, which spreadsheets add."""
    return cells[: max((place + 1 for place, cell in enumerate(cells) if cell.strip()), default=0)]


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of each row that is not blank."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    if delimiter == "\t" and not _is_quoted(text, delimiter):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=csv.QUOTE_NONE)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{path}:{line}: the table can't be read ({error}); check the quotes") from None
        if any(cell.strip() for cell in cells):
            yield line, cells


def _is_quoted(text: str, delimiter: str) -> bool:
    """Whether quotes surround cells. Many programs that write tabs between cells use quotes as ordinary letters."""
    try:
        return all(True for _ in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        return False


def _layout(path: Path, text: str, columns: Sequence[str] | None) -> tuple[str, list[str], tuple[int, int]]:
    """Delimiter, header, and places of the two columns. The delimiter with the surest columns is taken."""
    first = next((line for line in re.split(r"\r\n|\r|\n", text) if line.strip()), "")
    headers: dict[str, list[str]] = {}
    for mark in DELIMITERS:
        with suppress(csv.Error):  # quoted cells can be read with the right delimiter only
            headers[mark] = next(csv.reader([first], delimiter=mark, strict=True))
    if not headers:
        raise UserError(f"{path}:1: the header can't be read; check the quotes")
    found = []
    for mark, header in headers.items():
        header = [cell.strip() for cell in _without_tail(header)]
        if columns:
            names = [plain(cell) for cell in header]
            if all(plain(name) in names for name in columns):
                term, meaning = (names.index(plain(name)) for name in columns)
                found.append(((0, 0), mark, header, (term, meaning)))
        elif guess := columns_of(header):
            found.append((guess[1], mark, header, guess[0]))
    if found:
        return min(found, key=lambda layout: sum(layout[0]))[1:]
    there = [cell.strip() for cell in max(headers.values(), key=len)]
    wanted = " and ".join(columns) if columns else "term and definition, or anchor and positive,"
    hint = next((hint for name in columns or () if name not in there and (hint := near_miss(name, there))), "")
    raise UserError(
        f"{path}:1: no columns {wanted} in the header; it has: {', '.join(there)}{hint}; name two of them with "
        "`columns`, the term first; if this line is not a header, write one above it"
    )
