"""Checks that need no model, all problems together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from embedrag.data.sources import local_files
from embedrag.errors import UserError
from embedrag.models.base_model import check_local_path
from embedrag.models.quantization import check_bitsandbytes
from embedrag.runtime.console import say
from embedrag.runtime.distributed import wants_sharding
from embedrag.training.config.options import TrainOptions
from embedrag.training.optimizer import check_optimizer
from embedrag.training.state.checkpoint import Checkpoint, open_checkpoint
from embedrag.training.state.resume import compare_settings, engine_options
from embedrag.training.state.run_folder import check_output_dir, check_sources
from embedrag.training.state.run_log import check_tracker


def _take_up(options: TrainOptions, output_dir: Path) -> tuple[Checkpoint | None, TrainOptions]:
    """What the run goes on from, and its options with what was settled then; the surroundings are checked."""
    checkpoint, lines = open_checkpoint(options.resume, output_dir)
    for line in lines:
        say(line)
    _check_surroundings(options, output_dir, checkpoint)
    if checkpoint:
        for line in compare_settings(checkpoint, options.model_dump()):
            say(line)
        return checkpoint, engine_options(checkpoint, options)
    if options.resume:
        say(f"resume: no whole checkpoint in {output_dir}, so the run starts at its beginning")
    return None, options


def _check_surroundings(options: TrainOptions, output_dir: Path, checkpoint: Checkpoint | None) -> None:
    """Checks that need neither data nor model; all problems are reported together."""
    data = [source.path for source in options.train_dataset or []]
    checks: list[Callable[[], object]] = [partial(local_files, path) for path in data]
    checks.append(partial(check_local_path, options.model_name_or_path))
    goes_on = checkpoint is not None and checkpoint.folder.parent.resolve() == output_dir.resolve()
    checks.append(partial(check_output_dir, output_dir, options.overwrite or goes_on, options.resume == "auto"))
    if not goes_on:
        sources = [options.model_name_or_path, options.tokenizer_id or "", *data]
        sources += [options.eval_dataset or ""]
        sources += [str(checkpoint.folder)] if checkpoint else []
        checks.append(partial(check_sources, output_dir, sources))
    checks.append(partial(check_optimizer, options.optimizer))
    checks.append(partial(check_tracker, options.log_with))
    if options.finetune_type == "qlora":
        checks.append(check_bitsandbytes)
    problems = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def with_engine(options: TrainOptions) -> TrainOptions:
    """What `accelerate launch` asks for, as our own option.

    Raises:
        UserError: when it asks for parts of what has to be whole.
    """
    engine = wants_sharding()
    if engine is None or options.shard_weights:
        return options
    if options.finetune_type != "full":
        raise UserError(
            f"accelerate asks for {engine}, which is for --finetune_type full; launch {options.finetune_type} with "
            "MULTI_GPU"
        )
    say(f"processes: accelerate asks for {engine}; weights, gradients and optimizer state are cut by torch's FSDP2")
    return TrainOptions.model_validate(options.model_dump() | {"shard_weights": True})
