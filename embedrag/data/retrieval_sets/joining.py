"""Corpus, queries and judgements of a folder, joined by their ids.

Published sets have ids that lead nowhere, and things that are there twice. None of this is an error. It is counted,
reported in one line for each kind, and treated as in BEIR, MTEB and trec_eval, so that published figures come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from embedrag.data.retrieval_sets.judgements import FORMS, Judgements, read_judgements
from embedrag.data.retrieval_sets.layout import DEFAULT_SPLIT, SetFiles, set_files
from embedrag.data.retrieval_sets.texts import Texts, examples, read_texts_by_id
from embedrag.errors import UserError, all_problems


@dataclass
class JoinedSet:
    """A retrieval set without its ids. The fields are those of `embedrag.data.retrieval_dataset.RetrievalDataset`.

    Attributes:
        passages: in falling order of their ids, because trec_eval ranks equal scores in this order.
        queries: the judged ones that have a relevant passage.
        relevant: for each query: number of a passage -> grade above 0.
        missing: number of a query -> grades of its relevant passages that the corpus lacks.
        own: number of a query -> number of the passage that has the id of the query and is not relevant for it.
        skipped: judged queries without a relevant passage.
        lines: what is unusual about the set, for people.
    """

    passages: list[str]
    queries: list[str] = field(default_factory=list)
    relevant: list[dict[int, float]] = field(default_factory=list)
    missing: dict[int, list[float]] = field(default_factory=dict)
    own: dict[int, int] = field(default_factory=dict)
    skipped: int = 0
    lines: list[str] = field(default_factory=list)


def read_set(folder: Path, split: str | None, argument: str) -> JoinedSet:
    """Read a folder that holds a retrieval set.

    Args:
        folder: of the set.
        split: which judgements; None: `test`, otherwise the only ones.
        argument: what the caller calls the folder, for messages.

    Raises:
        UserError: with all problems of all files.
    """
    files = set_files(folder, split, argument)
    corpus, queries, judgements = _read(files)
    names = sorted(corpus.texts, key=str.encode, reverse=True)
    numbers = {name: number for number, name in enumerate(names)}
    grades, unknown_queries = _of_known_queries(judgements, queries)
    unknown_passages: dict[str, None] = {}
    found = JoinedSet([corpus.texts[name] for name in names])
    for query, of_query in grades.items():
        gains: dict[int, float] = {}
        gone: list[float] = []
        for passage, grade in of_query.items():
            name = _known(passage, numbers)
            if name is None:
                unknown_passages[passage] = None
            if grade > 0 and name is None:
                gone.append(grade)
            elif grade > 0 and name is not None:
                gains[numbers[name]] = grade
        if not gains and not gone:
            found.skipped += 1
            continue
        place = len(found.queries)
        if gone:
            found.missing[place] = gone
        if query in numbers and numbers[query] not in gains:
            found.own[place] = numbers[query]
        found.queries.append(queries.texts[query])
        found.relevant.append(gains)
    if not any(found.relevant):
        file = files.judgements[0] if len(files.judgements) == 1 else folder
        why = "" if found.skipped else _why_nothing(judgements.grades, queries.texts, corpus.texts)
        raise UserError(f"{file}: no query has a relevant passage{why}")
    if files.split and split is None and files.split != DEFAULT_SPLIT:
        found.lines.append(f"split {files.split}, the only one with judgements")
    found.lines += _of_ids(unknown_queries, list(unknown_passages), found)
    found.lines += _of_texts(corpus, queries)
    found.lines += _of_judgements(judgements)
    return found


def _read(files: SetFiles) -> tuple[Texts, Texts, Judgements]:
    """The three parts; the problems of all of them are raised together."""
    read: dict[str, Any] = {}

    def keep(name: str, reader: Callable[[Sequence[Path]], Any], some: Sequence[Path]) -> None:
        read[name] = reader(some)

    all_problems(
        [
            partial(keep, "corpus", read_texts_by_id, files.corpus),
            partial(keep, "queries", read_texts_by_id, files.queries),
            partial(keep, "judgements", read_judgements, files.judgements),
        ]
    )
    return read["corpus"], read["queries"], read["judgements"]


def _of_known_queries(judgements: Judgements, queries: Texts) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Grades of the queries that are there, and ids of the others.

    Raises:
        UserError: a first line looked like a header, but it begins with the id of a query.
    """
    for place, cells in judgements.headers:
        if _known(cells[0], queries.texts) is not None:
            raise UserError(f"{place}: not a judgement; {FORMS}")
    grades: dict[str, dict[str, float]] = {}
    unknown: list[str] = []
    for name, of_query in judgements.grades.items():
        query = _known(name, queries.texts)
        if query is None:
            unknown.append(name)
        else:
            grades.setdefault(query, {}).update(of_query)
    return grades, unknown


