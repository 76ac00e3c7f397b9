"""Packed attention: texts lie one after the other, each attends to itself alone, and nothing is padded.

The idea: all layers but attention treat tokens one by one, so a batch can go through the model as one row [1, T]; only
the attention has to know where a text begins and ends. A function registered with transformers gets that as `packing`.
It trades the one rectangular attention call for one a group of texts of equal length, which on a CPU costs less than
the padding it saves; GPUs have a kernel for it.

A model that drops `packing` on its way, or has another idea of positions, would mix texts without an error. So
`pack` compares on the model itself before anything is trained, and the caller pads when it fails.

Dimensions: T tokens, n texts, H heads, D components of a head.
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
# Rounding moves states far less, a leak far more (0.1 and above). Two half-precision kernels differ by more.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}


class PackingError(Exception):
    """A model whose texts would mix, or come out differently, in one row."""


@dataclass(frozen=True)
class Packing:
    """Where the texts of a row lie.

    Attributes:
        cu_seqlens: [n + 1] int32 on the device.
        lengths: n lengths; equal ones should be neighbours.
    """

    cu_seqlens: Tensor
    lengths: list[int]

    @cached_property
    def groups(self) -> list[tuple[int, int]]:
        """(texts, length) of each run of texts of equal length."""
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]

    def position_ids(self, offset: int) -> Tensor:
        """[1, T] place of each token in its text, counted from `offset`."""
        total = sum(self.lengths)  # known here, so that a GPU need not be waited for
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
    """Attention in the form that transformers calls it: [1, H, T, D] -> [1, T, H, D].

    Args:
        module: the calling layer; tells whether attention is causal.
        query: [1, H, T, D].
        key: [1, G, T, D], G divides H.
        value: [1, G, T, D].
        attention_mask: None; each text is complete.
        packing: where the texts lie.
        dropout: of the attention weights; on a CPU only.
        scaling: of the scores; left out: 1 / sqrt(D).
        is_causal: whether tokens see only those before them; left out: as `module` says.
        sliding_window: tokens see only those less than so many places away.
        **unknown: further arguments of the caller.

    Raises:
        PackingError: for a kind of attention that is not known here; the caller pads then.
    """
    odd = [name for name in ("softcap", "position_bias", "s_aux") if unknown.get(name) is not None]
    if packing is None or attention_mask is not None or odd:
        raise PackingError(f"its attention has {', '.join(odd) or 'a mask'}")
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    dtype, device = value.dtype, value.device.type
    if torch.is_autocast_enabled(device):
        # Rotations by float32 angles, and norms of queries and keys, give float32; a kernel wants one precision.
        dtype = torch.get_autocast_dtype(device)
    q, k, v = (states[0].transpose(0, 1).to(dtype) for states in (query, key, value))
    if device == "cpu":
        return _by_length(q, k, v, packing, dropout, scaling, causal, sliding_window)[None], None
    if dtype not in HALF:
        raise PackingError(f"there is no packed attention in {dtype} on a GPU")
    return _varlen(q, k, v, packing, scaling, causal, sliding_window)[None], None


def packed_states(backbone: nn.Module, input_ids: Tensor, packing: Packing, offset: int) -> Tensor:
    """Hidden states [T, H] of texts that lie in one row of a model whose attention is `NAME`.

    Args:
        backbone: the model.
        input_ids: [T].
        packing: where the texts lie.
        offset: position of each text's first token.
    """
    positions = packing.position_ids(offset)
    output = backbone(input_ids=input_ids[None], position_ids=positions, packing=packing)
    states: Tensor = output.last_hidden_state[0]
    return states


def pack(backbone: nn.Module, pad_id: int, dtype: torch.dtype) -> int:
    """Switch a model to packed attention, after a proof on the model itself that it can be packed.

    A few texts of random tokens go through the model one by one as it came, then packed: each token must get the same
    state, and when one text changes, the states of the others must stay. Which positions texts begin with (0, or
    behind the padding token, as RoBERTa has it) is found by the same comparison.

    Args:
        backbone: in the precision in which it will compute.
        pad_id: token that stands for padding.
        dtype: of the computation; states may be of a finer one.

    Returns:
        Position of each text's first token.

    Raises:
        PackingError: with the reason; the model is then as it was.
    """
    model: Any = backbone.get_base_model() if hasattr(backbone, "get_base_model") else backbone  # type: ignore[operator]
    device = next(backbone.parameters()).device
    usual = model.config._attn_implementation
    try:
        if type(model).__module__.startswith("transformers_modules"):
            raise PackingError("it runs code of its own")
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
        # Whatever a foreign forward raises on arguments that it does not know.
        raise PackingError(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    return offset


def _register(model: Any) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)


def _probe_texts(config: Any, pad_id: int, device: torch.device) -> list[Tensor]:
    """Texts of different and of equal lengths; one is longer than a sliding window, where that is short."""
    window = getattr(config, "sliding_window", None) or 0
    lengths = (window + 8 if window <= LONG_WINDOW else 12, 9, 9, 5)
    tokens = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size - 1, (sum(lengths),), generator=tokens)
    return list(_split((ids + (ids >= pad_id)).to(device), lengths))  # any token but the padding


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
        return offset
    raise PackingError(f"packed, its states differ (1 - cosine {min(farthest):.1e})")


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
    """The flash kernel that torch brings along (2.10 and newer); it has no dropout."""
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
    """One call for each run of texts of equal length."""
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
    """[L, L] True where a token (row) sees another (column)."""
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None, :]
    return (distance < window) & (distance >= (0 if causal else 1 - window))
