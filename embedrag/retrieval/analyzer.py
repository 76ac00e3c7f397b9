"""Splits a text of any language into the terms that BM25 compares.

A text is brought into one Unicode form without case (NFKC, casefold), and is split into pieces: runs of letters, marks
and digits. What a piece becomes depends on its script.

| script | terms of a piece |
|---|---|
| Chinese, Japanese | pairs of neighbouring characters, and each Chinese character |
| Korean | pairs of neighbouring syllables, because particles are attached to words; and its first syllable |
| Thai, Lao | pairs of neighbouring letters, each with its marks; and its first letter |
| Khmer, Burmese | pairs of neighbouring letters, each with its marks, and each of these letters |
| others | the piece; of names and numbers also their parts: `max_len`, `maxLen`, `10kΩ`, `STM32F103` |

The figures for these choices are in docs/mining.md.

Whatever is built with these terms keeps `ANALYZER` with it. The number goes up with each change of the terms.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import lru_cache

import regex

ANALYZER = "embedrag-2"
CACHED = 100_000  # texts between white space; their terms are kept in memory, because most of them come again
EDGES = ",;:!?()[]\"'"  # signs around a word that are no part of it
LONGEST = 30  # characters of such a text; longer ones hardly ever come again

# Signs in a word that are not seen, or that careful spelling adds: soft hyphens, joiners, marks of the direction of
# writing, forms of a character, vowel points of Hebrew and Arabic, and the line that stretches Arabic words. A
# non-joiner separates the parts of Persian words, and is not seen in other scripts.
UNSEEN = regex.compile(
    "[\u00ad\u200d-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef"
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    "\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed]"
    r"|(?<!\p{Arabic})\u200c"
)
# A power is no further digit of its base: 10⁸ is read as 10^8 is.
POWER = regex.compile("(?<=[0-9])[⁺⁻]?(?=[⁰¹²³⁴-⁹])")
FOREIGN_DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)

CJK = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
HANGUL = r"\p{Hangul}"
SPACELESS = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
OTHER = rf"(?:[[\p{{L}}\p{{M}}\p{{N}}_]--[{CJK}{HANGUL}{SPACELESS}]])"
PIECE = regex.compile(
    rf"(?P<cjk>[{CJK}]+)|(?P<hangul>[{HANGUL}]+)|(?P<spaceless>[{SPACELESS}][{SPACELESS}\p{{M}}]*)"
    r"|(?P<number>[0-9]+(?:[.,][0-9]+)+)"
    # C++ and C# are whole, and so is a dot before a word (.NET), but a word after a dot (example.com) is not.
    rf"|(?P<word>(?:(?<![\w.])\.(?=\p{{L}}))?{OTHER}+(?:\+\+(?![+\p{{L}}])|\#(?![\w\#]))?)",
    regex.V1,
)
# A letter with its marks; in Khmer and Burmese also the letters that stand below it.
LETTER = regex.compile(r".(?:\p{M}|(?<=[\u17d2\u1039])\p{L})*", regex.V1)
SYLLABIC = regex.compile(r"[\p{Khmer}\p{Myanmar}]")
KOREAN = regex.compile("[가-힣]+")
HAN = regex.compile(r"\p{Han}")
GROUPED = regex.compile(r"[0-9]{1,3}(?:,[0-9]{3})+")
# Where a name consists of words: at underscores, before a capital letter, and between a digit and a letter.
JOINT = regex.compile(r"_+|(?<=\p{Ll}{2})(?=\p{Lu}\p{Ll})|(?<=\p{Nd})(?=\p{L})", regex.V1)


def analyze(text: str) -> list[str]:
    """The terms of a passage or a query, each as often as it occurs.

    >>> analyze("The Ω-meter, 3.5 kg"), analyze("電容器 C++")
    (['the', 'ω', 'meter', '3.5', 'kg'], ['電', '容', '器', '電容', '容器', 'c++'])
    >>> analyze("물은 snake_case")
    ['물', '물은', 'snake_case', 'snake', 'case']
    """
    found: list[str] = []
    for chunk in text.split():
        found += _cached(chunk) if len(chunk) <= LONGEST else _terms(chunk)
    return found


def _terms(chunk: str) -> tuple[str, ...]:
    """The terms of a text without white space."""
    core = chunk.strip(EDGES).rstrip(".")
    if core.isascii():
        if core.isalpha() and (len(core) == 1 or core[1:].islower()):  # most words of most texts
            return (core.lower(),)
    elif KOREAN.fullmatch(core):
        return tuple(_hangul(core))
    if not chunk.isascii():
        chunk = UNSEEN.sub("", unicodedata.normalize("NFKC", POWER.sub(" ", chunk)))
        chunk = FOREIGN_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), chunk)
    pieces = PIECE.finditer(chunk)
    return tuple(term for piece in pieces for term in KINDS[piece.lastgroup or ""](piece[0]))


_cached = lru_cache(CACHED)(_terms)


def _cjk(piece: str) -> Iterator[str]:
    if len(piece) == 1:
        yield piece
        return
    yield from HAN.findall(piece)
    yield from (piece[place : place + 2] for place in range(len(piece) - 1))


def _hangul(piece: str) -> Iterator[str]:
    yield piece[0]
    yield from (piece[place : place + 2] for place in range(len(piece) - 1))


def _spaceless(piece: str) -> Iterator[str]:
    letters = LETTER.findall(piece)
    yield from letters if SYLLABIC.match(piece) else letters[:1]
    yield from map("".join, zip(letters, letters[1:], strict=False))


def _number(piece: str) -> Iterator[str]:
    yield piece.replace(",", "") if GROUPED.fullmatch(piece) else piece


def _word(piece: str) -> Iterator[str]:
    piece = piece.strip("_")
    parts = [part for part in JOINT.split(piece.lstrip(".")) if part]
    if piece:
        yield _folded(piece)
    if len(parts) > 1 or piece.startswith("."):
        yield from map(_folded, parts)


def _folded(word: str) -> str:
    return word.casefold().replace("i\u0307", "i")  # a capital i with a dot, as in İstanbul


KINDS = {"cjk": _cjk, "hangul": _hangul, "spaceless": _spaceless, "number": _number, "word": _word}
