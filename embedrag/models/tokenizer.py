"""Texts -> token ids: prompts, lengths and the end token. A saved tokenizer gives the same ids in other programs."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedrag.data.text import PASSAGE, QUERY
from embedrag.errors import UserError
from embedrag.models.base_model import OWN_CODE, Base
from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.models.modules.lowercase import lowercase_first
from embedrag.models.modules.model_files import ModelFiles
from embedrag.runtime.console import say
from embedrag.runtime.files import write_json

# Decoders of which padding at the left changes the vectors: they count positions from the left edge of a row, or read
# the padding into their state.
PADDED_RIGHT = {
    "bert-generation",
    "biogpt",
    "ctrl",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "openai-gpt",
    "recurrent_gemma",
    "rwkv",
    "xglm",
    "xlstm",
}
# A text of which fewer tokens are read has no meaning left.
FEWEST_TOKENS = 4
NOT_CUT = 1 << 30  # tokens
PROBES = ("a", "word", "1", ".")
# A tokenizer of this class takes everything from tokenizer.json, in every version of transformers.
PLAIN_CLASS = "PreTrainedTokenizerFast"


class TextTokenizer:
    """(role, texts) -> token ids, with the prompt before the text and the end token after it.

    A decoder that pools the last token needs the end token at the end of every text, also after truncation. The
    tokenizer's own post-processor adds it, so that a saved folder gives the same ids in every program.

    Attributes:
        tokenizer: of transformers.
        embedding_config: prompts, lengths and pooling.
    """

    def __init__(self, tokenizer: Any, embedding_config: EmbeddingConfig, base: Base) -> None:
        """Prepare a tokenizer.

        Args:
            tokenizer: of transformers. It is changed.
            embedding_config: prompts, lengths and pooling.
            base: the model that reads the ids.

        Raises:
            UserError: it has no end token and needs one, or a prompt leaves hardly any token of a text.
        """
        self.tokenizer = tokenizer
        self.embedding_config = embedding_config
        self._changed = embedding_config.lower_case and lowercase_first(tokenizer)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
        if base.is_decoder:
            tokenizer.padding_side = _padding_side(tokenizer, base.config.model_type, embedding_config.pooling)
            # GPT-2 would add the embedding of token 0 to every token of type 0. Our encoder passes no types.
            tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
            if "last_token" in embedding_config.pooling:
                self._changed |= _end_with_eos(tokenizer)
        tokenizer.model_max_length = embedding_config.max_len
        self._limits = {role: getattr(embedding_config, f"{role}_max_len") for role in (QUERY, PASSAGE)}
        self._positions = base.position_limit or NOT_CUT
        if excess := _excess(tokenizer):
            self._limits = {role: min(limit, self._positions - excess) for role, limit in self._limits.items()}
        for role in (QUERY, PASSAGE):
            self.check_prompt(role, getattr(embedding_config, f"{role}_prompt"))

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
            max_length=self._limits[role],
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return [item or [self.tokenizer.pad_token_id or 0] for item in ids]

    def limit(self, role: str) -> int:
        """Most tokens of a text of a role."""
        return int(self._limits[role])

    def uncut(self) -> TextTokenizer:
        """The same tokenizer, but it cuts no text: to measure texts."""
        whole = copy.copy(self)
        whole._limits = dict.fromkeys(self._limits, NOT_CUT)
        return whole

    def check_prompt(self, role: str, prompt: str, place: str = "") -> None:
        """Refuse a prompt that leaves hardly any token of a text, or a prompt with tokens that must not be pooled.

        Args:
            role: `query` or `passage`.
            prompt: put before texts of this role.
            place: of the row that has this prompt, as `file:line`; empty: it is the prompt of all texts of this role.

        Raises:
            UserError: with the length of the prompt, the limit, and the remedy.
        """
        if prompt and not self.embedding_config.include_prompt:
            remedy = "take `prompt` out of the rows" if place else f"train it without a prompt (`{role}_prompt=`)"
            reason = (
                "1_Pooling/config.json of the model has include_prompt false: the tokens of the prompt are left out of "
                f"the pooling, which EmbedRAG can't do; {remedy}"
            )
            raise UserError(f"{place}: {reason}") if place else UserError(reason, f"{role}_prompt", prompt)
        limit = self._limits[role]
        taken = len(self.tokenizer(prompt, return_attention_mask=False)["input_ids"])
        if limit - taken >= FEWEST_TOKENS:
            return
        name = f"the prompt of {place} " if place else f"the {role} prompt "
        what = f"{name * bool(prompt)}{_shortened(prompt) + ' and ' if prompt else ''}the special tokens"
        needed = taken + FEWEST_TOKENS
        remedies = [f"give `{role}_max_len={needed}` or more"] * (needed <= self._positions)
        remedies += ["shorten the prompt of the row" if place else f"shorten `{role}_prompt`"] * bool(prompt)
        hint = "" if place else ". A saved model has both in its training_config.json"
        raise UserError(
            f"{what} take {taken} tokens, so the limit leaves {max(0, limit - taken)} for the text of a {role}; "
            f"{', or '.join(remedies)}{hint}",
            f"{role}_max_len",
            limit,
        )

    def save(self, folder: Path) -> None:
        """Write the tokenizer without fixed truncation and padding.

        Its padding side and inputs are written too, because transformers forgets what was set after loading. Some
        classes of transformers make a post-processor and a normaliser of their own when they are loaded, which would
        lose the end token. So a tokenizer that was changed here gets the class that takes everything from
        tokenizer.json.
        """
        names = list(self.tokenizer.model_input_names)
        self.tokenizer.init_kwargs |= {"padding_side": self.tokenizer.padding_side, "model_input_names": names}
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.save_pretrained(folder)
        if self._changed:
            path = folder / "tokenizer_config.json"
            write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": PLAIN_CLASS})

    @property
    def key(self) -> str:
        """A hash of everything that decides the ids of a text."""
        backend = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state = {name: part for name, part in backend.items() if name not in ("truncation", "padding")}
        config, lengths = self.embedding_config, self._limits.values()
        text = json.dumps([state, config.query_prompt, config.passage_prompt, *lengths], sort_keys=True)
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
        UserError: no tokenizer can be read there, it does not fit the model, or a prompt leaves no room for a text.
    """
    from transformers import AutoTokenizer

    name = tokenizer_id or base.name
    argument = "tokenizer_id" if tokenizer_id else argument
    subfolder = base.subfolder if name == base.name else ""
    files = ModelFiles(name, argument, local_files_only)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code, local_files_only=local_files_only, subfolder=subfolder
        )
    except Exception as problem:  # every tokenizer class fails on a broken file in its own way
        if not trust_remote_code and has_own_code(files, subfolder):
            raise files.error(f"the tokenizer {OWN_CODE}") from None
        reason = str(problem).strip() or type(problem).__name__
        raise files.error(f"no tokenizer can be read there ({reason.splitlines()[0]})") from None
    if not getattr(tokenizer, "is_fast", False):
        raise files.error(
            "only tokenizers with a tokenizer.json (fast tokenizers) are supported, and this one is a "
            f"{type(tokenizer).__name__}"
        )
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise files.error("there are no tokenizer files, so every word would be unknown; download them")
    vocabulary = getattr(base.config, "vocab_size", None)
    if vocabulary and len(tokenizer) > vocabulary:
        raise files.error(
            f"it has {len(tokenizer)} tokens, but the model has vectors for {vocabulary} tokens only; use the model's "
            "own tokenizer"
        )
    if not trust_remote_code and (getattr(base.config, "auto_map", None) or tokenizer.init_kwargs.get("auto_map")):
        say(
            f"model: {base.name} has Python code of its own, which is not run, because transformers has classes "
            "for this model. With `trust_remote_code` the code is run, and the vectors can be different"
        )
    return TextTokenizer(tokenizer, embedding_config, base)


