"""The embedding contract: all that turns a text into the same vector everywhere.

Pooling, normalisation, prompts, lengths and the end token decide the vector as much as the weights do. The contract is
read from a sentence-transformers folder where the base is one, follows from the model family where it is not, and is
written in sentence-transformers' own files, so that every program that loads such a folder computes the same vectors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedrag.errors import UserError
from embedrag.runtime.files import write_json
from embedrag.training.config.options import TrainOptions

POOLING_NAMES = {"mean": "mean_tokens", "cls": "cls_token", "last_token": "lasttoken"}
PASSAGE_PROMPT_NAMES = ("document", "passage", "corpus")
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
class Contract:
    """How texts become vectors.

    Attributes:
        pooling: `mean`, `cls` or `last_token`.
        normalize: whether vectors have length 1.
        query_prompt: put before every query.
        passage_prompt: put before every passage.
        query_max_len: longest query, in tokens, special tokens included.
        passage_max_len: longest passage, likewise.
    """

    pooling: str
    normalize: bool = True
    query_prompt: str = ""
    passage_prompt: str = ""
    query_max_len: int = 256
    passage_max_len: int = 1024

    def write(self, folder: Path, dimension: int) -> None:
        """Write the sentence-transformers files beside the weights.

        Args:
            folder: model folder.
            dimension: length of a vector.
        """
        modules = ["Transformer", "Pooling"] + (["Normalize"] if self.normalize else [])
        paths = ["", "1_Pooling", "2_Normalize"]
        write_json(
            folder / "modules.json",
            [
                {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{name}"}
                for i, name in enumerate(modules)
            ],
        )
        write_json(folder / "sentence_bert_config.json", {"max_seq_length": self.max_len, "do_lower_case": False})
        pooling: dict[str, Any] = {"word_embedding_dimension": dimension}
        pooling |= {f"pooling_mode_{key}": name == self.pooling for name, key in POOLING_NAMES.items()}
        write_json(folder / "1_Pooling" / "config.json", pooling | {"include_prompt": True})
        if self.normalize:
            (folder / "2_Normalize").mkdir(exist_ok=True)
            write_json(folder / "2_Normalize" / "config.json", {})
        prompts = {"query": self.query_prompt, "document": self.passage_prompt}
        write_json(
            folder / "config_sentence_transformers.json",
            {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"},
        )

    @property
    def max_len(self) -> int:
        """The longer of both sides, for programs that know one length only."""
        return max(self.query_max_len, self.passage_max_len)


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
    contract: Contract | None

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
    subfolder, contract = _read_contract(files)
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
    return Base(name, subfolder, config, is_decoder, limit, contract)


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


def read_contract(name: str) -> Contract | None:
    """The contract in a model's or adapter's sentence-transformers files; None without them."""
    return _read_contract(_Files(name, local_files_only=True))[1]


def settle(base: Base, options: TrainOptions) -> tuple[Contract, list[str]]:
    """The contract of a run: what the user asked for, else what the base says, else what its family needs.

    Returns:
        The contract, and lines that tell the user of every length that had to be shortened.
    """
    own = base.contract or Contract(pooling="last_token" if base.is_decoder else "mean")
    given = options.model_fields_set
    contract = replace(
        own,
        pooling=own.pooling if options.pooling == "auto" else options.pooling,
        query_prompt=own.query_prompt if options.query_prompt is None else options.query_prompt,
        passage_prompt=own.passage_prompt if options.passage_prompt is None else options.passage_prompt,
    )
    notices = []
    for side in ("query_max_len", "passage_max_len"):
        length = getattr(options, side)
        if side not in given and base.contract:
            length = min(length, getattr(base.contract, side))
        if base.position_limit and length > base.position_limit:
            if side in given:
                notices.append(
                    f"{side} {length}: the base model has positions for {base.position_limit} tokens; that is used"
                )
            length = base.position_limit
        contract = replace(contract, **{side: length})
    return contract, notices


class _Files:
    """Small files of a model, in a folder or on the hub."""

    def __init__(self, name: str, local_files_only: bool) -> None:
        self.name = name
        self.local_files_only = local_files_only

    def json(self, path: str) -> Any:
        """A JSON file, or None when the model has none."""
        local = Path(self.name).expanduser()
        if local.is_dir():
            found: str | None = str(local / path) if (local / path).is_file() else None
        else:
            from transformers.utils import cached_file

            found = cached_file(
                self.name,
                path,
                local_files_only=self.local_files_only,
                _raise_exceptions_for_gated_repo=False,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        if not found:
            return None
        try:
            return json.loads(Path(found).read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{found}: not JSON; the model folder is damaged") from None


def _read_contract(files: _Files) -> tuple[str, Contract | None]:
    """Subfolder of the weights and the contract, from sentence-transformers' files; None without them."""
    modules = files.json("modules.json")
    if modules is None:
        return "", None
    kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown or not {"Transformer", "Pooling"} <= set(kinds):
        raise UserError(
            f"--model_name_or_path {files.name}: its modules.json has {', '.join(kinds)}; only Transformer, Pooling "
            "and Normalize are supported, and dropping one would silently change its vectors"
        )
    subfolder = kinds["Transformer"]
    prefix = f"{subfolder}/" if subfolder else ""
    text = files.json(f"{prefix}sentence_bert_config.json") or {}
    if text.get("do_lower_case"):
        raise UserError(
            f"--model_name_or_path {files.name}: do_lower_case in sentence_bert_config.json is not supported"
        )
    length = text.get("max_seq_length") or (files.json(f"{prefix}tokenizer_config.json") or {}).get("model_max_length")
    length = int(length) if length and length < 10**7 else 10**7
    settings = files.json("config_sentence_transformers.json") or {}
    prompts: dict[str, str] = {name: text or "" for name, text in (settings.get("prompts") or {}).items()}
    fallback = prompts.get(settings.get("default_prompt_name") or "", "")
    passage = next((prompts[name] for name in PASSAGE_PROMPT_NAMES if name in prompts), fallback)
    return subfolder, Contract(
        pooling=_pooling(files.json(f"{kinds['Pooling']}/config.json") or {}, files.name),
        normalize="Normalize" in kinds,
        query_prompt=prompts.get("query", fallback),
        passage_prompt=passage,
        query_max_len=length,
        passage_max_len=length,
    )


def _pooling(config: dict[str, Any], name: str) -> str:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [
            key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on
        ]
    modes = [modes] if isinstance(modes, str) else modes
    known = {alias: ours for ours, key in POOLING_NAMES.items() for alias in (key, ours)} | {"lasttoken": "last_token"}
    if len(modes) != 1 or modes[0] not in known or config.get("include_prompt") is False:
        raise UserError(
            f"--model_name_or_path {name}: its pooling ({', '.join(modes)}) is not one of mean, cls, last_token"
        )
    return known[modes[0]]
