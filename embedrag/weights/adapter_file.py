"""A LoRA adapter as files: which tensors of the base it changes, and how.

It reads what peft and the programs that use peft write: LoRA, rsLoRA and DoRA; trained biases, layers that were trained
whole, vectors of single tokens; keys with the prefix of a wrapper (an older one of this project, torch.compile, FSDP,
DDP) or with the adapter's name in them. The adapter may have been trained through AutoModel, AutoModelForCausalLM or
AutoModelForSequenceClassification. A tensor that can't be merged exactly is never skipped: an error names it. Only
heads and poolers are left out, because no vector depends on them, and `left_out` names them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from embedrag.errors import UserError, raise_all
from embedrag.weights.safetensors_io import PickledFile, TensorFile
from embedrag.weights.tensor_changes import LowRank, TensorChange, TokenRows

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
CONFIG = "adapter_config.json"
WHOLE_MODEL = tuple(
    f"{name}{end}" for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")
)
PREFIX = re.compile(r"^(?:module\.)?(?:model\.)?base_model\.model\.")
# Parts of a key that wrappers add: torch.compile, FSDP, and peft around a layer or a table of token vectors.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer", "token_adapter"}
ADDED_BIAS = re.compile(r"^(?P<module>.+)\.lora_B(?:\.[\w-]+)?\.bias$")
FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.[\w-]+)?(?:\.weight)?$")
MAGNITUDE = re.compile(r"^(?P<module>.+)\.lora_magnitude_vector(?:\.[\w-]+)?(?:\.weight)?$")
TOKENS = re.compile(r"^(?P<module>.+)\.trainable_tokens_delta(?:\.[\w-]+)?$")
# Parts on top of the last hidden states. Every pooling reads these states, so no vector depends on such a part.
HEADS = re.compile(
    r"^(?:\w+\.)?(?:lm_head|embed_out|score|classifier|pre_classifier|classification_head|qa_outputs|v_head|cls|pooler"
    r"|head|predictions|sop_classifier|(?:discriminator|generator)_predictions|generator_lm_head|sequence_summary"
    r"|vocab_(?:transform|layer_norm|projector)|pred_layer)(?:\.|$)"
)
# Settings of peft that make an adapter more than this file can merge, and what they do.
INEXACT: dict[str, str] = {
    "layer_replication": "it copies layers",
    "target_parameters": "it adapts bare parameters, not layers",
    "use_bdlora": "it is block-diagonal",
    "use_qalora": "it averages groups of inputs",
    "kasa_config": "it changed the base's own weights at its start",
    "monteclora_config": "it draws its weights at random",
}
# Kinds and settings that no weights can express.
UNMERGEABLE: dict[str, str] = {
    "alora_invocation_tokens": "it acts on some tokens only",
    "arrow_config": "it chooses among several adapters for each token",
    **dict.fromkeys(("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "CPT"), "it adds trained tokens to every text"),
    **dict.fromkeys(("MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT"), "it adds trained tokens to every text"),
    **dict.fromkeys(("XLORA", "POLY"), "it chooses among several adapters for each text"),
}
# Starts that changed the base's own weights. Others (eva, gaussian, orthogonal, mica) leave the base as it is.
REWRITING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
# What the keys of other kinds of adapters contain, for a file without its configuration.
OTHER_KINDS = {
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "ia3_l": "IA3",
    "vera_lambda": "VeRA",
    "oft_": "OFT",
    "lora_E": "AdaLoRA",
    "prompt_embeddings": "a trained prompt",
}
WITH_PEFT = (
    "merge it with peft: PeftModel.from_pretrained(AutoModel.from_pretrained(BASE), ADAPTER).merge_and_unload()"
    ".save_pretrained(FOLDER), and use that folder as the model"
)
AGAIN = "save the adapter again, or download it again"


@dataclass(frozen=True)
class Adapter:
    """An adapter that was read from disk.

    Attributes:
        file: its weights.
        config: content of its adapter_config.json; empty when there is none.
        changes: path of a module -> low-rank change of its weight.
        replaced: name of a tensor -> its new value (modules_to_save, trained biases, copies of token vectors).
        tokens: path of a module -> new vectors of some of its tokens.
        added: name of a bias -> what is added to it (lora_bias).
        left_out: paths of the heads and poolers in the file; no vector depends on them.
        lora_alpha: what the caller gave, for an adapter that has no alpha in its configuration.
    """

    file: Path
    config: dict[str, Any]
    changes: dict[str, LowRank] = field(default_factory=dict)
    replaced: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, TokenRows] = field(default_factory=dict)
    added: dict[str, Tensor] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    lora_alpha: int | None = None

    def by_tensor(self) -> dict[str, TensorChange]:
        """Name of a tensor, as the adapter spells it -> everything that is done to it."""
        all_of: dict[str, TensorChange] = {}
        for module, change in self.changes.items():
            all_of.setdefault(f"{module}.weight", TensorChange()).low_rank = change
        for name, value in self.replaced.items():
            all_of.setdefault(name, TensorChange()).replaced = value
        for module, tokens in self.tokens.items():
            all_of.setdefault(f"{module}.weight", TensorChange()).tokens = tokens
        for name, value in self.added.items():
            all_of.setdefault(name, TensorChange()).added = value
        return all_of


def adapter_in(path: Path) -> Path | None:
    """The weights of an adapter folder, or the adapter file itself; None for anything else.

    A folder with an adapter may also have a config.json (axolotl and others write it), but no weights of a whole model.
    """
    if path.is_file():
        return path if path.suffix in (".safetensors", ".bin") else None
    if any((path / name).is_file() for name in WHOLE_MODEL):
        return None
    found = [path / name for name in (WEIGHTS, PICKLED) if (path / name).is_file()]
    return found[0] if found else path / WEIGHTS if (path / CONFIG).is_file() else None


def read_adapter(lora_adapter_path: str, lora_alpha: int | None = None, argument: str = "lora_adapter_path") -> Adapter:
    """Read an adapter folder or file.

    Args:
        lora_adapter_path: the folder, or the file of weights in it.
        lora_alpha: alpha of the adapter, used when adapter_config.json does not record it.
        argument: what the caller calls `lora_adapter_path`, for messages.

    Raises:
        UserError: when the adapter is missing or damaged, can't be merged exactly, or changes nothing.
    """

    def wrong(reason: str) -> UserError:
        return UserError(reason, argument, lora_adapter_path)

    given = Path(lora_adapter_path).expanduser()
    file = adapter_in(given)
    if file is None or not file.is_file():
        raise wrong(_absent(given, lora_adapter_path))
    config = _read_config(file.parent / CONFIG)
    raise_all(wrong(f"can't be merged exactly: {reason}") for reason in _inexact(config))
    weights = PickledFile(file) if file.suffix == ".bin" else TensorFile(file)
    adapter = _sort(weights, config, lora_alpha, wrong)
    changes = adapter.changes.values()
    if not (adapter.replaced or adapter.tokens or any(change.a.any() and change.b.any() for change in changes)):
        if adapter.left_out:
            raise wrong(f"has only parts that no vector depends on ({', '.join(adapter.left_out[:4])}); use the base")
        raise wrong("changes nothing (all its B matrices are 0); was it trained?")
    if broken := [name for name, change in adapter.by_tensor().items() if not change.is_finite()]:
        raise wrong(f"{broken[0]} has numbers that are not finite: the training diverged; take an earlier checkpoint")
    return adapter


def _absent(given: Path, written: str) -> str:
    """Why there is no adapter at a path, and what to name instead."""
    if not given.exists():
        if written.count("/") == 1 and not written.startswith((".", "/", "~")):
            return f"no such folder; download an adapter of the hub first: hf download {written} --local-dir FOLDER"
        return "no such file or folder"
    if given.is_file():
        return f"this is no file of weights; name the adapter's folder, or {WEIGHTS} in it"
    if (given / "adapters.safetensors").is_file():
        return "this is an adapter of MLX; fuse it there (mlx_lm.fuse), and use the fused model"
    inside = sorted({file.parent.name for name in (WEIGHTS, PICKLED, CONFIG) for file in given.glob(f"*/{name}")})
    if inside:
        return f"no {WEIGHTS} there, but in its folders {', '.join(inside[:8])}; name one of them"
    if any((given / name).is_file() for name in WHOLE_MODEL):
        return "this is a whole model and not an adapter; it can be used as it is"
    return f"no {WEIGHTS} and no {PICKLED} there"


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object; the adapter folder is damaged")
    return config


def _inexact(config: dict[str, Any]) -> list[str]:
    """Why an adapter can't be merged here, with the remedy."""
    kind = str(config.get("peft_type") or "LORA").upper()
    never = [f"{name} ({why})" for name, why in UNMERGEABLE.items() if kind == name or config.get(name)]
    if never:
        return [f"{never[0]}: no weights can do this, in any program; serve base and adapter with peft"]
    reasons = [f"{kind} is not a LoRA adapter; {WITH_PEFT}"] if kind != "LORA" else []
    reasons += [f"{name} is on ({why}); {WITH_PEFT}" for name, why in INEXACT.items() if config.get(name)]
    start = str(config.get("init_lora_weights") or "").lower()
    if start.startswith(REWRITING_INITS):
        reasons.append(
            f"init_lora_weights {start} changed the base's own weights at the start, so the file does not fit the "
            "published base. Save it again from the training with peft's "
            "save_pretrained(…, path_initial_model_for_weight_conversion=…), or save the changed base, name it as "
            f"`base_model_path`, and set init_lora_weights to true in {CONFIG}"
        )
    return reasons


