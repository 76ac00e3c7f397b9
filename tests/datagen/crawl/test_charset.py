"""The character set of a page, when its server and its head are wrong about it."""

from __future__ import annotations

import pytest

from embedrag.datagen.crawl.charset import decode
from tests.datagen.crawl.server import SENTENCES


@pytest.mark.parametrize("encoding", SENTENCES)
def test_wrong_header_loses_against_a_right_meta(encoding: str) -> None:
    html = f'<html><head><meta charset="{encoding}"></head><p>{SENTENCES[encoding] * 4}'
    for header in ("", "utf-8", "iso-8859-1", "gb18030", "euc-kr", "no-such-set", "idna"):
        assert decode(html.encode(encoding), header) == html, header


def test_missing_meta_leaves_the_header() -> None:
    for encoding, text in SENTENCES.items():
        assert decode(text.encode(encoding), encoding) == text


@pytest.mark.parametrize("named", ["utf-8", ""])
def test_one_broken_byte_does_not_make_a_page_of_utf_8_something_else(named: str) -> None:
    for text in (
        "저항은 전류의 흐름을 방해하는 정도이다. ",
        "电阻表示导体对电流阻碍作用的大小。",
        "Größe über fünf Öfen. ",
    ):
        body = (text * 9).encode()
        assert decode(body[:400] + b"\xff" + body[400:], named).count(text) >= 8
    assert decode(SENTENCES["latin-1"].encode("latin-1"), named) == SENTENCES["latin-1"]  # UTF-8 is a wrong claim here
