"""The routes of `embedrag serve`, the checks of who may use them, and the answers to errors.

A new route is one entry of `ROUTES`. `embedrag.serving.embedding_service` computes the answers, and
`embedrag.serving.admission` limits what the server holds for its clients.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedrag import __version__
from embedrag.errors import UserError
from embedrag.serving.admission import Reservation
from embedrag.serving.connection_limits import BACKLOG, KEEP_ALIVE_SECONDS, LINGER_SECONDS, limited_connection
from embedrag.serving.embedding_service import EmbeddingService
from embedrag.serving.openai_protocol import ApiError, EmbeddingsRequest, model_body, models_body
from embedrag.serving.request import TooLargeError

EMBEDDINGS = "/v1/embeddings"
HELD = "embedrag.held"  # in a request's scope: its reservation of bytes
GONE = 499  # the client has gone; nobody reads the answer
JSON = "application/json"
PORT = re.compile(r":\d*$")


class Endpoints:
    """What each route answers."""

    def __init__(self, service: EmbeddingService) -> None:
        self._service = service

    async def embeddings(self, request: Request) -> Response:
        """Vectors of texts, by OpenAI's protocol."""
        held: Reservation = request.scope[HELD]
        return Response(await self._service.answer(request, held), media_type=JSON)

    async def models(self) -> Response:
        """The names that requests may use."""
        return Response(models_body(self._service.models), media_type=JSON)

    async def model(self, name: str) -> Response:
        """One of these names."""
        return Response(model_body(self._service.models, name), media_type=JSON)

    async def health(self) -> Response:
        """Status 200 when requests are answered, 503 while the model is being loaded and when the server stops."""
        state = self._service.admission.state
        return Response(f'{{"status": "{state}"}}', 200 if state == "ready" else 503, media_type=JSON)

    async def metrics(self) -> Response:
        """Figures for Prometheus."""
        return Response(self._service.telemetry.page(), media_type=CONTENT_TYPE_LATEST)


@dataclass(frozen=True)
class Route:
    """A route of the server.

    Attributes:
        method: of HTTP.
        path: as FastAPI writes it.
        endpoint: a method of `Endpoints`.
        needs_key: whether the API key must be sent, if the server has one.
        openapi: further details for /openapi.json that FastAPI can't find out.
    """

    method: str
    path: str
    endpoint: Callable[..., Any]
    needs_key: bool = False
    openapi: dict[str, Any] = field(default_factory=dict)


_SCHEMA = {"required": True, "content": {JSON: {"schema": EmbeddingsRequest.model_json_schema()}}}
ROUTES = (
    Route("POST", EMBEDDINGS, Endpoints.embeddings, needs_key=True, openapi={"requestBody": _SCHEMA}),
    Route("GET", "/v1/models", Endpoints.models, needs_key=True),
    Route("GET", "/v1/models/{name:path}", Endpoints.model, needs_key=True),
    Route("GET", "/health", Endpoints.health),
    Route("GET", "/metrics", Endpoints.metrics),
)
COUNTED = {route.path for route in ROUTES if "{" not in route.path}  # by their own name; all others as "other"


def make_app(service: EmbeddingService, api_key: str | None, hosts: Sequence[str] = ("*",)) -> ASGIApp:
    """Build the application.

    Args:
        service: computes the answers.
        api_key: must be sent to the routes that need a key; None: no route needs one.
        hosts: names of the server that requests may use; "*": any name, and web pages may send requests too.
    """

    async def check_origin(request: Request) -> None:
        """Without a key, refuse web pages of other sites, and requests under names that are not allowed."""
        name = PORT.sub("", request.headers.get("host", "")).lower()
        if "*" not in hosts and (name not in hosts or request.headers.get("sec-fetch-site") == "cross-site"):
            reason = "only programs on this machine are answered; start the server with an API key to answer others"
            raise ApiError(403, reason, "forbidden")

    async def check_key(request: Request) -> None:
        if api_key is None:
            return
        scheme, _, given = dict(request.scope["headers"]).get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(b" "), api_key.encode()):
            raise ApiError(401, "wrong or missing API key: send Authorization: Bearer KEY", "invalid_api_key")

    app = FastAPI(title="EmbedRAG", version=__version__, dependencies=[Depends(check_origin)])
    endpoints = Endpoints(service)
    for route in ROUTES:
        app.add_api_route(
            route.path,
            getattr(endpoints, route.endpoint.__name__),
            methods=[route.method],
            dependencies=[Depends(check_key)] if route.needs_key else [],
            openapi_extra=route.openapi,
        )
    for kind in (ApiError, UserError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _refusal)
    return CountedApp(app, service)


class CountedApp:
    """An application that counts its answers; a request gives its bytes back when its answer has left."""

    def __init__(self, app: ASGIApp, service: EmbeddingService) -> None:
        self._app = app
        self._bytes = service.admission.bytes
        self._telemetry = service.telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it when the answer has left or the client has gone."""
        status, start = GONE, time.monotonic()

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body"):
                # uvicorn takes one message at once, and the next one when the client has read (nearly) all of it.
                await send({**message, "more_body": True})
                message = {"type": "http.response.body"}
            await send(message)

        try:
            with self._bytes.reserve() as held:
                await self._app({**scope, HELD: held}, receive, counting)
        finally:
            path = scope["path"]
            self._telemetry.requests.labels(path if path in COUNTED else "other", str(status)).inc()
            if path == EMBEDDINGS:
                self._telemetry.seconds.observe(time.monotonic() - start)


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers; the caller handles the signals."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Change no signal handler."""
        yield


def make_server(app: ASGIApp) -> Server:
    """Build a server for an application; it ends when its `should_exit` is set and the answers are sent."""
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
            timeout_graceful_shutdown=LINGER_SECONDS + 1,  # after it uvicorn cancels, with a traceback
        )
    )


async def _refusal(request: Request, error: Exception) -> Response:
    """The answer to a client for an error; uvicorn also logs unexpected errors."""
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
