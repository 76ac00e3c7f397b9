"""Which files of a folder hold the corpus, the queries and the judgements of a retrieval set, and which split they are.

Published sets name them in many ways: `corpus.jsonl` and `qrels/test.tsv` (BEIR), `corpus/test-00000-of-00001.parquet`
(MTEB), `collection.tsv` and `qrels.dev.small.tsv` (MS MARCO), `topics/topics.miracl-v1.0-ko-dev.tsv` (MIRACL).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from embedrag.errors import UserError, near_miss
from embedrag.runtime.compressed import without_compression

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels/test.tsv"
LAYOUT = f"a folder in the BEIR layout has {CORPUS}, {QUERIES} and {QRELS}"
DEFAULT_SPLIT = "test"
SPLITS = ("test", "dev", "train", "validation", "valid", "val", "eval")
DEPTH = 3  # folders below the set's own in which files are looked for

# A part of a set -> words for it in the names of files and folders.
PARTS = {
    "corpus": ("corpus", "collection", "collections", "documents", "docs", "passages"),
    "queries": ("queries", "query", "topics", "topic", "questions"),
    "judgements": ("qrels", "qrel", "judgements", "judgments", "relevance"),
}
ENDINGS = (".jsonl", ".json", ".ndjson", ".parquet", ".arrow", ".tsv", ".csv", ".txt", ".trec", ".qrels", ".qrel", "")
# Folders in which the hub's `default` configuration is kept. In MTEB's sets it holds the judgements.
DEFAULT_FOLDERS = ("default", "data")
SHARD = re.compile(r"[-_.]?\d+-of-\d+$|(?<=[a-z])[-_]\d+$")


@dataclass(frozen=True)
class SetFiles:
    """The files of one split of a retrieval set.

    Attributes:
        corpus: passages with their ids.
        queries: queries with their ids.
        judgements: which passage answers which query.
        split: name of the split; empty when the set has no names of splits.
        splits: all splits of the set.
    """

    corpus: list[Path]
    queries: list[Path]
    judgements: list[Path]
    split: str
    splits: list[str]


def is_set(folder: Path) -> bool:
    """Whether a path is a folder with two parts of a set, with corpus.jsonl, or with a part that is called qrels."""
    found = _parts(folder)
    names = {_words(without_compression(file).relative_to(folder).parts[0])[0] for file in found["judgements"]}
    corpus = any(without_compression(file).name == CORPUS for file in found["corpus"])
    return corpus or "qrels" in names or sum(map(bool, found.values())) > 1


def corpus_files(folder: Path) -> list[Path]:
    """The files of the passages of a set, of all splits, in the order of their names."""
    return _parts(folder)["corpus"]


def set_files(folder: Path, split: str | None, argument: str) -> SetFiles:
    """The files of a split.

    Args:
        folder: of the set.
        split: its name; None: `test`, otherwise the only one.
        argument: what the caller calls the folder, for messages.

    Raises:
        UserError: a part is missing, or it is not clear which split is meant.
    """
    found = _parts(folder)
    names = {"corpus": CORPUS, "queries": QUERIES, "judgements": QRELS}
    missing = [names[part] for part, files in found.items() if not files]
    if missing:
        raise UserError(f"no {' and no '.join(missing)} in this folder; {LAYOUT}", argument, folder)
    by_split: dict[str, list[Path]] = {}
    for file in found["judgements"]:
        by_split.setdefault(split_of(file), []).append(file)
    chosen = _chosen(list(by_split), split, folder, argument)
    files = {part: _of_split(found[part], chosen) for part in ("corpus", "queries")}
    for part, some in {**files, "judgements": by_split[chosen]}.items():
        _check_single(part, some, folder, argument)
    return SetFiles(files["corpus"], files["queries"], by_split[chosen], chosen, sorted(by_split))


def split_of(file: Path) -> str:
    """The split that a file has by its name: a known word at its end, otherwise all of the name without the part.

    >>> [split_of(Path("qrels") / name) for name in ("test.tsv", "qrels.dev.small.tsv", "dev-00000-of-00002.parquet")]
    ['test', 'dev.small', 'dev']
    >>> [split_of(Path(name)) for name in ("qrels.tsv", "topics.miracl-v1.0-ko-dev.tsv", "qrels/qrels.trec.gz")]
    ['', 'dev', '']
    """
    words = _words(SHARD.sub("", _stem(file)))
    if words[-1] in SPLITS:
        return words[-1]
    known = {word for words in PARTS.values() for word in words}
    return ".".join(word for word in words if word and word not in known)


def _parts(folder: Path) -> dict[str, list[Path]]:
    """Part -> its files. A folder with the name of a part holds its files, whatever they are called."""
    found: dict[str, list[Path]] = {part: [] for part in PARTS}
    try:
        tops = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError:  # a name that is too long; reading the rows will report it
        tops = []
    for top in tops:
        words = set(_words(_stem(top) if top.is_file() else top.name))
        part = next((part for part in ("judgements", "queries", "corpus") if words & set(PARTS[part])), None)
        if part:
            found[part] += _files(top)
    if not found["judgements"] and found["corpus"] and found["queries"]:
        found["judgements"] = [file for name in DEFAULT_FOLDERS for file in _files(folder / name)]
    return found


def _files(top: Path) -> list[Path]:
    """A file itself, or the files of a folder that may be read."""
    if top.is_dir():
        files = sorted(file for depth in range(1, DEPTH + 1) for file in top.glob("/".join("*" * depth)))
    else:
        files = [top]
    return [file for file in files if file.is_file() and _is_read(file)]


def _is_read(file: Path) -> bool:
    """Whether a file is one of data; not a note, and not the compressed copy of a file that is there too."""
    plain = without_compression(file)
    note = file.name.startswith(".") or plain.stem.casefold() in ("readme", "license")
    return plain.suffix.lower() in ENDINGS and not note and (plain == file or not plain.exists())


def _words(name: str) -> list[str]:
    return re.split(r"[-_.]", name.casefold())


def _stem(file: Path) -> str:
    """The name of a file without its ending and that of its compression."""
    plain = without_compression(file)
    return plain.stem if plain.suffix.lower() in ENDINGS[:-1] else plain.name


def _chosen(splits: list[str], wanted: str | None, folder: Path, argument: str) -> str:
    there = ", ".join(sorted(filter(None, splits))) or "one without a name"
    if wanted is not None:
        if wanted not in splits:
            reason = f"has no split {wanted}{near_miss(wanted, splits)}; there is {there}"
            raise UserError(reason, argument, f"{folder}@{wanted}")
        return wanted
    if DEFAULT_SPLIT in splits:
        return DEFAULT_SPLIT
    if len(splits) > 1:
        first = sorted(filter(None, splits))[0]
        reason = f"has judgements of {there}, and no {DEFAULT_SPLIT}; name a split: {folder}@{first}"
        raise UserError(reason, argument, folder)
    return splits[0]


def _check_single(part: str, files: list[Path], folder: Path, argument: str) -> None:
    """Refuse files of several sets or languages. Shards are one file, and a folder of passages may hold any files."""
    tops = [Path(file.relative_to(folder).parts[0]) for file in files]
    names = {SHARD.sub("", _stem(top)) if top.suffix else top.name for top in tops}
    if len(names) > 1:
        several = sorted(map(str, tops))
    else:
        several = sorted(str(file.relative_to(folder)) for file in files) if part != "corpus" else []
        several = several if len({(SHARD.sub("", _stem(file)), file.suffix) for file in files}) > 1 else []
    if several:
        reason = f"{', '.join(dict.fromkeys(several))} are several {part}; keep those of one set in this folder"
        raise UserError(reason, argument, folder)


def _of_split(files: list[Path], split: str) -> list[Path]:
    """The files of a split; if none has its name, those that no other split has; if there are none, all."""
    others = [file for file in files if split_of(file).split(".")[0] not in SPLITS]
    return [file for file in files if split_of(file) == split] or others or files
