"""Connections that are closed when the client is too slow, and a limit for their number.

uvicorn itself waits forever for a client, before a request and after an answer. Here a client that is too slow is
disconnected, and a new connection is refused when there are too many. Otherwise silent clients could take all file
descriptors of the process, or its memory.
"""

from __future__ import annotations

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

READ_SECONDS = 30  # for the headers of the first request of a connection, and for the body of any request
READ_BYTES = 8 << 20  # the client must read at least this much of an answer in READ_SECONDS
KEEP_ALIVE_SECONDS = 75  # from an answer to the headers of the next request
LINGER_SECONDS = 10  # for answers that are being sent when the server stops
MAX_CONNECTIONS = 4096
BACKLOG = 128  # connections that the system holds until the server accepts them; it accepts as many at once
OWN_FILES = 2 * BACKLOG  # file descriptors for connections that are being accepted, and for everything else


class Connection(H11Protocol):
    """A connection that is cut off when its client takes too long.

    Attributes:
        most: the most connections that the server may have.
    """

    most = MAX_CONNECTIONS
    _request: asyncio.TimerHandle  # ends the wait for headers; bytes that arrive do not start it again
    _answer: asyncio.TimerHandle | None = None  # ends the wait for a client that does not read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, or refuse the connection."""
        super().connection_made(transport)
        self._request = self._cut_off_in(READ_SECONDS)
        if len(self.connections) > self.most:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all waiting."""
        super().connection_lost(exc)
        self._request.cancel()
        self.resume_writing()

    def handle_events(self) -> None:
        """Read what has arrived; the wait is over when all headers of a request are there."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._request.cancel()

    def on_response_complete(self) -> None:
        """Wait for the next request, or until the client has read this answer and closed the connection."""
        self._request.cancel()
        self._request = self._cut_off_in(KEEP_ALIVE_SECONDS)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP, and wait until the client has read this answer and closed the connection."""
        self._request.cancel()
        self._request = self._cut_off_in(READ_SECONDS)
        super().send_400_response(msg)

    def pause_writing(self) -> None:
        """Wait until the client has read what is held for it."""
        super().pause_writing()
        size = self.transport.get_write_buffer_size()
        self._answer = self._cut_off_in(READ_SECONDS * max(1, size / READ_BYTES))

    def resume_writing(self) -> None:
        """The client has read the answer; stop waiting."""
        if self._answer:
            self._answer.cancel()
        super().resume_writing()

    def shutdown(self) -> None:
        """The server stops and all requests are answered; answers that are being sent get LINGER_SECONDS more."""
        super().shutdown()
        self._request.cancel()
        self._request = self._cut_off_in(LINGER_SECONDS)

    def _cut_off_in(self, seconds: float) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, self.transport.abort)  # `close` would wait until everything is sent


def limited_connection() -> type[Connection]:
    """The class of connections for this process.

    The limit of file descriptors is raised first. Then `most` is the largest number that this limit allows.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OWN_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

    class Limited(Connection):
        most = max(wanted - OWN_FILES, wanted // 2)

    return Limited
