"""For the site alone: a link that leads out of docs/ becomes the name of the file, because it is not on the site."""

from __future__ import annotations

import re
from typing import Any

OUTWARD = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)[^)]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page.

    >>> on_page_markdown("see [the data](../datasets/README.md#rules) and [check](check.md)")
    'see the data (`datasets/README.md`) and [check](check.md)'
    """
    return OUTWARD.sub(r"\1 (`\2`)", markdown)
