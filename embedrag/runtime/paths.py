"""Folders of this program on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(named: str | None) -> Path:
    """Where things are kept that can be computed again: `--cache_dir`, $EMBEDRAG_CACHE, or a folder of the user's."""
    return Path(named or os.environ.get("EMBEDRAG_CACHE") or "~/.cache/embedrag").expanduser()
