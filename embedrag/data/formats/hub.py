"""Data sets of the hub: `owner/name`, `owner/name:subset`, `owner/name:subset@split`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from embedrag.errors import UserError, near_miss

SPLIT = "train"  # when a source names none
_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<subset>[^:@/\s]+))?(?:@(?P<split>[\w.-]+(?:\[[\d:%-]*\])?))?")


@dataclass(frozen=True)
class HubName:
    """A data set of the hub.

    Attributes:
        name: such as `owner/name`.
        subset: what the hub calls a subset or a configuration; None: the only one, or the one that is the default.
        split: such as `train`; slices such as `train[:100]` are understood too.
    """

    name: str
    subset: str | None
    split: str


def hub_name(source: str) -> HubName | None:
    """The parts of a hub id; None when it can't be one.

    >>> hub_name("owner/name:pair@dev"), hub_name("owner/name").split, hub_name("a/b/c")
    (HubName(name='owner/name', subset='pair', split='dev'), 'train', None)
    """
    found = _NAME.fullmatch(source)
    return HubName(found["name"], found["subset"], found["split"] or SPLIT) if found else None


def hub_fingerprint(source: str, argument: str = "train_dataset") -> str:
    """A text that changes when a hub data set changes.

    Raises:
        UserError: the hub does not give the data set, or it has no such subset.
    """
    from datasets import load_dataset_builder

    wanted = _wanted(source)
    with _hub_errors(source, argument):
        return str(load_dataset_builder(wanted.name, wanted.subset).hash)


def hub_rows(source: str, stream: bool, argument: str) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row of a split.

    Raises:
        UserError: the hub does not give the data set, or it has no such subset or split.
    """
    from datasets import load_dataset

    wanted = _wanted(source)
    with _hub_errors(source, argument):
        data = load_dataset(wanted.name, wanted.subset, split=wanted.split, streaming=stream)
    for number, row in enumerate(data, 1):
        yield f"{source}:{number}", dict(row)


def hub_lines(source: str) -> Iterator[str]:
    """A line that says which subset and split of a data set are read."""
    wanted = _wanted(source)
    subset = f"subset {wanted.subset}" if wanted.subset else "its only or default subset"
    yield f"data: {wanted.name}: {subset}, split {wanted.split}"


def _wanted(source: str) -> HubName:
    found = hub_name(source)
    if not found:
        raise ValueError(source)
    return found


@contextmanager
def _hub_errors(source: str, argument: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub client raises many kinds; all mean that the data set can't be read
        words = str(error) or type(error).__name__
        wanted = _wanted(source)
        there = re.search(r"(?:available configs|Available|Should be one of)(?: splits)?:? *\[(.*?)\]", words, re.S)
        names = re.findall(r"'([^']+)'", there[1]) if there else []
        if "split" in words and names:
            reason = f"no split {wanted.split}{near_miss(wanted.split, names)}; its splits are {', '.join(names)}"
            reason += f"; write one as {wanted.name}{f':{wanted.subset}' if wanted.subset else ''}@{names[0]}"
        elif names:
            missing = (
                f"no subset {wanted.subset}{near_miss(wanted.subset, names)}" if wanted.subset else "name a subset"
            )
            reason = f"{missing}; its subsets are {', '.join(names)}; write one as {wanted.name}:{names[0]}"
        else:
            reason = f"not a file here, and can't be read from the hub ({words.splitlines()[0]}); check the name"
        raise UserError(reason, argument, source) from None
