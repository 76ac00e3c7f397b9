"""Training options that contradict each other. Each contradiction names the argument and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from embedrag.errors import UserError

USUAL_TEMPERATURE = (0.002, 1.0)  # outside of this range a line says so
Wrong = Callable[[str, str], UserError]


def contradictions(options: Any) -> Iterator[UserError]:
    """Find options that can't be used together.

    Args:
        options: `TrainOptions`; each of them is valid by itself.

    Yields:
        An error that names the argument, for each contradiction.
    """

    def wrong(argument: str, reason: str) -> UserError:
        value = getattr(options, argument)
        return UserError(reason, argument, None if value is True else value)

    yield from _of_the_machine(options, wrong)
    yield from _of_evaluation(options, wrong)
    yield from _of_losses(options, wrong)
    yield from _of_adapters(options, wrong)
    if options.stream:
        yield from _of_streaming(options, wrong)
    if options.shard_weights:
        yield from _of_sharding(options, wrong)


def remarks(options: Any) -> Iterator[str]:
    """Lines about options that are allowed and rarely meant."""
    if options.temperature < USUAL_TEMPERATURE[0]:
        yield (
            f"temperature: {options.temperature:g} is far below the usual 0.01 to 0.1; cosines are divided by it, so "
            "the nearest negative decides alone, and the loss may be in the thousands"
        )
    if options.temperature >= USUAL_TEMPERATURE[1]:
        yield (
            f"temperature: {options.temperature:g} is far above the usual 0.01 to 0.1; the `scale` of other programs "
            f"is 1 / temperature, so a scale of {options.temperature:g} is a temperature of {1 / options.temperature:g}"
        )


def _of_the_machine(o: Any, wrong: Wrong) -> Iterator[UserError]:
    if o.use_cpu and o.device not in ("auto", "cpu"):
        yield wrong("use_cpu", f"contradicts `device={o.device}`; leave one of them out")
    if o.dtype == "float16" and (o.use_cpu or o.device == "cpu"):
        yield wrong("dtype", "is not trained on a CPU; use `dtype=float32` or `dtype=bfloat16`")


def _of_evaluation(o: Any, wrong: Wrong) -> Iterator[UserError]:
    if o.eval_dataset and o.eval_split:
        yield wrong("eval_split", "contradicts `eval_dataset`; leave one of them out")
    if o.eval_steps and not (o.eval_dataset or o.eval_split):
        yield wrong("eval_steps", "needs `eval_dataset` or `eval_split`")
    if o.early_stopping_patience and not (o.eval_dataset or o.eval_split):
        yield wrong("early_stopping_patience", "needs `eval_dataset` or `eval_split`")


def _of_losses(o: Any, wrong: Wrong) -> Iterator[UserError]:
    if o.candidates == "hard" and o.neg_nums == 0:
        yield wrong("candidates", "with `neg_nums=0` there are no negatives; set `neg_nums=1` or more")
    if "query_passage" not in o.directions:
        yield wrong("directions", "must contain query_passage; the other directions are added to it")
    if o.candidates == "hard" and len(o.directions) > 1:
        yield wrong("candidates", "works only with `directions=query_passage` and no other direction")
    if o.partition_mode == "separate" and set(o.directions) != {"query_passage", "passage_query"}:
        yield wrong("partition_mode", "needs `directions=query_passage passage_query`, and no others")
    if o.false_negative_guide == "base" and o.false_negative_margin is None:
        yield wrong("false_negative_guide", "needs `false_negative_margin` (0: as in GISTEmbed)")
    if o.false_negative_guide == "base" and o.finetune_type == "full":
        yield wrong("false_negative_guide", "needs adapters that can be switched off; a full fine-tune has none")
    if o.distillation and o.neg_nums == 0:
        yield wrong("distillation", "compares a row's positive with its negatives; set `neg_nums=1` or more")
    if o.matryoshka_weights and len(o.matryoshka_weights) != len(o.matryoshka_dims or []):
        yield wrong("matryoshka_weights", "needs one weight for each of `matryoshka_dims`")
    if len(set(o.matryoshka_dims or [])) < len(o.matryoshka_dims or []):
        yield wrong("matryoshka_dims", "names a dimension twice")


def _of_adapters(o: Any, wrong: Wrong) -> Iterator[UserError]:
    if o.finetune_type == "full":
        unchanged: dict[str, Any] = {"lora_top_layers": None, "use_rslora": False, "use_dora": False}
        unchanged |= {"lora_plus_ratio": 1, "lora_init": "default"}
        used = [name for name, value in unchanged.items() if getattr(o, name) != value]
        yield from (wrong(name, "is for adapters, and `finetune_type=full` has none") for name in used)
    elif o.lora_init == "pissa" and o.finetune_type == "qlora":
        yield wrong("lora_init", "changes the base, which qlora has quantised; use `lora_init=loftq`")
    elif o.lora_init == "loftq" and (o.finetune_type != "qlora" or o.quantization_bits != 4):
        yield wrong(
            "lora_init", "corrects the error of 4-bit quantisation; set `finetune_type=qlora` and `quantization_bits=4`"
        )
    if o.lora_init != "default" and o.use_dora:
        yield wrong(
            "lora_init",
            "does not go together with `use_dora`, which starts from an unchanged base; leave one of them out",
        )
    if o.lora_init == "pissa" and o.false_negative_guide == "base":
        yield wrong(
            "lora_init", "changes the base, and `false_negative_guide=base` needs it unchanged; leave one of them out"
        )


def _of_streaming(o: Any, wrong: Wrong) -> Iterator[UserError]:
    if not o.steps_per_epoch:
        yield wrong("stream", "has no end, so the length of an epoch is not known; set `steps_per_epoch`")
    if o.eval_split:
        yield wrong("eval_split", "can't hold out rows of a stream; name an `eval_dataset`")
    if not o.train_dataset:
        yield wrong("stream", "needs `train_dataset`")
    if o.embedding_teacher:
        yield wrong(
            "embedding_teacher",
            "embeds all texts before the training, and a `stream` brings them later; leave one of them out",
        )


def _of_sharding(o: Any, wrong: Wrong) -> Iterator[UserError]:
    if o.finetune_type != "full":
        yield wrong("shard_weights", f"needs `finetune_type=full`; {o.finetune_type} keeps a whole base on each device")
    if o.optimizer == "adafactor" or o.optimizer.endswith("8bit"):
        yield wrong("optimizer", "has a state that `shard_weights` can't divide; use `optimizer=adamw`")
    if not o.gather_negatives:
        yield wrong("gather_negatives", "is not possible with `shard_weights`; leave one of them out")
    if o.dtype == "float16":
        yield wrong("dtype", "is not possible with `shard_weights`; use `dtype=float32` or `dtype=bfloat16`")
