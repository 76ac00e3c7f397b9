"""Clients that are silent, drip or do not read are cut off, and lock nobody out; the others are served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

from embedrag.models.embedding_config import EmbeddingConfig  # noqa: E402
from embedrag.serving import connection_limits as connections  # noqa: E402
from embedrag.serving.app import make_app, make_server  # noqa: E402
from embedrag.serving.connection_limits import MAX_CONNECTIONS, OWN_FILES, Connection, limited_connection  # noqa: E402
from embedrag.serving.embedding_service import EmbeddingService  # noqa: E402

DIMENSION = 16_384  # 64 answers do not fit into the buffers of a socket
HEAD = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


class OneToken:
    """A tokenizer that gives every text the same token."""

    embedding_config = EmbeddingConfig("mean", True, "", "", 512, 512)

    def __call__(self, role: str, texts: list[str]) -> list[list[int]]:
        return [[1]] * len(texts)


class Slow:
    """An encoder that takes its time."""

    dimension = DIMENSION
    seconds = 0.0
    tokenizer = OneToken()

    def vectors(self, ids: list[list[int]]) -> np.ndarray:
        time.sleep(self.seconds)
        return np.random.default_rng(0).standard_normal((len(ids), self.dimension), np.float32)


class Listening:
    """A server in a thread of this process."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()
        self.encoder = Slow()
        self.started = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self.thread.start()
        assert self.started.wait(30)

    async def _serve(self) -> None:
        self.loop, self.stopping = asyncio.get_running_loop(), asyncio.Event()
        self.service = EmbeddingService("m", "", 64)
        self.service.open(self.encoder, 64)  # type: ignore[arg-type]
        self.server = make_server(make_app(self.service, None))
        serving = asyncio.create_task(self.server.serve([self.listener]))
        self.started.set()
        await self.stopping.wait()
        await self.service.close()
        self.server.should_exit = True
        await serving

    def stop(self) -> None:
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.stopping.set)

    def close(self) -> None:
        self.stop()
        self.thread.join(30)
        assert not self.thread.is_alive()

    def connect(self) -> socket.socket:
        connection = socket.create_connection(self.address)
        connection.settimeout(20)
        return connection

    def health(self) -> int:
        return int(httpx.get("http://{}:{}/health".format(*self.address)).status_code)


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of a server, so short that a test can wait for them."""
    monkeypatch.setattr(connections, "READ_SECONDS", 0.5)
    monkeypatch.setattr(connections, "KEEP_ALIVE_SECONDS", 0.7)


@pytest.fixture
def server(seconds: None) -> Iterator[Listening]:
    found = Listening()
    yield found
    found.close()


def ended(connection: socket.socket, drip: bytes = b"") -> float:
    """Seconds until the server ends a connection, while it gets a byte now and then."""
    start, connection_ended = time.monotonic(), False
    connection.settimeout(0.05)
    letters = iter(drip)
    while not connection_ended:
        assert time.monotonic() - start < 10, "the server keeps the connection"
        try:
            connection.sendall(bytes([letter]) if (letter := next(letters, None)) is not None else b"")
            connection_ended = connection.recv(65536) == b""
        except OSError as error:
            connection_ended = not isinstance(error, TimeoutError)  # that one says: nothing has come yet
    return time.monotonic() - start


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of one answer."""
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        lengths = [int(line.split()[1]) for line in iter(file.readline, b"\r\n") if line.startswith(b"content-length")]
        return status, file.read(lengths[0])


def post(texts: int, **fields: Any) -> bytes:
    body = json.dumps({"input": ["a"] * texts} | fields).encode()
    return b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("drip", [b"", b"GET /health HTTP/1.1\r\nx: " + b"a" * 999], ids=["silent", "dripping"])
def test_connection_without_a_request_is_ended_in_time(drip: bytes, server: Listening) -> None:
    with server.connect() as connection:
        assert 0.4 < ended(connection, drip) < 5


@pytest.mark.parametrize("drip", [b"", HEAD[:-2] + b"x: " + b"a" * 999], ids=["silent", "dripping"])
def test_connection_without_a_next_request_is_ended_in_time(drip: bytes, server: Listening) -> None:
    with server.connect() as connection:
        connection.sendall(HEAD)
        assert answer(connection)[0] == 200
        assert 0.5 < ended(connection, drip) < 5


def test_endless_body_after_a_refusal_is_cut_off(server: Listening) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n")
        assert answer(connection)[0] == 405
        assert 0.5 < ended(connection, b"a" * 9999) < 5


