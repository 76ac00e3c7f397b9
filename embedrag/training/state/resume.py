"""Resume a run: which settings may differ from those of the checkpoint, and what is taken from it.

A resumed run has the same result as an uninterrupted one: bit for bit on a CPU, because sums have a fixed order there.
Therefore everything that was settled at the first start (precision, packing, token budget) is taken from the
checkpoint and not settled again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from embedrag.errors import UserError
from embedrag.models.artifacts import TRAINING_CONFIG
from embedrag.options.field import extra, renamed
from embedrag.runtime.device import dtype_name
from embedrag.training.config.options import TrainOptions
from embedrag.training.memory import TokenBudget
from embedrag.training.objective import ContrastiveObjective
from embedrag.training.state.checkpoint import Checkpoint, checkpoints


def is_complete(options: TrainOptions) -> bool:
    """Whether the run in its folder is complete: all epochs are done, or it stopped early and would stop again."""
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


def compare_complete(options: TrainOptions) -> list[str]:
    """Compare the options with those of the complete run in their folder, so that no other run is taken for this one.

    Returns:
        A line for each option that has another value than in that run; nothing when the run left no checkpoint.

    Raises:
        UserError: for options with which it would be another run.
    """
    found = checkpoints(Path(options.output_dir, options.run_name or ""))
    return compare_settings(found[0], options.resolved().model_dump(), complete=True) if found else []


def compare_settings(checkpoint: Checkpoint, asked: dict[str, Any], complete: bool = False) -> list[str]:
    """Compare the options with those of the checkpoint, each by its own rule (`option(..., resume=…)`).

    Args:
        checkpoint: from which the run resumes.
        asked: the options of this run.
        complete: the run is complete and nothing is trained; names of data sets are then compared too, because their
            rows are not.

    Returns:
        A line for each `reported` option that has another value now.

    Raises:
        UserError: for `fixed` options with another value.
    """
    before = renamed(TrainOptions, checkpoint.state["options"])
    # The run's own settings file, given to `config`, has values instead of `auto`: that is not a change.
    settled = _settled(checkpoint)
    changed = [
        name
        for name, value in asked.items()
        if value not in (before.get(name, value), settled.get(name, before.get(name)))
        # `auto` takes what the run settled on.
        and not (value == "auto" and name in checkpoint.state.get("engine", {}))
    ]
    rules = {name: extra(field)["resume"] for name, field in TrainOptions.model_fields.items()}
    refused = [name for name in changed if rules[name] == "fixed"]
    if refused:
        what = ", ".join(f"`{name}` is {asked[name]!r} and was {before[name]!r}" for name in refused)
        remedy = "continue with the settings of the checkpoint, or start a new run in another `output_dir`"
        raise UserError(f"{what}; {remedy}", "resume", checkpoint.folder)
    reported = [name for name in changed if rules[name] == "reported" or (complete and name == "train_dataset")]
    was = {name: settled.get(name, "auto") if before[name] == "auto" else before[name] for name in reported}
    since = "now" if complete else "from here on"
    return [f"resume: `{name}` is {asked[name]!r} {since}, and was {was[name]!r}" for name in reported]


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the run wrote about its settings."""
    settings: dict[str, Any] = json.loads((checkpoint.folder / TRAINING_CONFIG).read_text(encoding="utf-8"))
    return settings


