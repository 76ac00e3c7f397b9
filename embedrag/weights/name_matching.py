"""Find the tensors of a model in its files, even if model and files spell the paths of tensors differently."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def match_names(wanted: Mapping[str, str], tensors: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Find the tensor of every wanted name. All names may differ from the file's by the same prefix.

    The file's names are longer (`model.layers…` and not `layers…`) when the model was trained through AutoModel and
    its file was saved by AutoModelForCausalLM, and shorter in the opposite case. Models of text and images have
    another prefix in older files (`language_model.model…`) than in newer ones (`model.language_model…`).

    Args:
        wanted: any key -> name of the tensor in the trained model.
        tensors: names in the files.

    Returns:
        Key -> name in the files, and the sorted list of the keys that have none.

    >>> match_names({"a": "layers.0.weight"}, ["model.layers.0.weight", "model.norm.weight"])
    ({'a': 'model.layers.0.weight'}, [])
    >>> match_names({"a": "layers.9.weight"}, ["model.layers.0.weight"])
    ({}, ['a'])
    """
    known = set(tensors)
    longer, shorter = sorted(_prefixes(known)), sorted(_prefixes(wanted.values()))
    changes = [(add, "") for add in longer] + [("", strip) for strip in shorter]
    changes += [(add, strip) for add in longer for strip in shorter if add and strip]
    best: dict[str, str] = {}
    for add, strip in changes:
        targets = {key: add + name.removeprefix(strip) for key, name in wanted.items() if name.startswith(strip)}
        best = max(best, {key: target for key, target in targets.items() if target in known}, key=len)
        if len(best) == len(wanted):
            break
    return best, sorted(set(wanted) - set(best))


def _prefixes(names: Iterable[str]) -> set[str]:
    """The empty prefix, and the first one or two parts of each name; no prefix holds the number of a layer."""
    parts = {tuple(name.split(".")[:depth]) for name in names for depth in (1, 2)}
    return {""} | {".".join(part) + "." for part in parts if not any(word.isdigit() for word in part)}
