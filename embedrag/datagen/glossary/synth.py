"""Training and test rows from a list of terms and acronyms: by templates and, on request, by a language model.

The training side and the test side share no term, acronym or definition. A score on the test side therefore says how
well a model does on words that it was never trained on. The negatives of a row come from its own side, and the nearest
ones come first. The rows depend only on the files, the arguments and the seed.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from embedrag.datagen.glossary.llm_writer import Writer, WriterReport
from embedrag.datagen.glossary.negatives import by_words
from embedrag.datagen.glossary.tables import bare
from embedrag.datagen.glossary.templates import Kind, Templates, fill, language_of, load, shipped
from embedrag.datagen.glossary.terms import Item, groups_of, read_items, split
from embedrag.errors import UserError, all_problems, raise_all
from embedrag.runtime.console import say
from embedrag.runtime.files import check_targets, write_lines

NEAR = 5  # the nearest items, which give an item its negatives in turn
CANDIDATES = 50  # near items that are looked at; and random items of each sort, if the near ones are not enough
LLM = Kind("llm_query", (), "{definition}", 0)
ANSWERS = "llm_queries.jsonl"
Row = dict[str, str]


@dataclass(frozen=True)
class SynthSide:
    """What was written for one side.

    Attributes:
        rows: how many rows.
        terms: how many terms they are about.
        acronyms: how many acronyms they are about.
        kinds: type of query -> rows.
        without_negative: rows that have no negative, because the side has no other text that could be one.
        short: terms and acronyms that have fewer rows than asked for, because their templates are used up.
    """

    rows: int
    terms: int
    acronyms: int
    kinds: Mapping[str, int]
    without_negative: int
    short: tuple[str, ...]


@dataclass(frozen=True)
class SynthResult:
    """What `synth` wrote.

    Attributes:
        output_dir: the folder with train.jsonl and test.jsonl.
        train: the training rows.
        test: the test rows; None when no test side was asked for.
        language_model: what the language model did; None when none was asked.
    """

    output_dir: Path
    train: SynthSide
    test: SynthSide | None
    language_model: WriterReport | None


def synth(
    output_dir: str | Path,
    *,
    terms: str | None = None,
    acronyms: str | None = None,
    templates: str | None = None,
    pairs_per_term: int = 6,
    pairs_per_acronym: int = 8,
    test_split: float = 0.2,
    seed: int = 42,
    columns: Sequence[str] | None = None,
    encoding: str | None = None,
    llm_base_url: str | None = None,
    llm_model: str | None = None,
    llm_queries: int = 4,
    llm_timeout: float = 60.0,
    overwrite: bool = False,
) -> SynthResult:
    """Write training and test rows from terms and acronyms.

    Args:
        output_dir: folder for train.jsonl and test.jsonl.
        terms: CSV, TSV or JSONL file of term, definition and perhaps category.
        acronyms: JSONL file of acronym, full, definition and perhaps term and category.
        templates: JSON file of query templates, or a language that has one in the package; None: the language of
            the terms.
        pairs_per_term: rows of a term.
        pairs_per_acronym: rows of an acronym.
        test_split: share of the terms and acronyms that only the test side has, 0 to 1; 0: there is no test side.
        seed: of the split and of the draws.
        columns: names of the two columns of a table, the term first, or their numbers from 1; None: found by name.
        encoding: of a table; None: detected.
        llm_base_url: OpenAI-compatible server that writes further queries.
        llm_model: name of the model on that server.
        llm_queries: queries that it writes for each definition.
        llm_timeout: seconds that one answer may take.
        overwrite: replace train.jsonl and test.jsonl if they exist.

    Raises:
        UserError: when an argument or a file is wrong, or when nothing can be made of the terms.
        RunError: when the language model can't be asked (its answers so far are kept), or a file can't be written.
    """
    problems = []
    if not terms and not acronyms:
        problems.append(UserError("name `terms`, `acronyms` or both"))
    if bool(llm_base_url) != bool(llm_model):
        problems.append(UserError("`llm_base_url` and `llm_model` go together; name both or none"))
    raise_all(problems)
    folder = Path(output_dir).expanduser()
    outputs = [folder / f"{name}.jsonl" for name in ("train", "test")]
    sources = [terms, acronyms, templates]
    all_problems(partial(check_targets, {"output_dir": str(path)}, sources, overwrite) for path in outputs)

    items, notes = read_items(terms, acronyms, encoding, columns)
    for note in notes:
        say(note)
    language, chosen = _templates(templates, items)
    writer = None
    if llm_base_url and llm_model:
        if not chosen.llm_prompt:
            raise UserError("has no llm_prompt, which `llm_base_url` needs", "templates", language)
        writer = Writer(llm_base_url, llm_model, chosen.llm_prompt, llm_queries, llm_timeout, folder / ANSWERS)

    groups = groups_of(items)
    parts = split(items, groups, test_split, seed)
    sides = [Side([items[n] for n in numbers], [groups[n] for n in numbers], seed) for numbers in parts]
    made = [list(side.rows(chosen.kinds, pairs_per_term, pairs_per_acronym, writer)) for side in sides]
    train, test = _without_ambiguous(made)
    ambiguous = sum(map(len, made)) - len(train) - len(test)
    test = _without_trained(test, train)
    if not train:
        raise UserError(
            "none of its kinds fits these terms, or the numbers of pairs are 0, so there is nothing to train on",
            "templates",
            language,
        )
    for path, rows in zip(outputs, (train, test), strict=True):
        if rows:
            write_lines(path, rows)
        elif path.exists():  # of an earlier run; its terms are trained on now
            path.unlink()
    return SynthResult(
        output_dir=folder,
        train=sides[0].report(train),
        test=sides[1].report(test) if sides[1].items else None,
        language_model=writer.report(ambiguous) if writer else None,
    )


def _templates(name: str | None, items: Sequence[Item]) -> tuple[str, Templates]:
    """The templates that were named, or those in the language of the items; with their name."""
    found = language_of(f"{item.term} {item.definition}" for item in items)
    language = name or found or "en"
    templates = load(language)
    if not (name or found):
        say("note: the package has no templates for this script; name a file of yours with `templates`")
    say(f"templates: {language}{', which comes with the package' if language in shipped() else ''}")
    return language, templates


class Side:
    """The items of the training side or of the test side."""

    def __init__(self, items: Sequence[Item], groups: Sequence[int], seed: int) -> None:
        """Rank for each item the others that may be its negatives, the nearest first.

        Args:
            items: terms and acronyms of this side.
            groups: the group of each; items of one group are never negatives of each other.
            seed: of the draws.
        """
        self.items, self.groups, self.seed = items, groups, seed
        self.short: list[str] = []
        self._done = set[tuple[str, str]]()
        texts = [f"{item.term} {item.definition} {item.fields.get('category', '')}" for item in items]
        self._sorts: list[list[int]] = [[], []]
        for number, item in enumerate(items):
            self._sorts[item.is_acronym].append(number)
        found = by_words(texts, texts, min(len(items), CANDIDATES)) if items else iter(())
        self._near = [self._others(number, [int(other) for other in near]) for number, near in enumerate(found)]

    def rows(
        self, kinds: Sequence[Kind], pairs_per_term: int, pairs_per_acronym: int, writer: Writer | None
    ) -> Iterator[tuple[int, Row]]:
        """(group, row) of all items, item by item."""
        for number, (item, group) in enumerate(zip(self.items, self.groups, strict=True)):
            wanted = pairs_per_acronym if item.is_acronym else pairs_per_term
            yield from ((group, row) for row in self._rows(number, kinds, wanted, writer))

    def report(self, rows: Sequence[Row]) -> SynthSide:
        """What was made of this side.

        Args:
            rows: those that were kept.
        """
        acronyms = sum(item.is_acronym for item in self.items)
        return SynthSide(
            rows=len(rows),
            terms=len(self.items) - acronyms,
            acronyms=acronyms,
            kinds=Counter(row["type"] for row in rows),
            without_negative=sum("negative" not in row for row in rows),
            short=tuple(self.short),
        )

    def _rows(self, number: int, kinds: Sequence[Kind], wanted: int, writer: Writer | None) -> Iterator[Row]:
        """Rows of one item: the kinds take turns until there are enough; those of the language model follow."""
        item = self.items[number]
        made = 0
        for kind, template in self._turns(item, kinds):
            if made < wanted and (row := self._row(number, kind, fill(template, item.fields), made)):
                made += 1
                yield row
        if made < wanted:
            self.short.append(item.fields.get("acronym", item.term))
        if writer:
            name = f"{item.fields['acronym']} ({item.fields['full']})" if item.is_acronym else item.term
            for turn, query in enumerate(writer.queries(name, item.definition)):
                if row := self._row(number, LLM, query, turn):
                    yield row

    def _turns(self, item: Item, kinds: Sequence[Kind]) -> Iterator[tuple[Kind, str]]:
        """Templates in a random order that gives each kind its turn."""
        rng = random.Random(f"{self.seed}:{sorted(item.fields.items())}")
        queues = []
        for kind in kinds:
            if kind.fits(item.fields):
                queues.append((kind, rng.sample(kind.queries, len(kind.queries))[: kind.most]))
        for turn in range(max((len(queue) for _, queue in queues), default=0)):
            for kind, queue in queues:
                if turn < len(queue):
                    yield kind, queue[turn]

    def _row(self, number: int, kind: Kind, query: str, turn: int) -> Row | None:
        """A row; None when it was made before, or when its query holds the answer."""
        item = self.items[number]
        positive = fill(kind.positive, item.fields)
        key = (bare(query), bare(positive))
        if key in self._done or key[0] == key[1] or _holds(query, positive):
            return None
        self._done.add(key)
        row = {"query": query, "positive": positive}
        if negatives := self._negatives(number, kind, set(key)):
            row["negative"] = negatives[turn % len(negatives)]
        row |= {"term": item.term, "type": kind.type}
        return row | {key: item.fields[key] for key in ("acronym", "full") if key in item.fields}

    def _negatives(self, number: int, kind: Kind, barred: set[str]) -> list[str]:
        """Answers of the nearest other items to the same kind of query, without the barred texts."""
        found: dict[str, str] = {}
        for other in self._near[number]:
            same_sort = self.items[other].is_acronym == self.items[number].is_acronym
            if not same_sort and "{definition" not in kind.positive:
                continue  # a model could recognise a term among acronyms by its form
            text = fill(kind.positive, self.items[other].fields)
            if bare(text) not in barred:
                found.setdefault(bare(text), text)
            if len(found) == NEAR:
                break
        return list(found.values())

    def _others(self, number: int, near: list[int]) -> list[int]:
        """Items of other groups: the near ones, then random terms and acronyms in case those are not enough."""
        rng = random.Random(f"{self.seed}:{self.items[number].term}:rest")
        rest = [other for sort in self._sorts for other in rng.sample(sort, min(len(sort), CANDIDATES))]
        return [other for other in dict.fromkeys([*near, *rest]) if self.groups[other] != self.groups[number]]


def _holds(query: str, answer: str) -> bool:
    """Whether a query holds the answer. Latin letters must stand as words of their own: "explain" does not hold AI.

    >>> _holds("발광다이오드의 뜻", "다이오드"), _holds("explain this", "AI"), _holds("what is AI?", "ai")
    (True, False, True)
    """
    text = re.escape(answer.casefold())
    before, after = (r"(?<![a-z0-9])", r"(?![a-z0-9])")
    latin = [letter.isascii() and letter.isalnum() for letter in (answer[0], answer[-1])]
    return bool(re.search(before * latin[0] + text + after * latin[1], query.casefold()))


def _without_ambiguous(sides: list[list[tuple[int, Row]]]) -> list[list[Row]]:
    """Rows of both sides, without queries that a language model wrote for items of different groups."""
    groups: dict[str, set[int]] = {}
    for group, row in (pair for side in sides for pair in side):
        groups.setdefault(bare(row["query"]), set()).add(group)
    return [
        [row for _, row in side if row["type"] != LLM.type or len(groups[bare(row["query"])]) == 1] for side in sides
    ]


def _without_trained(rows: list[Row], trained: list[Row]) -> list[Row]:
    """Test rows, without those that have a query or positive of a training row; a language model may write such."""
    known = {bare(row[key]) for row in trained for key in ("query", "positive")}
    return [row for row in rows if not known & {bare(row["query"]), bare(row["positive"])}]
