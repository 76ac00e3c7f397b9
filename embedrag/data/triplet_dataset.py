"""The training rows as a torch data set, for training loops of your own. EmbedRAG's own trainer sees the same rows.

Rows are tokenised once, into a `TokenStore`. In each epoch they come in another order, and each row draws its negatives
anew. Order, draws and batches are those of `embedrag.data.sampler` and `embedrag.data.collator`: with the same seed and
the same batch size they are the batches of `embedrag train`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from embedrag.data.collator import Batch, SamplingSettings, Triplet, collate, draw
from embedrag.data.formats.lines import RowError
from embedrag.data.rows import TrainingRow, parse_row, read_rows
from embedrag.data.sampler import ShuffledSampler
from embedrag.data.sources import as_sources
from embedrag.data.token_store import TokenStore
from embedrag.data.tokenization import Tokenize, build_store, open_store
from embedrag.errors import UserError, raise_all

Rows = Iterable[TrainingRow | dict[str, Any]]
NO_PROMPTS = ("", "")  # the tokenizer puts them before the texts


class TripletDataset(Dataset[Triplet]):
    """Rows of a query, positives and hard negatives; each epoch draws `neg_nums` of the negatives anew.

    `dataset[i]` is the row at place i of the epoch's order, so a `DataLoader` does not have to shuffle. `collate` makes
    a batch of such rows: each different text once, and the places of the vectors of the texts. A passage that any row
    calls a positive of a query is never a negative of this query.

    Attributes:
        store: the tokenised rows; `dataset.store.place(row)` is the file and line of a row.
        sampling: how many texts a row shows.
        epoch: the current epoch, see `set_epoch`.

    Example:
        ```python
        dataset = embedrag.TripletDataset("train.jsonl", model.tokenizer, neg_nums=4)
        loader = DataLoader(dataset, batch_size=32, collate_fn=dataset.collate)
        for epoch in range(3):
            dataset.set_epoch(epoch)
            for batch in loader:
                vectors = model(batch.tokens)  # [n, D], n unique texts
                queries, passages = vectors[batch.query_index], vectors[batch.passage_index]
        ```

        Two rows, with letters as tokens, and the tensors that come out:

        >>> rows = [{"query": "ab", "pos": "c", "neg": ["d", "e", "f"]}, {"query": "g", "pos": "c"}]
        >>> def tokenize(role, texts):
        ...     return [["_abcdefg".index(letter) for letter in text] for text in texts]
        >>> dataset = TripletDataset(rows, tokenize, neg_nums=2, seed=0)
        >>> batch = dataset.collate([dataset[0], dataset[1]])
        >>> batch.tokens.input_ids.tolist(), batch.tokens.cu_seqlens.tolist()  # 5 unique texts: ab, c, d, f, g
        ([1, 2, 3, 4, 6, 7], [0, 2, 3, 4, 5, 6])
        >>> batch.query_index.tolist(), batch.passage_index.tolist()  # queries: ab, g; passages: c, d, f and c
        ([0, 4], [1, 2, 3, 1])
        >>> batch.labels.tolist(), batch.negatives.tolist()  # place of each positive; number of own negatives
        ([0, 3], [2, 0])
        >>> batch.excluded.tolist()  # (query, passage): the other c is not a negative
        [[0, 3], [1, 0]]
    """

    def __init__(
        self,
        train_dataset: str | Path | Sequence[str | Path] | Rows,
        tokenizer: Tokenize,
        *,
        neg_nums: int = 2,
        pos_nums: int = 1,
        seed: int = 42,
        cache_dir: str | Path | None = None,
    ) -> None:
        """Read, check and tokenise the rows.

        Args:
            train_dataset: files, folders of files or hub ids, as `embedrag train` reads them; or rows: objects with the
                keys of such files, or `TrainingRow`.
            tokenizer: (role, texts) -> token ids of each text, with prompts and cut to its length; role is `query` or
                `passage`. The tokenizer of an EmbedRAG model is one.
            neg_nums: negatives of a row in an epoch, at most.
            pos_nums: positives of a row in an epoch, at most; if a row has more, they take turns.
            seed: of order and draws.
            cache_dir: folder in which the tokenised files are found again at the next start; the tokenizer then needs
                a `key` that changes when its ids change. None: a temporary folder.

        Raises:
            UserError: rows are bad (each with its place), there is no row, or `cache_dir` can't be written.
        """
        for name, value, least in (("neg_nums", neg_nums, 0), ("pos_nums", pos_nums, 1)):
            if value < least:
                raise UserError(f"must be {least} or more", name, value)
        self.sampling = SamplingSettings(neg_nums=neg_nums, pos_nums=pos_nums, seed=seed)
        self.epoch = 0
        self.store: TokenStore
        sources, rows = _divided(train_dataset)
        if sources and cache_dir is not None:
            key = getattr(tokenizer, "key", None)
            if key is None:
                reason = "needs a tokenizer with a `key` that changes when its ids change"
                raise UserError(reason, "cache_dir", cache_dir)
            self.store, _ = open_store(sources, tokenizer, key, Path(cache_dir).expanduser())
        else:
            folder = Path(tempfile.mkdtemp(prefix="embedrag-rows-"))
            # Workers of a loader are copies of this process; they must not remove the folder.
            weakref.finalize(self, _remove, folder, os.getpid())
            read = partial(read_rows, sources) if sources else partial(_checked, rows)
            self.store = build_store(read, tokenizer, [NO_PROMPTS] * max(1, len(sources)), folder)
        self._sampler = ShuffledSampler(len(self.store), seed)

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Triplet:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        position = self.epoch * len(self) + index
        [(visit, row)] = self._sampler.between(position, position + 1)
        return draw(self.store, row, visit, self.sampling)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, counted from 0: another order, other negatives.

        Call it before each pass over a loader. A loader with `persistent_workers=True` does not see it.
        """
        self.epoch = epoch

    def collate(self, rows: Sequence[Triplet]) -> Batch:
        """Put rows together into a batch; the `collate_fn` of a `DataLoader`.

        Args:
            rows: B items of this data set.

        Returns:
            The batch; its attributes and their shapes are described at `Batch`.
        """
        return collate(self.store, rows)


def _divided(train_dataset: str | Path | Sequence[str | Path] | Rows) -> tuple[list[str], Sequence[Any]]:
    """Names of sources, or rows; one of the two is empty."""
    given: list[Any] = [train_dataset] if isinstance(train_dataset, (str, Path)) else list(train_dataset)
    if not given:
        raise UserError("no rows", "train_dataset")
    return (as_sources(given), []) if isinstance(given[0], (str, Path)) else ([], given)


def _checked(rows: Sequence[Any]) -> Iterator[tuple[str, TrainingRow]]:
    """(place, row) of rows that are in memory.

    Raises:
        UserError: with all bad rows, each with its place.
    """
    problems = []
    for number, row in enumerate(rows):
        try:
            yield f"rows:{number}", row if isinstance(row, TrainingRow) else parse_row(row)
        except RowError as error:
            problems.append(UserError(f"rows[{number}]: {error}"))
    raise_all(problems)


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
