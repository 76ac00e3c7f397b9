"""The first stage of a run: checks that need neither data nor model. All problems are reported together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from embedrag.data.retrieval_dataset import folder_and_split
from embedrag.data.sources import local_files
from embedrag.errors import UserError, all_problems
from embedrag.models.artifacts import EVALUATION, METRICS
from embedrag.models.base_model import check_local_path
from embedrag.models.quantization import check_bitsandbytes
from embedrag.runtime.console import say
from embedrag.runtime.device import pick_device
from embedrag.runtime.disk import too_long
from embedrag.runtime.distributed import ProcessGroup, join, wants_sharding
from embedrag.training.config.options import TrainOptions
from embedrag.training.config.rules import remarks
from embedrag.training.optimizer import check_optimizer
from embedrag.training.state.checkpoint import Checkpoint, open_checkpoint
from embedrag.training.state.resume import compare_settings, engine_options
from embedrag.training.state.run_folder import ALWAYS, check_output_dir, check_sources
from embedrag.training.state.run_log import check_tracker


@dataclass(frozen=True)
class Preflight:
    """Everything that is known before data and model are read.

    Attributes:
        options: with everything filled in that follows from other options, and from the checkpoint.
        asked: the options as they were asked for; a later resume is compared with them.
        output_dir: folder of the run.
        checkpoint: the checkpoint that the run goes on from, if it does.
        device: where this process computes.
        processes: this process among those that train together.
    """

    options: TrainOptions
    asked: dict[str, Any]
    output_dir: Path
    checkpoint: Checkpoint | None
    device: torch.device
    processes: ProcessGroup


def preflight(options: TrainOptions) -> Preflight:
    """Check the options against this machine, the output folder and the checkpoint.

    Raises:
        UserError: for everything that the user can fix.
    """
    options = with_engine(options).resolved()
    asked, output_dir = options.model_dump(), Path(options.output_dir, options.run_name or "")
    if too_long(output_dir):
        raise UserError("this name is too long for the disk; name another folder", "output_dir", output_dir)
    checkpoint = _open_checkpoint(options, output_dir)
    _check_surroundings(options, output_dir, checkpoint)
    for line in remarks(options):
        say(line)
    if checkpoint:
        for line in compare_settings(checkpoint, asked):
            say(line)
        options = engine_options(checkpoint, options)
    elif options.resume:
        say(f"resume: no whole checkpoint in {output_dir}, so the run starts at its beginning")
    device = pick_device(options.device)
    if options.dtype == "float16" and device.type == "cpu":
        raise UserError("is not trained on a CPU; use `dtype=float32` or `dtype=bfloat16`", "dtype", "float16")
    processes = join(device)
    if options.shard_weights and processes.size == 1:
        raise UserError(
            "there is one process, so nothing can be sharded; give `num_processes=2` or more", "shard_weights"
        )
    return Preflight(options, asked, output_dir, checkpoint, device, processes)


def _open_checkpoint(options: TrainOptions, output_dir: Path) -> Checkpoint | None:
    checkpoint, lines = open_checkpoint(options.resume, output_dir)
    for line in lines:
        say(line)
    return checkpoint


def _check_surroundings(options: TrainOptions, output_dir: Path, checkpoint: Checkpoint | None) -> None:
    """Raise UserError with all problems of files, folders and missing libraries."""
    if not options.train_dataset:
        raise UserError("is required: name a file of rows, a folder, or a hub id", "train_dataset")
    data = [source.path for source in options.train_dataset]
    checks: list[Callable[[], object]] = [partial(local_files, path) for path in data]
    checks.append(partial(check_local_path, options.model_name_or_path))
    goes_on = checkpoint is not None and checkpoint.folder.parent.resolve() == output_dir.resolve()
    writes = [*ALWAYS, *[METRICS] * options.save_metrics, *["merged"] * options.merge]
    writes += EVALUATION if options.eval_dataset or options.eval_split else ()
    source = output_dir / checkpoint.folder.name if checkpoint and goes_on else None
    free_for = partial(check_output_dir, output_dir, options.overwrite or goes_on, options.resume == "auto")
    checks.append(partial(free_for, writes, source))
    if not goes_on:
        sources = [options.model_name_or_path, options.tokenizer_id or "", *data]
        sources.append(folder_and_split(options.eval_dataset or "")[0])
        sources += [str(checkpoint.folder)] if checkpoint else []
        checks.append(partial(check_sources, output_dir, sources))
    checks.append(partial(check_optimizer, options.optimizer))
    checks.append(partial(check_tracker, options.log_with))
    if options.finetune_type == "qlora":
        checks.append(check_bitsandbytes)
    all_problems(checks)


def with_engine(options: TrainOptions) -> TrainOptions:
    """Turn the request of `accelerate launch` into our own option.

    Raises:
        UserError: when it asks for sharding of something that can't be sharded.
    """
    engine = wants_sharding()
    if engine is None or options.shard_weights:
        return options
    if options.finetune_type != "full":
        raise UserError(
            f"accelerate asks for {engine}, which needs `finetune_type=full`; launch {options.finetune_type} with "
            "MULTI_GPU"
        )
    say(f"processes: accelerate asks for {engine}; torch's FSDP2 shards weights, gradients and optimizer state")
    return TrainOptions.model_validate(options.model_dump(exclude_unset=True) | {"shard_weights": True})
