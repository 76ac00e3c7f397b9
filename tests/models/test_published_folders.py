"""Folders in the shapes in which models are published: each trains and is read by others, or is refused with a reason.

The table of docs/models.md is made here: run this file as a module to write it. The text above it is written by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tabulate import tabulate

import embedrag
from embedrag.data.token_batch import TokenBatch
from embedrag.errors import UserError
from tests.models.published_folders import PUBLISHED, Published

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
TEXTS = [
    "A frog sits by the Pond and waits for flies.",
    "heron",
    "What does the heron eat? " * 3,
    "stones and rain, water: where",
    "the the the",
    "x",
    "q " * 120,
]


def trained(encoder: Any) -> Any:
    """One step of a loss that moves every vector."""
    ids = encoder.tokenizer("query", TEXTS) + encoder.tokenizer("passage", TEXTS)
    parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    vectors = encoder(TokenBatch.from_lists(ids))
    (vectors * torch.linspace(-1, 1, vectors.shape[1])).sum().backward()
    idle = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None and ".lora_" in name]
    assert not idle, "an adapter on a layer that no vector depends on"
    torch.optim.AdamW(parameters, 1e-2).step()
    return encoder.eval()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def description(config: Any) -> str:
    parts = [config.pooling, *map(str, config.head), *(["length 1"] if config.normalize else [])]
    return ", ".join([*parts, *([f"the first {config.truncate_dim} dimensions"] if config.truncate_dim else [])])


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.name)
def test_folder_trains_and_is_read_by_others_or_is_refused(published: Published, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder, saved = tmp_path / "model", tmp_path / "trained"
    folder.mkdir()
    published.make(folder)
    if published.refused:
        with pytest.raises(UserError) as error:
            embedrag.build_model(folder, **published.options)
        assert re.match(published.refused, error.value.reason), error.value.reason
        return
    encoder = embedrag.build_model(folder, query_max_len=100, passage_max_len=100, **published.options)
    config = encoder.embedding_config
    assert (description(config), config.query_prompt) == (published.vectors, published.query)
    before = encoder.eval().encode(TEXTS, "query")
    expected = {role: trained(encoder.train()).encode(TEXTS, role) for role in ("query",)}
    expected["passage"] = encoder.encode(TEXTS, "passage")
    assert cosines(before, expected["query"]).min() < 0.99999, "the step changed nothing"
    embedrag.save_model(encoder, saved)
    trust = bool(published.options.get("trust_remote_code"))
    other = SentenceTransformer(str(saved), device="cpu", trust_remote_code=trust)
    again = embedrag.load_model(saved, "cpu", trust_remote_code=trust)
    for role, encode in (("query", other.encode_query), ("passage", other.encode_document)):
        for found in (encode(TEXTS, batch_size=3), again.encode(TEXTS, role)):
            assert cosines(found, expected[role]).min() >= 0.99999, role
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(expected[role], axis=1), rtol=1e-4)
    kept(folder, saved)


def kept(folder: Path, saved: Path) -> None:
    """What the folder said and was not used is still said."""
    for name in ("config_sentence_transformers.json", "generation_config.json"):
        if not (folder / name).exists():
            continue
        old, new = (json.loads((place / name).read_text()) for place in (folder, saved))
        for key, value in old.items():
            assert value is None or (new[key] | value if isinstance(value, dict) else value) == new[key], key


TABLE = "## Table\n\nThe numbers of dimensions are those of the tiny folders of the test.\n"


def page() -> str:
    """The text of docs/models.md: what is there, with the table of the test at its end."""
    rows = [
        [
            published.models,
            published.shape + (f"; query prompt `{published.query.splitlines()[0]}`" if published.query else ""),
            f"trains: {published.vectors}"
            if not published.refused
            else f"is refused: {published.refused.lstrip('.*')}",
        ]
        for published in PUBLISHED
    ]
    table = tabulate(rows, ["models", "folder", "result"], "github", disable_numparse=True)
    return f"{PAGE.read_text(encoding='utf-8').partition(TABLE)[0]}{TABLE}\n{table}\n"


def test_page_of_models_is_that_of_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "python -m tests.models.test_published_folders writes docs/models.md"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
