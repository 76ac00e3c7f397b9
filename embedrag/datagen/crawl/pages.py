"""The pages that a crawl reads, their order, and what it takes from each.

No page is read twice, so that sitemaps that name each other, or themselves, come to an end. Links in pages are not
followed.
"""

from __future__ import annotations

import html
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from embedrag.datagen.crawl import wikipedia
from embedrag.datagen.crawl.bounded_gzip import unzip
from embedrag.datagen.crawl.charset import decode
from embedrag.datagen.crawl.extract import Pair, extract, pair_key
from embedrag.datagen.crawl.fetch import HTML, XML, Fetcher
from embedrag.datagen.crawl.politeness import PageError, check_url
from embedrag.datagen.crawl.state import CrawlSettings, State
from embedrag.runtime.console import console, now

SITEMAP_DEPTH = 3
SITEMAP_PAGES = 1000
_LOC = re.compile(r"<loc>(.{1,2100}?)</loc>", re.I | re.S)
_ODD = (ValueError, OverflowError, LookupError, RecursionError)  # what parsers raise on pages that nobody foresaw


@dataclass(frozen=True)
class PageReport:
    """The result of a page.

    Attributes:
        name: its URL or name, as it was asked for.
        pairs: how many pairs were taken from it; None for a page that failed, and for a sitemap.
        note: why there are no pairs, or not all of them; empty when the page was read without a problem.
        failed: it could not be read.
    """

    name: str
    pairs: int | None
    note: str = ""
    failed: bool = False


