"""Terms and definitions of an HTML page: definition lists, tables with fitting headings, "term: definition" lines.

Further shapes are in `embedrag.datagen.crawl.shapes`.

The parser (selectolax) reads broken markup as browsers do, by the rules of HTML 5. The tree is never changed: hidden
parts are skipped, because removing nodes that other objects still use leads to crashes. The walks use their own stack
instead of recursion, so ten thousand nested boxes are no problem.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import groupby

from selectolax.lexbor import LexborHTMLParser, LexborNode

from embedrag.data.markup import text_of
from embedrag.datagen.crawl.politeness import PageError
from embedrag.datagen.crawl.shapes import defined_terms, dfn_pair, is_glossary, page_shapes
from embedrag.datagen.glossary.column_names import NO_TERM, NOTE, REFERENCE_ONLY, WEAK, columns_of
from embedrag.datagen.glossary.tables import bare

Pair = tuple[str, str]
Cell = tuple[LexborNode, str]  # a cell of a table, and its text

TERM_CHARACTERS = (2, 100)
DEFINITION_CHARACTERS = (20, 2000)  # a character of Chinese, Japanese or Korean counts as two
DEPTH = 6  # lists and tables inside each other; a glossary has fewer, and each level reads the same text again
MOST_NESTED = 2000
LONGEST = 100_000  # characters before spaces are counted as one; a longer text is not even cleaned
_TAG = re.compile(r"<(/?)([a-z][a-z0-9-]*)", re.I)
# Tags that authors may leave open, and tags without an end.
_OPEN = set("p li dt dd tr td th thead tbody tfoot option optgroup colgroup caption rb rt rp body html head".split())
_OPEN |= set("area base br col embed hr img input link meta param source track wbr".split())
_SKIPPED_TAGS = set("script style noscript template head nav footer aside select svg iframe".split())
_SKIPPED_CLASSES = set(
    "reference mw-editsection noprint navbox hatnote toc reflist references mw-empty-elt mw-cite-backlink metadata "
    "ambox sidebar infobox catlinks mw-jump-link visually-hidden sr-only hidden headerlink permalink anchor-link "
    "anchorjs-link heading-anchor external-link-icon octicon".split()
)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_BOLD = {"b", "strong", "dfn"}
_LINE = re.compile(
    r"^(?P<mark>\*\*|__)?(?P<term>[^:：\n]{1,100}?):?(?:\*\*|__)?"
    r"\s*(?::\s|：|\s[–—-]{1,2}\s|——)\s*(?P<rest>\S.*)$"
)
_COUNTED = re.compile(r"^(?:[-*•·]\s+)?(?:\(?\d{1,3}[.)](?!\d)\s*|[①-⑳]\s*)?")  # the bullet or number of a line
# Hyphens that are not shown, marks of direction, spaces without width. Joiners stay: Persian and Hindi need them.
_INVISIBLE = dict.fromkeys(
    [0xAD, 0x200B, 0xFEFF, 0x2060, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)
_RUN = 3  # plain lines that a glossary must have
_SEPARATOR = re.compile(r"^\s*(?::\s*|：\s*|[–—-]{1,2}\s+|——\s*)")


def extract(html: str) -> list[Pair]:
    """(term, definition) of a page, in its order. Too short, too long and repeated ones are left out.

    Raises:
        PageError: when the markup is nested so deeply that it would take minutes to parse it.

    >>> extract("<dl><dt>Volt[1]<dd>The unit of <b>electric</b> potential.</dl>")
    [('Volt', 'The unit of electric potential.')]
    """
    if _deepest(html) > MOST_NESTED:
        raise PageError("the markup is nested too deeply")
    parser = LexborHTMLParser(html)
    root = parser.root
    found: list[Pair] = list(defined_terms(parser))
    lines: list[tuple[list[Pair], bool]] = []
    todo = [(root, False, 0)] if root else []
    while todo:
        node, inside, depth = todo.pop()
        tag = node.tag or ""
        depth += tag in ("dl", "table", "li")
        if depth > DEPTH:
            continue
        if tag == "dl":
            found += _of_list(node)
            inside = True
        elif tag == "table":
            rows = list(_of_table(node))
            found += rows
            inside = inside or bool(rows)
        elif tag in ("p", "li") and not inside:
            inside = tag == "p"  # a paragraph in a paragraph would be read again with each of those around it
            text = _clean(_text(node, without=("ul", "ol") if tag == "li" else ()))
            if text:
                pairs, certain = _of_line(node, text)
                if not pairs and (defined := dfn_pair(node, text, _children, _text)):
                    pairs, certain = [defined], True
                lines.append((tidy(pairs), certain))
                found += pairs if certain else []
        todo += [(child, inside, depth) for child in reversed(list(_children(node))) if child.tag != "-text"]
    shaped = page_shapes(root, _children, _text) if root and is_glossary(parser) else []
    return tidy([*found, *_plain(lines), *shaped])


def _plain(lines: list[tuple[list[Pair], bool]]) -> Iterator[Pair]:
    """Pairs of plain lines. All count if most lines of the page are pairs; otherwise only several in a row do."""
    most = 2 * sum(bool(pairs) for pairs, _ in lines) > len(lines)
    for are_pairs, group in groupby(lines, key=lambda line: most or bool(line[0])):
        pairs = [pair for found, certain in group for pair in found if not certain]
        if are_pairs and len(pairs) >= _RUN:
            yield from pairs


def _deepest(html: str) -> int:
    depth = deepest = 0
    for match in _TAG.finditer(html):
        if match[2].lower() in _OPEN:
            continue
        depth = max(0, depth - 1) if match[1] else depth + 1
        deepest = max(deepest, depth)
    return deepest


def tidy(pairs: Iterable[Pair]) -> list[Pair]:
    """Clean terms and definitions; drop the too short and too long ones, mere references and repeats."""
    kept: dict[Pair, Pair] = {}
    for term, definition in pairs:
        if len(term) > LONGEST or len(definition) > LONGEST:
            continue
        term = _clean(term).strip(" :：–—-*•·¶↗")
        definition = re.sub(r"^[:：–—]\s*", "", _clean(definition)).strip("* ")
        fits = TERM_CHARACTERS[0] <= _width(term) and len(term) <= TERM_CHARACTERS[1]
        fits &= DEFINITION_CHARACTERS[0] <= _width(definition) and len(definition) <= DEFINITION_CHARACTERS[1]
        fits &= bare(term) != bare(definition)  # a cell that spans both columns
        if fits and re.search(r"\w", term) and not REFERENCE_ONLY.match(definition):
            kept.setdefault(pair_key((term, definition)), (term, definition))
    return list(kept.values())


def pair_key(pair: Pair) -> Pair:
    """A key that is the same for two pairs that differ only in case, width, spacing or punctuation."""
    return bare(pair[0]), bare(pair[1])


def _children(node: LexborNode) -> Iterator[LexborNode]:
    """Children that a reader sees, and texts."""
    child = node.child
    while child is not None:
        if child.tag == "-text" or (child.is_element_node and not _is_hidden(child)):
            yield child
        child = child.next


def _is_hidden(node: LexborNode) -> bool:
    if node.tag in _SKIPPED_TAGS:
        return True
    if node.tag == "dd":  # some pages hide it until the reader clicks on its term
        return False
    attributes = node.attributes
    if not attributes:
        return False
    classes = (attributes.get("class") or "").split()
    if not _SKIPPED_CLASSES.isdisjoint(classes) or "hidden" in attributes or attributes.get("aria-hidden") == "true":
        return not any("mwe-math-fallback" in name for name in classes)
    return bool(_HIDDEN.search(attributes.get("style") or ""))


def _text(node: LexborNode, without: tuple[str, ...] = ()) -> str:
    """Text that a reader sees, without the tags of `without`."""
    return text_of(node, without, _children)


def _clean(text: str) -> str:
    text = NOTE.sub("", text.translate(_INVISIBLE))
    text = "".join(" " if unicodedata.category(c) in ("Cc", "Zs", "Zl", "Zp") else c for c in text)
    return re.sub(r"\s+([,.;)])", r"\1", " ".join(text.split()))


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _of_list(node: LexborNode) -> Iterator[Pair]:
    """Each <dt> with all <dd> that follow it. Several <dt> in a row share them. Each may stand in a <div>."""
    terms: list[str] = []
    parts: list[str] = []
    items = [inner for child in _children(node) for inner in (_children(child) if child.tag == "div" else [child])]
    for item in items:
        if item.tag == "dt":
            if parts:
                yield from ((term, " ".join(parts)) for term in terms)
                terms, parts = [], []
            terms.append(_text(item))
        elif item.tag == "dd" and terms:
            parts.append(_text(item, without=("dl",) if item.css_first("dl dt") else ()))
    if parts:
        yield from ((term, " ".join(parts)) for term in terms)


def _of_table(node: LexborNode) -> Iterator[Pair]:
    """Rows below a heading that names a term and a definition; or all rows, if each has a heading and one cell."""
    rows = list(_rows(node))
    columns = (0, 1) if len(rows) >= _RUN and all(_is_headed(cells) for cells in rows) else None
    last: Pair | None = None
    for number, cells in enumerate(rows):
        texts = [text for _, text in cells]
        if columns:
            found = (texts[columns[0]], texts[columns[1]]) if len(texts) > max(columns) else None
            if found and found != last:
                yield found
            last = found
        elif number < 3:
            places, ranks = columns_of(texts) or (None, (0, 0))
            # Tables of any kind may have the headings "name" and "description".
            columns = places if any(rank % 3 != WEAK for rank in ranks) else None


def _is_headed(cells: list[Cell]) -> bool:
    return len(cells) == 2 and cells[0][0].attributes.get("scope") == "row" and cells[1][0].tag == "td"


def _rows(table: LexborNode) -> Iterator[list[Cell]]:
    """Cells of a table and their texts, row by row. A cell that spans several rows or columns is repeated."""
    groups = [child for child in _children(table) if child.tag in ("thead", "tbody", "tfoot")]
    lines = [row for group in [*groups, table] for row in _children(group) if row.tag == "tr"]
    hanging: dict[int, tuple[int, Cell]] = {}
    for line in lines:
        row: list[Cell] = []
        cells = [cell for cell in _children(line) if cell.tag in ("td", "th")]
        while cells or len(row) in hanging:
            if len(row) in hanging:
                rest, cell = hanging.pop(len(row))
                span = 1
            else:
                node = cells.pop(0)
                cell = (node, _clean(_text(node, without=("table",))))
                rest, span = _span(node, "rowspan", 1000), _span(node, "colspan", 50)
            for _ in range(span):
                if rest > 1:
                    hanging[len(row)] = (rest - 1, cell)
                row.append(cell)
                if len(row) > 200:
                    return
        yield row


def _span(cell: LexborNode, name: str, most: int) -> int:
    text = cell.attributes.get(name) or "1"
    return min(int(text[:6]), most) if text.isdecimal() and int(text[:6]) else 1


def _of_line(node: LexborNode, text: str) -> tuple[list[Pair], bool]:
    """The pair of a paragraph or list item with this text (or none), and whether bold type makes it certain."""
    parts = [child for child in _children(node) if child.tag != "-text" or (child.text_content or "").strip()]
    first = parts[0] if parts else None
    while first is not None and first.tag not in _BOLD and first.tag in ("a", "span", "i", "em"):
        first = next(_children(first), None)
    if first is not None and first.tag in _BOLD:
        bold = _clean(_text(first))
        rest = text.removeprefix(bold)
        separator = _SEPARATOR.match(rest) or re.search(r"[:：]$", bold)
        if rest != text and separator:
            bold = _COUNTED.sub("", bold)
            return ([] if _is_no_term(bold) else [(bold, _SEPARATOR.sub("", rest))]), True
        return [], False
    if line := _LINE.match(_COUNTED.sub("", text)):
        term = line["term"].strip("*_ ")
        certain = line["mark"] is not None
        if not _is_no_term(term) and len(term) <= 60 and len(term.split()) <= 6:
            return [(term, line["rest"])], certain
    return [], False


def _is_no_term(text: str) -> bool:
    return bool(NO_TERM.fullmatch(text.strip(" :：."))) or bool(re.search(r"[.!?。！？]\s", text))
