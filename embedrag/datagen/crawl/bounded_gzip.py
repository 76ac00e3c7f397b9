"""gzip with a limit: a small packed piece may hold more than the memory."""

from __future__ import annotations

import zlib

from embedrag.datagen.crawl.politeness import PageError


def unpack(unpacker: zlib._Decompress, piece: bytes, most: int) -> bytes:
    """At most `most` bytes of what a packed piece holds, so that a small one can't fill the memory."""
    try:
        return unpacker.decompress(piece, max(1, most))
    except zlib.error as error:
        raise PageError(f"damaged gzip: {error}") from None


def unzip(body: bytes, most: int) -> bytes:
    """The contents of a .gz file; anything else as it is.

    Raises:
        PageError: it is damaged, or holds more than `most` bytes.
    """
    if not body.startswith(b"\x1f\x8b"):
        return body
    body = unpack(zlib.decompressobj(31), body, most + 1)
    if len(body) > most:
        raise PageError(f"larger than {most / 1e6:g} MB: not read to its end")
    return body
