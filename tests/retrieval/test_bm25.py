"""Scores by words."""

from __future__ import annotations

import numpy as np

from embedrag.retrieval.bm25 import Bm25


def test_words_of_scripts_without_spaces_are_found() -> None:
    index = Bm25(["저항은 전류를 제한한다", "콘덴서는 전하를 저장한다"])
    assert index.scores("저항이란?")[0] > 5 * index.scores("저항이란?")[1]


def test_the_same_passage_twice_has_the_same_score() -> None:
    passages = [f"the frog number {number % 7} sits near a pond of {number % 7} herons" for number in range(50)]
    scores = Bm25(passages).scores("frog 3 near the herons")
    assert np.array_equal(scores[:7], scores[7:14]) and np.array_equal(scores[:7], scores[42:49])


def test_texts_without_any_term_do_no_harm() -> None:
    assert Bm25(["…", "frog"]).scores("!?").tolist() == [0, 0]
    assert Bm25(["…", ""]).scores("frog").tolist() == [0, 0]
