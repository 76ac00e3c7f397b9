"""A request for vectors: its fields, its limits, and errors that explain what to change. Nothing here knows HTTP.

`score.py` (Azure ML) and `embedrag serve` share it.

Letters: n texts, D dimensions of the model's vectors, d <= D of them kept.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from embedrag.errors import UserError, near_miss
from embedrag.models.embedding_format import EmbeddingFormat
from embedrag.models.encoder import TextEncoder

MAX_TEXTS = 2048  # of one request
MAX_CHARACTERS = 1 << 20  # of all texts of one request, after the cut
CUT = 64  # characters of a text that are kept for each token of the maximum length; a token has about four
ROLES = {"query": "query", "document": "passage", "passage": "passage"}  # prompt_name -> role
SHOWN = 100  # characters of a field's name, in messages


class TooLargeError(UserError):
    """A request that is only too large."""


class EmbedRequest(BaseModel):
    """Texts, and the wanted form of their vectors.

    Attributes:
        texts: at least one; none of them empty, unless the protocol has `takes_empty`.
        prompt_name: `query`, or `document` (`passage` means the same).
        dimensions: how many of the first dimensions are kept; None: all.
        normalize: whether vectors get length 1; otherwise they are only cut to `dimensions`.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    texts_key: ClassVar[str] = "texts"
    takes_empty: ClassVar[bool] = False

    # Without FailFast each wrong item would be a separate error, which takes a kilobyte for two bytes of the request.
    texts: Annotated[list[str], FailFast(), Field(min_length=1)]
    prompt_name: Literal["query", "document", "passage"] = "document"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    normalize: bool = True

    @property
    def role(self) -> str:
        """Which prompt and maximum length apply: `query` or `passage`."""
        return ROLES[self.prompt_name]

    def cut(self, max_len: int) -> list[str]:
        """The texts without what lies far beyond the maximum length, so that work for a long text is bounded.

        Args:
            max_len: tokens that are kept of a text later.

        Raises:
            TooLargeError: several texts have too many characters together. One text alone is always cut to fit.
        """
        texts = [text[: min(CUT * max_len, MAX_CHARACTERS)] for text in self.texts]
        length = sum(map(len, texts))
        if length > MAX_CHARACTERS:
            reason = f"{length:,} characters; a request may have at most {MAX_CHARACTERS:,}, send several"
            raise TooLargeError(f"{self.texts_key}: {reason}")
        return texts

    def check_dimensions(self, dimension: int) -> None:
        """Raise UserError when more dimensions are asked for than the D of the model."""
        if self.dimensions and self.dimensions > dimension:
            raise UserError(f"dimensions: the model's vectors have {dimension} dimensions")

    def finish(self, vectors: np.ndarray) -> np.ndarray:
        """Turn vectors [n, D] as the model gives them into those that were asked for, [n, d]."""
        form = EmbeddingFormat(self.dimensions)
        return form.stored(vectors) if self.normalize else form.of(vectors)


class NestedRequest(EmbedRequest):
    """A request with its texts as `{"inputs": {"data": […]}}`; errors name the texts in this form."""

    texts_key: ClassVar[str] = "inputs.data"

    texts: Annotated[list[str], FailFast(), Field(min_length=1, alias="inputs.data")]


Kind = TypeVar("Kind", bound=EmbedRequest)


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
        kind: `EmbedRequest`, or the form that a protocol gives it.
        data: as it came.

    Raises:
        TooLargeError: too many texts.
        UserError: anything else that is wrong; the message is for the client.
    """
    known = [field.alias or name for name, field in kind.model_fields.items()]
    unknown = [key for key in data if key not in known]
    if unknown:
        shown = [key[:SHOWN] for key in unknown[:5]]
        hint = near_miss(shown[0], known) or f"; there are {', '.join(known)}"
        raise UserError(f"{', '.join(shown)}: no such field{hint}")
    try:
        # Some clients send all fields that they know, with null for the default.
        request = kind.model_validate({key: value for key, value in data.items() if value is not None})
    except ValidationError as error:
        raise UserError("; ".join(map(_problem, error.errors()[:5]))) from None
    name, texts = request.texts_key, request.texts
    if len(texts) > MAX_TEXTS:
        raise TooLargeError(f"{name}: {len(texts):,} texts; a request may have at most {MAX_TEXTS:,}, send several")
    for number, text in enumerate(texts):
        if not text and not kind.takes_empty:
            raise UserError(f"{name}.{number}: is empty")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{name}.{number}: has half of a surrogate pair, which is not a character") from None
    return request


def read_request(raw: Any) -> EmbedRequest:
    """Read `{"texts": […]}` or Azure's `{"inputs": {"data": […]}}`; both may have further fields of `EmbedRequest`.

    Args:
        raw: an object, or JSON of one.

    Raises:
        UserError: when it is not such a request; the message is for the client.

    >>> read_request('{"inputs": {"data": ["a"]}, "prompt_name": "query"}').texts
    ['a']
    """
    data = read_object(raw)
    if "inputs" not in data:
        return check_request(EmbedRequest, data)
    inputs = data["inputs"]
    if "texts" in data or not isinstance(inputs, dict) or set(inputs) != {"data"}:
        raise UserError(
            'the request must have "texts", or {"inputs": {"data": […]}}, and not both; '
            'other fields belong next to "inputs", not inside it'
        )
    rest = {key: value for key, value in data.items() if key != "inputs"}
    return check_request(NestedRequest, rest | {NestedRequest.texts_key: inputs["data"]})


def embed(encoder: TextEncoder, request: EmbedRequest) -> np.ndarray:
    """Vectors of a request: [n, d] float32.

    Raises:
        TooLargeError: too many characters.
        UserError: when more dimensions are asked for than the model has.
    """
    request.check_dimensions(encoder.dimension)
    texts = request.cut(encoder.tokenizer.embedding_config.max_len)
    return request.finish(encoder.encode(texts, request.role))


def _problem(detail: Any) -> str:
    place = ".".join(map(str, detail["loc"]))[:SHOWN]
    return f"{place}: {detail['msg'].removeprefix('Value error, ')}"
