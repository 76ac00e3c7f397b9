"""Training options that contradict each other: a line for each, with the flags and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def contradictions(options: Any) -> Iterator[str]:
    """What can't be done together, of `TrainOptions` that are valid one by one."""
    if options.use_cpu and options.device not in ("auto", "cpu"):
        yield f"--use_cpu contradicts --device {options.device}; drop one of them"
    if options.candidates == "hard" and options.neg_nums == 0:
        yield "--candidates hard with --neg_nums 0 leaves no negatives; set --neg_nums 1 or more"
    if options.dtype == "float16" and (options.use_cpu or options.device == "cpu"):
        yield "--dtype float16 is not trained on a CPU; use float32 or bfloat16"
    if options.eval_dataset and options.eval_split:
        yield "--eval_split contradicts --eval_dataset; drop one of them"
    if not options.eval_dataset and not options.eval_split:
        idle = [name for name in ("eval_steps", "early_stopping_patience") if getattr(options, name)]
        yield from (f"--{name} needs --eval_dataset or --eval_split" for name in idle)
    yield from _of_losses(options)
    yield from _of_adapters(options)
    if options.stream:
        yield from _of_streaming(options)
    if options.shard_weights:
        yield from _of_sharding(options)


def _of_losses(options: Any) -> Iterator[str]:
    if "query_passage" not in options.directions:
        yield "--directions needs query_passage, the loss that the others are added to"
    if options.candidates == "hard" and len(options.directions) > 1:
        yield "--candidates hard is for --directions query_passage alone"
    if options.partition_mode == "separate" and set(options.directions) != {"query_passage", "passage_query"}:
        yield "--partition_mode separate needs --directions query_passage passage_query"
    if options.false_negative_guide == "base" and options.false_negative_margin is None:
        yield "--false_negative_guide base needs --false_negative_margin (0: as in GISTEmbed)"
    if options.false_negative_guide == "base" and options.finetune_type == "full":
        yield "--false_negative_guide base needs adapters that can be switched off; a full fine-tune has none"
    if options.distillation and options.neg_nums == 0:
        yield "--distillation compares a row's positive with its negatives; set --neg_nums 1 or more"
    if options.matryoshka_weights and len(options.matryoshka_weights) != len(options.matryoshka_dims or []):
        yield "--matryoshka_weights needs one weight for each of --matryoshka_dims"
    if len(set(options.matryoshka_dims or [])) < len(options.matryoshka_dims or []):
        yield "--matryoshka_dims names a dimension twice"


def _of_adapters(options: Any) -> Iterator[str]:
    if options.finetune_type == "full":
        idle = [name for name in ("lora_top_layers", "use_rslora", "use_dora") if getattr(options, name)]
        idle += ["lora_plus_ratio"] if options.lora_plus_ratio != 1 else []
        idle += ["lora_init"] if options.lora_init != "default" else []
        yield from (f"--{name} is for adapters, and --finetune_type full has none" for name in idle)
    elif options.lora_init == "pissa" and options.finetune_type == "qlora":
        yield "--lora_init pissa changes the base, which qlora has quantised; use --lora_init loftq"
    elif options.lora_init == "loftq" and (options.finetune_type != "qlora" or options.quantization_bits != 4):
        yield "--lora_init loftq makes up for 4-bit quantisation; it needs --finetune_type qlora --quantization_bits 4"
    if options.lora_init != "default" and options.use_dora:
        yield f"--use_dora begins at the base as it is; leave --lora_init {options.lora_init} out"
    if options.lora_init == "pissa" and options.false_negative_guide == "base":
        yield "--false_negative_guide base needs the base as it was, which --lora_init pissa changes"


def _of_streaming(options: Any) -> Iterator[str]:
    if not options.steps_per_epoch:
        yield "--stream reads rows as they come, so an epoch has no end of its own; set --steps_per_epoch"
    if options.eval_split:
        yield "--eval_split can't hold rows of a stream out; name an --eval_dataset"
    if not options.train_dataset:
        yield "--stream needs --train_dataset"
    if options.embedding_teacher:
        yield "--embedding_teacher embeds all texts before the training, and those of a --stream come later; drop one"


def _of_sharding(options: Any) -> Iterator[str]:
    if options.finetune_type != "full":
        yield f"--shard_weights is for --finetune_type full; {options.finetune_type} keeps a whole base on each device"
    if options.optimizer == "adafactor" or options.optimizer.endswith("8bit"):
        yield f"--shard_weights can't cut the state of --optimizer {options.optimizer}; use adamw"
    if not options.gather_negatives:
        yield "--shard_weights needs --gather_negatives true"
    if options.dtype == "float16":
        yield "--shard_weights computes in float32 or bfloat16, not in float16"
