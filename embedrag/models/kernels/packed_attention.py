"""Packed attention: texts lie one after the other without padding, and each text attends only to itself.

All layers except the attention treat each token by itself, so a batch can go through the model as one row [1, T]. Only
the attention must know where each text starts and ends. It is a function that is registered with transformers, and gets
these places as `packing`. On a CPU it makes one call for each group of texts of equal length, which costs less than
padding; GPUs have a kernel for it.

A model that does not pass `packing` on, or that counts positions in another way, would mix texts without an error. So
`pack` first compares packed texts with single texts on the model itself. When they differ, the caller pads.

Letters: T tokens, n texts, m texts of equal length, L tokens of such a text, H heads, G heads of keys and values, D
dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embedrag.models.kernels.fast_dropout import attention_with_dropout, dropout_on

NAME = "embedrag_packed"
HALF = (torch.float16, torch.bfloat16)
LONG_WINDOW = 512
# Largest 1 - cosine at which two states count as equal. Rounding gives less; texts that mix give far more (0.1 and
# above).
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}


class PackingError(Exception):
    """The model can't be packed: texts in one row would mix, or get other vectors."""


@dataclass
class Packing:
    """Where the texts of a row start and end.

    Attributes:
        cu_seqlens: start of each text, and the end of the last one: [n + 1] int32 on the device.
        lengths: tokens of each text. Texts of equal length should be neighbours.
        calls: how often `packed_attention` was called with it.
    """

    cu_seqlens: Tensor
    lengths: list[int]
    calls: int = 0

    @cached_property
    def groups(self) -> list[tuple[int, int]]:
        """(texts, length) of each run of texts of equal length."""
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]

    def position_ids(self, offset: int) -> Tensor:
        """[1, T] position of each token in its text, counted from `offset`."""
        total = sum(self.lengths)  # computed on the CPU, so that nothing waits for a GPU
        starts = torch.repeat_interleave(self.cu_seqlens[:-1], self.cu_seqlens.diff(), output_size=total)
        return (torch.arange(total, device=starts.device) - starts + offset)[None]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **unknown: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: [1, H, T, D] -> [1, T, H, D].

    Args:
        module: the calling layer; its settings decide whether attention is causal.
        query: [1, H, T, D].
        key: [1, G, T, D]; G divides H.
        value: [1, G, T, D].
        attention_mask: None, because nothing is padded.
        packing: where the texts start and end.
        dropout: of the attention weights; on a CPU only.
        scaling: the scores are multiplied by it; None: 1 / sqrt(D).
        is_causal: whether a token sees only the tokens before it; None: as in `module`.
        sliding_window: a token sees only those less than `sliding_window` places away; None: all.
        **unknown: other arguments of the caller.

    Raises:
        PackingError: the model asks for a kind of attention that this function does not have.
    """
    odd = [name for name in ("softcap", "position_bias", "s_aux") if unknown.get(name) is not None]
    if packing is None or attention_mask is not None or odd:
        raise PackingError(f"its attention has {', '.join(odd) or 'a mask'}")
    packing.calls += 1
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    dtype, device = value.dtype, value.device.type
    if torch.is_autocast_enabled(device):
        # Rotary positions, and norms of queries and keys, return float32; a kernel needs one type.
        dtype = torch.get_autocast_dtype(device)
    q, k, v = (states[0].transpose(0, 1).to(dtype) for states in (query, key, value))
    if device == "cpu":
        return _by_length(q, k, v, packing, dropout, scaling, causal, sliding_window)[None], None
    if dtype not in HALF:
        raise PackingError(f"there is no packed attention in {dtype} on a GPU")
    return _varlen(q, k, v, packing, scaling, causal, sliding_window)[None], None


def packed_states(backbone: nn.Module, input_ids: Tensor, packing: Packing, offset: int) -> Tensor:
    """Hidden states [T, hidden size] of packed texts.

    Args:
        backbone: a model after `pack`.
        input_ids: [T].
        packing: where the texts start and end.
        offset: position of the first token of each text, from `pack`.
    """
    positions = packing.position_ids(offset)
    output = backbone(input_ids=input_ids[None], position_ids=positions, packing=packing)
    states: Tensor = output.last_hidden_state[0]
    return states


def pack(backbone: nn.Module, pad_id: int, dtype: torch.dtype) -> int:
    """Switch a model to packed attention, after a check on the model itself.

    A few texts of random tokens go through the unchanged model one by one, and then packed. Each token must get the
    same state. When one text changes, the states of the other texts must stay the same. The same comparison finds the
    position of a first token: 0, or the position after the padding token (RoBERTa).

    Args:
        backbone: in the precision in which it will compute.
        pad_id: id of the padding token.
        dtype: of the computation; the states may have a finer type.

    Returns:
        Position of the first token of each text.

    Raises:
        PackingError: with the reason; the model is then as before.
    """
    model: Any = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone  # type: ignore[operator]
    device = next(backbone.parameters()).device
    usual = model.config._attn_implementation
    try:
        if type(model).__module__.startswith("transformers_modules"):
            raise PackingError("it runs Python code of its own")
        if device.type not in ("cpu", "cuda"):
            raise PackingError(f"there is no packed attention for {device.type}")
        texts = _probe_texts(model.config, pad_id, device)
        with torch.no_grad(), dropout_on(backbone, False):
            expected = [backbone(input_ids=text[None]).last_hidden_state[0] for text in texts]
            _register(model)
            offset = _first_offset_that_fits(backbone, texts, expected, (0, pad_id + 1), TOLERANCE[dtype])
    except Exception as error:
        model.set_attn_implementation(usual)
        if isinstance(error, PackingError):
            raise
        # A model of another author may raise anything on arguments that it does not know.
        raise PackingError(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    return offset


def _register(model: Any) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)


def _probe_texts(config: Any, pad_id: int, device: torch.device) -> list[Tensor]:
    """Texts of different and of equal lengths. One is longer than the sliding window, unless that is very long."""
    window = getattr(config, "sliding_window", None) or 0
    lengths = (window + 8 if window <= LONG_WINDOW else 12, 9, 9, 5)
    tokens = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size - 1, (sum(lengths),), generator=tokens)
    return list(_split((ids + (ids >= pad_id)).to(device), lengths))  # any token except the padding token


def _first_offset_that_fits(
    backbone: nn.Module, texts: list[Tensor], expected: list[Tensor], offsets: tuple[int, ...], tolerance: float
) -> int:
    lengths = [len(text) for text in texts]
    cu_seqlens = torch.tensor([0, *lengths], device=texts[0].device).cumsum(0).int()
    packing = Packing(cu_seqlens, lengths)
    farthest = []
    for offset in offsets:
        states = _split(packed_states(backbone, torch.cat(texts), packing, offset), lengths)
        farthest.append(max(_distance(a, b) for a, b in zip(states, expected, strict=True)))
        if farthest[-1] > tolerance:
            continue
        changed = [texts[0], texts[1].flip(0), *texts[2:]]
        moved = _split(packed_states(backbone, torch.cat(changed), packing, offset), lengths)
        leak = max(_distance(a, b) for i, (a, b) in enumerate(zip(moved, states, strict=True)) if i != 1)
        if leak > tolerance:
            raise PackingError(f"its texts see each other (1 - cosine {leak:.1e})")
        if not packing.calls:
            # GPT-Neo masks the other texts itself. That is slow, and rows longer than its positions are impossible.
            raise PackingError("its attention is a function of its own")
        return offset
    raise PackingError(f"its packed states are not those of single texts (1 - cosine {min(farthest):.1e})")


def _split(rows: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    return torch.split(rows, list(sizes))


def _distance(a: Tensor, b: Tensor) -> float:
    """Largest 1 - cosine over tokens."""
    return float((1 - F.cosine_similarity(a.double(), b.double(), dim=-1)).max())


def _varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> Tensor:
    """The flash attention kernel of torch (2.10 and newer). It has no dropout."""
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if window is None else window - 1
    out = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        packing.cu_seqlens,
        packing.cu_seqlens,
        max(packing.lengths),
        max(packing.lengths),
        scale=scaling,
        window_size=(reach, 0 if causal else reach),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(Tensor, out)


def _by_length(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    dropout: float,
    scaling: float | None,
    causal: bool,
    window: int | None,
) -> Tensor:
    """One call for each group of neighbouring texts of equal length."""
    sizes = [texts * length for texts, length in packing.groups]
    parts = []
    pieces = zip(*(_split(states, sizes) for states in (query, key, value)), strict=True)
    for (texts, length), states in zip(packing.groups, pieces, strict=True):
        q, k, v = (state.unflatten(0, (texts, length)).transpose(1, 2) for state in states)
        mask = None
        if window is not None and window < length:
            mask = _band(length, window, causal, q.device)
        parts.append(_attend(q, k, v, mask, causal, dropout, scaling).transpose(1, 2).flatten(0, 1))
    return torch.cat(parts)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout: float, scaling: float | None
) -> Tensor:
    """Attention of m texts of one length: [m, H, L, D]."""
    grouped = q.shape[1] != k.shape[1]
    if not dropout:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scaling, enable_gqa=grouped
        )
    if grouped:
        k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], 1) for states in (k, v))
    if causal and mask is None:
        mask = _band(q.shape[2], q.shape[2], causal, q.device)
    return attention_with_dropout(q, k, v, mask, q.shape[-1] ** -0.5 if scaling is None else scaling, dropout)


def _band(length: int, window: int, causal: bool, device: torch.device) -> Tensor:
    """[L, L], True if the token of the row sees the token of the column."""
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None, :]
    return (distance < window) & (distance >= (0 if causal else 1 - window))
