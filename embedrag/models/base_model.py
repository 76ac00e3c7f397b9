"""What a base model says about itself; no weights are loaded."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedrag.errors import UserError
from embedrag.models.embedding_config import EmbeddingConfig, _Files, _read_contract
from embedrag.training.config.options import TrainOptions

# Families whose positions start behind the padding index, so two of them are lost.
OFFSET_POSITIONS = {
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "longformer",
    "xmod",
    "data2vec-text",
}


@dataclass(frozen=True)
class Base:
    """A base model, as far as its small files tell.

    Attributes:
        name: hub id, or the folder's absolute path.
        subfolder: where the weights lie in it (old sentence-transformers folders use `0_Transformer`).
        config: its transformers configuration.
        is_decoder: left-to-right model.
        position_limit: longest text that it has positions for; None when only memory limits it.
        contract: its own contract; None when it is no sentence-transformers folder.
    """

    name: str
    subfolder: str
    config: Any
    is_decoder: bool
    position_limit: int | None
    embedding_config: EmbeddingConfig | None

    def folder(self) -> Path:
        """The folder of its files, fetched from the hub where it is not local."""
        folder = Path(self.name)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            others = ["*.onnx", "*.h5", "*.msgpack", "*.gguf", "onnx/*"]
            folder = Path(snapshot_download(self.name, ignore_patterns=others))
        return folder / self.subfolder


def describe_base(name: str, trust_remote_code: bool = False, local_files_only: bool = False) -> Base:
    """Read what a base model says about itself; loads no weights.

    Raises:
        UserError: when there is no such model, or it is of a kind that can't be trained here.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    check_local_path(name)
    if Path(name).expanduser().is_dir():
        name = str(Path(name).expanduser().resolve())
    files = _Files(name, local_files_only)
    subfolder, embedding_config = _read_contract(files)
    try:
        config = AutoConfig.from_pretrained(
            name, subfolder=subfolder, trust_remote_code=trust_remote_code, local_files_only=local_files_only
        )
    except (OSError, ValueError) as error:
        if not trust_remote_code and (files.json(f"{subfolder}/config.json".lstrip("/")) or {}).get("auto_map"):
            raise UserError(
                f"--model_name_or_path {name}: the model has Python code of its own, which is not run unless you trust "
                "it; read it, and add --trust_remote_code"
            ) from None
        here = "" if Path(name).is_dir() else ", and no such folder is here"
        reason = str(error).splitlines()[0]
        raise UserError(f"--model_name_or_path {name}: no model can be read there{here} ({reason})") from None
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"--model_name_or_path {name}: encoder-decoder models ({config.model_type}) are not supported")
    kind = config.model_type
    is_decoder = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and kind in OFFSET_POSITIONS:
        limit -= (getattr(config, "pad_token_id", None) or 0) + 1
    return Base(name, subfolder, config, is_decoder, limit, embedding_config)


def check_local_path(name: str) -> None:
    """Reject a base that looks like a path and is none, or is an adapter; needs no heavy import.

    Raises:
        UserError: naming the remedy.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
            raise UserError(
                f"--model_name_or_path {name}: an adapter, not a model; merge it first and train the result"
            )
        if not (path / "config.json").exists() and not (path / "modules.json").exists():
            raise UserError(
                f"--model_name_or_path {name}: this folder holds no model (no config.json, no modules.json)"
            )
    elif path.is_file():
        raise UserError(f"--model_name_or_path {name}: a file; name the folder that holds it")
    elif name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name:
        raise UserError(
            f"--model_name_or_path {name}: no such folder; give a folder that exists, or a hub id such as owner/name"
        )


def settle(base: Base, options: TrainOptions) -> tuple[EmbeddingConfig, list[str]]:
    """The contract of a run: what the user asked for, else what the base says, else what its family needs.

    Returns:
        The contract, and lines that tell the user of every length that had to be shortened.
    """
    own = base.embedding_config or EmbeddingConfig(pooling="last_token" if base.is_decoder else "mean")
    given = options.model_fields_set
    embedding_config = replace(
        own,
        pooling=own.pooling if options.pooling == "auto" else options.pooling,
        query_prompt=own.query_prompt if options.query_prompt is None else options.query_prompt,
        passage_prompt=own.passage_prompt if options.passage_prompt is None else options.passage_prompt,
    )
    notices = []
    for side in ("query_max_len", "passage_max_len"):
        length = getattr(options, side)
        if side not in given and base.embedding_config:
            length = min(length, getattr(base.embedding_config, side))
        if base.position_limit and length > base.position_limit:
            if side in given:
                notices.append(
                    f"{side} {length}: the base model has positions for {base.position_limit} tokens; that is used"
                )
            length = base.position_limit
        embedding_config = replace(embedding_config, **{side: length})
    return embedding_config, notices


def takes_pooling_argument(config: Any) -> bool:
    """Whether models of this kind have a pooler that can be left out."""
    from transformers import AutoModel

    kind = AutoModel._model_mapping.get(type(config), None)
    return kind is not None and "add_pooling_layer" in inspect.signature(kind.__init__).parameters
