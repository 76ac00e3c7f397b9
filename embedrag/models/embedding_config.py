"""The embedding configuration: what a program must know besides the weights to compute the same vectors.

Pooling, the modules that follow it, prompts and lengths decide a vector as much as the weights do. They are read from
the sentence-transformers files of a model folder, and are written to the same files, so that every program that loads
the folder computes the same vectors. A base without these files has the default of its family.

Settings of the folder that EmbedRAG does not use (further prompts, the similarity function) are kept: they are written
as they were read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from embedrag.models.artifacts import KEPT_FILES
from embedrag.models.modules.head import KINDS, HeadModule, check_widths, read_head_module, write_head_module
from embedrag.models.modules.model_files import ModelFiles
from embedrag.models.modules.prompts import PASSAGE, QUERY, choose_prompt
from embedrag.models.pooling import POOLING, poolings
from embedrag.runtime.files import write_json
from embedrag.runtime.paths import belongs_to

UNLIMITED = 10**7  # tokens; more than any model reads
# Where sentence-transformers keeps the settings of the transformer; early versions named the file by the family.
TEXT_CONFIGS = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Arguments of a download; they stand beside settings of the model in sentence_bert_config.json.
WHERE_FROM = {"cache_dir", "code_revision", "local_files_only", "revision", "subfolder", "token", "trust_remote_code"}
FOREIGN = (
    "Without this class the vectors would be different. To train the model without it, change modules.json in a copy "
    "of the folder: a class around the transformer becomes sentence_transformers.models.Transformer, and any other "
    "module is left out"
)


@dataclass(frozen=True)
class Kept:
    """Settings of a model folder that are written as they were read.

    Attributes:
        settings: config_sentence_transformers.json.
        text: the settings of the transformer, sentence_bert_config.json.
        prompt_names: names of the prompts that are used, by side.
        files: contents of small files of the folder, by name. They are read at the start, because the folder may be
            gone when the model is saved.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    prompt_names: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, Any]:
        """What sentence-transformers changes in config.json when it loads the model."""
        changes = self.text.get("config_kwargs") or self.text.get("config_args")
        if not isinstance(changes, dict):
            return {}
        return {name: value for name, value in changes.items() if name not in WHERE_FROM}

    @property
    def prompts(self) -> dict[str, str]:
        """Name -> text of all prompts of the folder."""
        return {name: text or "" for name, text in (self.settings.get("prompts") or {}).items()}


