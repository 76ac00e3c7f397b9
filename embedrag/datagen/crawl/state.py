"""The pages that a crawl has read, one line for each, so that the same call can go on after an interruption.

A line is appended and flushed to the disk as soon as its page is read. A kill can leave half of the last line. That
half is cut off and its page is read again. Pages that failed are not kept, so that the next run tries them again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedrag.errors import RunError, UserError

NAME = "crawl_state.jsonl"


@dataclass(frozen=True)
class CrawlSettings:
    """The settings that decide which pages are read, and what is taken from them. A continued crawl must keep them.

    Attributes:
        sources: known lists of pages.
        urls: pages, or sitemaps of pages; a crawl that goes on may have more of them.
        languages: Wikipedias that are read.
        limit_per_source: pairs of one source, at most.
    """

    sources: tuple[str, ...]
    urls: tuple[str, ...]
    languages: tuple[str, ...]
    limit_per_source: int


class State:
    """What was read so far.

    Attributes:
        done: URL or name of a page, as it was asked for -> what was taken from it.
    """

    def __init__(self, path: Path, settings: CrawlSettings, overwrite: bool) -> None:
        """Read the file of an earlier run, or begin a new one.

        Args:
            path: of the file.
            settings: of this crawl.
            overwrite: forget an earlier run.

        Raises:
            UserError: when the file belongs to another crawl, or when it is damaged.
            RunError: when the file can't be written.
        """
        wanted = json.loads(json.dumps(asdict(settings)))  # as the file has it: lists, not tuples
        self._path = path
        self.done: dict[str, dict[str, Any]] = {}
        length = 0
        self._grown = False
        if path.exists() and not overwrite:
            length = self._read(wanted)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab" if length else "wb")
            self._file.truncate(length)
        except OSError as error:
            raise RunError(f"{path}: can't be written ({error.strerror or error})") from None
        if not length or self._grown:
            self._append({"settings": wanted})

    def keep(self, name: str, **entry: Any) -> None:
        """Note that a page was read.

        Args:
            name: of the page, as it was asked for.
            **entry: what was taken from it.
        """
        self.done[name] = entry
        self._append({"page": name, **entry})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, settings: dict[str, Any]) -> int:
        """Fill `done`; return the length of all whole lines, in bytes."""
        whole, _, _ = self._path.read_bytes().rpartition(b"\n")
        if not whole:
            return 0
        try:
            head, *entries = [json.loads(line) for line in whole.split(b"\n")]
            earlier = head["settings"]
            for entry in entries:
                if "settings" in entry:  # a later run had more URLs
                    earlier = entry["settings"]
                else:
                    self.done[entry.pop("page")] = entry
            grown = earlier | {"urls": settings["urls"]} if set(earlier["urls"]) <= set(settings["urls"]) else earlier
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{self._path}: the file is damaged; start again with `overwrite`") from None
        self._grown = grown != earlier
        if grown != settings:
            other = ", ".join(f"`{key}`" for key in settings if earlier.get(key) != settings[key])
            raise UserError(
                f"holds a crawl with other values of {other}; name another folder, or start again with `overwrite`",
                "output_dir",
                self._path.parent,
            )
        return len(whole) + 1

    def _append(self, row: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(f"{self._path}: not written ({error.strerror or error})") from None
