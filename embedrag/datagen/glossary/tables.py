"""Glossaries as people keep them: CSV files of any delimiter, in the encodings that Windows and old systems write.

A byte-order mark decides. Else what is valid UTF-8 is UTF-8, for text in another encoding is so only by accident.
What is left is judged by charset-normalizer among the national encodings, and its choice must pass a check of its
own: text read in the wrong one is full of rare characters. Doubt is an error that names the flag to settle it.
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
# Lead and trail bytes of each one's everyday characters: all Hangul syllables in use, and the first level of hanzi.
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
FEW = 8  # wide letters that tell one national encoding from another; fewer leave doubt
NEGATIVE_COLUMNS = frozenset("negative negatives neg neg_doc hard_negative 오답 负例 負例".split())
SHOWN = 20  # faulty lines that are named; the rest is counted


@dataclass(frozen=True)
class Pair:
    """One row of a glossary: a term, what it means, category and wrong answer (or nothing), and where it stands."""

    term: str
    definition: str
    category: str
    negative: str
    place: str


@dataclass
class Table:
    """Rows that were read, and what was wrong with the others.

    Attributes:
        pairs: the good rows, in order.
        faults: kind of fault -> places.
        encoding: how the file was read.
        delimiter: what stands between its cells.
        columns: names of the two columns, in the file's spelling.
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
        """Lines for the user: how the file was read, then each kind of fault with its places."""
        yield f"read as {self.encoding}, {DELIMITERS[self.delimiter]} between cells, columns {', '.join(self.columns)}"
        for kind, places in self.faults.items():
            more = f" and {len(places) - SHOWN:,} more" if len(places) > SHOWN else ""
            yield f"left out, {kind}: {len(places):,} ({', '.join(places[:SHOWN])}{more})"


def plain(text: str) -> str:
    """A text without what people do not see as a difference: case, spacing, Unicode form.

    >>> plain("  ＬＥＤ  Lamp")
    'led lamp'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


_PLURAL = re.compile(r"((?<=[A-Z]{2})|(?<=[A-Za-z]{2}[a-hj-rtv-z]))s(?![A-Za-z])")  # LEDs, diodes; not HTTPS, bus
_TELLING = re.compile(r"((?<=[a-z])[+#]+(?![a-z0-9])|(?<=[0-9])\.(?=[0-9]))")  # C++, 1.5


def bare(text: str) -> str:
    """What names and definitions are compared by: letters and digits, without spacing, punctuation, case and plural.

    >>> bare("압전 효과") == bare("압전효과"), bare("Light-Emitting Diodes.") == bare("light emitting diode")
    (True, True)
    >>> [bare(text) for text in ("C++", "C#", "1.5 V", "--")]
    ['c++', 'c#', '1.5v', '--']
    """
    folded = _PLURAL.sub("", unicodedata.normalize("NFKC", text)).casefold()
    parts = _TELLING.split(folded)
    parts[::2] = ["".join(sign for sign in part if unicodedata.category(sign)[0] in "LMN") for part in parts[::2]]
    return "".join(parts) or plain(text)


def decode(path: Path, encoding: str | None) -> tuple[str, str]:
    """Text of a file, and the encoding it is in.

    Args:
        path: the file.
        encoding: its encoding, where the user names it.

    Raises:
        UserError: when it can't be read, or no encoding fits.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    if not data.strip():
        raise UserError(f"{path}: empty; a header and rows are needed")
    name = encoding or detect(data)
    if name is None:
        raise UserError(
            f"{path}: in none of UTF-8, UTF-16, CP949, GB18030, Big5 for sure; name its encoding with --encoding, "
            "or save it as UTF-8"
        )
    try:
        text = data.decode(name)
    except LookupError:
        known = ("utf-8", "utf-16", "latin-1", "shift_jis", "euc-kr", *NATIONAL)
        raise UserError(f"--encoding {name}: unknown{near_miss(name, known)}; try {', '.join(known)}") from None
    except UnicodeError as error:
        line = data[: getattr(error, "start", 0)].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not {name}; name its encoding with --encoding") from None
    return text.removeprefix("\ufeff"), name


def detect(data: bytes) -> str | None:
    r"""Name of the encoding, None where there is doubt.

    >>> detect("용어,정의\n저항,전류를 막는 소자".encode("cp949"))
    'cp949'
    """
    for mark, name in MARKS:
        if data.startswith(mark):
            return name
    for zero, name in ((1, "utf-16-le"), (0, "utf-16-be")):  # the high bytes of commas, line ends and Latin letters
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
    """Whether all of it is UTF-8."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _sane(data: bytes, encoding: str) -> bool:
    """Whether nine of ten wide letters are everyday ones of the encoding."""
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
        columns: names of the column of terms and that of definitions; left out: found by name.
        encoding: left out: detected.

    Raises:
        UserError: when it is no table, lacks the columns, or holds no good row.
    """
    text, name = decode(path, encoding)
    text = re.sub(r"\Asep=.[ \t]*(?=[\r\n])", "", text)  # a note of Excel's; the header says it as well
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
            table.fault(f"not as many cells as the header's {len(header)}", place)
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
        raise UserError("\n".join([f"{path}: no row with a term and a definition", *table.report()]))
    return table


def _without_tail(cells: list[str]) -> list[str]:
    """Cells without the empty ones at the end, which spreadsheets add."""
    return cells[: max((place + 1 for place, cell in enumerate(cells) if cell.strip()), default=0)]


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line at which it begins, cells) of each row that is not blank."""
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
            raise UserError(f"{path}:{line}: not a readable table ({error}); check the quotes") from None
        if any(cell.strip() for cell in cells):
            yield line, cells


def _is_quoted(text: str, delimiter: str) -> bool:
    """Whether all quotes make sense as such. Many programs that write tabs between cells write quotes as letters."""
    try:
        return all(True for _ in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:
        return False


def _layout(path: Path, text: str, columns: Sequence[str] | None) -> tuple[str, list[str], tuple[int, int]]:
    """Delimiter, header, and places of the two columns: those under which the header has them most surely."""
    first = next((line for line in re.split(r"\r\n|\r|\n", text) if line.strip()), "")
    headers: dict[str, list[str]] = {}
    for mark in DELIMITERS:
        with suppress(csv.Error):  # quoted cells make sense with their own delimiter alone
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
    known = " and ".join(columns) if columns else "term and definition, or anchor and positive,"
    hint = next((hint for name in columns or () if name not in there and (hint := near_miss(name, there))), "")
    raise UserError(
        f"{path}:1: no columns {known} in its header; there are: {', '.join(there)}{hint}; "
        "name two of them with --columns TERM DEFINITION; if these are no names, write a line of names above them"
    )
