"""The HTTP side of `embedrag serve`: routes, limits, and what happens to requests that can't be answered.

The event loop reads and admits; one helper thread tokenises and writes answers; one thread has the model
(`embedrag.serving.batcher`). All counts are of the event loop alone, so there are no locks. What a client can make
the server hold is bounded: texts and bytes have a room of fixed size, and who finds it full is told to come again
(429). A request keeps its bytes until its answer has left, for a client may be slow to read.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedrag import __version__
from embedrag.errors import UserError
from embedrag.models.encoder import TextEncoder
from embedrag.runtime.device import give_memory_back
from embedrag.serving.batcher import Batcher
from embedrag.serving.connection_limits import (
    BACKLOG,
    KEEP_ALIVE_SECONDS,
    LINGER_SECONDS,
    READ_SECONDS,
    limited_connection,
)
from embedrag.serving.openai_protocol import (
    ApiError,
    EmbeddingsRequest,
    answer_bytes,
    embeddings_body,
    model_body,
    models_body,
    models_of,
    no_such_model,
    read_embeddings_request,
)
from embedrag.serving.prometheus import Telemetry
from embedrag.serving.request import MAX_CHARACTERS, TooLargeError

MAX_BYTES = 8 * MAX_CHARACTERS  # of one request; an escaped character takes six
MAX_HELD_BYTES = 16 * MAX_BYTES
TRIM_SECONDS = 5
ROUTES = ("/v1/embeddings", "/v1/models", "/health", "/metrics")
TAKE = "embedrag.take"  # in a request's scope: takes of the room for bytes
GONE = 499  # the client went away; nobody reads the answer
JSON = "application/json"
PORT = re.compile(r":\d*$")
T = TypeVar("T")


class Room:
    """A count that never exceeds its limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @contextmanager
    def part(self) -> Iterator[Callable[[int], bool]]:
        """A part that grows while the block runs, and is given back at its end.

        Yields:
            A function that takes so much more, or takes nothing and returns False.
        """
        taken = 0

        def take(count: int) -> bool:
            nonlocal taken
            if self.used + count > self.limit:
                return False
            self.used += count
            taken += count
            return True

        try:
            yield take
        finally:
            self.used -= taken