def test_request_that_is_computed_for_longer_is_answered_and_so_is_the_next(server: Listening) -> None:
    server.encoder.seconds = 0.9
    with httpx.Client(base_url="http://{}:{}".format(*server.address)) as client:
        for _ in range(2):
            answer = client.post("/v1/embeddings", json={"input": "a"})
            assert answer.status_code == 200
            time.sleep(0.1)
    assert server.server.server_state.total_requests == 2


def test_requests_that_come_at_once_are_all_answered(server: Listening) -> None:
    with server.connect() as connection:
        connection.sendall(HEAD * 3)
        found = b""
        while found.count(b'"ready"') < 3:
            found += connection.recv(65536)
        assert 0.5 < ended(connection) < 5


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two(Connection):
        most = 2

    monkeypatch.setattr("embedrag.serving.app.limited_connection", lambda: Two)


def test_connections_above_the_limit_are_closed_until_another_one_ends(
    two: None, server: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("READ_SECONDS", "KEEP_ALIVE_SECONDS"):
        monkeypatch.setattr(connections, name, 60)
    with server.connect() as first, server.connect() as second:
        for connection in (first, second):
            connection.sendall(HEAD)
            assert answer(connection)[0] == 200
        with server.connect() as third:
            assert ended(third) < 5
        first.sendall(HEAD)
        assert answer(first)[0] == 200
    while server.server.server_state.connections:
        time.sleep(0.01)
    assert server.health() == 200


@contextlib.contextmanager
def unread(server: Listening, texts: int = 64) -> Iterator[socket.socket]:
    """A client that asks for much and reads nothing."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(server.address)
        connection.sendall(post(texts))
        while not server.service.admission.bytes.used:
            time.sleep(0.01)
        yield connection


def test_answer_keeps_its_bytes_until_it_is_read(server: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("READ_SECONDS", "KEEP_ALIVE_SECONDS"):
        monkeypatch.setattr(connections, name, 60)
    with unread(server) as connection:
        while server.service.admission.texts.used:
            time.sleep(0.01)
        time.sleep(0.3)
        connection.settimeout(10)
        held = server.service.admission.bytes.used
        _, body = answer(connection)
        assert len(json.loads(body)["data"]) == 64 and len(body) <= held < 1.4 * len(body)
        while server.service.admission.bytes.used:
            time.sleep(0.01)
        connection.sendall(HEAD)
        assert answer(connection)[0] == 200  # the connection goes on


def test_answer_that_nobody_reads_is_cut_off_and_its_bytes_are_free(server: Listening) -> None:
    with unread(server):
        begin = time.monotonic()
        while server.service.admission.bytes.used:
            time.sleep(0.01)
            assert time.monotonic() - begin < 5
    assert server.health() == 200


def test_more_answers_than_fit_are_refused_and_not_held(server: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_SECONDS", 1)
    server.service.admission.bytes.limit = 64 * (DIMENSION * 16 + 64) + 10_000
    with unread(server):
        while server.service.admission.texts.used:
            time.sleep(0.01)
        body = {"input": ["a"] * 64}
        url = "http://{}:{}/v1/embeddings".format(*server.address)
        refused = httpx.post(url, json=body)
        assert refused.status_code == 429 and "large answers" in refused.text
        while server.service.admission.bytes.used:
            time.sleep(0.05)
        assert httpx.post(url, json=body).status_code == 200


def test_stopping_ends_what_nobody_reads_without_a_traceback(
    server: Listening, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "READ_SECONDS", 60)
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.5)
    with unread(server):
        while server.service.admission.texts.used:
            time.sleep(0.01)
        server.close()
    assert caplog.records == []


def test_stopping_refuses_at_once_a_request_that_is_still_arriving(
    server: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    with server.connect() as connection:
        connection.sendall(post(9)[:-3])
        while not server.service.admission._reading:
            time.sleep(0.01)
        begin = time.monotonic()
        server.stop()
        status, body = answer(connection)
        assert time.monotonic() - begin < 2
        assert status == 503 and json.loads(body)["error"]["message"] == "the server is stopping"
    server.close()
    assert caplog.records == []


@pytest.mark.parametrize(
    ("before", "most", "after"),
    [
        ((1024, 20_000), MAX_CONNECTIONS, MAX_CONNECTIONS + OWN_FILES),
        ((1024, resource.RLIM_INFINITY), MAX_CONNECTIONS, MAX_CONNECTIONS + OWN_FILES),
        ((1024, 2048), 2048 - OWN_FILES, 2048),
        ((256, 256), 128, 256),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), MAX_CONNECTIONS, resource.RLIM_INFINITY),
        ((20_000, 20_000), MAX_CONNECTIONS, 20_000),
    ],
)
def test_limit_of_connections_leaves_descriptors_for_the_rest(
    before: tuple[int, int], most: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [before]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.append(pair))
    assert limited_connection().most == most
    assert limits[-1] == (after, before[1])
