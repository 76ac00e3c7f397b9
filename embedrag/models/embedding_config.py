"""The embedding contract: all that turns a text into the same vector everywhere.

Pooling, normalisation, prompts, lengths and the end token decide the vector as much as the weights do. The contract is
read from a sentence-transformers folder where the base is one, follows from the model family where it is not, and is
written in sentence-transformers' own files, so that every program that loads such a folder computes the same vectors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedrag.errors import UserError
from embedrag.runtime.files import write_json

POOLING_NAMES = {"mean": "mean_tokens", "cls": "cls_token", "last_token": "lasttoken"}
PASSAGE_PROMPT_NAMES = ("document", "passage", "corpus")


@dataclass(frozen=True)
class EmbeddingConfig:
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


def read_embedding_config(name: str) -> EmbeddingConfig | None:
    """The contract in a model's or adapter's sentence-transformers files; None without them."""
    return _read_contract(_Files(name, local_files_only=True))[1]


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


def _read_contract(files: _Files) -> tuple[str, EmbeddingConfig | None]:
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
    return subfolder, EmbeddingConfig(
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