class Service:
    """What the routes share.

    Attributes:
        state: `loading`, `ready` or `stopping`.
        bytes: room for bodies and answers.
        telemetry: its figures.
        models: names that requests may use, as OpenAI lists them.
    """

    def __init__(self, name: str, also_known_as: str, max_queue: int) -> None:
        """A service without a model yet; to be made on the event loop.

        Args:
            name: of the model, in answers.
            also_known_as: a further name that requests may use.
            max_queue: texts that wait or are at work, at most.
        """
        self.state = "loading"
        self._name = name
        self._names = (None, name, also_known_as)
        self.models = models_of(name, int(time.time()))
        self._texts, self.bytes = Room(max_queue), Room(MAX_HELD_BYTES)
        self.telemetry = Telemetry(lambda: self._texts.used)
        self._helper = ThreadPoolExecutor(1, "helper")
        self._trimmed = 0.0
        self._reading: set[asyncio.Future[bytes]] = set()
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self, encoder: TextEncoder, max_batch_tokens: int) -> None:
        """Begin to answer."""
        self._encoder = encoder
        self.bytes.limit += answer_bytes(self._texts.limit, encoder.dimension, "float")
        self._batcher = Batcher(encoder.vectors, max_batch_tokens, self._after_batch)
        self.state = "ready"

    async def close(self) -> None:
        """Take no more requests, and finish those that run."""
        ready, self.state = self.state == "ready", "stopping"
        for reading in self._reading:
            reading.cancel()
        await self._idle.wait()
        if ready:
            await asyncio.to_thread(self._batcher.close)

    async def embeddings(self, request: Request, take_bytes: Callable[[int], bool]) -> bytes:
        """Body of the answer to /v1/embeddings.

        Args:
            request: as it came.
            take_bytes: takes of `bytes` for the request's body and for the answer's.

        Raises:
            ApiError: when there is none, for whatever reason that the client should know.
            UserError: for a bad request.
            ClientDisconnect: when nobody waits for it any more.
        """
        self._check_open()
        body = await self._body(request, take_bytes)
        self._check_open()
        asked = read_embeddings_request(body)
        self._check(asked)
        count, components = len(asked.texts), asked.dimensions or self._encoder.dimension
        with self._texts.part() as take_texts:
            if not take_texts(count):
                raise self._busy(f"{self._texts.used:,} texts are waiting; at most {self._texts.limit:,} may")
            if not take_bytes(answer_bytes(count, components, asked.encoding_format)):
                raise self._busy("too many large answers are being sent")
            self._running += 1
            self._idle.clear()
            try:
                return await self._answer(request, asked)
            finally:
                self._running -= 1
                if not self._running:
                    self._idle.set()

    def _after_batch(self, texts: int, tokens: int, seconds: float) -> None:
        """Called in the model's thread."""
        self.telemetry.batch(texts, tokens, seconds)
        if time.monotonic() - self._trimmed > TRIM_SECONDS:
            give_memory_back()  # batches of ever other sizes leave holes, and the process would grow
            self._trimmed = time.monotonic()

    async def _answer(self, request: Request, asked: EmbeddingsRequest) -> bytes:
        ids = await self._aside(lambda: self._encoder.tokenizer(asked.role, asked.texts))
        tokens = sum(map(len, ids))
        vectors = asyncio.wrap_future(self._batcher.submit(ids))
        gone = asyncio.ensure_future(_disconnection(request))
        try:
            await asyncio.wait((vectors, gone), return_when=asyncio.FIRST_COMPLETED)
            if not vectors.done():
                raise ClientDisconnect
            found = await vectors
        except ClientDisconnect:
            raise
        except Exception:  # logged where it happened
            raise ApiError(500, "the model fails on this request", "server_error") from None
        finally:
            gone.cancel()
            vectors.cancel()  # of no effect when it is done
        answer = await self._aside(lambda: embeddings_body(asked, found, tokens, self._name))
        self.telemetry.texts.inc(len(asked.texts))
        self.telemetry.tokens.inc(tokens)
        return answer

    async def _body(self, request: Request, take: Callable[[int], bool]) -> bytes:
        """The request's body, if it arrives in time and before the server stops."""
        reading = asyncio.ensure_future(self._read(request, take))
        self._reading.add(reading)
        try:
            return await asyncio.wait_for(reading, READ_SECONDS)
        except asyncio.TimeoutError:
            raise ApiError(408, f"the request did not arrive within {READ_SECONDS} seconds", "timeout") from None
        except asyncio.CancelledError:
            self._check_open()  # `close` cancels too, and its clients are to hear why
            raise
        finally:
            self._reading.discard(reading)

    async def _read(self, request: Request, take: Callable[[int], bool]) -> bytes:
        length = request.headers.get("content-length", "0")
        parts, size = [], 0
        if int(length) <= MAX_BYTES:  # the protocol's parser has seen to it that this is a number
            async for part in request.stream():
                size += len(part)
                if size > MAX_BYTES:
                    break
                if not take(len(part)):
                    raise self._busy("too many large requests at once")
                parts.append(part)
            else:
                return b"".join(parts)
        raise TooLargeError(f"more than {MAX_BYTES:,} bytes; send several requests")

    def _check(self, asked: EmbeddingsRequest) -> None:
        if asked.model not in self._names:
            raise no_such_model(asked.model, self.models)
        if len(asked.texts) > self._texts.limit:
            raise TooLargeError(f"input: this server takes {self._texts.limit:,} texts at once; send several requests")
        asked.check_dimensions(self._encoder.dimension)

    def _check_open(self) -> None:
        if self.state != "ready":
            reason = "the model is being loaded" if self.state == "loading" else "the server is stopping"
            raise ApiError(503, reason, "unavailable", retry_after=1)

    def _busy(self, reason: str) -> ApiError:
        seconds = self._batcher.seconds_to_wait()
        return ApiError(429, f"{reason}; try again in {seconds} s", "rate_limit_exceeded", seconds)

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._helper, work)


