"""Read the small files of a base model: configuration, pooling, prompts, lengths. No weights are loaded."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedrag.errors import UserError
from embedrag.models.embedding_config import EmbeddingConfig, Kept, kept_files, read_sentence_transformers
from embedrag.models.modules.model_files import ModelFiles
from embedrag.weights.adapter_file import adapter_in
from embedrag.weights.quantized_files import quantization_of

# Families with an encoder and a decoder of which the encoder alone is a model of transformers (sentence-t5, GTR).
ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
# sentence-transformers leaves their prompts out of the pooling by these names, and their files do not say so.
INSTRUCTOR = ("hkunlp/instructor-base", "hkunlp/instructor-large", "hkunlp/instructor-xl")
OWN_CODE = "has Python code of its own, which runs only if you trust it; read it, and add `trust_remote_code`"
# Families that begin to count positions after the padding index: token 1 has the position pad_token_id + 1.
OFFSET_POSITIONS = {
    "camembert",
    "data2vec-text",
    "ibert",
    "lilt",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}


@dataclass(frozen=True)
class Base:
    """A base model, as its small files describe it.

    Attributes:
        name: hub id, or the absolute path of a folder.
        subfolder: where its weights lie (old sentence-transformers folders use `0_Transformer`).
        config: its transformers configuration.
        is_decoder: left-to-right model.
        position_limit: longest text, in tokens, that it has positions for; None when only memory limits it.
        embedding_config: from its sentence-transformers files, or the default of its family.
    """

    name: str
    subfolder: str
    config: Any
    is_decoder: bool
    position_limit: int | None
    embedding_config: EmbeddingConfig

    @property
    def hidden_size(self) -> int:
        """Dimensions of the state of a token; 0 when the configuration does not say."""
        return int(getattr(self.config.get_text_config(), "hidden_size", 0))

    def folder(self) -> Path:
        """The folder of its files. A model of the hub is downloaded first."""
        folder = Path(self.name)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            others = ["*.onnx", "*.h5", "*.msgpack", "*.gguf", "onnx/*"]
            folder = Path(snapshot_download(self.name, ignore_patterns=others))
        return folder / self.subfolder


def describe_base(
    name: str,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    argument: str = "model_name_or_path",
) -> Base:
    """Read the small files of a base model. No weights are loaded.

    Args:
        name: folder or hub id.
        trust_remote_code: run Python code that comes with the model.
        local_files_only: never ask the hub.
        argument: what the caller calls `name`, for messages.

    Raises:
        UserError: there is no such model, or it is of a kind that EmbedRAG does not support.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    check_local_path(name, argument)
    if Path(name).expanduser().is_dir():
        name = str(Path(name).expanduser().resolve())
    files = ModelFiles(name, argument, local_files_only)
    subfolder, embedding_config = read_sentence_transformers(files)
    try:
        config = AutoConfig.from_pretrained(
            name,
            subfolder=subfolder,
            trust_remote_code=trust_remote_code,
            local_files_only=local_files_only,
            **(embedding_config.kept.changes if embedding_config else {}),
        )
    except (OSError, ValueError) as error:
        if not trust_remote_code and (files.json(f"{subfolder}/config.json".lstrip("/")) or {}).get("auto_map"):
            raise files.error(f"the model {OWN_CODE}") from None
        here = "" if Path(name).is_dir() else ", and there is no such folder here"
        raise files.error(f"no model can be read there{here} ({str(error).splitlines()[0]})") from None
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False) and kind not in ENCODERS:
        raise files.error(
            f"config.json: model_type is {kind}, an encoder with a decoder. Only the encoders of "
            f"{', '.join(ENCODERS)} are supported; train another model"
        )
    try:
        quantization_of(config)
    except UserError as error:
        raise files.error(error.reason) from None
    is_decoder = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if embedding_config is None:
        kept = Kept(files=kept_files(files))
        embedding_config = EmbeddingConfig(pooling="last_token" if is_decoder else "mean", kept=kept)
    if name in INSTRUCTOR:
        embedding_config = replace(embedding_config, include_prompt=False)
    return Base(name, subfolder, config, is_decoder, position_limit(config), embedding_config)


def model_name(value: object, argument: str = "model_name_or_path") -> str:
    """A folder or hub id as text.

    Args:
        value: as the caller gave it.
        argument: what the caller calls it, for messages.

    Raises:
        UserError: it is neither a text nor a path.

    >>> model_name(Path("merged"))
    'merged'
    """
    if not isinstance(value, (str, Path)) or not str(value).strip():
        raise UserError(f"name a folder or a hub id; {value!r} is neither", argument)
    return str(value)


