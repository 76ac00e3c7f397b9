"""Data sets that are one JSON object: LlamaIndex, SQuAD, tables as pandas writes them. `DOCUMENTS` lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from embedrag.data.formats.lines import RowError

_OF_A_ROW = frozenset(("query", "question", "anchor", "text", "_id", "id"))  # a row or a passage with data of its own
# Rows of a document, or why a row can't be read; None: it is no document of this kind.
Rows = Iterator[Any] | None


def _llama_index(document: dict[str, Any]) -> Rows:
    """`EmbeddingQAFinetuneDataset.save_json`: texts by id, and the ids of the passages that answer each query."""
    queries, corpus, relevant = (document.get(key) for key in ("queries", "corpus", "relevant_docs"))
    if not (isinstance(queries, dict) and isinstance(corpus, dict) and isinstance(relevant, dict)):
        return None

    def rows() -> Iterator[Any]:
        for name, query in queries.items():
            ids = relevant.get(name)
            missing = [key for key in _listed(ids) if key not in corpus]
            if not ids:
                yield RowError(f"the query {name!r} has no relevant_docs")
            elif missing:
                yield RowError(f"the query {name!r} has the relevant_docs {missing[0]!r}, which is not in the corpus")
            else:
                yield {"query": query, "pos": [corpus[key] for key in _listed(ids)]}

    return rows()


def _squad(document: dict[str, Any]) -> Rows:
    """SQuAD's JSON (also KorQuAD, GermanQuAD, DRCD, Haystack's annotation tool): a question and its paragraph."""
    data = document.get("data")
    if not isinstance(data, list) or not any(isinstance(item, dict) and "paragraphs" in item for item in data):
        return None

    def rows() -> Iterator[Any]:
        for article in data:
            for paragraph in _listed(article.get("paragraphs")) if isinstance(article, dict) else ():
                for question in _listed(paragraph.get("qas")) if isinstance(paragraph, dict) else ():
                    if not isinstance(question, dict):
                        yield RowError("a question must be an object")
                    elif question.get("is_impossible"):
                        yield RowError(
                            f"the question {question.get('id')!r} has no answer in its paragraph (is_impossible); "
                            "embedrag check --fix leaves such questions out"
                        )
                    else:
                        yield {"query": question.get("question"), "pos": paragraph.get("context")}

    return rows()


def _columns(document: dict[str, Any]) -> Rows:
    """Columns of cells, as pandas' `to_json()` and `to_dict("list")`: one list or object for each column."""
    columns = list(document.values())
    if columns and all(isinstance(column, dict) for column in columns):
        if len(keys := {tuple(column) for column in columns}) != 1 or not next(iter(keys)):
            return None
        cells = [list(column.values()) for column in columns]
    elif len(columns) > 1 and all(isinstance(column, list) for column in columns):
        if len({len(column) for column in columns}) != 1:
            return None
        cells = columns
    else:
        return None
    return (dict(zip(document, row, strict=True)) for row in zip(*cells, strict=True))


def _wrapped(document: dict[str, Any]) -> Rows:
    """Rows under one key: `{"data": […]}`, `{"train": […]}`, the answer of the hub's API (`{"rows": [{"row": …}]}`)."""
    rows = next((document[key] for key in ("data", "rows", "train", "examples") if key in document), None)
    if not _OF_A_ROW.isdisjoint(document):
        return None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return None
    return (row["row"] if isinstance(row.get("row"), dict) else row for row in rows)


# The first that fits is taken. A new kind of document is one line here.
DOCUMENTS: Sequence[Callable[[dict[str, Any]], Rows]] = (_llama_index, _squad, _wrapped, _columns)


def rows_of(value: Any) -> Rows:
    """The rows of a JSON value that is a whole data set; None for any other value.

    >>> list(rows_of({"queries": {"a": "what"}, "corpus": {"n": "this"}, "relevant_docs": {"a": ["n"]}}))
    [{'query': 'what', 'pos': ['this']}]
    >>> rows_of({"query": "what", "pos": ["this"]})
    """
    if not isinstance(value, dict) or isinstance(value.get("query", value.get("anchor")), str):
        return None
    if not any(isinstance(part, (dict, list)) for part in value.values()):
        return None
    return next((rows for kind in DOCUMENTS if (rows := kind(value)) is not None), None)


def _listed(value: Any) -> list[Any]:
    """A list as it is; one value as a list of one, and nothing as none."""
    return value if isinstance(value, list) else [] if value is None else [value]
