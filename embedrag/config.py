"""THE list of options: every flag, JSON key, default, help text and check, each defined once.

A command's options are one pydantic model. The command line, flat and nested config files, `--help`, the README
table and the saved `training_config.json` are all derived from it (see `embedrag.options`). Nothing heavy is
imported here, so that `--help` answers at once.

Adding an option: one field below, one builder line in `embedrag.loop`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

DEFAULT_MODEL = "Qwen/Qwen3-Embedding-0.6B"
LEARNING_RATES = {"full": 1e-5, "lora": 1e-4, "qlora": 1e-4}


def option(
    default: Any,
    text: str,
    *,
    group: str,
    nested: str = "",
    aliases: tuple[str, ...] = (),
    positional: bool = False,
    **checks: Any,
) -> Any:
    """One option.

    Args:
        default: value when neither command line nor file names it; `...` makes it required.
        text: one line for `--help` and the README.
        group: heading under which `--help` lists it.
        nested: its key in the nested config file, e.g. `train.batch_size`.
        aliases: further flag names (and flat keys) that mean the same.
        positional: words that follow no flag are its values; a list, at most one a command.
        **checks: pydantic constraints such as `ge=1`.
    """
    return Field(
        default,
        description=text,
        json_schema_extra={"group": group, "nested": nested, "aliases": list(aliases), "positional": positional},
        **checks,
    )


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdigit() else value


Device = Annotated[Literal["auto", "cuda", "mps", "cpu"], BeforeValidator(_lower)]
TextList = Annotated[list[str], BeforeValidator(_as_list)]


class Options(BaseModel):
    """Base of every command's options: unknown keys are errors, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("true/false is no value for this option")
        return value


