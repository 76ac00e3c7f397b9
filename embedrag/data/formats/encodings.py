"""The encoding of a text of unknown origin: Unicode, or one of the old national encodings of Asia.

A byte-order mark decides. Otherwise valid UTF-8 is taken as UTF-8, because text in another encoding is valid UTF-8 only
by accident. Otherwise charset-normalizer ranks the national encodings, and its choice must pass a check: text that is
read in the wrong encoding is full of rare characters.
"""

from __future__ import annotations

import codecs
import unicodedata

NATIONAL = ("cp949", "gb18030", "big5")
KNOWN = ("utf-8", "utf-16", "latin-1", "cp1252", "shift_jis", "euc-kr", *NATIONAL)
# (first and last lead byte, first trail byte) of everyday characters: the Hangul syllables in use, the common hanzi.
EVERYDAY = {"cp949": (0xB0, 0xC8, 0xA1), "gb18030": (0xB0, 0xD7, 0xA1), "big5": (0xA4, 0xC6, 0x40)}
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
FEW = 8  # wide letters that are needed to tell one national encoding from another


def detect(data: bytes, cut: bool = False) -> str | None:
    r"""Name of the encoding; None when it is not certain.

    Args:
        data: the text, or its beginning.
        cut: it is a beginning, so its last character may be incomplete.

    >>> detect("용어,정의\n저항,전류를 막는 소자".encode("cp949"))
    'cp949'
    """
    for mark, name in MARKS:
        if data.startswith(mark):
            return name
    for zero, name in ((1, "utf-16-le"), (0, "utf-16-be")):  # where commas, line ends and Latin letters have a zero
        if len(data) % 2 == 0 and data[zero::2].count(0) > max(1, 4 * data[1 - zero :: 2].count(0)):
            return name
    if is_utf8(data, cut):
        return "utf-8"
    if cut:
        data = data[: data.rfind(b"\n") + 1] or data
    from charset_normalizer import from_bytes

    ranked = [match.encoding for match in from_bytes(data, cp_isolation=list(NATIONAL))]
    sane = [name for name in dict.fromkeys([*ranked, *NATIONAL]) if _sane(data, name)]
    doubtful = len(sane) > 1 and sum(byte > 0x7F for byte in data) < 2 * FEW
    return sane[0] if sane and not doubtful else None


def is_utf8(data: bytes, cut: bool = False) -> bool:
    """Whether all bytes are valid UTF-8; with `cut`, the last character may be incomplete."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, final=not cut)
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
