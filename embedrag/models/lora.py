"""LoRA adapters (arXiv 2106.09685): which layers get them, and how many parameters are trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from embedrag.errors import UserError, check_choice
from embedrag.models.kernels.fast_lora import speed_up_adapters
from embedrag.models.lora_init import PISSA, WRAPPER, adapter_weights
from embedrag.models.quantization import QuantizationConfig, is_linear, is_transposed
from embedrag.runtime.console import quiet
from embedrag.weights.adapter_file import Adapter
from embedrag.weights.adapter_targets import match_adapter
from embedrag.weights.tensor_changes import LowRank

# Start of the adapters -> what peft calls it. LoftQ starts as peft's default; `trainable_backbone` then changes it.
INITS: dict[str, bool | str] = {"default": True, "pissa": PISSA, "loftq": True}


# Families with state-space layers, and the layers among them that an adapter does not reach.
STATE_SPACE = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
OUT_OF_REACH = {"out_proj", "dt_proj"}


@dataclass(frozen=True)
class LoraSettings:
    """The adapters of a training.

    Attributes:
        r: rank.
        alpha: an adapter's product is multiplied by alpha / r.
        dropout: probability that an input of an adapter is left out.
        target_modules: last names of the layers that get adapters; None: all linear layers.
        top_layers: only the last `top_layers` blocks of the model get adapters; None: all blocks.
        use_rslora: multiply by alpha / sqrt(r), for high ranks (rsLoRA, arXiv 2312.03732).
        use_dora: train length and direction of the weights separately (DoRA, arXiv 2402.09353).
        init: how the adapters start, a key of `INITS`.
    """

    r: int = 8
    alpha: int = 32
    dropout: float = 0.1
    target_modules: Sequence[str] | None = None
    top_layers: int | None = None
    use_rslora: bool = False
    use_dora: bool = False
    init: str = "default"


def check_lora(lora: LoraSettings, quantization: QuantizationConfig | None) -> None:
    """Raise UserError when the settings of the adapters contradict each other or the quantisation."""
    check_choice("lora_init", lora.init, INITS)
    if lora.init == "pissa" and quantization:
        raise UserError(
            "changes the base's weights, but they are quantised; use `lora_init=loftq`", "lora_init", "pissa"
        )
    if lora.init == "loftq" and quantization and quantization.given:
        raise UserError(
            "needs the original weights, but the base's files hold quantised ones only; name the unquantised base",
            "lora_init",
            "loftq",
        )
    if lora.init == "loftq" and (quantization is None or quantization.bits != 4):
        raise UserError(
            "corrects the error of 4-bit quantisation, but the base is not quantised to 4 bits", "lora_init", "loftq"
        )
    if lora.init != "default" and lora.use_dora:
        raise UserError(f"starts from the unchanged base; leave out `lora_init={lora.init}`", "use_dora")


def add_adapters(model: nn.Module, lora: LoraSettings) -> nn.Module:
    """Put LoRA adapters on the linear layers of a frozen backbone.

    Raises:
        UserError: when the model lacks the layers that `lora` names.
    """
    with quiet():
        from peft import LoraConfig, TaskType, get_peft_model

    if lora.use_dora and any(is_transposed(module) for module in model.modules()):
        raise UserError("the layers of this base are stored transposed, and peft can't rescale these", "use_dora")
    targets = _in_top_layers(model, lora_targets(model, lora.target_modules), lora.top_layers)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=None if lora.target_modules else _poolers_among(model, targets) or None,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        init_lora_weights=INITS[lora.init],
        task_type=TaskType.FEATURE_EXTRACTION,
        bias="none",
    )
    try:
        with quiet():
            adapted = cast(nn.Module, get_peft_model(model, config))
    except ValueError as error:  # a layer that peft can't adapt
        words = str(error).splitlines()[0]
        raise UserError(f"peft can't adapt these layers ({words})", "lora_target_modules", targets) from None
    speed_up_adapters(adapted)
    if lora.init == "pissa":
        adapted.adapter_start = adapter_weights(adapted)  # type: ignore[assignment]
    return adapted


def attach_adapter(model: nn.Module, adapter: Adapter, argument: str) -> nn.Module:
    """Put an adapter from disk on its base, as a peft model. The forward pass, its scale included, is peft's own.

    Layers, ranks and weights are those that `read_adapter` found, and not what adapter_config.json says: that has the
    paths of another class (AutoModelForCausalLM) in it, and peft ignores keys that it does not know.

    Args:
        model: the backbone; its weights change where the adapter replaces them.
        adapter: from `read_adapter`.
        argument: what the caller calls the adapter, for messages.

    Raises:
        UserError: the two do not belong together.
    """
    parameters = dict(model.named_parameters())
    shapes = {name: tuple(stored_shape(held)) for name, held in parameters.items()}
    try:
        matched = match_adapter(adapter, shapes, str(model.config._name_or_path))  # type: ignore[union-attr]
    except UserError as error:
        reason = error.reason
        if any(".experts." in name for name in adapter.changes):
            reason = (
                "it changes single experts, and transformers 5 loads all experts of a layer as one tensor, so it can't "
                "be put on the model. The files can be merged, without the proof (no_verify, in Python verify=False)"
            )
        raise UserError(reason, argument, adapter.file) from None
    with torch.no_grad():
        for name, (_, change) in matched.items():
            if change.replaced is not None:
                parameters[name].copy_(change.replaced)
            if change.tokens is not None:
                parameters[name][list(change.tokens.indices)] = change.tokens.values.to(parameters[name])
    layers = {
        name.removesuffix(".weight"): (own.removesuffix(".weight"), change.low_rank)
        for name, (own, change) in matched.items()
        if change.low_rank
    }
    return _with_low_rank(model, adapter, layers, argument) if layers else model


def _with_low_rank(
    model: nn.Module, adapter: Adapter, layers: dict[str, tuple[str, LowRank]], argument: str
) -> nn.Module:
    """The model with the low-rank parts of an adapter, as a peft model.

    Args:
        model: the backbone.
        adapter: from `read_adapter`.
        layers: layer of the model -> (its name in the adapter, what is added to it).
        argument: what the caller calls the adapter, for messages.

    Raises:
        UserError: peft has no place for one of the weights.
    """
    with quiet():
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
        from peft.utils.other import get_pattern_key

    config = adapter.config
    weights: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    patterns = config.get("alpha_pattern") or {}
    for layer, (own, low) in layers.items():
        kind, ending = ("lora_embedding_", "") if low.embedding else ("lora_", ".weight")
        weights |= {f"{WRAPPER}{layer}.{kind}{side}{ending}": part for side, part in (("A", low.a), ("B", low.b))}
        if low.magnitude is not None:
            weights[f"{WRAPPER}{layer}.lora_magnitude_vector"] = low.magnitude
        if f"{own}.bias" in adapter.added:
            weights[f"{WRAPPER}{layer}.lora_B.bias"] = adapter.added[f"{own}.bias"] / low.scale
        alpha = config.get("lora_alpha", adapter.lora_alpha)
        alphas[f"^{re.escape(layer)}"] = patterns.get(get_pattern_key(patterns, own), alpha)
        ranks[f"^{re.escape(layer)}"] = len(low.a)
    settings = LoraConfig(
        r=max(ranks.values()),
        rank_pattern=ranks,
        alpha_pattern=alphas,
        target_modules="|".join(map(re.escape, layers)),
        use_rslora=bool(config.get("use_rslora")),
        use_dora=any(low.magnitude is not None for _, low in layers.values()),
        lora_bias=bool(adapter.added),
        init_lora_weights=False,
    )
    with quiet():
        adapted = cast(nn.Module, get_peft_model(model, settings))
        loaded = set_peft_model_state_dict(adapted, weights)
    if lost := [*loaded.unexpected_keys, *(key for key in loaded.missing_keys if "lora_" in key)]:
        raise UserError(f"peft has no place for {', '.join(lost[:4])}", argument, adapter.file)
    return adapted


def _in_top_layers(model: nn.Module, names: list[str], count: int | None) -> list[str]:
    """Names of the layers that get adapters: the given names, or the whole paths of such layers in the last blocks.

    Raises:
        UserError: when the model has fewer blocks, or none of the layers is in them.
    """
    blocks = int(model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    if count and count > blocks:
        raise UserError(f"the model has {blocks} layers", "lora_top_layers", count)
    if not count or count == blocks:
        return names
    # peft's own layers_to_transform does not find the blocks of decoders, because their paths begin with `layers`.
    linears = [name for name, module in model.named_modules() if is_linear(module)]
    wanted = [name for name in linears if any(f".{name}".endswith(f".{last}") for last in names)]
    found = [name for name in wanted if (number := re.search(r"\.(\d+)\.", name)) and int(number[1]) >= blocks - count]
    if not found:
        raise UserError(
            f"the last {count} layers of the model have none of {', '.join(names)}", "lora_top_layers", count
        )
    return found


def lora_targets(model: nn.Module, asked: Sequence[str] | None = None) -> list[str]:
    """Last names of the linear layers that get adapters.

    Args:
        model: the backbone.
        asked: last names of layers; each must occur in the model. None: all linear layers.

    Raises:
        UserError: when a name does not occur. The message lists the names that do.

    >>> lora_targets(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    ['0']
    """
    linears = [name for name, module in model.named_modules() if is_linear(module)]
    names = sorted({_target_name(name) for name in linears if not _in_pooler(name)})
    if not asked and getattr(getattr(model, "config", None), "model_type", None) in STATE_SPACE:
        names = [name for name in names if name not in OUT_OF_REACH]
    if not names:
        raise UserError("the model has no linear layers that LoRA could adapt; use `finetune_type=full`")
    missing = [name for name in asked or [] if not any(f".{linear}".endswith(f".{name}") for linear in linears)]
    if missing:
        reason = f"the model has no such linear layer; it has {', '.join(names)}"
        raise UserError(reason, "lora_target_modules", missing)
    return list(asked) if asked else names


def _poolers_among(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Layers of a pooler that have the name of a target; the vectors do not use them. Code of others has its own."""
    linears = [name for name, module in model.named_modules() if is_linear(module) and _in_pooler(name)]
    return [name for name in linears if any(f".{name}".endswith(f".{target}") for target in targets)]


def _in_pooler(name: str) -> bool:
    return any("pooler" in part for part in name.split("."))


def _target_name(name: str) -> str:
    """The last name of a layer; the last two for `dense`, because BERT's pooler has a layer of that name too."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1] == "dense" else parts[-1]


def stored_shape(parameter: Tensor) -> torch.Size:
    """Shape of a weight; that of a 4-bit weight before it was packed."""
    return torch.Size(getattr(getattr(parameter, "quant_state", None), "shape", parameter.shape))


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Number of all parameters and of the trainable ones. A 4-bit weight counts as one parameter."""
    total = trainable = 0
    for parameter in model.parameters():
        count = stored_shape(parameter).numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return total, trainable


def without_gradient(model: nn.Module) -> list[str]:
    """Names of the trainable parameters that got no gradient in the last backward pass."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
