"""Texts of every script are split into terms that can be found again."""

from __future__ import annotations

import unicodedata

import pytest

from embedrag.retrieval import analyzer
from embedrag.retrieval.analyzer import analyze
from embedrag.retrieval.bm25 import Bm25


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("電容器の電圧 ABC-12", ["電", "容", "器", "電", "圧", "電容", "容器", "器の", "の電", "電圧", "abc", "12"]),
        ("한국어를 물", ["한", "한국", "국어", "어를", "물"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ภาษา", ["ภ", "ภา", "าษ", "ษา"]),
        ("ငါး", ["ငါး"]),  # one letter with its marks
        ("ខ្មែរ", ["ខ្មែ", "រ", "ខ្មែរ"]),  # with the letter below
        ("C++ C# C++11 .NET ASP.NET", ["c++", "c#", "c++", "11", ".net", "net", "asp", "net"]),
        ("10kΩ STM32F103 H₂O", ["10kω", "10", "kω", "stm32f103", "stm32", "f103", "h2o", "h2", "o"]),
        ("snake_case __init__ setSeed mRNA", ["snake_case", "snake", "case", "init", "setseed", "set", "seed", "mrna"]),
        ("3,000 3.5kg 2.13.0 a@b.org", ["3000", "3.5", "kg", "2.13.0", "a", "b", "org"]),
        ("LED照明", ["led", "照", "明", "照明"]),
        ("", []),
        (" … 👍 ___ \u200b", []),
    ],
)
def test_terms_of_scripts_names_and_numbers(text: str, expected: list[str]) -> None:
    assert analyze(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("كِتَابٌ", "كتاب"),
        ("كـتاب", "كتاب"),
        ("שָׁלוֹם", "שלום"),
        ("İSTANBUL Straße", "istanbul STRASSE"),
        ("Kon\u00adden\u00adsator", "Kondensator"),
        ("ＡＢＣ １２３ ﾊﾝﾄﾞ", "abc 123 ハンド"),
        ("10 k\u2126 ㎏", "10 kΩ kg"),
        ("10⁸ 10⁻⁸ m²", "10^8 10^-8 m2"),
        ("١٢٣", "123"),
        ("葛\U000e0100", "葛"),
        ("ന\u200cമ", "നമ"),
    ],
)
def test_spellings_of_one_word_have_the_same_terms(one: str, other: str) -> None:
    assert analyze(one) == analyze(other)


@pytest.mark.parametrize("text", ["tiếng Việt", "저항은 물", "ガード", "café", "हिन्दी क़लम", "வணக்கம் నమస్తే", "ഭാഷ"])
def test_marks_stay_with_their_letters_in_both_unicode_forms(text: str) -> None:
    assert analyze(unicodedata.normalize("NFD", text)) == analyze(text)
    if text.startswith(("हिन्दी", "வ", "ഭ")):
        assert len(analyze(text)) == len(text.split())


@pytest.mark.parametrize(
    "text", ["frog", "Frog,", "(A)", '"word."', "저항은", "저항은.", "x", "'It's", ".net.", "a.b", "물"]
)
def test_short_ways_give_the_same_terms(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short = analyzer._terms(text)
    monkeypatch.setattr(analyzer, "EDGES", "")  # then each of these but "frog" and "x" goes the long way
    monkeypatch.setattr(analyzer, "KOREAN", analyzer.regex.compile("(?!)"))
    assert analyzer._terms(f"{text}!") == short


def test_words_of_one_letter_are_found() -> None:
    assert Bm25(["我的猫很可爱", "我的狗很可爱", "天气很好"]).scores("猫").argmax() == 0
    index = Bm25(["건물은 높다", "물은 수소와 산소로 이루어진다", "불은 뜨겁다"])
    assert index.scores("물").argmax() == 1 and index.scores("물")[[0, 2]].tolist() == [0, 0]
    assert Bm25(["ငါးဖမ်း", "ခွေး"]).scores("ငါး").argmax() == 0


def test_codes_and_names_are_found() -> None:
    index = Bm25(
        ["a grade in C", "templates in C++", "records in C#", "the net of .NET", "the part STM32F103C8", "max_len"]
    )
    assert [int(index.scores(query).argmax()) for query in ("C++", "c#", ".net", "stm32", "max len")] == [1, 2, 3, 4, 5]


def test_index_tells_its_analyzer() -> None:
    assert Bm25(["a"]).analyzer == analyzer.ANALYZER == "embedrag-2"