class TrainOptions(Options):
    """Options of `train.py` / `embedrag train`."""

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
    finetune_type: Annotated[Literal["qlora", "lora", "full"], BeforeValidator(_lower)] = option(
        "qlora", "what is trained: all weights, LoRA adapters, or LoRA adapters on a quantised base", group="model"
    )
    quantization_bits: Annotated[Literal[4, 8], BeforeValidator(_whole)] = option(
        4, "bits of the quantised base (qlora); 4 is nf4", group="model"
    )
    double_quantization: bool = option(False, "quantise the 4-bit scales once more (qlora)", group="model")
    pooling: Annotated[Literal["auto", "last_token", "mean", "cls"], BeforeValidator(_lower)] = option(
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
    lora_target_modules: Annotated[list[str] | None, BeforeValidator(_as_list)] = option(
        None, "names of the layers that get adapters; left out: all linear layers of the backbone", group="LoRA"
    )

    # Data
    train_dataset: TextList | None = option(
        None,
        "JSONL, CSV, TSV, Parquet files or a hub id; left out: data/pairs.jsonl, tools/data/pairs.jsonl, a demo set",
        group="data",
        nested="data.pairs_path",
    )
    stream: bool = option(
        False, "read a hub dataset as a stream instead of downloading it whole", group="data", nested="data.stream"
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
    candidates: Annotated[Literal["all", "hard"], BeforeValidator(_lower)] = option(
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
        BeforeValidator(_lower),
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
    on_nonfinite: Annotated[Literal["stop", "skip"], BeforeValidator(_lower)] = option(
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

    # Machine
    device: Device = option("auto", "where to compute", group="machine", nested="device")
    use_cpu: bool = option(False, "the same as --device cpu", group="machine")
    dtype: Annotated[Literal["auto", "float32", "float16", "bfloat16"], BeforeValidator(_lower)] = option(
        "auto",
        "precision of the computation; auto: bfloat16 where the GPU has it, or the CPU is faster with it",
        group="machine",
        nested="dtype",
    )
    attention: Annotated[Literal["auto", "packed", "padded"], BeforeValidator(_lower)] = option(
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
    log_with: Annotated[Literal["tensorboard", "wandb", "all"], BeforeValidator(_lower)] = option(
        "tensorboard", "tracker of the curves (runs/)", group="logs"
    )
    save_metrics: bool = option(
        True, "write metrics.json, the figures of the end of the run", group="logs", nested="output.save_metrics"
    )

    @model_validator(mode="after")
    def _agree(self) -> TrainOptions:
        problems = []
        if self.use_cpu and self.device not in ("auto", "cpu"):
            problems.append(f"--use_cpu contradicts --device {self.device}; drop one of them")
        if self.candidates == "hard" and self.neg_nums == 0:
            problems.append("--candidates hard with --neg_nums 0 leaves no negatives; set --neg_nums 1 or more")
        if self.use_cpu and self.dtype == "float16" or self.device == "cpu" and self.dtype == "float16":
            problems.append("--dtype float16 is not trained on a CPU; use float32 or bfloat16")
        if self.eval_dataset and self.eval_split:
            problems.append("--eval_split contradicts --eval_dataset; drop one of them")
        if not self.eval_dataset and not self.eval_split:
            idle = [name for name in ("eval_steps", "early_stopping_patience") if getattr(self, name)]
            problems += [f"--{name} needs --eval_dataset or --eval_split" for name in idle]
        if self.shard_weights:
            problems += self._against_sharding()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _against_sharding(self) -> Iterator[str]:
        if self.finetune_type != "full":
            yield f"--shard_weights is for --finetune_type full; {self.finetune_type} keeps a whole base on each device"
        if self.optimizer == "adafactor" or self.optimizer.endswith("8bit"):
            yield f"--shard_weights can't cut the state of --optimizer {self.optimizer}; use adamw"
        if not self.gather_negatives:
            yield "--shard_weights needs --gather_negatives true"
        if self.dtype == "float16":
            yield "--shard_weights computes in float32 or bfloat16, not in float16"

    def resolved(self) -> TrainOptions:
        """The options with everything filled in that follows from other options (rate, lengths, device, folder)."""
        changes: dict[str, Any] = {"lr": self.lr or LEARNING_RATES[self.finetune_type]}
        if self.max_seq_length:
            changes |= {"query_max_len": self.max_seq_length, "passage_max_len": self.max_seq_length}
        if self.use_cpu:
            changes["device"] = "cpu"
        return self.model_copy(update=changes)


class MergeOptions(Options):
    """Options of `merge.py` / `embedrag merge`."""

    base_model_path: str | None = option(
        None, "base model, folder or hub id; left out: the one that the adapter names", group="merge"
    )
    lora_adapter_path: str = option(
        ..., "adapter folder, or its adapter_model.safetensors", group="merge", min_length=1
    )
    output_path: str = option(..., "folder of the merged model", group="merge", min_length=1)
    training_precision: Literal["float32", "bfloat16"] = option("float32", "type of the merged weights", group="merge")
    merge_onto: Literal["dequantized", "original"] | None = option(
        None,
        "weights that the adapter is added to; left out: dequantized (as in training) for QLoRA, else original",
        group="merge",
    )
    lora_alpha: int | None = option(
        None, "scale of the adapter, where no adapter_config.json tells it", group="merge", ge=1
    )
    quantization_bits: Annotated[Literal[4, 8] | None, BeforeValidator(_whole)] = option(
        None, "bits of the base in training, where the adapter's folder does not tell", group="merge"
    )
    double_quantization: bool = option(
        False, "the base's 4-bit scales were quantised once more, where the folder does not tell", group="merge"
    )
    no_verify: bool = option(False, "skip the proof (it loads the model) and say so in the record", group="merge")
    overwrite: bool = option(False, "replace the output folder", group="merge")
    trust_remote_code: bool = option(False, "run Python code that comes with the base model", group="merge")


class EncodeOptions(Options):
    """Options of `embedrag encode`."""

    model: str = option(..., "merged folder, adapter folder, or any base model", group="encode", min_length=1)
    input: str = option(
        ..., "texts: JSONL, CSV or TSV (see --field), or plain text, one a line", group="encode", min_length=1
    )
    output: str = option(..., "file for the vectors, .npy, float32, one row a text", group="encode", min_length=1)
    role: Literal["query", "passage"] = option("passage", "which prompt and length apply", group="encode")
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="encode")
    field: str = option("text", "key or column that holds the text", group="encode", min_length=1)
    device: Device = option("auto", "where to compute", group="encode")
    overwrite: bool = option(False, "replace the output file", group="encode")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="encode")


class CheckOptions(Options):
    """Options of `embedrag check`."""

    train_dataset: TextList = option(
        ...,
        "training data, as in training; the flag may be left out: embedrag check FILE",
        group="check",
        positional=True,
        min_length=1,
    )
    eval: str | None = option(
        None,
        "evaluation set that must not occur in the training data: a folder in the BEIR layout, or a file of rows",
        group="check",
        min_length=1,
    )
    model: str | None = option(
        None, "model whose tokenizer measures the texts; its weights are not read", group="check", min_length=1
    )
    query_max_len: int = option(256, "longest query, in tokens (with --model)", group="check", ge=2)
    passage_max_len: int = option(1024, "longest passage, in tokens (with --model)", group="check", ge=2)
    fix: str | None = option(None, "JSONL file for the rows without their faults", group="check", min_length=1)
    output: str | None = option(None, "JSON file for the report", group="check", min_length=1)
    overwrite: bool = option(False, "replace the files that --fix and --output name", group="check")
    stream: bool = option(False, "read a hub dataset as a stream instead of downloading it whole", group="check")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="check")


class DocstringsOptions(Options):
    """Options of `embedrag docstrings`."""

    packages: TextList = option(
        ["stdlib", "numpy", "torch"], "installed packages to read; stdlib is Python's own library", group="docstrings"
    )
    output: str = option(..., "JSONL file to write", group="docstrings", min_length=1)
    neg_nums: int = option(4, "hard negatives of a row: other passages of the same module", group="docstrings", ge=0)
    seed: int = option(42, "seed of the draws", group="docstrings", ge=0, le=2**32 - 1)
    overwrite: bool = option(False, "replace the output file", group="docstrings")


class EvaluateOptions(Options):
    """Options of `embedrag evaluate`."""

    model: str = option(..., "model or adapter folder, or hub id", group="evaluate", min_length=1)
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="evaluate")
    baseline: str | None = option(None, "model to compare with, usually the base", group="evaluate")
    data: str = option(
        ...,
        "folder with corpus.jsonl, queries.jsonl and qrels/test.tsv (BEIR layout), or a file of rows in any shape that "
        "training reads; its passages are then the corpus",
        group="evaluate",
        min_length=1,
    )
    general_data: str | None = option(
        None, "a second set, to see what a tuned model has forgotten (with --baseline)", group="evaluate", min_length=1
    )
    k: Annotated[list[PositiveInt], BeforeValidator(lambda v: v if isinstance(v, list) else [v])] = option(
        [1, 5, 10, 100], "cut-offs of the metrics", group="evaluate"
    )
    metric: str | None = option(
        None, "metric of the verdict; left out: ndcg@10, or ndcg at the first of --k", group="evaluate"
    )
    sample_size: int | None = option(
        None, "so many queries, drawn at random; the passages stay all", group="evaluate", ge=1
    )
    faiss_index: str | None = option(
        None, "search with FAISS, named as its index factory does (HNSW32); left out: exact search", group="evaluate"
    )
    output: str | None = option(None, "JSON file for the result", group="evaluate", min_length=1)
    html: str | None = option(None, "HTML page for the result, with plots", group="evaluate", min_length=1)
    device: Device = option("auto", "where to compute", group="evaluate")
    overwrite: bool = option(False, "replace the files", group="evaluate")
    trust_remote_code: bool = option(False, "run Python code that comes with the models", group="evaluate")

    @model_validator(mode="after")
    def _agree(self) -> EvaluateOptions:
        if self.general_data and not self.baseline:
            raise ValueError("--general_data compares with --baseline; name one")
        return self


class MtebOptions(Options):
    """Options of `embedrag mteb`."""

    model: str = option(..., "model or adapter folder, or hub id", group="mteb", min_length=1)
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="mteb")
    baseline: str | None = option(None, "model to compare with, usually the base", group="mteb")
    tasks: TextList = option(..., "names of tasks, as mteb spells them (SciFact NFCorpus)", group="mteb", min_length=1)
    languages: Annotated[list[str] | None, BeforeValidator(_as_list)] = option(
        None, "only subsets in these languages, ISO 639-3 codes (deu); left out: all of a task's", group="mteb"
    )
    output_dir: str | None = option(
        None, "folder for mteb's JSON; tasks that it holds of this very model are not run again", group="mteb"
    )
    device: Device = option("auto", "where to compute", group="mteb")
    trust_remote_code: bool = option(False, "run Python code that comes with the models", group="mteb")


