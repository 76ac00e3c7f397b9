"""Vectors of a corpus, kept on the disk: they are computed once for a model and its texts, and then memory-mapped.

A damaged file is found when it is opened, and computed again, see `embedrag.runtime.cache`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from embedrag.errors import RunError
from embedrag.models.encoder import Encoder
from embedrag.runtime.cache import keep, open_kept
from embedrag.runtime.console import console
from embedrag.runtime.files import write_npy

FILE = "vectors.npy"
TOLERANCE = 1e-3  # of a squared length, around 1


def fingerprint(encoder: Encoder) -> str:
    """16 hex digits that depend on all that decides a vector: weights, tokenizer, embedding config, precision."""
    digest = hashlib.sha256(f"{encoder.tokenizer.key}|{encoder.embedding_config}|{encoder.dtype}".encode())
    weights = encoder.backbone.state_dict() | encoder.head.state_dict(prefix="head.")
    config = encoder.embedding_config
    if config.head or config.truncate_dim:
        digest.update(f"{config.head}|{config.truncate_dim}".encode())
    for key, value in sorted(weights.items()):
        digest.update(key.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]


def cached_vectors(encoder: Encoder, texts: Sequence[str], role: str, cache: Path) -> tuple[np.ndarray, bool]:
    """Vectors of texts, each of length 1, from the cache or computed now.

    Args:
        encoder: the model.
        texts: n texts.
        role: `query` or `passage`.
        cache: folder of the cached files. A new file appears in it when it is whole.

    Returns:
        [n, D] float32, memory-mapped, and whether they were in the cache already.

    Raises:
        RunError: when the disk is full, or the model gives a vector of length 0.
    """
    digest = hashlib.sha256(f"{fingerprint(encoder)}|{role}|{len(texts)}|length 1".encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode(errors="surrogatepass")).digest())
    name, shape = f"vectors-{digest.hexdigest()[:24]}", (len(texts), encoder.dimension)

    def make(folder: Path) -> None:
        bar = console.progress(len(texts), "text", desc="corpus", leave=False)
        with bar, (folder / FILE).open("wb") as file:
            write_npy(file, _directions(encoder.blocks(texts, role, bar.update)), shape)

    def open_(folder: Path) -> np.ndarray:
        vectors: np.ndarray = np.lib.format.open_memmap(folder / FILE, mode="r")
        if vectors.shape != shape or vectors.dtype != np.float32:
            raise ValueError(f"{FILE} holds {vectors.dtype} {list(vectors.shape)} instead of float32 {list(shape)}")
        return vectors

    found = open_kept(cache, name, open_)
    return (keep(cache, name, make, open_), False) if found is None else (found, True)


def _directions(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    for block in blocks:
        vectors = unit(block)
        if not _of_length_one(vectors).all():
            raise RunError("the model gives a vector of length 0, which can't be ranked")
        yield vectors


def _of_length_one(vectors: np.ndarray) -> np.ndarray:
    """[n] whether each vector is of length 1; False for one that is not finite."""
    close: np.ndarray = abs(np.einsum("nd,nd->n", vectors, vectors) - 1) < TOLERANCE
    return close


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1: [n, D] -> [n, D].

    Raises:
        RunError: when a vector is not finite, because it can't be ranked.
    """
    if not np.isfinite(vectors).all():
        raise RunError("the model gives vectors that are not finite (NaN or infinite); its weights are damaged")
    result: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return result
