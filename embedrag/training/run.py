"""A run from its options to its last file."""

from __future__ import annotations

import shutil
from pathlib import Path

from embedrag.commands.merge import MergeOptions
from embedrag.errors import RunError, UserError, is_out_of_memory
from embedrag.models.artifacts import BEST_STEP
from embedrag.runtime.console import say
from embedrag.runtime.distributed import leave
from embedrag.runtime.files import atomic_folder
from embedrag.runtime.stop_signals import StopSignals
from embedrag.training.config.options import TrainOptions
from embedrag.training.launcher import launch, wanted_processes
from embedrag.training.run_context import RunContext
from embedrag.training.setup import prepare
from embedrag.training.state.checkpoint import Checkpoint, forget_later
from embedrag.training.state.resume import is_complete
from embedrag.training.state.run_folder import clear_leftovers, clear_output_dir
from embedrag.training.trainer import Trainer


def train(options: TrainOptions) -> int:
    """Fine-tune as the options say and leave the promised files in `--output_dir`.

    Returns:
        Exit code 0.

    Raises:
        UserError: the user can mend it; nothing was written.
        RunError: the run went wrong; earlier checkpoints are whole.
    """
    if options.resume == "auto" and is_complete(options):
        say(f"resume: the run in {options.output_dir} is complete")
        return 0
    if (count := wanted_processes(options)) > 1:
        return launch(options, count)
    try:
        run = prepare(options)
        if options.dry_run:
            say(f"dry run: ready for the first step; {run.output_dir} was not touched")
            return 0
        with run.processes.main_first():
            if run.processes.main:
                _make_room(run)
        with StopSignals() as stop:
            Trainer(run, stop).train()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            "memory ran out outside of a step's forward and backward pass: the model, its gradients and the optimizer "
            "do not fit. Try --finetune_type lora or qlora, or --optimizer adamw8bit"
        ) from error
    finally:
        leave()
    if not run.processes.main:
        return 0
    if options.merge and options.finetune_type == "full":
        say("merge: a full fine-tune has no adapter; final/ is the model")
    elif options.merge:
        adapter, base = run.output_dir / "final", run.options.model_name_or_path
        del run
        _merge(adapter, base, options.trust_remote_code)
    return 0


def _make_room(run: RunContext) -> None:
    if run.checkpoint is None or run.checkpoint.folder.parent.resolve() != run.output_dir.resolve():
        clear_output_dir(run.output_dir)
    elif later := forget_later(run.output_dir, run.checkpoint):
        say(f"resume: {', '.join(later)} keep their model, but the run goes on from {run.checkpoint.folder.name}")
    run.output_dir.mkdir(parents=True, exist_ok=True)
    clear_leftovers(run.output_dir)
    if run.checkpoint:
        _bring_best(run.checkpoint, run.output_dir)


def _bring_best(checkpoint: Checkpoint, output_dir: Path) -> None:
    """The best state so far must be here when the run ends, for it may stay the best."""
    step = (checkpoint.state.get("monitor") or {}).get("best_step")
    name, origin = f"{BEST_STEP}{step}", checkpoint.folder.parent
    if not step or (output_dir / name).is_dir():
        return
    if not (origin / name).is_dir():
        raise UserError(
            f"--resume {checkpoint.folder}: {origin / name}, the best state so far, is missing; go on from an earlier "
            "checkpoint, or start a new run in another --output_dir"
        )
    with atomic_folder(output_dir / name) as folder:
        shutil.copytree(origin / name, folder, dirs_exist_ok=True)


def _merge(adapter: Path, base: str, trust_remote_code: bool) -> None:
    from embedrag.merging.merge import run

    run(
        MergeOptions(
            base_model_path=base,
            lora_adapter_path=str(adapter),
            output_path=str(adapter.with_name("merged")),
            trust_remote_code=trust_remote_code,
            overwrite=True,  # the run's own, of its state before it went on
        )
    )
