"""Queries written by a language model behind an OpenAI-compatible server.

Models answer with JSON that is nearly right, repeat themselves, and copy what they were shown; what comes back is read
with patience and judged without it. Every answer is kept on the disk at once, so an interrupted run goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from embedrag.datagen.glossary.tables import plain
from embedrag.errors import RunError, UserError
from embedrag.retrieval.bm25 import words

KEY = "OPENAI_API_KEY"
RETRIES = 3
ATTEMPTS = 2  # answers that hold no query at all
COPIED = 0.8  # share of a query's words that stand in the definition, from which on it is a copy if it is as long


class Writer:
    """Asks for queries, and remembers the answers."""

    def __init__(self, base_url: str, model: str, prompt: str, wanted: int, timeout: float, cache: Path) -> None:
        """Open the connection's settings and the file of earlier answers; nothing is sent yet.

        Args:
            base_url: of the server; `/v1` is added where it has no path.
            model: name that the server knows.
            prompt: text with `{n}`, `{term}` and `{definition}`.
            wanted: queries for each definition.
            timeout: seconds for one answer.
            cache: JSONL file of answers; made when the first one comes.

        Raises:
            UserError: when the package is missing, or the address is none.
        """
        try:
            import openai
        except ImportError:
            raise UserError("--llm_base_url needs openai: pip install openai (or leave the flag out)") from None
        address = urlparse(base_url)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise UserError(f"--llm_base_url {base_url}: give an address such as http://localhost:8000/v1")
        self._url = base_url.rstrip("/") if address.path.strip("/") else f"{base_url.rstrip('/')}/v1"
        self._model, self._prompt, self._wanted, self._cache = model, prompt, wanted, cache
        self._client = openai.OpenAI(
            base_url=self._url, api_key=os.environ.get(KEY) or "none", timeout=timeout, max_retries=RETRIES
        )
        self._known = _read(cache)
        self.asked = self.empty = self.dropped = 0

    def queries(self, term: str, definition: str) -> list[str]:
        """Different queries for a definition, at most as many as wanted.

        Raises:
            RunError: when the server can't be reached, refuses, or is too slow; answers so far are kept.
        """
        filled = {"{n}": str(self._wanted), "{term}": term, "{definition}": definition}
        prompt = re.sub(r"\{(?:n|term|definition)\}", lambda hole: filled[hole[0]], self._prompt)
        key = hashlib.sha256(f"{self._model}\n{prompt}".encode()).hexdigest()[:32]
        given = self._known.get(key)
        for _ in range(ATTEMPTS):
            if given:
                break
            self.asked += 1
            given = parse_list(self._ask(prompt, term))
        if not given:
            self.empty += 1
            return []
        if key not in self._known:
            self._known[key] = given
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            with self._cache.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "queries": given}, ensure_ascii=False) + "\n")
        kept = useful(given, definition)
        self.dropped += len(given) - len(kept)
        return kept[: self._wanted]

    def _ask(self, prompt: str, term: str) -> str:
        import openai

        try:
            answer = self._client.chat.completions.create(
                model=self._model, messages=[{"role": "user", "content": prompt}]
            )
            return "" if answer.choices == [] else answer.choices[0].message.content or ""
        except openai.APITimeoutError:
            problem = "no answer in time; raise --llm_timeout"
        except openai.APIConnectionError as error:
            problem = f"can't be reached ({error.__cause__ or error}); is the server running?"
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            problem = f"refuses the key; set the environment variable {KEY}"
        except openai.NotFoundError:
            problem = f"knows no such address or no model {self._model}; check --llm_base_url and --llm_model"
        except openai.APIError as error:
            problem = " ".join(str(error).split())[:200]
        except (ValueError, TypeError, AttributeError):  # a web page, for example
            problem = "does not answer as an OpenAI-compatible server does"
        kept = (
            f"; {len(self._known):,} answers are kept in {self._cache}, the same command goes on" if self._known else ""
        )
        raise RunError(f"--llm_base_url {self._url}: {problem} (term {term}){kept}")


def parse_list(answer: str) -> list[str]:
    r"""Texts of a list, as models write it: in a code block, with words around it, with a comma too many, or as lines.

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
    """Queries without repeats, without those that say nothing, and without copies of the definition.

    >>> useful(["퓨즈는 왜 끊어지나요?", "퓨즈는 왜  끊어지나요?", "??", "과전류가 흐르면 녹아 끊어지는 소자"],
    ...        "과전류가 흐르면 녹아 끊어지는 소자.")
    ['퓨즈는 왜 끊어지나요?']
    """
    known, kept = words(definition), dict[str, str]()
    for query in queries:
        query = " ".join(query.split())
        own = words(query)
        shared = sum(word in known for word in own)
        if not re.search(r"\w\w", query) or re.fullmatch(r"[\W\d_]*", query) or len(query) > 500:
            continue
        if shared >= COPIED * len(own) and len(own) >= min(len(known), max(6, len(known) // 2)):
            continue
        kept.setdefault(plain(query), query)
    return list(kept.values())


def _text(item: Any) -> str:
    """A query that is a text, or the only or `query` text of an object."""
    if isinstance(item, dict):
        item = item.get("query") or item.get("question") or next(iter(item.values()), None)
    return item.strip() if isinstance(item, str) else ""


def _read(path: Path) -> dict[str, list[str]]:
    """Answers of an earlier run; a last line that was cut off is passed over."""
    found: dict[str, list[str]] = {}
    if not path.is_file():
        return found
    text = path.read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            row = json.loads(line)
            found[row["key"]] = [query for query in row["queries"] if isinstance(query, str)]
    if text and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
    return found
