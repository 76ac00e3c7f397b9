"""Lines of UTF-8 files, numbered, with one line in memory; and the error of a row that can't be read."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from embedrag.errors import UserError
from embedrag.runtime.compressed import open_bytes, open_text

MAX_LINE = 64 << 20  # bytes; a file with a longer line does not hold one row a line
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class RowError(Exception):
    """Why a row can't be read; the caller adds file and line."""


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file, numbered from 1, without a byte-order mark; one line is in memory.

    The file is UTF-8, or UTF-16 with a byte-order mark (as PowerShell writes it); it may be compressed.

    Raises:
        UserError: the file can't be opened or decompressed, a line is too long, or a line is not UTF-8.
    """
    with open_bytes(path) as file:
        for number, raw in enumerate(iter(partial(file.readline, MAX_LINE + 1), b""), 1):
            if number == 1 and raw.startswith(UTF16):
                yield from _utf16_lines(path)
                return
            _check_length(path, number, len(raw))
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line); convert it first, "
                    f"for example: iconv -f CP949 -t UTF-8 {path.name} > utf8{path.suffix}"
                ) from None


def _utf16_lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with open_text(path, encoding="utf-16", newline="\n") as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE + 1), ""), 1):
                _check_length(path, number, len(line))
                yield number, line
    except UnicodeError:
        raise UserError(f"{path}:{number + 1}: not UTF-16, as its first bytes say; save the file as UTF-8") from None


def _check_length(path: Path, number: int, length: int) -> None:
    if length > MAX_LINE:
        raise UserError(f"{path}:{number}: a line of more than {MAX_LINE >> 20} MiB; write one row on each line")
