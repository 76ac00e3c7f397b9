"""Check whether two models give the same vectors: both embed probe texts, and the vectors are compared.

Letters: n probe texts, D dimensions of a vector.
"""

from __future__ import annotations

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
from embedrag.models.load import load_base_of, load_model, with_adapter
from embedrag.models.quantization import QuantizationConfig
from embedrag.runtime.device import pick_device

# A merged model counts as the trained one when no cosine to it is lower.
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
        max_abs_difference: largest difference of two numbers at the same place.
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
    """Choose probe texts of different lengths. A quarter of them are queries.

    Args:
        texts: (role, text) pairs of the training data.
        count: number of probe texts, at most.
    """
    chosen = []
    for role, share in ((QUERY, count // 4), (PASSAGE, count - count // 4)):
        own = sorted({text for kind, text in texts if kind == role}, key=lambda text: (len(text), text))
        if own:
            places = np.unique(np.linspace(0, len(own) - 1, min(share, len(own))).astype(int))
            chosen += [(role, own[place]) for place in places]
    return chosen


def read_probes(folder: Path) -> list[tuple[str, str]]:
    """The probe texts in a model folder; a few of our own when it has none."""
    path = folder / PROBE_TEXTS
    if not path.is_file():
        return FALLBACK
    try:
        return [(str(role), str(text)) for role, text in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: can't be read ({error}); remove the file, then other texts are used") from None


def embed_probes(encoder: TextEncoder, probes: Sequence[tuple[str, str]]) -> np.ndarray:
    """Vectors [n, D] of probe texts; each text is encoded in a batch of its own."""
    return np.concatenate([encoder.encode([text], role) for role, text in probes])


def embed_trained(
    file: Path,
    probes: list[tuple[str, str]],
    base_name: str,
    trust_remote_code: bool = False,
    quantization: QuantizationConfig | None = None,
    lora_alpha: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [n, D] of base + adapter as in training, and vectors [n, D] of the same base without the adapter.

    Args:
        file: the adapter's weights.
        probes: (role, text) pairs.
        base_name: the base.
        trust_remote_code: run Python code that comes with the base.
        quantization: how the base was quantised, when the adapter's folder does not record it.
        lora_alpha: scale of an adapter without adapter_config.json.
    """
    argument = "lora_adapter_path"
    encoder, adapter = load_base_of(
        file, pick_device("auto"), torch.float32, base_name, trust_remote_code, quantization, lora_alpha, argument
    )
    untrained = embed_probes(encoder, probes)
    return embed_probes(with_adapter(encoder, adapter, argument), probes), untrained


def embed_merged(folder: Path, probes: list[tuple[str, str]], trust_remote_code: bool = False) -> np.ndarray:
    """Vectors [n, D] of a merged model."""
    return embed_probes(load_model(str(folder), trust_remote_code=trust_remote_code), probes)


def closeness(a: np.ndarray, b: np.ndarray) -> Closeness:
    """Compare two arrays of vectors [n, D]."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    cosine = (x * y).sum(1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return Closeness(float(cosine.min()), float(cosine.mean()), float(np.abs(x - y).max()))


def check_merged(
    to_trained: Closeness, to_base: Closeness, moved: Closeness, dtype: torch.dtype, quantized: bool, exact: bool
) -> None:
    """Refuse a merged model that is not the trained one.

    Args:
        to_trained: closeness of the merged model to the trained one.
        to_base: of the merged model to the base.
        moved: of the base to the trained model, which is what the training changed.
        dtype: of the merged weights.
        quantized: whether it is a QLoRA adapter.
        exact: whether it was merged onto the weights that it was trained on. On other weights a difference is expected.

    Raises:
        RunError: with the figure that is wrong.
    """
    limit = QUANTIZED_TOLERANCE if quantized else TOLERANCE[dtype]
    if moved.max_abs_difference < SAME:
        raise RunError("the training hardly changed the model (is `lr` too small?); no output was written")
    if to_base.max_abs_difference < SAME:
        raise RunError("the merged model gives the base's vectors: the adapter had no effect; no output was written")
    # Written so that a cosine that is not a number fails too.
    if exact and not to_trained.min_cosine >= limit:
        raise RunError(
            f"the merged model is not the trained one: cosine {to_trained.min_cosine:.6f}, at least {limit} is needed; "
            "no output was written"
        )
    if exact and not to_trained.max_abs_difference < moved.max_abs_difference / 2:
        raise RunError(
            f"the training changed the vectors by {moved.max_abs_difference:.1e}, and the merge has an error of "
            f"{to_trained.max_abs_difference:.1e}, so it is not precise enough; use `training_precision=float32`. "
            "No output was written"
        )
