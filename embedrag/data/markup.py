"""HTML in texts: what a reader would see of it, with its meaning kept. The one place for powers, indices and furigana.

The parser (selectolax) reads broken markup as browsers do, by the rules of HTML 5. The walk uses its own stack instead
of recursion, so ten thousand nested boxes are no problem.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from html.entities import html5

from selectolax.lexbor import LexborHTMLParser, LexborNode

INLINE = set(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i img ins kbd label mark math q rb ruby".split()
)
INLINE |= set("s samp small span strike strong sub sup time tt u var wbr -text".split())
UNSEEN = set("script style template noscript head title rt rp rtc annotation annotation-xml".split())
UNSEEN |= set("del s strike".split())  # what its author took back
ITEM = "\n- "

# Tags as they stand in exports of Moodle, Anki, WordPress and wikis. `List<String>`, `a < b` and `<stdio.h>` are none.
_PAIRED = (
    "a|abbr|b|big|blockquote|center|code|del|div|dl|dt|dd|em|font|h[1-6]|i|ins|kbd|li|mark|ol|p|pre|q|ruby|rt|samp"
    "|section|small|span|strike|strong|sub|sup|table|tbody|td|th|thead|tr|tt|u|ul|var"
)
_TAG = re.compile(rf"</(?:{_PAIRED})\s*>|<(?:br|hr|img|wbr)\b[^<>]*>|<(?:p|li|div|span|a)(?:\s[^<>]*)?>", re.I)
_ENTITY = re.compile(r"&(?:[a-z][a-z0-9]{1,30}|#\d{2,7}|#x[0-9a-f]{2,6});", re.I)
_STYLE = re.compile(r"\{\\(?:displaystyle|textstyle)\b")
_SIMPLE = re.compile(r"[+\-−–]?[\w.,]+[+\-−–]?|[+\-−–*′″°]")
_ORDINAL = re.compile(r"st|nd|rd|th|er|re|ème|eme|º|ª|TM|®|™|℠|SM")
Step = LexborNode | str | Callable[[], None]
Script = Callable[[str, str], str]  # (text before, text of the element) -> what is written
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")
_CONTROL = dict.fromkeys([*range(9), *range(14, 28), 127])


def has_markup(text: str) -> bool:
    """Whether a text holds HTML tags or entities.

    >>> [has_markup(text) for text in ("<b>volt</b>", "a&nbsp;b", "x<br>y", "a < b && c > d", "List<String>", "AT&T")]
    [True, True, True, False, False, False]
    """
    if "<" in text and _TAG.search(text):
        return True
    return "&" in text and any(found[1] == "#" or found[1:] in html5 for found in _ENTITY.findall(text))


def has_controls(text: str) -> bool:
    """Whether a text holds NUL or other control characters; line ends and tabs are none of them."""
    return not text.isprintable() and bool(_CONTROLS.search(text))


def as_seen(text: str) -> str:
    """A text without HTML and control characters; a text that has none of them is unchanged."""
    return plain_text(text) if has_markup(text) else text.translate(_CONTROL) if has_controls(text) else text


def plain_text(fragment: str) -> str:
    r"""What a reader sees of a piece of HTML: a line for each paragraph, `- ` before each item of a list.

    >>> plain_text("<p>About 3&nbsp;&times;&nbsp;10<sup>8</sup>&nbsp;m/s</p><ul><li>H<sub>2</sub>O<li><i>k</i></ul>")
    'About 3 × 10^8 m/s\n- H2O\n- k'
    """
    root = LexborHTMLParser(fragment).body
    text = text_of(root, box="\n", item=ITEM) if root else ""
    lines = (" ".join(line.split()) for line in text.translate(_CONTROL).split("\n"))
    return re.sub(r"(?m)^-\n(?=\S)", "- ", "\n".join(line for line in lines if line))


def children_of(node: LexborNode) -> Iterator[LexborNode]:
    """All children that are elements or texts."""
    child = node.child
    while child is not None:
        if child.tag == "-text" or child.is_element_node:
            yield child
        child = child.next


def text_of(
    node: LexborNode,
    without: Iterable[str] = (),
    children: Callable[[LexborNode], Iterable[LexborNode]] = children_of,
    box: str = " ",
    item: str = " ",
) -> str:
    """The text of an element: powers and indices as people type them, formulas once, no furigana, `alt` of formulas.

    Args:
        node: the element.
        without: tags inside it that are left out.
        children: the children of an element that a reader sees.
        box: stands around boxes such as paragraphs, but not around inline elements.
        item: stands before the items of a list.
    """
    left_out = UNSEEN | set(without)
    parts: list[str] = []
    todo: list[Step] = [node]
    while todo:
        at = todo.pop()
        if isinstance(at, str):
            parts.append(at)
            continue
        if not isinstance(at, LexborNode):
            at()
            continue
        tag = at.tag or ""
        if tag == "-text":
            parts.append(at.text_content or "")
        elif tag in ("br", "hr"):
            parts.append(box)
        elif tag == "img":
            parts.append(_formula(at.attributes.get("alt") or "") if _is_formula(at) else "")
        elif tag == "math" and (formula := _of_math(at)):
            parts.append(formula)
        elif at is node or tag not in left_out:
            inner: list[Step] = list(children(at))
            if tag in _SCRIPTS:
                inner = _with_scripts(parts, inner, _SCRIPTS[tag])
            around = "" if tag in INLINE or tag in _MATH else box
            todo += [around, *reversed(inner), item if tag == "li" else around]
    return "".join(parts)


def power(base: str, exponent: str) -> str:
    """An exponent as people type it after its base; ordinals and trade marks stay as they are.

    >>> [power("10", "-8"), power("e", "x/2"), power("the 1", "st"), power("volt", "[3]")]
    ['^-8', '^(x/2)', 'st', '']
    """
    exponent = " ".join(exponent.split())
    if not exponent or re.fullmatch(r"\[[^\]]*\]", exponent):  # a reference to a footnote
        return ""
    if _ORDINAL.fullmatch(exponent) and (base[-1:].isdigit() or not exponent.isascii() or exponent.isupper()):
        return exponent
    return f"^{exponent}" if _SIMPLE.fullmatch(exponent) else f"^({exponent})"


def index(base: str, subscript: str) -> str:
    """An index as people type it after its base: digits as they are, as in chemistry; letters after a line.

    >>> [index("H", "2"), index("V", "CE"), index("x", "i+1")]
    ['2', '_CE', '_(i+1)']
    """
    subscript = " ".join(subscript.split())
    if not subscript:
        return ""
    if subscript.isdigit() and (base[-1:].isalpha() or base[-1:] in ")]") and not base.endswith("log"):
        return subscript
    return f"_{subscript}" if _SIMPLE.fullmatch(subscript) else f"_({subscript})"


def _with_scripts(parts: list[str], inner: list[Step], kinds: Sequence[Script | None]) -> list[Step]:
    """The steps of an element with powers or indices, such as `<sup>` or MathML's base, index and power.

    Args:
        parts: the text so far.
        inner: children of the element.
        kinds: how each child is written; None: as it is. The last one counts for all further children.
    """
    if len(kinds) > 1:  # MathML: each child has a meaning
        inner = [child for child in inner if not (isinstance(child, LexborNode) and child.tag == "-text")]
    groups = [[child] for child in inner] if len(kinds) > 1 else [inner]
    steps: list[Step] = []
    for number, group in enumerate(groups):
        start: list[int] = []
        steps += [partial(_begin, parts, start), *group]
        steps.append(partial(_write, parts, start, kinds[min(number, len(kinds) - 1)]))
    return steps


def _begin(parts: list[str], start: list[int]) -> None:
    start.append(len(parts))


def _write(parts: list[str], start: list[int], kind: Script | None) -> None:
    """Put what was written since `parts[start[0]]` into the form of a power or an index."""
    if kind:
        before = "".join(parts[max(0, start[0] - 4) : start[0]])
        parts[start[0] :] = [kind(before, "".join(parts[start[0] :]))]


def _below(_: str, denominator: str) -> str:
    return f"/{denominator}" if _SIMPLE.fullmatch(denominator) else f"/({denominator})"


# Element -> how its text, or the text of each of its children, is written after what stands before it.
_SCRIPTS: dict[str, Sequence[Script | None]] = {
    "sup": (power,),
    "sub": (index,),
    "msup": (None, power),
    "msub": (None, index),
    "msubsup": (None, index, power),
    "mfrac": (None, _below),
}
_MATH = set("math semantics mrow mi mn mo ms mtext mstyle msqrt mroot mover munder munderover mpadded".split()) | set(
    _SCRIPTS
)


def _is_formula(image: LexborNode) -> bool:
    """Whether an image shows a formula, as those of Wikipedia, WordPress and Moodle do."""
    return bool(re.search(r"\b(?:mwe-math|latex|tex|texrender|math)", image.attributes.get("class") or ""))


def _formula(tex: str) -> str:
    tex = tex.strip()
    style = _STYLE.match(tex)
    return tex[style.end() : -1].strip() if style and tex.endswith("}") else tex


def _of_math(node: LexborNode) -> str:
    """A formula of MathML as TeX, if its author gave it; otherwise empty."""
    for annotation in node.css("annotation"):
        if "tex" in (annotation.attributes.get("encoding") or "").lower():
            return _formula(annotation.text(deep=True) or "")
    return _formula(node.attributes.get("alttext") or "")
