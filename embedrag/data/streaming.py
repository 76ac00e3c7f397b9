"""Training data without a known end: one epoch's worth of rows at a time, as they come.

A source that can't be read twice, or has no end, gets no token store of its own. Each epoch (`--steps_per_epoch`) takes
the next rows of every source, tokenises them into a store that lives until the next epoch, and trains on it as on any
other data: shuffled, with its labelled positives known. Memory and disk are bounded by the rows of an epoch, and a run
that goes on reads up to where it stood.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from embedrag.data.rows import TrainingRow, endless_rows
from embedrag.data.token_store import TokenStore
from embedrag.data.tokenization import Prompts, Tokenize, build_store
from embedrag.errors import UserError


class Slices:
    """The stores of the epochs, one after the other.

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
            sources: files, folders or hub ids, read from their beginning again when they end.
            quotas: rows of each source in an epoch, see `quotas`.
            tokenize: (role, texts) -> token ids.
            prompts: of each source.
            cache_dir: where the store of an epoch lives.
        """
        self.sources, self.quotas, self.tokenize, self.prompts = sources, quotas, tokenize, prompts
        self.cache_dir = cache_dir
        self._streams = [endless_rows(source, number) for number, source in enumerate(sources)]
        self._next = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def store(self, epoch: int) -> TokenStore:
        """The rows of an epoch, from 0; those of the epochs before are skipped where they were not read.

        Raises:
            UserError: for a row that can't be read, with its place.
        """
        if epoch < self._next:
            raise ValueError(f"epoch {epoch} of a stream is gone, the next is {self._next}")
        for _ in range(epoch - self._next):
            for _row in self._rows():
                pass
        records = list(self._rows())
        self._next = epoch + 1
        if self._folder:
            self._folder.cleanup()
        try:
            self.cache_dir.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(
                prefix=".stream-", dir=self.cache_dir, ignore_cleanup_errors=True
            )
        except OSError as error:
            raise UserError(
                f"{error.strerror}; name a folder that can be written", "cache_dir", self.cache_dir
            ) from None
        return build_store(lambda: records, self.tokenize, self.prompts, Path(self._folder.name))

    def _rows(self) -> Iterator[tuple[str, TrainingRow]]:
        for stream, quota in zip(self._streams, self.quotas, strict=True):
            yield from islice(stream, quota)


def quotas(weights: Sequence[float], rows: int, unit: int = 1) -> list[int]:
    """Share out the rows of an epoch by weight, in whole units (rows, or batches of one source).

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