def has_own_code(files: ModelFiles, subfolder: str = "") -> bool:
    """Whether the files of a model name Python code of its tokenizer, or of its configuration."""
    names = (f"{subfolder}/{name}".lstrip("/") for name in ("tokenizer_config.json", "config.json"))
    return any((files.json(name) or {}).get("auto_map") for name in names)


def _padding_side(tokenizer: Any, kind: str, pooling: str) -> str:
    """Where a decoder's texts are padded by programs that pad.

    Programs that know no mask take the last token of a row, which is the last token of a text with padding at the left.
    In the same way they take the first one, or count its tokens, with padding at the right.

    Args:
        tokenizer: of transformers.
        kind: the family of the model.
        pooling: of the token vectors.
    """
    if kind in PADDED_RIGHT or {"cls", "weighted_mean"} & set(pooling.split("+")):
        return "right"
    return str(tokenizer.init_kwargs.get("padding_side") or ("left" if pooling == "last_token" else "right"))


def _end_with_eos(tokenizer: Any) -> bool:
    """Let the tokenizer end every text with its end token, unless it already adds special tokens at the end.

    The own post-processor is replaced by one template with the tokens that it puts before a text, the text and the end
    token. A second post-processor after the own one would be wrong: it takes the beginning and the text for two texts.

    Returns:
        Whether the end token was added.

    Raises:
        UserError: the tokenizer has no end token, or does not use its post-processor.
    """
    before, text, after = _parts(tokenizer)
    if after:
        return False
    end = tokenizer.eos_token
    if end is None:
        raise UserError("the tokenizer has no end token, which last_token pooling needs; choose `pooling=mean`")
    backend = tokenizer.backend_tokenizer
    own = json.loads(backend.to_str())["post_processor"] or {}
    offsets = [part for part in own.get("processors", [own]) if part.get("type") == "ByteLevel"]
    template = _template(tokenizer.convert_ids_to_tokens(before), before, end, tokenizer.eos_token_id)
    backend.post_processor = _post_processor({"type": "Sequence", "processors": [*offsets, template]})
    if _parts(tokenizer) != (before, text, [tokenizer.eos_token_id]):
        raise UserError(
            f"the tokenizer ({type(tokenizer).__name__}) adds its special tokens in code of its own, so no end "
            "token can be added, and the pooling last_token needs one; choose `pooling=mean`"
        )
    return True


