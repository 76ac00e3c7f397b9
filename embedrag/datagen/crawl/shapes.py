"""Shapes of glossaries other than lists, tables and "term: definition" lines.

Two of them are sure: `DefinedTerm` of schema.org, and `<dfn>` at the beginning of a paragraph. The others look like any
page: headings with a paragraph, bold words with a line below, `<details>`, boxes with the classes `term` and
`definition`. They count only on a page that calls itself a glossary in its title or in its first heading, and only when
a shape occurs three times or more.

The text of each element is read once, so the work grows as the length of the page.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from selectolax.lexbor import LexborHTMLParser, LexborNode

Pair = tuple[str, str]
Text = Callable[[LexborNode], str]
Children = Callable[[LexborNode], Iterator[LexborNode]]

RUN = 3  # pairs that a shape must give
MOST_CHARACTERS = 20_000_000  # of microdata on a page
MOST_VALUES = 100_000  # values of a JSON-LD block that are looked at
_GLOSSARY = re.compile(
    r"glossar|glosario|lexikon|lexique|lexicon|terminolog|dictionar|diccionario|dizionario|vocabular|wörterbuch"
    r"|terms and definitions|key terms|definitions|a[-–]z of"
    r"|용어|사전|术语|術語|词汇|詞彙|词典|辞典|用語|глоссари|словар",
    re.I,
)
_HEADINGS = ("h2", "h3", "h4", "h5", "h6")
_BLOCKS = ("p", "div", "ul", "ol", "section")
_TERM_CLASS = re.compile(r"(?:^|[-_])(?:term|headword|glossary[-_]?word)(?:[-_](?:name|title|text))?$", re.I)
_MEANING_CLASS = re.compile(r"(?:^|[-_])(?:definition|meaning|explanation)(?:[-_](?:text|body|content))?$", re.I)
_ARTICLE = re.compile(r"(?:(?:an?|the|ein|eine|der|die|das|un|une|le|la|les|el|los|las)\s+|l['’])?", re.I)


def is_glossary(parser: LexborHTMLParser) -> bool:
    """Whether a page calls itself a glossary, in its title or in its first heading."""
    names = [node.text() for node in (parser.css_first("title"), parser.css_first("h1")) if node]
    return any(_GLOSSARY.search(name[:300]) for name in names)


def defined_terms(parser: LexborHTMLParser) -> Iterator[Pair]:
    """Name and description of each `DefinedTerm` of schema.org, from JSON-LD and from microdata."""
    for script in parser.css('script[type="application/ld+json"]'):
        try:
            todo: list[Any] = [json.loads(script.text() or "")]
        except (ValueError, RecursionError):
            continue
        for _ in range(MOST_VALUES):
            if not todo:
                break
            value = todo.pop()
            if isinstance(value, list):
                todo += reversed(value)
            elif isinstance(value, dict):
                kinds = value.get("@type")
                term, meaning = value.get("name"), value.get("description")
                if "DefinedTerm" in (kinds if isinstance(kinds, list) else [kinds]):
                    if isinstance(term, str) and isinstance(meaning, str):
                        yield term, meaning
                todo += reversed(list(value.values()))
    read = 0
    for item in parser.css('[itemtype$="schema.org/DefinedTerm"]'):
        name, about = (item.css_first(f'[itemprop="{key}"]') for key in ("name", "description"))
        if name and about:
            found = _content(name), _content(about)
            read += sum(map(len, found))
            yield found
        if read > MOST_CHARACTERS:  # terms inside of terms: each level reads the same text again
            return


def _content(node: LexborNode) -> str:
    return node.attributes.get("content") or node.text()


def dfn_pair(node: LexborNode, text: str, children: Children, read: Text) -> Pair | None:
    """The pair of a paragraph that begins with a `<dfn>`, such as `A <dfn>capacitor</dfn> is a part that …`."""
    for child in children(node):
        if child.tag == "-text" and _ARTICLE.fullmatch((child.text_content or "").strip() + " "):
            continue
        if child.tag == "-text" and not (child.text_content or "").strip():
            continue
        inner = child
        while inner.tag in ("b", "strong", "a", "span", "em", "i"):
            first = next((one for one in children(inner) if one.tag != "-text"), None)
            if first is None:
                return None
            inner = first
        return (read(inner), text) if inner.tag == "dfn" else None
    return None


def page_shapes(root: LexborNode, children: Children, read: Text) -> list[Pair]:
    """Pairs of the shapes that any page may have; only for a page that calls itself a glossary.

    Args:
        root: of the page.
        children: gives the children of an element that a reader sees.
        read: gives the text of an element that a reader sees.
    """
    found: dict[str, list[Pair]] = defaultdict(list)
    term = ""  # of the last element with the class of a term
    todo = [root]
    while todo:
        node = todo.pop()
        inner = [child for child in children(node) if child.tag != "-text"]
        classes = (node.attributes.get("class") or "").split()
        if any(map(_TERM_CLASS.search, classes)):
            term = read(node)
            continue
        if any(map(_MEANING_CLASS.search, classes)):
            if term:
                found["classes"].append((term, read(node)))
                term = ""
            continue
        if node.tag == "details":
            if inner and inner[0].tag == "summary":
                found["details"].append((read(inner[0]), " ".join(map(read, inner[1:]))))
            continue
        if node.tag in ("p", "div") and inner[1:] and inner[0].tag in ("b", "strong") and inner[1].tag == "br":
            whole, bold = read(node).strip(), read(inner[0]).strip()
            if whole.startswith(bold):
                found["bold"].append((bold, whole[len(bold) :]))
                continue
        _of_headings(inner, found, read)
        todo += reversed(inner)
    return [pair for pairs in found.values() if len(pairs) >= RUN for pair in pairs]


def _of_headings(inner: list[LexborNode], found: dict[str, list[Pair]], read: Text) -> None:
    """Headings among the children of an element, each with the blocks up to the next heading."""
    number = 0
    while number < len(inner):
        node = inner[number]
        number += 1
        if node.tag not in _HEADINGS:
            continue
        parts = []
        while number < len(inner) and inner[number].tag in _BLOCKS:
            parts.append(inner[number])
            number += 1
        if parts and parts[0].tag in ("p", "div") and not any(part.css_first("h1,h2,h3,h4,h5,h6") for part in parts):
            found[str(node.tag)].append((read(node), " ".join(map(read, parts))))
