"""Serve a model by OpenAI's embeddings protocol, from loading it to the last answer.

The port is taken before the model is loaded. Until the model is there, requests get status 503. When the server is
asked to stop, running requests are finished and later ones get status 503.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from embedrag.errors import UserError, check_choice, need, raise_all
from embedrag.export.onnx_encoder import load_onnx_encoder, onnx_file
from embedrag.models.artifacts import EXPORT_CONFIG, ONNX_FILES, TRAINING_CONFIG
from embedrag.models.chunking import CHUNK_TOKENS
from embedrag.models.encoder import TextEncoder
from embedrag.models.load import check_model_path, load_model, read_json
from embedrag.runtime.console import say
from embedrag.serving.listener import ANY, is_loopback, listen, url

if TYPE_CHECKING:
    from embedrag.serving.app import Server
    from embedrag.serving.embedding_service import EmbeddingService

KEY = "EMBEDRAG_API_KEY"
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,?#@*]+")
BACKENDS = ("torch", *ONNX_FILES)
T = TypeVar("T")


def serve(
    model: str,
    *,
    base_model_path: str | None = None,
    backend: str = "torch",
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    no_api_key: bool = False,
    cors_allow_origin: Sequence[str] = (),
    served_name: str | None = None,
    max_batch_tokens: int | None = None,
    max_queue: int = 16_384,
    device: str = "auto",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    stop: threading.Event | None = None,
) -> bool:
    """Answer requests until `stop` is set.

    Args:
        model: model or adapter folder, or hub id; for another backend than torch a folder that `export` wrote.
        base_model_path: base of an adapter, when it has moved.
        backend: `torch`, `onnx` or `onnx_int8`.
        host: address to listen on.
        port: 0 takes any free one.
        api_key: that clients must send; None: the one in the environment variable EMBEDRAG_API_KEY, if it is set.
        no_api_key: everybody who reaches the server may use it.
        cors_allow_origin: web pages that may send requests from a browser, such as `https://chat.example.org`; "*": all
            pages, which needs an API key or `no_api_key`.
        served_name: name of the model in requests and answers; None: the name of its folder.
        max_batch_tokens: tokens that go through the model together, at most; None: 4,096 on a CPU, 32,768 on a GPU.
        max_queue: texts that may wait or be computed; a request that would exceed this number gets status 429.
        device: `auto`, `cuda`, `mps` or `cpu`.
        dtype: of the computation, with torch.
        trust_remote_code: run Python code that comes with the model.
        stop: set it to end the server.

    Returns:
        True when all has ended. False when `stop` was set while the model was being loaded: a thread still loads it,
        and only the end of the process ends that thread.

    Raises:
        UserError: before the model is loaded, if that is possible.
    """
    need("serve", "fastapi", "orjson", "prometheus_client", "uvicorn")
    _check_model(model, backend, dtype, base_model_path)
    key = _key(api_key, no_api_key, host)
    own_names_only = key is None and not no_api_key and is_loopback(host)
    _check_origins(cors_allow_origin, own_names_only)
    from embedrag.serving.app import make_app, make_server
    from embedrag.serving.embedding_service import EmbeddingService

    path = Path(model).expanduser()
    name = served_name or (path.resolve().name if path.exists() else model)
    service = EmbeddingService(name, model, max_queue, _trained_dims(path) if path.is_dir() else None)
    server = make_server(make_app(service, key, own_names_only, cors_allow_origin))

    def load() -> TextEncoder:
        encoder: TextEncoder
        if backend == "torch":
            encoder = load_model(model, device, dtype, base_model_path, trust_remote_code)
        else:
            encoder = load_onnx_encoder(model, backend, device, trust_remote_code)
        encoder.encode(["warm"], "query")
        return encoder

    with listen(host, port) as listener:

        def begin(encoder: TextEncoder) -> None:
            tokens = max_batch_tokens or CHUNK_TOKENS.get(encoder.device.type, CHUNK_TOKENS["cpu"])
            service.open(encoder, tokens)
            say(f"ready: {url(listener)}/v1, model {name}, {backend} on {encoder.device}")

        return asyncio.run(_serve(service, server, listener, load, begin, stop or threading.Event()))


async def _serve(
    service: EmbeddingService,
    server: Server,
    listener: socket.socket,
    load: Callable[[], TextEncoder],
    begin: Callable[[TextEncoder], None],
    stop: threading.Event,
) -> bool:
    serving = asyncio.create_task(server.serve([listener]))
    loading, stopped = _in_daemon_thread(load), _in_daemon_thread(stop.wait)
    try:
        await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            begin(await loading)
            await asyncio.wait((stopped, serving), return_when=asyncio.FIRST_COMPLETED)
        return loading.done()
    finally:
        await service.close()
        server.should_exit = True
        await serving
        loading.cancel()
        stopped.cancel()


def _in_daemon_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run something that can't be stopped. Unlike a thread of an executor, it does not delay the end of the process."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return asyncio.wrap_future(future)


def _check_model(model: str, backend: str, dtype: str, base_model_path: str | None) -> None:
    """Refuse mistakes that the arguments and the folder show, before the model is loaded."""
    check_choice("backend", backend, BACKENDS)
    if backend == "torch":
        if Path(model, EXPORT_CONFIG).expanduser().is_file():
            raise UserError("this is an export; serve it with `backend=onnx`", "model", model)
        check_model_path(model)
        return
    reason = "works only with `backend=torch`; an ONNX file has its base and its precision in it"
    wrong = {"dtype": dtype if dtype != "float32" else None, "base_model_path": base_model_path}
    raise_all(UserError(reason, argument, value) for argument, value in wrong.items() if value is not None)
    onnx_file(model, backend)


def _check_origins(origins: Sequence[str], own_names_only: bool) -> None:
    """Refuse what a browser never sends as the origin of a page, and every page for a server without a key."""
    for origin in origins:
        if origin != ANY and not ORIGIN.fullmatch(origin):
            reason = "must be scheme and host of a web page, such as https://chat.example.org or http://localhost:3000"
            raise UserError(reason, "cors_allow_origin", origin)
        if origin == ANY and own_names_only:
            reason = "every web page could use the server; name the pages, or set an API key"
            raise UserError(f"{reason} ({KEY}), or give `no_api_key`", "cors_allow_origin", origin)


def _trained_dims(folder: Path) -> list[int]:
    """The numbers of dimensions that a model was trained for, by what its folder says."""
    found: list[int] = []
    for name, key in ((TRAINING_CONFIG, "matryoshka_dims"), ("config.json", "matryoshka_dimensions")):
        path = folder / name
        value = read_json(path).get(key) if path.is_file() else None
        found += value if isinstance(value, list) else []
    return found


def _key(api_key: str | None, no_api_key: bool, host: str) -> str | None:
    """The API key; UserError when there is none and the address is open to a network."""
    key = api_key if api_key is not None else os.environ.get(KEY)
    if key is not None and (not key or not key.isascii() or not key.isprintable() or key != key.strip()):
        raise UserError(
            f"`api_key` or {KEY}: empty, or with characters that an HTTP header can't have; use letters and digits"
        )
    if key is None and not no_api_key and not is_loopback(host):
        raise UserError(
            f"others could reach the server; set {KEY} (or give `api_key`), or give `no_api_key` if everybody may "
            "use it",
            "host",
            host,
        )
    return key
