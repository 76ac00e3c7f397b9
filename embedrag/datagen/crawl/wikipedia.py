"""Glossaries of Wikipedia, read through the interface that MediaWiki has for programs.

`data/wikipedia_glossaries.json` names pages of each language. The pages that the English ones link to as their
translations are added, so that nobody has to maintain a list of these. A page that was renamed is found through its
redirect. A page that is gone is reported and skipped.

robots.txt forbids everything under /w/, also the interface. This rule is for search engines. The rules of the
interface allow programs that name themselves, send one request at a time, and wait when the servers lag (`maxlag`).
Therefore robots.txt is asked about the articles, not about the interface.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from itertools import zip_longest
from typing import Any
from urllib.parse import quote, urlencode

from embedrag.datagen.crawl.fetch import ATTEMPTS, LONGEST_WAIT, Fetcher, Page
from embedrag.datagen.crawl.politeness import PageError
from embedrag.errors import UserError, near_miss

BASE = "https://{language}.wikipedia.org"
TITLES_PER_REQUEST = 50
_PASSING = {"maxlag", "ratelimited", "readonly", "internal_api_error_DBQueryError"}


def check_languages(languages: Sequence[str]) -> dict[str, list[str]]:
    """The titles of each language, from the list of the package.

    Raises:
        UserError: when the list does not have a language.
    """
    known: dict[str, list[str]] = json.loads(
        (files("embedrag.datagen.crawl") / "data" / "wikipedia_glossaries.json").read_text(encoding="utf-8")
    )
    for language in languages:
        if language not in known:
            reason = f"no glossaries are known in it; accepted are {', '.join(known)}{near_miss(language, known)}"
            raise UserError(reason, "languages", language)
    return {language: known[language] for language in dict.fromkeys(languages)}


def in_turns(titles: dict[str, list[str]]) -> list[tuple[str, str]]:
    """(language, title) of all pages. The languages take turns, so that a limit leaves something of each.

    >>> in_turns({"en": ["a", "b"], "ko": ["c"]})
    [('en', 'a'), ('ko', 'c'), ('en', 'b')]
    """
    columns = [[(language, title) for title in dict.fromkeys(column)] for language, column in titles.items()]
    return [entry for row in zip_longest(*columns) for entry in row if entry]


def translated(fetcher: Fetcher, base: str, language: str) -> list[str]:
    """Titles that the English glossaries have in another language.

    Raises:
        PageError: with the reason.
    """
    english = check_languages(["en"])["en"]
    found: list[str] = []
    for start in range(0, len(english), TITLES_PER_REQUEST):
        titles = english[start : start + TITLES_PER_REQUEST]
        query = {"action": "query", "prop": "langlinks", "titles": "|".join(titles), "lllang": language}
        answer = _ask(fetcher, base, titles[0], query | {"lllimit": "max"})
        try:
            links = {
                page["title"]: page["langlinks"][0]["title"] for page in answer["query"]["pages"] if "langlinks" in page
            }
        except (KeyError, TypeError, IndexError):
            raise PageError("Wikipedia's answer has no list of languages") from None
        found += [links[title] for title in titles if isinstance(links.get(title), str)]
    return found


def address(base: str, title: str) -> str:
    """URL of an article.

    >>> address("https://en.wikipedia.org", "Glossary of computer science")
    'https://en.wikipedia.org/wiki/Glossary_of_computer_science'
    """
    return f"{base}/wiki/{quote(title.replace(' ', '_'), safe='/:(),')}"


def read(fetcher: Fetcher, base: str, title: str) -> tuple[str, str]:
    """URL and HTML of an article, after its redirects.

    Raises:
        PageError: with the reason.
    """
    query = {"action": "parse", "page": title, "prop": "text", "disableeditsection": "1", "disabletoc": "1"}
    return _article(_ask(fetcher, base, title, query), base)


def _ask(fetcher: Fetcher, base: str, title: str, query: dict[str, str]) -> dict[str, Any]:
    """An answer of the interface. Waits while the servers lag."""
    fetcher.obey(address(base, title))
    query = query | {"redirects": "1", "format": "json", "formatversion": "2", "maxlag": "5"}
    code = ""
    for _ in range(ATTEMPTS):
        page = fetcher.ask(f"{base}/w/api.php?{urlencode(query)}")
        answer = _parse(page)
        error = answer.get("error")
        if error is None:
            return answer
        code = str(error.get("code", "")) if isinstance(error, dict) else ""
        if code not in _PASSING:
            raise PageError("no page has this title" if code == "missingtitle" else f"Wikipedia says {code or error}")
        fetcher.pause(min(page.retry_after or 5.0, LONGEST_WAIT))
    raise PageError(f"Wikipedia says {code}, {ATTEMPTS} times")


def _parse(page: Page) -> dict[str, Any]:
    try:
        answer = json.loads(page.body)
    except (ValueError, RecursionError):
        raise PageError("Wikipedia's answer is not JSON") from None
    if not isinstance(answer, dict):
        raise PageError("Wikipedia's answer is not a JSON object")
    return answer


def _article(answer: dict[str, Any], base: str) -> tuple[str, str]:
    article = answer.get("parse")
    if not isinstance(article, dict) or not all(isinstance(article.get(key), str) for key in ("title", "text")):
        raise PageError("Wikipedia's answer has no page")
    return address(base, article["title"]), article["text"]
