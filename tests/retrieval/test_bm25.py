"""Words of scripts without spaces are found too."""

from __future__ import annotations

from embedrag.retrieval.bm25 import Bm25, words


def test_words_of_scripts_without_spaces_are_pairs() -> None:
    assert words("電容器の電圧 ABC-12") == ["電容", "容器", "器の", "の電", "電圧", "abc", "12"]
    index = Bm25(["저항은 전류를 제한한다", "콘덴서는 전하를 저장한다"])
    assert index.scores("저항이란?")[0] > index.scores("저항이란?")[1] == 0
