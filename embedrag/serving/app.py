"""The routes of `embedrag serve`, the checks of who may use them, and the answers to errors.

A new route is one entry of `ROUTES`. `embedrag.serving.embedding_service` computes the answers, and
`embedrag.serving.admission` limits what the server holds for its clients.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Response, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedrag import __version__
from embedrag.errors import UserError
from embedrag.serving.admission import Reservation
from embedrag.serving.connection_limits import BACKLOG, KEEP_ALIVE_SECONDS, LINGER_SECONDS, limited_connection
from embedrag.serving.embedding_service import EmbeddingService
from embedrag.serving.listener import is_own
from embedrag.serving.openai_protocol import ERROR, ApiError, model_body, models_body
from embedrag.serving.protocols import OLD_OLLAMA, OLLAMA, OPENAI, TEI, Protocol
from embedrag.serving.request import TooLargeError

HELD = "embedrag.held"  # in a request's scope: its reservation of bytes
GONE = 499  # the client has gone; nobody reads the answer
JSON = "application/json"
CORS_SECONDS = 600  # for which a browser keeps the answer to the question whether a page may send requests


class Endpoints:
    """What each route answers."""

    def __init__(self, service: EmbeddingService) -> None:
        self._service = service

    async def embeddings(self, request: Request) -> Response:
        """Vectors of texts, by OpenAI's protocol."""
        return await self._vectors(request, OPENAI)

    async def deployment(self, request: Request, name: str) -> Response:
        """The same at the address that Azure OpenAI has; the model's name is in the path."""
        return await self._vectors(request, OPENAI, name)

    async def tei_embed(self, request: Request) -> Response:
        """Vectors of texts, as text-embeddings-inference gives them."""
        return await self._vectors(request, TEI)

    async def tei_info(self) -> Response:
        """The model and its limits, in the form of text-embeddings-inference."""
        return Response(json.dumps(self._service.tei_info()), media_type=JSON)

    async def ollama_embed(self, request: Request) -> Response:
        """Vectors of texts, as Ollama gives them."""
        return await self._vectors(request, OLLAMA)

    async def ollama_embeddings(self, request: Request) -> Response:
        """The vector of one text, as older clients of Ollama ask for it."""
        return await self._vectors(request, OLD_OLLAMA)

    async def ollama_tags(self) -> Response:
        """The names that requests may use, as Ollama lists them."""
        names = [{"name": model["id"], "model": model["id"]} for model in self._service.models]
        return Response(json.dumps({"models": names}), media_type=JSON)

    async def openapi(self, request: Request) -> Response:
        """This description of the routes."""
        return Response(json.dumps(request.app.openapi()), media_type=JSON)

    async def _vectors(self, request: Request, protocol: Protocol, model: str | None = None) -> Response:
        held: Reservation = request.scope[HELD]
        return Response(await self._service.answer(request, held, protocol, model), media_type=JSON)

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
        protocol: of a request for vectors, which is described in /openapi.json; None: another route.
    """

    method: str
    path: str
    endpoint: Callable[..., Any]
    needs_key: bool = False
    protocol: Protocol | None = None

    @property
    def openapi(self) -> dict[str, Any]:
        """Details for /openapi.json that FastAPI can't find out."""
        answer = {"200": _content(self.protocol.answer)} if self.protocol else {}
        body = {"requestBody": _content(self.protocol.kind.model_json_schema())} if self.protocol else {}
        return body | {"responses": answer | {"default": _content(ERROR) | {"description": "An error."}}}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {JSON: {"schema": schema}}}