def _settled(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings of the run with everything filled in, by today's names."""
    return renamed(TrainOptions, _settings(checkpoint))


def check_data(checkpoint: Checkpoint, checksum: str) -> None:
    """Raise UserError when the data is not that of the checkpoint."""
    if checkpoint.state["data"] != checksum:
        raise UserError(
            "`train_dataset` has other rows, tokens or weights than the run had; continue with the same data, or start "
            "a new run in another `output_dir`",
            "resume",
            checkpoint.folder,
        )


def check_processes(checkpoint: Checkpoint, size: int, options: TrainOptions) -> None:
    """Raise UserError when the number of processes has changed, and the run can't go on in the middle of an epoch."""
    before = checkpoint.state["processes"]
    divided = "steps_per_epoch" if options.steps_per_epoch else "one_source_per_batch"
    if getattr(options, divided) and before != size:
        raise UserError(
            f"{before} processes wrote it, and now there are {size}; with `{divided}` an epoch would have other rows, "
            f"so continue with `num_processes={before}`",
            "resume",
            checkpoint.folder,
        )


def engine_state(objective: ContrastiveObjective) -> dict[str, Any]:
    """The decisions about the computation from the start of the run."""
    encoder, budget = objective.encoder, objective.grad_cache.budget
    return {
        "dtype": dtype_name(encoder.dtype),
        "attention": "packed" if encoder.packed else "padded",
        "token_budget": budget.tokens,
        "token_bytes": budget.token_bytes,
        "chunk_tokens": budget.chunk_tokens,
    }


def continued_dtype(checkpoint: Checkpoint, asked: str, settled: torch.dtype, reason: str) -> tuple[torch.dtype, str]:
    """The precision of a run that goes on, and the reason.

    Args:
        checkpoint: from which the run resumes.
        asked: `dtype` of this run.
        settled: what a new run would compute in here.
        reason: for it.
    """
    if asked != "auto":
        return settled, reason
    before: torch.dtype = getattr(torch, checkpoint.state["engine"]["dtype"])
    if before == settled:
        return before, reason
    return before, f"the run began with it (a new run would take {dtype_name(settled)} here, because {reason})"


def compare_machine(checkpoint: Checkpoint, now: dict[str, str], finetune_type: str) -> list[str]:
    """What changed around the run, so that it can't go on bit for bit.

    Args:
        checkpoint: from which the run resumes.
        now: the environment of this process (`run_record.environment`).
        finetune_type: of the run.

    Returns:
        A line for each thing that makes the last digits of the result differ; nothing is refused because of them.
    """
    before = _settings(checkpoint).get("environment", {})
    names = [name for name in now if name != "python" and name in before and before[name] != now[name]]
    lines = []
    if names:
        changes = "; ".join(f"{name} is {now[name]} and was {before[name]}" for name in names)
        lines.append(f"resume: the last digits of the result may differ from those of the unbroken run ({changes})")
    half = checkpoint.state["engine"]["dtype"] == "bfloat16" and checkpoint.state["options"]["dtype"] == "auto"
    if "kernels" not in before and half and finetune_type != "full":
        lines.append(
            "resume: an earlier version of EmbedRAG wrote the checkpoint. It may have kept the frozen base in float32. "
            "From here on the base is in bfloat16, so the result will differ a little from that of the unbroken run"
        )
    return lines


def engine_options(checkpoint: Checkpoint, options: TrainOptions) -> TrainOptions:
    """The options, with the decisions of the run instead of `auto` and of lengths that are not given."""
    engine, settled = checkpoint.state["engine"], _settled(checkpoint)
    lengths = {"query_max_len", "passage_max_len"} - options.model_fields_set
    return options.model_copy(
        update={
            "attention": engine["attention"] if options.attention == "auto" else options.attention,
            **{name: settled[name] for name in lengths if name in settled},
        }
    )


def saved_budget(checkpoint: Checkpoint, asked: int | None) -> TokenBudget | None:
    """The token budget of the checkpoint, so that batches are cut as before and nothing is measured again.

    Args:
        checkpoint: from which the run resumes.
        asked: `token_budget` of this run.

    Returns:
        None when this run asks for another budget than the run had.
    """
    if asked not in (None, checkpoint.state["options"]["token_budget"]):
        return None
    engine = checkpoint.state["engine"]
    # Earlier versions cut texts into chunks of as many tokens as were held.
    return TokenBudget(engine["token_budget"], engine["token_bytes"], engine.get("chunk_tokens"))
