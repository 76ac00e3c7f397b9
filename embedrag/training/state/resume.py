"""Going on with a run: which settings may differ, and what of the engine must not.

A continued run repeats the unbroken one (bit for bit where sums have a fixed order: on a CPU), so what was measured at
the first start (precision, packing, token budget) is taken from the checkpoint and not measured again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from embedrag.errors import UserError
from embedrag.training.config.options import TrainOptions
from embedrag.training.memory import TokenBudget
from embedrag.training.objective import ContrastiveObjective
from embedrag.training.state.checkpoint import Checkpoint

# A run that goes on with another one of these would be another run from its first step on.
FIXED = (
    "model_name_or_path",
    "tokenizer_id",
    "finetune_type",
    "quantization_bits",
    "double_quantization",
    "pooling",
    "query_prompt",
    "passage_prompt",
    "query_max_len",
    "passage_max_len",
    "lora_r",
    "lora_alpha",
    "lora_target_modules",
    "lora_top_layers",
    "use_rslora",
    "use_dora",
    "lora_init",
    "lora_plus_ratio",
    "neg_nums",
    "pos_nums",
    "batch_size",
    "gradient_accumulation_steps",
    "steps_per_epoch",
    "one_source_per_batch",
    "stream",
    "optimizer",
    "seed",
    "eval_dataset",
    "eval_split",
    "metric_for_best",
)
# These do not touch what is learnt.
FREE = (
    "train_dataset",  # by content, see `check_data`
    "output_dir",
    "run_name",
    "overwrite",
    "resume",
    "save_steps",
    "save_total_limit",
    "save_on_epoch_end",
    "save_metrics",
    "merge",
    "log_with",
    "cache_dir",
    "num_workers",
    "local_files_only",
    "trust_remote_code",
    "use_cpu",
    "num_processes",
    "shard_weights",
    "dry_run",
)


def is_complete(options: TrainOptions) -> bool:
    """Whether the run came to its end in its folder: after its epochs, or early with the patience that is asked for."""
    path = Path(options.output_dir, options.run_name or "", "training_summary_report.json")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        summary, before = report["performance_summary"], report["training_args"]
        if summary.get("stopped_early"):
            patience = options.early_stopping_patience
            done = patience is not None and patience <= before["early_stopping_patience"]
        else:
            done = summary["total_epochs"] >= options.epochs
        return bool(report["training_completed"] and done)
    except (OSError, ValueError, LookupError):
        return False


def compare_settings(checkpoint: Checkpoint, asked: dict[str, Any]) -> list[str]:
    """Lines about settings that differ from those of the checkpoint.

    Args:
        checkpoint: what is gone on from.
        asked: the options of this run.

    Raises:
        UserError: for settings with which it would not be the same run.
    """
    before = checkpoint.state["options"]
    # What `auto` and the base settled is what was asked for, where --config is given the run's own settings.
    settled = json.loads((checkpoint.folder / "training_config.json").read_text(encoding="utf-8"))
    same = [
        name for name in asked if asked[name] in (before.get(name, asked[name]), settled.get(name, before.get(name)))
    ]
    changed = [name for name in asked if name not in same and name not in FREE]
    refused = [name for name in changed if name in FIXED]
    if refused:
        what = ", ".join(f"--{name} is {asked[name]!r} and was {before[name]!r}" for name in refused)
        raise UserError(
            f"--resume {checkpoint.folder}: {what}; go on with the settings of the checkpoint, or start a new run in "
            "another --output_dir"
        )
    return [f"resume: --{name} is {asked[name]!r} from here on, and was {before[name]!r}" for name in changed]


def check_data(checkpoint: Checkpoint, checksum: str) -> None:
    """Raise UserError when the data is not that of the checkpoint."""
    if checkpoint.state["data"] != checksum:
        raise UserError(
            f"--resume {checkpoint.folder}: --train_dataset has other rows, tokens or weights than the run had; "
            "go on with the same data, or start a new run in another --output_dir"
        )


def check_processes(checkpoint: Checkpoint, size: int, options: TrainOptions) -> None:
    """Raise UserError where another number of processes would have no place to go on at."""
    before = checkpoint.state["processes"]
    flag = "steps_per_epoch" if options.steps_per_epoch else "one_source_per_batch"
    if getattr(options, flag) and before != size:
        raise UserError(
            f"--resume {checkpoint.folder}: {before} processes wrote it and {size} are here; with --{flag} "
            f"the rows of an epoch would be others, so go on with --num_processes {before}"
        )


def engine_state(objective: ContrastiveObjective) -> dict[str, Any]:
    """What was settled about the computation at the start of the run."""
    encoder, budget = objective.encoder, objective.grad_cache.budget
    return {
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "attention": "packed" if encoder.packed else "padded",
        "token_budget": budget.tokens,
        "token_bytes": budget.token_bytes,
    }


def engine_options(checkpoint: Checkpoint, options: TrainOptions) -> TrainOptions:
    """The options with what the run had settled in the place of `auto`."""
    engine = checkpoint.state["engine"]
    return options.model_copy(
        update={
            "dtype": engine["dtype"] if options.dtype == "auto" else options.dtype,
            "attention": engine["attention"] if options.attention == "auto" else options.attention,
        }
    )


def saved_budget(checkpoint: Checkpoint, asked: int | None) -> TokenBudget | None:
    """The token budget of the checkpoint, so that batches are cut as before and nothing is measured again.

    Args:
        checkpoint: what the run goes on from.
        asked: `token_budget` of this run.

    Returns:
        None when this run asks for another budget than the run had.
    """
    if asked not in (None, checkpoint.state["options"]["token_budget"]):
        return None
    engine = checkpoint.state["engine"]
    return TokenBudget(engine["token_budget"], engine["token_bytes"])
