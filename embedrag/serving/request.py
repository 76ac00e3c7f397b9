"""Embedding as a service: a request in JSON -> vectors, with limits, and errors that say what to change.

What `score.py` (Azure ML) and `embedrag serve` share. Nothing here knows HTTP.

Dimensions: n texts, D components, d <= D of them kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from embedrag.errors import UserError, near_miss
from embedrag.models.artifacts import MODEL_MARKERS
from embedrag.models.embedding_format import EmbeddingFormat
from embedrag.models.encoder import TextEncoder

MAX_TEXTS = 2048
MAX_CHARACTERS = 1 << 20  # of one request
ROLES = {"query": "query", "document": "passage", "passage": "passage"}
SHOWN = 100  # characters of a key, in messages


class TooLargeError(UserError):
    """A request that is right but for its size."""


class Request(BaseModel):
    """What is to be embedded.

    Attributes:
        texts: at least one; none of them blank.
        prompt_name: `query`, or `document` (the same as `passage`).
        dimensions: components that are kept; None: all.
        normalize: vectors of length 1; else as the model gives them, cut.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    texts_key: ClassVar[str] = "texts"

    # Without FailFast each wrong item would be an error of its own, a kilobyte for two bytes of the request.
    texts: Annotated[list[str], FailFast(), Field(min_length=1)]
    prompt_name: Literal["query", "document", "passage"] = "document"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    normalize: bool = True

    @property
    def role(self) -> str:
        """Which prompt and length apply: `query` or `passage`."""
        return ROLES[self.prompt_name]

    def check_dimensions(self, dimension: int) -> None:
        """Raise UserError when more components are asked for than the D of the model."""
        if self.dimensions and self.dimensions > dimension:
            raise UserError(f"dimensions: the model's vectors have {dimension} components")

    def finish(self, vectors: np.ndarray) -> np.ndarray:
        """[n, D] as the model gives them -> [n, d] as they were asked for."""
        form = EmbeddingFormat(self.dimensions)
        return form.stored(vectors) if self.normalize else form.of(vectors)


class NestedRequest(Request):
    """A request whose texts came as `{"inputs": {"data": […]}}`; errors name them so."""

    texts_key: ClassVar[str] = "inputs.data"

    texts: Annotated[list[str], FailFast(), Field(min_length=1, alias="inputs.data")]


Kind = TypeVar("Kind", bound=Request)


def read_object(raw: Any) -> dict[str, Any]:
    """An object, or JSON of one; UserError for anything else."""
    try:
        data = json.loads(raw) if isinstance(raw, (str, bytes, bytearray)) else raw
    except (ValueError, RecursionError) as error:
        raise UserError(f"the request is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError("the request must be an object: {…}")
    return data


def check_request(kind: type[Kind], data: dict[str, Any]) -> Kind:
    """Read a request from an object.

    Args:
        kind: `Request`, or what a protocol made of it.
        data: as it came.

    Raises:
        TooLargeError: for too many texts or characters.
        UserError: for anything else that is wrong; the message is for who sent it.
    """
    known = [field.alias or name for name, field in kind.model_fields.items()]
    unknown = [key for key in data if key not in known]
    if unknown:
        shown = [key[:SHOWN] for key in unknown[:5]]
        hint = near_miss(shown[0], known) or f"; there are {', '.join(known)}"
        raise UserError(f"{', '.join(shown)}: no such field{hint}")
    try:
        # Some clients send all fields that they know, with null for "as usual".
        request = kind.model_validate({key: value for key, value in data.items() if value is not None})
    except ValidationError as error:
        raise UserError("; ".join(map(_problem, error.errors()[:5]))) from None
    name, texts = request.texts_key, request.texts
    if len(texts) > MAX_TEXTS:
        raise TooLargeError(f"{name}: {len(texts):,} texts; a request may have at most {MAX_TEXTS:,}, send several")
    for number, text in enumerate(texts):
        if not text.strip():
            raise UserError(f"{name}.{number}: is blank")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{name}.{number}: half of a surrogate pair, which is no text") from None
    length = sum(map(len, texts))
    if length > MAX_CHARACTERS:
        raise TooLargeError(f"{name}: {length:,} characters; a request may have {MAX_CHARACTERS:,}, send several")
    return request


def read_request(raw: Any) -> Request:
    """Read `{"texts": […]}` or Azure's `{"inputs": {"data": […]}}`, each perhaps with further fields of `Request`.

    Args:
        raw: an object, or JSON of one.

    Raises:
        UserError: when it is no such request; the message is for who sent it.

    >>> read_request('{"inputs": {"data": ["a"]}, "prompt_name": "query"}').texts
    ['a']
    """
    data = read_object(raw)
    if "inputs" not in data:
        return check_request(Request, data)
    inputs = data["inputs"]
    if "texts" in data or not isinstance(inputs, dict) or set(inputs) != {"data"}:
        raise UserError(
            'the request must have "texts", or {"inputs": {"data": […]}}, and not both; '
            'other fields stand beside "inputs", not in it'
        )
    rest = {key: value for key, value in data.items() if key != "inputs"}
    return check_request(NestedRequest, rest | {NestedRequest.texts_key: inputs["data"]})


def embed(encoder: TextEncoder, request: Request) -> np.ndarray:
    """[n, d] float32.

    Raises:
        UserError: when more components are asked for than there are.
    """
    request.check_dimensions(encoder.dimension)
    return request.finish(encoder.encode(request.texts, request.role))


def find_model(folder: Path) -> Path:
    """The model in a folder, perhaps some levels down (Azure ML puts it under the asset's name).

    Raises:
        UserError: when there is none, or several.
    """
    for depth in range(5):
        found = sorted({path.parent for name in MODEL_MARKERS for path in folder.glob("*/" * depth + name)})
        # Its parts (1_Pooling) lie one level below and have a config.json too.
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{folder}: several models, {', '.join(map(str, found))}; name one of them")
    raise UserError(f"{folder}: no model in it (no {', '.join(MODEL_MARKERS)})")


def _problem(detail: Any) -> str:
    place = ".".join(map(str, detail["loc"]))[:SHOWN]
    return f"{place}: {detail['msg'].removeprefix('Value error, ')}"
