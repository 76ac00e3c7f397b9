"""Which of a model's prompts is put before queries, and which before passages.

Models name their prompts in many ways: `query`, `retrieval.query`, `s2p_query`, `web_search_query`,
`Retrieval-document`. The rule, for each side:

1. A prompt with one of the names that sentence-transformers looks for (`EXACT`).
2. Otherwise a name with a word of that side and a word of retrieval (`retrieval.query`). When several names have both,
   the earlier word of `RETRIEVAL` decides, then the shorter name.
3. Otherwise the only name with a word of that side.
4. Otherwise the prompt that the model names as its default, unless its name has a word of the other side.
5. Otherwise no prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

QUERY, PASSAGE = "query", "passage"
EXACT = {QUERY: ("query",), PASSAGE: ("document", "passage", "corpus")}
WORDS = {QUERY: ("query", "queries"), PASSAGE: ("document", "passage", "corpus", "doc", "documents", "passages")}
RETRIEVAL = ("retrieval", "search", "s2p", "websearch", "qa", "nq", "msmarco")


def choose_prompt(prompts: Mapping[str, str], side: str, default: str | None = None) -> str | None:
    """The name of the prompt of one side.

    Args:
        prompts: name -> text.
        side: `query` or `passage`.
        default: name of the prompt that the model names as its default.

    Returns:
        None when no prompt is meant for this side.

    >>> choose_prompt({"retrieval.query": "q: ", "retrieval.passage": "p: ", "separation": "s: "}, "query")
    'retrieval.query'
    >>> choose_prompt({"s2p_query": "Instruct: ", "s2s_query": "Instruct: "}, "query")
    's2p_query'
    >>> choose_prompt({"s2p_query": "Instruct: ", "s2s_query": "Instruct: "}, "passage")
    """
    for name in EXACT[side]:
        if name in prompts:
            return name
    named = {name: set(re.split(r"[^a-z0-9]+", _spaced(name).lower())) for name in prompts}
    of_side = [name for name, words in named.items() if words & set(WORDS[side])]
    ranked = [
        (place, len(name), name)
        for name in of_side
        for place, word in enumerate(RETRIEVAL)
        if word in named[name] and "instruction" not in named[name]
    ]
    if ranked:
        return min(ranked)[2]
    if len(of_side) == 1:
        return of_side[0]
    other = WORDS[PASSAGE if side == QUERY else QUERY]
    return default if default in named and not named[default] & set(other) else None


def _spaced(name: str) -> str:
    """`SearchQuery` -> `Search Query`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
