"""The text of a page. Its server and its own head may both name a wrong character set.

Each claim is tried on the bytes. Bytes that are valid UTF-8, with few exceptions, are taken as UTF-8, because text in
another character set is almost never valid UTF-8 by accident. Latin-1 can decode everything, and servers name it by
default, so it is tried last. When two claims both fit, the letters decide (charset-normalizer).
"""

from __future__ import annotations

import codecs
import re

from charset_normalizer import from_bytes

_META = re.compile(rb"""<meta[^>]{0,300}?charset\s*=\s*["']?\s*([\w:.-]{2,40})""", re.I)
_XML = re.compile(rb"""^\s*<\?xml[^>]{0,100}encoding\s*=\s*["']([\w:.-]{2,40})""", re.I)
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
# Browsers, and authors of pages, read a smaller set as the larger one that contains it.
_WIDER = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "euc_kr": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "iso8859-9": "cp1254",
}
_NONE_OF_PAGES = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf-7", "undefined", "hz"}
_HEAD = 4096  # bytes of a page in which its head names the character set
_SAMPLE = 100_000  # bytes of a page by which two claims are compared


def decode(body: bytes, claimed: str = "") -> str:
    r"""The text of a page.

    Args:
        body: as it came.
        claimed: the character set that the server named, or empty.

    Returns:
        The text. Bytes that do not fit are replaced; they are never an error.

    >>> decode("용어는 정의를 가진다".encode("euc-kr"), claimed="iso-8859-1")
    '용어는 정의를 가진다'
    >>> decode(b'<meta charset="latin-1">caf\xe9')[-4:]
    'café'
    """
    for mark, name in _BOMS:
        if body.startswith(mark):
            return body.decode(name, errors="replace")
    named = _META.search(body[:_HEAD]) or _XML.match(body[:_HEAD])
    claims = [_known(claimed), _known(named[1].decode("ascii")) if named else ""]
    if _is_utf8(body, "utf-8" in claims):
        return body.decode("utf-8", errors="replace")
    claims = [name for name in dict.fromkeys(claims) if name and name != "utf-8"]
    fitting = [name for name in claims if _fits(body, name)]
    strong = [name for name in fitting if name != "cp1252"]
    if len(strong) == 1 and ("cp1252" not in fitting or _asian(body.decode(strong[0], errors="replace"))):
        return body.decode(strong[0], errors="replace")
    best = from_bytes(body[:_SAMPLE], cp_isolation=strong if len(strong) > 1 else None).best()
    guess = best.encoding if best and _fits(body, best.encoding) else ""
    if len(strong) > 1:
        return body.decode(guess if guess in strong else strong[-1], errors="replace")
    if guess and _asian(body.decode(guess, errors="replace")) and "cp1252" in (*fitting, "" if claims else "cp1252"):
        fitting = [guess]
    chosen = fitting or ([guess] if guess else []) or claims or ["cp1252"]
    return body.decode(chosen[-1], errors="replace")


def _known(name: str) -> str:
    """Python's name of a character set, or of the wider set that browsers use; empty when it is unknown."""
    try:
        found = codecs.lookup(name).name
        b"\xff".decode(found, errors="replace")
    except (LookupError, ValueError, TypeError, AssertionError):
        return ""
    return "" if found in _NONE_OF_PAGES else _WIDER.get(found, found)


def _is_utf8(body: bytes, claimed: bool) -> bool:
    """Whether a page is UTF-8, apart from broken bytes.

    Whole letters must outnumber the broken bytes, and without a claim of UTF-8 by ten to one.
    """
    text = body.decode("utf-8", errors="replace")
    broken = text.count("\ufffd")
    return not broken or broken * (1 if claimed else 10) <= len(re.findall("[^\0-\x7f\ufffd]", text))


def _fits(body: bytes, name: str) -> bool:
    """Whether the bytes are in a character set, apart from a few broken ones."""
    return body.decode(name, errors="replace").count("\ufffd") * 200 <= len(body)


def _asian(text: str) -> bool:
    """Whether a text is Chinese, Japanese or Korean; servers often claim Latin-1 for those by mistake."""
    return len(re.findall(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]", text[:_SAMPLE])) > len(text[:_SAMPLE]) // 20
