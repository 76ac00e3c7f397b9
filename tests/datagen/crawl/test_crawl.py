"""The crawl as a whole: outputs, sitemaps, going on after an interruption, Wikipedia, the command."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from embedrag.cli import main
from embedrag.data.rows import parse_row
from embedrag.datagen.crawl import crawl as crawl_module
from embedrag.datagen.crawl.crawl import CrawlResult, crawl_with
from embedrag.datagen.crawl.fetch import Fetcher
from embedrag.datagen.crawl.state import CrawlSettings
from embedrag.errors import UserError
from tests.datagen.crawl.server import PAGE, PAIR, SENTENCES, Clock, Handler, Site, fetcher

ROOT = Path(__file__).parents[3]


def crawl(
    folder: Path, clock: Clock, *urls: str, overwrite: bool = False, wiki: str | None = None, **more: Any
) -> CrawlResult:
    settings = CrawlSettings(**{"sources": (), "urls": urls, "languages": ("en",), "limit_per_source": 500} | more)
    return crawl_with(fetcher(clock), folder, settings, overwrite=overwrite, wiki=wiki)


def read(folder: Path) -> list[tuple[str, str]]:
    with (folder / "glossary.csv").open(encoding="utf-8", newline="") as file:
        return [(row["term"], row["definition"]) for row in csv.DictReader(file)]


def test_command_writes_table_and_rows_and_names_each_failure(
    site: Site, clock: Clock, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedrag.datagen.crawl.fetch.Fetcher", partial(Fetcher, clock=clock, sleep=clock.sleep))
    site.page("/a")
    site.page("/b", "<p>nothing here")
    site.page(
        "/euc",
        f"<meta charset=euc-kr><dl><dt>저항<dd>{SENTENCES['euc-kr']}</dl>".encode("euc-kr"),
        "text/html; charset=latin-1",
    )
    urls = [site.url(path) for path in ("/a", "/a#again", "/b", "/euc", "/none")]
    assert main(["crawl", "--output_dir", str(tmp_path), "--urls", *urls, "file:///etc/passwd"]) == 0
    assert read(tmp_path) == [*PAIR, ("저항", SENTENCES["euc-kr"])]
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert set(rows[0]) == {"anchor", "positive", "term", "source", "retrieved_at"}
    assert (parse_row(rows[0]).query, parse_row(rows[0]).pos) == (PAIR[0][0], (PAIR[0][1],))
    shown = capsys.readouterr().out
    assert "status 404" in shown and "no new term" in shown and "only http" in shown
    assert "2 pairs of 3 pages; 2 failed" in shown
    assert main(["crawl", "--output_dir", str(tmp_path / "new"), "--urls", site.url("/none")]) == 1
    assert not (tmp_path / "new" / "pairs.jsonl").exists()


def test_sitemaps_in_a_circle_end_and_stay_on_their_host(site: Site, clock: Clock, tmp_path: Path) -> None:
    def listed(*urls: str) -> str:
        return "<?xml version='1.0'?><x>" + "".join(f"<url><loc> {url} </loc></url>" for url in urls) + "</x>"

    site.page("/sitemap.xml", listed(site.url("/deep.xml.gz"), "http://other.example/"), "application/xml")
    inner = listed(site.url("/sitemap.xml"), site.url("/a"), site.url("/a"), "javascript:x")
    site.page("/deep.xml.gz", gzip.compress(inner.encode()), "application/gzip")
    site.page("/a", PAGE + f'<a href="{site.url("/a")}">again</a>')
    assert crawl(tmp_path, clock, site.url("/sitemap.xml")).failed == 0
    assert read(tmp_path) == PAIR
    assert Counter(site.asked) == dict.fromkeys(("/robots.txt", "/sitemap.xml", "/deep.xml.gz", "/a"), 1)


def test_sitemap_after_a_redirect_to_another_host_names_pages_of_both(site: Site, clock: Clock, tmp_path: Path) -> None:
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
    assert crawl(tmp_path, clock, asked).failed == 0
    assert [term for term, _ in read(tmp_path)] == ["volt", "term b"] and site.times("/c") == 0


def test_edited_output_is_not_overwritten_and_more_urls_may_follow(site: Site, clock: Clock, tmp_path: Path) -> None:
    for name in ("a", "b"):
        site.page(f"/{name}", f"<dl><dt>term {name}<dd>The meaning of the term {name}.</dl>")
    one, two = [site.url("/a")], [site.url("/b"), site.url("/a")]
    assert crawl(tmp_path, clock, *one).pairs == 1
    table = tmp_path / "glossary.csv"
    table.write_text(mine := table.read_text(encoding="utf-8").replace("The meaning", "My meaning"), encoding="utf-8")
    with pytest.raises(UserError, match=r"glossary.csv changed since the crawl wrote it.*`overwrite`") as error:
        crawl(tmp_path, clock, *two)
    assert error.value.argument == "output_dir"
    assert table.read_text(encoding="utf-8") == mine and site.times("/b") == 0
    table.rename(tmp_path / "mine.csv")
    assert crawl(tmp_path, clock, *two).pairs == 2
    assert [term for term, _ in read(tmp_path)] == ["term b", "term a"] and site.times("/a") == 1
    assert crawl(tmp_path, clock, *two).pairs == 2
    with pytest.raises(UserError, match="other values of `urls`"):
        crawl(tmp_path, clock, *one)


def test_limit_takes_terms_evenly_and_holds_for_each_source(site: Site, clock: Clock, tmp_path: Path) -> None:
    for name in ("a", "b"):
        items = "".join(f"<dt>{name}{i}<dd>The meaning of {name}{i}, at length." for i in range(10))
        site.page(f"/{name}", f"<dl>{items}</dl>")
    assert crawl(tmp_path, clock, site.url("/a"), site.url("/b"), limit_per_source=2).pairs == 4
    assert [term for term, _ in read(tmp_path)] == ["a0", "a5", "b0", "b5"]


def test_interrupted_crawl_goes_on_and_overwrite_starts_anew(site: Site, clock: Clock, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        site.page(f"/{name}", f"<dl><dt>term {name}<dd>The meaning of the term {name}.</dl>")
    urls = [site.url(f"/{name}") for name in "abc"]

    class Killed(BaseException):
        pass

    class Mortal(Fetcher):
        def get(self, url: str, *words: Any) -> Any:
            if url.endswith("/b"):
                raise Killed
            return super().get(url, *words)

    with pytest.raises(Killed):
        crawl_with(Mortal(clock=clock, sleep=clock.sleep), tmp_path, CrawlSettings((), tuple(urls), ("en",), 500))
    assert not (tmp_path / "pairs.jsonl").exists()
    with (tmp_path / "crawl_state.jsonl").open("ab") as file:
        file.write(b'{"page": "half a li')  # the kill came while a line was written
    assert crawl(tmp_path, clock, *urls).failed == 0
    assert [term for term, _ in read(tmp_path)] == ["term a", "term b", "term c"]
    assert [site.times(f"/{name}") for name in "abc"] == [1, 1, 1]
    before = (tmp_path / "pairs.jsonl").read_bytes()
    assert crawl(tmp_path, clock, *urls).pairs == 3 and site.times("/c") == 1
    assert (tmp_path / "pairs.jsonl").read_bytes() == before
    with pytest.raises(UserError, match="other values of `limit_per_source`"):
        crawl(tmp_path, clock, *urls, limit_per_source=7)
    assert crawl(tmp_path, clock, *urls, overwrite=True).pairs == 3 and site.times("/c") == 2


def test_failed_page_is_tried_again_and_brings_no_pair_twice(site: Site, clock: Clock, tmp_path: Path) -> None:
    site.page("/b")
    urls = [site.url("/a"), site.url("/b")]
    assert crawl(tmp_path, clock, *urls).failed == 1 and read(tmp_path) == PAIR
    site.page("/a")
    assert crawl(tmp_path, clock, *urls).failed == 0 and read(tmp_path) == PAIR


def test_state_of_an_earlier_release_is_read(site: Site, clock: Clock, tmp_path: Path) -> None:
    settings = {"sources": [], "urls": [site.url("/a")], "limit_per_source": 500, "languages": ["en"]}
    entry = {"page": site.url("/a"), "url": "http://h/a", "time": "now", "pairs": [list(PAIR[0])], "found": 1}
    lines = [json.dumps({"settings": settings}), json.dumps(entry)]
    (tmp_path / "crawl_state.jsonl").write_text("\n".join(lines) + "\n")
    assert crawl(tmp_path, clock, site.url("/a")).pairs == 1 and site.asked == []


def test_damaged_state_and_files_of_somebody_else_are_refused(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "glossary.csv").write_text("mine")
    with pytest.raises(UserError, match=r"glossary.csv`: exists"):
        crawl(tmp_path, clock, "http://h/")
    (tmp_path / "crawl_state.jsonl").write_text("{no json\n")
    with pytest.raises(UserError, match="damaged"):
        crawl(tmp_path, clock, "http://h/")


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
    result = crawl(tmp_path, clock, sources=("wikipedia_glossary",), languages=("en", "ko"), wiki=site.url(""))
    assert read(tmp_path) == [*PAIR, ("저항", SENTENCES["euc-kr"])]
    assert 9 in clock.slept
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[0]["source"] == site.url("/wiki/Glossary_of_new_name")
    assert {page.note for page in result.pages if page.failed} == {"no page has this title"}
    assert "set `contact`" in capsys.readouterr().out


@pytest.mark.parametrize("body", ["no json", "[]", '{"parse": 3}', '{"parse": {"title": 1}}', "[" * 100_000])
def test_wrong_answer_of_the_interface_is_a_failed_page(body: str, site: Site, clock: Clock, tmp_path) -> None:
    site.page("/w/api.php", body, "application/json")
    result = crawl(tmp_path, clock, sources=("wikipedia_glossary",), languages=("fr",), wiki=site.url(""))
    assert result.pairs == 0 and result.failed == len(result.pages) > 1


def test_dry_run_needs_no_network_and_writes_to_the_given_folder(tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "def closed(*words): raise SystemExit('network')\n"
        "socket.socket.connect = socket.getaddrinfo = closed\n"
        "from embedrag.cli import main\nsys.exit(main())\n"
    )
    words = [
        "crawl",
        "--sources",
        "wikipedia_glossary",
        "--limit_per_source",
        "500",
        "--dry-run",
        "--output_dir",
        "out",
    ]
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name --sources (wikipedia_glossary) or --urls; --dry_run reads"),
        (["--sources", "wikipedia"], "--sources wikipedia: unknown; accepted is wikipedia_glossary"),
        (["--sources", "wikipedia_glossary", "--languages", "eng"], "--languages eng: no glossaries"),
        (["--urls", "http://h/", "--contact", "a\nb: c"], "--contact: must be"),
        (["--urls", "http://h/", "--delay", "0.5"], "--delay"),
    ],
)
def test_command_line_names_what_is_wrong(words: list[str], message: str, capsys, tmp_path: Path) -> None:
    assert main(["crawl", "--output_dir", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_missing_package_is_named_with_the_extra(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crawl_module, "PACKAGES", ("no_such_package",))
    assert main(["crawl", "--dry-run"]) == 2
    assert "pip install -e '.[crawl]'" in capsys.readouterr().err