def make_app(service: Service, api_key: str | None, hosts: Sequence[str] = ("*",)) -> ASGIApp:
    """The application.

    Args:
        service: what answers.
        api_key: that /v1 asks for; None: nothing is asked for.
        hosts: names by which it may be asked; "*": any, and by pages of the web too.
    """

    async def check_origin(request: Request) -> None:
        """Without a key, no page of the web may ask: not across sites, nor under a name of its own that leads here."""
        name = PORT.sub("", request.headers.get("host", "")).lower()
        if "*" not in hosts and (name not in hosts or request.headers.get("sec-fetch-site") == "cross-site"):
            reason = "only programs of this machine are answered; give the server an API key, or say --no_api_key"
            raise ApiError(403, reason, "forbidden")

    app = FastAPI(title="EmbedRAG", version=__version__, dependencies=[Depends(check_origin)])

    async def check_key(request: Request) -> None:
        if api_key is None:
            return
        scheme, _, given = dict(request.scope["headers"]).get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(b" "), api_key.encode()):
            raise ApiError(401, "wrong or missing API key: send Authorization: Bearer KEY", "invalid_api_key")

    schema = EmbeddingsRequest.model_json_schema()
    described = {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}

    @app.post("/v1/embeddings", dependencies=[Depends(check_key)], openapi_extra=described)
    async def embeddings(request: Request) -> Response:
        return Response(await service.embeddings(request, request.scope[TAKE]), media_type=JSON)

    @app.get("/v1/models", dependencies=[Depends(check_key)])
    async def models() -> Response:
        return Response(models_body(service.models), media_type=JSON)

    @app.get("/v1/models/{name:path}", dependencies=[Depends(check_key)])
    async def model(name: str) -> Response:
        return Response(model_body(service.models, name), media_type=JSON)

    @app.get("/health")
    async def health() -> Response:
        status = 200 if service.state == "ready" else 503
        return Response(f'{{"status": "{service.state}"}}', status, media_type=JSON)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.telemetry.page(), media_type=CONTENT_TYPE_LATEST)

    for kind in (ApiError, UserError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _refusal)
    return Counted(app, service)


class Counted:
    """An application, and its answers counted; what a request takes of the bytes is given back when it is answered."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._bytes = service.bytes
        self._telemetry = service.telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and count when the answer has left, or the client has."""
        status, start = GONE, time.monotonic()

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body"):
                # The server takes a message at once, and the one after it when the client has read (nearly) all.
                await send({**message, "more_body": True})
                message = {"type": "http.response.body"}
            await send(message)

        try:
            with self._bytes.part() as take:
                await self._app({**scope, TAKE: take}, receive, counting)
        finally:
            route = scope["path"] if scope["path"] in ROUTES else "other"
            self._telemetry.requests.labels(route, str(status)).inc()
            if route == ROUTES[0]:
                self._telemetry.seconds.observe(time.monotonic() - start)


class Server(uvicorn.Server):
    """The listener; signals are handled by who starts it."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave them alone."""
        yield


def make_server(app: ASGIApp) -> Server:
    """A listener for an application; it ends when its `should_exit` is set and the answers are sent."""
    return Server(
        uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            http=limited_connection(),
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=LINGER_SECONDS + 1,  # then uvicorn cancels, with a traceback
        )
    )


async def _refusal(request: Request, error: Exception) -> Response:
    """What the client hears of an error; those that are not foreseen go to the log too."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=GONE)
    if isinstance(error, HTTPException):  # of the router: no such path, no such method
        refused = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}", "invalid_request")
    elif isinstance(error, UserError):
        refused = ApiError(413 if isinstance(error, TooLargeError) else 400, str(error), "invalid_request")
    else:
        refused = error if isinstance(error, ApiError) else ApiError(500, "an error of the server", "server_error")
    headers: dict[str, Any] = dict(getattr(error, "headers", None) or {})  # Allow, of the router
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refused.retry_after is not None:
        headers["Retry-After"] = str(refused.retry_after)
    return Response(refused.body, refused.status, headers, JSON)


async def _disconnection(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
