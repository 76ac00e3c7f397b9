"""Checks on the user's own model and data, in seconds, before anything is trained.

Packing has a check of its own in `embedrag.models.kernels.packed_attention`.

Letters: n texts, D dimensions of a vector.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from embedrag.data.collator import SamplingSettings, make_batch
from embedrag.data.text import PASSAGE, QUERY
from embedrag.data.token_batch import TokenBatch
from embedrag.data.token_store import TokenStore
from embedrag.errors import UserError
from embedrag.models.encoder import Encoder
from embedrag.models.kernels.fast_dropout import dropout_on
from embedrag.models.kernels.packed_attention import TOLERANCE
from embedrag.models.lora import without_gradient
from embedrag.models.pooling import pool
from embedrag.models.save import add_older_names
from embedrag.runtime.console import quiet, say
from embedrag.runtime.distributed import ProcessGroup
from embedrag.runtime.fsdp import to_local
from embedrag.training.objective import ContrastiveObjective

GRADIENT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
LONGEST = 512
LONG_TEXT = "word " * 20_000


@dataclass(frozen=True)
class PlainVectors:
    """Vectors as programs compute them that know nothing of EmbedRAG.

    Attributes:
        tokens: the texts, n of them.
        vectors: [n, D].
    """

    tokens: TokenBatch
    vectors: Tensor


@torch.no_grad()
def plain_vectors(encoder: Encoder, probes: Sequence[tuple[str, str]], trust_remote_code: bool = False) -> PlainVectors:
    """Embed texts with the tokenizer as it will be saved, in one padded batch, as sentence-transformers does.

    Padding at the left shifts the positions of some models. They get padding at the right in the saved folder.

    Args:
        encoder: before its texts are packed.
        probes: (role, text) pairs of the data.
        trust_remote_code: run Python code that comes with the tokenizer.

    Raises:
        UserError: the saved tokenizer would give other ids, or padding changes the vectors.
    """
    _keeps_end(encoder)
    saved = _as_saved(encoder, trust_remote_code)
    if saved.pad_token is None:
        reason = "the tokenizer has no padding token, which other programs need for batches; set pad_token in its "
        raise UserError(f"self-test: {reason}tokenizer_config.json, or skip the test with `no_self_test`")
    _check_ids(encoder, saved, probes)
    texts = _few(encoder, probes)
    tokens = TokenBatch.from_lists([ids for ids, _, _ in texts])
    parts = [saved(text, truncation=True, max_length=encoder.tokenizer.limit(role)) for _, role, text in texts]
    with dropout_on(encoder, False):
        alone = torch.cat([encoder(tokens.select(torch.tensor([number]))) for number in range(len(tokens))])
        distances = {}
        for side in dict.fromkeys((saved.padding_side, "right")):
            batch = saved.pad(parts, padding_side=side, return_tensors="pt").to(encoder.device)
            with encoder.autocast():
                hidden = encoder.backbone(**_taken(encoder, batch)).last_hidden_state
            vectors = encoder.finish(pool(hidden, batch["attention_mask"], encoder.embedding_config.pooling))
            distances[side] = _distance(vectors, alone)
            if distances[side] <= TOLERANCE[encoder.dtype]:
                if side != saved.padding_side:
                    say("model: saved folders pad texts at the right; padding at the left would change the vectors")
                encoder.tokenizer.tokenizer.padding_side = side
                return PlainVectors(tokens, vectors)
    shown = ", ".join(f"{distance:.1e} with padding at the {side}" for side, distance in distances.items())
    raise UserError(
        "self-test: padding changes the vectors of this model, in sentence-transformers too (1 - cosine "
        f"{shown}); name another base, or try `dtype=float32`, or skip the test with `no_self_test`"
    )


@torch.no_grad()
def self_test(encoder: Encoder, store: TokenStore, plain: PlainVectors) -> dict[str, Any]:
    """Check that the vector of a text does not depend on its batch, and is that of transformers.

    Args:
        encoder: ready for training; it is left as it was.
        store: the data; texts of different lengths are taken from it.
        plain: from `plain_vectors`.

    Returns:
        The results for the log: the largest 1 - cosine, or whether it holds.

    Raises:
        UserError: when training on such vectors would be useless.
    """
    tokens = _texts(store)
    with dropout_on(encoder, False):
        alone = torch.cat([encoder(tokens.select(torch.tensor([number]))) for number in range(len(tokens))])
        together = _distance(encoder(tokens), alone)
        from_plain = _distance(encoder(plain.tokens), plain.vectors)
    tolerance = TOLERANCE[encoder.dtype]
    if together > tolerance:
        raise UserError(
            f"self-test: the vector of a text depends on the batch it is in (1 - cosine {together:.1e}); "
            "try `attention=padded` or `dtype=float32`, or skip the test with `no_self_test`"
        )
    if from_plain > tolerance:
        raise UserError(
            f"self-test: the vectors are not those of transformers (1 - cosine {from_plain:.1e}); "
            "try `attention=padded` or `dtype=float32`, or skip the test with `no_self_test`"
        )
    return {
        "batch_equals_single": together,
        "equals_transformers": from_plain,
        "end_token_survives_truncation": _keeps_end(encoder),
    }


def _as_saved(encoder: Encoder, trust_remote_code: bool) -> Any:
    """The tokenizer as transformers reads it from a folder that we write.

    Raises:
        UserError: it can't be read.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="embedrag-tokenizer-") as folder, quiet():
        encoder.backbone.config.save_pretrained(folder)  # type: ignore[union-attr, operator]
        encoder.tokenizer.save(Path(folder))
        add_older_names(Path(folder))
        try:
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except Exception as error:  # every tokenizer class fails in its own way
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(
                f"self-test: the tokenizer can't be read again after it is saved ({reason}); name another one with "
                "`tokenizer_id`"
            ) from None


