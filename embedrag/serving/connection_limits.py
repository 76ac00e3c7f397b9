"""Connections whose clients keep to times: uvicorn's own may be silent for ever, before a request and after an answer.

Whoever is too slow is cut off, and above a number of connections new ones are, so that silent clients take neither all
descriptors of the process nor its memory.
"""

from __future__ import annotations

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

READ_SECONDS = 30  # for the headers of a connection's first request, and for the body of any
READ_BYTES = 8 << 20  # that are read or sent in that time, at least
KEEP_ALIVE_SECONDS = 75  # from an answer to the headers of the next request
LINGER_SECONDS = 10  # for answers that are being sent when the server stops
MAX_CONNECTIONS = 4096
BACKLOG = 128  # connections that the system holds until they are taken; as many are taken at once
OWN_FILES = 2 * BACKLOG  # descriptors for connections being taken, and for all that are none


class Connection(H11Protocol):
    """A connection that is cut off when its client takes too long.

    Attributes:
        most: connections of the server, at most.
    """

    most = MAX_CONNECTIONS
    _request: asyncio.TimerHandle  # ends the wait for headers; no byte that arrives begins it anew
    _answer: asyncio.TimerHandle | None = None  # ends the wait for a client that does not read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, or refuse."""
        super().connection_made(transport)
        self._request = self._cut_off_in(READ_SECONDS)
        if len(self.connections) > self.most:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        self._request.cancel()
        self.resume_writing()

    def handle_events(self) -> None:
        """Take what has arrived; with all headers of a request the wait is over."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._request.cancel()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, or for the client to take this answer and go."""
        self._request.cancel()
        self._request = self._cut_off_in(KEEP_ALIVE_SECONDS)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, and wait for the client to take this answer and go."""
        self._request.cancel()
        self._request = self._cut_off_in(READ_SECONDS)
        super().send_400_response(msg)

    def pause_writing(self) -> None:
        """Begin to wait until the client has read what is held for it."""
        super().pause_writing()
        size = self.transport.get_write_buffer_size()
        self._answer = self._cut_off_in(READ_SECONDS * max(1, size / READ_BYTES))

    def resume_writing(self) -> None:
        """It has."""
        if self._answer:
            self._answer.cancel()
        super().resume_writing()

    def shutdown(self) -> None:
        """Called when the server stops and all requests are answered: what is being sent has a last while."""
        super().shutdown()
        self._request.cancel()
        self._request = self._cut_off_in(LINGER_SECONDS)

    def _cut_off_in(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self.transport.abort)  # `close` would wait until all is sent


def limited_connection() -> type[Connection]:
    """The kind of connection for this process: as many as its descriptors allow, after their limit was raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OWN_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

    class Limited(Connection):
        most = max(wanted - OWN_FILES, wanted // 2)

    return Limited
