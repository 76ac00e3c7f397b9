"""Is the merged model the trained one? Vectors of probe texts, compared.

Dimensions: n probe texts, D components.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from embedrag.data.text import PASSAGE, QUERY
from embedrag.errors import RunError, UserError
from embedrag.models.artifacts import PROBE_TEXTS
from embedrag.models.encoder import TextEncoder
from embedrag.models.load import load_model
from embedrag.models.quantization import QuantizationConfig

# Lowest cosine to the trained model that still counts as the same model.
TOLERANCE = {torch.float32: 0.99999, torch.bfloat16: 0.999}
QUANTIZED_TOLERANCE = 0.999
SAME = 1e-6
FALLBACK = [
    (QUERY, "How long does a lithium battery last?"),
    (QUERY, "保修期是多久？"),
    (QUERY, "축전기의 역할"),
    (PASSAGE, "A capacitor stores energy in an electric field between two conductors."),
    (PASSAGE, "退款将在七个工作日内原路退回。" * 4),
    (PASSAGE, "다이오드는 전류를 한 방향으로만 흐르게 한다. " * 3),
    (PASSAGE, "Retrieval finds the passages that answer a question. " * 20),
]


@dataclass(frozen=True)
class Closeness:
    """How close two sets of vectors are, text by text.

    Attributes:
        min_cosine: of the worst text.
        mean_cosine: over the texts.
        max_abs_difference: largest difference of any component.
    """

    min_cosine: float
    mean_cosine: float
    max_abs_difference: float

    def __str__(self) -> str:
        return (
            f"cosine min {self.min_cosine:.6f}, mean {self.mean_cosine:.6f}; "
            f"largest difference {self.max_abs_difference:.1e}"
        )


def choose_probes(texts: Sequence[tuple[str, str]], count: int = 16) -> list[tuple[str, str]]:
    """Texts of different lengths, a quarter of them queries.

    Args:
        texts: (role, text) pairs of the training data.
        count: how many, at most.
    """
    chosen = []
    for role, share in ((QUERY, count // 4), (PASSAGE, count - count // 4)):
        own = sorted({text for kind, text in texts if kind == role}, key=lambda text: (len(text), text))
        if own:
            places = np.unique(np.linspace(0, len(own) - 1, min(share, len(own))).astype(int))
            chosen += [(role, own[place]) for place in places]
    return chosen


def read_probes(folder: Path) -> list[tuple[str, str]]:
    """Probe texts kept with the run; a few of our own where there are none."""
    path = folder / PROBE_TEXTS
    if not path.is_file():
        return FALLBACK
    try:
        return [(str(role), str(text)) for role, text in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: can't be read ({error}); remove it, and other texts are taken") from None


def embed_probes(encoder: TextEncoder, probes: Sequence[tuple[str, str]]) -> np.ndarray:
    """[n, D] of probe texts, each encoded by itself."""
    return np.concatenate([encoder.encode([text], role) for role, text in probes])


def embed_trained(
    file: Path,
    probes: list[tuple[str, str]],
    base_name: str,
    trust_remote_code: bool = False,
    quantization: QuantizationConfig | None = None,
    lora_alpha: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """[n, D] by base + adapter as in training, and [n, D] by the same base with the adapter switched off."""
    encoder = load_model(
        str(file),
        base_model_path=base_name,
        trust_remote_code=trust_remote_code,
        quantization=quantization,
        lora_alpha=lora_alpha,
    )
    trained = embed_probes(encoder, probes)
    switch = getattr(encoder.backbone, "disable_adapter", contextlib.nullcontext)
    with switch():
        return trained, embed_probes(encoder, probes)


def embed_merged(folder: Path, probes: list[tuple[str, str]], trust_remote_code: bool = False) -> np.ndarray:
    """[n, D] by a merged folder."""
    return embed_probes(load_model(str(folder), trust_remote_code=trust_remote_code), probes)


def closeness(a: np.ndarray, b: np.ndarray) -> Closeness:
    """Compare two [n, D]."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    cosine = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return Closeness(float(cosine.min()), float(cosine.mean()), float(np.abs(x - y).max()))


def check(
    to_trained: Closeness, to_base: Closeness, moved: Closeness, dtype: torch.dtype, quantized: bool, exact: bool
) -> None:
    """Fail when the merged model is not the trained one.

    Args:
        to_trained: merged against trained.
        to_base: merged against base.
        moved: base against trained, what the training changed.
        dtype: of the merged weights.
        quantized: a QLoRA adapter.
        exact: it was merged onto the weights that it was trained on; otherwise a deviation is what was asked for.

    Raises:
        RunError: naming the figure.
    """
    limit = QUANTIZED_TOLERANCE if quantized else TOLERANCE[dtype]
    if moved.max_abs_difference < SAME:
        raise RunError("training hardly changed the model (too small an lr, too few steps?); no output was left")
    if to_base.max_abs_difference < SAME:
        raise RunError("the merged model gives the base's vectors: the adapter had no effect; no output was left")
    # Written so that a cosine that is not a number fails too.
    if exact and not to_trained.min_cosine >= limit:
        raise RunError(
            f"the merged model is not the trained one: cosine {to_trained.min_cosine:.6f}, at least {limit} is needed; "
            "no output was left"
        )
    if exact and not to_trained.max_abs_difference < moved.max_abs_difference / 2:
        raise RunError(
            f"the training moved the vectors by {moved.max_abs_difference:.1e}, the merge by another "
            f"{to_trained.max_abs_difference:.1e}: at this precision a merge can't be told from none. "
            "Use --training_precision float32; no output was left"
        )
