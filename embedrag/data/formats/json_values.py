"""The values of a JSON file: one on each line (JSONL), over several lines, one after the other, or in one array.

Memory holds one value, and of an array over the whole file one element and a block. A value that can't be read is a
`RowError`; the values after it are read.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from embedrag.data.formats.lines import UTF16, RowError, numbered_lines
from embedrag.errors import UserError
from embedrag.runtime.compressed import open_bytes, open_text

HEAD = 1 << 16  # bytes by which the layout is found
BLOCK = 1 << 20  # characters
MAX_VALUE = 256 << 20  # characters of one value over several lines
NEAR = 16  # characters; an error as near to the end of a block may come from the end
_ARRAY = re.compile(rb"\s*\[\s*[^\s\"]")  # an array of objects, not a row that is a list of texts
_BLANK = re.compile(r"\s*")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; a key that occurs twice is an error, because one of its values would be lost.

    Raises:
        RowError: naming the key.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise RowError(f"the key {doubled!r} occurs twice in one object; keep one of them")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_without_doubles)


def json_values(path: Path) -> Iterator[tuple[int, Any]]:
    """(line on which it begins, value) of each JSON value of a file; a value that can't be read is a `RowError`.

    Args:
        path: the file, perhaps compressed. The elements of an array over the whole file are the values.

    Raises:
        UserError: the file can't be read further.
    """
    with open_bytes(path) as file:
        first = file.read(HEAD)
    if first.startswith(UTF16):
        first = first[: len(first) & ~1].decode("utf-16", "replace").encode("utf-8", "replace")
    if _ARRAY.match(first.removeprefix(b"\xef\xbb\xbf")):
        yield from _elements(path)
    else:
        yield from _values(path)


class _Lines:
    """The lines of a file; lines that were taken too early can be put back."""

    def __init__(self, path: Path) -> None:
        self._lines, self._again = numbered_lines(path), deque[tuple[int, str]]()

    def take(self) -> tuple[int, str] | None:
        """The next line with its number; None at the end."""
        return self._again.popleft() if self._again else next(self._lines, None)

    def more(self, characters: int) -> str:
        """At least so many characters of the next lines, if the file has them."""
        found: list[str] = []
        while characters > 0 and (line := self.take()):
            found.append(line[1])
            characters -= len(line[1])
        return "".join(found)

    def put_back(self, number: int, text: str) -> None:
        """Put lines back; `number` is that of the first."""
        lines = text.split("\n")
        ended = [line + "\n" for line in lines[:-1]] + [line for line in lines[-1:] if line]
        self._again.extendleft(reversed(list(enumerate(ended, number))))


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """Values one after the other. Most files have one on each line."""
    lines = _Lines(path)
    while taken := lines.take():
        number, line = taken
        text = line.strip()
        if not text:
            continue
        try:
            yield number, DECODER.decode(text)
        except json.JSONDecodeError:
            yield from _over_lines(path, number, line, lines)
        except (RowError, RecursionError, ValueError) as error:
            yield number, _reason(error)


def _over_lines(path: Path, number: int, text: str, lines: _Lines) -> Iterator[tuple[int, Any]]:
    """The values of a line that is not one value: several, or a value that goes over the next lines too."""
    at = _blank(text, 0)
    while at < len(text):
        row = number + text.count("\n", 0, at)
        try:
            value, end = _decode(text, at)
        except json.JSONDecodeError as error:
            if not text[error.pos :].strip() and (more := lines.more(len(text) - at)):
                text += more
                _check_size(path, row, len(text) - at)
                continue
            wrong = number + error.lineno - 1
            # The next value begins where this one should go on, or the file ends there: its own line is the faulty one.
            is_cut = wrong > row and (error.colno == 1 or not text[error.pos :].strip())
            yield (row, RowError("not JSON (it is cut off)")) if is_cut else (wrong, _reason(error))
            _skip(row, text[at:], lines)
            return
        except (RecursionError, ValueError) as error:
            yield row, _reason(error)
            _skip(row, text[at:], lines)
            return
        yield row, value
        at = _blank(text, end)
        if "\n" in text[end:at]:
            lines.put_back(number + text.count("\n", 0, at), text[at:])
            return


def _skip(number: int, text: str, lines: _Lines) -> None:
    """Go on after a faulty value that begins on line `number`: where a line begins with the next value."""
    first, *following = text.split("\n", 1)
    if not following or not following[0]:
        return  # the value was thought to be on one line
    number, text = number + 1, following[0]
    while text[:1] not in ("{", "["):
        _, found, text = text.partition("\n")
        number += 1
        if not text:
            taken = lines.take()
            if not taken:
                return
            number, text = taken
    lines.put_back(number, text)


def _elements(path: Path) -> Iterator[tuple[int, Any]]:
    """The elements of an array over the whole file, which is read in blocks.

    Raises:
        UserError: the array can't be read further.
    """
    with open_bytes(path) as file:
        encoding = "utf-16" if file.read(2) in UTF16 else "utf-8-sig"
    with open_text(path, encoding=encoding, newline="") as file:
        blocks = _Blocks(path, file)
        blocks.at = blocks.text.index("[") + 1
        is_first = True
        while (sign := blocks.sign()) != "]":
            if not is_first:
                if sign != ",":
                    raise blocks.error(blocks.at, "a comma or ] is missing")
                blocks.at += 1
                blocks.sign()
            yield blocks.line, blocks.value()
            is_first = False
        blocks.at += 1
        if blocks.sign(needed=False):
            raise blocks.error(blocks.at, "there is more after the end of the array")


class _Blocks:
    """A text that is read in blocks; memory holds the block with the value that is being read.

    Attributes:
        text: the part that is in memory.
        at: the next character of it.
    """

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path, self.file, self.text, self.at = path, file, "", 0
        self._line, self._counted = 1, 0
        self._grow()

    @property
    def line(self) -> int:
        """The line of the next character, from 1."""
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def sign(self, needed: bool = True) -> str:
        """The next character that is not blank; empty at the end of the file, unless one is needed."""
        self.at = _blank(self.text, self.at)
        while self.at == len(self.text):
            if not self._grow():
                if needed:
                    raise self.error(self.at, "it is cut off")
                return ""
            self.at = _blank(self.text, self.at)
        return self.text[self.at]

    def value(self) -> Any:
        """The value that begins at the next character."""
        while True:
            try:
                value, self.at = _decode(self.text, self.at)
                return value
            except json.JSONDecodeError as error:
                near = error.pos >= len(self.text) - NEAR or error.msg.startswith("Unterminated")
                if not near or not self._grow():
                    raise self.error(error.pos, error.msg) from None
            except (RecursionError, ValueError) as error:
                raise self.error(self.at, str(_reason(error))) from None

    def error(self, at: int, reason: str) -> UserError:
        """The array can't be read further, because of what stands at a place in `text`."""
        line = self.line + self.text.count("\n", self.at, at)
        there = f", at {self.text[at : at + 20]!r}" if at < len(self.text) else ""
        return UserError(
            f"{self.path}:{line}: not JSON ({reason}{there}); correct this place, the rest of the array can't be read"
        )

    def _grow(self) -> bool:
        """Read at least as much as there is already, so that a long value is not tried too often."""
        line = self.line
        left = self.text[self.at :]
        _check_size(self.path, line, len(left))
        try:
            more = self.file.read(max(BLOCK, len(left)))
        except UnicodeError:
            raise UserError(f"{self.path}: not UTF-8 after line {line}; save the file as UTF-8") from None
        self.text, self.at, self._counted = left + more, 0, 0
        return bool(more)


def _decode(text: str, at: int) -> tuple[Any, int]:
    """A value, or why its keys are no row, and where it ends."""
    try:
        return DECODER.raw_decode(text, at)
    except RowError as error:
        return error, json.JSONDecoder().raw_decode(text, at)[1]


def _blank(text: str, at: int) -> int:
    """The place of the first character from `at` on that is not blank."""
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _check_size(path: Path, line: int, size: int) -> None:
    if size > MAX_VALUE:
        limit = f"{MAX_VALUE >> 20} MiB"
        raise UserError(f"{path}:{line}: one JSON value of more than {limit}; write one row on each line")


def _reason(error: Exception) -> RowError:
    if isinstance(error, RowError):
        return error
    if isinstance(error, json.JSONDecodeError):
        return RowError(f"not JSON ({error.msg}, column {error.colno})")
    return RowError("nested too deeply, or has a number that is too long")
