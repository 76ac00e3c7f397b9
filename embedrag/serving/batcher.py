"""Dynamic batching: texts of many callers go through the model together, and each caller gets its own vectors.

One thread runs the model. Whenever it is free, it takes one text of each waiting job in turns until a batch is full. So
no text waits for a batch to fill up, and a short job is done long before a large one that came earlier. When a batch
fails, its halves are tried, down to the single text that the model fails on. Only the job of that text fails.

Letters: n texts of a job, D dimensions of a vector.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

import numpy as np

from embedrag.errors import RunError

Vectors = Callable[[Sequence[Sequence[int]]], np.ndarray]
Watch = Callable[[int, int, float], object]
LONGEST_WAIT = 60  # the most seconds that a caller is asked to wait
log = logging.getLogger(__name__)


class Job:
    """The texts of one caller.

    Attributes:
        future: becomes the vectors, [n, D] float32 in the order of the texts. Cancelling it takes the job back.
    """

    def __init__(self, ids: Sequence[Sequence[int]]) -> None:
        self.future: Future[np.ndarray] = Future()
        self.ids = [array("i", text) for text in ids]
        self.left = sorted(range(len(ids)), key=lambda index: len(ids[index]))  # taken from its end: the longest first
        self.missing = len(ids)
        self.vectors: np.ndarray | None = None

    def put(self, index: int, vector: np.ndarray) -> None:
        """Keep the vector of one text; the last one completes the job."""
        if self.vectors is None:
            self.vectors = np.empty((len(self.ids), len(vector)), np.float32)
        self.vectors[index] = vector
        self.missing -= 1
        if not self.missing:
            with suppress(InvalidStateError):  # cancelled, or failed because of another text
                self.future.set_result(self.vectors)

    def fail(self, error: Exception) -> None:
        """Give the error to the caller."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Batcher:
    """The queue of jobs, and the thread that works on them."""

    def __init__(self, vectors: Vectors, max_tokens: int, watch: Watch = lambda texts, tokens, seconds: None) -> None:
        """Start the thread.

        Args:
            vectors: texts as token ids -> [n, D]; it is called in one thread only.
            max_tokens: tokens of a batch, at most; a text that is longer is a batch of its own.
            watch: called after each batch with the number of its texts, of its tokens, and the seconds that it took.
        """
        self._vectors = vectors
        self._max_tokens = max_tokens
        self._watch = watch
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._tokens_done = 0
        self._seconds_done = 0.0
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def submit(self, ids: Sequence[Sequence[int]]) -> Future[np.ndarray]:
        """Queue n > 0 texts; each has at least one token."""
        job = Job(ids)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def seconds_to_wait(self) -> int:
        """The seconds that the queue needs, estimated from the speed so far: from 1 to LONGEST_WAIT."""
        with self._changed:
            waiting = sum(len(job.ids[index]) for job in self._jobs for index in job.left)
            seconds = waiting * self._seconds_done / self._tokens_done if self._tokens_done else 0
        return min(LONGEST_WAIT, max(1, math.ceil(seconds)))

    def close(self) -> None:
        """Finish all jobs in the queue, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._take():
            start = time.monotonic()
            self._embed(batch)
            tokens = sum(len(job.ids[index]) for job, index in batch)
            seconds = time.monotonic() - start
            with self._changed:
                self._tokens_done += tokens
                self._seconds_done += seconds
            self._watch(len(batch), tokens, seconds)
            del batch  # otherwise its arrays stay in memory until the next batch

    def _take(self) -> list[tuple[Job, int]]:
        """Wait for the next batch: (job, number of a text in it). Empty when the queue is closed and done."""
        batch: list[tuple[Job, int]] = []
        tokens = 0
        with self._changed:
            while not batch:
                while not self._jobs:
                    if self._closed:
                        return []
                    self._changed.wait()
                while self._jobs:
                    job = self._jobs.popleft()
                    if job.future.done():  # cancelled or failed
                        continue
                    tokens += len(job.ids[job.left[-1]])
                    if batch and tokens > self._max_tokens:
                        self._jobs.appendleft(job)  # first in the next batch
                        break
                    batch.append((job, job.left.pop()))
                    if job.left:
                        self._jobs.append(job)
        return batch

    def _embed(self, batch: list[tuple[Job, int]]) -> None:
        try:
            rows = self._vectors([job.ids[index] for job, index in batch])
            if not np.isfinite(rows).all():
                raise RunError("the model gave a vector with values that are not finite")
        except Exception as error:
            if len(batch) == 1:
                log.exception("the model fails on a text")
                batch[0][0].fail(error)
                return
        else:
            for (job, index), row in zip(batch, rows, strict=True):
                job.put(index, row)
            return
        # Outside the except block, because the traceback of the error holds the tensors of the failed pass, and the
        # halves need their memory.
        half = len(batch) // 2
        self._embed(batch[:half])
        self._embed(batch[half:])
