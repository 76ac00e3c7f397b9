"""Glossaries of companies and manuals that are neither lists nor tables; and pages that only look like them."""

from __future__ import annotations

import json

import pytest

from embedrag.datagen.crawl.extract import extract

TERMS = {
    "Capacitor": "A part that stores energy in an electric field.",
    "Diode": "A part that lets a current pass in one direction.",
    "Relay": "A switch that another electric circuit opens and closes.",
}


def page(body: str, title: str = "Glossary of electronics") -> str:
    return f"<html><head><title>{title}</title></head><body><h1>{title}</h1>{body}</body></html>"


def each(form: str) -> str:
    return "".join(form.format(term=term, text=text) for term, text in TERMS.items())


SHAPES = {
    "headings": each("<h3>{term}</h3><p>{text}</p>"),
    "headings in boxes": each("<div class=item><h4>{term}</h4><div>{text}</div></div>"),
    "headings below letters": "<h2>A</h2>" + each("<h3>{term}</h3><p>{text}</p>"),
    "bold and a line": each("<p><b>{term}</b><br>{text}</p>"),
    "strong and a line": each("<div><strong>{term}</strong><br/>{text}</div>"),
    "strong and a colon": each("<p><strong>{term}</strong>: {text}</p>"),
    "details": each("<details><summary>{term}</summary><p>{text}</p></details>"),
    "classes": each('<div class="glossary-term">{term}</div><div class="glossary-definition">{text}</div>'),
    "classes in an entry": each('<li><span class="term">{term}</span> <span class="definition">{text}</span></li>'),
    "table": "<table><tr><th>Term<th>Definition</tr>" + each("<tr><td>{term}<td>{text}</tr>") + "</table>",
    "microdata": each(
        '<div itemscope itemtype="https://schema.org/DefinedTerm"><span itemprop="name">{term}</span>'
        '<span itemprop="description">{text}</span></div>'
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("title", ["Glossary of electronics", "전자 용어집", "Fachlexikon Elektronik"])
def test_shape_of_a_glossary_is_read(shape: str, title: str) -> None:
    assert extract(page(SHAPES[shape], title)) == list(TERMS.items())


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"table", "strong and a colon", "microdata"}))
def test_same_shape_on_an_ordinary_page_is_nothing(shape: str) -> None:
    for title in ("Our products", "Ten parts that you need", "FAQ", "Terms and conditions", "회사 소개"):
        assert extract(page(SHAPES[shape], title)) == []


def test_two_of_a_shape_are_too_few() -> None:
    assert extract(page("<h3>Diode</h3><p>A part that lets a current pass in one direction.</p>" * 2)) == []


def test_article_about_a_glossary_gives_no_pairs_of_its_sections_without_text() -> None:
    sections = "".join(f"<h2>Chapter {n}</h2><h3>Part</h3><ul><li>one<li>two</ul>" for n in range(5))
    assert extract(page(sections)) == []


def test_defined_terms_of_json_ld_are_read_and_other_objects_are_not() -> None:
    terms = [{"@type": "DefinedTerm", "name": term, "description": text} for term, text in TERMS.items()]
    data = {"@graph": [{"@type": "DefinedTermSet", "name": "All of our terms", "hasDefinedTerm": terms}]}
    product = {"@type": "Product", "name": "Relay 5 V", "description": "A very good relay for your next project."}
    for body, expected in ((data, list(TERMS.items())), (product, []), ("{", []), ([[]] * 3, [])):
        text = body if isinstance(body, str) else json.dumps(body)
        assert extract(page(f'<script type="application/ld+json">{text}</script>', "Shop")) == expected


@pytest.mark.parametrize(
    ("markup", "term"),
    [
        ("<p>A <dfn>capacitor</dfn> is a part that stores energy.</p>", "capacitor"),
        ("<p><dfn><abbr>SSD</abbr></dfn> is a disk without moving parts.</p>", "SSD"),
        ("<p><b><dfn>Volt</dfn></b> is the unit of electric potential.</p>", "Volt"),
        ("<p>In a later chapter we call it a <dfn>capacitor</dfn>, as others do.</p>", None),
        ("<p>A <b>good</b> part is one that stores much energy.</p>", None),
    ],
)
def test_dfn_at_the_beginning_defines_a_term(markup: str, term: str | None) -> None:
    found = extract(page(markup, "Physics"))
    assert [pair[0] for pair in found] == ([term] if term else [])