ROUTES = (
    Route("POST", "/v1/embeddings", Endpoints.embeddings, needs_key=True, protocol=OPENAI),
    Route("POST", "/embeddings", Endpoints.embeddings, needs_key=True, protocol=OPENAI),
    Route("POST", "/openai/deployments/{name}/embeddings", Endpoints.deployment, needs_key=True, protocol=OPENAI),
    Route("POST", "/openai/v1/embeddings", Endpoints.embeddings, needs_key=True, protocol=OPENAI),
    Route("POST", "/embed", Endpoints.tei_embed, needs_key=True, protocol=TEI),
    Route("POST", "/", Endpoints.tei_embed, needs_key=True, protocol=TEI),
    Route("POST", "/api/embed", Endpoints.ollama_embed, needs_key=True, protocol=OLLAMA),
    Route("POST", "/api/embeddings", Endpoints.ollama_embeddings, needs_key=True, protocol=OLD_OLLAMA),
    Route("GET", "/v1/models", Endpoints.models, needs_key=True),
    Route("GET", "/models", Endpoints.models, needs_key=True),
    Route("GET", "/v1/models/{name:path}", Endpoints.model, needs_key=True),
    Route("GET", "/info", Endpoints.tei_info, needs_key=True),
    Route("GET", "/api/tags", Endpoints.ollama_tags, needs_key=True),
    Route("GET", "/health", Endpoints.health),
    Route("GET", "/", Endpoints.health),
    Route("GET", "/metrics", Endpoints.metrics),
    Route("GET", "/openapi.json", Endpoints.openapi),
)
TIMED = {route.path for route in ROUTES if route.protocol}


def make_app(
    service: EmbeddingService, api_key: str | None, own_names_only: bool = False, origins: Sequence[str] = ()
) -> ASGIApp:
    """Build the application.

    Args:
        service: computes the answers.
        api_key: must be sent to the routes that need a key; None: no route needs one.
        own_names_only: refuse requests under other names than those of this machine, and of web pages.
        origins: web pages that may send requests all the same, such as `http://localhost:3000`; "*": all.
    """

    async def check_origin(request: Request) -> None:
        """Without a key, refuse web pages of other sites, and requests under names that are not allowed."""
        pages = request.headers.getlist("origin")
        if own_names_only and not (is_own(request.headers.get("host", "")) and _may_ask(pages, request.headers)):
            reason = (
                "only programs on this machine are answered; to answer others, start the server with an API key, or "
                "with the address of the web page in `cors_allow_origin`"
            )
            raise ApiError(403, reason, "forbidden")

    def _may_ask(pages: list[str], headers: Headers) -> bool:
        """Whether no web page asks, or one that is named in `origins`, or one of this server."""
        if pages and all(page in origins for page in pages):
            return True
        site = headers.getlist("sec-fetch-site")
        return all(map(is_own, pages)) and not {"cross-site", "same-site"} & set(site)

    async def check_key(request: Request) -> None:
        if api_key is None:
            return
        given = [value.encode("latin-1") for value in request.headers.getlist("api-key")]  # of clients of Azure
        for value in request.headers.getlist("authorization"):
            scheme, _, word = value.encode("latin-1").partition(b" ")
            given.append(word.strip(b" ") if scheme.lower() == b"bearer" else b"")
        if not given or not all(hmac.compare_digest(word, api_key.encode()) for word in given):
            raise ApiError(401, "wrong or missing API key: send Authorization: Bearer KEY", "invalid_api_key")

    # No page of FastAPI's own: it would run a script of another server under this server's name.
    app = FastAPI(
        title="EmbedRAG",
        version=__version__,
        dependencies=[Depends(check_origin)],
        openapi_url=None,
        redirect_slashes=False,  # a redirect would name the host that the request names
    )
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
            max_age=CORS_SECONDS,
        )
    endpoints = Endpoints(service)
    # FastAPI writes them into /openapi.json; check_key is what checks them.
    keys = [Security(HTTPBearer(auto_error=False)), Security(APIKeyHeader(name="api-key", auto_error=False))]
    for route in ROUTES:
        endpoint = getattr(endpoints, route.endpoint.__name__)
        dependencies = [Depends(check_key), *keys] if route.needs_key else []
        app.add_api_route(
            route.path, endpoint, methods=[route.method], dependencies=dependencies, openapi_extra=route.openapi
        )
        if route.method == "GET":
            app.add_api_route(
                route.path, endpoint, methods=["HEAD"], dependencies=dependencies, include_in_schema=False
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
        inner = dict(scope)  # the router writes the route that it finds into it

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
                inner[HELD] = held
                await self._app(inner, receive, counting)
        finally:
            path = inner["route"].path if "route" in inner else "other"
            self._telemetry.requests.labels(path, str(status)).inc()
            if path in TIMED:
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
    if refused.close:
        headers["Connection"] = "close"
    if refused.retry_after is not None:
        headers["Retry-After"] = str(refused.retry_after)
    return Response(refused.body, refused.status, headers, JSON)
