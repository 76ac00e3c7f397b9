"""Training rows -> token store, in two passes over the sources.

The first pass checks every row and hashes its texts (8 bytes of memory each). The second pass tokenises each text at
its first occurrence.

Dimensions: T tokens, U unique texts, N rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from embedrag.data.formats.hub import hub_fingerprint
from embedrag.data.rows import KEYS_KEPT, ROWS_FORMAT, TrainingRow, read_rows, row_texts, unused_keys
from embedrag.data.sources import local_files, sheet_of
from embedrag.data.text import PASSAGE, QUERY, identity
from embedrag.data.token_store import TokenStore, load_store
from embedrag.errors import RunError, UserError
from embedrag.runtime.cache import keep, open_kept
from embedrag.runtime.disk import disk_error
from embedrag.runtime.files import write_npy

FORMAT = 6
TEXTS_PER_CALL = 2048
Tokenize = Callable[[str, Sequence[str]], list[list[int]]]
Prompts = tuple[str, str]  # before queries, before passages
Read = Callable[[], Iterable[tuple[str, TrainingRow]]]


def open_store(
    sources: Sequence[str],
    tokenize: Tokenize,
    tokenize_key: str,
    cache_dir: Path,
    prompts: Sequence[Prompts] | None = None,
) -> tuple[TokenStore, bool]:
    """Open the token store of a data set; make it if it is not in the cache.

    Args:
        sources: files, folders or hub ids, see `read_rows`.
        tokenize: (role, texts) -> token ids; role is `query` or `passage`.
        tokenize_key: a text that changes whenever `tokenize` would give other ids.
        cache_dir: folder of all stores. A new store is written under a temporary name and renamed, so that it is whole
            or absent. A store that is damaged is made again, see `embedrag.runtime.cache`.
        prompts: of each source, put before its texts; None: no prompts.

    Returns:
        The store, and whether it was in the cache.

    Raises:
        UserError: rows are bad. Then no file is left over.
        RunError: the disk is full.
    """
    prompts = prompts or [("", "")] * len(sources)
    name = f"tokens-{_fingerprint(sources, f'{tokenize_key}|{list(prompts)}')}"
    if (store := open_kept(cache_dir, name, load_store)) is not None:
        return store, True
    index = _index(partial(read_rows, sources), prompts)

    def make(folder: Path) -> None:
        _write(folder, partial(read_rows, sources), prompts, index, tokenize)

    return keep(cache_dir, name, make, load_store), False


def build_store(read: Read, tokenize: Tokenize, prompts: Sequence[Prompts], folder: Path) -> TokenStore:
    """Tokenise rows into a folder that exists.

    Args:
        read: gives (place, row) of all rows; it is called twice, and must give the same rows both times.
        tokenize: (role, texts) -> token ids.
        prompts: of each source.
        folder: an empty folder.

    Raises:
        UserError: the rows changed between the two calls.
        RunError: the disk is full.
    """
    index = _index(read, prompts)
    try:
        _write(folder, read, prompts, index, tokenize)
    except OSError as error:
        raise RunError(f"{folder}: not written ({disk_error(error, folder)})") from None
    return load_store(folder)


@dataclass
class _Index:
    """What the first pass finds. A text is the rank of its first occurrence.

    `twins` has the same number for texts that differ only in their prompt.
    """

    text_ids: np.ndarray
    twins: np.ndarray
    is_first: np.ndarray
    row_offsets: np.ndarray
    row_positives: np.ndarray
    row_lines: np.ndarray
    row_sources: np.ndarray
    row_sets: np.ndarray
    row_scores: np.ndarray
    row_grades: np.ndarray
    sources: list[str]
    report: dict[str, Any]


def _prompted(row: TrainingRow, prompts: Sequence[Prompts]) -> Iterator[tuple[str, str]]:
    """(role, text) of a row, with the prompts before the texts."""
    query_prompt, passage_prompt = prompts[row.source]
    query_prompt = query_prompt if row.prompt is None else row.prompt
    for role, text in row_texts(row):
        yield role, (query_prompt if role == QUERY else passage_prompt) + text


def _digest(role: str, text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=role.encode()).digest(), "little")


class _Numbers:
    """Numbers of some of the texts of the rows. They take no memory as long as no row has any."""

    def __init__(self) -> None:
        self.values = array("f")

    def add(self, place: Sequence[int], given: Sequence[float]) -> None:
        """Add numbers for the first passages of a row; its texts stand at the places [place[0], place[1])."""
        if given:
            self._fill(place[0] + 1)
            self.values.extend(given)

    def array(self, count: int) -> np.ndarray:
        """[count] float32, NaN for a text without a number; empty if no text has one."""
        if self.values:
            self._fill(count)
        return np.array(self.values, np.float32)

    def _fill(self, count: int) -> None:
        self.values.extend([math.nan] * (count - len(self.values)))


def _index(read: Read, prompts: Sequence[Prompts], differ: bool = False) -> _Index:
    """First pass over the rows.

    Args:
        read: as for `build_store`.
        prompts: of each source.
        differ: rows have different prompts, so texts that differ only in their prompt are looked for.
    """
    hashes, bare, offsets = array("Q"), array("Q"), array("q", [0])
    positives, lines, files, sets = array("i"), array("q"), array("i"), array("i")
    scores, grades = _Numbers(), _Numbers()
    differ = differ or len(set(prompts)) > 1
    unused: Counter[str] = Counter()
    prompted, longest = 0, ["", ""]
    names: dict[str, int] = {}
    shapes: Counter[str] = Counter()
    dropped: list[str] = []
    dropped_count = scored = graded = 0
    for place, row in read():
        if row.prompt is not None and not differ:
            return _index(read, prompts, differ=True)
        hashes.extend(_digest(*pair) for pair in _prompted(row, prompts))
        if differ:
            bare.extend(_digest(*pair) for pair in row_texts(row))
        offsets.append(len(hashes))
        positives.append(len(row.pos))
        sets.append(row.source)
        scores.add(offsets[-2:], row.scores)
        grades.add(offsets[-2:], row.grades)
        name, line = place.rsplit(":", 1)
        files.append(names.setdefault(name, len(names)))
        lines.append(int(line))
        shapes[row.shape] += 1
        dropped_count += row.dropped
        scored += bool(row.scores)
        graded += bool(row.grades)
        if row.prompt is not None:
            prompted += 1
            if len(row.prompt) > len(longest[0]):
                longest = [row.prompt, place]
        unused.update(key for key in unused_keys(row) if key in unused or len(unused) < KEYS_KEPT)
        if row.dropped and len(dropped) < 5:
            dropped.append(place)
    _, first, inverse = np.unique(np.frombuffer(hashes, np.uint64), return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    is_first = np.zeros(len(hashes), bool)
    is_first[first] = True
    row_offsets, row_positives = np.array(offsets), np.array(positives, np.int32)
    negatives = np.diff(row_offsets) - 1 - row_positives
    report = {
        "rows": len(positives),
        "shapes": dict(shapes),
        "unique_texts": len(first),
        "dropped_negatives": dropped_count,
        "dropped_at": dropped,
        "rows_without_negatives": int((negatives == 0).sum()),
        "mean_negatives": float(negatives.mean()),
        "rows_with_teacher_scores": scored,
        "rows_with_grades": graded,
        "rows_with_prompts": prompted,
        "longest_prompt": longest,
        "unused_keys": dict(unused),
    }
    text_ids = rank[inverse]
    return _Index(
        text_ids=text_ids,
        twins=np.unique(np.frombuffer(bare, np.uint64), return_inverse=True)[1] if differ else text_ids,
        is_first=is_first,
        row_offsets=row_offsets,
        row_positives=row_positives,
        row_lines=np.array(lines),
        row_sources=np.array(files),
        row_sets=np.array(sets),
        row_scores=scores.array(offsets[-1]),
        row_grades=grades.array(offsets[-1]),
        sources=list(names),
        report=report,
    )


def _write(folder: Path, read: Read, prompts: Sequence[Prompts], index: _Index, tokenize: Tokenize) -> None:
    lengths, identities = array("q", [0]), array("Q")
    firsts = _first_occurrences(read, prompts, index)
    crc, largest = 0, -1
    with (folder / "token_ids.bin").open("wb") as file:
        while part := list(islice(firsts, TEXTS_PER_CALL)):
            identities.extend(identity(bare) for _, _, bare in part)
            for ids in _tokenize_pairs([(role, text) for role, text, _ in part], tokenize):
                lengths.append(len(ids))
                largest = max(largest, *ids) if ids else largest
                data = np.asarray(ids, np.int32).tobytes()
                crc = zlib.crc32(data, crc)
                file.write(data)
    known_offsets, known = _known_positives(index)
    arrays = {
        "text_offsets": np.cumsum(np.array(lengths)),
        "text_identities": np.array(identities, np.uint64),
        "row_texts": index.text_ids.astype(np.int32),
        "row_offsets": index.row_offsets,
        "row_positives": index.row_positives,
        "row_lines": index.row_lines,
        "row_sources": index.row_sources,
        "row_sets": index.row_sets,
        "row_scores": index.row_scores,
        "row_grades": index.row_grades,
        "known_offsets": known_offsets,
        "known_positives": known,
    }
    for name, values in arrays.items():
        with (folder / f"{name}.npy").open("wb") as file:
            write_npy(file, [values], values.shape, values.dtype.str)
    crc = zlib.crc32(arrays["text_offsets"].tobytes(), crc)
    meta = {"sources": index.sources, "tokens_crc": crc, "largest_id": int(largest), "report": index.report}
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")


def _first_occurrences(read: Read, prompts: Sequence[Prompts], index: _Index) -> Iterator[tuple[str, str, str]]:
    """Second pass: the first occurrence of each different (role, text), and the text without its prompt."""
    position = 0
    for _, row in read():
        for (role, text), (_, bare) in zip(_prompted(row, prompts), row_texts(row), strict=True):
            if position < len(index.is_first) and index.is_first[position]:
                yield role, text, bare
            position += 1
    if position != len(index.is_first):
        raise UserError(f"{', '.join(index.sources)}: the data changed while it was read; start again")


def _tokenize_pairs(pairs: list[tuple[str, str]], tokenize: Tokenize) -> list[list[int]]:
    """Tokenise (role, text) pairs with one call for each role; their order is kept."""
    result: list[list[int]] = [[]] * len(pairs)
    for role in (QUERY, PASSAGE):
        positions = [position for position, pair in enumerate(pairs) if pair[0] == role]
        if positions:
            for position, ids in zip(positions, tokenize(role, [pairs[p][1] for p in positions]), strict=True):
                result[position] = ids
    return result


def _known_positives(index: _Index) -> tuple[np.ndarray, np.ndarray]:
    """The positives of each query text over all rows, as offsets [U + 1] and flat text ids."""
    starts = index.row_offsets[:-1]
    query = np.repeat(index.twins[starts], index.row_positives)
    within = np.arange(len(query)) - np.repeat(
        np.cumsum(index.row_positives) - index.row_positives, index.row_positives
    )
    passage = index.twins[np.repeat(starts + 1, index.row_positives) + within]
    pairs = np.unique(np.stack([query, passage]), axis=1)
    texts = int(index.is_first.sum())
    if index.twins is not index.text_ids:
        pairs = _every_twin(pairs, index.twins[index.is_first], index.text_ids[index.is_first])
    counts = np.bincount(pairs[0], minlength=texts)
    return np.concatenate([[0], np.cumsum(counts)]), pairs[1].astype(np.int32)


def _every_twin(pairs: np.ndarray, twins: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Pairs of twins' numbers -> the pairs of all texts with these numbers.

    Args:
        pairs: [2, n] numbers of queries and of passages.
        twins: [U] number of each text; twins have the same.
        texts: [U] id of each text.
    """
    order = np.argsort(twins, kind="stable")
    twins, texts = twins[order], texts[order]
    for side in (0, 1):
        first, stop = np.searchsorted(twins, pairs[side]), np.searchsorted(twins, pairs[side], side="right")
        counts = stop - first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        pairs = np.repeat(pairs, counts, axis=1)
        pairs[side] = texts[np.repeat(first, counts) + within]
    return pairs[:, np.lexsort((pairs[1], pairs[0]))]


def _fingerprint(sources: Sequence[str], tokenize_key: str) -> str:
    """A hash of everything that the store depends on."""
    digest = hashlib.sha256(f"{FORMAT}|{ROWS_FORMAT}|{tokenize_key}".encode())
    for number, source in enumerate(sources):
        digest.update(f"|{number}|".encode())
        files = local_files(source)
        if not files:
            digest.update(f"{source}@{hub_fingerprint(source)}".encode())
        for path in files:
            digest.update(f"{path}|{sheet_of(source)}|".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()[:24]
