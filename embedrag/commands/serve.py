"""`embedrag serve`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from embedrag.options.command import Command
from embedrag.options.field import Device, Dtype, Options, TextList, option


class ServeOptions(Options):
    """Options of `embedrag serve`."""

    model: str = option(..., "model or adapter folder, or hub id", group="serve", min_length=1)
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="serve")
    backend: Literal["torch", "onnx", "onnx_int8"] = option(
        "torch",
        "what computes the vectors; onnx and onnx_int8 read the files that embedrag export wrote",
        group="serve",
    )
    host: str = option(
        "127.0.0.1", "address to listen on; 0.0.0.0 means all addresses of this machine", group="serve", min_length=1
    )
    port: int = option(8000, "port to listen on; 0 takes any free one", group="serve", ge=0, le=65535)
    api_key: str | None = option(
        None,
        "key that clients must send; default: $EMBEDRAG_API_KEY, which does not appear in lists of processes",
        group="serve",
    )
    no_api_key: bool = option(False, "let everybody who can reach the server use it", group="serve")
    cors_allow_origin: TextList = option(
        [],
        "web pages that may send requests from a browser, such as http://localhost:3000; '*' means all, which needs a "
        "key or --no_api_key",
        group="serve",
    )
    served_name: str | None = option(
        None, "name of the model in requests and answers; default: the folder's name", group="serve", min_length=1
    )
    max_batch_tokens: int | None = option(
        None,
        "tokens that go through the model together; default: 4,096 on a CPU, 32,768 on a GPU",
        group="serve",
        ge=1,
    )
    max_queue: int = option(
        16_384,
        "texts that may wait or be computed; a request that would exceed this number gets status 429",
        group="serve",
        ge=1,
    )
    device: Device = option("auto", "where to compute", group="serve")
    dtype: Dtype = option(
        "float32", "precision of the computation (torch); auto: bfloat16 on GPUs that have it", group="serve"
    )
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="serve")


def run(options: ServeOptions) -> int:
    """Serve until a signal comes; a second signal ends the process at once."""
    from embedrag.serving.run import serve

    stop = threading.Event()
    with _set_by_signals(stop):
        ended = serve(**options.model_dump(), stop=stop)
    if not ended:  # Python would wait for the thread that loads the model
        sys.stdout.flush()
        os._exit(0)
    return 0


@contextmanager
def _set_by_signals(stop: threading.Event) -> Iterator[None]:
    def asked(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()
        name = signal.Signals(number).name
        line = f"{name}: running requests are finished; a second signal ends the server at once\n"
        os.write(1, line.encode())  # print may be interrupted in the middle of its work, and can't be called again

    earlier = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


COMMAND = Command(ServeOptions, run, "answer OpenAI's embeddings requests (extra serve)")
