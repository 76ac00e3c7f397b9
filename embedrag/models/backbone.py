"""The transformer under the pooling: full, with LoRA adapters, or with LoRA adapters on a quantised base.

Loaded through AutoModel without a pooler or a language-model head, for neither gets a gradient from a retrieval loss
(and a parameter without gradient breaks distributed training).
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import inspect
import re
import warnings
from collections.abc import Iterator, Sequence
from logging import ERROR, getLogger
from typing import Any, cast

import torch
from torch import nn

from embedrag.errors import UserError
from embedrag.models.embedding_config import Base
from embedrag.models.kernels.fast_dropout import replace_dropout
from embedrag.models.kernels.fast_lora import speed_up_adapters
from embedrag.models.lora_init import PISSA, adapter_weights, begin_with_quantization_error
from embedrag.training.config.options import TrainOptions


def check_bitsandbytes() -> None:
    """Raise UserError when QLoRA is asked for and its library is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--finetune_type qlora needs bitsandbytes: pip install bitsandbytes (or choose lora or full)")


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


def quantization_config(bits: int, double: bool, dtype: torch.dtype) -> Any:
    """The bitsandbytes settings of a QLoRA base (arXiv 2305.14314): nf4, or LLM.int8 (arXiv 2208.07339)."""
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
    )


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


def stored_dtype(finetune_type: str, dtype: torch.dtype) -> torch.dtype:
    """Type of the weights in memory: float32 where they are trained or float16 computes, else the computation's."""
    return torch.float32 if finetune_type == "full" or dtype == torch.float16 else dtype


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of the products with 4-bit weights: the computation's, or bfloat16 where that is float32."""
    return torch.bfloat16 if dtype == torch.float32 else dtype


def unquantized_layers(model: nn.Module) -> list[str]:
    """Linear layers of a quantised backbone that stayed as they were, by their path in the backbone."""
    inner: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    plain = [name for name, module in inner.named_modules() if type(module) is nn.Linear and "lora_" not in name]
    return [name.removesuffix(".base_layer") for name in plain]


def add_adapters(model: nn.Module, options: TrainOptions) -> nn.Module:
    """Put LoRA adapters (arXiv 2106.09685) on the linear layers of a frozen backbone.

    Raises:
        UserError: when `--lora_target_modules` names layers that the model lacks.
    """
    with quiet():
        from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=_in_top_layers(model, lora_targets(model, options.lora_target_modules), options.lora_top_layers),
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        init_lora_weights=PISSA if options.lora_init == "pissa" else True,
        task_type=TaskType.FEATURE_EXTRACTION,
        bias="none",
    )
    with quiet():
        adapted = cast(nn.Module, get_peft_model(model, config))
    speed_up_adapters(adapted)
    if options.lora_init == "pissa":
        adapted.adapter_start = adapter_weights(adapted)  # type: ignore[assignment]
    return adapted


def _in_top_layers(model: nn.Module, names: list[str], count: int | None) -> list[str]:
    """Names of layers that get adapters: those given, or their whole paths in the last `count` blocks of the model.

    Raises:
        UserError: when the model has fewer, or none of the layers is in them.
    """
    blocks = int(model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    if count and count > blocks:
        raise UserError(f"--lora_top_layers {count}: the model has {blocks} layers")
    if not count or count == blocks:
        return names
    # peft's own layers_to_transform does not find decoders' blocks, whose paths begin with `layers`.
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    wanted = [name for name in linears if any(f".{name}".endswith(f".{last}") for last in names)]
    found = [name for name in wanted if (number := re.search(r"\.(\d+)\.", name)) and int(number[1]) >= blocks - count]
    if not found:
        raise UserError(f"--lora_top_layers {count}: none of {', '.join(names)} lies in them")
    return found


def lora_targets(model: nn.Module, asked: Sequence[str] | None = None) -> list[str]:
    """Last names of the linear layers that get adapters.

    Args:
        model: the backbone.
        asked: names from `--lora_target_modules`; each must match. Left out: all linear layers.

    Raises:
        UserError: listing the names that exist.

    >>> lora_targets(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    ['0']
    """
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    names = sorted({_target_name(name) for name in linears})
    if not names:
        raise UserError("the model has no linear layers that LoRA could adapt; use --finetune_type full")
    missing = [name for name in asked or [] if not any(f".{linear}".endswith(f".{name}") for linear in linears)]
    if missing:
        raise UserError(
            f"--lora_target_modules {' '.join(missing)}: no such linear layer; there are {', '.join(names)}"
        )
    return list(asked) if asked else names


def _target_name(name: str) -> str:
    """The last name of a layer; two for `dense`, which BERT's pooler is called too, where plain peft would adapt it."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1] == "dense" else parts[-1]


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters; 4-bit weights count as what they stand for."""
    total = trainable = 0
    for parameter in model.parameters():
        shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
        count = int(torch.Size(shape).numel()) if shape is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return total, trainable


def without_gradient(model: nn.Module) -> list[str]:
    """Names of trainable parameters that the last backward pass did not reach."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bar, and no remarks of the libraries about each other, while a model is read or written."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("bitsandbytes").setLevel(ERROR)  # it asks for a package of optional kernels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def takes_pooling_argument(config: Any) -> bool:
    """Whether models of this kind have a pooler that can be left out."""
    from transformers import AutoModel

    kind = AutoModel._model_mapping.get(type(config), None)
    return kind is not None and "add_pooling_layer" in inspect.signature(kind.__init__).parameters


def _lift_norms(model: nn.Module) -> None:
    """Norms of a frozen base compute in float32 (and nothing else is blown up: token embeddings stay small)."""
    for module in model.modules():
        if "norm" in type(module).__name__.lower() and not list(module.children()):
            module.float()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
