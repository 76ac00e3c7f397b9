"""Training and test rows from a list of terms and acronyms, by templates, and on request by a language model.

The two sides share no term, acronym or definition, so a score on the test set says how the model does on words that it
was never taught. Negatives are near things of the same side. Everything is a function of the files and the seed.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from embedrag.commands.synth import SynthOptions
from embedrag.datagen.glossary.llm_writer import Writer
from embedrag.datagen.glossary.negatives import by_words
from embedrag.datagen.glossary.tables import bare
from embedrag.datagen.glossary.templates import Kind, fill, language_of, load, shipped
from embedrag.datagen.glossary.terms import Item, groups_of, read_items, split
from embedrag.errors import UserError
from embedrag.runtime.console import say
from embedrag.runtime.files import check_targets, write_lines

NEAR = 5  # nearest things that the negatives of an item rotate through
CANDIDATES = 50  # near things that are looked at, and as many others of each sort where they do not suffice
LLM = "llm_query"
ANSWERS = "llm_queries.jsonl"
Row = dict[str, str]


def run(options: SynthOptions) -> int:
    """`embedrag synth`: write train.jsonl and test.jsonl."""
    folder = Path(options.output_dir).expanduser()
    outputs = {side: folder / f"{side}.jsonl" for side in ("train", "test")}
    check_targets(
        {f"--output_dir ({side})": str(path) for side, path in outputs.items()},
        [options.terms, options.acronyms, options.templates],
        options.overwrite,
    )
    items, notes = read_items(options.terms, options.acronyms, options.encoding, options.columns)
    found = language_of(f"{item.term} {item.definition}" for item in items)
    language = options.templates or found or "en"
    templates = load(language)
    for note in notes:
        say(note)
    if not (options.templates or found):
        say("note: no templates for these letters come with the package; name a file of yours with --templates")
    say(f"templates: {language}{', which comes with the package' if language in shipped() else ''}")
    writer = None
    if options.llm_base_url:
        if not templates.llm_prompt:
            raise UserError(f"--templates {language}: has no llm_prompt, which --llm_base_url needs")
        writer = Writer(
            options.llm_base_url,
            options.llm_model or "",
            templates.llm_prompt,
            options.llm_queries,
            options.llm_timeout,
            folder / ANSWERS,
        )
    groups = groups_of(items)
    sides = split(items, groups, options.test_split, options.seed)
    made = [Side([items[n] for n in numbers], [groups[n] for n in numbers], options.seed) for numbers in sides]
    rows = [
        [
            (group, row)
            for item, group in enumerate(side.groups)
            for row in side.rows(item, templates.kinds, options, writer)
        ]
        for side in made
    ]
    train, test = _telling(rows)
    written = [train, _unknown(test, train)]
    for name, side, kept in zip(outputs, made, written, strict=True):
        if side.items:
            _tell(name, side, kept)
    if not written[0]:
        raise UserError(
            f"--templates {language}: no kind of it fits these terms, or the numbers of pairs are 0; "
            "there is nothing to train on"
        )
    for path, kept in zip(outputs.values(), written, strict=True):
        if kept:
            write_lines(path, kept)
        elif path.exists():  # of an earlier run, whose terms are trained on now
            path.unlink()
    if writer:
        say(
            f"language model: asked {writer.asked:,} times, {writer.dropped:,} queries dropped (repeats, copies of the "
            f"definition, empty) and {sum(map(len, rows)) - len(train) - len(test):,} more that fit several things, "
            f"{writer.empty:,} definitions without an answer that could be read"
        )
    say(f"rows are in {folder}")
    return 0


class Side:
    """The items of the training or of the test set."""

    def __init__(self, items: Sequence[Item], groups: Sequence[int], seed: int) -> None:
        """Rank for each item the others that may be its negatives, near ones first."""
        self.items, self.groups, self.seed = items, groups, seed
        self.short: list[str] = []
        self._done = set[tuple[str, str]]()
        texts = [f"{item.term} {item.definition} {item.fields.get('category', '')}" for item in items]
        self._sorts: list[list[int]] = [[], []]
        for number, item in enumerate(items):
            self._sorts["acronym" in item.fields].append(number)
        found = by_words(texts, texts, min(len(items), CANDIDATES)) if items else iter(())
        self._near = [self._others(number, [int(other) for other in near]) for number, near in enumerate(found)]

    def rows(self, number: int, kinds: Sequence[Kind], options: SynthOptions, writer: Writer | None) -> Iterator[Row]:
        """Rows of one item: kinds take turns until there are enough, then those of the language model."""
        item = self.items[number]
        acronym = "acronym" in item.fields
        wanted = options.pairs_per_acronym if acronym else options.pairs_per_term
        made = 0
        for kind, template in self._turns(item, kinds):
            if made < wanted and (row := self._row(number, kind, fill(template, item.fields), made)):
                made += 1
                yield row
        if made < wanted:
            self.short.append(item.fields.get("acronym", item.term))
        if writer:
            kind = Kind(LLM, (), "{definition}", options.llm_queries)
            name = f"{item.fields['acronym']} ({item.fields['full']})" if acronym else item.term
            for turn, query in enumerate(writer.queries(name, item.definition)):
                if row := self._row(number, kind, query, turn):
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
        """A row, unless it was there before or its query holds the answer."""
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
        found: dict[str, str] = {}
        for other in self._near[number]:
            fields = self.items[other].fields
            if ("acronym" in fields) != ("acronym" in self.items[number].fields) and "{definition" not in kind.positive:
                continue  # a name of another sort would be told apart by its looks
            text = fill(kind.positive, fields)
            if bare(text) not in barred:
                found.setdefault(bare(text), text)
            if len(found) == NEAR:
                break
        return list(found.values())

    def _others(self, number: int, near: list[int]) -> list[int]:
        """Items of other groups: near ones, then some terms and acronyms at random, should those not do."""
        rng = random.Random(f"{self.seed}:{self.items[number].term}:rest")
        rest = [other for sort in self._sorts for other in rng.sample(sort, min(len(sort), CANDIDATES))]
        return [other for other in dict.fromkeys([*near, *rest]) if self.groups[other] != self.groups[number]]


def _holds(query: str, answer: str) -> bool:
    """Whether a text stands in another; one in Latin letters as words of its own: AI is not in "explain".

    >>> _holds("발광다이오드의 뜻", "다이오드"), _holds("explain this", "AI"), _holds("what is AI?", "ai")
    (True, False, True)
    """
    text = re.escape(answer.casefold())
    before, behind = (r"(?<![a-z0-9])", r"(?![a-z0-9])")
    latin = [letter.isascii() and letter.isalnum() for letter in (answer[0], answer[-1])]
    return bool(re.search(before * latin[0] + text + behind * latin[1], query.casefold()))


def _telling(sides: list[list[tuple[int, Row]]]) -> list[list[Row]]:
    """Rows of (group, row) without the queries that a language model wrote for things of different groups."""
    groups: dict[str, set[int]] = {}
    for group, row in (pair for side in sides for pair in side):
        groups.setdefault(bare(row["query"]), set()).add(group)
    return [[row for _, row in side if row["type"] != LLM or len(groups[bare(row["query"])]) == 1] for side in sides]


def _unknown(rows: list[Row], trained: list[Row]) -> list[Row]:
    """Test rows without those whose query or positive was trained on, which a language model may bring about."""
    known = {bare(row[key]) for row in trained for key in ("query", "positive")}
    return [row for row in rows if not known & {bare(row["query"]), bare(row["positive"])}]


def _tell(name: str, side: Side, rows: list[Row]) -> None:
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(Counter(row["type"] for row in rows).items()))
    acronyms = sum("acronym" in item.fields for item in side.items)
    say(f"{name}: {len(rows):,} rows of {len(side.items) - acronyms:,} terms and {acronyms:,} acronyms ({kinds})")
    if side.short:
        shown = ", ".join(side.short[:10]) + (" …" if len(side.short) > 10 else "")
        say(f"{name}: {len(side.short):,} have fewer rows than asked for, their templates are used up: {shown}")
    if bare := sum("negative" not in row for row in rows):
        say(f"{name}: {bare:,} rows have no negative, for there is nothing else on this side to take one from")