@dataclass(frozen=True)
class EmbeddingConfig:
    """How texts become vectors.

    Attributes:
        pooling: a name in `embedrag.models.pooling.POOLING`, or several joined by `+`.
        normalize: whether vectors have length 1.
        query_prompt: put before every query.
        passage_prompt: put before every passage.
        query_max_len: longest query, in tokens, special tokens included.
        passage_max_len: longest passage, likewise.
        head: modules between the pooling and the last normalisation.
        lower_case: texts are lowercased before they are cut into tokens.
        truncate_dim: only so many of the first dimensions are kept, after the normalisation; None: all.
        include_prompt: whether the tokens of the prompt are pooled too. False only where there is no prompt.
        kept: settings that are only written again.
    """

    pooling: str
    normalize: bool = True
    query_prompt: str = ""
    passage_prompt: str = ""
    query_max_len: int = 256
    passage_max_len: int = 1024
    head: tuple[HeadModule, ...] = field(default=(), repr=False)
    lower_case: bool = field(default=False, repr=False)
    truncate_dim: int | None = field(default=None, repr=False)
    include_prompt: bool = field(default=True, repr=False)
    kept: Kept = field(default_factory=Kept, repr=False, compare=False)

    def write(self, folder: Path, width: int, head: nn.Module | None = None) -> None:
        """Write the sentence-transformers files next to the weights.

        Args:
            folder: model folder.
            width: H, numbers of a token vector.
            head: the trained modules that follow the pooling; None: as they were read.
        """
        last = [HeadModule("Normalize")] if self.normalize else []
        following = [*self.head, *last]
        paths = ["", "1_Pooling", *(f"{number}_{module.kind}" for number, module in enumerate(following, 2))]
        kinds = ["Transformer", "Pooling", *(module.kind for module in following)]
        write_json(
            folder / "modules.json",
            [
                {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
            ],
        )
        # The saved tokenizer lowercases texts by itself.
        lengths = {"max_seq_length": self.max_len, "do_lower_case": False}
        sides = {"query_length": self.query_max_len, "document_length": self.passage_max_len}
        lengths |= {name: length for name, length in sides.items() if self.kept.text.get(name)}
        write_json(folder / TEXT_CONFIGS[0], self.kept.text | lengths)
        write_json(folder / "1_Pooling" / "config.json", self._pooling_file(width))
        for number, (path, module) in enumerate(zip(paths[2:], following, strict=True)):
            trained = head[number].state_dict() if isinstance(head, nn.Sequential) and number < len(head) else None
            write_head_module(folder / path, module, trained)
        names = {QUERY: self.query_prompt, "document": self.passage_prompt}
        names |= {name: getattr(self, f"{side}_prompt") for side, name in self.kept.prompt_names.items()}
        usual = {"default_prompt_name": None, "similarity_fn_name": "cosine"}
        settings = usual | {name: value for name, value in self.kept.settings.items() if value is not None}
        write_json(folder / "config_sentence_transformers.json", settings | {"prompts": self.kept.prompts | names})
        for name, content in self.kept.files.items():
            if not (folder / name).exists():
                (folder / name).write_bytes(content)

    def _pooling_file(self, width: int) -> dict[str, Any]:
        chosen = self.pooling.split("+")
        found: dict[str, Any] = {"word_embedding_dimension": width}
        for name, entry in POOLING.items():
            found[f"pooling_mode_{entry.sentence_transformers}"] = name in chosen
        if chosen != [name for name in POOLING if name in chosen]:
            # One key for each pooling can't say in which order they are joined.
            found = {"embedding_dimension": width, "pooling_mode": [entry.mode for entry in poolings(self.pooling)]}
        return found | {"include_prompt": self.include_prompt}

    def dimension(self, width: int) -> int:
        """D, numbers of a text vector, from H, numbers of a token vector.

        Raises:
            UserError: a module that follows the pooling takes another number.
        """
        whole = check_widths(self.head, width * len(poolings(self.pooling)))
        return min(whole, self.truncate_dim or whole)

    @property
    def max_len(self) -> int:
        """The longer of both lengths, for programs that know only one."""
        return max(self.query_max_len, self.passage_max_len)

    def shown_prompts(self) -> str:
        """Both prompts with their names in the model's files, and the names of its other prompts."""
        names = self.kept.prompt_names
        parts = [
            f"{getattr(self, f'{side}_prompt')!r}" + (f" ({names[side]})" if names.get(side, side) != side else "")
            for side in (QUERY, PASSAGE)
        ]
        others = [name for name, text in self.kept.prompts.items() if text and name not in names.values()]
        shown = ", ".join(others[:6]) + (", …" if len(others) > 6 else "")
        return " and ".join(parts) + (f" (not used: {shown})" if others else "")


def read_embedding_config(name: str, argument: str = "model") -> EmbeddingConfig | None:
    """The configuration in the sentence-transformers files of a model or adapter folder; None without them.

    Args:
        name: folder, or hub id of a model that is on this disk.
        argument: what the caller calls `name`, for messages.

    Raises:
        UserError: the files ask for something that EmbedRAG does not support.
    """
    return read_sentence_transformers(ModelFiles(name, argument, local_files_only=True))[1]


def kept_files(files: ModelFiles, subfolder: str = "") -> dict[str, bytes]:
    """Contents of the files that are written into what is made of a model. Links out of the model are left out."""
    places = {name: files.find(f"{subfolder}/{name}".lstrip("/")) for name in KEPT_FILES}
    return {name: place.read_bytes() for name, place in places.items() if place and belongs_to(place, place.parent)}


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
    kinds = _module_kinds(files, modules)
    subfolder = modules[0]["path"]
    prefix = f"{subfolder}/" if subfolder else ""
    text = next(filter(None, (files.settings(prefix + name) for name in TEXT_CONFIGS)), {})
    _check_text_settings(files, text)
    own = files.settings(f"{prefix}tokenizer_config.json")
    length = files.number(text, "max_seq_length", prefix + TEXT_CONFIGS[0])
    length = length or files.number(own, "model_max_length", f"{prefix}tokenizer_config.json") or UNLIMITED
    sides = [files.number(text, name, prefix + TEXT_CONFIGS[0]) for name in ("query_length", "document_length")]
    settings = files.settings("config_sentence_transformers.json")
    if settings.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise files.error(
            f"config_sentence_transformers.json: model_type is {settings['model_type']}; only SentenceTransformer "
            "models give one vector for a text"
        )
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise files.error(
            "config_sentence_transformers.json: prompts must be an object of names and texts; the folder is damaged"
        )
    kept = Kept(settings, text, files=kept_files(files, subfolder))
    default = settings.get("default_prompt_name")
    chosen = {side: choose_prompt(kept.prompts, side, default) for side in (QUERY, PASSAGE)}
    names = {side: name for side, name in chosen.items() if name}
    head = [read_head_module(files, kind, module["path"]) for kind, module in zip(kinds[2:], modules[2:], strict=True)]
    normalize = bool(head) and head[-1].kind == "Normalize"
    pooling, include_prompt = _pooling(files, f"{modules[1]['path']}/config.json")
    return subfolder, EmbeddingConfig(
        pooling=pooling,
        normalize=normalize,
        query_prompt=kept.prompts[names[QUERY]] if QUERY in names else "",
        passage_prompt=kept.prompts[names[PASSAGE]] if PASSAGE in names else "",
        query_max_len=min(sides[0] or length, UNLIMITED),
        passage_max_len=min(sides[1] or length, UNLIMITED),
        head=tuple(head[:-1] if normalize else head),
        lower_case=bool(text.get("do_lower_case")),
        truncate_dim=files.number(settings, "truncate_dim", "config_sentence_transformers.json"),
        include_prompt=include_prompt,
        kept=replace(kept, prompt_names=names),
    )


def _module_kinds(files: ModelFiles, modules: Any) -> list[str]:
    """Names of the modules: Transformer, Pooling, and any number of those in `KINDS`.

    Raises:
        UserError: there is another module, or another order.
    """
    if not isinstance(modules, list) or not all(isinstance(m, dict) and {"type", "path"} <= set(m) for m in modules):
        raise files.error("modules.json: not a list of modules with type and path; the model folder is damaged")
    types = [str(module["type"]) for module in modules]
    kinds = [name.rsplit(".", 1)[-1] for name in types]
    supported = {"Transformer", "Pooling", *KINDS}
    for full, kind in zip(types, kinds, strict=True):
        if not full.startswith("sentence_transformers."):
            raise files.error(
                f"modules.json: {full} is no class of sentence-transformers, and foreign code is not run. {FOREIGN}"
            )
        if kind not in supported or ".sparse_encoder." in full or ".multi_vector_encoder." in full:
            raise files.error(
                f"modules.json: {full} is not supported, and without it the vectors would change. EmbedRAG has "
                f"{', '.join(sorted(supported))}; train another model"
            )
    if kinds[:2] != ["Transformer", "Pooling"] or set(kinds[2:]) - set(KINDS):
        raise files.error(
            f"modules.json has {', '.join(kinds)}; EmbedRAG has a Transformer, then a Pooling, then any number of "
            f"{', '.join(KINDS)}"
        )
    return kinds


def _check_text_settings(files: ModelFiles, text: dict[str, Any]) -> None:
    """Refuse settings of the transformer that make other vectors than the last hidden states."""
    if text.get("transformer_task", "feature-extraction") != "feature-extraction":
        key = "transformer_task"
    elif text.get("query_expansion"):
        key = "query_expansion"
    elif text.get("modality_config") and text["modality_config"].get("text", {}).get("method_output_name") != STATES:
        key = "modality_config"
    else:
        return
    raise files.error(f"{TEXT_CONFIGS[0]}: {key} is {text[key]!r}; only models of plain texts are supported")


STATES = "last_hidden_state"


def _pooling(files: ModelFiles, path: str) -> tuple[str, bool]:
    """The pooling, and whether it includes the tokens of the prompt."""
    config = files.settings(path)
    modes = config.get("pooling_mode")
    if modes is None:
        # Early files have keys such as pooling_mode_mean_tokens; without one of them it is the mean.
        keys = {f"pooling_mode_{entry.sentence_transformers}": entry.mode for entry in POOLING.values()}
        known = [mode for key, mode in keys.items() if config.get(key)]
        others = [key for key, on in config.items() if key.startswith("pooling_mode_") and on and key not in keys]
        modes = [*known, *others] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    names = {entry.mode: name for name, entry in POOLING.items()}
    if unknown := [mode for mode in modes if mode not in names]:
        raise files.error(
            f"{path}: the pooling {unknown[0]} is not supported; EmbedRAG has {', '.join(POOLING)}. Another one can be "
            "named with `pooling`, in a copy of the folder without modules.json"
        )
    return "+".join(names[mode] for mode in modes), config.get("include_prompt", True) is not False
