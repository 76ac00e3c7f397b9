"""Workbooks of spreadsheet programs (.xlsx, .xls, .ods): a sheet as rows of texts."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from embedrag.errors import UserError, near_miss

MARKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")  # a zip archive; an OLE file, as of old Excel
SUFFIXES = (".xlsx", ".xlsm", ".xls", ".ods")
MOST = 512 << 20  # bytes of all parts, decompressed; a larger workbook should be saved as CSV


def is_workbook(first: bytes) -> bool:
    """Whether a file begins as workbooks do, whatever its name is."""
    return first.startswith(MARKS)


def sheet_rows(path: Path, sheet: str = "") -> Iterator[tuple[int, list[str]]]:
    """(row number, cells) of each row of a sheet that is not blank.

    Args:
        path: the workbook.
        sheet: name of the sheet; empty: the first one that is not hidden.

    Raises:
        UserError: it is no workbook, it is protected, it is too large, or it has no such sheet.
    """
    from python_calamine import CalamineError, CalamineWorkbook, PasswordError, SheetVisibleEnum

    _check_size(path)
    try:
        with path.open("rb") as file, CalamineWorkbook.from_object(file) as book:
            shown = [data.name for data in book.sheets_metadata if data.visible == SheetVisibleEnum.Visible]
            if sheet and sheet not in book.sheet_names:
                hint = near_miss(sheet, book.sheet_names)
                raise UserError(f"{path}: no sheet {sheet}{hint}; its sheets are {', '.join(book.sheet_names)}")
            if not book.sheet_names:
                raise UserError(f"{path}: the workbook has no sheet")
            rows = book.get_sheet_by_name(sheet or (shown or book.sheet_names)[0]).to_python(skip_empty_area=False)
    except PasswordError:
        raise UserError(f"{path}: the workbook is protected by a password; save it without one") from None
    except (CalamineError, OSError, ValueError) as error:
        reason = f"not a readable workbook ({error}); save it as CSV UTF-8"
        raise UserError(f"{path}: {reason}") from None
    for number, cells in enumerate(rows, 1):
        if any(cell != "" for cell in cells):
            yield number, [_text(cell) for cell in cells]


def _text(cell: object) -> str:
    """A cell as a person sees it: whole numbers without a point."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def _check_size(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as parts:
        if sum(part.file_size for part in parts.infolist()) > MOST:
            raise UserError(f"{path}: the workbook has more than {MOST >> 20} MiB; save it as CSV UTF-8")
