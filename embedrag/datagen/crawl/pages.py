"""Which pages a crawl reads, in which order, and what is taken of each.

Every page is named once, so sitemaps that name each other, or themselves, come to an end. Links in pages are not
followed.
"""

from __future__ import annotations

import html
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from embedrag.commands.crawl import CrawlOptions
from embedrag.datagen.crawl import wikipedia
from embedrag.datagen.crawl.bounded_gzip import unzip
from embedrag.datagen.crawl.charset import decode
from embedrag.datagen.crawl.extract import Pair, extract, pair_key
from embedrag.datagen.crawl.fetch import HTML, XML, Fetcher
from embedrag.datagen.crawl.politeness import PageError, check_url
from embedrag.datagen.crawl.state import State
from embedrag.runtime.console import now

SITEMAP_DEPTH = 3
SITEMAP_PAGES = 1000
_LOC = re.compile(r"<loc>\s*(?:<!\[CDATA\[)?\s*([^<>\s]{1,2000})\s*(?:\]\]>)?\s*</loc>", re.I)


class Crawl:
    """One run over all sources: `rows` for the outputs, `table` of (page, pairs, note) for the user."""

    def __init__(self, options: CrawlOptions, fetcher: Fetcher, state: State, wiki: str = wikipedia.BASE) -> None:
        """Nothing is read yet; `wiki` is where Wikipedia is, with `{language}` in it."""
        self._options, self._fetcher, self._state, self._wiki = options, fetcher, state, wiki
        self.rows: list[tuple[str, str, str, str]] = []
        self.table: list[tuple[str, str, str]] = []
        self.failed = 0
        self._seen: set[Pair] = set()
        self._named: set[str] = set()

    def run(self) -> None:
        """Read every source up to its limit."""
        limit = self._options.limit_per_source
        for source in dict.fromkeys(self._options.sources):
            self._take(source, self._articles(), math.ceil(limit / len(set(self._options.languages))))
        for url in dict.fromkeys(self._options.urls):
            self._take(url, self._pages(url), limit)

    def _take(self, source: str, pages: Iterator[tuple[str, str, str]], each: int) -> None:
        """Take at most `each` pairs of a page, until the source has given enough."""
        room = self._options.limit_per_source
        with tqdm(pages, desc=source[-40:], unit=" pages", disable=None, leave=False) as bar:
            for name, url, text in bar:
                entry = self._state.done.get(name)
                if entry is None:
                    try:
                        found = [pair for pair in extract(text) if pair_key(pair) not in self._seen]
                    except PageError as error:
                        self._fail(name, error)
                        continue
                    entry = {"url": url, "time": now(), "pairs": spread(found, min(each, room)), "found": len(found)}
                    self._state.keep(name, **entry)
                kept = [(term, definition) for term, definition in entry["pairs"]]
                pairs = [pair for pair in kept if pair_key(pair) not in self._seen][:room]
                self._seen |= {pair_key(pair) for pair in pairs}
                self.rows += [(*pair, entry["url"], entry["time"]) for pair in pairs]
                part = f"of {entry['found']:,}" if len(pairs) < entry["found"] else ""
                self.table.append((name, str(len(pairs)), part if entry["found"] else "no new term with a definition"))
                room -= len(pairs)
                if room <= 0:
                    return

    def _fail(self, name: str, error: PageError) -> None:
        self.failed += 1
        self.table.append((name[:200], "-", str(error)))

    def _is_new(self, name: str) -> bool:
        new = name not in self._named
        self._named.add(name)
        return new

    def _articles(self) -> Iterator[tuple[str, str, str]]:
        """(name, URL, HTML) of Wikipedia's glossaries, languages in turns; of a page that is done the name alone."""
        titles = wikipedia.check_languages(self._options.languages)
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
        name = f"glossaries of the English Wikipedia in {language}"
        if language != "en" and name not in self._state.done:
            try:
                base = self._wiki.format(language="en")
                self._state.keep(name, links=wikipedia.translated(self._fetcher, base, language))
            except PageError as error:
                self._fail(name, error)
        return list(self._state.done.get(name, {}).get("links", []))

    def _pages(self, start: str) -> Iterator[tuple[str, str, str]]:
        """(name, URL, HTML) of a page, or of all that a sitemap and the sitemaps in it name."""
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
                    links = [html.unescape(link) for link in _LOC.findall(text)][:SITEMAP_PAGES]
                    entry = {"url": page.url, "links": links}
                    self._state.keep(name, **entry)
            except PageError as error:
                self._fail(name, error)
                continue
            if "links" not in entry:
                yield name, "", ""
                continue
            hosts = {_host(name), _host(entry.get("url", name))}  # asked, and behind its redirects
            links = [link for link in entry["links"] if _host(link) in hosts] if depth < SITEMAP_DEPTH else []
            todo.extendleft((link, depth + 1) for link in reversed(links))
            self.table.append((name, "", f"sitemap: {len(links)} of {len(entry['links'])} URLs (its own host)"))


def spread(pairs: Sequence[Any], most: int) -> list[Any]:
    """At most `most` pairs, evenly over the page, whose order is mostly that of the alphabet.

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