def _plain(key: str) -> str:
    """A key of an adapter file without the prefixes and parts that wrappers add.

    >>> _plain("base_model.model.encoder.query.base_layer.bias")
    'encoder.query.bias'
    """
    name = PREFIX.sub("", ".".join(part for part in key.split(".") if part not in WRAPPERS))
    return re.sub(r"\.modules_to_save(\.default)?", "", name)


def _sort(
    file: TensorFile | PickledFile, config: dict[str, Any], alpha: int | None, wrong: Callable[[str], UserError]
) -> Adapter:
    """Divide the tensors of a file into changes, new values, vectors of tokens, additions, and parts without effect."""
    factors: dict[str, dict[str, Tensor]] = {}
    lengths: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    deltas: dict[str, Tensor] = {}
    replaced: dict[str, Tensor] = {}
    left_out: set[str] = set()
    for key in file.names():
        name, value = _plain(key), file.rows(key)
        if ".original_module." in f".{name}":  # the base's own copy beside a layer that was trained whole
            continue
        if HEADS.match(name):
            left_out.add(re.split(r"\.lora_|\.weight$|\.bias$", name)[0])
            continue
        if value.numel() == 0:
            raise UserError(
                f"{file.path}: {key} is empty, as DeepSpeed ZeRO-3 leaves it; save the adapter again with "
                "stage3_gather_16bit_weights_on_model_save"
            )
        if found := ADDED_BIAS.match(name):
            place, entry = biases, found["module"]
        elif found := FACTOR.match(name):
            place, entry = factors.setdefault(found["module"], {}), (found["embedding"] or "") + found["side"]
        elif found := MAGNITUDE.match(name):
            place, entry = lengths, found["module"]
        elif found := TOKENS.match(name):
            place, entry = deltas, found["module"]
        elif kinds := [kind for mark, kind in OTHER_KINDS.items() if mark in name]:
            raise wrong(f"can't be merged exactly: it is {kinds[0]} and not LoRA ({key}); {WITH_PEFT}")
        elif "lora_" in name:
            raise UserError(f"{file.path}: {key} belongs to an adapter that can't be merged exactly; {WITH_PEFT}")
        else:
            place, entry = replaced, name
        if entry in place:
            raise UserError(f"{file.path}: holds two adapters for {name}; save only the one that you want")
        place[entry] = value if place is replaced else value.float()
    if factors and not config and alpha is None:
        raise wrong(f"there is no {CONFIG} next to it, so the adapter's scale is not known; give `lora_alpha`")
    changes = {
        module: _low_rank(file.path, module, sides, lengths.pop(module, None), config, alpha)
        for module, sides in factors.items()
    }
    if lengths:
        raise UserError(f"{file.path}: {next(iter(lengths))} has a DoRA magnitude, but no A and B matrices; {AGAIN}")
    added = {f"{module}.bias": changes[module].scale * bias for module, bias in biases.items() if module in changes}
    tokens = {module: _token_rows(file.path, module, values, config) for module, values in deltas.items()}
    if not (changes or replaced or tokens or left_out):
        raise UserError(f"{file.path}: holds no adapter weights")
    return Adapter(file.path, config, changes, replaced, tokens, added, tuple(sorted(left_out)), alpha)