def _known(name: str, known: Mapping[str, Any]) -> str | None:
    """The id itself, or without the `.0` that spreadsheets add to numbers; None if neither is known."""
    plain = name.removesuffix(".0") if name.removesuffix(".0").isdigit() else name
    return next((one for one in (name, plain) if one in known), None)


def _why_nothing(
    grades: Mapping[str, Mapping[str, float]], queries: Mapping[str, str], corpus: Mapping[str, str]
) -> str:
    """Ids of the judgements beside those of the texts, when they don't fit together."""
    query, passages = next(iter(grades.items()))
    for what, name, known in (("query", query, queries), ("passage", next(iter(passages)), corpus)):
        if _known(name, known) is None:
            return f"; the first {what} is {name!r}, and ids of the set look like {next(iter(known), '')!r}"
    return ""


def _of_ids(queries: list[str], passages: list[str], found: JoinedSet) -> Iterator[str]:
    """Lines about ids that lead nowhere (of queries and of passages), and about queries that are passages."""
    if queries:
        yield f"{len(queries):,} judged queries have no text and are left out: {examples(queries)}"
    if passages:
        yield (
            f"{len(passages):,} judged passages are not in the corpus: {examples(passages)}; relevant ones count as "
            "passages that no model can find, as in BEIR, MTEB and trec_eval"
        )
    if found.own:
        yield (
            f"{len(found.own):,} queries have a passage with their own id; it is left out of their ranking, as in "
            f"BEIR: {examples([found.queries[number][:40] for number in found.own])}"
        )


def _of_texts(corpus: Texts, queries: Texts) -> Iterator[str]:
    """Lines about texts that are empty or repeated."""
    for what, texts in (("passages", corpus), ("queries", queries)):
        if texts.repeated:
            shown = examples(texts.repeated)
            yield f"{len(texts.repeated):,} {what} are repeated with the same id and text: {shown}"
        if texts.empty:
            yield f"{len(texts.empty):,} {what} are empty: {examples(texts.empty)}"
    firsts: dict[str, str] = {}
    twins = [name for name, text in corpus.texts.items() if firsts.setdefault(text, name) != name]
    if twins:
        first = f"{firsts[corpus.texts[twins[0]]]!r} and {twins[0]!r}"
        yield f"{len(twins):,} passages have the text of another one, such as {first}; they always have the same score"


def _of_judgements(judgements: Judgements) -> Iterator[str]:
    """Lines about pairs that are judged again, and about grades between whole numbers."""
    for pairs, how in (
        (judgements.repeated, "the same grade"),
        (judgements.changed, "another grade, and the last one counts, as in BEIR and MTEB"),
    ):
        if pairs:
            shown = examples([" ".join(pair) for pair in pairs])
            yield f"{len(pairs):,} judgements are repeated with {how}: {shown}"
    if judgements.between:
        yield f"{judgements.between:,} grades are no whole numbers; they count as they are (trec_eval rounds them down)"
