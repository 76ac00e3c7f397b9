"""`embedrag crawl` against a real server on this machine: good pages, every fault, manners, going on after a kill."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("selectolax")

from embedrag.cli import main
from embedrag.commands.crawl import CrawlOptions
from embedrag.data.rows import parse_row
from embedrag.datagen.crawl import crawl as crawl_module
from embedrag.datagen.crawl.charset import decode
from embedrag.datagen.crawl.crawl import crawl
from embedrag.datagen.crawl.extract import extract
from embedrag.datagen.crawl.fetch import Fetcher
from embedrag.datagen.crawl.politeness import PageError
from embedrag.errors import UserError
from embedrag.options.parsing import parse

ROOT = Path(__file__).parents[3]
PAGE = "<dl><dt>volt</dt><dd>The unit of electric potential, named after a physicist.</dd></dl>"
PAIR = [("volt", "The unit of electric potential, named after a physicist.")]
SENTENCES = {
    "euc-kr": "전류의 흐름을 방해하는 정도를 나타내는 물리량을 저항이라고 한다.",
    "gb18030": "电阻表示导体对电流阻碍作用的大小，是导体本身的一种性质。",
    "big5": "電阻表示導體對電流阻礙作用的大小，是導體本身的一種性質。",
    "latin-1": "Größe, die angibt, wie stark ein Körper den Strom hemmt, der über ihn fließt.",
}


class Site(ThreadingHTTPServer):
    """A server whose answers are functions of the handler; it counts what was asked, and what it sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.agents: set[str] = set()
        self.sent = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def page(self, path: str, body: str | bytes = PAGE, kind: str = "text/html", status: int = 200, **headers: str):
        data = body.encode() if isinstance(body, str) else body
        self.answers[path] = lambda handler: handler.give(status, data, {"Content-Type": kind, **headers})

    def times(self, path: str) -> int:
        return self.asked.count(path)


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:  # noqa: N802
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        self.server.agents.add(self.headers["User-Agent"])
        answer = self.server.answers.get(path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the crawler may have had enough
            answer(self) if answer else self.give(404, b"", {})

    def give(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("EMBEDRAG_CRAWL_ALLOW_PRIVATE", "1")
    server = Site()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def fetcher(clock: Clock, **more: Any) -> Fetcher:
    return Fetcher(clock=clock, sleep=clock.sleep, **more)


def options(out: Path, *urls: str, **more: Any) -> CrawlOptions:
    return CrawlOptions(urls=list(urls), output_dir=str(out), **more)


def read(folder: Path) -> list[tuple[str, str]]:
    with (folder / "glossary.csv").open(encoding="utf-8", newline="") as file:
        return [(row["term"], row["definition"]) for row in csv.DictReader(file)]


def refusal(clock: Clock, url: str, **more: Any) -> str:
    with pytest.raises(PageError) as error:
        fetcher(clock, **more).get(url)
    return str(error.value)


# Extraction


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


def test_table_with_other_headings_is_no_glossary() -> None:
    row = "<tr><td>1999<td>Somebody whose name is rather long"
    for first, second in (("Year", "Winner"), ("Name", "Description"), ("名称", "说明"), ("Term no.", "Definition")):
        assert extract(f"<table><tr><th>{first}<th>{second}{row}") == []


def test_cell_over_both_columns_is_no_pair() -> None:
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


def test_plain_lines_between_prose_are_no_glossary_and_those_in_a_row_are() -> None:
    lines = [f"<p>word{i}: the meaning of the word number {i}.</p>" for i in range(3)]
    prose = ["<p>A paragraph that defines nothing at all.</p>"] * 4
    assert extract("".join([*prose, *lines])) == extract("".join(lines))
    apart = [text for line in lines for text in (line, *prose)]
    assert extract("".join(apart)) == []


@pytest.mark.parametrize("bold", ["{}", "<b>{}</b>"])
def test_lines_about_the_page_are_no_terms(bold: str) -> None:
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


def test_inner_list_is_no_part_of_the_outer_definition() -> None:
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


@pytest.mark.parametrize("encoding", SENTENCES)
@pytest.mark.parametrize("header", ["", "utf-8", "iso-8859-1", "gb18030", "euc-kr", "no-such-set", "idna"])
def test_wrong_header_loses_against_a_right_meta(encoding: str, header: str) -> None:
    html = f'<html><head><meta charset="{encoding}"></head><p>{SENTENCES[encoding] * 4}'
    assert decode(html.encode(encoding), header) == html


@pytest.mark.parametrize("encoding", SENTENCES)
def test_missing_meta_leaves_the_header(encoding: str) -> None:
    assert decode(SENTENCES[encoding].encode(encoding), encoding) == SENTENCES[encoding]


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


# Network


def test_page_is_read_with_an_agent_that_names_project_and_contact(site: Site, clock: Clock) -> None:
    site.page("/a")
    assert fetcher(clock, contact="me@example.org").get(site.url("/a")).body.decode() == PAGE
    assert site.asked == ["/robots.txt", "/a"]
    (agent,) = site.agents
    assert agent.startswith("EmbedRAG/") and "me@example.org" in agent


def test_redirects_are_followed_a_circle_and_a_long_chain_are_not(site: Site, clock: Clock) -> None:
    site.page("/end")
    for source, target in {"/go": "/end", "/ring": "/ring2", "/ring2": "/ring"}.items():
        site.page(source, "", status=302, Location=target)
    for i in range(9):
        site.page(f"/chain{i}", "", status=301, Location=f"/chain{i + 1}")
    assert fetcher(clock).get(site.url("/go")).url == site.url("/end")
    assert "circle" in refusal(clock, site.url("/ring"))
    assert "more than 5 redirects" in refusal(clock, site.url("/chain0"))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("file:///etc/passwd", "only http"),
        ("ftp://h/x", "only http"),
        ("http://u:p@h/", "password"),
        ("mailto:me@example.org", "only http"),
        ("http://h:x/", "no URL"),
    ],
)
def test_redirect_to_what_is_not_http_is_refused(target: str, reason: str, site: Site, clock: Clock) -> None:
    site.page("/go", "", status=302, Location=target)
    assert reason in refusal(clock, site.url("/go"))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "[::1]", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0"],
)
def test_private_address_is_refused(host: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDRAG_CRAWL_ALLOW_PRIVATE", raising=False)
    assert "private address" in refusal(clock, f"http://{host}:1/")


def test_redirect_to_a_private_address_is_refused(site: Site, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first host counts as public here, the one behind the redirect does not."""
    from embedrag.datagen.crawl import politeness as manners

    monkeypatch.delenv("EMBEDRAG_CRAWL_ALLOW_PRIVATE")
    monkeypatch.setattr(manners, "is_public", lambda address: address == "127.0.0.1")
    site.page("/go", "", status=302, Location="http://127.0.0.2:1/secret")
    site.page("/ok")
    assert fetcher(clock).get(site.url("/ok")).body
    assert "127.0.0.2, a private address" in refusal(clock, site.url("/go"))


def test_busy_server_is_asked_again_after_the_time_it_names(site: Site, clock: Clock) -> None:
    states = iter([(429, {"Retry_After": "7"}), (500, {}), (200, {"Content-Type": "text/html"})])

    def answer(handler: Handler) -> None:
        status, headers = next(states)
        handler.give(status, PAGE.encode(), headers)

    site.answers["/busy"] = answer
    assert fetcher(clock).get(site.url("/busy")).body.decode() == PAGE
    assert site.times("/busy") == 3 and max(clock.slept) >= 7


def test_server_that_stays_busy_or_asks_for_an_hour_is_left_alone(site: Site, clock: Clock) -> None:
    site.page("/busy", status=503)
    site.page("/hour", status=429, Retry_After="3600")
    site.page("/fine")
    reader = fetcher(clock)
    for path, reason in (("/busy", "503"), ("/hour", "3600"), ("/fine", "3600")):
        with pytest.raises(PageError, match=reason):
            reader.get(site.url(path))
    assert (site.times("/busy"), site.times("/hour"), site.times("/fine")) == (4, 1, 0)


def test_status_type_and_encoding_that_are_not_read_are_named(site: Site, clock: Clock) -> None:
    site.page("/pdf", kind="application/pdf")
    site.page("/br", Content_Encoding="br")
    site.page("/gone", status=410)
    site.page("/bad", b"no gzip", Content_Encoding="gzip")
    for path, reason in (("/pdf", "pdf"), ("/br", "br"), ("/gone", "410"), ("/none", "404"), ("/bad", "gzip")):
        assert reason in refusal(clock, site.url(path))


def test_endless_page_is_cut_and_not_read_to_its_end(site: Site, clock: Clock) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        for _ in range(1600):
            handler.wfile.write(b"x" * 65536)
            site.sent += 65536

    site.answers["/endless"] = endless
    assert "larger than 1 MB" in refusal(clock, site.url("/endless"), max_bytes=1_000_000)
    assert site.sent < 50_000_000


def test_gzip_is_read_and_a_gzip_bomb_is_not(site: Site, clock: Clock) -> None:
    site.page("/zip", gzip.compress(PAGE.encode()), Content_Encoding="gzip")
    site.page("/bomb", gzip.compress(b"\0" * 200_000_000, 1), Content_Encoding="gzip")
    assert fetcher(clock).get(site.url("/zip")).body.decode() == PAGE
    assert "larger than" in refusal(clock, site.url("/bomb"))


@pytest.mark.parametrize("part", ["head", "body"])
def test_page_that_drips_ends_with_its_time(part: str, site: Site, clock: Clock) -> None:
    def drip(handler: Handler) -> None:
        if part == "body":
            handler.send_response(200)
            handler.send_header("Content-Type", "text/html")
            handler.end_headers()
        for _ in range(200):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.02)

    site.answers["/drip"] = drip
    start = time.monotonic()
    assert "not whole after 0.4 s" in refusal(clock, site.url("/drip"), timeout=0.4)
    assert time.monotonic() - start < 2 and site.times("/drip") == 1


def test_host_that_is_not_there_is_named_after_some_tries(site: Site, clock: Clock) -> None:
    url = site.url("/")
    site.shutdown()
    site.server_close()
    assert "no answer" in refusal(clock, url)


# Manners


def test_one_request_a_second_goes_to_a_host_or_fewer_when_it_asks(site: Site, clock: Clock) -> None:
    arrivals: list[float] = []
    site.answers = dict.fromkeys(
        ("/a", "/b", "/c"),
        lambda handler: (arrivals.append(clock.now), handler.give(200, b"", {"Content-Type": "text/html"})),
    )
    reader = fetcher(clock)
    for path in ("/a", "/b", "/c"):
        reader.get(site.url(path))
    assert arrivals == [1, 2, 3]  # robots.txt came first
    site.page("/robots.txt", "User-agent: *\nCrawl-delay: 5\n", "text/plain")
    slow = fetcher(clock)
    for path in ("/a", "/b"):
        slow.get(site.url(path))
    assert arrivals[4] - arrivals[3] == 5


def test_robots_txt_forbids_for_everybody_or_by_name(site: Site, clock: Clock) -> None:
    site.page("/robots.txt", "User-agent: *\nDisallow: /closed\nUser-agent: EmbedRAG\nDisallow: /*.php\n", "text/plain")
    for path in ("/closed", "/x.php"):
        site.page(path)
    reader = fetcher(clock)
    assert reader.get(site.url("/closed")).body
    with pytest.raises(PageError, match=r"robots.txt forbids"):
        reader.get(site.url("/x.php"))
    assert site.times("/x.php") == 0 and site.times("/robots.txt") == 1


@pytest.mark.parametrize(("status", "allowed"), [(404, True), (403, True), (500, False), (429, False)])
def test_robots_txt_that_can_not_be_read(status: int, allowed: bool, site: Site, clock: Clock) -> None:
    site.page("/robots.txt", "", status=status)
    site.page("/a")
    if allowed:
        assert fetcher(clock).get(site.url("/a")).body
    else:
        assert "robots.txt can't be read" in refusal(clock, site.url("/a"))
        assert site.times("/a") == 0


def test_delay_below_a_second_is_refused() -> None:
    with pytest.raises(UserError, match="delay"):
        parse(CrawlOptions, ["--urls", "http://h", "--delay", "0.5"], "crawl", "")


# The command


def test_crawl_writes_table_and_rows_and_names_each_failure(site: Site, clock: Clock, tmp_path: Path, capsys) -> None:
    site.page("/a")
    site.page("/b", "<p>nothing here")
    site.page(
        "/euc",
        f"<meta charset=euc-kr><dl><dt>저항<dd>{SENTENCES['euc-kr']}</dl>".encode("euc-kr"),
        "text/html; charset=latin-1",
    )
    urls = [site.url(path) for path in ("/a", "/a#again", "/b", "/euc", "/none")]
    assert crawl(options(tmp_path, *urls, "file:///etc/passwd"), fetcher(clock)) == 0
    assert read(tmp_path) == [*PAIR, ("저항", SENTENCES["euc-kr"])]
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert set(rows[0]) == {"anchor", "positive", "term", "source", "retrieved_at"}
    assert (parse_row(rows[0]).query, parse_row(rows[0]).pos) == (PAIR[0][0], (PAIR[0][1],))
    shown = capsys.readouterr().out
    assert "status 404" in shown and "no new term" in shown and "only http" in shown and "2 failed" in shown


def test_nothing_found_is_exit_code_1_and_no_file(site: Site, clock: Clock, tmp_path: Path) -> None:
    assert crawl(options(tmp_path, site.url("/none")), fetcher(clock)) == 1
    assert not (tmp_path / "pairs.jsonl").exists()


def test_sitemaps_in_a_circle_end_and_stay_on_their_host(site: Site, clock: Clock, tmp_path: Path) -> None:
    def listed(*urls: str) -> str:
        return "<?xml version='1.0'?><x>" + "".join(f"<url><loc> {url} </loc></url>" for url in urls) + "</x>"

    site.page("/sitemap.xml", listed(site.url("/deep.xml.gz"), "http://other.example/"), "application/xml")
    inner = listed(site.url("/sitemap.xml"), site.url("/a"), site.url("/a"), "javascript:x")
    site.page("/deep.xml.gz", gzip.compress(inner.encode()), "application/gzip")
    site.page("/a", PAGE + f'<a href="{site.url("/a")}">again</a>')
    assert crawl(options(tmp_path, site.url("/sitemap.xml")), fetcher(clock)) == 0
    assert read(tmp_path) == PAIR
    assert Counter(site.asked) == dict.fromkeys(("/robots.txt", "/sitemap.xml", "/deep.xml.gz", "/a"), 1)


def test_sitemap_behind_a_redirect_to_another_host_names_pages_of_both(
    site: Site, clock: Clock, tmp_path: Path
) -> None:
    asked = site.url("/sitemap.xml").replace("127.0.0.1", "localhost")
    pages = [site.url("/a"), asked.replace("sitemap.xml", "b"), "http://other.example/c"]
    listed = "<x>" + "".join(f"<loc>{page}</loc>" for page in pages) + "</x>"

    def answer(handler: Handler) -> None:
        if handler.headers["Host"].startswith("localhost"):
            handler.give(301, b"", {"Location": site.url("/sitemap.xml")})
        else:
            handler.give(200, listed.encode(), {"Content-Type": "application/xml"})

    site.answers["/sitemap.xml"] = answer
    site.page("/a")
    site.page("/b", "<dl><dt>term b<dd>The meaning of the term b.</dl>")
    assert crawl(options(tmp_path, asked), fetcher(clock)) == 0
    assert [term for term, _ in read(tmp_path)] == ["volt", "term b"] and site.times("/c") == 0


def test_edited_output_is_not_overwritten_and_more_urls_may_follow(site: Site, clock: Clock, tmp_path: Path) -> None:
    for name in ("a", "b"):
        site.page(f"/{name}", f"<dl><dt>term {name}<dd>The meaning of the term {name}.</dl>")
    one, two = (options(tmp_path, *urls) for urls in ([site.url("/a")], [site.url("/b"), site.url("/a")]))
    assert crawl(one, fetcher(clock)) == 0
    table = tmp_path / "glossary.csv"
    table.write_text(mine := table.read_text(encoding="utf-8").replace("The meaning", "My meaning"), encoding="utf-8")
    with pytest.raises(UserError, match=r"glossary.csv changed since the crawl wrote it.*--overwrite"):
        crawl(two, fetcher(clock))
    assert table.read_text(encoding="utf-8") == mine and site.times("/b") == 0
    table.rename(tmp_path / "mine.csv")
    assert crawl(two, fetcher(clock)) == 0
    assert [term for term, _ in read(tmp_path)] == ["term b", "term a"] and site.times("/a") == 1
    assert crawl(two, fetcher(clock)) == 0
    with pytest.raises(UserError, match="other values of --urls"):
        crawl(one, fetcher(clock))


def test_limit_takes_terms_evenly_and_holds_for_each_source(site: Site, clock: Clock, tmp_path: Path) -> None:
    for name in ("a", "b"):
        items = "".join(f"<dt>{name}{i}<dd>The meaning of {name}{i}, at length." for i in range(10))
        site.page(f"/{name}", f"<dl>{items}</dl>")
    assert crawl(options(tmp_path, site.url("/a"), site.url("/b"), limit_per_source=2), fetcher(clock)) == 0
    assert [term for term, _ in read(tmp_path)] == ["a0", "a5", "b0", "b5"]


def test_interrupted_crawl_goes_on_and_overwrite_starts_anew(site: Site, clock: Clock, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        site.page(f"/{name}", f"<dl><dt>term {name}<dd>The meaning of the term {name}.</dl>")
    given = options(tmp_path, *(site.url(f"/{name}") for name in "abc"))
    good = site.answers["/b"]

    class Killed(BaseException):
        pass

    class Mortal(Fetcher):
        def get(self, url: str, *words: Any) -> Any:
            if url.endswith("/b"):
                raise Killed
            return super().get(url, *words)

    with pytest.raises(Killed):
        crawl(given, Mortal(clock=clock, sleep=clock.sleep))
    assert not (tmp_path / "pairs.jsonl").exists()
    with (tmp_path / "crawl_state.jsonl").open("ab") as file:
        file.write(b'{"page": "half a li')  # the kill came while a line was written
    site.answers["/b"] = good
    assert crawl(given, fetcher(clock)) == 0
    assert [term for term, _ in read(tmp_path)] == ["term a", "term b", "term c"]
    assert [site.times(f"/{name}") for name in "abc"] == [1, 1, 1]
    before = (tmp_path / "pairs.jsonl").read_bytes()
    assert crawl(given, fetcher(clock)) == 0 and site.times("/c") == 1
    assert (tmp_path / "pairs.jsonl").read_bytes() == before
    with pytest.raises(UserError, match="other values of --limit_per_source"):
        crawl(given.model_copy(update={"limit_per_source": 7}), fetcher(clock))
    assert crawl(given.model_copy(update={"overwrite": True}), fetcher(clock)) == 0 and site.times("/c") == 2


def test_failed_page_is_tried_again_by_the_same_command(site: Site, clock: Clock, tmp_path: Path) -> None:
    given = options(tmp_path, site.url("/a"))
    assert crawl(given, fetcher(clock)) == 1
    site.page("/a")
    assert crawl(given, fetcher(clock)) == 0


def test_page_that_comes_later_brings_no_pair_twice(site: Site, clock: Clock, tmp_path: Path) -> None:
    site.page("/b")
    given = options(tmp_path, site.url("/a"), site.url("/b"))
    assert crawl(given, fetcher(clock)) == 0 and read(tmp_path) == PAIR
    site.page("/a")
    assert crawl(given, fetcher(clock)) == 0 and read(tmp_path) == PAIR


def test_damaged_state_and_files_of_somebody_else_are_refused(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "glossary.csv").write_text("mine")
    with pytest.raises(UserError, match=r"glossary.csv`: exists"):
        crawl(options(tmp_path, "http://h/"), fetcher(clock))
    (tmp_path / "crawl_state.jsonl").write_text("{no json\n")
    with pytest.raises(UserError, match="damaged"):
        crawl(options(tmp_path, "http://h/"), fetcher(clock))


def wiki_answer(lag: list[int]) -> Any:
    """MediaWiki as a stub: lags once, knows two pages and one translation."""

    def answer(handler: Handler) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(handler.path).query).items()}
        assert query["formatversion"] == "2" and query["maxlag"] == "5" and query["redirects"] == "1"
        headers = {"Content-Type": "application/json; charset=utf-8"}
        if lag:
            lag.pop()
            data: Any = {"error": {"code": "maxlag", "info": "Waiting"}}
            headers["Retry_After"] = "9"
        elif query["action"] == "query":
            title = query["titles"].split("|")[0]
            data = {"query": {"pages": [{"title": title, "langlinks": [{"lang": "ko", "title": "용어 목록"}]}]}}
        elif query["page"] == "용어 목록":
            data = {"parse": {"title": "용어 목록", "text": f"<dl><dt>저항<dd>{SENTENCES['euc-kr']}</dl>"}}
        elif query["page"].startswith("Glossary of electrical"):
            data = {"parse": {"title": "Glossary of new name", "text": PAGE}}
        else:
            data = {"error": {"code": "missingtitle", "info": "gone"}}
        handler.give(200, json.dumps(data).encode(), headers)

    return answer


def test_wikipedia_is_read_through_its_interface(site: Site, clock: Clock, tmp_path: Path, capsys) -> None:
    site.answers["/w/api.php"] = wiki_answer([1])
    site.page("/robots.txt", "User-agent: *\nDisallow: /w/\n", "text/plain")
    given = CrawlOptions(sources=["wikipedia_glossary"], languages=["en", "ko"], output_dir=str(tmp_path))
    assert crawl(given, fetcher(clock), wiki=site.url("")) == 0
    assert read(tmp_path) == [*PAIR, ("저항", SENTENCES["euc-kr"])]
    assert 9 in clock.slept
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0]["source"] == site.url("/wiki/Glossary_of_new_name")
    shown = capsys.readouterr().out
    assert "no page of this title" in shown and "--contact" in shown


@pytest.mark.parametrize("body", ["no json", "[]", '{"parse": 3}', '{"parse": {"title": 1}}', "[" * 100_000])
def test_answer_of_the_interface_that_is_none_is_a_failed_page(body: str, site: Site, clock: Clock, tmp_path) -> None:
    site.page("/w/api.php", body, "application/json")
    given = CrawlOptions(sources=["wikipedia_glossary"], languages=["fr"], output_dir=str(tmp_path))
    assert crawl(given, fetcher(clock), wiki=site.url("")) == 1


@pytest.mark.parametrize("flag", ["--dry-run", "--dry_run"])
def test_dry_run_needs_no_network_and_writes_where_told(flag: str, tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "def closed(*words): raise SystemExit('network')\n"
        "socket.socket.connect = socket.getaddrinfo = closed\n"
        "from embedrag.cli import main\nsys.exit(main())\n"
    )
    words = ["crawl", "--sources", "wikipedia_glossary", "--limit_per_source", "500", flag, "--output_dir", "out"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = dict(read(tmp_path / "out"))
    assert {"resistor", "다이오드", "晶体管", "oscillator", "amplifier"} <= set(found)
    assert not {"x", "fuse", "Note", "Contact", "ground"} & set(found)
    assert not any("hidden words" in text or "[" in text for text in found.values())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_command_line_names_what_is_wrong(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["crawl"]) == 2
    assert main(["crawl", "--sources", "wikipedia"]) == 2
    assert main(["crawl", "--sources", "wikipedia_glossary", "--languages", "xx"]) == 2
    assert main(["crawl", "--urls", "http://h/", "--contact", "a\nb: c"]) == 2
    shown = capsys.readouterr().err
    assert "wikipedia_glossary" in shown and "--languages xx" in shown and "--contact" in shown
    monkeypatch.setattr(crawl_module, "PACKAGES", ("no_such_package",))
    assert main(["crawl", "--dry-run"]) == 2
    assert "pip install -e '.[crawl]'" in capsys.readouterr().err
