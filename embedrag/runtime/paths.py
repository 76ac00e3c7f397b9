"""Folders that this program uses on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(named: str | None) -> Path:
    """The folder for what can be computed again.

    Args:
        named: what the caller asks for; without it, $EMBEDRAG_CACHE or a folder in the user's home counts.
    """
    return Path(named or os.environ.get("EMBEDRAG_CACHE") or "~/.cache/embedrag").expanduser()
