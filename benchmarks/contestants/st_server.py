"""sentence-transformers behind the same kind of server: FastAPI, one `encode` a request, as its users write it.

python -m benchmarks.contestants.st_server MODEL
"""

from __future__ import annotations

import base64
import socket
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

app = FastAPI()
model: SentenceTransformer


class Body(BaseModel):
    """OpenAI's request, as far as the benchmark uses it."""

    input: list[str]


@app.post("/v1/embeddings")
def embeddings(body: Body) -> dict[str, Any]:
    """One call of `encode`; FastAPI runs it in a thread, several at a time."""
    vectors = model.encode(body.input, show_progress_bar=False)
    rows = [base64.b64encode(vector.tobytes()).decode() for vector in vectors]
    return {"data": [{"index": index, "embedding": row} for index, row in enumerate(rows)]}


if __name__ == "__main__":
    model = SentenceTransformer(sys.argv[1], device="cpu")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as a server of uvicorn's own has it
    print(f"ready: http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run([listener])
