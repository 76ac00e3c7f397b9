"""Facts about single texts that cost little and need no model: hash, form for comparison, scripts, title."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from functools import cache
from typing import Any

from embedrag.errors import UserError

QUERY, PASSAGE = "query", "passage"  # the roles of a text


def digest(text: str) -> int:
    """The first 64 bits of a text's hash (BLAKE2b)."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


# Characters without a form that Unicode counts as letters or symbols: the fillers of Hangul, the blank of Braille.
_BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
_UNSEEN = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp"))


def is_blank(text: str) -> bool:
    r"""Whether a reader sees nothing of a text: it has only spaces, control characters and characters without a form.

    >>> [is_blank(text) for text in (" \t", "\u200b", "\u2800", "\ufeff\u00ad", "-", "\u200bx")]
    [True, True, True, True, False, False]
    """
    text = text.strip()
    if not text or text[0].isascii() and text[0] > " ":
        return not text
    return all(sign in _BLANKS or unicodedata.category(sign) in _UNSEEN for sign in text)


def normalise(text: str) -> str:
    """A text in the form in which it is compared with others: Unicode NFKC, no case, white space as single spaces.

    >>> normalise(" Ｆrog  POND") == normalise("frog pond")
    True
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    if plain.isprintable() and "  " not in plain:  # all white space is single spaces, as in most texts
        return plain.strip()
    return " ".join(plain.split())


def identity(text: str) -> int:
    """64 bits of a text; texts that differ only in case, spacing or Unicode form have the same.

    >>> identity(" Ｆrog  POND") == identity("frog pond")
    True
    """
    return digest(normalise(text))


def scripts_of(text: str) -> Counter[str]:
    """How many letters of a text each script has; Han characters count as kana in a text with kana.

    >>> scripts_of("a 개구리 12")
    Counter({'Hangul': 3, 'Latin': 1})
    """
    found: Counter[str] = Counter()
    for character, count in Counter(text).items():
        script = _script(character)
        if script:
            found[script] += count
    if 10 * found["Kana"] > found["Han"] > 0:
        found["Kana"] += found.pop("Han")
    return +found


@cache
def _script(character: str) -> str:
    """The script of a letter, from the first word of its Unicode name; empty for a character that is not a letter."""
    plain = unicodedata.normalize("NFKC", character)[:1]
    if not plain.isalpha():
        return ""
    word = unicodedata.name(plain, "").split(" ")[0]
    if word in ("CJK", "IDEOGRAPHIC"):
        return "Han"
    return "Kana" if word.startswith(("HIRAGANA", "KATAKANA")) else word.capitalize()


def titled(title: Any, text: str) -> str:
    """A title and its text as one text, in the form in which BEIR's corpora are encoded.

    >>> titled("Fuse", "It melts."), titled(None, "It melts.")
    ('Fuse It melts.', 'It melts.')
    """
    return f"{title} {text}".strip() if isinstance(title, str) else text


def whole_text(text: str, place: str) -> str:
    """The text itself, if tokenizers and files can take it.

    Raises:
        UserError: it holds half of a surrogate pair; the message names the place.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: half of a surrogate pair, which is not text; remove it") from None
    return text
