"""Scoring script of an Azure ML online endpoint: `init` once, `run` for every request.

The model is the folder that AZUREML_MODEL_DIR names, or lies below it. Requests are `{"texts": ["…"]}` or
`{"inputs": {"data": ["…"]}}`, each perhaps with `prompt_name` (query, document), `dimensions` and `normalize`; the
answer is `{"embeddings": [[…]]}`. What is wrong with a request comes back as `{"error": "…"}` with status 400
(a managed endpoint makes 424 of it, and puts the 400 into a header).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from embedrag.errors import UserError
from embedrag.models.load import find_model, load_model
from embedrag.serving.request import embed, read_request

encoder: Any = None


def init() -> None:
    """Load the model; a server that has none ends here, with the reason."""
    global encoder
    encoder = load_model(str(find_model(Path(os.environ.get("AZUREML_MODEL_DIR", ".")))))


def run(raw_data: Any) -> Any:
    """Answer one request, an object or JSON of one."""
    try:
        return {"embeddings": embed(encoder, read_request(raw_data)).tolist()}
    except UserError as error:
        return _refusal(str(error))


def _refusal(message: str) -> Any:
    """Status 400 where Azure's server is there to send it, else the body alone."""
    try:
        from azureml_inference_server_http.api.aml_response import AMLResponse
    except ImportError:
        return {"error": message}
    return AMLResponse({"error": message}, 400, json_str=True)
