"""OpenAI's protocol for embeddings: requests, and the bodies of answers and errors. Nothing here knows HTTP.

A request may have more fields than OpenAI's: `prompt_name` and `normalize` (see `embedrag.serving.request`), and those
that clients of other servers send for the same purpose.
"""

from __future__ import annotations

import base64
import codecs
import json
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, FailFast, Field, PrivateAttr, WithJsonSchema

from embedrag.errors import UserError
from embedrag.serving.request import MAX_TEXTS, ROLES, EmbedRequest, check_request

SHOWN = 1000  # characters of a message
TAG = ":latest"  # clients of Ollama put it after every name
# The words of other servers for a role: Cohere and NVIDIA (input_type), Voyage (input_type), Jina (task).
WORDS = {
    "query": "query",
    "search_query": "query",
    "retrieval.query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
    "retrieval.passage": "document",
}
Word = Literal[
    "query", "search_query", "retrieval.query", "document", "passage", "search_document", "retrieval.passage"
]
INPUT = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
        {"type": "array", "minItems": 1, "items": {"type": "integer"}},
        {"type": "array", "minItems": 1, "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}
_USAGE = {"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}}
_VECTOR = {
    "object": {"const": "embedding"},
    "index": {"type": "integer"},
    "embedding": {
        "anyOf": [
            {"type": "array", "items": {"type": "number"}},
            {"type": "string", "description": "base64 of little-endian float32"},
        ]
    },
}
ANSWER = {
    "type": "object",
    "properties": {
        "object": {"const": "list"},
        "data": {"type": "array", "items": {"type": "object", "properties": _VECTOR, "required": list(_VECTOR)}},
        "model": {"type": "string"},
        "usage": {"type": "object", "properties": _USAGE, "required": list(_USAGE)},
    },
    "required": ["object", "data", "model", "usage"],
}
_ERROR = {name: {"type": ["string", "null"]} for name in ("message", "type", "param", "code")}
ERROR = {
    "type": "object",
    "properties": {"error": {"type": "object", "properties": _ERROR, "required": list(_ERROR)}},
    "required": ["error"],
}


class ApiError(Exception):
    """A request is refused.

    Attributes:
        status: HTTP status of the answer.
        code: a word for programs.
        retry_after: seconds after which the same request may succeed; None: it will never succeed.
        close: whether the connection is closed after the answer.
    """

    def __init__(
        self, status: int, message: str, code: str, retry_after: int | None = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.close = close
        self.status = status
        self.code = code
        self.retry_after = retry_after

    @property
    def body(self) -> bytes:
        """The answer's body, in ASCII, because a message may quote half a surrogate pair, which is not valid UTF-8."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {"message": str(self)[:SHOWN], "type": kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()


def as_texts(value: Any) -> Any:
    """A list of texts, from a text or a list."""
    return [value] if isinstance(value, str) else value


class EmbeddingsRequest(EmbedRequest):
    """A request to /v1/embeddings.

    Attributes:
        texts: the field `input`, one text or a list of texts.
        model: a name of the model that is served; None: the one that is served. `NAME:query` and `NAME:document` also
            set `prompt_name`, for clients that can't send that field.
        encoding_format: `float`: numbers; `base64`: the bytes of little-endian float32.
        tokenizer: a name of the model that is served. It says that the token ids in `input` are of its tokenizer.
        input_type: another name of `prompt_name`.
        task: another name of `prompt_name`.
        truncate: `False` and `NONE`: refuse texts that are too long for the model. Otherwise their end is cut off.
        truncate_prompt_tokens: -1, the model's maximum length.
        user: ignored.
    """

    texts_key: ClassVar[str] = "input"

    texts: Annotated[
        list[str], FailFast(), BeforeValidator(as_texts), WithJsonSchema(INPUT), Field(min_length=1, alias="input")
    ]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    tokenizer: str | None = None
    input_type: Word | None = None
    task: Word | None = None
    truncate: Literal[True, False, "END", "NONE"] = True
    truncate_prompt_tokens: Literal[-1] = -1
    user: str | None = None
    _ids: list[list[int]] | None = PrivateAttr(None)

    @property
    def ids(self) -> list[list[int]] | None:
        """Token ids of the texts, for a request that has ids; its `texts` are then only placeholders."""
        return self._ids


def read_embeddings_request(
    raw: bytes,
    kind: type[EmbeddingsRequest] = EmbeddingsRequest,
    model: str | None = None,
) -> EmbeddingsRequest:
    """Read the body of a request; the errors are those of `check_request`.

    Args:
        raw: JSON.
        kind: the fields that it may have.
        model: the name of the model, if the path of the request has it; the body's own is not looked at then.

    >>> read_embeddings_request(b'{"input": "a frog", "model": "m"}').texts
    ['a frog']
    >>> read_embeddings_request(b'{"input": "a frog", "model": "m:query"}').role
    'query'
    """
    data = _read_json(raw)
    if model is not None:
        data["model"] = model
    ids = _token_ids(data, kind.texts_key)
    request = check_request(kind, data | {kind.texts_key: ["ids"] * len(ids)} if ids else data)
    request._ids = ids
    name, _, role = (request.model or "").removesuffix(TAG).rpartition(":")
    asked: dict[str, str] = {"prompt_name": request.prompt_name} if "prompt_name" in request.model_fields_set else {}
    asked |= {key: value for key in ("input_type", "task") if (value := getattr(request, key))}
    changed: dict[str, Any] = {}
    if name and role in ROLES:
        changed["model"] = name
        asked["model"] = role
    if len({ROLES[WORDS[word]] for word in asked.values()}) > 1:
        told = ", and ".join(f"{key} asks for {word}" for key, word in asked.items())
        raise UserError(f"{told}; leave one out")
    for word in asked.values():
        changed["prompt_name"] = WORDS[word]
    return request.model_copy(update=changed)


def _read_json(raw: bytes) -> dict[str, Any]:
    """The object of a body; orjson takes a tenth of the time that `json` takes for a body of 8 MiB."""
    import orjson

    try:
        if raw[:3] == codecs.BOM_UTF8 or 0 in raw[:4] or raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raw = raw.decode(json.detect_encoding(raw)).encode()
        data = orjson.loads(raw)
    except ValueError as error:
        raise UserError(f"the request is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError("the request must be an object: {…}")
    return data


def _token_ids(data: dict[str, Any], key: str) -> list[list[int]] | None:
    """The token ids of a request: a list of numbers for one text, or a list of lists. None: it has none."""
    value = data.get(key)
    if not isinstance(value, list) or not value or not isinstance(value[0], (int, list)):
        return None
    lists = value if isinstance(value[0], list) else [value]
    for number, each in enumerate(lists[: MAX_TEXTS + 1]):  # check_request refuses more
        if not isinstance(each, list) or not each or not all(type(one) is int and one >= 0 for one in each):
            raise UserError(f"{key}.{number}: is neither a text nor a list of token ids")
    if data.get("tokenizer") is None:
        raise UserError(
            f"{key}: these are token ids, and their tokenizer is not known; send texts (LangChain: "
            "OpenAIEmbeddings(check_embedding_ctx_length=False)). If the ids are of this model's own tokenizer, say so "
            'with the field "tokenizer" and the name of the model'
        )
    return lists


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
