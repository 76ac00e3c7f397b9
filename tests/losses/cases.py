"""Batches and settings that the tests of the losses share."""

from __future__ import annotations

import math

import torch

from embedrag.losses.contrastive import LossSettings, contrastive
from embedrag.losses.pairs import Pairs
from tests.reference import contrastive_loop

NONE = torch.empty(0, 2, dtype=torch.long)
OWNER = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3, 4])
LABELS = torch.tensor([0, 3, 4, 6, 8])
EXCLUDED = torch.tensor([[0, 4], [1, 2], [3, 8], [4, 6], [2, 5]])
TEACHER = torch.tensor([3.0, 1.0, -2.0, 5.0, math.nan, 0.5, 2.0, math.nan, 1.0])
SETTINGS = [
    LossSettings(0.1),
    LossSettings(0.1, directions=("query_passage", "passage_query")),
    LossSettings(0.1, directions=("query_passage", "passage_query"), partition_mode="separate"),
    LossSettings(0.1, directions=("query_passage", "query_query", "passage_query", "passage_passage")),
    LossSettings(0.1, hardness_strength=2.0),
    LossSettings(0.1, hardness_strength=2.0, hardness_mode="own"),
    LossSettings(0.1, hardness_strength=2.0, hardness_mode="in_batch", directions=("query_query", "query_passage")),
    LossSettings(0.1, false_negative_margin=0.0),
    LossSettings(0.1, false_negative_margin=-0.1, candidates="hard"),
    LossSettings(0.1, distillation="kl", distillation_weight=0.3),
    LossSettings(0.1, distillation="kl", distillation_weight=1.0, teacher_temperature=2.0),
    LossSettings(0.1, distillation="margin_mse", distillation_weight=0.5),
    LossSettings(
        0.1, distillation="margin_mse", hardness_strength=1.0, directions=("query_passage", "passage_passage")
    ),
]


def embeddings(queries: int, passages: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(queries * 100 + passages)
    q, p = torch.randn(queries, 7, dtype=dtype), torch.randn(passages, 7, dtype=dtype)
    return q.requires_grad_(), p.requires_grad_()


def plain(
    q: torch.Tensor,
    p: torch.Tensor,
    labels: torch.Tensor,
    excluded: torch.Tensor,
    temperature: float,
    candidates: str = "all",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss without additions. A passage belongs to the query of the last positive before it."""
    owner = torch.bucketize(torch.arange(len(p)), labels, right=True) - 1
    return contrastive(q, p, Pairs(labels, excluded, owner), LossSettings(temperature, candidates))


def both(
    settings: LossSettings, guide: bool = False, rows: slice = slice(None)
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Loss and gradients of queries and passages: ours, and by loops."""
    found = []
    for loop in (False, True):
        q, p = embeddings(5, 9)
        frozen = tuple(torch.nn.functional.normalize(side.detach().flip(0), dim=1) for side in (q, p))
        pairs = Pairs(LABELS, EXCLUDED, OWNER, TEACHER.double(), frozen if guide else None)
        if loop:
            loss = contrastive_loop(q, p, pairs, settings, guide)[rows]
        else:
            loss = contrastive(q, p, pairs, settings, rows)[0]
        (loss * torch.arange(1, 6)[rows]).sum().backward()
        found.append([loss, q.grad, p.grad])
    return found[0], found[1]