def _parts(tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """Ids that the tokenizer puts before a text, ids of a text, and ids that it puts after it."""
    for probe in PROBES:
        bare, whole = (tokenizer(probe, add_special_tokens=special)["input_ids"] for special in (False, True))
        for start in range(len(whole) - len(bare), -1, -1):
            if bare and whole[start : start + len(bare)] == bare:
                return whole[:start], bare, whole[start + len(bare) :]
    raise UserError("the tokenizer gives no tokens for simple texts; its files are damaged")


def _template(names: list[str], ids: list[int], end: str, end_id: int) -> dict[str, Any]:
    """The post-processor `names text end`, as tokenizer.json writes it."""

    def text(sequence: str, kind: int) -> list[dict[str, Any]]:
        special = [{"SpecialToken": {"id": name, "type_id": kind}} for name in [*names, end]]
        return [*special[:-1], {"Sequence": {"id": sequence, "type_id": kind}}, special[-1]]

    tokens = dict(zip([*names, end], [*ids, end_id], strict=True))
    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in tokens.items()},
    }


def _post_processor(state: dict[str, Any]) -> Any:
    """A post-processor from its form in tokenizer.json."""
    from tokenizers import Tokenizer, models

    empty = json.loads(Tokenizer(models.WordLevel()).to_str())
    return Tokenizer.from_str(json.dumps(empty | {"post_processor": state})).post_processor


def _excess(tokenizer: Any) -> int:
    """Tokens by which cut texts are longer than the limit.

    It is 1 for the folders of earlier versions that were trained with two end tokens, and 0 for any other tokenizer.
    """
    limit = 16
    return max(0, len(tokenizer(" ".join(PROBES) * limit, truncation=True, max_length=limit)["input_ids"]) - limit)


def _shortened(text: str, most: int = 40) -> str:
    """A text in quotes, at most so many characters of it."""
    return repr(text if len(text) <= most else f"{text[:most]}…")
