"""HTML becomes what its readers see, and text that only looks like HTML is left alone."""

from __future__ import annotations

import pytest

from embedrag.data.markup import has_markup, plain_text

TEX = "<annotation encoding='application/x-tex'>{\\displaystyle E=mc^{2}}</annotation>"


@pytest.mark.parametrize(
    ("fragment", "text"),
    [
        ("<b>capacitor</b>", "capacitor"),
        ("<p>A part …&nbsp;<a href='x'>that stores</a></p><p>charge</p>", "A part … that stores\ncharge"),
        ("about 3 × 10<sup>8</sup> m/s", "about 3 × 10^8 m/s"),
        ("10<sup>-3</sup>, e<sup>x/2</sup>, 2<sup>3<sup>2</sup></sup>", "10^-3, e^(x/2), 2^(3^2)"),
        ("the 1<sup>st</sup>, Volt<sup>®</sup>, a fact<sup>[3]</sup>", "the 1st, Volt®, a fact"),
        (
            "H<sub>2</sub>O, SO<sub>4</sub><sup>2-</sup>, V<sub>CE</sub>, log<sub>2</sub> n",
            "H2O, SO4^2-, V_CE, log_2 n",
        ),
        ("<ruby>抵抗<rt>ていこう</rt></ruby>", "抵抗"),
        ("<ruby>漢<rp>(</rp><rt>かん</rt><rp>)</rp>字<rp>(</rp><rt>じ</rt><rp>)</rp></ruby>", "漢字"),
        (f"<math><semantics><mi>E</mi>{TEX}</semantics></math> holds", "E=mc^{2} holds"),
        ("<math><msup><mi>x</mi><mn>2</mn></msup><mo>+</mo><msub><mi>y</mi><mi>i</mi></msub></math>", "x^2+y_i"),
        ("<math>\n<mfrac>\n<mi>a</mi>\n<mrow><mi>b</mi><mo>+</mo><mn>1</mn></mrow></mfrac></math>", "a/(b+1)"),
        ('a <img class="latex" alt="\\alpha" src="x.png"> b', "a \\alpha b"),
        ("two kinds:<ul><li><p>one</p></li><li>two</li></ul>", "two kinds:\n- one\n- two"),
        ("first<br>second<br/>third", "first\nsecond\nthird"),
        ("<script>alert(1)</script><!-- note -->seen", "seen"),
        ("&lt;b&gt; is a tag &#8212; really", "<b> is a tag — really"),
        ("nul \0 and <i>bell\x07", "nul and bell"),
    ],
)
def test_markup_becomes_what_a_reader_sees(fragment: str, text: str) -> None:
    assert plain_text(fragment) == text


@pytest.mark.parametrize(
    "text", ["<b>x</b>", "x<br>y", "a&nbsp;b", "&#39;", "<P class='a'>x", "<li>one", "10<sup>8</sup>"]
)
def test_markup_is_found(text: str) -> None:
    assert has_markup(text)


@pytest.mark.parametrize(
    "text",
    [
        "a < b && c > d",
        "List<String>",
        "#include <stdio.h>",
        "AT&T",
        "R&D;",
        "<T>",
        "a <b and c> d",
        "</s> <unk>",
        "1 <3",
    ],
)
def test_text_that_only_looks_like_markup_is_not(text: str) -> None:
    assert not has_markup(text)


def test_ten_thousand_nested_boxes_are_no_problem() -> None:
    assert plain_text("<div>" * 10_000 + "x" + "<sup>" * 2_000 + "2").startswith("x")
