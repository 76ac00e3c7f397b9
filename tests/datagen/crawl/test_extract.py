"""What counts as a term with its definition on a page, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from embedrag.datagen.crawl.extract import extract
from embedrag.datagen.crawl.pages import links_of
from embedrag.datagen.crawl.politeness import PageError


def test_several_terms_and_several_parts_of_a_definition_list_are_joined() -> None:
    html = "<dl><div><dt>amp<dt>ampere<dd>The unit of current.<dd>One coulomb a second.</div></dl>"
    joined = "The unit of current. One coulomb a second."
    assert extract(html) == [("amp", joined), ("ampere", joined)]


@pytest.mark.parametrize(
    ("term", "meaning"),
    [
        ("Term", "Definition"),
        ("용어", "설명"),
        ("术语", "定义"),
        ("用語", "説明"),
        ("Begriff", "Bedeutung"),
        ("Terme", "Définition"),
        ("용어명", "용어 설명"),
        ("약어", "뜻풀이"),
        ("中文名称", "释义"),
        ("术语名称", "定义"),
        ("术语名称", "定义与说明"),
        ("Name", "Definition"),
        ("Term (English)", "Meaning of the term"),
    ],
)
def test_table_is_read_by_its_headings_in_several_languages(term: str, meaning: str) -> None:
    rows = (
        "<tr><td>1<td rowspan=2>ohm<td>The unit of resistance to a current.<tr><td>2<td>Also the name of a physicist."
    )
    found = extract(f"<table><caption>x</caption><tr><th>No.<th>{term}<th>{meaning}{rows}</table>")
    assert found == [("ohm", "The unit of resistance to a current."), ("ohm", "Also the name of a physicist.")]


def test_table_with_other_headings_is_not_a_glossary() -> None:
    row = "<tr><td>1999<td>Somebody whose name is rather long"
    for first, second in (("Year", "Winner"), ("Name", "Description"), ("名称", "说明"), ("Term no.", "Definition")):
        assert extract(f"<table><tr><th>{first}<th>{second}{row}") == []


def test_cell_over_both_columns_is_not_a_pair() -> None:
    rows = "<tr><td colspan=2>Units that are named after physicists<tr><td>ohm<td>The unit of resistance to a current."
    assert extract(f"<table><tr><th>Term<th>Definition{rows}</table>") == [
        ("ohm", "The unit of resistance to a current.")
    ]


@pytest.mark.parametrize(
    "line",
    [
        "<p><b>ohm</b>: {}",
        "<li><strong>ohm</strong> – {}",
        "<p><b>ohm:</b> {}",
        "<p>**ohm** – {}",
        "<li><a><b>ohm</b></a> - {}",
    ],
)
def test_line_with_a_bold_term_is_a_pair(line: str) -> None:
    assert extract(line.format("The unit of resistance to a current.")) == [
        ("ohm", "The unit of resistance to a current.")
    ]


def test_plain_lines_count_only_where_there_are_several() -> None:
    lines = [f"<p>word{i}: the meaning of the word number {i}.</p>" for i in range(3)]
    assert len(extract("".join(lines))) == 3
    assert extract("".join(lines[:2])) == []


def test_plain_lines_between_prose_are_not_a_glossary_and_those_in_a_row_are() -> None:
    lines = [f"<p>word{i}: the meaning of the word number {i}.</p>" for i in range(3)]
    prose = ["<p>A paragraph that defines nothing at all.</p>"] * 4
    assert extract("".join([*prose, *lines])) == extract("".join(lines))
    apart = [text for line in lines for text in (line, *prose)]
    assert extract("".join(apart)) == []


@pytest.mark.parametrize("bold", ["{}", "<b>{}</b>"])
def test_lines_about_the_page_are_not_terms(bold: str) -> None:
    heads = ["Author", "Published", "Last updated", "Opening hours", "작성자", "发布时间"]
    lines = [f"<p>{bold.format(head)}: somebody who wrote this in the year 1999</p>" for head in heads]
    home = f"<p>{bold.format('Home')} - the page on which everything begins</p>"
    assert extract("".join([*lines, home])) == []
    assert len(extract("".join(line.replace(head, f"my {head}") for line, head in zip(lines, heads, strict=True)))) == 6


@pytest.mark.parametrize("mark", ["1. {}", "(2) {}", "3) {}", "① {}", "- 4. {}", "5.{}"])
def test_lines_may_be_numbered(mark: str) -> None:
    meaning = "교류 회로에서 전류의 흐름을 방해하는 정도이다."
    names = ("임피던스", "리액턴스", "어드미턴스")
    expected = [(name, meaning) for name in names]
    assert extract("".join(f"<p>{mark.format(name)}: {meaning}</p>" for name in names)) == expected
    assert extract(f"<p><b>{mark.format(names[0])}</b>: {meaning}</p>") == expected[:1]
    assert extract(f"<p><b>3.3 V</b>: {meaning}</p>") == [("3.3 V", meaning)]


def test_page_inside_a_form_and_folded_definitions_are_read() -> None:
    hidden = ["hidden", "aria-hidden=true", "style='display: none'", "class='collapse hidden'"]
    items = "".join(
        f"<dt><button>term {i}</button></dt><dd {how}>The meaning of term number {i}.</dd>"
        for i, how in enumerate(hidden)
    )
    expected = [(f"term {i}", f"The meaning of term number {i}.") for i in range(len(hidden))]
    assert extract(f"<form><dl>{items}</dl></form>") == expected
    assert extract(f"<form><div hidden><dl>{items}</dl></div></form>") == []


def test_table_whose_rows_have_headings_needs_no_heading_of_its_own() -> None:
    rows = [f"<tr><th scope=row>unit {i}<td>The name of a measure with number {i}." for i in range(3)]
    assert extract(f"<table>{''.join(rows)}</table>") == [
        (f"unit {i}", f"The name of a measure with number {i}.") for i in range(3)
    ]
    assert extract(f"<table>{''.join(rows[:2])}</table>") == []
    assert extract(f"<table><tr><th>Year<th>Winner{''.join(rows)}</table>") == []


def test_inner_list_is_not_part_of_the_outer_definition() -> None:
    inner = "<dl><dt>series circuit<dd>One part comes behind the other.</dl>"
    assert extract(f"<dl><dt>circuit<dd>A closed path of a current.{inner}</dl>") == [
        ("circuit", "A closed path of a current."),
        ("series circuit", "One part comes behind the other."),
    ]
    indented = "<dl><dd>It may have branches.</dl>"  # what a wiki writes for an indented line
    assert extract(f"<dl><dt>circuit<dd>A closed path of a current.{indented}</dl>") == [
        ("circuit", "A closed path of a current. It may have branches.")
    ]


def test_marks_and_hidden_parts_are_cleaned_away() -> None:
    html = (
        "<dl><dt>volt<sup class=reference>[1]</sup><span class=mw-editsection>[edit]</span>"
        "<dd>The unit<span style='display:none'>secret</span> of <i>electric</i> potential[12]."
        "<script>no()</script></dl>"
        "<div hidden><dl><dt>ghost<dd>Nobody sees this definition at all.</dl></div>"
    )
    assert extract(html) == [("volt", "The unit of electric potential.")]


def test_formula_of_wikipedia_keeps_its_text() -> None:
    image = '<img class="mwe-math-fallback-image-inline mw-invert" aria-hidden="true" alt="{\\displaystyle x^{2}}">'
    assert extract(f"<dl><dt>square<dd>The product {image} of a number with itself.") == [
        ("square", "The product x^{2} of a number with itself.")
    ]


def test_short_long_doubled_and_mere_references_are_dropped() -> None:
    good = "<dt>volt<dd>The unit of electric potential."
    bad = "<dt>x<dd>A term of one letter only.<dt>amp<dd>Short.<dt>ohm<dd>See the article about resistance."
    assert len(extract(f"<dl>{good}{good.upper()}{bad}<dt>long<dd>{'word ' * 500}</dl>")) == 1


@pytest.mark.parametrize("html", ["", "<", "\0" * 100, "<dl>" * 500, "<table><tr><td>" * 300, "<dl><dt>", "]]>" * 9])
def test_broken_markup_gives_nothing_and_no_error(html: str) -> None:
    assert extract(html) == []


def test_markup_nested_without_end_is_refused_at_once() -> None:
    with pytest.raises(PageError, match="nested"):
        extract("<dl><dt>a<dd>" * 100_000)


def of(definition: str, term: str = "Volt") -> list[tuple[str, str]]:
    return extract(f"<dl><dt>{term}</dt><dd>{definition}</dd></dl>")


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("About 3 × 10<sup>8</sup> m/s in a vacuum", "About 3 × 10^8 m/s in a vacuum"),
        ("A mass of 10<sup>−31</sup> kg at rest, more or less", "A mass of 10^−31 kg at rest, more or less"),
        ("Water, which is H<sub>2</sub>O, and not much else", "Water, which is H2O, and not much else"),
        ("The voltage V<sub>CE</sub> of a transistor in use", "The voltage V_CE of a transistor in use"),
        ("The 2<sup>nd</sup> law of the thermodynamics here", "The 2nd law of the thermodynamics here"),
        ("A unit of potential<sup>[1]</sup><sup>[a]</sup> of charge", "A unit of potential of charge"),
        (
            '<math><mi>E</mi><annotation encoding="application/x-tex">{\\displaystyle E}</annotation></math>, its '
            "energy in joule",
            "E, its energy in joule",
        ),
        ("A price of <del>12</del><ins>15</ins> units, since the summer", "A price of 15 units, since the summer"),
        ("Un&shy;it of elec\u00adtric&nbsp;potential &amp; more", "Unit of electric potential & more"),
        ("Left\u200e-to\u2060-right \u202aunit\u202c of potential", "Left-to-right unit of potential"),
        ("می\u200cخواهم و نمی\u200cروم از این خانه", "می\u200cخواهم و نمی\u200cروم از این خانه"),
        ("first line<br>second line of the text", "first line second line of the text"),
        ('A definition with a <a href="x">link</a><span class="octicon">↗</span>.', "A definition with a link."),
    ],
)
def test_text_keeps_the_meaning_that_its_markup_has(markup: str, text: str) -> None:
    assert of(markup) == [("Volt", text)]


@pytest.mark.parametrize(
    ("markup", "term"),
    [
        ("<ruby>抵抗<rt>ていこう</rt></ruby>", "抵抗"),
        ("<ruby>漢<rp>(</rp><rt>かん</rt><rp>)</rp>字<rp>(</rp><rt>じ</rt><rp>)</rp></ruby>", "漢字"),
        ('Volt<a class="headerlink" href="#volt">¶</a>', "Volt"),
        ('Volt <a class="permalink" href="#volt">#</a>', "Volt"),
        ("Volt¶", "Volt"),
        ("CO<sub>2</sub>", "CO2"),
    ],
)
def test_term_is_what_a_reader_calls_it(markup: str, term: str) -> None:
    assert of("The unit of electric potential.", markup) == [(term, "The unit of electric potential.")]


def steps(html: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many elements are looked at, and how many thousands of characters are cleaned."""
    from embedrag.datagen.crawl import extract as module

    count = 0
    children, clean = module._children, module._clean

    def counted(node: Any) -> Any:
        nonlocal count
        for child in children(node):
            count += 1
            yield child

    def cleaned(text: str) -> str:
        nonlocal count
        count += len(text) // 1000
        return clean(text)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_children", counted)
        patch.setattr(module, "_clean", cleaned)
        extract(html)
    return count


HOSTILE = {
    "objects in paragraphs": lambda n: "<p><object>x" * n,
    "buttons in paragraphs": lambda n: "<p><button>x</x>" * n,
    "cells over many rows": lambda n: (
        "<table><tr><th>term<th>definition<tr>"
        + f"<td rowspan=1000 colspan=50>{'word ' * 100 * n}" * 4
        + "<tr>" * n
        + "</table>"
    ),
    "items": lambda n: "<ul>" + "<li><b>Term</b>: text " * n + "</ul>",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_work_for_a_page_grows_as_its_length(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (steps(HOSTILE[kind](n), monkeypatch) for n in (40, 160))
    assert large <= 5 * small + 50, (small, large)


def test_pages_that_once_took_days_end_at_once() -> None:
    long = " " * 100_000
    assert links_of(f"<loc>{long}x") == [] and links_of("<loc>" * 10_000) == []
    assert extract(f'<dl><dt>Volt<dd><img class="mwe-math-fallback-image" alt="{{\\displaystyle{long}x"></dl>') == []
    with pytest.raises(PageError, match="nested too deeply"):
        extract("<object>" * 4000)
    assert extract(f"<table><tr><th>term<th>definition<tr><td rowspan={'9' * 5000}>a<td>b</table>") == []
