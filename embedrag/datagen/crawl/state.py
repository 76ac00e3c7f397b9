"""The pages that a crawl has done, one line each, so that the same command goes on where it was interrupted.

A line is appended and flushed to the disk when its page is done. A kill can leave half of the last line: it is cut off,
and its page read again. Pages that failed are not kept: the next run tries them again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from embedrag.errors import RunError, UserError

NAME = "crawl_state.jsonl"


class State:
    """What is known of pages, by the URL or name they were asked for."""

    def __init__(self, path: Path, settings: dict[str, Any], overwrite: bool) -> None:
        """Read the state, or begin it.

        Args:
            path: of the file.
            settings: what decides which pages are read and what is taken of them; another crawl has others, but its
                `urls` may become more.
            overwrite: forget what is there.

        Raises:
            UserError: the file belongs to another crawl, or is damaged.
            RunError: the disk refuses.
        """
        self._path = path
        self.done: dict[str, dict[str, Any]] = {}
        length = 0
        self._grown = False
        if path.exists() and not overwrite:
            length = self._read(settings)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab" if length else "wb")
            self._file.truncate(length)
        except OSError as error:
            raise RunError(f"{path}: can't be written ({error.strerror or error})") from None
        if not length or self._grown:
            self._append({"settings": settings})

    def keep(self, name: str, **entry: Any) -> None:
        """Note that a page is done."""
        self.done[name] = entry
        self._append({"page": name, **entry})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, settings: dict[str, Any]) -> int:
        """Fill `done`; returns the length of the whole lines in bytes."""
        whole, _, _ = self._path.read_bytes().rpartition(b"\n")
        if not whole:
            return 0
        try:
            head, *entries = [json.loads(line) for line in whole.split(b"\n")]
            earlier = head["settings"]
            for entry in entries:
                if "settings" in entry:  # more --urls, since
                    earlier = entry["settings"]
                else:
                    self.done[entry.pop("page")] = entry
            grown = earlier | {"urls": settings["urls"]} if set(earlier["urls"]) <= set(settings["urls"]) else earlier
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{self._path}: damaged; start anew with --overwrite") from None
        self._grown = grown != earlier
        if grown != settings:
            other = ", ".join(f"--{key}" for key in settings if earlier.get(key) != settings[key])
            raise UserError(
                f"--output_dir {self._path.parent}: holds a crawl with other values of {other}; "
                "name another folder, or start anew with --overwrite"
            )
        return len(whole) + 1

    def _append(self, row: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(f"{self._path}: not written ({error.strerror or error})") from None
