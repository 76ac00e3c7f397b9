"""`embedrag playground`: type a query over one's own documents, see what base and tuned model find, side by side.

The page has no script: the query is part of its address and the answer is rendered here, so texts of users go through
one escape, jinja2's. The vectors of the documents are computed once and kept in the cache. A query is compared with all
of them, so the rank of a document is exact, however far down it is.

Dimensions: p documents, D components.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedrag.commands.playground import PlaygroundOptions
from embedrag.data.text_files import read_corpus
from embedrag.errors import UserError, flag_named, need
from embedrag.models.base_model import check_local_path
from embedrag.models.encoder import Encoder
from embedrag.models.load import adapter_file, load_model, trained_from
from embedrag.retrieval.vector_cache import cached_vectors, unit
from embedrag.runtime.console import say
from embedrag.runtime.paths import cache_folder
from embedrag.serving.listener import allowed_names, listen, url

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
        text: of it.
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
        """Ranks that it rose by, above 0, or fell by the tuning."""
        return self.base - self.tuned


class Ranker:
    """A model, and the vectors that it gives all documents."""

    def __init__(self, name: str, encoder: Encoder, documents: list[str]) -> None:
        """Find the vectors in the cache, or compute them.

        Args:
            name: of the model, as it is shown.
            encoder: the model.
            documents: p texts.
        """
        self.name, self._encoder = name, encoder
        self._vectors, found = cached_vectors(encoder, documents, "passage", cache_folder(None))
        self._lengths = np.concatenate(
            [np.linalg.norm(self._vectors[start : start + BLOCK], axis=1) for start in range(0, len(documents), BLOCK)]
        )
        say(f"{name}: vectors of {len(documents):,} documents, {'found' if found else 'kept'} in the cache")

    def cosines(self, query: str) -> np.ndarray:
        """[p] cosines of a query with the documents."""
        vector = unit(self._encoder.encode([query], "query"))[0]
        blocks = range(0, len(self._vectors), BLOCK)
        products = np.concatenate([self._vectors[start : start + BLOCK] @ vector for start in blocks])
        return np.asarray(products / np.maximum(self._lengths, 1e-12))


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


def application(documents: list[str], base: Ranker, tuned: Ranker, hosts: list[str]) -> FastAPI:
    """The page as a web application.

    Args:
        documents: p texts.
        base: the base model.
        tuned: the tuned one.
        hosts: names by which the page may be asked for; others are refused, so that a foreign page can't read this one
            under a name of its own that leads here.
    """
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse
    from jinja2 import Environment, FileSystemLoader
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["tail"] = lambda name: "/".join(Path(name).parts[-2:])
    template = environment.get_template("playground.html")
    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    @app.get("/", response_class=HTMLResponse)
    async def page(q: str = "") -> str:  # async: one query at a time, on the thread that loaded the models
        query = q.strip()
        rankings = compare(documents, base.cosines(query), tuned.cosines(query)) if query else None
        return template.render(
            query=query, rankings=rankings, documents=len(documents), base=base.name, tuned=tuned.name, shown=SHOWN
        )

    return app


def run(options: PlaygroundOptions) -> int:
    """`embedrag playground`: serve the page until Ctrl-C."""
    need("serve", "fastapi", "uvicorn")  # named before the models are loaded
    import uvicorn

    names = {"baseline": options.baseline or _base_of(options.model), "model": options.model}
    for argument, name in names.items():
        if not adapter_file(Path(name).expanduser()):
            check_local_path(name, argument)
    with flag_named("--data", "--corpus"):
        documents = list(dict.fromkeys(text for text in read_corpus(options.data, options.field) if text.strip()))
    if not documents:
        raise UserError(f"--data {options.data}: no texts in it")
    with listen(options.host, options.port) as listener:
        encoders = []  # both, before the documents are embedded by one
        for (argument, name), base_of in zip(names.items(), (None, options.base_model_path), strict=True):
            encoders.append(
                load_model(name, options.device, options.dtype, base_of, options.trust_remote_code, argument=argument)
            )
        base, tuned = (Ranker(name, encoder, documents) for name, encoder in zip(names.values(), encoders, strict=True))
        app = application(documents, base, tuned, allowed_names(options.host))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        say(f"open {url(listener)} (Ctrl-C ends it)")
        server.run(sockets=[listener])
    return 0


def _base_of(model: str) -> str:
    try:
        return trained_from(model)
    except UserError as error:
        raise UserError(f"--model {error}; name the base with --baseline") from None