class Crawl:
    """One run over all sources.

    Attributes:
        rows: (term, definition, URL, time) of all pages.
        pages: the result of each page.
    """

    def __init__(self, settings: CrawlSettings, fetcher: Fetcher, state: State, wiki: str = wikipedia.BASE) -> None:
        """Put the parts together. Nothing is read yet.

        Args:
            settings: what is read.
            fetcher: reads pages.
            state: what earlier runs have read.
            wiki: address of Wikipedia, with `{language}` in it.
        """
        self._settings, self._fetcher, self._state, self._wiki = settings, fetcher, state, wiki
        self.rows: list[tuple[str, str, str, str]] = []
        self.pages: list[PageReport] = []
        self._seen: set[Pair] = set()
        self._named: set[str] = set()

    def run(self) -> None:
        """Read every source up to its limit."""
        limit = self._settings.limit_per_source
        for source in dict.fromkeys(self._settings.sources):
            self._take(source, self._articles(), math.ceil(limit / len(set(self._settings.languages))))
        for url in dict.fromkeys(self._settings.urls):
            self._take(url, self._pages(url), limit)

    def _take(self, source: str, pages: Iterator[tuple[str, str, str]], each: int) -> None:
        """Take at most `each` pairs from a page, until the source has given enough."""
        room = self._settings.limit_per_source
        with console.progress(None, "page", desc=source[-40:], disable=None, leave=False) as bar:
            for name, url, text in pages:
                bar.update()
                entry = self._state.done.get(name)
                if entry is None:
                    try:
                        found = [pair for pair in extract(text) if pair_key(pair) not in self._seen]
                    except (PageError, *_ODD) as error:
                        self._fail(name, error)
                        continue
                    entry = {"url": url, "time": now(), "pairs": spread(found, min(each, room)), "found": len(found)}
                    self._state.keep(name, **entry)
                kept = [(term, definition) for term, definition in entry["pairs"]]
                pairs = [pair for pair in kept if pair_key(pair) not in self._seen][:room]
                self._seen |= {pair_key(pair) for pair in pairs}
                self.rows += [(*pair, entry["url"], entry["time"]) for pair in pairs]
                part = f"of {entry['found']:,}" if len(pairs) < entry["found"] else ""
                note = part if entry["found"] else "no new term with a definition"
                self.pages.append(PageReport(name, len(pairs), note))
                room -= len(pairs)
                if room <= 0:
                    return

    def _fail(self, name: str, error: Exception) -> None:
        reason = str(error) if isinstance(error, PageError) else f"can't be read ({type(error).__name__}: {error})"
        self.pages.append(PageReport(name[:200], None, reason, failed=True))

    def _is_new(self, name: str) -> bool:
        """Whether the page was not asked for before in this run."""
        new = name not in self._named
        self._named.add(name)
        return new

    def _articles(self) -> Iterator[tuple[str, str, str]]:
        """(name, URL, HTML) of Wikipedia's glossaries, the languages in turn.

        URL and HTML are empty for a page that an earlier run has read.
        """
        titles = wikipedia.check_languages(self._settings.languages)
        for language in titles:
            titles[language] = [*self._translated(language), *titles[language]]
        for language, title in wikipedia.in_turns(titles):
            base = self._wiki.format(language=language)
            name = wikipedia.address(base, title)
            if not self._is_new(name):
                continue
            try:
                yield name, *(("", "") if name in self._state.done else wikipedia.read(self._fetcher, base, title))
            except PageError as error:
                self._fail(name, error)

    def _translated(self, language: str) -> list[str]:
        """Titles that the English glossaries have in a language; asked for once and kept in the state."""
        name = f"glossaries of the English Wikipedia in {language}"
        if language != "en" and name not in self._state.done:
            try:
                base = self._wiki.format(language="en")
                self._state.keep(name, links=wikipedia.translated(self._fetcher, base, language))
            except PageError as error:
                self._fail(name, error)
        return list(self._state.done.get(name, {}).get("links", []))

    def _pages(self, start: str) -> Iterator[tuple[str, str, str]]:
        """(name, URL, HTML) of a page, or of all pages that a sitemap and the sitemaps in it name."""
        todo = deque([(start, 0)])
        count = 0
        while todo and count < SITEMAP_PAGES:
            name, depth = todo.popleft()
            try:
                name = str(check_url(name))
                if not self._is_new(name):
                    continue
                count += 1
                entry: dict[str, Any] | None = self._state.done.get(name)
                if entry is None:
                    page = self._fetcher.get(name, (*HTML, *XML))
                    text = decode(unzip(page.body, self._fetcher.max_bytes), page.charset)
                    if page.kind in HTML or "<html" in text[:2000].lower():
                        yield name, page.url, text
                        continue
                    links = links_of(text)
                    entry = {"url": page.url, "links": links}
                    self._state.keep(name, **entry)
            except (PageError, *_ODD) as error:
                self._fail(name, error)
                continue
            if "links" not in entry:
                yield name, "", ""
                continue
            hosts = {_host(name), _host(entry.get("url", name))}  # the one that was asked, and where redirects ended
            links = [link for link in entry["links"] if _host(link) in hosts] if depth < SITEMAP_DEPTH else []
            todo.extendleft((link, depth + 1) for link in reversed(links))
            note = f"sitemap: {len(links)} of {len(entry['links'])} URLs (those of its own host)"
            self.pages.append(PageReport(name, None, note))


def links_of(sitemap: str) -> list[str]:
    """The URLs that a sitemap names.

    >>> links_of("<loc> https://a.example/?x=1&amp;y=2 </loc><loc><![CDATA[https://b.example/]]></loc><loc></loc>")
    ['https://a.example/?x=1&y=2', 'https://b.example/']
    """
    links = []
    for match in _LOC.finditer(sitemap):
        link = match[1].strip()
        if link.startswith("<![CDATA["):
            link = link.removeprefix("<![CDATA[").removesuffix("]]>").strip()
        if link and not re.search(r"[\s<>]", link):
            links.append(html.unescape(link))
    return links[:SITEMAP_PAGES]


def spread(pairs: Sequence[Any], most: int) -> list[Any]:
    """At most `most` pairs, evenly from all over the page, because most pages are in alphabetical order.

    >>> spread("abcdef", 3)
    ['a', 'c', 'e']
    """
    most = min(most, len(pairs))
    return [pairs[i * len(pairs) // most] for i in range(most)]


def _host(link: str) -> str:
    try:
        return check_url(link).host
    except PageError:
        return ""
