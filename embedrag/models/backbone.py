"""The transformer: fully trained, with LoRA adapters, or with LoRA adapters on a quantised base.

It is loaded through AutoModel, or as the encoder of a family with a decoder, without a pooler and without a
language-model head. A retrieval loss gives neither of them a gradient, and a parameter without a gradient breaks
distributed training.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from embedrag.errors import UserError
from embedrag.models.base_model import Base, model_class, takes_pooling_argument
from embedrag.models.kernels.fast_dropout import replace_dropout
from embedrag.models.lora import LoraSettings, add_adapters, check_lora
from embedrag.models.lora_init import start_with_quantization_error
from embedrag.models.quantization import (
    QuantizationConfig,
    given_quantization,
    product_dtype,
    settings_of_given,
    settle_quantization,
    stored_dtype,
)
from embedrag.runtime.console import quiet, say

UNQUANTIZABLE = {"falcon_mamba", "mamba"}  # families that read a weight of a linear layer without calling the layer


def load_backbone(
    base: Base,
    dtype: torch.dtype,
    device: torch.device,
    quantization: QuantizationConfig | None = None,
    dropout: bool = True,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    argument: str = "model_name_or_path",
) -> nn.Module:
    """Load the transformer of a base.

    Args:
        base: from `describe_base`.
        dtype: of the weights in memory; a quantised base has its `storage_dtype` instead.
        device: where the weights go.
        quantization: how the base is quantised; None: not at all. A base that is quantised already stays as it is, and
            only the two types are taken.
        dropout: keep the base's own dropout. A frozen base needs none because the adapters have dropout of their own,
            and on a CPU it costs up to a third of a step.
        trust_remote_code: run Python code that comes with the model.
        local_files_only: never ask the hub.
        argument: what the caller calls the base, for messages.

    Raises:
        UserError: the weights can't be read.
    """
    settings: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": local_files_only}
    if base.subfolder:
        settings["subfolder"] = base.subfolder
    if takes_pooling_argument(base.config):
        settings["add_pooling_layer"] = False
    config = copy.deepcopy(base.config)
    given = given_quantization(base) is not None
    compute_dtype = quantization.compute_dtype if quantization else dtype
    dtype = quantization.storage_dtype if quantization else dtype
    if given:
        config.quantization_config = settings_of_given(base, compute_dtype, trust_remote_code, argument)
    elif quantization is not None:
        settings["quantization_config"] = quantization.bitsandbytes()
    if given or quantization:
        settings["device_map"] = {"": device}
    if not dropout:
        for name, value in vars(config).items():
            if "dropout" in name and isinstance(value, float):
                setattr(config, name, 0.0)
    try:
        with quiet():
            model, loading = model_class(base.config).from_pretrained(
                base.name, config=config, dtype=dtype, output_loading_info=True, **settings
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"its weights can't be loaded ({_first_line(error)})", argument, base.name) from None
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise UserError(f"its weights file is damaged ({error}); download it again", argument, base.name) from None
    if loading["missing_keys"]:
        names = ", ".join(sorted(loading["missing_keys"])[:4])
        raise UserError(
            f"its weights file lacks {len(loading['missing_keys'])} weights of a {base.config.model_type} model "
            f"({names}), which would be random; name a complete model",
            argument,
            base.name,
        )
    model.config.use_cache = False
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights for a CPU kernel in the first evaluation, and training on them breaks.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if given:  # transformers leaves the other weights in the type of the files
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    return cast(nn.Module, model if given or quantization else model.to(device))


def trainable_backbone(
    base: Base,
    dtype: torch.dtype,
    device: torch.device,
    lora: LoraSettings | None = None,
    quantization: QuantizationConfig | None = None,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    argument: str = "model_name_or_path",
) -> nn.Module:
    """The transformer of a base; exactly the parameters that this kind of training changes are trainable.

    Args:
        base: from `describe_base`.
        dtype: of the computation. Weights that are trained are float32 and compute under autocast; frozen weights are
            stored in `dtype`.
        device: where the weights go.
        lora: the adapters that are trained on a frozen base; None: all weights are trained.
        quantization: how the frozen base is quantised (QLoRA), as `QuantizationConfig(bits, double)`; its types follow
            from `dtype`. None: not at all.
        gradient_checkpointing: compute the layers again in the backward pass, which takes less memory and more time.
        trust_remote_code: run Python code that comes with the model.
        local_files_only: never ask the hub.
        argument: what the caller calls the base, for messages.

    Raises:
        UserError: the weights can't be read, or the settings do not fit each other or the model.
    """
    asked, quantization = quantization, settle_quantization(base, lora is None, quantization, argument)
    if quantization and quantization.given:
        differs = asked is not None and (asked.bits, asked.double) != (quantization.bits, quantization.double)
        useless = "; `quantization_bits` and `double_quantization` have no effect" if differs else ""
        say(f"the base's weights are quantised already ({quantization}), the adapters are trained on them{useless}")
    if quantization is not None:
        if (kind := base.config.model_type) in UNQUANTIZABLE:
            raise UserError(
                f"{kind} models multiply by weights that bitsandbytes would quantise; use `finetune_type=lora`",
                "finetune_type",
                "qlora",
            )
        quantization = replace(
            quantization, compute_dtype=product_dtype(dtype), storage_dtype=stored_dtype(dtype), skipped_layers=()
        )
    if lora is not None:
        check_lora(lora, quantization)
    model = load_backbone(
        base,
        stored_dtype(dtype) if lora else torch.float32,
        device,
        quantization,
        dropout=lora is None,
        trust_remote_code=trust_remote_code,
        local_files_only=local_files_only,
        argument=argument,
    )
    if lora is None:
        replace_dropout(model)
    else:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        _put_norms_in_float32(model)
        model = add_adapters(model, lora)
        if lora.init == "loftq":
            start_with_quantization_error(model, base.folder())
    if gradient_checkpointing:
        with quiet():
            model.gradient_checkpointing_enable(  # type: ignore[operator]
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
    return model


def _put_norms_in_float32(model: nn.Module) -> None:
    """Let the norms of a frozen base compute in float32. Nothing else grows; token embeddings keep their type."""
    for module in model.modules():
        if "norm" in type(module).__name__.lower() and not list(module.children()):
            module.float()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
