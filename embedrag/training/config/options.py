"""The list of training options: every flag, JSON key, default, help text, check and resume rule, each defined once.

The options of the model and of the loss are in `model_options` and `loss_options`, all others are below. A new option
is one field here, and one line in the place where it takes effect.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, model_validator

from embedrag.errors import raise_all
from embedrag.options.field import Device, Dtype, SmallLetters, SourceList, option, renamed
from embedrag.training.config.loss_options import LossOptions
from embedrag.training.config.model_options import ModelOptions
from embedrag.training.config.presets import RECIPES
from embedrag.training.config.rules import contradictions

LEARNING_RATES = {"full": 1e-5, "lora": 1e-4, "qlora": 1e-4}


def _metric(value: str) -> str:
    if not re.fullmatch(r"(ndcg|recall|mrr|map|precision)@[1-9]\d*", value):
        raise ValueError("must be ndcg, recall, mrr, map or precision with a cut-off, such as ndcg@10")
    return value


def _folder_name(value: str) -> str:
    if not re.fullmatch(r"[^/\\]*[^/\\.][^/\\]*", value):
        raise ValueError("must be the name of one folder, without a slash")
    return value


class TrainOptions(LossOptions, ModelOptions):
    """Options of `train.py` / `embedrag train`."""

    # Data
    train_dataset: SourceList | None = option(
        None,
        "JSONL, CSV, TSV, Excel, Parquet or Arrow files, also compressed, or hub ids (`owner/name:subset@split`); each "
        "may have a weight (`a.jsonl:2` comes twice an epoch); left out: data/pairs.jsonl, tools/data/pairs.jsonl, or "
        "a demo set",
        group="data",
        nested="data.pairs_path",
        resume="free",  # compared by content, see `embedrag.training.state.resume.check_data`
    )
    one_source_per_batch: bool = option(
        False, "with several data sets: all rows of a batch come from the same one", group="data", resume="fixed"
    )
    stream: bool = option(
        False,
        "read rows during the training, an epoch (steps_per_epoch) at a time; for data without an end, or too large to "
        "store",
        group="data",
        nested="data.stream",
        resume="fixed",
    )
    cache_dir: str | None = option(
        None,
        "where tokenised data is kept; left out: $EMBEDRAG_CACHE or ~/.cache/embedrag",
        group="data",
        resume="free",
    )
    query_max_len: int = option(
        256, "longest query, in tokens; longer ones are cut", group="data", resume="fixed", ge=2
    )
    passage_max_len: int = option(
        1024, "longest passage, in tokens; longer ones are cut", group="data", resume="fixed", ge=2
    )
    max_seq_length: int | None = option(
        None,
        "longest query and passage, in tokens: sets query_max_len and passage_max_len",
        group="data",
        nested="train.max_length",
        aliases=("max_length",),
        resume="free",  # the two that it sets are compared
        ge=2,
    )
    neg_nums: int = option(
        2, "hard negatives of a row that one epoch uses, drawn anew each epoch", group="data", resume="fixed", ge=0
    )
    pos_nums: int = option(
        1,
        "positives of a row in one step; the others take turns. Each is scored against the negatives and against "
        "positives of a lower grade",
        group="data",
        resume="fixed",
        ge=1,
    )
    candidates: Annotated[Literal["all", "hard"], SmallLetters] = option(
        "all",
        "what a query is scored against: all passages of the batch, or its positive and the batch's hard negatives",
        group="data",
        resume="reported",
    )

    # Training
    output_dir: str = option(
        ..., "folder of this run", group="training", nested="output.save_dir", resume="free", min_length=1
    )
    run_name: Annotated[str, AfterValidator(_folder_name)] | None = option(
        None, "subfolder of output_dir for this run", group="training", nested="output.save_name", resume="free"
    )
    overwrite: bool = option(False, "replace the run that output_dir holds", group="training", resume="free")
    batch_size: int = option(
        ..., "rows per step on each device", group="training", nested="train.batch_size", resume="fixed", ge=1
    )
    epochs: int = option(2, "passes over the data", group="training", nested="train.epochs", resume="reported", ge=1)
    steps_per_epoch: int | None = option(
        None,
        "optimizer steps in one epoch; left out: as many as the data needs",
        group="training",
        nested="train.steps_per_epoch",
        resume="fixed",
        ge=1,
    )
    gradient_accumulation_steps: int = option(
        1,
        "batches per optimizer step; their gradients are added up",
        group="training",
        nested="train.grad_accum_steps",
        aliases=("grad_accum_steps",),
        resume="fixed",
        ge=1,
    )
    temperature: float = option(
        0.02,
        "cosines are divided by it; the lower it is, the more the hardest negatives count",
        group="training",
        resume="reported",
        gt=0,
    )
    temperature_end: float | None = option(
        None,
        "temperature of the last step, reached by equal factors; left out: it stays the same",
        group="training",
        resume="reported",
        gt=0,
    )
    lr: float | None = option(
        None,
        "peak learning rate; left out: 1e-5 for full, 1e-4 for lora and qlora",
        group="training",
        nested="optim.lr",
        aliases=("learning_rate",),
        resume="reported",
        gt=0,
    )
    optimizer: Annotated[
        Literal[
            "adamw", "adam", "nadam", "radam", "adafactor", "sgd", "rmsprop", "adamw8bit", "paged_adamw8bit", "lion8bit"
        ],
        SmallLetters,
    ] = option(
        "adamw",
        "optimizer; those with 8bit in the name take less memory and need bitsandbytes",
        group="training",
        nested="optim.name",
        resume="fixed",
    )
    weight_decay: float = option(
        0.01,
        "weight decay (not on biases and norms)",
        group="training",
        nested="optim.weight_decay",
        resume="reported",
        ge=0,
    )
    warmup_proportion: float = option(
        0.05,
        "share of the optimizer steps in which the learning rate rises; then it falls to 0 along a cosine",
        group="training",
        nested="optim.warmup_ratio",
        aliases=("warmup_ratio",),
        resume="reported",
        ge=0,
        lt=1,
    )
    max_grad_norm: float = option(
        1.0, "a longer gradient is scaled down to this norm; 0: never", group="training", resume="reported", ge=0
    )
    gradient_checkpointing: bool = option(
        False,
        "recompute layers in the backward pass: less memory, more time",
        group="training",
        nested="train.grad_checkpointing",
        resume="reported",
    )
    save_on_epoch_end: int = option(
        1, "epochs between two checkpoints (checkpoint-epoch-N); 0: only final/", group="training", resume="free", ge=0
    )
    save_steps: int | None = option(
        None,
        "optimizer steps between two checkpoints (checkpoint-step-N); left out: only at the end of epochs, and when "
        "the run is stopped",
        group="training",
        resume="free",
        ge=1,
    )
    save_total_limit: int = option(
        2,
        "number of newest checkpoints that a run can resume from; older ones are removed (models of epochs stay)",
        group="training",
        resume="free",
        ge=1,
    )
    resume: str | None = option(
        None,
        "continue from a checkpoint: its folder, or auto for the newest whole one in output_dir (if there is none, the "
        "run starts)",
        group="training",
        resume="free",
        min_length=1,
    )
    on_nonfinite: Annotated[Literal["stop", "skip"], SmallLetters] = option(
        "stop",
        "when a loss or gradient is not finite: stop, or skip the step and count it",
        group="training",
        resume="reported",
    )
    merge: bool = option(
        False,
        "at the end, merge the adapter into the base, check the result and write it to merged/",
        group="training",
        resume="free",
    )
    seed: int = option(
        42,
        "seed of the order of rows, of random draws and of dropout",
        group="training",
        resume="fixed",
        ge=0,
        le=2**32 - 1,
    )
    dry_run: bool = option(
        False,
        "do everything up to the first step (data, model, checks), and write nothing but the cache",
        group="training",
        resume="free",
    )

    # Machine
    device: Device = option(
        "auto", "where to compute; auto: on a GPU if there is one", group="machine", nested="device", resume="reported"
    )
    use_cpu: bool = option(False, "the same as device cpu", group="machine", resume="free")
    dtype: Dtype = option(
        "auto",
        "precision of the computation; auto: bfloat16 if the GPU has it, or if the CPU has instructions for it and the "
        "model is wide",
        group="machine",
        nested="dtype",
        resume="reported",
    )
    attention: Annotated[Literal["auto", "packed", "padded"], SmallLetters] = option(
        "auto",
        "packed: texts lie one after the other without padding; padded: sorted by length and padded; "
        "auto: packed if the model passes a check",
        group="machine",
        resume="reported",
    )
    num_processes: int | None = option(
        None,
        "processes that train together on this machine; left out: one for each visible GPU, or one",
        group="machine",
        resume="free",  # the trainer compares and reports the processes that are really there
        ge=1,
    )
    gather_negatives: bool = option(
        True,
        "with several processes: score a query against the passages of all of them; false: of its own process only",
        group="machine",
        resume="reported",
    )
    shard_weights: bool = option(
        False,
        "with several processes: each keeps a part of the weights, gradients and optimizer state (FSDP2); for full "
        "fine-tunes that do not fit on one device",
        group="machine",
        resume="free",
    )
    token_budget: int | None = option(
        None,
        "tokens for which activations are kept at once; the rest of a batch is computed twice, with the same gradient; "
        "left out: as many as fit in memory",
        group="machine",
        resume="reported",
        ge=1,
    )
    no_self_test: bool = option(
        False,
        "skip the checks at the start (same vectors alone and in a batch, side of the padding, end token)",
        group="machine",
        resume="free",
    )
    num_workers: int = option(
        0,
        "processes that prepare batches during the training",
        group="machine",
        nested="train.num_workers",
        resume="free",
        ge=0,
    )
    pad_to_multiple_of: int = option(
        1,
        "padded lengths are rounded up to a multiple of it",
        group="machine",
        nested="train.pad_to_multiple_of",
        resume="reported",
        ge=1,
    )

    # Evaluation
    eval_dataset: str | None = option(
        None,
        "scored before, during and after the training: a folder with a retrieval set (`folder@dev` is its split dev), "
        "or rows in any accepted shape",
        group="evaluation",
        resume="fixed",
        min_length=1,
    )
    eval_split: float | None = option(
        None,
        "share of the rows (whole queries) that is held out of the training and scored",
        group="evaluation",
        resume="fixed",
        gt=0,
        lt=1,
    )
    eval_steps: int | None = option(
        None, "optimizer steps between two evaluations", group="evaluation", resume="reported", ge=1
    )
    eval_epochs: int = option(
        1, "epochs between two evaluations, if eval_steps is left out", group="evaluation", resume="reported", ge=1
    )
    metric_for_best: Annotated[str, AfterValidator(_metric)] = option(
        "ndcg@10",
        "metric that decides which state becomes final/: ndcg, recall, mrr, map or precision at a cut-off",
        group="evaluation",
        resume="fixed",
    )
    early_stopping_patience: int | None = option(
        None,
        "end the training after this number of evaluations without a better one",
        group="evaluation",
        resume="reported",
        ge=1,
    )

    # Logs
    log_with: Annotated[Literal["tensorboard", "wandb", "all"], SmallLetters] = option(
        "tensorboard",
        "where the curves are written: tensorboard (runs/), wandb, or both (all)",
        group="logs",
        resume="free",
    )
    save_metrics: bool = option(
        True,
        "write metrics.json with the figures of the end of the run",
        group="logs",
        nested="output.save_metrics",
        resume="free",
    )

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, values: Any) -> Any:
        if isinstance(values, dict) and str(values.get("recipe")).lower() in RECIPES:
            return RECIPES[str(values["recipe"]).lower()] | renamed(cls, values)
        return values

    @model_validator(mode="after")
    def _agree(self) -> TrainOptions:
        raise_all(contradictions(self))
        return self

    def resolved(self) -> TrainOptions:
        """The options with everything filled in that follows from others: learning rate, lengths, device."""
        changes: dict[str, Any] = {"lr": self.lr or LEARNING_RATES[self.finetune_type]}
        if self.max_seq_length:
            changes |= {"query_max_len": self.max_seq_length, "passage_max_len": self.max_seq_length}
        if self.use_cpu:
            changes["device"] = "cpu"
        return self.model_copy(update=changes)
