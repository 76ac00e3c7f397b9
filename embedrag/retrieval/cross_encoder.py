"""A cross-encoder reads query and passage together, and gives a score of how well the passage answers the query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from embedrag.errors import RunError, UserError, as_python
from embedrag.models.base_model import OWN_CODE, position_limit
from embedrag.models.modules.model_files import ModelFiles
from embedrag.models.tokenizer import has_own_code
from embedrag.runtime.console import quiet
from embedrag.runtime.device import pick_device

BATCH = 32  # pairs that are scored at once
LONGEST = 1024  # tokens of a pair, at most


class CrossEncoder:
    """A model with one relevance score, such as `BAAI/bge-reranker-v2-m3` or `cross-encoder/ms-marco-MiniLM-L6-v2`."""

    def __init__(
        self, name: str, device: str = "auto", trust_remote_code: bool = False, argument: str = "cross_encoder"
    ) -> None:
        """Load model and tokenizer.

        Args:
            name: folder or hub id.
            device: `auto`, `cuda`, `mps` or `cpu`.
            trust_remote_code: run Python code that comes with the model.
            argument: what the caller calls `name`, for messages.

        Raises:
            UserError: when it can't be read, or does not give exactly one score for a pair.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self._shown, where = as_python(argument, name), pick_device(device)
        try:
            with quiet():
                self._tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
                self._model: Any
                self._model, loading = AutoModelForSequenceClassification.from_pretrained(
                    name, trust_remote_code=trust_remote_code, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            if not trust_remote_code and has_own_code(ModelFiles(name, argument, local_files_only=True)):
                raise UserError(f"the model {OWN_CODE}", argument, name) from None
            raise UserError(f"can't be loaded ({str(error).strip().splitlines()[0]})", argument, name) from None
        if (count := self._model.config.num_labels) != 1:
            reason = f"gives {count} scores for a pair; name a cross-encoder that gives one"
            raise UserError(reason, argument, name)
        if loading["missing_keys"]:
            missing = ", ".join(sorted(loading["missing_keys"])[:3])
            raise UserError(f"its file has no {missing}; it is not a cross-encoder", argument, name)
        positions = position_limit(self._model.config) or LONGEST
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._model.to(where).eval()
        self._device = where
        self._limit = int(min(self._tokenizer.model_max_length, positions, LONGEST))

    @torch.no_grad()
    def scores(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Chances, between 0 and 1, that a passage answers a query: [pairs] float32.

        Args:
            pairs: (query, passage).

        Raises:
            RunError: when a score is NaN.
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
            raise RunError(f"{self._shown}: gives scores that are NaN; its weights are damaged")
        return found
