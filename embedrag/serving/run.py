"""`embedrag serve`: a model behind OpenAI's protocol, from its options to the exit code.

The port is taken before the model is loaded, and answers 503 until it is there. The first SIGTERM or SIGINT ends it:
running requests are finished, later ones get 503. A second one ends it at once, and so does the first while the model
is being loaded.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

from embedrag.commands.serve import ServeOptions
from embedrag.errors import UserError, need
from embedrag.export.onnx_encoder import load_onnx_encoder, onnx_file
from embedrag.models.artifacts import EXPORT_CONFIG
from embedrag.models.base_model import check_local_path
from embedrag.models.chunking import CHUNK_TOKENS
from embedrag.models.encoder import TextEncoder
from embedrag.models.load import adapter_file, load_model
from embedrag.runtime.console import say
from embedrag.runtime.stop_signals import SIGNALS
from embedrag.serving.listener import allowed_names, is_loopback, listen, url

KEY = "EMBEDRAG_API_KEY"


def run(options: ServeOptions) -> int:
    """`embedrag serve`: answer until a signal comes.

    Raises:
        UserError: before the model is loaded wherever that is possible.
    """
    need("serve", "fastapi", "orjson", "prometheus_client", "uvicorn")
    key = _key(options)
    if options.backend != "torch":
        onnx_file(options.model, options.backend)
    elif Path(options.model, EXPORT_CONFIG).expanduser().is_file():
        raise UserError(f"--model {options.model}: an export; serve it with --backend onnx")
    elif not adapter_file(Path(options.model).expanduser()):
        check_local_path(options.model, "model")
    with listen(options.host, options.port) as listener:
        return asyncio.run(_serve(options, key, listener))


async def _serve(options: ServeOptions, key: str | None, listener: socket.socket) -> int:
    from embedrag.serving.app import make_app, make_server
    from embedrag.serving.embedding_service import EmbeddingService

    path = Path(options.model).expanduser()
    name = options.served_name or (path.resolve().name if path.exists() else options.model)
    service = EmbeddingService(name, options.model, options.max_queue)
    hosts = allowed_names(options.host) if key is None and not options.no_api_key else ["*"]
    server = make_server(make_app(service, key, hosts))
    stop = _stop_signal()
    serving = asyncio.create_task(server.serve([listener]))
    loading = asyncio.create_task(asyncio.to_thread(_load, options))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            encoder = await loading
            tokens = options.max_batch_tokens or CHUNK_TOKENS.get(encoder.device.type, CHUNK_TOKENS["cpu"])
            service.open(encoder, tokens)
            say(f"ready: {url(listener)}/v1, model {name}, {options.backend} on {encoder.device}")
            await asyncio.wait((stopped, serving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        await service.close()
        server.should_exit = True
        await serving
        if not loading.done():  # no thread can be stopped, and Python would wait for it
            sys.stdout.flush()
            os._exit(0)
    return 0


def _stop_signal() -> asyncio.Event:
    """An event that the first signal sets; the second ends the process."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    seen: list[int] = []

    def asked(number: int, frame: FrameType | None) -> None:
        if seen:
            os._exit(130)
        seen.append(number)
        line = (
            f"{signal.Signals(number).name}: running requests are finished; a second signal ends the server at once\n"
        )
        os.write(1, line.encode())  # not by print, which may be at work just now
        loop.call_soon_threadsafe(event.set)

    for number in SIGNALS:
        signal.signal(number, asked)
    return event


def _load(options: ServeOptions) -> TextEncoder:
    """The model, warmed up."""
    encoder: TextEncoder
    if options.backend == "torch":
        encoder = load_model(
            options.model, options.device, options.dtype, options.base_model_path, options.trust_remote_code
        )
    else:
        encoder = load_onnx_encoder(options.model, options.backend, options.device, options.trust_remote_code)
    encoder.encode(["warm"], "query")
    return encoder


def _key(options: ServeOptions) -> str | None:
    """The API key, and a refusal to be open to a network without one."""
    key = options.api_key if options.api_key is not None else os.environ.get(KEY)
    if key is not None and (not key or not key.isascii() or not key.isprintable() or key != key.strip()):
        raise UserError(
            f"--api_key or {KEY}: empty, or with characters that no header has; letters and digits are safe"
        )
    if key is None and not options.no_api_key and not is_loopback(options.host):
        raise UserError(
            f"--host {options.host}: others could reach the server; set {KEY} (or --api_key), "
            "or say --no_api_key if everybody may use it"
        )
    return key
