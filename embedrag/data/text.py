"""Facts about single texts that cost little and need no model: hash, form for comparison, script, a bounded sample."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from functools import cache


def digest(text: str) -> int:
    """64 bits of a text's hash."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def normalise(text: str) -> str:
    """A text as it is compared with others: NFKC, without case, white space as single spaces.

    >>> normalise(" Ｆrog  POND") == normalise("frog pond")
    True
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    if plain.isprintable() and "  " not in plain:  # so its white space is single spaces, which most texts have
        return plain.strip()
    return " ".join(plain.split())


def identity(text: str) -> int:
    """64 bits of a text, the same for texts that differ in case, spacing or Unicode form.

    >>> identity(" Ｆrog  POND") == identity("frog pond")
    True
    """
    return digest(normalise(text))


def scripts_of(text: str) -> Counter[str]:
    """Letters of a text by script; Han characters beside kana count as kana.

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
    """Script of a letter, from the first word of its Unicode name; empty for what is no letter."""
    plain = unicodedata.normalize("NFKC", character)[:1]
    if not plain.isalpha():
        return ""
    word = unicodedata.name(plain, "").split(" ")[0]
    if word in ("CJK", "IDEOGRAPHIC"):
        return "Han"
    return "Kana" if word.startswith(("HIRAGANA", "KATAKANA")) else word.capitalize()
