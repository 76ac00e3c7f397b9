"""Training data without a known end: the rows are read as they come, those of one epoch at a time.

A source that can't be read twice, or that has no end, has no token store of its own. Each epoch (`steps_per_epoch`)
takes the next rows of every source, tokenises them into a store that lives until the next epoch, and trains on it as
on any other data: the rows are shuffled, and their labelled positives are known. Memory and disk hold no more than the
rows of one epoch. A run that is resumed reads the rows again up to the place where it stopped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from embedrag.data.rows import TrainingRow, endless_rows
from embedrag.data.token_store import TokenStore
from embedrag.data.tokenization import Prompts, Tokenize, build_store
from embedrag.runtime.cache import say_unusable, unusable


class EpochStream:
    """The token stores of the epochs, one after the other.

    Attributes:
        quotas: rows of each source in an epoch.
    """

    def __init__(
        self,
        sources: Sequence[str],
        quotas: Sequence[int],
        tokenize: Tokenize,
        prompts: Sequence[Prompts],
        cache_dir: Path,
    ) -> None:
        """Open the sources; nothing is read yet.

        Args:
            sources: files, folders or hub ids; one that ends is read from its beginning again.
            quotas: rows of each source in an epoch, see `quotas`.
            tokenize: (role, texts) -> token ids.
            prompts: of each source.
            cache_dir: folder for the store of the current epoch.
        """
        self.sources, self.quotas, self.tokenize, self.prompts = sources, quotas, tokenize, prompts
        self.cache_dir = cache_dir
        self._streams = [endless_rows(source, number) for number, source in enumerate(sources)]
        self._next = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def store(self, epoch: int) -> TokenStore:
        """The rows of an epoch, counted from 0. Rows of earlier epochs that were not read are skipped.

        Raises:
            UserError: a row can't be read; the message names its place.
        """
        if epoch < self._next:
            raise ValueError(f"epoch {epoch} of a stream is over, the next one is {self._next}")
        for _ in range(epoch - self._next):
            for _row in self._rows():
                pass
        rows = list(self._rows())
        self._next = epoch + 1
        reason = unusable(self.cache_dir)
        if self._folder:
            self._folder.cleanup()
        elif reason:
            say_unusable(self.cache_dir, reason)
        self._folder = tempfile.TemporaryDirectory(
            prefix=".stream-", dir=None if reason else self.cache_dir, ignore_cleanup_errors=True
        )
        return build_store(lambda: rows, self.tokenize, self.prompts, Path(self._folder.name))

    def _rows(self) -> Iterator[tuple[str, TrainingRow]]:
        for stream, quota in zip(self._streams, self.quotas, strict=True):
            yield from islice(stream, quota)


def quotas(weights: Sequence[float], rows: int, unit: int = 1) -> list[int]:
    """Divide the rows of an epoch among sources by weight.

    Args:
        weights: of the sources.
        rows: of an epoch, all sources together.
        unit: every source gets a multiple of it: 1, or the size of a batch of one source.

    >>> quotas([2, 1], 9), quotas([2, 1], 16, unit=4)
    ([6, 3], [12, 4])
    """
    units, total = rows // unit, sum(weights)
    exact = [units * weight / total for weight in weights]
    shares = [int(share) for share in exact]
    most_left = sorted(range(len(weights)), key=lambda number: shares[number] - exact[number])
    for number in most_left[: units - sum(shares)]:
        shares[number] += 1
    return [share * unit for share in shares]
