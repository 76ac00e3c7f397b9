"""The sets of keys that a row may have, our own (`SHAPES`) and those of other tools (`PEERS`).

A row is brought into one form here: its query, its positives, its negatives, and what stands beside them. Whether the
texts make a good row is checked in `embedrag.data.rows`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from embedrag.data.formats.lines import RowError
from embedrag.data.text import is_blank, titled
from embedrag.errors import near_miss

# Keys of the query, of its positives and, if a shape has negatives, of its negatives. A new shape is one line here.
# Keys of two shapes may be combined: `query` with `pos_doc` and `hard_negatives` is read too.
SHAPES = (
    ("query", "pos", "neg"),
    ("anchor", "positive", "hard_negatives"),
    ("anchor", "positive"),
    ("query", "pos_doc"),
    ("query", "positive", "negative"),
)
# The same of other tools: keys that count only when a row has none of our own, because they also mean other things.
PEERS = (
    ("question", "pos_doc", "neg_doc"),  # NVIDIA NeMo, Haystack, GPL
    ("query", "positives", "negatives"),
    ("anchor", "positive", "hard_negative"),  # Unsloth, sentence-transformers
    ("query", "positive_passages", "negative_passages"),  # Tevatron, MS MARCO and Mr. TyDi in its form
    ("question", "positive_ctxs", "hard_negative_ctxs", "negative_ctxs"),  # DPR
    ("messages", "positive_messages", "negative_messages"),  # ms-swift 4
    ("query", "response", "rejected_response"),  # ms-swift 3
    ("query", "relevant_passages", "hard_negatives"),  # Cohere
    ("sent0", "sent1", "hard_neg"),  # SimCSE
    ("sentence1", "sentence2"),  # sentence-transformers
    ("sentence_A", "sentence_B"),
    ("question", "context"),  # SQuAD on the hub
    ("query", "passage"),
    ("question", "answer"),  # GooAQ and others of sentence-transformers' collection
    ("query", "answer"),
)
# A number at the end of these keys makes a list: `negative_1`, `negative_2` … (sentence-transformers' n-tuples).
NUMBERED = re.compile(r"(positive|pos|negative|neg|hard_negative|hard_neg)_?(\d{1,3})")
QUERY_KEYS, POSITIVE_KEYS, NEGATIVE_KEYS = (
    tuple(dict.fromkeys(shape[part] for shape in SHAPES if part < len(shape))) for part in range(3)
)
TEXT_KEYS = (*QUERY_KEYS, *POSITIVE_KEYS, *NEGATIVE_KEYS)
PEER_QUERIES = tuple(dict.fromkeys(shape[0] for shape in PEERS if shape[0] not in QUERY_KEYS))
PEER_NEGATIVES = tuple(dict.fromkeys(key for shape in PEERS for key in shape[2:] if key not in NEGATIVE_KEYS))
KNOWN_KEYS = frozenset((*TEXT_KEYS, *(key for shape in PEERS for key in shape)))
PAIRS_WITH_SCORE = ("sentence2", "sentence_B")  # similar texts and not answers: a score says how similar

SCORES_KEY = "teacher_scores"
GRADES_KEY = "grades"
SPLIT_SCORES = ("pos_scores", "neg_scores")  # FlagEmbedding writes the teacher's scores in two lists
PROMPT_KEY = "prompt"  # FlagEmbedding's instruction of one row
# Texts that pandas and spreadsheets write for a missing value.
MISSING = frozenset(("nan", "<NA>", "NaT", "#N/A"))
# Keys by which rows are known that name texts by ids, or have no positives -> what to do.
HINTS = {
    "output": "KILT names pages by id: write their texts under pos",
    "positive_document_ids": "these rows name passages by id: write their texts under pos",
    "premise": "pairs with labels: keep those that belong together as anchor and positive",
    "set": "texts that are alike: write two of them as anchor and positive",
}


@dataclass(frozen=True)
class GivenTexts:
    """What a row gives, before doubled and blank negatives are dropped.

    Attributes:
        shape: the keys of its texts, for the report.
        query: the query.
        positive_key: the key of the positives, for messages.
        positives: all positives, with repeats.
        negatives: all negatives; a null is an empty text.
        scores: the teacher's scores of positives and negatives, as they were given; None: there are none.
        scores_key: the key or keys of the scores, for messages.
        prompt: the row's own instruction, which is put before its query; None: it has none.
        used: all keys that count.
    """

    shape: str
    query: str
    positive_key: str
    positives: list[str]
    negatives: list[str]
    scores: Any
    scores_key: str
    prompt: str | None
    used: frozenset[str]


@dataclass(frozen=True)
class _Plan:
    """Which keys of a row mean what: several of ours, of which one is filled, or else those of another tool.

    Attributes:
        queries: keys of the query; one of them is filled.
        positives: keys of the positives; one of them is filled.
        negatives: keys of the negatives; at most one of them is filled.
        more_positives: numbered keys.
        more_negatives: numbered keys, and those of other tools.
        shown_positives: the numbered keys, for the report.
        shown_negatives: likewise.
        used: all these keys, and those of our own.
        has_scores: there may be scores of a teacher.
    """

    queries: tuple[str, ...]
    positives: tuple[str, ...]
    negatives: tuple[str, ...]
    more_positives: tuple[str, ...]
    more_negatives: tuple[str, ...]
    shown_positives: tuple[str, ...]
    shown_negatives: tuple[str, ...]
    used: frozenset[str]
    has_scores: bool


def given_texts(raw: Any, blank_allowed: bool = False) -> GivenTexts:
    """The texts of a row of any shape.

    Args:
        raw: an object with the keys of one of `SHAPES` or `PEERS`, or a list of a query, a positive and negatives.
        blank_allowed: positives may be blank; negatives always may.

    Raises:
        RowError: a text is missing, or is no text.

    >>> found = given_texts({"anchor": "a", "positive": "b", "negative_2": "d", "negative_1": "c", "id": 7})
    >>> found.shape, found.query, found.positives, found.negatives
    ('anchor, positive, negative_1 … negative_2', 'a', ['b'], ['c', 'd'])
    """
    if isinstance(raw, list) and len(raw) > 1 and all(isinstance(text, str) for text in raw):
        raw = {"anchor": raw[0], "positive": raw[1], **{f"negative_{n}": text for n, text in enumerate(raw[2:], 1)}}
    if not isinstance(raw, dict):
        raise RowError(f"must be an object {{…}}, not {kind_of(raw)}")
    plan = _plan(tuple(raw))
    query_key = _only(raw, plan.queries)
    positive_key = _only(raw, plan.positives)
    negative_key = _only(raw, plan.negatives)
    if query_key is None:
        _missing(raw, "query", QUERY_KEYS)
    if positive_key is None and not plan.more_positives:
        _missing(raw, "positive", POSITIVE_KEYS)
    _check_label(raw, positive_key)
    query = _query(raw[query_key], str(query_key))
    more = [key for key in plan.more_positives if _is_there(raw[key])]
    keys = [positive_key, *more] if positive_key and (not more or _is_there(raw[positive_key])) else more
    positives = [text for key in keys for text in _texts(raw[key], key, blank_allowed)]
    negative_keys = [key for key in (negative_key, *plan.more_negatives) if key and _is_there(raw[key])]
    negatives = [text for key in negative_keys for text in _texts(raw[key], key, True, True)]
    scores, score_keys = _scores(raw) if plan.has_scores else (None, ())
    prompt = raw.get(PROMPT_KEY)
    further = (*score_keys, *([PROMPT_KEY] if isinstance(prompt, str) else []))
    shown = [query_key, positive_key, *plan.shown_positives]
    shown += [negative_key, *plan.shown_negatives] if negative_keys or negative_key else []
    return GivenTexts(
        shape=", ".join(key for key in shown if key),
        query=query,
        positive_key=str(positive_key or plan.more_positives[0]),
        positives=positives,
        negatives=negatives,
        scores=scores,
        scores_key=" with ".join(score_keys),
        prompt=as_text(prompt, PROMPT_KEY, blank_allowed=True) if isinstance(prompt, str) else None,
        used=plan.used.union(further) if further else plan.used,
    )


@lru_cache(maxsize=1024)
def _plan(keys: tuple[str, ...]) -> _Plan:
    """What the keys of a row mean; the rows of a file have few different sets of keys."""
    there = set(keys)
    queries = tuple(key for key in QUERY_KEYS if key in there)
    queries = queries or tuple(key for key in PEER_QUERIES if key in there)[:1]
    positives = tuple(key for key in POSITIVE_KEYS if key in there)
    numbered = sorted((found[1], int(found[2]), found[0]) for key in keys if (found := NUMBERED.fullmatch(str(key))))
    more_positives = tuple(key for stem, _, key in numbered if stem.startswith("pos"))
    if not positives and not more_positives:
        fitting = (s[1] for s in PEERS if s[1] in there and (s[0] in queries or _alike(s[0], queries)))
        positives = tuple(fitting)[:1]
    more_negatives = (
        *(key for key in PEER_NEGATIVES if key in there),
        *(key for stem, _, key in numbered if not stem.startswith("pos")),
    )
    return _Plan(
        queries,
        positives,
        tuple(key for key in NEGATIVE_KEYS if key in there),
        more_positives,
        more_negatives,
        tuple(_range(more_positives)),
        tuple(_range(more_negatives)),
        frozenset((*queries, *positives, *more_positives, *more_negatives, *TEXT_KEYS, SCORES_KEY, GRADES_KEY)),
        not there.isdisjoint((SCORES_KEY, *SPLIT_SCORES)),
    )


def _alike(query_key: str, queries: Sequence[str]) -> bool:
    """Whether a positive of another tool may stand beside other keys of the query than that tool's."""
    return query_key in ("query", "question") and any(key in ("query", "question", "anchor") for key in queries)


