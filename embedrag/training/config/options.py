"""THE list of training options: every flag, JSON key, default, help text and check, each defined once.

Adding an option: one field below, and one line where it takes effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PositiveInt, model_validator

from embedrag.options.field import (
    Device,
    Dtype,
    Options,
    SourceList,
    as_list,
    former_switch,
    lower,
    option,
    renamed,
    whole_number,
)
from embedrag.training.config.presets import RECIPES
from embedrag.training.config.rules import contradictions

DEFAULT_MODEL = "Qwen/Qwen3-Embedding-0.6B"
LEARNING_RATES = {"full": 1e-5, "lora": 1e-4, "qlora": 1e-4}


class TrainOptions(Options):
    """Options of `train.py` / `embedrag train`."""

    recipe: Annotated[Literal["mnrl", "bge", "e5", "gist", "gte", "qwen3"] | None, BeforeValidator(lower)] = option(
        None,
        "settings of a published recipe where none are named (docs/losses.md); file and flags win over them",
        group="model",
    )

    # Model
    model_name_or_path: str = option(
        DEFAULT_MODEL,
        "base model: hub id or folder; of a sentence-transformers folder pooling, prompts and lengths are kept",
        group="model",
        nested="model_id",
        min_length=1,
    )
    tokenizer_id: str | None = option(
        None, "tokenizer, when it is not the base model's own", group="model", nested="tokenizer_id"
    )
    finetune_type: Annotated[Literal["qlora", "lora", "full"], BeforeValidator(lower)] = option(
        "qlora", "what is trained: all weights, LoRA adapters, or LoRA adapters on a quantised base", group="model"
    )
    quantization_bits: Annotated[Literal[4, 8], BeforeValidator(whole_number)] = option(
        4, "bits of the quantised base (qlora); 4 is nf4", group="model"
    )
    double_quantization: bool = option(False, "quantise the 4-bit scales once more (qlora)", group="model")
    pooling: Annotated[Literal["auto", "last_token", "mean", "cls"], BeforeValidator(lower)] = option(
        "auto", "how token vectors become one; auto follows the model (decoders: last_token)", group="model"
    )
    query_prompt: str | None = option(
        None, "text put before every query; left out: the base model's own prompt", group="model"
    )
    passage_prompt: str | None = option(
        None, "text put before every passage; left out: the base model's own prompt", group="model"
    )
    trust_remote_code: bool = option(
        False, "run Python code that comes with the base model", group="model", nested="hf.trust_remote_code"
    )
    local_files_only: bool = option(
        False, "never ask a hub, use what is on this disk", group="model", nested="hf.local_files_only"
    )

    # LoRA
    lora_r: int = option(8, "rank of the adapters", group="LoRA", ge=1)
    lora_alpha: int = option(32, "scale of the adapters (alpha / r)", group="LoRA", ge=1)
    lora_dropout: float = option(0.1, "dropout before the adapters", group="LoRA", ge=0, lt=1)
    lora_target_modules: Annotated[list[str] | None, BeforeValidator(as_list)] = option(
        None, "names of the layers that get adapters; left out: all linear layers of the backbone", group="LoRA"
    )
    lora_top_layers: int | None = option(
        None,
        "adapters in the last so many layers only; those below run without a graph; left out: in all",
        group="LoRA",
        ge=1,
    )
    lora_plus_ratio: float = option(
        1.0, "rate of the adapters' B beside that of their A (LoRA+ advises 16)", group="LoRA", ge=1
    )
    use_rslora: bool = option(False, "scale by alpha / sqrt(r), for high ranks (rsLoRA)", group="LoRA")
    use_dora: bool = option(False, "train length and direction of the weights apart (DoRA); slower", group="LoRA")
    lora_init: Annotated[Literal["default", "pissa", "loftq"], BeforeValidator(lower)] = option(
        "default",
        "how adapters begin: as nothing, as the base's largest directions (pissa, for lora), or as what 4-bit "
        "quantisation took away (loftq, for qlora)",
        group="LoRA",
    )

    # Data
    train_dataset: SourceList | None = option(
        None,
        "JSONL, CSV, TSV, Parquet files or hub ids, each perhaps with a weight (`a.jsonl:2` comes twice an epoch); "
        "left out: data/pairs.jsonl, tools/data/pairs.jsonl, a demo set",
        group="data",
        nested="data.pairs_path",
    )
    one_source_per_batch: bool = option(
        False, "with several data sets: all rows of a batch come from the same one", group="data"
    )
    stream: bool = option(
        False,
        "read rows as they come, an epoch (steps_per_epoch) at a time: for data that has no end or is not to be "
        "downloaded whole",
        group="data",
        nested="data.stream",
    )
    cache_dir: str | None = option(
        None, "where tokenised data is kept; left out: $EMBEDRAG_CACHE or ~/.cache/embedrag", group="data"
    )
    query_max_len: int = option(256, "longest query, in tokens", group="data", ge=2)
    passage_max_len: int = option(1024, "longest passage, in tokens", group="data", ge=2)
    max_seq_length: int | None = option(
        None,
        "longest query and passage, in tokens (both at once)",
        group="data",
        nested="train.max_length",
        aliases=("max_length",),
        ge=2,
    )
    neg_nums: int = option(2, "own negatives of a row used in one epoch, drawn anew each epoch", group="data", ge=0)
    pos_nums: int = option(
        1,
        "positives of a row that are scored in one step, each against the negatives and those of a lower grade; "
        "the others take turns",
        group="data",
        ge=1,
    )
    candidates: Annotated[Literal["all", "hard"], BeforeValidator(lower)] = option(
        "all",
        "what a query is scored against: all passages of the batch, or its positive and the batch's hard negatives",
        group="data",
    )

    # Training
    output_dir: str = option(..., "folder of this run", group="training", nested="output.save_dir", min_length=1)
    run_name: str | None = option(
        None,
        "subfolder of output_dir for this run",
        group="training",
        nested="output.save_name",
        pattern=r"^[^/\\]*[^/\\.][^/\\]*$",
    )
    overwrite: bool = option(False, "replace the run that output_dir holds", group="training")
    batch_size: int = option(..., "rows in one step of one device", group="training", nested="train.batch_size", ge=1)
    epochs: int = option(2, "passes over the data", group="training", nested="train.epochs", ge=1)
    steps_per_epoch: int | None = option(
        None,
        "optimizer steps that make one epoch; left out: as many as the data has",
        group="training",
        nested="train.steps_per_epoch",
        ge=1,
    )
    gradient_accumulation_steps: int = option(
        1,
        "batches added up before one optimizer step",
        group="training",
        nested="train.grad_accum_steps",
        aliases=("grad_accum_steps",),
        ge=1,
    )
    temperature: float = option(0.02, "the cosine is divided by it", group="training", gt=0)
    temperature_end: float | None = option(
        None, "temperature of the last step, reached by equal factors; left out: it stays", group="training", gt=0
    )
    lr: float | None = option(
        None,
        "peak learning rate; left out: 1e-5 full, 1e-4 lora and qlora",
        group="training",
        nested="optim.lr",
        aliases=("learning_rate",),
        gt=0,
    )
    optimizer: Annotated[
        Literal[
            "adamw",
            "adam",
            "nadam",
            "radam",
            "adafactor",
            "sgd",
            "rmsprop",
            "adamw8bit",
            "paged_adamw8bit",
            "lion8bit",
        ],
        BeforeValidator(lower),
    ] = option("adamw", "optimizer", group="training", nested="optim.name")
    weight_decay: float = option(
        0.01, "weight decay (not on biases and norms)", group="training", nested="optim.weight_decay", ge=0
    )
    warmup_proportion: float = option(
        0.05,
        "share of the optimizer steps in which the rate rises; then it falls as a cosine to 0",
        group="training",
        nested="optim.warmup_ratio",
        aliases=("warmup_ratio",),
        ge=0,
        lt=1,
    )
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0 = never", group="training", ge=0)
    gradient_checkpointing: bool = option(
        False,
        "recompute layers in the backward pass: less memory, more time",
        group="training",
        nested="train.grad_checkpointing",
    )
    save_on_epoch_end: int = option(
        1, "write checkpoint-epoch-N every so many epochs; 0 = only final/", group="training", ge=0
    )
    save_steps: int | None = option(
        None,
        "write checkpoint-step-N, from which the run can go on, every so many optimizer steps; "
        "left out: only at the end of epochs and when the run is stopped",
        group="training",
        ge=1,
    )
    save_total_limit: int = option(
        2,
        "newest checkpoints that a run can go on from; older ones are removed (models of epochs stay)",
        group="training",
        ge=1,
    )
    resume: str | None = option(
        None,
        "go on from a checkpoint: its folder, or auto for the newest whole one in output_dir (none: start)",
        group="training",
        min_length=1,
    )
    on_nonfinite: Annotated[Literal["stop", "skip"], BeforeValidator(lower)] = option(
        "stop", "what to do when a loss or gradient is not finite: stop, or skip the step and count", group="training"
    )
    merge: bool = option(
        False, "write merged/ at the end: the adapter merged into the base, and proved", group="training"
    )
    seed: int = option(42, "seed of order, draws and dropout", group="training", ge=0, le=2**32 - 1)
    dry_run: bool = option(
        False,
        "do everything up to the first step (data, model, checks), and write nothing but the cache",
        group="training",
    )

    # Loss
    directions: Annotated[
        list[Literal["query_passage", "passage_query", "query_query", "passage_passage"]], BeforeValidator(as_list)
    ] = option(
        ["query_passage"],
        "what is scored against what: the query against all passages (always), the positive against all queries, the "
        "query against the other queries, the positive against the passages of other queries",
        group="loss",
        former_names=("further_directions",),
        former_values=lambda value: ["query_passage", *as_list(value)],
    )
    partition_mode: Annotated[Literal["joint", "separate"], BeforeValidator(lower)] = option(
        "joint",
        "joint: one softmax over all directions; separate: a softmax for each of query_passage and passage_query, and "
        "the mean of their losses",
        group="loss",
        former_names=("separate",),
        former_values=former_switch("joint", "separate"),
    )
    hardness_strength: float = option(
        0.0,
        "this times its cosine is added to the logit of a negative, so that hard negatives count more; 0: off",
        group="loss",
        ge=0,
        former_names=("hardness",),
    )
    hardness_mode: Annotated[Literal["all", "own", "in_batch"], BeforeValidator(lower)] = option(
        "all",
        "negatives that hardness_strength counts for: all, the row's own, or those of other rows",
        group="loss",
        former_names=("hardness_of",),
    )
    false_negative_margin: float | None = option(
        None, "a passage whose cosine is above the positive's by more than this is no negative", group="loss"
    )
    false_negative_guide: Annotated[Literal["self", "base"], BeforeValidator(lower)] = option(
        "self", "whose cosines tell that: the model's own, or its base's (LoRA and QLoRA: adapters off)", group="loss"
    )
    distillation: Annotated[Literal["kl", "margin_mse"] | None, BeforeValidator(lower)] = option(
        None, "learn the scores of a teacher too (teacher_scores in the rows, from embedrag mine)", group="loss"
    )
    distillation_weight: float = option(
        0.5, "share of distillation in the loss; 1 = nothing else", group="loss", gt=0, le=1
    )
    teacher_temperature: float = option(1.0, "the teacher's scores are divided by it", group="loss", gt=0)
    embedding_teacher: str | None = option(
        None, "learn the vectors of this (larger) model too; it embeds every text once, before", group="loss"
    )
    embedding_teacher_weight: float = option(1.0, "weight of that beside the contrastive loss", group="loss", gt=0)
    matryoshka_dims: Annotated[list[PositiveInt] | None, BeforeValidator(as_list)] = option(
        None, "the first so many components of a vector are a good vector too, for each number named", group="loss"
    )
    matryoshka_weights: Annotated[list[float] | None, BeforeValidator(as_list)] = option(
        None, "weight of the loss of each of matryoshka_dims; left out: 1", group="loss"
    )
    embedding_precisions: Annotated[list[Literal["int8", "binary"]] | None, BeforeValidator(as_list)] = option(
        None, "train the vectors for these precisions too (straight through)", group="loss"
    )

    # Machine
    device: Device = option("auto", "where to compute", group="machine", nested="device")
    use_cpu: bool = option(False, "the same as --device cpu", group="machine")
    dtype: Dtype = option(
        "auto",
        "precision of the computation; auto: bfloat16 where the GPU has it, or the CPU is faster with it",
        group="machine",
        nested="dtype",
    )
    attention: Annotated[Literal["auto", "packed", "padded"], BeforeValidator(lower)] = option(
        "auto",
        "packed: texts lie one after the other without padding; padded: sorted by length and padded; "
        "auto: packed where a check on the model passes",
        group="machine",
    )
    num_processes: int | None = option(
        None,
        "processes that train together on this machine; left out: one for each visible GPU, else one",
        group="machine",
        ge=1,
    )
    gather_negatives: bool = option(
        True,
        "with several processes: score a query against the passages of all of them; false: of its own alone",
        group="machine",
    )
    shard_weights: bool = option(
        False,
        "with several processes: each keeps a part of weights, gradients and optimizer state (FSDP2), for full "
        "fine-tunes that do not fit one device",
        group="machine",
    )
    token_budget: int | None = option(
        None,
        "tokens whose activations are held at once; the others of a batch are recomputed, with the same gradient; "
        "left out: what fits in memory",
        group="machine",
        ge=1,
    )
    no_self_test: bool = option(
        False, "skip the checks at the start (batch = single vectors, padding side, end token)", group="machine"
    )
    num_workers: int = option(
        0, "processes that prepare batches beside the training", group="machine", nested="train.num_workers", ge=0
    )
    pad_to_multiple_of: int = option(
        1, "padded widths are rounded up to it", group="machine", nested="train.pad_to_multiple_of", ge=1
    )

    # Evaluation
    eval_dataset: str | None = option(
        None,
        "scored before, during and after the training: a folder in the BEIR layout, or rows in any accepted shape",
        group="evaluation",
        min_length=1,
    )
    eval_split: float | None = option(
        None, "hold out this share of the rows (whole queries) and score on them", group="evaluation", gt=0, lt=1
    )
    eval_steps: int | None = option(None, "score every so many optimizer steps", group="evaluation", ge=1)
    eval_epochs: int = option(
        1, "score at the end of every so many epochs, where eval_steps is left out", group="evaluation", ge=1
    )
    metric_for_best: str = option(
        "ndcg@10",
        "what decides which state becomes final/: ndcg, recall, mrr, map or precision at a cut-off",
        group="evaluation",
        pattern=r"^(ndcg|recall|mrr|map|precision)@[1-9]\d*$",
    )
    early_stopping_patience: int | None = option(
        None, "end the training after so many evaluations without a better one", group="evaluation", ge=1
    )

    # Logs
    log_with: Annotated[Literal["tensorboard", "wandb", "all"], BeforeValidator(lower)] = option(
        "tensorboard", "tracker of the curves (runs/)", group="logs"
    )
    save_metrics: bool = option(
        True, "write metrics.json, the figures of the end of the run", group="logs", nested="output.save_metrics"
    )

    @model_validator(mode="before")
    @classmethod
    def _recipe(cls, values: Any) -> Any:
        if isinstance(values, dict) and str(values.get("recipe")).lower() in RECIPES:
            return RECIPES[str(values["recipe"]).lower()] | renamed(cls, values)
        return values

    @model_validator(mode="after")
    def _agree(self) -> TrainOptions:
        problems = list(contradictions(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def resolved(self) -> TrainOptions:
        """The options with everything filled in that follows from other options (rate, lengths, device, folder)."""
        changes: dict[str, Any] = {"lr": self.lr or LEARNING_RATES[self.finetune_type]}
        if self.max_seq_length:
            changes |= {"query_max_len": self.max_seq_length, "passage_max_len": self.max_seq_length}
        if self.use_cpu:
            changes["device"] = "cpu"
        return self.model_copy(update=changes)
