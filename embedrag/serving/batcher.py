"""Dynamic batching: texts of many callers go through the model together, and each caller gets its own vectors.

One thread runs the model. Whenever it is free, it takes a batch of the texts that wait, so no text waits for a batch to
fill up. Jobs are finished one after the other, in the order in which they would be done if they took turns text by
text (the "fair sojourn protocol" of Friedman and Henderson, 2003). So a short job is done long before a large one that
came earlier, a large one does not wait forever, and the first of many equal jobs are done early. If all took turns, all
would be done at the very end, and clients that wait for 30 s would get nothing from a server that needs 40 s for all.
When a batch fails, its halves are tried, down to the single text that the model fails on. Only the job of that text
fails.

Letters: n texts of a job, D dimensions of a vector.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

import numpy as np

from embedrag.errors import RunError

Vectors = Callable[[Sequence[Sequence[int]]], np.ndarray]
Watch = Callable[[int, int, float], object]
FIRST_GUESS = 0.01  # seconds that a text takes, as long as no batch is done
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
        self._jobs: list[tuple[float, int, Job]] = []  # heap by the text of `_turns` that would be the job's last one
        self._numbers = itertools.count()
        self._turns = 0.0  # texts that a job would have got by now, if it had been there from the beginning
        self._changed = threading.Condition()
        self._closed = False
        self._texts_done = 0
        self._tokens_done = 0
        self._seconds_done = 0.0
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def submit(self, ids: Sequence[Sequence[int]]) -> Future[np.ndarray]:
        """Queue n > 0 texts; each has at least one token."""
        job = Job(ids)
        with self._changed:
            heapq.heappush(self._jobs, (self._turns + job.missing, next(self._numbers), job))
            self._changed.notify()
        return job.future

    def seconds_for(self, texts: int) -> float:
        """The seconds that texts take if they are as long as those that wait, estimated from the speed so far."""
        with self._changed:
            waiting = [len(job.ids[index]) for _, _, job in self._jobs for index in job.left]
            if not self._tokens_done:
                return texts * FIRST_GUESS
            length = sum(waiting) / len(waiting) if waiting else self._tokens_done / self._texts_done
            return texts * length * self._seconds_done / self._tokens_done

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
                self._texts_done += len(batch)
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
                    job = self._jobs[0][2]
                    if job.left and not job.future.done():  # otherwise all taken, cancelled or failed
                        tokens += len(job.ids[job.left[-1]])
                        if batch and tokens > self._max_tokens:
                            break  # first in the next batch
                        batch.append((job, job.left.pop()))
                        self._turns += 1 / len(self._jobs)
                    if not job.left or job.future.done():
                        heapq.heappop(self._jobs)
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
