"""A model for people who write their own training loop: an encoder with trainable parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedrag.errors import UserError, check_choice
from embedrag.models.backbone import trainable_backbone
from embedrag.models.base_model import describe_base, model_name, resolve_embedding_config
from embedrag.models.encoder import Encoder
from embedrag.models.load import pack_if_possible
from embedrag.models.lora import LoraSettings
from embedrag.models.pooling import POOLING
from embedrag.models.quantization import QUANTIZERS, QuantizationConfig
from embedrag.models.tokenizer import load_tokenizer
from embedrag.runtime.console import say
from embedrag.runtime.device import pick_device, settle_dtype

FINETUNE_TYPES = ("full", "lora", "qlora")


def build_model(
    model_name_or_path: str | Path,
    finetune_type: str = "lora",
    *,
    quantization_bits: int = 4,
    double_quantization: bool = False,
    pooling: str | None = None,
    query_prompt: str | None = None,
    passage_prompt: str | None = None,
    query_max_len: int | None = None,
    passage_max_len: int | None = None,
    lora_r: int = 8,
    lora_alpha: int = 32,
    lora_dropout: float = 0.1,
    lora_target_modules: Sequence[str] | None = None,
    lora_top_layers: int | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
    lora_init: str = "default",
    gradient_checkpointing: bool = False,
    device: str = "auto",
    dtype: str = "float32",
    tokenizer_id: str | None = None,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
) -> Encoder:
    """Load a base model and make it trainable, as the trainer of EmbedRAG does.

    Called with a `TokenBatch` of n texts, the encoder returns their vectors [n, D] with a graph. `encode` returns
    vectors without one. `save_model` saves the trained model.

    Args:
        model_name_or_path: the base model, a folder or a hub id.
        finetune_type: `full` trains all weights, `lora` trains adapters, `qlora` trains adapters on a quantised base.
        quantization_bits: of the quantised base, 4 or 8.
        double_quantization: quantise the 4-bit scales too.
        pooling: `mean`, `cls`, `last_token`, `max`, `weighted_mean` or `mean_sqrt_len`; None: the base's own.
        query_prompt: put before every query; None: the base's own.
        passage_prompt: put before every passage; None: the base's own.
        query_max_len: longest query, in tokens; None: the base's own, at most 256.
        passage_max_len: longest passage, in tokens; None: the base's own, at most 1024.
        lora_r: rank of the adapters.
        lora_alpha: an adapter's product is multiplied by alpha / r.
        lora_dropout: probability that an input of an adapter is left out.
        lora_target_modules: last names of the layers that get adapters; None: all linear layers.
        lora_top_layers: only that many of the last blocks get adapters; None: all blocks.
        use_rslora: multiply by alpha / sqrt(r) instead.
        use_dora: train length and direction of the weights separately.
        lora_init: how the adapters start: `default`, `pissa` or `loftq`.
        gradient_checkpointing: compute the layers again in the backward pass, which takes less memory and more time.
        device: `auto`, `cuda`, `mps` or `cpu`.
        dtype: of the computation: `float32`, `bfloat16`, `float16`, or `auto`, as `train` settles it.
        tokenizer_id: another tokenizer than the base's own.
        trust_remote_code: run Python code that comes with the base.
        local_files_only: never ask the hub.

    Returns:
        The encoder in training mode. Its texts are packed if the model and the device can do it, otherwise padded.

    Raises:
        UserError: an argument is wrong, or the base can't be read.

    Example:
        ```python
        model = embedrag.build_model("base", "lora")
        dataset = embedrag.TripletDataset("rows.jsonl", model.tokenizer, neg_nums=2)
        batch = dataset.collate([dataset[0], dataset[1]])
        vectors = model(batch.tokens)  # [n, D], with a graph
        ```
    """
    name = model_name(model_name_or_path)
    check_choice("finetune_type", finetune_type, FINETUNE_TYPES)
    check_choice("quantization_bits", quantization_bits, QUANTIZERS)
    check_choice("pooling", pooling, (None, *POOLING))
    if lora_r < 1:
        raise UserError("must be 1 or more", "lora_r", lora_r)
    where = pick_device(device)
    base = describe_base(name, trust_remote_code, local_files_only)
    precision, _ = settle_dtype(dtype, where, base.hidden_size)
    embedding_config, notices = resolve_embedding_config(
        base,
        pooling=pooling,
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
        query_max_len=query_max_len,
        passage_max_len=passage_max_len,
    )
    for line in notices:
        say(line)
    tokenizer = load_tokenizer(base, embedding_config, tokenizer_id, trust_remote_code, local_files_only)
    lora = LoraSettings(
        r=lora_r,
        alpha=lora_alpha,
        dropout=lora_dropout,
        target_modules=lora_target_modules,
        top_layers=lora_top_layers,
        use_rslora=use_rslora,
        use_dora=use_dora,
        init=lora_init,
    )
    backbone = trainable_backbone(
        base,
        precision,
        where,
        None if finetune_type == "full" else lora,
        QuantizationConfig(quantization_bits, double_quantization) if finetune_type == "qlora" else None,
        gradient_checkpointing,
        trust_remote_code,
        local_files_only,
    )
    return pack_if_possible(Encoder(backbone, tokenizer, embedding_config, precision)).train()
