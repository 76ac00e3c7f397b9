"""Checks on the user's own model and data, in seconds, before anything is trained.

Packing has a check of its own in `embedrag.models.kernels.packed_attention`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from embedrag.data.collator import SamplingSettings, make_batch
from embedrag.data.token_batch import TokenBatch
from embedrag.data.token_store import TokenStore
from embedrag.errors import UserError
from embedrag.models.encoder import Encoder
from embedrag.models.kernels.fast_dropout import dropout_on
from embedrag.models.kernels.packed_attention import TOLERANCE
from embedrag.models.lora import without_gradient
from embedrag.runtime.console import say
from embedrag.runtime.distributed import ProcessGroup
from embedrag.runtime.fsdp import to_local
from embedrag.training.objective import ContrastiveObjective

GRADIENT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
LONGEST = 512
LONG_TEXT = "word " * 20_000


@torch.no_grad()
def self_test(encoder: Encoder, store: TokenStore) -> dict[str, Any]:
    """Check that the vector of a text does not depend on its batch, and that a cut text keeps its end token.

    Args:
        encoder: ready for training; it is left as it was.
        store: the data; texts of different lengths are taken from it.

    Returns:
        The results for the log: the largest 1 - cosine, or whether it holds; None when it does not apply.

    Raises:
        UserError: when training on such vectors would be useless.
    """
    tokens = _texts(store)
    with dropout_on(encoder, False):
        alone = torch.cat([encoder(tokens.select(torch.tensor([number]))) for number in range(len(tokens))])
        together = _distance(encoder(tokens), alone)
    tolerance = TOLERANCE[encoder.dtype]
    if together > tolerance:
        raise UserError(
            f"self-test: the vector of a text depends on the batch it is in (1 - cosine {together:.1e}); "
            "try `attention=padded` or `dtype=float32`, or skip the test with `no_self_test`"
        )
    return {"batch_equals_single": together, "end_token_survives_truncation": _keeps_end(encoder)}


@torch.no_grad()
def left_padding_distance(encoder: Encoder, store: TokenStore) -> float | None:
    """Largest 1 - cosine between the vectors of texts padded at the left, as many servers do, and at the right.

    It is measured for models that take the vector of the last token, before their texts are packed. It is None for
    other models: their positions would be wrong with padding at the left.
    """
    if encoder.embedding_config.pooling != "last_token":
        return None
    tokens = _texts(store)
    ids, mask = (side.flip(1).to(encoder.device) for side in _flipped(tokens).padded(encoder.pad_id))
    with dropout_on(encoder, False):
        with encoder.autocast():
            hidden = encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state[:, -1]
        return _distance(encoder.finish(hidden), encoder(tokens))


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


def _flipped(tokens: TokenBatch) -> TokenBatch:
    """Each text in reverse order: padding at the right is at the left when the result is reversed again."""
    texts = torch.split(tokens.input_ids, tokens.lengths.tolist())
    return TokenBatch.from_lists([text.flip(0).tolist() for text in texts])


def _keeps_end(encoder: Encoder) -> bool:
    """Whether a text that is cut ends with the same token as a short text.

    Raises:
        UserError: when it does not, and the vector is taken from the last token.
    """
    kept = all(
        encoder.tokenizer(role, [LONG_TEXT])[0][-1] == encoder.tokenizer(role, ["word"])[0][-1]
        for role in ("query", "passage")
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
