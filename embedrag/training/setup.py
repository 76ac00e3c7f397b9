"""The second stage of a run: from checked options to everything that the trainer needs, cheapest first.

The tokenizer is read before the data, the data before the weights. So a mistake in the data is found before a large
model is loaded. Nothing is written into the output folder here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from embedrag.data.token_store import TokenStore
from embedrag.errors import UserError
from embedrag.losses.contrastive import LossSettings
from embedrag.models.backbone import trainable_backbone
from embedrag.models.base_model import Base, describe_base, resolve_embedding_config
from embedrag.models.embedding_config import EmbeddingConfig
from embedrag.models.embedding_format import EmbeddingFormat, trained_formats
from embedrag.models.encoder import Encoder
from embedrag.models.kernels.packed_attention import PackingError
from embedrag.models.lora import LoraSettings, check_lora
from embedrag.models.quantization import QuantizationConfig, settle_quantization
from embedrag.models.tokenizer import TextTokenizer, load_tokenizer
from embedrag.runtime.console import quiet, say
from embedrag.runtime.device import dtype_name, settle_dtype
from embedrag.runtime.fsdp import shard
from embedrag.training.config.options import TrainOptions
from embedrag.training.data import open_data, probe_texts
from embedrag.training.embedding_teacher import ask_teacher
from embedrag.training.memory import TokenBudget, check_budget, measure_budget
from embedrag.training.objective import ContrastiveObjective
from embedrag.training.preflight import Preflight
from embedrag.training.run_context import RunContext
from embedrag.training.self_test import PlainVectors, check_gradients, plain_vectors, processes_distance, self_test
from embedrag.training.state.resume import (
    check_data,
    check_processes,
    compare_machine,
    continued_dtype,
    saved_budget,
)
from embedrag.training.state.run_record import (
    embedding_options,
    environment,
    model_info,
    record_of,
    say_model,
    shown_tests,
)


def setup(start: Preflight) -> RunContext:
    """Read the tokenizer, the data and the model.

    Raises:
        UserError: for everything that the user can fix.
    """
    options, processes, checkpoint = start.options, start.processes, start.checkpoint
    text_model = _read_text_model(options)
    data, evaluation = open_data(options, text_model.tokenizer, processes)
    if checkpoint:
        check_processes(checkpoint, processes.size, options)
        check_data(checkpoint, data.checksum)
    if options.token_budget is not None:
        check_budget(data.store, options.token_budget)
    teacher = ask_teacher(options, data.store, processes) if options.embedding_teacher else None
    dtype, reason = _settle_precision(start, text_model.base)
    _seed(options.seed)
    probes = probe_texts(options)
    encoder, plain = _load_encoder(start, text_model, data.store, dtype, probes)
    budget, memory = _settle_budget(start, encoder, data.store)
    objective = ContrastiveObjective(
        encoder,
        loss_settings(options),
        _formats(options, encoder),
        guided=options.false_negative_guide == "base",
        teacher=teacher.aligned(encoder, data.store) if teacher else None,
        budget=budget,
    )
    info = model_info(encoder, options) | {"precision": {"dtype": dtype_name(dtype), "reason": reason}}
    if plain:
        info["self_tests"] = {
            **self_test(encoder, data.store, plain),
            "processes_equal_one": processes_distance(objective, data.store, options.neg_nums, processes),
        }
        say(f"self-test: passed ({shown_tests(info['self_tests'])})")
    say_model(text_model.base, text_model.embedding_config, options, start.device, encoder.dtype, info)
    say(memory)
    settled = embedding_options(text_model.embedding_config) | {"dtype": dtype_name(dtype)}
    options = options.model_copy(update=settled)
    return RunContext(
        options=options,
        output_dir=start.output_dir,
        processes=processes,
        device=start.device,
        dtype=encoder.dtype,
        data=data,
        evaluation=evaluation,
        objective=objective,
        checkpoint=checkpoint,
        record=record_of(start.asked, options, encoder, info, probes),
    )


def loss_settings(options: TrainOptions) -> LossSettings:
    """The settings of the loss; an option has the name of its setting."""
    named = {field.name: getattr(options, field.name) for field in fields(LossSettings) if field.name != "directions"}
    return LossSettings(**named, directions=tuple(options.directions))


def lora_settings(options: TrainOptions) -> LoraSettings | None:
    """The adapters that are trained; None when all weights are trained."""
    if options.finetune_type == "full":
        return None
    return LoraSettings(
        r=options.lora_r,
        alpha=options.lora_alpha,
        dropout=options.lora_dropout,
        target_modules=options.lora_target_modules,
        top_layers=options.lora_top_layers,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        init=options.lora_init,
    )


@dataclass(frozen=True)
class _TextModel:
    """A base model without its weights: its small files, and how it turns texts into token ids."""

    base: Base
    embedding_config: EmbeddingConfig
    tokenizer: TextTokenizer


def _read_text_model(options: TrainOptions) -> _TextModel:
    remote, local = options.trust_remote_code, options.local_files_only
    base = describe_base(options.model_name_or_path, remote, local)
    quantization = settle_quantization(base, options.finetune_type == "full", _asked_quantization(options))
    if lora := lora_settings(options):
        check_lora(lora, quantization)
    given = options.model_fields_set
    lengths = {name: getattr(options, name) for name in ("query_max_len", "passage_max_len") if name in given}
    embedding_config, notices = resolve_embedding_config(
        base,
        pooling=None if options.pooling == "auto" else options.pooling,
        query_prompt=options.query_prompt,
        passage_prompt=options.passage_prompt,
        **lengths,
    )
    tokenizer = load_tokenizer(base, embedding_config, options.tokenizer_id, remote, local)
    for line in notices:
        say(line)
    return _TextModel(base, embedding_config, tokenizer)


def _asked_quantization(options: TrainOptions) -> QuantizationConfig | None:
    if options.finetune_type != "qlora":
        return None
    return QuantizationConfig(options.quantization_bits, options.double_quantization)


def _settle_precision(start: Preflight, base: Base) -> tuple[torch.dtype, str]:
    """The precision of the run and the reason, the same in all processes; a line says it when it was not asked for."""
    options, checkpoint = start.options, start.checkpoint
    settled, reason = start.processes.gather(settle_dtype(options.dtype, start.device, base.hidden_size))[0]
    if checkpoint:
        for line in compare_machine(checkpoint, environment(start.device), options.finetune_type):
            say(line)
        settled, reason = continued_dtype(checkpoint, options.dtype, settled, reason)
    if options.dtype == "auto":
        say(f"precision: {dtype_name(settled)}, because {reason}")
    return settled, reason


def _load_encoder(
    start: Preflight, text_model: _TextModel, store: TokenStore, dtype: torch.dtype, probes: list[tuple[str, str]]
) -> tuple[Encoder, PlainVectors | None]:
    """Load the weights, and decide between packed and padded texts.

    Returns:
        The encoder, and vectors of probe texts for the self-test; None without the test.
    """
    options, device = start.options, start.device
    if options.shard_weights and any(module.weights for module in text_model.embedding_config.head):
        shown = ", ".join(map(str, text_model.embedding_config.head))
        raise UserError(
            f"the base has modules after its pooling ({shown}), which can't be sharded; leave `shard_weights` out",
            "shard_weights",
        )
    backbone = trainable_backbone(
        text_model.base,
        dtype,
        torch.device("cpu") if options.shard_weights else device,
        lora_settings(options),
        _asked_quantization(options),
        options.gradient_checkpointing,
        options.trust_remote_code,
        options.local_files_only,
    )
    if options.shard_weights:
        shard(backbone, device, start.processes.size)
    config, pad_multiple = text_model.embedding_config, options.pad_to_multiple_of
    encoder = Encoder(backbone, text_model.tokenizer, config, dtype, pad_multiple)
    plain = None if options.no_self_test else plain_vectors(encoder, probes, options.trust_remote_code)
    _settle_attention(encoder, options)
    check_gradients(encoder, store, options.seed, frozen_base=options.finetune_type != "full")
    return encoder, plain


def _settle_budget(start: Preflight, encoder: Encoder, store: TokenStore) -> tuple[TokenBudget, str]:
    """The token budget of the checkpoint, otherwise a measured one; and a line about it."""
    if start.checkpoint and (budget := saved_budget(start.checkpoint, start.options.token_budget)):
        return budget, f"memory: the graphs of {budget.tokens:,} tokens are held at once, as before"
    return measure_budget(encoder, store, start.options.token_budget, start.processes)


def _formats(options: TrainOptions, encoder: Encoder) -> tuple[EmbeddingFormat, ...]:
    """The formats of the vectors that are trained.

    Raises:
        UserError: when the model has fewer dimensions.
    """
    dims = options.matryoshka_dims or []
    if dims and max(dims) > encoder.dimension:
        raise UserError(f"the model's vectors have {encoder.dimension} dimensions", "matryoshka_dims", max(dims))
    return trained_formats(dims, options.matryoshka_weights or [], options.embedding_precisions or [])


def _settle_attention(encoder: Encoder, options: TrainOptions) -> None:
    """Pack the texts, when that is possible and wanted.

    Raises:
        UserError: when `attention` is `packed` and this model or device can't do it.
    """
    if options.attention == "padded":
        return
    try:
        with quiet():
            encoder.pack()
    except PackingError as reason:
        if options.attention == "packed":
            name = options.model_name_or_path
            raise UserError(
                f"{name} can't be packed here ({reason}); use `attention=padded`", "attention", "packed"
            ) from None
        say(f"model: texts are sorted by length and padded; they can't be packed because {reason}")
        return
    rates = [value for name, value in vars(encoder.backbone.config).items() if "att" in name and "dropout" in name]
    if encoder.device.type == "cuda" and any(rates) and options.finetune_type == "full":
        say("model: packed attention on a GPU has no dropout, so the dropout of attention weights is off")


def _seed(seed: int) -> None:
    from transformers import set_seed

    set_seed(seed)
