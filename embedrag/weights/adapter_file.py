"""A LoRA adapter as files: which layers it changes, and by how much.

It reads peft's format, and an older one in which keys start with `model.base_model.model.`. The adapter may have been
trained through AutoModel or through AutoModelForCausalLM. A tensor that can't be merged exactly is never skipped: an
error names it.

Dimensions: r is the rank, i the number of inputs of a layer, o the number of its outputs.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from embedrag.errors import UserError, raise_all
from embedrag.weights.name_matching import match_names
from embedrag.weights.safetensors_io import TensorFile

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
PREFIX = re.compile(r"^(?:model\.)?base_model\.model\.")
FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.[\w-]+)?(?:\.weight)?$")
MAGNITUDE = re.compile(r"^(?P<module>.+)\.lora_magnitude_vector(?:\.[\w-]+)?(?:\.weight)?$")
# Settings of peft that make an adapter more than W + scale * B A (or DoRA), and what they do.
INEXACT: dict[str, str] = {
    "lora_bias": "it adds biases to the layers",
    "layer_replication": "it copies layers",
    "target_parameters": "it adapts bare parameters, not layers",
    "trainable_token_indices": "it trains single token vectors",
    "alora_invocation_tokens": "it acts on some tokens only",
    "use_bdlora": "it is block-diagonal",
}
REWRITING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LowRank:
    """The change of one layer's weight: scale * B A. With DoRA (arXiv 2402.09353) its rows get new lengths too.

    Attributes:
        a: [r, i] float32.
        b: [o, r] float32.
        scale: alpha / r, or alpha / sqrt(r) for rsLoRA.
        transposed: the stored weight is [i, o] and not [o, i] (embeddings, GPT-2's layers).
        magnitude: DoRA's lengths of the rows of the merged weight, [o] float32. None: no DoRA.
    """

    a: Tensor
    b: Tensor
    scale: float
    transposed: bool
    magnitude: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the stored weight that it changes."""
        shape = (self.b.shape[0], self.a.shape[1])
        return (shape[1], shape[0]) if self.transposed else shape

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the change, float32."""
        if self.transposed:
            return self.scale * (self.a[:, start:stop].T @ self.b.T)
        return self.scale * (self.b[start:stop] @ self.a)

    def merged(self, weight: Tensor, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the merged weight, float32, from the same rows of the base's weight."""
        changed = weight.float() + self.rows(start, stop)
        if self.magnitude is None:
            return changed
        scaled: Tensor = changed * (self.magnitude[start:stop] / changed.norm(dim=1))[:, None]
        return scaled


def plain_name(key: str) -> str:
    """A key of an adapter file without the wrapper's prefix and the adapter's name.

    >>> plain_name("base_model.model.layers.0.q_proj.lora_A.default.weight")
    'layers.0.q_proj.lora_A.weight'
    """
    name = re.sub(r"\.modules_to_save(\.default)?", "", PREFIX.sub("", key))
    match = FACTOR.match(name)
    if not match:
        return name
    end = "" if match["embedding"] else ".weight"
    return f"{match['module']}.lora_{match['embedding'] or ''}{match['side']}{end}"


@dataclass(frozen=True)
class Adapter:
    """An adapter that was read from disk.

    Attributes:
        file: its safetensors file.
        config: content of its adapter_config.json; empty when there is none.
        changes: path of a module -> change of its weight.
        replaced: name of a tensor -> its new value (modules_to_save, trained biases).
    """

    file: Path
    config: dict[str, Any]
    changes: dict[str, LowRank]
    replaced: dict[str, Tensor]


def read_adapter(lora_adapter_path: str, lora_alpha: int | None = None, argument: str = "lora_adapter_path") -> Adapter:
    """Read an adapter folder or file.

    Args:
        lora_adapter_path: the folder, or the safetensors file in it.
        lora_alpha: alpha of the adapter, used when adapter_config.json does not record it.
        argument: what the caller calls `lora_adapter_path`, for messages.

    Raises:
        UserError: when the adapter is missing or damaged, can't be merged exactly, or changes nothing.
    """

    def wrong(reason: str) -> UserError:
        return UserError(reason, argument, lora_adapter_path)

    given = Path(lora_adapter_path).expanduser()
    file = given / WEIGHTS if given.is_dir() else given
    if not file.is_file():
        other = file.with_name("adapter_model.bin")
        hint = "; only safetensors files are read, because a pickle can hold any code" if other.exists() else ""
        raise wrong(f"no {WEIGHTS} there{hint}")
    config = _read_config(file.parent / CONFIG)
    if not config and lora_alpha is None:
        raise wrong(f"there is no {CONFIG} next to it, so the adapter's scale is not known; give `lora_alpha`")
    raise_all(wrong(f"can't be merged exactly: {reason}") for reason in _inexact(config))
    changes, replaced = _sort(TensorFile(file), config, lora_alpha)
    if not replaced and not any(bool(change.b.any()) for change in changes.values()):
        raise wrong("changes nothing (all its B matrices are 0); was it trained?")
    return Adapter(file, config, changes, replaced)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}: not JSON; the adapter folder is damaged") from None
    return config


