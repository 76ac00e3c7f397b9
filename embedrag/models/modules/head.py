"""What follows the pooling in a sentence-transformers folder: Dense layers, layer norms, normalisations.

A text vector goes through them one after the other, in float32. A Dense layer is trained when all weights of the
transformer are trained. Adapters (LoRA, QLoRA) leave it as it is.

Letters: n texts, D dimensions of a vector before a module, E dimensions after it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from embedrag.errors import UserError
from embedrag.models.modules.model_files import ModelFiles
from embedrag.runtime.files import write_json

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
VECTOR = "sentence_embedding"  # what sentence-transformers calls the vector that goes from module to module
TANH = "torch.nn.modules.activation.Tanh"  # the activation of a Dense layer that names none


@dataclass(frozen=True)
class HeadModule:
    """One module that follows the pooling.

    Attributes:
        kind: `Dense`, `LayerNorm` or `Normalize`.
        config: its config.json, as text.
        weights: the file of its weights; None when it has none.
    """

    kind: str
    config: str = "{}"
    weights: Path | None = field(default=None, repr=False, compare=False)

    @property
    def settings(self) -> dict[str, Any]:
        """Its config.json."""
        settings: dict[str, Any] = json.loads(self.config)
        return settings

    def width(self, dimension: int) -> int:
        """E, when D is `dimension`."""
        return int(self.settings["out_features"]) if self.kind == "Dense" else dimension

    def __str__(self) -> str:
        if self.kind != "Dense":
            return self.kind
        settings = self.settings
        name = str(settings.get("activation_function", TANH)).rsplit(".", 1)[-1]
        return f"Dense {settings['in_features']} → {settings['out_features']} ({name})"


class Dense(nn.Module):
    """A linear layer and an activation: [n, D] -> [n, E]; with `use_residual` its input is added to its output."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        wide, narrow = int(settings["in_features"]), int(settings["out_features"])
        self.linear = nn.Linear(wide, narrow, bias=bool(settings.get("bias", True)))
        self.activation = activation(str(settings.get("activation_function", TANH)))
        self.use_residual = bool(settings.get("use_residual"))
        self.residual = nn.Linear(wide, narrow, bias=False) if self.use_residual and wide != narrow else None

    def forward(self, vectors: Tensor) -> Tensor:
        """[n, D] -> [n, E]."""
        changed: Tensor = self.activation(self.linear(vectors))
        if not self.use_residual:
            return changed
        return changed + (vectors if self.residual is None else self.residual(vectors))


class LayerNorm(nn.Module):
    """A layer norm: [n, D] -> [n, D]."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(int(settings["dimension"]))

    def forward(self, vectors: Tensor) -> Tensor:
        """[n, D] -> [n, D]."""
        normed: Tensor = self.norm(vectors)
        return normed


class Normalize(nn.Module):
    """Vectors of length 1: [n, D] -> [n, D]."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()

    def forward(self, vectors: Tensor) -> Tensor:
        """[n, D] -> [n, D]."""
        return F.normalize(vectors, dim=-1)


# Name of the module -> its class, and the keys of its config.json that say how many numbers it takes.
KINDS: dict[str, tuple[type[nn.Module], str | None]] = {
    "Dense": (Dense, "in_features"),
    "LayerNorm": (LayerNorm, "dimension"),
    "Normalize": (Normalize, None),
}
KEYS = {  # of config.json; another key could change the vectors
    "Dense": {
        "in_features",
        "out_features",
        "bias",
        "activation_function",
        "module_input_name",
        "module_output_name",
        "use_residual",
    },
    "LayerNorm": {"dimension"},
    "Normalize": {"module_input_name", "module_output_name"},
}


