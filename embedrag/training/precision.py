"""Choose bfloat16 on a CPU when a step of the model is faster with it."""

from __future__ import annotations

from functools import partial

import torch

from embedrag.data.token_store import TokenStore
from embedrag.models.encoder import Encoder
from embedrag.runtime.device import bfloat16_multiplies_faster, fastest
from embedrag.training.memory import longest_texts

CALIBRATION_TOKENS = 1024


def fastest_cpu_dtype(encoder: Encoder, store: TokenStore) -> torch.dtype:
    """The faster of float32 and bfloat16 for a forward and backward pass of this model. The weights stay float32.

    Args:
        encoder: on a CPU, ready for training; its dtype is tried out.
        store: the data; its longest texts are used.
    """
    if not bfloat16_multiplies_faster():
        return torch.float32
    tokens = store.batch(longest_texts(store, CALIBRATION_TOKENS))

    def step(dtype: torch.dtype) -> None:
        encoder.dtype = dtype
        encoder(tokens).sum().backward()

    with torch.random.fork_rng(devices=[]):
        dtype = fastest({dtype: partial(step, dtype) for dtype in (torch.float32, torch.bfloat16)})
    encoder.zero_grad(set_to_none=True)
    return dtype