def _only(raw: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """The one of some keys that is filled; None if there are none."""
    if len(keys) < 2:
        return keys[0] if keys else None
    # A table of several shapes has all their columns; those that a row does not use are empty.
    filled = [key for key in keys if _is_there(raw[key])] or [keys[0]]
    if len(filled) > 1:
        raise RowError(f"has both {filled[0]} and {filled[1]}; keep one of them")
    return filled[0]


def _is_there(value: Any) -> bool:
    """Whether a key has a value; NaN is what pandas writes for none."""
    return not (value is None or value == "" or value == [] or value != value)


def _missing(raw: dict[str, Any], what: str, keys: tuple[str, ...]) -> None:
    unknown = [str(key) for key in raw if key not in TEXT_KEYS]
    hint = next((hint for hint in (near_miss(key, keys) for key in unknown) if hint), "")
    hint += "".join(f"; {HINTS[key]}" for key in unknown if key in HINTS)
    there = ", ".join(map(str, raw)) or "(none)"
    raise RowError(f"no {what} ({' or '.join(keys)}) among its keys {there}{hint}")


def _check_label(raw: dict[str, Any], positive_key: str | None) -> None:
    """Refuse pairs that are said not to belong together.

    Raises:
        RowError: naming label or score.
    """
    if positive_key is None or positive_key in POSITIVE_KEYS:
        return
    label = raw.get("label")
    if isinstance(label, (int, float)) and label != 1:
        raise RowError(
            f"label is {label}, so the two texts do not answer each other; embedrag check --fix leaves such rows out"
        )
    if positive_key in PAIRS_WITH_SCORE and isinstance(raw.get("score"), (int, float)):
        raise RowError(
            "score says how similar the two texts are, but a row needs a text that answers the other; write the pairs "
            "that belong together as anchor and positive"
        )


def _scores(raw: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The scores of a teacher for positives and negatives together, and the keys that they were under."""
    if raw.get(SCORES_KEY) is not None:
        return raw[SCORES_KEY], (SCORES_KEY,)
    of_positives, of_negatives = (raw.get(key) for key in SPLIT_SCORES)
    none = of_negatives is None and not any(_is_there(raw.get(key)) for key in (*NEGATIVE_KEYS, *PEER_NEGATIVES))
    if isinstance(of_positives, list) and (none or isinstance(of_negatives, list)):
        return [*of_positives, *(of_negatives or ())], SPLIT_SCORES
    return None, ()


def _range(keys: Sequence[str]) -> list[str]:
    """Keys for the report, numbered ones as their first and last.

    >>> _range(["negatives", "neg_1", "neg_2", "neg_3"])
    ['negatives', 'neg_1 … neg_3']
    """
    numbered = [key for key in keys if NUMBERED.fullmatch(key)]
    shown = [key for key in keys if key not in numbered]
    return shown + ([f"{numbered[0]} … {numbered[-1]}"] if len(numbered) > 1 else numbered)


def _query(value: Any, key: str) -> str:
    if key == "messages":
        return _message(value, key)
    return as_text(value, key)


def _texts(value: Any, key: str, blank_allowed: bool, null_allowed: bool = False) -> list[str]:
    """A text or a list of texts as a list; a null or NaN in a list of negatives is an empty text."""
    if value is None:
        raise RowError(f"{key} is null; give a text or a list of texts")
    read = _READERS.get(key)
    if read:
        items = value if isinstance(value, (list, tuple)) else [value]
        if key.endswith("_messages") and items and isinstance(items[0], dict):
            items = [items]  # one conversation
        return [as_text(read(item, f"{key}[{n}]"), f"{key}[{n}]", blank_allowed) for n, item in enumerate(items)]
    if isinstance(value, (list, tuple)):
        return [
            "" if null_allowed and (item is None or item != item) else as_text(item, f"{key}[{index}]", blank_allowed)
            for index, item in enumerate(value)
        ]
    return [as_text(value, key, blank_allowed)]


def _passage(value: Any, key: str) -> Any:
    """The text of an object {title, text}, its title before it; a plain text is itself."""
    if not isinstance(value, dict):
        return value
    if not isinstance(value.get("text"), str):
        raise RowError(f"{key} has no text; its keys are {', '.join(map(str, value)) or '(none)'}")
    return titled(value.get("title"), value["text"])


def _message(value: Any, key: str) -> str:
    """The text of a conversation of one message.

    Raises:
        RowError: there are several, or the content is no text (an image, for example).
    """
    items = value if isinstance(value, list) else [value]
    if len(items) != 1 or not isinstance(items[0], dict):
        raise RowError(f"{key} must be one message {{role, content}}; put an instruction under {PROMPT_KEY}")
    return as_text(items[0].get("content"), f"{key}.content")


_READERS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("positive_passages", "negative_passages", "relevant_passages"), _passage),
    **dict.fromkeys(("positive_ctxs", "hard_negative_ctxs", "negative_ctxs"), _passage),
    **dict.fromkeys(("positive_messages", "negative_messages"), _message),
}


def as_text(value: Any, key: str, blank_allowed: bool = False) -> str:
    """A value that must be a text.

    Raises:
        RowError: it is not a text, is blank, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise RowError(f"{key} must be a text, not {kind_of(value)}")
    if not blank_allowed and is_blank(value):
        raise RowError(f"{key} is blank")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise RowError(f"{key} holds half of a surrogate pair, which is not text; remove it") from None
    return value


def kind_of(value: Any) -> str:
    """What people call a value of JSON."""
    names = {
        dict: "an object",
        list: "a list",
        bool: "true/false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)