def _low_rank(
    path: Path, module: str, sides: Mapping[str, Tensor], magnitude: Tensor | None, config: dict[str, Any], alpha: Any
) -> LowRank:
    embedding = set(sides) == {"embedding_A", "embedding_B"}
    a, b = (sides.get(f"embedding_{side}" if embedding else side) for side in "AB")
    if a is None or b is None or a.ndim != 2 or b.ndim != 2 or len(sides) != 2 or a.shape[0] != b.shape[1]:
        raise UserError(
            f"{path}: {module} has no matching pair of 2-D A and B matrices (a convolution has others); {WITH_PEFT}"
        )
    if config.get("use_dora") and magnitude is None:
        raise UserError(f"{path}: use_dora is on (DoRA), but {module} has no magnitude in the file; {AGAIN}")
    if magnitude is not None and (embedding or magnitude.shape != b.shape[:1]):
        raise UserError(f"{path}: {module} is a table of vectors that DoRA rescales; {WITH_PEFT}")
    scale = _scale(module, a.shape[0], config, alpha)
    return LowRank(a, b, scale, transposed=embedding, magnitude=magnitude, embedding=embedding)


def _token_rows(path: Path, module: str, values: Tensor, config: dict[str, Any]) -> TokenRows:
    """New vectors of tokens; adapter_config.json says which tokens they are."""
    indices = config.get("trainable_token_indices") or []
    if isinstance(indices, dict):
        indices = next((own for name, own in indices.items() if f".{module}".endswith(f".{name}")), [])
    if len(indices) != len(values):
        raise UserError(
            f"{path}: has new vectors of {len(values)} tokens of {module}, but trainable_token_indices of {CONFIG} "
            f"names {len(indices)}"
        )
    return TokenRows(tuple(map(int, indices)), values)


def _scale(module: str, rank: int, config: dict[str, Any], given: int | None) -> float:
    """Alpha / r, or alpha / sqrt(r) for rsLoRA. As in peft, a pattern that matches the end of a path sets the alpha."""
    patterns = config.get("alpha_pattern") or {}
    own = [value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)]
    alpha = own[0] if own else config.get("lora_alpha", given)
    if alpha is None:
        raise UserError(f"{CONFIG} does not record the adapter's scale; give `lora_alpha`")
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
