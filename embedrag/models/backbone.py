"""The transformer under the pooling: full, with LoRA adapters, or with LoRA adapters on a quantised base.

Loaded through AutoModel without a pooler or a language-model head, for neither gets a gradient from a retrieval loss
(and a parameter without gradient breaks distributed training).
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import nn

from embedrag.errors import UserError
from embedrag.models.base_model import Base, takes_pooling_argument
from embedrag.models.kernels.fast_dropout import replace_dropout
from embedrag.models.lora import _lift_norms, add_adapters
from embedrag.models.lora_init import begin_with_quantization_error
from embedrag.models.quantization import product_dtype, quantization_config, stored_dtype
from embedrag.runtime.console import quiet
from embedrag.training.config.options import TrainOptions


def load_backbone(
    base: Base,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Any = None,
    dropout: bool = True,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
) -> nn.Module:
    """Load the base's transformer.

    Args:
        base: from `describe_base`.
        dtype: of the weights in memory.
        device: where they go.
        quantization: a BitsAndBytesConfig, or None.
        dropout: keep the base's own dropout. A frozen base needs none (the adapters have theirs), and on a CPU it costs
            up to a third of the step.
        trust_remote_code: run code that comes with the model.
        local_files_only: never ask a hub.

    Raises:
        UserError: when the weights can't be read.
    """
    from transformers import AutoModel

    settings: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": local_files_only}
    if base.subfolder:
        settings["subfolder"] = base.subfolder
    if takes_pooling_argument(base.config):
        settings["add_pooling_layer"] = False
    if quantization is not None:
        settings |= {"quantization_config": quantization, "device_map": {"": device}}
    config = copy.deepcopy(base.config)
    if not dropout:
        for name, value in vars(config).items():
            if "dropout" in name and isinstance(value, float):
                setattr(config, name, 0.0)
    try:
        with quiet():
            model, loading = AutoModel.from_pretrained(
                base.name, config=config, dtype=dtype, output_loading_info=True, **settings
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--model_name_or_path {base.name}: its weights can't be loaded ({_first_line(error)})"
        ) from None
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise UserError(f"--model_name_or_path {base.name}: a damaged weights file ({error}); fetch it again") from None
    if loading["missing_keys"]:
        names = ", ".join(sorted(loading["missing_keys"])[:4])
        raise UserError(
            f"--model_name_or_path {base.name}: its weights file lacks {len(loading['missing_keys'])} weights of a "
            f"{base.config.model_type} model ({names}); they would be random. Name the complete model"
        )
    model.config.use_cache = False
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights for a CPU kernel in the first evaluation, and training on them breaks.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return cast(nn.Module, model if quantization is not None else model.to(device))


def trainable_backbone(base: Base, options: TrainOptions, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The backbone as `--finetune_type` asks for, with exactly the right parameters trainable.

    Args:
        base: from `describe_base`.
        options: resolved options of the run.
        dtype: of the computation. Full fine-tunes keep float32 weights under autocast; a frozen base is stored in it.
        device: where it goes.
    """
    kind = options.finetune_type
    quantization = None
    if kind == "qlora":
        compute = product_dtype(dtype)
        quantization = quantization_config(options.quantization_bits, options.double_quantization, compute)
    model = load_backbone(
        base,
        stored_dtype(kind, dtype),
        device,
        quantization,
        dropout=kind == "full",
        trust_remote_code=options.trust_remote_code,
        local_files_only=options.local_files_only,
    )
    if kind != "full":
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        _lift_norms(model)
        model = add_adapters(model, options)
        if options.lora_init == "loftq":
            begin_with_quantization_error(model, base.folder())
    else:
        replace_dropout(model)
    if options.gradient_checkpointing:
        with quiet():
            model.gradient_checkpointing_enable(  # type: ignore[operator]
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