def read_head_module(files: ModelFiles, kind: str, path: str) -> HeadModule:
    """Read a module that follows the pooling; its weights are only looked for.

    Args:
        files: of the model.
        kind: a key of `KINDS`.
        path: folder of the module.

    Raises:
        UserError: its settings ask for something else than the module of this name does, or its weights are missing.
    """
    file = f"{path}/config.json"
    settings = files.settings(file)
    for key in ("module_input_name", "module_output_name"):
        if settings.get(key) not in (None, VECTOR):
            raise files.error(f"{file}: {key} is {settings[key]!r}; only {VECTOR} is supported. {ADVICE}")
    if unknown := sorted(set(settings) - KEYS[kind]):
        raise files.error(f"{file}: {unknown[0]} is not a setting of {kind} that is known here. {ADVICE}")
    needed = [key for key in ("in_features", "out_features", "dimension") if key in KEYS[kind]]
    if lacking := [key for key in needed if not isinstance(settings.get(key), int)]:
        raise files.error(f"{file}: {lacking[0]} is missing or not a number; the model folder is damaged")
    if "activation_function" in settings:
        try:
            activation(str(settings["activation_function"]))
        except UserError as error:
            raise files.error(f"{file}: {error.reason}") from None
    weights = None
    if kind != "Normalize":
        weights = next(filter(None, (files.find(f"{path}/{name}") for name in WEIGHTS)), None)
        if weights is None:
            raise files.error(f"{path} has no {WEIGHTS[0]}; the model folder is not complete, download it again")
    return HeadModule(kind, json.dumps(settings, sort_keys=True), weights)


ADVICE = "Without it the vectors would change; train another model, or one without this module"


def activation(name: str) -> nn.Module:
    """An activation by its full name, such as torch.nn.modules.activation.Tanh.

    Raises:
        UserError: it is not an activation of torch.nn that needs no arguments.
    """
    kind = getattr(nn, name.rsplit(".", 1)[-1], None) if name.startswith("torch.nn.") else None
    if not inspect.isclass(kind) or kind.__module__ != nn.Tanh.__module__ and kind is not nn.Identity:
        raise UserError(f"activation_function is {name!r}; only activations of torch.nn are supported. {ADVICE}")
    try:
        return cast(nn.Module, kind())
    except TypeError:
        raise UserError(f"activation_function is {name!r}, which can't be made without arguments. {ADVICE}") from None


def check_widths(modules: Sequence[HeadModule], dimension: int) -> int:
    """Follow a vector through the modules; returns how many dimensions it has at the end.

    Args:
        modules: in their order.
        dimension: of a vector after the pooling.

    Raises:
        UserError: a module takes another number of dimensions.
    """
    for module in modules:
        key = KINDS[module.kind][1]
        takes = int(module.settings[key]) if key else dimension
        if takes != dimension:
            raise UserError(f"its {module.kind} module takes vectors of {takes} dimensions, and gets {dimension}")
        dimension = module.width(dimension)
    return dimension


def build_head(modules: Sequence[HeadModule]) -> nn.Sequential:
    """The modules with their weights, in float32.

    Raises:
        UserError: a file of weights is damaged, or does not fit its config.json.
    """
    return nn.Sequential(*(_build(module) for module in modules))


def _build(module: HeadModule) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # the start values are replaced, and must not move the run's random state
        layer = KINDS[module.kind][0](module.settings)
    if module.weights is None:
        return layer
    try:
        if module.weights.suffix == ".bin":
            weights = torch.load(module.weights, map_location="cpu", weights_only=True)
        else:
            from safetensors.torch import load_file

            weights = load_file(module.weights)
        weights = {name: weight.float() for name, weight in weights.items()}
    except Exception as error:  # a damaged file fails in many ways
        kind = type(error).__name__
        raise UserError(f"{module.weights}: can't be read ({kind}), it is damaged; download the model again") from None
    try:
        layer.load_state_dict(weights)
    except RuntimeError as error:
        words = " ".join(str(error).partition(":")[2].split())[:200]
        raise UserError(f"{module.weights}: does not fit its config.json ({words}); download the model again") from None
    return layer


def write_head_module(folder: Path, module: HeadModule, weights: dict[str, Tensor] | None) -> None:
    """Write a module as sentence-transformers does.

    Args:
        folder: of the module.
        module: what it is.
        weights: by name; None: those of the file that the module was read from.
    """
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", module.settings)
    if module.weights is None:
        return
    weights = _build(module).state_dict() if weights is None else weights
    from safetensors.torch import save_file

    save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, folder / WEIGHTS[0])
