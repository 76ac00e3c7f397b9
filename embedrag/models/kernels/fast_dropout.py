"""Dropout that is fast on a CPU.

torch draws one random number for each element, one after the other. With adapters on every linear layer this takes
30 % of a LoRA step, more than any matrix product. Here one 64-bit draw serves four elements (16 bits each), so the
probability is exact to 1 / 65536. Other devices use torch's own kernels.

Letters of the attention: m texts, H heads, L tokens of a text, D dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 1 << 16


@contextmanager
def dropout_on(module: nn.Module, on: bool) -> Iterator[None]:
    """Put all layers into training mode, or out of it, while the block runs. Afterwards each layer is as before.

    Only layers in the other mode are written to. Writing to all of them, as `train` does, takes a tenth of the time of
    a short text.
    """
    changed = [layer for layer in module.modules() if layer.training != on]
    for layer in changed:
        layer.training = on
    try:
        yield
    finally:
        for layer in changed:
            layer.training = not on


class FastDropout(nn.Dropout):
    """Like `nn.Dropout`: in training, set elements to 0 with probability p and multiply the others by 1 / (1 - p).

    The draws follow torch's seed, so they are repeated when its state is restored. They are not the draws of
    `nn.Dropout`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements of a tensor of any shape."""
        return fast_dropout(input, self.p) if self.training else input


def fast_dropout(input: Tensor, p: float) -> Tensor:
    """Set elements to 0 with probability p and multiply the others by 1 / (1 - p)."""
    if p == 0 or input.device.type != "cpu":
        return F.dropout(input, p)
    dropped: Tensor = _Drop.apply(input, p)  # type: ignore[no-untyped-call]
    return dropped


def attention_with_dropout(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, p: float) -> Tensor:
    """dropout(softmax(scale * q @ k.T)) @ v. The backward pass keeps the weights once, and one byte for each dropout.

    Args:
        q: queries [m, H, L, D].
        k: keys [m, H, L, D].
        v: values [m, H, L, D].
        mask: [L, L], True if the token of the row sees the token of the column; None: every token sees all.
        scale: the scores are multiplied by it.
        p: probability that a weight is set to 0.

    Returns:
        [m, H, L, D].
    """
    out: Tensor = _DropAttention.apply(q, k, v, mask, scale, p)  # type: ignore[no-untyped-call]
    return out


class _DropAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, p: float) -> Tensor:
        scores = (q * scale) @ k.transpose(2, 3)
        weights = (scores if mask is None else scores.masked_fill_(~mask, float("-inf"))).softmax(-1)
        keep, ctx.kept_scale = dropout_mask(weights, p)
        out = torch.mul(weights, keep, out=scores) @ v
        out *= ctx.kept_scale
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, weights, keep, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, keep, out = ctx.saved_tensors
        (gradient,) = gradients
        # sum(weights * gradient of the weights) over a row = sum(out * gradient of out) (FlashAttention, arXiv
        # 2205.14135).
        along = (gradient * out).sum(-1, keepdim=True)
        gradient = gradient * ctx.kept_scale
        kept = weights * keep
        of_v = kept.transpose(2, 3) @ gradient
        of_scores = torch.matmul(gradient, v.transpose(2, 3), out=kept)
        of_scores.mul_(keep).sub_(along).mul_(weights)
        of_q = (of_scores @ k).mul_(ctx.scale)
        of_k = (of_scores.transpose(2, 3) @ q).mul_(ctx.scale)
        return of_q, of_k, of_v, None, None, None


def dropout_mask(like: Tensor, p: float) -> tuple[Tensor, float]:
    """A mask of the shape of `like` (int8, 1 for an element that is kept), and the factor for the kept elements."""
    if like.device.type != "cpu":
        return torch.empty_like(like, dtype=torch.int8).bernoulli_(1 - p), 1 / (1 - p)
    return random_keep(like.numel(), p).view(like.shape), 1 / (1 - round(p * LEVELS) / LEVELS)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float) -> Tensor:
        keep, ctx.scale = dropout_mask(input, p)
        ctx.save_for_backward(keep)
        return (input * keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return (gradients[0] * keep).mul_(ctx.scale), None


def random_keep(count: int, p: float) -> Tensor:
    """[count] independent draws from torch's seed: 1 with probability 1 - p, exact to 1 / 65536; otherwise 0.

    The type is int8 because a product with truth values takes three times as long on a CPU.
    """
    seed = int(torch.randint(0, 2**62, ()))
    draws = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**64, -(-count // 4), dtype=np.uint64)
    return torch.from_numpy(draws.view(np.uint16)[:count] >= round(p * LEVELS)).view(torch.int8)


def replace_dropout(model: nn.Module) -> None:
    """Replace every `nn.Dropout` of a model by a `FastDropout`."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, FastDropout(child.p).train(child.training))
