"""The protocols that the server speaks, each as the fields of its requests and the body of its answers.

A new protocol is one more `Protocol`, and an entry of `embedrag.serving.app.ROUTES` that uses it. Errors have OpenAI's
form in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, FailFast, Field, WithJsonSchema

from embedrag.serving.openai_protocol import ANSWER, INPUT, EmbeddingsRequest, as_texts, embeddings_body


class TeiRequest(EmbeddingsRequest):
    """A request to /embed or /, the routes of text-embeddings-inference; its field `inputs` has the texts.

    LlamaIndex strips texts for this route and for Ollama's, so a blank text comes as an empty one.

    Attributes:
        truncation_direction: only the end of a text is cut off.
    """

    texts_key: ClassVar[str] = "inputs"
    takes_empty: ClassVar[bool] = True

    texts: Annotated[
        list[str], FailFast(), BeforeValidator(as_texts), WithJsonSchema(INPUT), Field(min_length=1, alias="inputs")
    ]
    truncation_direction: Literal["Right", "right"] = "Right"


class OllamaRequest(EmbeddingsRequest):
    """A request to /api/embed, the route of Ollama.

    Attributes:
        options: ignored; they are about the memory and the processors of an Ollama server.
        keep_alive: ignored.
    """

    takes_empty: ClassVar[bool] = True

    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None


class OldOllamaRequest(OllamaRequest):
    """A request to /api/embeddings, the older route of Ollama; its field `prompt` has the only text."""

    texts_key: ClassVar[str] = "prompt"

    texts: Annotated[
        list[str], BeforeValidator(as_texts), WithJsonSchema({"type": "string"}), Field(max_length=1, alias="prompt")
    ]


@dataclass(frozen=True)
class Protocol:
    """How requests for vectors come, and how they are answered.

    Attributes:
        kind: the fields of a request.
        body: (request, [n, D] vectors as the model gives them, number of tokens, name of the model) -> the answer.
        answer: its JSON schema, for /openapi.json.
    """

    kind: type[EmbeddingsRequest]
    body: Callable[[EmbeddingsRequest, np.ndarray, int, str], bytes]
    answer: dict[str, Any]


def _tei_body(request: EmbeddingsRequest, vectors: np.ndarray, tokens: int, model: str) -> bytes:
    return _json(_rows(request, vectors))


def _ollama_body(request: EmbeddingsRequest, vectors: np.ndarray, tokens: int, model: str) -> bytes:
    return _json({"model": model, "embeddings": _rows(request, vectors), "prompt_eval_count": tokens})


def _old_ollama_body(request: EmbeddingsRequest, vectors: np.ndarray, tokens: int, model: str) -> bytes:
    return _json({"embedding": _rows(request, vectors)[0]})


def _rows(request: EmbeddingsRequest, vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(request.finish(vectors), np.float32)


def _json(answer: Any) -> bytes:
    import orjson

    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


_NUMBERS = {"type": "array", "items": {"type": "number"}}
_VECTORS = {"type": "array", "items": _NUMBERS}
OPENAI = Protocol(EmbeddingsRequest, embeddings_body, ANSWER)
TEI = Protocol(TeiRequest, _tei_body, _VECTORS)
OLLAMA = Protocol(OllamaRequest, _ollama_body, {"type": "object", "properties": {"embeddings": _VECTORS}})
OLD_OLLAMA = Protocol(OldOllamaRequest, _old_ollama_body, {"type": "object", "properties": {"embedding": _NUMBERS}})
