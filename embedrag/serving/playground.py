"""A page in the browser: type a query, and see which of your documents the base and the tuned model find.

The page has no script. The query is part of its address, and the answer is rendered here, so all texts of users pass
through one escape, that of jinja2. The vectors of the documents are computed once and kept in the cache. A query is
compared with all of them, so the rank of a document is exact even far down the list.

Letters: p documents, D dimensions of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedrag.data.text_files import read_corpus
from embedrag.errors import UserError, need
from embedrag.models.encoder import Encoder
from embedrag.models.load import check_model_path, load_model, trained_from
from embedrag.retrieval.topk import cosines
from embedrag.retrieval.vector_cache import cached_vectors, unit
from embedrag.runtime.console import say
from embedrag.runtime.paths import cache_folder
from embedrag.serving.listener import is_loopback, is_own, listen, url

if TYPE_CHECKING:
    from fastapi import FastAPI

TEMPLATES = Path(__file__).parent / "templates"
SHOWN = 10  # documents of a ranking
BLOCK = 16_384  # documents that are compared at once


@dataclass(frozen=True)
class Hit:
    """A document in a ranking.

    Attributes:
        document: its number.
        text: of the document.
        score: cosine x 100.
        base: its rank by the base, from 1.
        tuned: its rank by the tuned model, from 1.
    """

    document: int
    text: str
    score: float
    base: int
    tuned: int

    @property
    def gain(self) -> int:
        """Number of ranks that the tuning moved it up; a number below 0 means down."""
        return self.base - self.tuned


class Ranker:
    """A model, and its vectors of all documents."""

    def __init__(self, name: str, encoder: Encoder, documents: list[str]) -> None:
        """Read the vectors from the cache, or compute them.

        Args:
            name: of the model, as the page shows it.
            encoder: the model.
            documents: p texts.
        """
        self.name, self._encoder = name, encoder
        self._vectors, found = cached_vectors(encoder, documents, "passage", cache_folder(None))
        how = "read from" if found else "computed and kept in"
        say(f"{name}: vectors of {len(documents):,} documents, {how} the cache")

    def cosines(self, query: str) -> np.ndarray:
        """[p] cosines of a query with the documents."""
        vector = unit(self._encoder.encode([query], "query"))[0]
        blocks = range(0, len(self._vectors), BLOCK)
        return np.concatenate([cosines(vector, self._vectors[start : start + BLOCK]) for start in blocks])


def compare(
    documents: list[str], base: np.ndarray, tuned: np.ndarray, shown: int = SHOWN
) -> tuple[list[Hit], list[Hit]]:
    """The best documents by the base and by the tuned model, each with its rank in both.

    Args:
        documents: p texts.
        base: [p] their cosines with the query; ties go to the earlier document.
        tuned: [p] the same by the tuned model.
        shown: documents of a ranking.

    >>> base, tuned = compare(["a", "b"], np.array([0.9, 0.5]), np.array([0.1, 0.7]), shown=1)
    >>> base
    [Hit(document=0, text='a', score=90.0, base=1, tuned=2)]
    >>> tuned[0].text, tuned[0].gain
    ('b', 1)
    """
    orders = [np.argsort(-scores, kind="stable") for scores in (base, tuned)]
    ranks = np.empty((2, len(documents)), np.int64)
    for side, order in enumerate(orders):
        ranks[side, order] = np.arange(1, len(documents) + 1)

    def hits(order: np.ndarray, scores: np.ndarray) -> list[Hit]:
        return [
            Hit(int(n), documents[n], 100 * float(scores[n]), int(ranks[0, n]), int(ranks[1, n])) for n in order[:shown]
        ]

    return hits(orders[0], base), hits(orders[1], tuned)


def application(documents: list[str], base: Ranker, tuned: Ranker, own_names_only: bool) -> FastAPI:
    """The page as a web application.

    Args:
        documents: p texts.
        base: the base model.
        tuned: the tuned one.
        own_names_only: refuse requests under other names than those of this machine. A web page can let a name of its
            own point to this machine, and could read the documents under that name.
    """
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse, PlainTextResponse
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["tail"] = lambda name: "/".join(Path(name).parts[-2:])
    template = environment.get_template("playground.html")
    app = FastAPI(openapi_url=None, redirect_slashes=False)

    @app.middleware("http")
    async def check_name(request: Any, call_next: Any) -> Any:
        if own_names_only and not is_own(request.headers.get("host", "")):
            return PlainTextResponse(
                "only requests under a name of this machine are answered, such as localhost or 127.0.0.1", 400
            )
        return await call_next(request)

    @app.get("/", response_class=HTMLResponse)
    async def page(q: str = "") -> str:  # async: one query at a time, on the thread that loaded the models
        query = q.strip()
        rankings = compare(documents, base.cosines(query), tuned.cosines(query)) if query else None
        return template.render(
            query=query, rankings=rankings, documents=len(documents), base=base.name, tuned=tuned.name, shown=SHOWN
        )

    return app


def playground(
    model: str,
    data: str,
    *,
    baseline: str | None = None,
    field: str = "text",
    base_model_path: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8080,
    device: str = "auto",
    dtype: str = "float32",
    trust_remote_code: bool = False,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        model: tuned model or adapter folder, or hub id.
        data: file of documents, or a folder with a retrieval set.
        baseline: model to compare with; None: the base that the model's folder names.
        field: key or column of the text.
        base_model_path: base of an adapter, when it has moved.
        host: address to listen on.
        port: 0 takes any free one.
        device: `auto`, `cuda`, `mps` or `cpu`.
        dtype: of the computation.
        trust_remote_code: run Python code that comes with the models.

    Raises:
        UserError: before a model is loaded, if that is possible.
    """
    need("serve", "fastapi", "uvicorn")
    import uvicorn

    names = {"baseline": baseline or _base_of(model), "model": model}
    for argument, name in names.items():
        check_model_path(name, argument)
    texts = read_corpus(data, field, argument="data")
    documents = list(dict.fromkeys(text for text in texts if text.strip()))
    if not documents:
        raise UserError("no texts in it", "data", data)
    with listen(host, port) as listener:
        # Both models are loaded before one of them embeds the documents, so that a broken one is found early.
        encoders = [
            load_model(name, device, dtype, base_of, trust_remote_code, argument=argument)
            for (argument, name), base_of in zip(names.items(), (None, base_model_path), strict=True)
        ]
        base, tuned = (Ranker(name, encoder, documents) for name, encoder in zip(names.values(), encoders, strict=True))
        app = application(documents, base, tuned, is_loopback(host))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        say(f"open {url(listener)} (Ctrl-C ends it)")
        server.run(sockets=[listener])


def _base_of(model: str) -> str:
    try:
        return trained_from(model)
    except UserError as error:
        raise UserError(f"{error.reason}; name the base with `baseline`", "model", model) from None
