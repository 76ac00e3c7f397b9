"""OpenAI's protocol for embeddings: requests, and the bodies of answers and errors. Nothing here knows HTTP.

A request may have two more fields than OpenAI's, `prompt_name` and `normalize` (see `embedrag.serving.request`).
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
    """A request is refused.

    Attributes:
        status: HTTP status of the answer.
        code: a word for programs.
        retry_after: seconds after which the same request may succeed; None: it will never succeed.
    """

    def __init__(self, status: int, message: str, code: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after

    @property
    def body(self) -> bytes:
        """The answer's body, in ASCII, because a message may quote half a surrogate pair, which is not valid UTF-8."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self)[:SHOWN], "type": kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()


def _as_texts(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], (int, list)):
        raise ValueError("token ids are not accepted, because the server adds prompts and cuts texts; send texts")
    return [value] if isinstance(value, str) else value


class EmbeddingsRequest(EmbedRequest):
    """A request to /v1/embeddings.

    Attributes:
        texts: the field `input`, one text or a list of texts.
        model: a name of the model that is served; None: the one that is served. `NAME:query` and `NAME:document` also
            set `prompt_name`, for clients that can't send that field.
        encoding_format: `float`: numbers; `base64`: the bytes of little-endian float32.
        user: ignored.
    """

    texts_key: ClassVar[str] = "input"

    texts: Annotated[list[str], FailFast(), BeforeValidator(_as_texts), Field(min_length=1, alias="input")]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


def read_embeddings_request(raw: bytes) -> EmbeddingsRequest:
    """Read the body of a request; the errors are those of `check_request`.

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
        raise UserError(f"model asks for {role}, and prompt_name for {request.prompt_name}; leave one out")
    return request.model_copy(update={"model": name, "prompt_name": role})


def answer_bytes(texts: int, dimensions: int, encoding_format: str) -> int:
    """The most bytes that an answer can have, without the model's name.

    Args:
        texts: number of vectors in it.
        dimensions: of a vector.
        encoding_format: `float` or `base64`.
    """
    each = 6 if encoding_format == "base64" else 16  # -0.000012345678 and a comma
    return 256 + texts * (64 + each * dimensions)


def embeddings_body(request: EmbeddingsRequest, vectors: np.ndarray, tokens: int, model: str) -> bytes:
    """The body of the answer to a request.

    Args:
        request: decides the form of the vectors.
        vectors: [n, D] as the model gives them.
        tokens: number of tokens of all texts, with prompts and special tokens.
        model: name of the model.
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
    """The list of /v1/models: the name of the model, without a role and with each role.

    Args:
        name: of the model.
        created: seconds since 1970.
    """
    names = (name, f"{name}:query", f"{name}:document")
    return [{"id": each, "object": "model", "created": created, "owned_by": "embedrag"} for each in names]


def models_body(models: list[dict[str, Any]]) -> bytes:
    """The body of the answer to /v1/models."""
    return json.dumps({"object": "list", "data": models}).encode()


def model_body(models: list[dict[str, Any]], name: str) -> bytes:
    """The body of the answer to /v1/models/NAME; ApiError when there is no such name."""
    for model in models:
        if model["id"] == name:
            return json.dumps(model).encode()
    raise no_such_model(name, models)


def no_such_model(name: str | None, models: list[dict[str, Any]]) -> ApiError:
    """The error for a name that is not served."""
    known = ", ".join(model["id"] for model in models)
    return ApiError(404, f"this server has no model {name!r}; it has {known}", "model_not_found")
