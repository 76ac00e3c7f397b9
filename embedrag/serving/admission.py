"""Limits for what the server holds for its clients: texts that wait for the model, bytes of requests and answers.

Each of the two has a quota. A request that does not fit is refused with status 429 and may be sent again later, so
clients can't fill the server's memory. A request keeps its bytes until the client has read the answer, because a
client may read slowly.

All counts change on the event loop only, so there are no locks.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import Request

from embedrag.serving.connection_limits import READ_SECONDS
from embedrag.serving.openai_protocol import ApiError
from embedrag.serving.request import MAX_CHARACTERS, TooLargeError

MAX_BYTES = 8 * MAX_CHARACTERS  # of one request; JSON may write a character as six bytes (\u00e9)
LONGEST_WAIT = 60  # the most seconds that a refused client is asked to wait; some clients give up when it is more
SPARE = 1.25  # of the time that a refused client is told; one that comes too early loses one of its few tries
MAX_HELD_BYTES = 16 * MAX_BYTES  # of all requests and answers together, without the largest answer


class Reservation:
    """A part of a quota that one holder has taken; the end of the `with` block gives it back."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._taken = 0

    def grow(self, count: int) -> bool:
        """Take `count` more; return False and take nothing if the quota has less left."""
        if self._quota.used + count > self._quota.limit:
            return False
        self._quota.used += count
        self._taken += count
        return True

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self._quota.used -= self._taken
        self._taken = 0


class Quota:
    """A count that never exceeds its limit.

    Attributes:
        limit: the most that all reservations may hold together.
        used: what they hold now.

    >>> quota = Quota(5)
    >>> with quota.reserve() as reservation:
    ...     print(reservation.grow(3), reservation.grow(3), quota.used)
    True False 3
    >>> quota.used
    0
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def reserve(self) -> Reservation:
        """Begin a reservation, which is empty at first and grows."""
        return Reservation(self)


class Admission:
    """Decides which requests are let in, and reads their bodies.

    Attributes:
        state: `loading`, `ready` or `stopping`.
        texts: quota of the texts that wait for the model or are being computed.
        bytes: quota of the bytes of requests and answers.
    """

    def __init__(self, max_queue: int) -> None:
        """Refuse all requests until `open` is called.

        Args:
            max_queue: the most texts that may wait or be computed.
        """
        self.state = "loading"
        self.texts, self.bytes = Quota(max_queue), Quota(MAX_HELD_BYTES)
        self._promised = 0.0  # when there is room for all who were told to come again
        self._reading: set[asyncio.Future[bytes]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self, largest_answer: int, seconds_for: Callable[[int], float]) -> None:
        """Accept requests.

        Args:
            largest_answer: bytes of an answer to `max_queue` texts.
            seconds_for: gives the seconds that a number of texts takes.
        """
        self.bytes.limit += largest_answer
        self._seconds_for = seconds_for
        self.state = "ready"

    async def close(self) -> None:
        """Refuse all further requests, and wait until all texts are answered."""
        self.state = "stopping"
        for reading in self._reading:
            reading.cancel()
        await self._idle.wait()

    def check_open(self) -> None:
        """Raise ApiError (503) while the model is being loaded, and when the server is stopping."""
        if self.state != "ready":
            reason = "the model is being loaded" if self.state == "loading" else "the server is stopping"
            raise ApiError(503, reason, "unavailable", retry_after=1)

    async def read_body(self, request: Request, held: Reservation) -> bytes:
        """Read the body of a request, if it arrives in time and before the server stops.

        Args:
            request: as it came.
            held: reservation of `bytes`; grows with what arrives.

        Raises:
            ApiError: 400 two lengths, 408 too slow, 415 compressed, 429 no bytes left, 503 not open.
            TooLargeError: more than MAX_BYTES.
            ClientDisconnect: the client has gone.
        """
        self.check_open()
        packing = request.headers.get("content-encoding", "identity").strip().lower()
        if packing not in ("identity", ""):
            raise ApiError(
                415, f"Content-Encoding: {packing} is not read; send the body uncompressed", "invalid_request"
            )
        if "transfer-encoding" in request.headers and "content-length" in request.headers:
            # A proxy may have read another end of this request than we do, and hide a second request in the rest.
            raise ApiError(
                400,
                "Content-Length and Transfer-Encoding in one request; send one of them",
                "invalid_request",
                close=True,
            )
        reading = asyncio.ensure_future(self._read(request, held))
        self._reading.add(reading)
        try:
            body = await asyncio.wait_for(reading, READ_SECONDS)
        except asyncio.TimeoutError:
            raise ApiError(408, f"the request did not arrive within {READ_SECONDS} seconds", "timeout") from None
        except asyncio.CancelledError:
            self.check_open()  # `close` cancels the reading; the client then gets the reason
            raise
        finally:
            self._reading.discard(reading)
        self.check_open()
        return body

    @contextmanager
    def admit(self, texts: int, answer_size: int, held: Reservation) -> Iterator[None]:
        """Hold the texts of a request while the block runs.

        Args:
            texts: number of them.
            answer_size: bytes of the answer, at most.
            held: reservation of `bytes`; grows by the answer.

        Raises:
            ApiError: 429 when there is no room for the texts or for the answer.
        """
        try:
            with self.texts.reserve() as reservation:
                if not reservation.grow(texts):
                    reason = f"{self.texts.used:,} texts are waiting; at most {self.texts.limit:,} may wait"
                    raise self._busy(reason, texts)
                if not held.grow(answer_size):
                    raise self._busy("too many large answers are being sent")
                self._idle.clear()
                yield
        finally:
            if not self.texts.used:
                self._idle.set()

    async def _read(self, request: Request, held: Reservation) -> bytes:
        length = request.headers.get("content-length", "0")
        parts, size = [], 0
        if int(length) <= MAX_BYTES:  # the HTTP parser has checked that this is a number
            async for part in request.stream():
                size += len(part)
                if size > MAX_BYTES:
                    break
                if not held.grow(len(part)):
                    raise self._busy("too many large requests at once")
                parts.append(part)
            else:
                return b"".join(parts)
        raise TooLargeError(f"more than {MAX_BYTES:,} bytes; send several requests")

    def _busy(self, reason: str, texts: int | None = None) -> ApiError:
        """The answer to a request that has no room now.

        Clients that are refused in a burst get different times, each when there is room for it and for those that were
        refused before it. Otherwise all would come again at once, and most would be refused again.

        Args:
            reason: for the client.
            texts: number of texts that there is no room for; None: the room for bytes is full.
        """
        now = time.monotonic()
        each = SPARE * self._seconds_for(1)
        seconds = whole = each * self.texts.used  # by then there is room in any case
        if texts is not None:
            room = now + each * (self.texts.used + texts - self.texts.limit)
            turn = max(room, self._promised)
            self._promised = min(turn + each * texts, now + whole)
            seconds = min(turn - now, whole)
        wait = min(LONGEST_WAIT, max(1, math.ceil(seconds)))
        return ApiError(429, f"{reason}; try again in {wait} s", "rate_limit_exceeded", wait)