def _taken(encoder: Encoder, batch: Any) -> dict[str, Tensor]:
    """The parts of a tokenised batch that the model takes, as sentence-transformers chooses them."""
    whole: Any = encoder.backbone
    model = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    accepted = inspect.signature(model.forward).parameters
    everything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    return {name: part for name, part in batch.items() if everything or name in accepted}


def _check_ids(encoder: Encoder, saved: Any, probes: Sequence[tuple[str, str]]) -> None:
    """Compare the ids of short, long and empty texts, one by one and together.

    Raises:
        UserError: when a text has other ids.
    """
    for role in (QUERY, PASSAGE):
        prompt = getattr(encoder.embedding_config, f"{role}_prompt")
        texts = ["", "word", LONG_TEXT, *(text for kind, text in probes if kind == role)]
        expected = encoder.tokenizer(role, texts)
        limits = {"truncation": True, "max_length": encoder.tokenizer.limit(role)}
        together = saved([prompt + text for text in texts], **limits)["input_ids"]
        for text, ids, theirs in zip(texts, expected, together, strict=True):
            if theirs and not ids == theirs == saved(prompt + text, **limits)["input_ids"]:
                raise UserError(
                    f"self-test: when transformers reads the saved tokenizer ({type(saved).__name__}), it gives other "
                    f"token ids for {text[:40]!r}; name one of the class PreTrainedTokenizerFast with `tokenizer_id`"
                )


def _few(encoder: Encoder, probes: Sequence[tuple[str, str]]) -> list[tuple[list[int], str, str]]:
    """(ids, role, text with its prompt) of four texts, from the shortest to the longest of at most `LONGEST` tokens."""
    texts = []
    for role, text in (*probes, (QUERY, "word"), (PASSAGE, "some words of a text")):
        [ids] = encoder.tokenizer(role, [text])
        texts.append((ids, role, getattr(encoder.embedding_config, f"{role}_prompt") + text))
    texts.sort(key=lambda text: len(text[0]))
    short = [text for text in texts if len(text[0]) <= LONGEST] or texts[:1]
    return [short[place] for place in sorted(set(np.linspace(0, len(short) - 1, min(4, len(short))).astype(int)))]