class MineOptions(Options):
    """Options of `embedrag mine`."""

    train_dataset: TextList = option(..., "rows in any shape that training reads", group="mine")
    corpus: str | None = option(
        None,
        "where negatives are looked for: JSONL, CSV, TSV (see --field), plain text, or a folder with corpus.jsonl; "
        "left out: the passages of the rows",
        group="mine",
        min_length=1,
    )
    field: str = option("text", "key or column of the corpus that holds the text", group="mine", min_length=1)
    output: str = option(..., "JSONL file of rows with new negatives and teacher_scores", group="mine", min_length=1)
    model: str | None = option(None, "model or adapter folder, or hub id, that ranks the corpus", group="mine")
    base_model_path: str | None = option(None, "base of an adapter, when it has moved", group="mine")
    bm25: bool = option(False, "rank by words (BM25) and not by a model", group="mine")
    neg_nums: int = option(7, "negatives of a row, at most", group="mine", ge=1)
    range: Annotated[list[int], BeforeValidator(_as_list)] = option(
        [10, 100],
        "two ranks: negatives are taken behind the first and up to the second, positives not counted",
        group="mine",
        min_length=2,
        max_length=2,
    )
    max_positive_ratio: float = option(
        0.95, "a negative must score below so much of the weakest positive", group="mine", gt=0
    )
    score_with: str | None = option(
        None, "cross-encoder that scores positives and candidates, and decides among them", group="mine"
    )
    cache_dir: str | None = option(
        None, "where vectors of corpora are kept; left out: $EMBEDRAG_CACHE or ~/.cache/embedrag", group="mine"
    )
    device: Device = option("auto", "where to compute", group="mine")
    overwrite: bool = option(False, "replace the output file", group="mine")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="mine")

    @model_validator(mode="after")
    def _agree(self) -> MineOptions:
        problems = []
        if bool(self.model) == self.bm25:
            problems.append("name either --model or --bm25, which ranks the corpus")
        if not 0 <= self.range[0] < self.range[1]:
            problems.append("--range must be two ranks, the smaller first, such as 10 100")
        elif self.range[1] - self.range[0] < self.neg_nums:
            problems.append(f"--range {self.range[0]} {self.range[1]} has fewer ranks than --neg_nums {self.neg_nums}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class ComposeOptions(Options):
    """Options of `embedrag compose`."""

    input: str = option(
        ..., "CSV or TSV file of terms and definitions, or of anchors and positives", group="compose", min_length=1
    )
    output: str = option(..., "JSONL file of training rows", group="compose", min_length=1)
    hard_k: int = option(3, "hard negatives of a row: the nearest definitions of other terms", group="compose", ge=0)
    columns: Annotated[list[str] | None, BeforeValidator(_as_list)] = option(
        None,
        "names of the two columns, term first; left out: found by their names in several languages",
        group="compose",
        min_length=2,
        max_length=2,
    )
    encoding: str | None = option(
        None, "encoding of the file; left out: detected (UTF-8, UTF-16, CP949, GB18030, Big5)", group="compose"
    )
    model: str | None = option(
        None, "model or adapter folder, or hub id, that finds the negatives; left out: BM25", group="compose"
    )
    device: Device = option("auto", "where to compute", group="compose")
    overwrite: bool = option(False, "replace the output file", group="compose")
    trust_remote_code: bool = option(False, "run Python code that comes with the model", group="compose")


class SynthOptions(Options):
    """Options of `embedrag synth`."""

    terms: str | None = option(
        None, "CSV, TSV or JSONL file of term, definition and perhaps category", group="synth", min_length=1
    )
    acronyms: str | None = option(
        None, "JSONL file of acronym, full, definition and perhaps term, category", group="synth", min_length=1
    )
    templates: str | None = option(
        None,
        "JSON file of query templates, or ko, zh, en; left out: the one for the language of the terms",
        group="synth",
        min_length=1,
    )
    pairs_per_term: int = option(6, "rows of a term", group="synth", ge=0)
    pairs_per_acronym: int = option(8, "rows of an acronym", group="synth", ge=0)
    test_split: float = option(
        0.2, "share of the terms and acronyms that only the test set has; 0: no test set", group="synth", ge=0, lt=1
    )
    seed: int = option(42, "seed of the split and of the draws", group="synth", ge=0, le=2**32 - 1)
    output_dir: str = option(..., "folder for train.jsonl and test.jsonl", group="synth", min_length=1)
    encoding: str | None = option(None, "encoding of a CSV or TSV file; left out: detected", group="synth")
    llm_base_url: str | None = option(
        None, "OpenAI-compatible server that writes further queries (key: $OPENAI_API_KEY)", group="synth"
    )
    llm_model: str | None = option(None, "name of the model on that server", group="synth")
    llm_queries: int = option(4, "queries that it writes for a definition", group="synth", ge=1)
    llm_timeout: float = option(60.0, "seconds that one answer may take", group="synth", gt=0)
    overwrite: bool = option(False, "replace train.jsonl and test.jsonl", group="synth")

    @model_validator(mode="after")
    def _agree(self) -> SynthOptions:
        problems = []
        if not self.terms and not self.acronyms:
            problems.append("name --terms, --acronyms or both")
        if bool(self.llm_base_url) != bool(self.llm_model):
            problems.append("--llm_base_url and --llm_model go together; name both or none")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class CrawlOptions(Options):
    """Options of `embedrag crawl`."""

    sources: TextList = option([], "known lists of pages: wikipedia_glossary", group="crawl")
    urls: TextList = option([], "pages to read, or sitemaps of pages", group="crawl")
    output_dir: str | None = option(
        None,
        "folder for glossary.csv and pairs.jsonl; left out: data, and a dry run writes nothing",
        group="crawl",
        min_length=1,
    )
    limit_per_source: int = option(
        500, "pairs taken from one source, at most: from the list, or from one of --urls", group="crawl", ge=1
    )
    languages: TextList = option(
        ["en", "ko", "zh", "de", "fr", "ja", "es"],
        "Wikipedias that are read, in turns",
        group="crawl",
        min_length=1,
    )
    dry_run: bool = option(
        False, "read a packaged page and ask nothing of the network", group="crawl", aliases=("dry-run",)
    )
    contact: str | None = option(
        None,
        "mail address or URL of yours, said to every server",
        group="crawl",
        min_length=3,
        max_length=200,
        pattern=r"^[!-'*-~]+( [!-'*-~]+)*$",
    )
    delay: float = option(1.0, "seconds from one request to the next of a host; 1 or more", group="crawl", ge=1)
    timeout: float = option(30.0, "seconds for one request, to its last byte", group="crawl", gt=0)
    max_mb: float = option(5.0, "longest page, unpacked, in MB", group="crawl", gt=0, le=1000)
    overwrite: bool = option(False, "forget what the folder holds, and start anew", group="crawl")

    @model_validator(mode="after")
    def _agree(self) -> CrawlOptions:
        problems = [
            f"--sources {name}: there is wikipedia_glossary" for name in self.sources if name != "wikipedia_glossary"
        ]
        if not (self.sources or self.urls or self.dry_run):
            problems.append("name --sources wikipedia_glossary, --urls, or --dry-run")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class DemoOptions(Options):
    """Options of `embedrag demo`."""

    output_dir: str = option("demo_output", "folder of the demo", group="demo", min_length=1)
    model: str | None = option(None, "base model; left out: the packaged all-MiniLM-L6-v2", group="demo")
    packages: TextList = option(["stdlib", "numpy", "torch"], "packages whose documentation is the data", group="demo")