def check_local_path(name: str, argument: str = "model_name_or_path") -> None:
    """Reject a path that holds no model, or holds an adapter.

    Args:
        name: folder or hub id.
        argument: what the caller calls `name`, for messages.

    Raises:
        UserError: with the remedy.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if adapter_in(path):
            raise UserError("this is an adapter, not a model; merge it first and use the merged model", argument, name)
        if not (path / "config.json").exists() and not (path / "modules.json").exists():
            markers = ("config.json", "modules.json", "adapter_config.json")
            inside = sorted({folder.parent.name for marker in markers for folder in path.glob(f"*/{marker}")})
            hint = f"; name one of its folders {', '.join(inside[:8])}" if inside else ""
            raise UserError(f"this folder holds no model (no config.json, no modules.json){hint}", argument, name)
    elif path.is_file():
        raise UserError("this is a file; name the folder that holds it", argument, name)
    elif name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name:
        raise UserError("no such folder; give a folder that exists, or a hub id such as owner/name", argument, name)


def position_limit(config: Any) -> int | None:
    """Longest text that a model has positions for, in tokens with special tokens; None when only memory limits it.

    Args:
        config: the model's transformers configuration.

    >>> from transformers import BertConfig, CamembertConfig
    >>> position_limit(BertConfig()), position_limit(CamembertConfig(max_position_embeddings=514))
    (512, 512)
    """
    names = ("max_position_embeddings", "max_seq_len")  # the second one is MPT's
    limit: int | None = next((value for name in names if (value := getattr(config, name, None))), None)
    if limit is not None and config.model_type in OFFSET_POSITIONS:
        limit -= (getattr(config, "pad_token_id", None) or 0) + 1
    return limit


def resolve_embedding_config(
    base: Base,
    *,
    pooling: str | None = None,
    query_prompt: str | None = None,
    passage_prompt: str | None = None,
    query_max_len: int | None = None,
    passage_max_len: int | None = None,
) -> tuple[EmbeddingConfig, list[str]]:
    """How a model on this base embeds texts: the caller's values, otherwise those of the base.

    Args:
        base: from `describe_base`.
        pooling: name in `embedrag.models.pooling.POOLING`; None: the base's.
        query_prompt: put before every query; None: the base's.
        passage_prompt: put before every passage; None: the base's.
        query_max_len: longest query, in tokens; None: the base's, at most the default of `EmbeddingConfig`.
        passage_max_len: longest passage, likewise.

    Returns:
        The configuration, and a line for each length that was asked for and had to be shortened.

    Raises:
        UserError: when a length is below 2 tokens.
    """
    own = base.embedding_config
    lengths: dict[str, Any] = {}
    notices = []
    for side, asked in (("query_max_len", query_max_len), ("passage_max_len", passage_max_len)):
        if asked is not None and asked < 2:
            raise UserError("must be 2 or more", side, asked)
        length = min(getattr(own, side), getattr(EmbeddingConfig, side)) if asked is None else asked
        if base.position_limit and length > base.position_limit:
            if asked is not None:
                limit = base.position_limit
                notices.append(f"`{side}={asked}` is lowered to {limit}: the base model has no positions beyond that")
            length = base.position_limit
        lengths[side] = length
    embedding_config = replace(
        own,
        pooling=own.pooling if pooling is None else pooling,
        query_prompt=own.query_prompt if query_prompt is None else query_prompt,
        passage_prompt=own.passage_prompt if passage_prompt is None else passage_prompt,
        **lengths,
    )
    try:
        embedding_config.dimension(base.hidden_size)
    except UserError as error:
        remedy = "its folder is damaged" if pooling is None else "leave the pooling out, then the model's own is used"
        raise UserError(f"{base.name}: {error.reason}; {remedy}", "pooling", pooling) from None
    return embedding_config, notices


def model_class(config: Any) -> Any:
    """The class of transformers that loads a model of this kind, without a head and without a decoder."""
    import transformers

    return getattr(transformers, ENCODERS.get(config.model_type, "AutoModel"))


def empty_model(config: Any, trust_remote_code: bool = False) -> Any:
    """A model of this kind with weights that were never set, for the names of its layers."""
    settings = {"add_pooling_layer": False} if takes_pooling_argument(config) else {}
    if config.model_type in ENCODERS:
        return model_class(config)(config)
    return model_class(config).from_config(config, trust_remote_code=trust_remote_code, **settings)


def takes_pooling_argument(config: Any) -> bool:
    """Whether models of this kind have a pooler that can be left out."""
    from transformers import AutoModel

    kind = AutoModel._model_mapping.get(type(config), None)
    return kind is not None and "add_pooling_layer" in inspect.signature(kind.__init__).parameters
