"""The order of the rows: shuffled anew in each pass, or several data sets by their weights.

An order is an endless stream of (visit, row). The item at a position depends only on the seed and the position. The
visit is the number of times that all rows of the data set have come before. It decides which positives of a row have
their turn and which negatives are drawn (see `embedrag.data.collator.draw`).

Dimensions: N rows, P positions of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from embedrag.runtime.random_state import generator


class ShuffledSampler:
    """All rows, shuffled anew in each pass.

    >>> sampler = ShuffledSampler(rows=3, seed=42)
    >>> sorted(sampler.between(3, 6))
    [(1, 0), (1, 1), (1, 2)]
    """

    def __init__(self, rows: int, seed: int) -> None:
        """Take the number of rows, and the seed of the order."""
        self.rows, self.seed = rows, seed
        self._kept: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """P, the positions of a pass."""
        return self.rows

    def between(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """(visit, row) at the positions [start, stop) of the stream."""
        for data_pass in range(start // len(self), (stop - 1) // len(self) + 1):
            before = data_pass * len(self)
            rows = self._pass(data_pass)[max(start - before, 0) : stop - before]
            yield from map(tuple, rows.tolist())

    def _pass(self, data_pass: int) -> np.ndarray:
        if data_pass not in self._kept:
            newest = {number: kept for number, kept in self._kept.items() if number == data_pass - 1}
            self._kept = newest | {data_pass: self._shuffled(data_pass)}
        return self._kept[data_pass]

    def _shuffled(self, data_pass: int) -> np.ndarray:
        """[P, 2] (visit, row)."""
        rows = generator(self.seed, data_pass).permutation(self.rows)
        return np.stack([np.full(self.rows, data_pass), rows], axis=1)


class WeightedSampler(ShuffledSampler):
    """Several data sets, each as often as its weight says; on request in batches of one data set.

    Each data set has an endless stream of its own, in which all its rows come before one comes again. A pass takes
    `weight * rows` positions of each stream. A weight of 2 shows every row twice in a pass; a weight of 0.5 shows half
    of the rows, and the other half in the next pass. With batches of one data set, the number of positions is rounded
    up to whole batches, and the last batch is filled with rows of the data set's next visit.
    """

    def __init__(self, sets: Sequence[np.ndarray], weights: Sequence[float], seed: int, batch_size: int = 1) -> None:
        """Compute how many positions of a pass each data set has.

        Args:
            sets: row numbers of each data set.
            weights: how often the rows of each data set come in a pass.
            seed: of the order.
            batch_size: number of rows of a batch, if every batch must come from one data set; otherwise 1.
        """
        super().__init__(sum(map(len, sets)), seed)
        self.sets, self.batch_size = sets, batch_size
        self.positions = [
            -(-round(weight * len(rows)) // batch_size) * batch_size for rows, weight in zip(sets, weights, strict=True)
        ]

    def __len__(self) -> int:
        """P, the positions of a pass."""
        return sum(self.positions)

    def _shuffled(self, data_pass: int) -> np.ndarray:
        parts = [self._of_set(number, data_pass) for number in range(len(self.sets))]
        batches = np.concatenate(parts).reshape(-1, self.batch_size, 2)
        return generator(self.seed, data_pass).permutation(batches).reshape(-1, 2)

    def _of_set(self, number: int, data_pass: int) -> np.ndarray:
        """[positions, 2] (visit, row): what a data set gives to a pass."""
        rows, wanted = self.sets[number], self.positions[number]
        places = np.arange(data_pass * wanted, (data_pass + 1) * wanted)
        if not len(places):
            return np.empty((0, 2), np.int64)
        visits = places // len(rows)
        shuffled = {int(visit): self._visit(number, int(visit)) for visit in np.unique(visits)}
        picked = np.concatenate([shuffled[int(visit)][places[visits == visit] % len(rows)] for visit in shuffled])
        return np.stack([visits, picked], axis=1)

    def _visit(self, number: int, visit: int) -> np.ndarray:
        rows = self.sets[number]
        return rows[generator(self.seed, visit, number + 1, 1).permutation(len(rows))]
