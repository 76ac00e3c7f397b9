"""A run from its options to its last file: preflight, setup, training, and the merge if it is asked for."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedrag.errors import RunError, UserError, is_out_of_memory
from embedrag.merging.merge import merge
from embedrag.models.artifacts import BEST_STEP, EVALUATION, MERGE_CONFIG, SUMMARY, TRAINING_CONFIG
from embedrag.runtime.console import say
from embedrag.runtime.device import fixed_order_of_sums
from embedrag.runtime.distributed import leave
from embedrag.runtime.files import atomic_folder
from embedrag.runtime.stop_signals import StopSignals
from embedrag.training.config.options import TrainOptions
from embedrag.training.launcher import launch, wanted_processes
from embedrag.training.preflight import preflight
from embedrag.training.run_context import RunContext
from embedrag.training.setup import setup
from embedrag.training.state.checkpoint import Checkpoint, forget_later
from embedrag.training.state.resume import compare_complete, is_complete
from embedrag.training.state.run_folder import alone_in, check_output_dir, claim_files, go_on, start_run
from embedrag.training.state.trackers import without_tracebacks
from embedrag.training.trainer import Trainer


@dataclass(frozen=True)
class RunResult:
    """The result of a training, and the files that it wrote.

    Attributes:
        output_dir: folder of the run.
        model: folder of the trained model: merged/ when the run merged its adapter, otherwise final/. After a dry run
            it is None.
        metrics: figures of the run: loss, steps, seconds; and the scores of the model when it was evaluated.
        verdict: `better`, `worse` or `no clear difference` to the base; None when the run was not evaluated.
    """

    output_dir: Path
    model: Path | None
    metrics: dict[str, Any]
    verdict: str | None

    @classmethod
    def read(cls, output_dir: Path, merged: bool = False) -> RunResult:
        """The result of a complete run, from the files in its folder; `merged`: it was merged later."""
        report = json.loads((output_dir / SUMMARY).read_text(encoding="utf-8"))
        metrics, verdict = dict(report["performance_summary"]), None
        if (output_dir / EVALUATION[0]).is_file():
            evaluation = json.loads((output_dir / EVALUATION[0]).read_text(encoding="utf-8"))
            metrics |= {name: value for name, value in evaluation.items() if isinstance(value, (int, float))}
            verdict = evaluation.get("verdict")
        settings = report["training_args"]
        name = "merged" if (merged or settings["merge"]) and settings["finetune_type"] != "full" else "final"
        return cls(output_dir, output_dir / name, metrics, verdict)


def train(options: TrainOptions) -> RunResult:
    """Fine-tune a model, and write the files of the run to `output_dir`.

    Raises:
        UserError: the caller can fix it; nothing was written.
        RunError: the run went wrong; earlier checkpoints are whole.
    """
    output_dir = Path(options.output_dir, options.run_name or "")
    if options.resume == "auto" and is_complete(options):
        lines = compare_complete(options)
        for line in lines:
            say(line)
        say(f"resume: the run in {output_dir} is complete" + "; nothing is trained with these settings" * bool(lines))
        if options.merge and not _is_merged(output_dir):
            _merge(output_dir / "final", options)
        return RunResult.read(output_dir, options.merge)
    if (count := wanted_processes(options)) > 1:
        launch(options, count)
        return _result(options, output_dir)
    try:
        with StopSignals() as stop, without_tracebacks():
            main = _run(options, output_dir, stop)
        if options.dry_run:
            return _result(options, output_dir)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            "memory ran out outside of a step's forward and backward pass: the model, its gradients and the optimizer "
            "do not fit. Try `finetune_type=lora` or `finetune_type=qlora`, or `optimizer=adamw8bit`"
        ) from error
    finally:
        leave()
    if not main:
        return RunResult(output_dir, output_dir / "final", {}, None)  # the main process writes the files
    if options.merge:
        _merge(output_dir / "final", options)
    elif (output_dir / "merged" / MERGE_CONFIG).is_file() and not _is_merged(output_dir):
        say(f"merge: {output_dir / 'merged'} is older than final/; give `merge` with `resume=auto` to merge again")
    return _result(options, output_dir)


def _run(options: TrainOptions, output_dir: Path, stop: StopSignals) -> bool:
    """Set up and train; whether this process is the one that writes the files."""
    start = preflight(options)
    with fixed_order_of_sums(start.device):
        run = setup(start)
        if options.dry_run:
            say(f"dry run: ready for the first step; {output_dir} was not touched")
            return start.processes.main
        stop.can_wait = True
        with ExitStack() as held:
            with run.processes.main_first():
                if run.processes.main:
                    held.enter_context(alone_in(run.output_dir))
                    _make_room(run)
            Trainer(run, stop).train()
    return start.processes.main


def _result(options: TrainOptions, output_dir: Path) -> RunResult:
    return RunResult(output_dir, None, {}, None) if options.dry_run else RunResult.read(output_dir)


def _make_room(run: RunContext) -> None:
    if run.checkpoint is None:  # looked at again, because another run may have ended here since the start
        check_output_dir(run.output_dir, run.options.overwrite, run.options.resume == "auto")
    if run.checkpoint is None or run.checkpoint.folder.parent.resolve() != run.output_dir.resolve():
        start_run(run.output_dir)
    else:
        go_on(run.output_dir)
        if later := forget_later(run.output_dir, run.checkpoint):
            say(f"resume: {', '.join(later)} keep their model, but the run goes on from {run.checkpoint.folder.name}")
    if run.checkpoint:
        _bring_best(run.checkpoint, run.output_dir)


def _bring_best(checkpoint: Checkpoint, output_dir: Path) -> None:
    """Copy the best model so far into the folder of the run; it may still be the best one when the run ends."""
    step = (checkpoint.state.get("monitor") or {}).get("best_step")
    name, origin = f"{BEST_STEP}{step}", checkpoint.folder.parent
    if not step or (output_dir / name).is_dir():
        return
    if not (origin / name).is_dir():
        raise UserError(
            f"{origin / name}, the best model so far, is missing; go on from an earlier checkpoint, or start a new run "
            "in another `output_dir`",
            "resume",
            checkpoint.folder,
        )
    claim_files(output_dir, name)
    with atomic_folder(output_dir / name) as folder:
        shutil.copytree(origin / name, folder, dirs_exist_ok=True)


def _is_merged(output_dir: Path) -> bool:
    """Whether merged/ was made from this final/; a run that went on, or was killed in the merge, leaves an old one."""
    try:
        merged, final = (output_dir / name for name in (f"merged/{MERGE_CONFIG}", f"final/{TRAINING_CONFIG}"))
        return merged.stat().st_mtime_ns >= final.stat().st_mtime_ns
    except OSError:
        return False


def _merge(adapter: Path, options: TrainOptions) -> None:
    if options.finetune_type == "full":
        say("merge: a full fine-tune has no adapter; final/ is the model")
        return
    claim_files(adapter.parent, "merged")
    report = merge(
        adapter,
        adapter.with_name("merged"),
        base_model_path=options.model_name_or_path,
        trust_remote_code=options.trust_remote_code,
        overwrite=True,  # replaces the merged model of this run from before it was resumed
    )
    for line in report.lines():
        say(line)
