"""A web server on this machine for the crawler, and a clock that needs no time."""

from __future__ import annotations

import contextlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from embedrag.datagen.crawl.fetch import Fetcher

PAGE = "<dl><dt>volt</dt><dd>The unit of electric potential, named after a physicist.</dd></dl>"
PAIR = [("volt", "The unit of electric potential, named after a physicist.")]
SENTENCES = {
    "euc-kr": "전류의 흐름을 방해하는 정도를 나타내는 물리량을 저항이라고 한다.",
    "gb18030": "电阻表示导体对电流阻碍作用的大小，是导体本身的一种性质。",
    "big5": "電阻表示導體對電流阻礙作用的大小，是導體本身的一種性質。",
    "latin-1": "Größe, die angibt, wie stark ein Körper den Strom hemmt, der über ihn fließt.",
}


class Site(ThreadingHTTPServer):
    """A server. Its answers are functions of the handler; it remembers what was asked and counts what it sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.agents: set[str] = set()
        self.sent = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def page(self, path: str, body: str | bytes = PAGE, kind: str = "text/html", status: int = 200, **headers: str):
        data = body.encode() if isinstance(body, str) else body
        self.answers[path] = lambda handler: handler.give(status, data, {"Content-Type": kind, **headers})

    def times(self, path: str) -> int:
        return self.asked.count(path)


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:  # noqa: N802
        path = urlsplit(self.path).path
        self.server.asked.append(path)
        self.server.agents.add(self.headers["User-Agent"])
        answer = self.server.answers.get(path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the crawler may have had enough
            answer(self) if answer else self.give(404, b"", {})

    def give(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def fetcher(clock: Clock, **more: Any) -> Fetcher:
    return Fetcher(clock=clock, sleep=clock.sleep, **more)
