"""A cross-encoder as a judge: it reads query and passage together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from embedrag.errors import RunError, UserError
from embedrag.runtime.console import quiet
from embedrag.runtime.device import pick_device

BATCH = 32
LONGEST = 1024  # tokens of a pair


class CrossEncoder:
    """A model with one relevance score, such as `BAAI/bge-reranker-v2-m3` or `cross-encoder/ms-marco-MiniLM-L6-v2`."""

    def __init__(self, name: str, device: str = "auto", trust_remote_code: bool = False) -> None:
        """Load model and tokenizer.

        Raises:
            UserError: when it can't be read, or has more or less than one score.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._name, where = name, pick_device(device)
        try:
            with quiet():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
                self._model: Any
                self._model, loading = AutoModelForSequenceClassification.from_pretrained(
                    name, trust_remote_code=trust_remote_code, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"--score_with {name}: can't be loaded ({str(error).strip().splitlines()[0]})") from None
        if self._model.config.num_labels != 1:
            count = self._model.config.num_labels
            raise UserError(f"--score_with {name}: gives {count} scores for a pair; name a cross-encoder with one")
        if loading["missing_keys"]:
            missing = ", ".join(sorted(loading["missing_keys"])[:3])
            raise UserError(f"--score_with {name}: its file has no {missing}; it is no cross-encoder")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model.to(where).eval()
        self._device = where
        positions = getattr(self._model.config, "max_position_embeddings", None) or LONGEST
        offset = (self._tokenizer.pad_token_id or 0) + 1 if "roberta" in self._model.config.model_type else 0
        self._limit = int(min(self._tokenizer.model_max_length, positions - offset, LONGEST))

    @torch.no_grad()
    def scores(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """[pairs] chance, between 0 and 1, that the passage answers the query.

        Raises:
            RunError: when one is not a number, for nothing could be decided by it.
        """
        found = np.empty(len(pairs), np.float32)
        order = sorted(range(len(pairs)), key=lambda number: -len(pairs[number][0]) - len(pairs[number][1]))
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            tokens = self._tokenizer(
                [pairs[place][0] for place in places],
                [pairs[place][1] for place in places],
                padding=True,
                truncation=True,
                max_length=self._limit,
                return_tensors="pt",
            ).to(self._device)
            found[places] = self._model(**tokens).logits[:, 0].float().sigmoid().cpu().numpy()
        if not np.isfinite(found).all():
            raise RunError(f"--score_with {self._name}: gives scores that are NaN; its weights are damaged")
        return found
