"""Folders in the shapes in which models are published: each trains and is read by others, or is refused with a reason.

The table of docs/models.md is made here: run this file to write the page.
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
    return ", ".join([*parts, *([f"the first {config.truncate_dim} numbers"] if config.truncate_dim else [])])


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


INTRO = """# Base models

Which published models EmbedRAG trains, and which it refuses. The table is made by
`tests/models/test_published_folders.py`: the test makes a folder of each shape (configuration, modules, prompts and
tokenizer settings as published, tiny random weights), trains it for a step, saves it, and compares the vectors of
the saved folder in sentence-transformers with EmbedRAG's own. Every cosine is at least 0.99999. A model that is not
named here trains if its folder has one of these shapes.

## What is read from a folder

- **Modules** (`modules.json`): a Transformer, a Pooling, and then any number of Dense, LayerNorm and Normalize. Old
  and new names of sentence-transformers (versions 2 to 6) are known. Any other module is refused by its full name,
  because the vectors would be others without it.
- **Pooling**: `mean`, `cls`, `last_token`, `max`, `weighted_mean`, `mean_sqrt_len`, and several of them joined
  (`cls+mean`). `include_prompt` false (the tokens of the prompt are not pooled) is taken only without prompts.
- **Dense and LayerNorm modules** are trained in a full fine-tune. LoRA and QLoRA leave them as they are; they are
  saved with the adapter, merged and exported.
- **`truncate_dim`** is kept: only these first numbers of a vector are trained and returned.
- **Small letters**: with `do_lower_case` true, texts are turned to small letters. The saved tokenizer does it by
  itself.
- **Prompts**: for queries the prompt named `query`; otherwise a name with a word of queries and a word of retrieval
  (`retrieval.query`, `s2p_query`, `web_search_query`, `search_query`); otherwise the only name with `query` in it;
  otherwise the default prompt. For passages likewise with `document`, `passage` and `corpus`. The start of a
  training shows the chosen prompts with their names, and the names of the others. `--query_prompt` and
  `--passage_prompt` set other texts.
- **Everything else** is kept: further prompts, `similarity_fn_name`, other keys of
  `config_sentence_transformers.json` and `sentence_bert_config.json`, and `generation_config.json` are written as
  they were read.
- **Code of the model's authors** (`auto_map` in config.json) runs only with `--trust_remote_code`. Modules of their
  own (`custom_st.…` in modules.json) are never run.
  Where transformers has classes of its own for such a model, they are used without the flag, and a line says so.
- **Matryoshka**: a model that was trained with `--matryoshka_dims` says so in config.json (`is_matryoshka`,
  `matryoshka_dimensions`), which vLLM asks for.

## Token ids

- A model gets the ids that its authors' own tokenizer call gives. A decoder that pools the last token also needs an
  end token at the end of each text. If its authors' call adds none, EmbedRAG puts one into the tokenizer's own
  template: after what stands before the text (`<s>`), and inside the limit. The saved folder gives the same ids in
  every program. Folders of earlier versions keep the ids that they were trained with.
- A limit that leaves fewer than four tokens of a text, because of a long prompt, is an error. The start of a training
  says which share of the queries and passages is cut; `embedrag check --model` shows their lengths.
- Decoders are saved with padding at the left, or at the side that their own files name. GPT-2, GPT-Neo, GPT-BigCode,
  BioGPT, XGLM and others whose vectors would change with padding at the left are saved with padding at the right.
- Before the first step, the start embeds a few texts as sentence-transformers would: it reads the tokenizer as it
  will be saved, and pads the texts to one batch. If the vectors are not those of the single texts, the run stops.
  FNet and YOSO are refused in this way, because they read the padding.
- A model that has an attention of its own (GPT-Neo, MPNet, DeBERTa) is padded instead of packed.

## Table

The widths are those of the tiny folders of the test.
"""


def page() -> str:
    """The text of docs/models.md."""
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
    return f"{INTRO}\n{table}\n"


def test_page_of_models_is_that_of_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run this file: it writes docs/models.md"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
