"""From the request to the vectors and back to bytes: everything of a request for vectors except the routes of HTTP.

Three threads share the work. The event loop reads requests and admits them (`embedrag.serving.admission`). One helper
thread parses large bodies, tokenises texts and writes answers. One thread runs the model (`embedrag.serving.batcher`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from embedrag import __version__
from embedrag.errors import UserError
from embedrag.models.encoder import TextEncoder
from embedrag.runtime.console import say
from embedrag.runtime.device import give_memory_back
from embedrag.serving.admission import Admission, Reservation
from embedrag.serving.batcher import Batcher
from embedrag.serving.openai_protocol import (
    TAG,
    ApiError,
    EmbeddingsRequest,
    answer_bytes,
    models_of,
    no_such_model,
    read_embeddings_request,
)
from embedrag.serving.prometheus import Telemetry
from embedrag.serving.protocols import OPENAI, Protocol
from embedrag.serving.request import MAX_TEXTS, TooLargeError

SMALL = 1 << 20  # bytes of a body that is parsed at once, in some 20 ms at worst; the helper parses a larger one
TRIM_SECONDS = 5  # memory of earlier batches is given back to the system at most once in this time
T = TypeVar("T")


class EmbeddingService:
    """A model that answers requests.

    Attributes:
        admission: which requests are let in.
        telemetry: its figures.
        models: the names that requests may use, as OpenAI lists them.
    """

    def __init__(
        self, name: str, also_known_as: str, max_queue: int, trained_dims: Sequence[int] | None = None
    ) -> None:
        """Begin without a model.

        Args:
            name: of the model, in answers.
            also_known_as: a second name that requests may use.
            max_queue: the most texts that may wait or be computed.
            trained_dims: numbers of dimensions that the model was trained for; None: not known, for a hub id.
        """
        self._untold = trained_dims is not None
        self._trained_dims = frozenset(trained_dims or ())
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
        self.admission.open(largest_answer, self._batcher.seconds_for)

    async def close(self) -> None:
        """Take no more requests, and finish those that run."""
        ready = self.admission.state == "ready"
        await self.admission.close()
        if ready:
            await asyncio.to_thread(self._batcher.close)

    async def answer(
        self, request: Request, held: Reservation, protocol: Protocol = OPENAI, model: str | None = None
    ) -> bytes:
        """The body of the answer to a request for vectors.

        Args:
            request: as it came.
            held: reservation of `admission.bytes`, for the body of the request and that of the answer.
            protocol: the form of the request and of the answer.
            model: name of the model that the path has; None: the body names it.

        Raises:
            ApiError: the request can't be answered now, or not at all.
            UserError: the request is wrong.
            ClientDisconnect: the client has gone.
        """
        body = await self.admission.read_body(request, held)
        read = partial(read_embeddings_request, body, protocol.kind, model)
        asked = read() if len(body) <= SMALL else await self._in_helper(read)
        self._check(asked)
        size = answer_bytes(len(asked.texts), asked.dimensions or self._encoder.dimension, asked.encoding_format)
        with self.admission.admit(len(asked.texts), size, held):
            return await self._compute(request, asked, protocol)

    def tei_info(self) -> dict[str, Any]:
        """The answer of /info, in the form of text-embeddings-inference; empty while the model is being loaded."""
        if self.admission.state == "loading":
            return {}
        config = self._encoder.tokenizer.embedding_config
        return {
            "model_id": self._name,
            "model_type": {"embedding": {"pooling": config.pooling}},
            "max_input_length": config.max_len,
            "max_client_batch_size": min(MAX_TEXTS, self.admission.texts.limit),
            "auto_truncate": True,
            "version": __version__,
        }

    def _check(self, asked: EmbeddingsRequest) -> None:
        for name in (asked.model, asked.tokenizer):
            if (name or "").removesuffix(TAG) not in self._names and name not in self._names:
                raise no_such_model(name, self.models)
        limit = self.admission.texts.limit
        if len(asked.texts) > limit:
            raise TooLargeError(f"input: this server takes {limit:,} texts at once; send several requests")
        asked.check_dimensions(self._encoder.dimension)
        wanted = asked.dimensions or self._encoder.dimension
        if self._untold and wanted not in {self._encoder.dimension, *self._trained_dims}:
            self._untold = False
            say(
                f"note: a client asks for dimensions={wanted}, and the folder does not say that the model was trained "
                "for it (`matryoshka_dims`); such vectors may rank worse. This is said once"
            )

    def _token_ids(self, asked: EmbeddingsRequest) -> list[list[int]]:
        """Token ids of the texts, with prompts and cut to the maximum length.

        Raises:
            TooLargeError: too many characters, or a text that may not be cut is too long.
            UserError: the request has token ids that are no text of the model's tokenizer.
        """
        if asked.ids is not None:
            asked = asked.model_copy(update={"texts": self._texts_of(asked)})
        tokenizer = self._encoder.tokenizer
        ids = tokenizer(asked.role, asked.cut(tokenizer.embedding_config.max_len))
        most = getattr(tokenizer.embedding_config, f"{asked.role}_max_len")
        if asked.truncate in (False, "NONE"):
            for number, each in enumerate(ids):
                if len(each) >= most:
                    raise TooLargeError(
                        f"{asked.texts_key}.{number}: fills the {most:,} tokens of the model or is longer, and "
                        "truncate forbids to cut it; shorten it, or leave truncate out"
                    )
        return ids

    def _texts_of(self, asked: EmbeddingsRequest) -> list[str]:
        """The texts of token ids; UserError when the ids can't come from the model's tokenizer."""
        backend, texts = self._encoder.tokenizer.tokenizer, []
        special = set(backend.all_special_ids)
        for number, ids in enumerate(asked.ids or ()):
            ids = [each for each in ids if each not in special][: self._encoder.tokenizer.embedding_config.max_len]
            text = backend.decode(ids, clean_up_tokenization_spaces=False) if max(ids, default=0) < len(backend) else ""
            if not text or backend(text, add_special_tokens=False)["input_ids"] != ids:
                raise UserError(
                    f"{asked.texts_key}.{number}: no text has these ids in the model's tokenizer; send the text"
                )
            texts.append(text)
        return texts

    async def _compute(self, request: Request, asked: EmbeddingsRequest, protocol: Protocol) -> bytes:
        ids = await self._in_helper(lambda: self._token_ids(asked))
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
        body = await self._in_helper(lambda: protocol.body(asked, found, tokens, self._name))
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
