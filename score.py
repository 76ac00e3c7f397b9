"""Scoring script of an Azure ML online endpoint: Azure calls `init` once and `run` for every request.

The model lies in the folder that AZUREML_MODEL_DIR names, or below it. A request is `{"texts": ["…"]}` or
`{"inputs": {"data": ["…"]}}`; both may have the fields `prompt_name` (`query` or `document`), `dimensions` and
`normalize`. The answer is `{"embeddings": [[…]]}`. A wrong request is answered with `{"error": "…"}` and status 400. A
managed endpoint turns that into status 424 and puts the 400 into a header.
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
    """Load the model. Without one the server ends here and shows the reason."""
    global encoder
    encoder = load_model(str(find_model(Path(os.environ.get("AZUREML_MODEL_DIR", ".")))))


def run(raw_data: Any) -> Any:
    """Answer one request, which is an object or JSON of one."""
    try:
        return {"embeddings": embed(encoder, read_request(raw_data)).tolist()}
    except UserError as error:
        return _refusal(str(error))


def _refusal(message: str) -> Any:
    """An answer with status 400 under Azure's server; elsewhere its body alone."""
    try:
        from azureml_inference_server_http.api.aml_response import AMLResponse
    except ImportError:
        return {"error": message}
    return AMLResponse({"error": message}, 400, json_str=True)
