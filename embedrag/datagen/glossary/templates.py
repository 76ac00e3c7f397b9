"""Query templates. They stand in JSON files, so that another language or another tone needs no code.

A file holds `kinds`. Each kind has a `type` (it is written into the rows), `queries` to fill in, and the `positive`
that answers them. `{term}` is replaced by a field; `{term:은}` adds the Korean particle in the form that fits. Terms
have the fields `term` and `definition`; acronyms have `acronym`, `full` and `definition`; both may have `category`. A
kind is used for the items that have all its fields. `most` limits how many rows a kind gives to one item.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedrag.datagen.glossary.korean_particles import NAMES, with_particle
from embedrag.errors import UserError, near_miss, raise_all

FOLDER = Path(__file__).with_name("data")
FIELDS = ("term", "definition", "category", "acronym", "full")
SHARE = 0.3  # of the letters that a script needs to decide the language
HOLE = re.compile(r"\{(\w*)(?::(\w*))?\}")


@dataclass(frozen=True)
class Kind:
    """Queries of one type, and the text that answers them.

    Attributes:
        type: name, written into the rows.
        queries: templates.
        positive: template of the answer.
        most: rows of one item, at most.
    """

    type: str
    queries: tuple[str, ...]
    positive: str
    most: int

    def fits(self, fields: Mapping[str, str]) -> bool:
        """Whether an item has every field that the templates use."""
        return all(fields.get(hole[1]) for text in (*self.queries, self.positive) for hole in HOLE.finditer(text))


@dataclass(frozen=True)
class Templates:
    """What a template file holds.

    Attributes:
        kinds: its kinds of queries.
        llm_prompt: what a language model is asked, with `{n}` (the number of queries), `{term}` and `{definition}`;
            empty when the file has none.
    """

    kinds: tuple[Kind, ...]
    llm_prompt: str


def fill(template: str, fields: Mapping[str, str]) -> str:
    """A template with its fields filled in, each with its particle.

    >>> fill("{term:은} 무엇인가?", {"term": "저항"})
    '저항은 무엇인가?'
    """
    return HOLE.sub(lambda hole: with_particle(fields[hole[1]], hole[2]) if hole[2] else fields[hole[1]], template)


def shipped() -> dict[str, Path]:
    """Language -> template file, of those that come with the package."""
    return {path.stem.removeprefix("templates_"): path for path in sorted(FOLDER.glob("templates_*.json"))}


def language_of(texts: Iterable[str]) -> str:
    """Korean, Chinese or English: the language with at least 30 % of the letters; empty for another script.

    >>> [language_of([text]) for text in ("저항 LED", "提单 B/L", "Seoul (서울), a city in the north", "でんき", "ток")]
    ['ko', 'zh', 'en', '', '']
    """
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    joined = "".join(letters)
    hangul, han, kana, latin = (
        len(re.findall(f"[{span}]", joined)) / max(1, len(joined))
        for span in ("가-힣", "\u4e00-\u9fff", "\u3040-\u30ff", "A-Za-zÀ-ɏ")
    )
    if hangul >= SHARE and hangul >= han:
        return "ko"
    if kana >= SHARE / 3:  # Japanese; about half of its letters are Chinese ones
        return ""
    return "zh" if han >= SHARE else "en" if latin >= SHARE else ""


def load(name: str) -> Templates:
    """Read a template file.

    Args:
        name: its path, or the language of a file that comes with the package.

    Raises:
        UserError: with every problem of the file.
    """
    path = shipped().get(name) or Path(name).expanduser()
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}, column {error.colno})", "templates") from None
    except UnicodeDecodeError:
        raise UserError("not UTF-8; save it as UTF-8", "templates", name) from None
    except OSError as error:
        reason = f"{error.strerror or error}; give a file, or one of {', '.join(shipped())}"
        raise UserError(reason, "templates", name) from None
    kinds = data.get("kinds") if isinstance(data, dict) else None
    if not isinstance(kinds, list) or not kinds:
        raise UserError('must hold {"kinds": [{"type", "queries", "positive"}, …]}', "templates", name)
    prompt = data.get("llm_prompt", "")
    problems = [f"kinds[{i}]: {text}" for i, kind in enumerate(kinds) for text in _problems(kind)]
    if not isinstance(prompt, str) or (prompt and not {"{n}", "{definition}"} <= set(re.findall(r"\{\w+\}", prompt))):
        problems.append("llm_prompt must be a text with {n} and {definition}")
    raise_all(UserError(problem, "templates", name) for problem in problems)
    made = [Kind(k["type"], tuple(dict.fromkeys(k["queries"])), k["positive"], k.get("most", 10**9)) for k in kinds]
    return Templates(tuple(made), prompt)


def _problems(kind: Any) -> list[str]:
    """What is wrong with one kind of a file."""
    if not isinstance(kind, dict):
        return ["must be an object"]
    problems = [
        f"unknown key {key}{near_miss(key, ('type', 'queries', 'positive', 'most'))}"
        for key in set(kind) - {"type", "queries", "positive", "most"}
    ]
    queries, positive = kind.get("queries"), kind.get("positive")
    if not isinstance(kind.get("type"), str) or not kind["type"]:
        problems.append("type must be a name")
    if not isinstance(queries, list) or not queries or not all(isinstance(q, str) and q.strip() for q in queries):
        return [*problems, "queries must be a list of texts"]
    if not isinstance(positive, str) or not HOLE.search(positive):
        return [*problems, "positive must be a text with a field, such as {definition}"]
    most = kind.get("most", 1)
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        problems.append("most must be a number of at least 1")
    for text in [*queries, positive]:
        for name, particle in HOLE.findall(text):
            if name not in FIELDS:
                problems.append(
                    f"{text!r}: there is no field {{{name}}}{near_miss(name, FIELDS)}; the fields are "
                    f"{', '.join(FIELDS)}"
                )
            if particle and particle not in NAMES:
                problems.append(f"{text!r}: unknown particle {particle}; the particles are {', '.join(NAMES)}")
        if text in queries and not HOLE.search(text):
            problems.append(f"{text!r}: has no field, so every term would get the same query")
    return problems
