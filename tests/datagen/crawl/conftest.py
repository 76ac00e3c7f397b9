"""A server and a clock for each test."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.datagen.crawl.server import Clock, Site


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("EMBEDRAG_CRAWL_ALLOW_PRIVATE", "1")
    server = Site()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def clock() -> Clock:
    return Clock()