def _inexact(config: dict[str, Any]) -> list[str]:
    kind = config.get("peft_type", "LORA")
    reasons = [f"{kind} is not a LoRA adapter"] if kind != "LORA" else []
    reasons += [f"{name} is on ({why})" for name, why in INEXACT.items() if config.get(name)]
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(REWRITING_INITS):
        reasons.append(f"init_lora_weights {start} changed the base's own weights; convert it with peft first")
    return reasons


def _sort(file: TensorFile, config: dict[str, Any], alpha: int | None) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """Divide the tensors of a file into changes (A, B, DoRA's lengths) and tensors that replace the base's."""
    factors: dict[str, dict[str, Tensor]] = {}
    magnitudes: dict[str, Tensor] = {}
    embeddings: set[str] = set()
    replaced: dict[str, Tensor] = {}
    for key in file.names():
        name = PREFIX.sub("", key)
        match = FACTOR.match(name)
        if match:
            sides = factors.setdefault(match["module"], {})
            if match["side"] in sides:
                raise UserError(
                    f"{file.path}: holds two adapters for {match['module']}; save only the one that you want"
                )
            sides[match["side"]] = file.rows(key).float()
            embeddings |= {match["module"]} if match["embedding"] else set()
        elif length := MAGNITUDE.match(name):
            magnitudes[length["module"]] = file.rows(key).float()
        elif "lora_" in name:
            raise UserError(f"{file.path}: {key} belongs to an adapter that can't be merged exactly")
        else:
            replaced[re.sub(r"\.modules_to_save(\.default)?", "", name)] = file.rows(key)
    changes = {}
    for module, sides in factors.items():
        if set(sides) != {"A", "B"} or sides["A"].ndim != 2 or sides["A"].shape[0] != sides["B"].shape[-1]:
            raise UserError(f"{file.path}: {module} has no matching pair of 2-D A and B matrices")
        transposed = module in embeddings or bool(config.get("fan_in_fan_out"))
        rank = sides["A"].shape[0]
        magnitude = magnitudes.pop(module, None)
        if magnitude is not None and (transposed or magnitude.shape != sides["B"].shape[:1]):
            raise UserError(f"{file.path}: {module} is rescaled (DoRA) in a way that can't be merged exactly")
        changes[module] = LowRank(sides["A"], sides["B"], _scale(module, rank, config, alpha), transposed, magnitude)
    if magnitudes:
        raise UserError(f"{file.path}: {next(iter(magnitudes))} has a DoRA magnitude, but no A and B matrices")
    plain = [module for module, change in changes.items() if change.magnitude is None and config.get("use_dora")]
    if plain:
        raise UserError(f"{file.path}: use_dora is on (DoRA), but {plain[0]} has no magnitude in the file")
    if not changes and not replaced:
        raise UserError(f"{file.path}: holds no adapter weights")
    return changes, replaced


def _scale(module: str, rank: int, config: dict[str, Any], given: int | None) -> float:
    """Alpha / r, or alpha / sqrt(r) for rsLoRA. As in peft, a pattern that matches the end of a path sets the alpha."""
    patterns = config.get("alpha_pattern") or {}
    own = [value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)]
    alpha = own[0] if own else config.get("lora_alpha", given)
    if alpha is None:
        raise UserError(f"{CONFIG} does not record the adapter's scale; give `lora_alpha`")
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def targets(adapter: Adapter, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Find the tensor of the base that each entry of an adapter changes or replaces.

    Args:
        adapter: the adapter to merge.
        shapes: name of each tensor of the base -> its shape.

    Returns:
        Name of a tensor -> key in `adapter.changes` or `adapter.replaced`.

    Raises:
        UserError: when an entry has no tensor in the base, or one of another shape. The message lists them.
    """
    wanted = {module: f"{module}.weight" for module in adapter.changes} | {name: name for name in adapter.replaced}
    found, missing = match_names(wanted, shapes)
    remedy = "Is this the base that the adapter was trained on? Nothing was written"
    if missing:
        shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        raise UserError(
            f"{len(missing)} of {len(wanted)} adapter tensors have no target in the base: {shown}. {remedy}"
        )
    if len(set(found.values())) < len(found):
        raise UserError(f"two adapter tensors have the same target in the base. {remedy}")
    expected: dict[str, tuple[int, ...]] = {key: change.shape for key, change in adapter.changes.items()}
    expected |= {key: tuple(value.shape) for key, value in adapter.replaced.items()}
    wrong = [f"{key} {expected[key]} on {shapes[name]}" for key, name in found.items() if expected[key] != shapes[name]]
    if wrong:
        raise UserError(f"{len(wrong)} adapter tensors do not fit the base: {'; '.join(wrong[:4])}. {remedy}")
    return {name: key for key, name in found.items()}