def processes_distance(
    objective: ContrastiveObjective, store: TokenStore, neg_nums: int, processes: ProcessGroup
) -> float | None:
    """Difference between the gradient of all processes and that of one, relative to its norm; None for one process.

    Dropout is off. The gradients are cleared afterwards.

    Raises:
        UserError: when they are not the same, because the run would then learn something different.
    """
    if processes.size == 1:
        return None
    picked = [(0, row) for row in range(min(4, len(store)))]
    batch = make_batch(store, picked, SamplingSettings(neg_nums=neg_nums, seed=0))
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    found = []
    for team in (ProcessGroup(), processes):
        with dropout_on(objective, False):
            objective.backward(batch.to(objective.encoder.device), 1.0, processes=team)
        team.all_reduce_gradients(parameters)
        # With sharded weights each gradient was already summed over all processes.
        times = processes.size if objective.encoder.sharded and team.size == 1 else 1
        found.append([to_local(torch.zeros_like(p) if p.grad is None else p.grad / times) for p in parameters])
        objective.zero_grad(set_to_none=True)
    squares = torch.stack(
        [torch.stack([(b - a).double().square().sum(), a.double().square().sum()]) for a, b in zip(*found, strict=True)]
    ).sum(0)
    difference, norm = (processes.all_reduce(squares) if objective.encoder.sharded else squares).sqrt().tolist()
    quantised = any(parameter.dtype in (torch.uint8, torch.int8) for parameter in objective.parameters())
    tolerance = GRADIENT_TOLERANCE[torch.bfloat16 if quantised else objective.encoder.dtype]
    if difference > tolerance * norm:
        raise UserError(
            f"self-test: the gradient of {processes.size} processes is not the gradient of one (relative difference "
            f"{difference / norm:.1e}); please report it, and train with `num_processes=1`"
        )
    return difference / norm if norm else 0.0


def _texts(store: TokenStore) -> TokenBatch:
    """Four texts from the shortest to the longest that has at most `LONGEST` tokens."""
    lengths = np.diff(store.text_offsets)
    order = np.argsort(lengths, kind="stable")
    order = order[: max(2, int((lengths <= LONGEST).sum()))]
    places = np.linspace(0, len(order) - 1, min(4, len(order))).astype(int)
    return store.batch(np.unique(order[places]))


def _keeps_end(encoder: Encoder) -> bool:
    """Whether a text that is cut ends with the same token as a short text.

    Raises:
        UserError: when it does not, and the vector is taken from the last token.
    """
    kept = all(
        encoder.tokenizer(role, [LONG_TEXT])[0][-1] == encoder.tokenizer(role, ["word"])[0][-1]
        for role in (QUERY, PASSAGE)
    )
    if not kept and "last_token" in encoder.embedding_config.pooling:
        raise UserError(
            "self-test: the tokenizer drops the end token of cut texts, but their vector is taken from this token"
        )
    return kept


def _distance(a: Tensor, b: Tensor) -> float:
    return float((1 - F.cosine_similarity(a.double(), b.double(), dim=-1)).max())


def check_gradients(encoder: Encoder, store: TokenStore, seed: int, frozen_base: bool) -> None:
    """Run one tiny backward pass: every trainable parameter must get a gradient.

    Args:
        encoder: ready for training.
        store: the data.
        seed: of the rows that are drawn.
        frozen_base: only adapters are trained.

    Raises:
        UserError: for adapters without a gradient. Other weights without one (a head that the vectors do not use) are
            frozen, and their names are printed.
    """
    picked = [(0, row) for row in range(min(2, len(store)))]
    batch = make_batch(store, picked, SamplingSettings(neg_nums=0, seed=seed)).tokens
    texts = [batch.input_ids[a : a + 16].tolist() for a in batch.cu_seqlens[:-1]]
    with torch.random.fork_rng(devices=[encoder.device] if encoder.device.type == "cuda" else []):
        encoder.train()
        encoder(TokenBatch.from_lists(texts)).sum().backward()
    idle = without_gradient(encoder.backbone)
    encoder.zero_grad(set_to_none=True)
    if idle and frozen_base:
        raise UserError(
            f"{len(idle)} adapter weights get no gradient, for example {idle[0]}; "
            "name the layers that should get adapters with `lora_target_modules`"
        )
    for name, parameter in encoder.backbone.named_parameters():
        if name in idle:
            parameter.requires_grad_(False)
    if idle:
        say(f"model: {len(idle)} weights are frozen because the vectors do not use them: {', '.join(idle[:4])}")
