"""Files that may be compressed, opened for reading: gzip, bzip2, xz and Zstandard.

The first bytes decide, not the name: a `.jsonl` that is gzip is decompressed, and a `.gz` that a server has already
decompressed is read as it is. A file is decompressed while it is read, so memory holds a block of it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from embedrag.errors import UserError


def _zstandard(file: IO[bytes]) -> IO[bytes]:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))


# Suffix -> (first bytes, how an open file is decompressed). A new compression is one line here.
COMPRESSIONS: dict[str, tuple[bytes, Callable[[IO[bytes]], IO[bytes]]]] = {
    ".gz": (b"\x1f\x8b", lambda file: cast("IO[bytes]", gzip.GzipFile(fileobj=file))),
    ".bz2": (b"BZh", lambda file: cast("IO[bytes]", bz2.BZ2File(file))),
    ".xz": (b"\xfd7zXZ\0", lambda file: cast("IO[bytes]", lzma.LZMAFile(file))),
    ".zst": (b"\x28\xb5\x2f\xfd", _zstandard),
}
BZIP2 = (b"1AY&SY", b"\x17rE8P\x90")  # after "BZh" and a digit; a text may begin with "BZh"


def without_compression(path: Path) -> Path:
    """A path without the suffix of its compression.

    >>> without_compression(Path("a/rows.jsonl.gz")).name, without_compression(Path("rows.csv")).name
    ('rows.jsonl', 'rows.csv')
    """
    return path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A file that is open for reading; a compressed one gives its contents.

    Raises:
        UserError: it can't be opened, or the compressed data is damaged or cut off. Errors of reading inside the block
            are turned into these too.
    """
    try:
        with path.open("rb") as file:
            first = file.peek(10)[:10]
            for suffix, (mark, unpack) in COMPRESSIONS.items():
                if first.startswith(mark) and (suffix in (".gz", ".xz", ".zst", path.suffix) or first[4:] in BZIP2):
                    try:
                        with unpack(file) as unpacked:
                            yield unpacked
                    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                        raise UserError(f"{path}: the {suffix} data is damaged or cut off ({error})") from None
                    return
            yield file
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


@contextmanager
def open_text(path: Path, **settings: Any) -> Iterator[IO[str]]:
    """The same as text; UTF-8 without a byte-order mark, unless `settings` of `io.TextIOWrapper` say otherwise."""
    with open_bytes(path) as file, io.TextIOWrapper(file, **{"encoding": "utf-8-sig"} | settings) as text:
        yield text
