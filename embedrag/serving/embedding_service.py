"""From the request to the vectors and back to bytes: everything of /v1/embeddings except the routes of HTTP.

Three threads share the work. The event loop reads requests and admits them (`embedrag.serving.admission`). One helper
thread tokenises texts and writes answers. One thread runs the model (`embedrag.serving.batcher`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from embedrag.models.encoder import TextEncoder
from embedrag.runtime.device import give_memory_back
from embedrag.serving.admission import Admission, Reservation
from embedrag.serving.batcher import Batcher
from embedrag.serving.openai_protocol import (
    ApiError,
    EmbeddingsRequest,
    answer_bytes,
    embeddings_body,
    models_of,
    no_such_model,
    read_embeddings_request,
)
from embedrag.serving.prometheus import Telemetry
from embedrag.serving.request import TooLargeError

TRIM_SECONDS = 5  # memory of earlier batches is given back to the system at most once in this time
T = TypeVar("T")


class EmbeddingService:
    """A model that answers requests.

    Attributes:
        admission: which requests are let in.
        telemetry: its figures.
        models: the names that requests may use, as OpenAI lists them.
    """

    def __init__(self, name: str, also_known_as: str, max_queue: int) -> None:
        """Begin without a model.

        Args:
            name: of the model, in answers.
            also_known_as: a second name that requests may use.
            max_queue: the most texts that may wait or be computed.
        """
        self._name = name
        self._names = (None, name, also_known_as)
        self.models = models_of(name, int(time.time()))
        self.admission = Admission(max_queue)
        self.telemetry = Telemetry(lambda: self.admission.texts.used)
        self._helper = ThreadPoolExecutor(1, "helper")
        self._trimmed = 0.0

    def open(self, encoder: TextEncoder, max_batch_tokens: int) -> None:
        """Begin to answer.

        Args:
            encoder: the model.
            max_batch_tokens: the most tokens that go through it together.
        """
        self._encoder = encoder
        self._batcher = Batcher(encoder.vectors, max_batch_tokens, self._after_batch)
        largest_answer = answer_bytes(self.admission.texts.limit, encoder.dimension, "float")
        self.admission.open(largest_answer, self._batcher.seconds_to_wait)

    async def close(self) -> None:
        """Take no more requests, and finish those that run."""
        ready = self.admission.state == "ready"
        await self.admission.close()
        if ready:
            await asyncio.to_thread(self._batcher.close)

    async def answer(self, request: Request, held: Reservation) -> bytes:
        """The body of the answer to a request to /v1/embeddings.

        Args:
            request: as it came.
            held: reservation of `admission.bytes`, for the body of the request and that of the answer.

        Raises:
            ApiError: the request can't be answered now, or not at all.
            UserError: the request is wrong.
            ClientDisconnect: the client has gone.
        """
        asked = read_embeddings_request(await self.admission.read_body(request, held))
        self._check(asked)
        size = answer_bytes(len(asked.texts), asked.dimensions or self._encoder.dimension, asked.encoding_format)
        with self.admission.admit(len(asked.texts), size, held):
            return await self._compute(request, asked)

    def _check(self, asked: EmbeddingsRequest) -> None:
        if asked.model not in self._names:
            raise no_such_model(asked.model, self.models)
        limit = self.admission.texts.limit
        if len(asked.texts) > limit:
            raise TooLargeError(f"input: this server takes {limit:,} texts at once; send several requests")
        asked.check_dimensions(self._encoder.dimension)

    async def _compute(self, request: Request, asked: EmbeddingsRequest) -> bytes:
        ids = await self._in_helper(lambda: self._encoder.tokenizer(asked.role, asked.texts))
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
        except Exception:  # the batcher has logged it
            raise ApiError(500, "the model fails on this request", "server_error") from None
        finally:
            gone.cancel()
            vectors.cancel()  # without effect when they are there
        body = await self._in_helper(lambda: embeddings_body(asked, found, tokens, self._name))
        self.telemetry.texts.inc(len(asked.texts))
        self.telemetry.tokens.inc(tokens)
        return body

    async def _in_helper(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._helper, work)

    def _after_batch(self, texts: int, tokens: int, seconds: float) -> None:
        """Count a batch; runs in the model's thread."""
        self.telemetry.batch(texts, tokens, seconds)
        if time.monotonic() - self._trimmed > TRIM_SECONDS:
            give_memory_back()  # batches of ever different sizes leave gaps, and the process would grow
            self._trimmed = time.monotonic()


async def _disconnection(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
