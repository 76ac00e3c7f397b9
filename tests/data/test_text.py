"""Facts about single texts: the form in which they are compared, and their scripts."""

from __future__ import annotations

import pytest

from embedrag.data.text import normalise, scripts_of


@pytest.mark.parametrize("text", ["Ｆｒｏｇ  pond", "FROG\u00a0POND\n", "ﬁsh"])
def test_text_is_the_same_in_any_case_width_and_white_space(text: str) -> None:
    assert normalise(text) in ("frog pond", "fish")
    assert normalise("frogpond") != normalise("frog pond")


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("frogs ½ & 12", "Latin"),
        ("ＦＲＯＧＳ", "Latin"),
        ("青蛙在池塘边", "Han"),
        ("カエルは池の中", "Kana"),
        ("ｶｴﾙ", "Kana"),
        ("연못가의 개구리", "Hangul"),
        ("лягушки", "Cyrillic"),
        ("ضفادع", "Arabic"),
        ("βάτραχος", "Greek"),
        ("मेंढक", "Devanagari"),
        ("12 + 3 = 🐸", ""),
    ],
)
def test_script_is_that_of_the_letters(text: str, script: str) -> None:
    assert [name for name, _ in scripts_of(text).most_common(1)] == ([script] if script else [])
