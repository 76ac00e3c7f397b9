"""Embedding as a service: a request in JSON -> vectors, with limits, and errors that say what to change.

Used by `score.py` (Azure ML). Nothing here knows HTTP.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedrag.encoder import Encoder
from embedrag.errors import UserError
from embedrag.views import View

MAX_TEXTS = 2048
MAX_CHARACTERS = 1 << 20  # of one request
ROLES = {"query": "query", "document": "passage", "passage": "passage"}
MODEL_FILES = ("modules.json", "adapter_config.json", "config.json")


class Request(BaseModel):
    """What is to be embedded.

    Attributes:
        texts: at least one; none of them blank.
        prompt_name: `query`, or `document` (the same as `passage`).
        dimensions: components that are kept; None: all.
        normalize: vectors of length 1; else as the model gives them, cut.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
    prompt_name: Literal["query", "document", "passage"] = "document"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    normalize: bool = True


def read_request(raw: str | bytes | dict[str, Any]) -> Request:
    """Read `{"texts": […]}` or Azure's `{"inputs": {"data": […]}}`, each perhaps with further fields of `Request`.

    Raises:
        UserError: when it is no such request; the message is for who sent it.

    >>> read_request('{"inputs": {"data": ["a"]}, "prompt_name": "query"}').texts
    ['a']
    """
    try:
        data = raw if isinstance(raw, dict) else json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the request is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise UserError('the request must be an object such as {"texts": ["…"]}')
    if "inputs" in data:
        inputs = data["inputs"]
        if "texts" in data or not isinstance(inputs, dict) or "data" not in inputs:
            raise UserError('the request must have "texts", or {"inputs": {"data": […]}}, and not both')
        data = {key: value for key, value in data.items() if key != "inputs"} | {"texts": inputs["data"]}
    try:
        request = Request.model_validate(data)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()[:5]]
        raise UserError("; ".join(problems)) from None
    for number, text in enumerate(request.texts):
        if not text.strip():
            raise UserError(f"texts.{number}: is blank")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"texts.{number}: half of a surrogate pair, which is no text") from None
    length = sum(map(len, request.texts))
    if length > MAX_CHARACTERS:
        raise UserError(f"texts: {length:,} characters; a request may have {MAX_CHARACTERS:,}, send several")
    return request


def embed(encoder: Encoder, request: Request) -> np.ndarray:
    """[texts, d] float32.

    Raises:
        UserError: when more components are asked for than there are.
    """
    if request.dimensions and request.dimensions > encoder.dimension:
        raise UserError(f"dimensions: the model's vectors have {encoder.dimension} components")
    vectors = encoder.encode(request.texts, ROLES[request.prompt_name])
    form = View(request.dimensions)
    return form.stored(vectors) if request.normalize else form.of(vectors)


def find_model(folder: Path) -> Path:
    """The model in a folder, perhaps some levels down (Azure ML puts it under the asset's name).

    Raises:
        UserError: when there is none, or several.
    """
    for depth in range(5):
        found = sorted({path.parent for name in MODEL_FILES for path in folder.glob("*/" * depth + name)})
        # Its parts (1_Pooling) lie one level below and have a config.json too.
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{folder}: several models, {', '.join(map(str, found))}; name one of them")
    raise UserError(f"{folder}: no model in it (no {', '.join(MODEL_FILES)})")
