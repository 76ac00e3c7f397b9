"""Texts -> token ids: prompts, lengths and the end token. A saved tokenizer gives the same ids in other programs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedrag.errors import UserError
from embedrag.models.base_model import Base
from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.models.modules.lowercase import turn_to_small_letters


class TextTokenizer:
    """(role, texts) -> token ids, with the prompt before the text and the end token after it.

    A decoder that pools the last token needs the end token at the end of every text, also after truncation. The
    tokenizer's own post-processor adds it, so that a saved folder gives the same ids in every program.

    Attributes:
        tokenizer: of transformers.
        embedding_config: prompts, lengths and pooling.
    """

    def __init__(self, tokenizer: Any, embedding_config: EmbeddingConfig, is_decoder: bool) -> None:
        self.tokenizer = tokenizer
        self.embedding_config = embedding_config
        if embedding_config.lower_case:
            turn_to_small_letters(tokenizer)
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
            A list of ids for each text: never empty, and not longer than the role allows.
        """
        prompt = getattr(self.embedding_config, f"{role}_prompt")
        return self.ids(role, [prompt + text for text in texts])

    def ids(self, role: str, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that already start with their prompt."""
        ids: list[list[int]] = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=getattr(self.embedding_config, f"{role}_max_len"),
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return [item or [self.tokenizer.pad_token_id or 0] for item in ids]

    def save(self, folder: Path) -> None:
        """Write the tokenizer without fixed truncation and padding.

        Its padding side is written too, because transformers forgets a side that was set after loading.
        """
        self.tokenizer.init_kwargs["padding_side"] = self.tokenizer.padding_side
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.save_pretrained(folder)

    @property
    def key(self) -> str:
        """A hash of everything that decides the ids of a text."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state = {name: part for name, part in backend.items() if name not in ("truncation", "padding")}
        lengths = [self.embedding_config.query_max_len, self.embedding_config.passage_max_len]
        text = json.dumps(
            [state, self.embedding_config.query_prompt, self.embedding_config.passage_prompt, *lengths], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()


def load_tokenizer(
    base: Base,
    embedding_config: EmbeddingConfig,
    tokenizer_id: str | None = None,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    argument: str = "model_name_or_path",
) -> TextTokenizer:
    """The tokenizer of a base model, with prompts and lengths.

    Args:
        base: from `describe_base`.
        embedding_config: prompts, lengths and pooling.
        tokenizer_id: folder or hub id of another tokenizer; None: the base's own.
        trust_remote_code: run Python code that comes with the tokenizer.
        local_files_only: never ask the hub.
        argument: what the caller calls the base, for messages.

    Raises:
        UserError: no tokenizer can be read there, or it does not fit the model.
    """
    from transformers import AutoTokenizer

    name = tokenizer_id or base.name
    settings: dict[str, Any] = {"subfolder": base.subfolder} if name == base.name else {}

    def error(reason: str) -> UserError:
        return UserError(reason, "tokenizer_id" if tokenizer_id else argument, name)

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code, local_files_only=local_files_only, **settings
        )
    except Exception as problem:  # every tokenizer class fails on a broken file in its own way
        raise error(f"no tokenizer can be read there ({str(problem).splitlines()[0]})") from None
    if not getattr(tokenizer, "is_fast", False):
        raise error("only tokenizers with a tokenizer.json (fast tokenizers) are supported")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise error("there are no tokenizer files, so every word would be unknown; download them")
    vocabulary = getattr(base.config, "vocab_size", None)
    if vocabulary and len(tokenizer) > vocabulary:
        raise error(
            f"it has {len(tokenizer)} tokens, but the model has vectors for {vocabulary} tokens only; use the model's "
            "own tokenizer"
        )
    return TextTokenizer(tokenizer, embedding_config, base.is_decoder)


def _end_with_eos(tokenizer: Any) -> None:
    """Let the tokenizer end every text with its end token, unless it already ends texts with a special token."""
    from tokenizers import processors

    if tokenizer("a")["input_ids"][-1] in tokenizer.all_special_ids:
        return
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no end token, which last_token pooling needs; choose `pooling=mean`")
    eos = tokenizer.eos_token
    ending = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    backend = tokenizer.backend_tokenizer
    own = backend.post_processor
    backend.post_processor = ending if own is None else processors.Sequence([own, ending])
