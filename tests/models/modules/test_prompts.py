"""Prompts are found under the names that publishers give them."""

from __future__ import annotations

import pytest

from embedrag.models.modules.prompts import choose_prompt


@pytest.mark.parametrize(
    ("names", "default", "query", "passage"),
    [
        ("query passage", None, "query", "passage"),
        ("query document passage", None, "query", "document"),
        ("corpus query", None, "query", "corpus"),
        (
            "retrieval.query retrieval.passage separation classification text-matching",
            None,
            "retrieval.query",
            "retrieval.passage",
        ),
        ("s2p_query s2s_query", None, "s2p_query", None),
        ("web_search_query sts_query summarization_query bitext_query", None, "web_search_query", None),
        ("search_query search_document clustering", None, "search_query", "search_document"),
        ("Retrieval-query Retrieval-document InstructionRetrieval STS", None, "Retrieval-query", "Retrieval-document"),
        ("STS Clustering InstructionRetrieval-query Retrieval-query", None, "Retrieval-query", None),
        ("sts_query", None, "sts_query", None),
        ("sts_query bitext_query", None, None, None),  # it is not said which one
        ("sts_query bitext_query", "sts_query", "sts_query", None),
        ("instruction", "instruction", "instruction", "instruction"),
        ("my.passage.prompt", "my.passage.prompt", None, "my.passage.prompt"),
        ("SearchQuery SearchDocument", None, "SearchQuery", "SearchDocument"),
        ("requery undocumented", None, None, None),
        ("", "gone", None, None),
    ],
)
def test_prompt_of_each_side(names: str, default: str | None, query: str | None, passage: str | None) -> None:
    prompts = {name: f"{name}: " for name in names.split()}
    assert choose_prompt(prompts, "query", default) == query
    assert choose_prompt(prompts, "passage", default) == passage
