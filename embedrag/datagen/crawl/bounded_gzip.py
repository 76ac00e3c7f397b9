"""gzip with a limit, because a small compressed file may unpack to more than the memory holds."""

from __future__ import annotations

import zlib

from embedrag.datagen.crawl.politeness import PageError


def unpack(unpacker: zlib._Decompress, piece: bytes, most: int) -> bytes:
    """Unpack a compressed piece, up to `most` bytes.

    Raises:
        PageError: when it is damaged.
    """
    try:
        return unpacker.decompress(piece, max(1, most))
    except zlib.error as error:
        raise PageError(f"the gzip data is damaged: {error}") from None


def unzip(body: bytes, most: int) -> bytes:
    """The contents of a .gz file; anything else is returned as it is.

    Raises:
        PageError: when it is damaged, or when it holds more than `most` bytes.
    """
    if not body.startswith(b"\x1f\x8b"):
        return body
    body = unpack(zlib.decompressobj(31), body, most + 1)
    if len(body) > most:
        raise PageError(f"larger than {most / 1e6:g} MB, so it was not read to its end")
    return body
