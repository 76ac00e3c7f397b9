"""Queries that a language model writes; it is asked through an OpenAI-compatible server.

Language models often answer with JSON that has small errors, they repeat themselves, and they copy the definition.
Therefore small errors of an answer are accepted, and its queries are filtered strictly. Every answer is written to
the disk at once, so that an interrupted run can go on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from embedrag.datagen.glossary.tables import plain
from embedrag.errors import RunError, UserError
from embedrag.retrieval.analyzer import analyze
from embedrag.runtime.disk import disk_error

KEY = "OPENAI_API_KEY"
RETRIES = 3
ATTEMPTS = 2  # how often a definition is asked about when the answer holds no query at all
COPIED = 0.8  # a query with this share of words from the definition is a copy, unless it is much shorter


@dataclass(frozen=True)
class WriterReport:
    """What a language model did.

    Attributes:
        requests: questions that were sent to it.
        dropped: queries dropped as repeats, as copies of the definition or as empty.
        ambiguous: queries dropped because it wrote them for several things.
        unanswered: definitions for which no readable answer came.
    """

    requests: int
    dropped: int
    ambiguous: int
    unanswered: int


class Writer:
    """Asks for queries and remembers the answers."""

    def __init__(self, base_url: str, model: str, prompt: str, wanted: int, timeout: float, cache: Path) -> None:
        """Prepare the connection and read the earlier answers. Nothing is sent yet.

        Args:
            base_url: of the server; `/v1` is added when it has no path.
            model: name of the model on the server.
            prompt: text with `{n}`, `{term}` and `{definition}`.
            wanted: queries for each definition.
            timeout: seconds that one answer may take.
            cache: JSONL file of answers; it is created with the first answer.

        Raises:
            UserError: when the package openai is missing, or when the address is wrong.
        """
        try:
            import openai
        except ImportError:
            raise UserError("`llm_base_url` needs a package: pip install openai (or leave it out)") from None
        address = urlparse(base_url)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise UserError("give an address such as http://localhost:8000/v1", "llm_base_url", base_url)
        self._url = base_url.rstrip("/") if address.path.strip("/") else f"{base_url.rstrip('/')}/v1"
        self._model, self._prompt, self._wanted, self._cache = model, prompt, wanted, cache
        self._client = openai.OpenAI(
            base_url=self._url, api_key=os.environ.get(KEY) or "none", timeout=timeout, max_retries=RETRIES
        )
        self._known = _read(cache)
        self._requests = self._unanswered = self._dropped = 0

    def queries(self, term: str, definition: str) -> list[str]:
        """Different queries for a definition, at most `wanted`.

        Raises:
            RunError: when the server can't be reached, refuses, or is too slow. The answers so far are kept.
        """
        filled = {"{n}": str(self._wanted), "{term}": term, "{definition}": definition}
        prompt = re.sub(r"\{(?:n|term|definition)\}", lambda hole: filled[hole[0]], self._prompt)
        key = hashlib.sha256(f"{self._model}\n{prompt}".encode()).hexdigest()[:32]
        given = self._known.get(key)
        for _ in range(ATTEMPTS):
            if given:
                break
            self._requests += 1
            given = parse_list(self._ask(prompt, term))
        if not given:
            self._unanswered += 1
            return []
        if key not in self._known:
            self._known[key] = given
            self._keep(key, given)
        kept = useful(given, definition)
        self._dropped += len(given) - len(kept)
        return kept[: self._wanted]

    def _keep(self, key: str, queries: list[str]) -> None:
        """Write an answer at the end of the file of answers, with a checksum."""
        row = {"key": key, "queries": queries, "sum": _sum(key, queries)}
        try:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            with self._cache.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            reason = disk_error(error, self._cache)
            raise RunError(f"{self._cache}: not written ({reason}); the answers before are kept") from None

    def report(self, ambiguous: int) -> WriterReport:
        """What it did so far.

        Args:
            ambiguous: queries that the caller dropped because they fit several things.
        """
        return WriterReport(self._requests, self._dropped, ambiguous, self._unanswered)

    def _ask(self, prompt: str, term: str) -> str:
        import openai

        try:
            answer = self._client.chat.completions.create(
                model=self._model, messages=[{"role": "user", "content": prompt}]
            )
            return "" if answer.choices == [] else answer.choices[0].message.content or ""
        except openai.APITimeoutError:
            problem = "no answer in time; raise `llm_timeout`"
        except openai.APIConnectionError as error:
            problem = f"the server can't be reached ({error.__cause__ or error}); is it running?"
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            problem = f"the server refuses the key; set the environment variable {KEY}"
        except openai.NotFoundError:
            problem = f"the server has no such address, or no model {self._model}; check `llm_base_url`, `llm_model`"
        except openai.APIError as error:
            problem = " ".join(str(error).split())[:200]
        except (ValueError, TypeError, AttributeError):  # a web page, for example
            problem = "the server does not answer as an OpenAI-compatible server does"
        kept = ""
        if self._known:
            kept = f"; {len(self._known):,} answers are kept in {self._cache}, and the same command continues from them"
        raise RunError(f"`llm_base_url={self._url}`: {problem} (term {term}){kept}")


def parse_list(answer: str) -> list[str]:
    r"""Texts of a list as language models write it.

    The list may stand in a code block, have words around it or one comma too many, or be written as lines.

    >>> parse_list('Sure!\n```json\n["a b", "c d",]\n```'), parse_list("1. a b\n2. c d")
    (['a b', 'c d'], ['a b', 'c d'])
    """
    answer = re.sub(r"<think>.*?</think>", "", answer, flags=re.S)
    start, stop = answer.find("["), answer.rfind("]")
    if 0 <= start < stop:
        inside = re.sub(r",\s*\]$", "]", answer[start : stop + 1])
        with contextlib.suppress(ValueError, RecursionError):
            return [text for item in json.loads(inside, strict=False) if (text := _text(item))]
        return [text.strip() for text in re.findall(r'"((?:[^"\\]|\\.)*)"', inside) if text.strip()]
    lines = re.findall(r"^\s*(?:\d+[.)]|[-*•])\s*(.+)$", answer, re.M)
    return [text for line in lines if (text := line.strip().strip("\"'“”").strip())]


def useful(queries: list[str], definition: str) -> list[str]:
    """Queries without repeats, without empty ones, and without copies of the definition.

    >>> useful(["퓨즈는 왜 끊어지나요?", "퓨즈는 왜  끊어지나요?", "??", "과전류가 흐르면 녹아 끊어지는 소자"],
    ...        "과전류가 흐르면 녹아 끊어지는 소자.")
    ['퓨즈는 왜 끊어지나요?']
    """
    known, kept = analyze(definition), dict[str, str]()
    for query in queries:
        query = " ".join(query.split())
        own = analyze(query)
        shared = sum(word in known for word in own)
        if not re.search(r"\w\w", query) or re.fullmatch(r"[\W\d_]*", query) or len(query) > 500:
            continue
        if shared >= COPIED * len(own) and len(own) >= min(len(known), max(6, len(known) // 2)):
            continue
        kept.setdefault(plain(query), query)
    return list(kept.values())


def _text(item: Any) -> str:
    """A query: a text, or the text under `query`, `question` or the first key of an object."""
    if isinstance(item, dict):
        item = item.get("query") or item.get("question") or next(iter(item.values()), None)
    return item.strip() if isinstance(item, str) else ""


def _sum(key: str, queries: list[str]) -> int:
    return zlib.crc32(json.dumps([key, queries]).encode())


def _read(path: Path) -> dict[str, list[str]]:
    """Answers of an earlier run. A line that was cut off or changed is skipped, and is asked for again."""
    found: dict[str, list[str]] = {}
    if not path.is_file():
        return found
    text = path.read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            row = json.loads(line)
            if row.get("sum") in (None, _sum(row["key"], row["queries"])):  # earlier versions wrote no checksum
                found[row["key"]] = [query for query in row["queries"] if isinstance(query, str)]
    if text and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    return found
