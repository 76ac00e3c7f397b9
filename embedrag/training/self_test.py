"""Checks on the user's own model and data, in seconds, before anything is trained.

Packing has a check of its own (`embedrag.models.kernels.packed_attention`), and so has the gradient of the adapters
(`embedrag.training.setup`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from embedrag.data.collator import make_batch
from embedrag.data.token_batch import TokenBatch
from embedrag.data.token_store import TokenStore
from embedrag.errors import UserError
from embedrag.models.encoder import Encoder
from embedrag.models.kernels.fast_dropout import dropout_on
from embedrag.models.kernels.packed_attention import TOLERANCE
from embedrag.models.lora import without_gradient
from embedrag.runtime.console import say
from embedrag.runtime.distributed import ProcessGroup
from embedrag.runtime.fsdp import own_part
from embedrag.training.config.options import TrainOptions
from embedrag.training.objective import ContrastiveStep

GRADIENT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.1}
LONGEST = 512
LONG_TEXT = "word " * 20_000


@torch.no_grad()
def self_test(encoder: Encoder, store: TokenStore) -> dict[str, Any]:
    """Vectors of a batch are those of its texts alone, padding side does not matter, the end token is kept.

    Args:
        encoder: ready for training; is left as it was.
        store: the data, from which texts of different lengths are taken.

    Returns:
        What was found, for the log: largest 1 - cosine, or whether it holds; None where it does not apply.

    Raises:
        UserError: when training on such vectors would be in vain.
    """
    tokens = _texts(store)
    with dropout_on(encoder, False):
        alone = torch.cat([encoder(tokens.select(torch.tensor([number]))) for number in range(len(tokens))])
        together = _distance(encoder(tokens), alone)
    tolerance = TOLERANCE[encoder.dtype]
    if together > tolerance:
        raise UserError(
            f"self-test: the vector of a text depends on the batch it is in (1 - cosine {together:.1e}); "
            "try --attention padded or --dtype float32, or go without the test: --no_self_test"
        )
    return {"batch_equals_single": together, "end_token_survives_truncation": _keeps_end(encoder)}


@torch.no_grad()
def left_padding_distance(encoder: Encoder, store: TokenStore) -> float | None:
    """Largest 1 - cosine between the vectors of texts filled up at the left, as many servers do, and at the right.

    Asked of models that take the last token's vector, before their texts are packed; None for others, whose positions
    would be wrong with padding at the left.
    """
    if encoder.embedding_config.pooling != "last_token":
        return None
    tokens = _texts(store)
    ids, mask = (side.flip(1).to(encoder.device) for side in _flipped(tokens).padded(encoder.pad_id))
    with dropout_on(encoder, False):
        with encoder.autocast():
            hidden = encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state[:, -1]
        return _distance(hidden, encoder(tokens))


def processes_distance(
    step: ContrastiveStep, store: TokenStore, neg_nums: int, processes: ProcessGroup
) -> float | None:
    """Difference of the gradient of all processes from that of one, relative to its norm; None for one process.

    Dropout is off. The gradients are cleared afterwards.

    Raises:
        UserError: when they are not the same, for the run would then learn something else.
    """
    if processes.size == 1:
        return None
    batch = make_batch(store, [(0, row) for row in range(min(4, len(store)))], neg_nums, 0)
    parameters = [parameter for parameter in step.parameters() if parameter.requires_grad]
    found = []
    for team in (ProcessGroup(), processes):
        with dropout_on(step, False):
            step.backward(batch.to(step.encoder.device), 1.0, processes=team)
        team.sum_gradients(parameters)
        # With weights in parts each of them was summed over all processes, whoever computed it.
        times = processes.size if step.encoder.sharded and team.size == 1 else 1
        found.append([own_part(torch.zeros_like(p) if p.grad is None else p.grad / times) for p in parameters])
        step.zero_grad(set_to_none=True)
    squares = torch.stack(
        [torch.stack([(b - a).double().square().sum(), a.double().square().sum()]) for a, b in zip(*found, strict=True)]
    ).sum(0)
    difference, norm = (processes.sum_(squares) if step.encoder.sharded else squares).sqrt().tolist()
    quantised = any(parameter.dtype in (torch.uint8, torch.int8) for parameter in step.parameters())
    tolerance = GRADIENT_TOLERANCE[torch.bfloat16 if quantised else step.encoder.dtype]
    if difference > tolerance * norm:
        raise UserError(
            f"self-test: the gradient of {processes.size} processes is not that of one (relative difference "
            f"{difference / norm:.1e}); please report it, and train with --num_processes 1"
        )
    return difference / norm if norm else 0.0


def _texts(store: TokenStore) -> TokenBatch:
    """The shortest, the middle and the longest text that is not too long, and one more."""
    lengths = np.diff(store.text_offsets)
    order = np.argsort(lengths, kind="stable")
    order = order[: max(2, int((lengths <= LONGEST).sum()))]
    places = np.linspace(0, len(order) - 1, min(4, len(order))).astype(int)
    return store.batch(np.unique(order[places]))


def _flipped(tokens: TokenBatch) -> TokenBatch:
    """Each text backwards, so that padding at the right comes to lie at the left when all is turned again."""
    texts = torch.split(tokens.input_ids, tokens.lengths.tolist())
    return TokenBatch.from_lists([text.flip(0).tolist() for text in texts])


def _keeps_end(encoder: Encoder) -> bool:
    """Whether a text that is cut ends with the token that a short one ends with.

    Raises:
        UserError: when it does not and the vector is that of the last token.
    """
    kept = all(
        encoder.tokenizer(role, [LONG_TEXT])[0][-1] == encoder.tokenizer(role, ["word"])[0][-1]
        for role in ("query", "passage")
    )
    if not kept and encoder.embedding_config.pooling == "last_token":
        raise UserError("self-test: the tokenizer drops the end token of cut texts, where their vector is taken")
    return kept


def _distance(a: Tensor, b: Tensor) -> float:
    return float((1 - F.cosine_similarity(a.double(), b.double(), dim=-1)).max())


def _check_gradients(encoder: Encoder, store: TokenStore, options: TrainOptions) -> None:
    """One tiny backward pass: every trainable parameter must get a gradient.

    Adapters that get none are an error; other weights (a head that the vectors do not use) are frozen and named.
    """
    batch = make_batch(store, [(0, row) for row in range(min(2, len(store)))], 0, options.seed).tokens
    texts = [batch.input_ids[a : a + 16].tolist() for a in batch.cu_seqlens[:-1]]
    with torch.random.fork_rng(devices=[encoder.device] if encoder.device.type == "cuda" else []):
        encoder.train()
        encoder(TokenBatch.from_lists(texts)).sum().backward()
    idle = without_gradient(encoder.backbone)
    encoder.zero_grad(set_to_none=True)
    if idle and options.finetune_type != "full":
        raise UserError(
            f"{len(idle)} adapter weights get no gradient, for example {idle[0]}; "
            "name the layers that should be adapted with --lora_target_modules"
        )
    for name, parameter in encoder.backbone.named_parameters():
        if name in idle:
            parameter.requires_grad_(False)
    if idle:
        say(f"model: {len(idle)} weights that the vectors do not use are frozen: {', '.join(idle[:4])}")
