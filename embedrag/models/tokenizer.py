"""Texts -> token ids under a contract: prompts, lengths, and the end token, in the tokenizer's own files too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedrag.errors import UserError
from embedrag.models.base_model import Base
from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.training.config.options import TrainOptions


class TextTokenizer:
    """A tokenizer under a contract: (role, texts) -> token ids, the prompt before and the end token behind.

    Decoders that pool the last token end every text in the end token, after truncation too. The rule is put into the
    tokenizer's own post-processor, so a saved folder gives the same ids in every program.
    """

    def __init__(self, tokenizer: Any, embedding_config: EmbeddingConfig, is_decoder: bool) -> None:
        self.tokenizer = tokenizer
        self.embedding_config = embedding_config
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if is_decoder:
            tokenizer.padding_side = "left"
            if embedding_config.pooling == "last_token":
                _end_with_eos(tokenizer)
        tokenizer.model_max_length = embedding_config.max_len

    def __call__(self, role: str, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts.

        Args:
            role: `query` or `passage`.
            texts: without prompt.

        Returns:
            One list of ids a text, never empty, at most the role's length.
        """
        prompt = getattr(self.embedding_config, f"{role}_prompt")
        return self.ids(role, [prompt + text for text in texts])

    def ids(self, role: str, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that have their prompts already."""
        ids: list[list[int]] = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=getattr(self.embedding_config, f"{role}_max_len"),
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return [item or [self.tokenizer.pad_token_id or 0] for item in ids]

    def save(self, folder: Path) -> None:
        """Write the tokenizer, with its padding side (transformers forgets one that was set later) and no fixed cut."""
        self.tokenizer.init_kwargs["padding_side"] = self.tokenizer.padding_side
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.save_pretrained(folder)

    @property
    def key(self) -> str:
        """Changes whenever the ids of some text could change."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state = {name: part for name, part in backend.items() if name not in ("truncation", "padding")}
        lengths = [self.embedding_config.query_max_len, self.embedding_config.passage_max_len]
        text = json.dumps(
            [state, self.embedding_config.query_prompt, self.embedding_config.passage_prompt, *lengths], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()


def load_tokenizer(base: Base, embedding_config: EmbeddingConfig, options: TrainOptions | None = None) -> TextTokenizer:
    """The base model's tokenizer (or `--tokenizer_id`) under a contract.

    Raises:
        UserError: when there is none that can be read.
    """
    from transformers import AutoTokenizer

    name = options.tokenizer_id if options and options.tokenizer_id else base.name
    flag = "--tokenizer_id" if options and options.tokenizer_id else "--model_name_or_path"
    settings: dict[str, Any] = {"subfolder": base.subfolder} if name == base.name else {}
    if options:
        settings |= {"trust_remote_code": options.trust_remote_code, "local_files_only": options.local_files_only}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **settings)
    except Exception as error:  # every tokenizer class has its own way to fail on a broken file
        raise UserError(f"{flag} {name}: no tokenizer can be read there ({str(error).splitlines()[0]})") from None
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{flag} {name}: only tokenizers with a tokenizer.json (fast tokenizers) are supported")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise UserError(f"{flag} {name}: no tokenizer files are there, so every word would be unknown; fetch them")
    vocabulary = getattr(base.config, "vocab_size", None)
    if vocabulary and len(tokenizer) > vocabulary:
        raise UserError(
            f"{flag} {name}: {len(tokenizer)} tokens, but the model has vectors for {vocabulary}; use its own"
        )
    return TextTokenizer(tokenizer, embedding_config, base.is_decoder)


def _end_with_eos(tokenizer: Any) -> None:
    """Make the tokenizer end every text in its end token, unless it ends texts in a special token already."""
    from tokenizers import processors

    if tokenizer("a")["input_ids"][-1] in tokenizer.all_special_ids:
        return
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no end token, which last_token pooling needs; choose --pooling mean")
    eos = tokenizer.eos_token
    ending = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    backend = tokenizer.backend_tokenizer
    own = backend.post_processor
    backend.post_processor = ending if own is None else processors.Sequence([own, ending])
