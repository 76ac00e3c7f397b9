"""The embedding configuration: what a program must know besides the weights to compute the same vectors.

Pooling, normalisation, prompts and lengths decide a vector as much as the weights do. They are read from the
sentence-transformers files of a model folder, and are written to the same files, so that every program that loads the
folder computes the same vectors. A base without these files has the default of its family.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedrag.errors import UserError
from embedrag.models.pooling import POOLING
from embedrag.runtime.files import write_json
from embedrag.runtime.paths import is_inner_path

PASSAGE_PROMPT_NAMES = ("document", "passage", "corpus")
UNLIMITED = 10**7  # tokens; more than any model reads


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
        """Write the sentence-transformers files next to the weights.

        Args:
            folder: model folder.
            dimension: D, length of a vector.
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
        for name, entry in POOLING.items():
            pooling[f"pooling_mode_{entry.sentence_transformers}"] = name == self.pooling
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
        """The longer of both lengths, for programs that know only one."""
        return max(self.query_max_len, self.passage_max_len)


def read_embedding_config(name: str, argument: str = "model") -> EmbeddingConfig | None:
    """The configuration in the sentence-transformers files of a model or adapter folder; None without them.

    Args:
        name: folder, or hub id of a model that is on this disk.
        argument: what the caller calls `name`, for messages.

    Raises:
        UserError: the files ask for something that EmbedRAG does not support.
    """
    return read_sentence_transformers(ModelFiles(name, argument, local_files_only=True))[1]


@dataclass(frozen=True)
class ModelFiles:
    """Small files of a model, in a folder or on the hub.

    Attributes:
        name: folder or hub id.
        argument: what the caller calls `name`, for messages.
        local_files_only: never ask the hub.
    """

    name: str
    argument: str
    local_files_only: bool

    def json(self, path: str) -> Any:
        """Content of a JSON file; None when the model has no such file.

        Raises:
            UserError: the file is damaged, or the path leads out of the model's folder.
        """
        if not is_inner_path(path):
            raise self.error(f"its modules.json names {path!r}, which is not in its folder; download the model again")
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

    def error(self, reason: str) -> UserError:
        """An error about this model."""
        return UserError(reason, self.argument, self.name)


def read_sentence_transformers(files: ModelFiles) -> tuple[str, EmbeddingConfig | None]:
    """Read the files of sentence-transformers.

    Returns:
        The subfolder of the weights, and the configuration; "" and None for a model without these files.

    Raises:
        UserError: they ask for something that EmbedRAG does not support.
    """
    modules = files.json("modules.json")
    if modules is None:
        return "", None
    kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
    if unknown or not {"Transformer", "Pooling"} <= set(kinds):
        raise files.error(
            f"its modules.json has {', '.join(kinds)}; only Transformer, Pooling and Normalize are supported, and "
            "without the others its vectors would change"
        )
    subfolder = kinds["Transformer"]
    prefix = f"{subfolder}/" if subfolder else ""
    text = files.json(f"{prefix}sentence_bert_config.json") or {}
    if text.get("do_lower_case"):
        raise files.error("do_lower_case in its sentence_bert_config.json is not supported")
    length = text.get("max_seq_length") or (files.json(f"{prefix}tokenizer_config.json") or {}).get("model_max_length")
    length = int(length) if length and length < UNLIMITED else UNLIMITED
    settings = files.json("config_sentence_transformers.json") or {}
    prompts: dict[str, str] = {name: text or "" for name, text in (settings.get("prompts") or {}).items()}
    fallback = prompts.get(settings.get("default_prompt_name") or "", "")
    passage = next((prompts[name] for name in PASSAGE_PROMPT_NAMES if name in prompts), fallback)
    return subfolder, EmbeddingConfig(
        pooling=_pooling(files, f"{kinds['Pooling']}/config.json"),
        normalize="Normalize" in kinds,
        query_prompt=prompts.get("query", fallback),
        passage_prompt=passage,
        query_max_len=length,
        passage_max_len=length,
    )


def _pooling(files: ModelFiles, path: str) -> str:
    config = files.json(path) or {}
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [
            key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on
        ]
    modes = [modes] if isinstance(modes, str) else modes
    # Older files have keys such as pooling_mode_mean_tokens, newer ones the value "mean".
    known = {alias: name for name, entry in POOLING.items() for alias in (entry.sentence_transformers, name)}
    if len(modes) != 1 or modes[0] not in known or config.get("include_prompt") is False:
        raise files.error(f"its pooling ({', '.join(modes)}) is not supported; EmbedRAG has {', '.join(POOLING)}")
    return known[modes[0]]
