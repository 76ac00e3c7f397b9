"""Glossaries in tables: which columns hold terms and definitions, and which rows are good.

`embedrag.data.formats.tables` finds encoding, delimiter and header. If the encoding is not certain, an error asks for
`encoding`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from embedrag.data.formats.tables import Layout, find_layout, table_rows
from embedrag.data.markup import as_seen, has_markup
from embedrag.data.sources import path_and_sheet
from embedrag.datagen.glossary.column_names import columns_of
from embedrag.errors import UserError, near_miss
from embedrag.runtime.files import no_file

CATEGORY_COLUMNS = frozenset(
    "category topic field domain subject 분류 분야 범주 类别 分类 领域 類別 分類 領域 カテゴリ".split()
)
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
        layout: how the file was read.
        columns: names of the two columns, as the file spells them.
        pairs: the good rows, in order.
        faults: kind of fault -> places.
        marked_up: how many rows had HTML, which became plain text.
    """

    layout: Layout
    columns: tuple[str, str]
    pairs: list[Pair] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)
    marked_up: int = 0

    def fault(self, kind: str, place: str) -> None:
        """Count a faulty row."""
        self.faults.setdefault(kind, []).append(place)

    def report(self) -> Iterator[str]:
        """Lines for people: how the file was read, then each kind of fault with its places."""
        yield f"{self.layout}, columns {', '.join(self.columns)}"
        if self.marked_up:
            yield f"HTML became plain text in {self.marked_up:,} rows"
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
    if reason := no_file(path):
        raise UserError(reason, argument, name)
    return path


def existing_table(name: str, argument: str) -> tuple[Path, str]:
    """The path of a table, and the sheet if a workbook's is named (`book.xlsx:Sheet`).

    Raises:
        UserError: when there is no such file.
    """
    path, sheet = path_and_sheet(name)
    if reason := no_file(path):
        raise UserError(reason, argument, name)
    return path, sheet


def read_table(path: Path, columns: Sequence[str] | None = None, encoding: str | None = None, sheet: str = "") -> Table:
    """Read a glossary.

    Args:
        path: a CSV or TSV file of any delimiter, or a workbook.
        columns: names of the column of terms and of the column of definitions, or their numbers from 1, which a table
            without a header needs; None: found by name.
        encoding: of the file; None: detected.
        sheet: of a workbook; empty: its first.

    Raises:
        UserError: when it is not a table, when it lacks the columns, or when it has no good row.
    """
    places, layout = _columns(path, columns, encoding, sheet)
    header = layout.header
    table = Table(layout, (header[places[0]], header[places[1]]))
    topic, wrong = (
        next((place for place, title in enumerate(header) if plain(title) in names), None)
        for names in (CATEGORY_COLUMNS, NEGATIVE_COLUMNS)
    )
    seen = set[tuple[str, str]]()
    for line, given in table_rows(path, layout):
        place = f"{path}:{line}"
        if len(given) != len(header) and not (layout.first == 0 and len(given) > max(places)):
            table.fault(f"not the {len(header)} cells of the header", place)
            continue
        cells = list(map(_as_seen, given))
        table.marked_up += any(map(has_markup, given))
        term, definition = (cells[number] for number in places)
        if not term or not definition:
            table.fault("empty cell", place)
        elif bare(term) == bare(definition):
            table.fault("the definition repeats the term", place)
        elif (bare(term), bare(definition)) in seen:
            table.fault("same as an earlier row", place)
        else:
            seen.add((bare(term), bare(definition)))
            category, negative = ("" if n is None else cells[n] for n in (topic, wrong))
            table.pairs.append(Pair(term, definition, category, negative, place))
    if not table.pairs:
        raise UserError("\n".join([f"{path}: no row has both a term and a definition", *table.report()]))
    return table


def _as_seen(cell: str) -> str:
    """A cell as its readers see it, on one line."""
    return " ".join(as_seen(cell).split())


def _columns(
    path: Path, columns: Sequence[str] | None, encoding: str | None, sheet: str
) -> tuple[tuple[int, int], Layout]:
    """Places of the two columns, and how the table is stored.

    Raises:
        UserError: the columns are not there; the message lists what is.
    """

    def named(header: Sequence[str]) -> Any:
        names = [plain(name) for name in header]
        if columns and all(plain(name) in names for name in columns):
            return (0, 0), (names.index(plain(columns[0])), names.index(plain(columns[1])))
        guess = None if columns and not numbers else columns_of(list(header))
        return (guess[1], guess[0]) if guess else None

    def fit(header: Sequence[str]) -> int | None:
        found = named(header)
        return sum(found[0]) if found else None

    numbers = [int(name) - 1 for name in columns or () if name.isdecimal()]
    numbers = numbers if len(numbers) == len(columns or ()) else []
    layout = find_layout(path, fit, encoding=encoding, sheet=sheet, argument="encoding")
    if not layout.header:
        raise UserError(f"{path}: the file is empty; a header and rows are needed")
    found = named(layout.header)
    if numbers and not (found and columns and all(plain(name) in map(plain, layout.header) for name in columns)):
        if max(numbers) >= len(layout.header) or min(numbers) < 0:
            raise UserError(f"{path}: the table has {len(layout.header)} columns", "columns", columns)
        places = numbers[0], numbers[1]
        return places, layout if layout.fits else _without_header(layout)
    if found and layout.fits:
        return found[1], layout
    there = layout.header
    wanted = " and ".join(columns) if columns else "term and definition, or anchor and positive,"
    hint = next((hint for name in columns or () if name not in there and (hint := near_miss(name, there))), "")
    raise UserError(
        f"{path}:{layout.first}: no columns {wanted} in the header; it has: {', '.join(there)}{hint}; name two of them "
        "with `columns`, the term first; if the table has no header, give the numbers of the columns: `columns=1 2`"
    )


def _without_header(layout: Layout) -> Layout:
    """The layout of a table that has no header; its columns are called by their numbers."""
    return replace(layout, header=tuple(str(n + 1) for n in range(len(layout.header))), first=0, titles=0, fits=True)
