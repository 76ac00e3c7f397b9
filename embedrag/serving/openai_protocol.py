"""OpenAI's protocol for embeddings: what a request says, and the bodies of answers and errors. Nothing here knows HTTP.

Beside OpenAI's fields a request may have two of ours, `prompt_name` and `normalize` (see `embedrag.serving.request`).
"""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, FailFast, Field

from embedrag.errors import UserError
from embedrag.serving.request import ROLES, EmbedRequest, check_request, read_object

SHOWN = 1000  # characters of a message


class ApiError(Exception):
    """A refusal, with what its answer says.

    Attributes:
        status: of HTTP.
        code: a word for programs.
        retry_after: seconds after which the same request may be taken; None: never.
    """

    def __init__(self, status: int, message: str, code: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after

    @property
    def body(self) -> bytes:
        """The answer's body, in ASCII: a message may repeat half a surrogate pair, which is no UTF-8."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self)[:SHOWN], "type": kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()


def _as_texts(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], (int, list)):
        raise ValueError("token ids are not taken, for prompts and lengths are the server's part; send texts")
    return [value] if isinstance(value, str) else value


class EmbeddingsRequest(EmbedRequest):
    """A request to /v1/embeddings.

    Attributes:
        texts: `input`, one text or a list.
        model: a name of the model that is served; None: whatever is served. `NAME:query` and `NAME:document` stand for
            the name and `prompt_name`, for clients that can't send the latter.
        encoding_format: numbers, or the bytes of little-endian float32 in base64.
        user: taken and not looked at.
    """

    texts_key: ClassVar[str] = "input"

    texts: Annotated[list[str], FailFast(), BeforeValidator(_as_texts), Field(min_length=1, alias="input")]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


def read_embeddings_request(raw: bytes) -> EmbeddingsRequest:
    """Read a request's body; the errors are those of `check_request`.

    >>> read_embeddings_request(b'{"input": "a frog", "model": "m"}').texts
    ['a frog']
    >>> read_embeddings_request(b'{"input": "a frog", "model": "m:query"}').role
    'query'
    """
    request = check_request(EmbeddingsRequest, read_object(raw))
    name, _, role = (request.model or "").rpartition(":")
    if not name or role not in ROLES:
        return request
    if "prompt_name" in request.model_fields_set and request.role != ROLES[role]:
        raise UserError(f"model says {role}, prompt_name {request.prompt_name}; leave one out")
    return request.model_copy(update={"model": name, "prompt_name": role})


def answer_bytes(texts: int, components: int, encoding_format: str) -> int:
    """Bytes of an answer at most, but for the model's name.

    Args:
        texts: vectors in it.
        components: of a vector.
        encoding_format: `float` or `base64`.
    """
    each = 6 if encoding_format == "base64" else 16  # -0.000012345678 and a comma
    return 256 + texts * (64 + each * components)


def embeddings_body(request: EmbeddingsRequest, vectors: np.ndarray, tokens: int, model: str) -> bytes:
    """The answer to a request.

    Args:
        request: tells the form.
        vectors: [n, D] as the model gives them.
        tokens: of all texts, prompts and special tokens included.
        model: its name.
    """
    import orjson

    kept = np.ascontiguousarray(request.finish(vectors), "<f4")
    in_bytes = request.encoding_format == "base64"
    rows: Any = [base64.b64encode(row).decode() for row in kept] if in_bytes else kept
    answer = {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def models_of(name: str, created: int) -> list[dict[str, Any]]:
    """What /v1/models lists of a model: its name, alone and with a role; `created` in seconds since 1970."""
    names = (name, f"{name}:query", f"{name}:document")
    return [{"id": each, "object": "model", "created": created, "owned_by": "embedrag"} for each in names]


def models_body(models: list[dict[str, Any]]) -> bytes:
    """The answer to /v1/models."""
    return json.dumps({"object": "list", "data": models}).encode()


def model_body(models: list[dict[str, Any]], name: str) -> bytes:
    """The answer to /v1/models/NAME; ApiError for one that is not there."""
    for model in models:
        if model["id"] == name:
            return json.dumps(model).encode()
    raise no_such_model(name, models)


def no_such_model(name: str | None, models: list[dict[str, Any]]) -> ApiError:
    """The refusal of a name."""
    known = ", ".join(model["id"] for model in models)
    return ApiError(404, f"the model {name!r} is not here; there is {known}", "model_not_found")
