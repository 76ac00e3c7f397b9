"""Match the names of a model's parts with the names of tensors in its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def match_names(wanted: Mapping[str, str], tensors: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Find the tensor of every wanted name, allowing one difference of path for all.

    A file may carry a longer path than the model that was trained (`model.layers…` beside `layers…`, trained through
    AutoModel), or a shorter one (trained through AutoModelForCausalLM).

    Args:
        wanted: key -> tensor name as the trained model would call it.
        tensors: names in the files.

    Returns:
        key -> name in the files, and the keys that have none.

    >>> match_names({"a": "layers.0.weight"}, ["model.layers.0.weight", "model.norm.weight"])
    ({'a': 'model.layers.0.weight'}, [])
    >>> match_names({"a": "layers.9.weight"}, ["model.layers.0.weight"])
    ({}, ['a'])
    """
    known = set(tensors)
    changes = [(add, "") for add in sorted(_prefixes(known))] + [
        ("", strip) for strip in sorted(_prefixes(wanted.values()))
    ]
    best: dict[str, str] = {}
    for add, strip in changes:
        targets = {key: add + name.removeprefix(strip) for key, name in wanted.items() if name.startswith(strip)}
        best = max(best, {key: target for key, target in targets.items() if target in known}, key=len)
    return best, sorted(set(wanted) - set(best))


def _prefixes(names: Iterable[str]) -> set[str]:
    """The first one or two parts of any name, and nothing."""
    return {""} | {".".join(name.split(".")[:depth]) + "." for name in names for depth in (1, 2)}
