"""The training loop, top to bottom.

An optimizer step is a list of micro-batches; the loss of a step is the mean over all its queries, so accumulation does
not change it. Schedule, logs and checkpoints count optimizer steps.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from tabulate import tabulate
from torch.utils.data import DataLoader

from embedrag.data.collator import Batch, Batches, SamplingSettings, steps_of_epoch
from embedrag.errors import RunError, StoppedError
from embedrag.models.artifacts import BEST_STEP, EVALUATION, METRICS, TENSORBOARD
from embedrag.models.save import save_model
from embedrag.runtime.console import console, now, say
from embedrag.runtime.files import atomic_folder, write_atomic
from embedrag.runtime.fsdp import gather_full
from embedrag.runtime.random_state import random_state, set_random_state
from embedrag.runtime.stop_signals import StopSignals
from embedrag.training.run_context import RunContext
from embedrag.training.state.checkpoint import Checkpoint, prune, read_tensors, restore_weights, write_state
from embedrag.training.state.resume import engine_state
from embedrag.training.state.run_folder import claim_files
from embedrag.training.state.run_log import RunLog
from embedrag.training.state.trackers import Trackers, tracker_names
from embedrag.training.train_step import TrainStep
from embedrag.training.validation import Validation


@dataclass
class TrainerState:
    """Where a run is; a checkpoint holds it.

    Attributes:
        global_step: optimizer steps done.
        epoch: the current epoch, from 0.
        done: optimizer steps done in the current epoch.
        losses: of these steps; None for a loss that was not finite.
        epoch_seconds: seconds that the current epoch has taken.
        last: the newest row of the log.
    """

    global_step: int = 0
    epoch: int = 0
    done: int = 0
    losses: list[float | None] = field(default_factory=list)
    epoch_seconds: float = 0.0
    last: dict[str, Any] = field(default_factory=dict)

    def next_epoch(self) -> None:
        """The current epoch is over."""
        self.epoch, self.done, self.losses, self.epoch_seconds = self.epoch + 1, 0, [], 0.0


class Trainer:
    """The loop of a run: epochs, evaluations, checkpoints, logs.

    Attributes:
        state: where the run is.
        stopped_early: no further evaluation is awaited, because `early_stopping_patience` is used up.
    """

    def __init__(self, run: RunContext, stop: StopSignals) -> None:
        """Build optimizer, schedule, trackers and logs; continue from the checkpoint of the run, if it has one."""
        options = run.options
        self.run, self.options, self.stop = run, options, stop
        self.processes = run.processes
        self.steps = [self._epoch_steps(epoch) for epoch in range(options.epochs)]
        self.total_steps = sum(len(steps) for steps in self.steps)
        self.accelerator = Accelerator(
            cpu=run.device.type == "cpu",
            # The encoder casts by itself; accelerate adds the loss scaler that float16 needs.
            mixed_precision="fp16" if run.dtype == torch.float16 else "no",
            log_with=tracker_names(options.log_with),
            project_config=ProjectConfiguration(str(run.output_dir), logging_dir=str(run.output_dir / TENSORBOARD)),
        )
        self.train_step = TrainStep(run, self.accelerator, self.total_steps)
        self.validation = Validation(run.evaluation, options.metric_for_best) if run.evaluation else None
        self.state = TrainerState()
        self.stopped_early = False
        saved = read_tensors(run.checkpoint) if run.checkpoint else None
        earlier = self._restore(run.checkpoint, saved) if run.checkpoint and saved else None
        folder = run.output_dir if self.processes.main else None
        self.log = RunLog(folder, options.model_dump(), run.record.model_info, earlier)
        first = self.state.global_step + 1
        self.trackers = Trackers(self.accelerator, options, run.output_dir, self.processes.main, first)
        self._seed(saved)

    def _seed(self, saved: dict[str, Any] | None) -> None:
        """Set the random state. This is the last thing before the first step, so that nothing else draws."""
        rank, seed = self.processes.rank, self.options.seed
        if saved and rank < len(saved["random"]):
            set_random_state(saved["random"][rank], self.run.device)
        elif saved:
            torch.manual_seed(seed + rank + self.state.global_step)
        elif rank:
            torch.manual_seed(seed + rank)  # each process has other texts, so it needs other dropout masks

    def train(self) -> None:
        """Run all epochs. The logs are closed in every case."""
        options = self.options
        say(f"training: {options.epochs} epochs, {self.total_steps} optimizer steps, output in {self.run.output_dir}")
        bar = console.progress(self.total_steps, "step", initial=self.state.global_step, mininterval=0.5)
        try:
            if self.validation and not self.validation.base:
                self._evaluate()
            while self.state.epoch < options.epochs and not self.stopped_early:
                self._epoch(bar)
            if self.stopped_early and self.state.done:  # ended within an epoch
                self._close_epoch()
            self._finish()
            summary = self._close(True)
        except BaseException:
            with contextlib.suppress(RunError):  # of a full disk: what happened first is the better reason
                self._close(False)
            raise
        finally:
            bar.close()
        if options.save_metrics and self.processes.main:
            claim_files(self.run.output_dir, METRICS)
            write_atomic(self.run.output_dir / METRICS, json.dumps(self._metrics(summary), indent=2))
        seconds, final = summary["total_training_time"], self.run.output_dir / "final"
        count = self.train_step.skipped
        skipped = f", {count} of {self.total_steps} steps were skipped" if count else ""
        loss = "none" if summary["final_loss"] is None else f"{summary['final_loss']:.4f}"
        say(f"done: loss {loss} after {seconds:.0f} s{skipped}; {final}")

    def _close(self, completed: bool) -> dict[str, Any]:
        """Close log files and trackers; returns the summary."""
        summary = self.log.finish(completed, **({"stopped_early": True} if self.stopped_early else {}))
        self.trackers.close()
        return summary

    def _epoch(self, bar: Any) -> None:
        """Train the rest of the current epoch.

        Raises:
            StoppedError: when a signal asked for it; the state is saved.
        """
        options = self.options
        start = time.monotonic() - self.state.epoch_seconds
        steps = len(self.steps[self.state.epoch])
        for batches in self._batches(self.state.epoch, self.state.done):
            row = {
                "epoch": self.state.epoch + 1,
                "step": self.state.done + 1,
                "global_step": self.state.global_step + 1,
            }
            row |= self.train_step.step(batches, self.state.global_step + 1)
            self.state.global_step += 1
            self.state.done += 1
            self.log.step(row)
            self._track(row)
            self.state.losses.append(row["loss"])
            shown = {"loss": _shown(row["loss"]), "acc": _shown(row["accuracy"])} | self._shown_metric()
            bar.set_postfix(shown, refresh=False)
            bar.update()
            self.state.last = row
            self.state.epoch_seconds = time.monotonic() - start
            if self.options.eval_steps and self.state.global_step % self.options.eval_steps == 0:
                self._evaluate()
            if self._out_of_patience() and self.state.global_step < self.total_steps:
                self.stopped_early = True
                self._save(f"checkpoint-step-{self.state.global_step}", self._state())
                return
            if self.state.done < steps:
                self._save_or_stop()
        self._close_epoch()
        self.state.next_epoch()
        if not options.eval_steps and self.state.epoch % options.eval_epochs == 0:
            self._evaluate()
        self.stopped_early = self._out_of_patience() and self.state.epoch < options.epochs
        if options.save_on_epoch_end and self.state.epoch % options.save_on_epoch_end == 0:
            self._save(f"checkpoint-epoch-{self.state.epoch}", self._state())
            self._save_or_stop(saved=f"checkpoint-epoch-{self.state.epoch}")
        elif self.stopped_early:
            self._save(f"checkpoint-step-{self.state.global_step}", self._state())
        else:
            self._save_or_stop()

    def _close_epoch(self) -> None:
        """Log the current epoch as far as it went."""
        finite = [loss for loss in self.state.losses if loss is not None]
        self.log.epoch(
            {
                "epoch": self.state.epoch + 1,
                "avg_loss": sum(finite) / len(finite) if finite else None,
                "total_loss": sum(finite),
                "num_steps": len(self.state.losses),
                "epoch_duration": self.state.epoch_seconds,
                "learning_rate": self.state.last["learning_rate"],
                "timestamp": now(),
            }
        )

    def _save_or_stop(self, saved: str | None = None) -> None:
        """Between two steps: save the state if it is time, and stop if a signal asked for it.

        Args:
            saved: the checkpoint that was just written, if one was.
        """
        every = self.options.save_steps
        stop = self.processes.any(self.stop.name is not None) and self.state.epoch < self.options.epochs
        if saved is None and (stop or every and self.state.global_step % every == 0):
            saved = f"checkpoint-step-{self.state.global_step}"
            self._save(saved, self._state())
        if stop:
            raise StoppedError(
                f"stopped by {self.stop.name or 'a signal'} after step {self.state.global_step} of {self.total_steps}; "
                f"{saved} is complete; the same call with `resume=auto` goes on"
            )

    def _evaluate(self) -> None:
        """Score the current model, and save it when it is the best so far."""
        if not self.validation or self.validation.last_step == self.state.global_step:
            return
        epoch = min(self.state.epoch + (self.state.done > 0), self.options.epochs)
        row, best = self.validation.measure(self.run.objective.encoder, self.processes, self.state.global_step, epoch)
        self.log.evaluation(row)
        values = {f"eval/{name}": value for name, value in row.items() if "@" in name or "score" in name}
        self.trackers.log(values, step=self.state.global_step)
        name = self.validation.metric
        say(f"evaluation: step {self.state.global_step}, {name} {row[name]:.4f}{', the best so far' if best else ''}")
        if best:
            self._save(f"{BEST_STEP}{self.state.global_step}")

    def _out_of_patience(self) -> bool:
        patience = self.options.early_stopping_patience
        return bool(patience and self.validation and self.validation.since_best >= patience)

    def _finish(self) -> None:
        """Write final/: the best model if models were scored, otherwise the last one. Say whether it beats the base."""
        if not self.validation or not self.run.evaluation:
            self._save("final")
            say("evaluation: none; give `eval_dataset` or `eval_split` to learn whether the model beats its base")
            return
        self._evaluate()
        if self.stopped_early:
            say(f"training: ended early because {self.validation.since_best} evaluations brought no improvement")
        if self.processes.main:
            folder, options = self.run.output_dir, self.options
            claim_files(folder, "final", *EVALUATION)
            with atomic_folder(folder / "final") as final:
                shutil.copytree(folder / f"{BEST_STEP}{self.validation.best_step}", final, dirs_exist_ok=True)
            name = options.eval_dataset or f"{options.eval_split:.0%} of the rows, held out"
            self.validation.conclude(folder, options.model_name_or_path, name)
        self.processes.barrier()

    def _shown_metric(self) -> dict[str, str]:
        if not self.log.evaluations or not self.validation:
            return {}
        return {self.validation.metric: _shown(self.log.evaluations[-1][self.validation.metric])}

    def _state(self) -> dict[str, Any]:
        """Everything that `_restore` takes back."""
        return {
            **self.train_step.state(),
            "monitor": self.validation.state() if self.validation else None,
            **{item.name: getattr(self.state, item.name) for item in fields(TrainerState)},
            "processes": self.processes.size,
            "row": self._next_row(),
            "log": self.log.state(),
            "options": self.run.record.asked,
            "data": self.run.data.checksum,
            "engine": engine_state(self.run.objective),
            "random": self.processes.gather(random_state(self.run.device)),
        }

    def _restore(self, checkpoint: Checkpoint, state: dict[str, Any]) -> dict[str, Any]:
        """Restore weights, optimizer, schedule and place; returns the state of the log."""
        restore_weights(checkpoint, state["weights"], self.run.objective.encoder.weights())
        if state["processes"] != self.processes.size:
            self._take_up(state)
        self.train_step.restore(state, self.total_steps)
        if self.validation and state["monitor"]:
            self.validation.restore(state["monitor"])
        self.state = TrainerState(**{item.name: state[item.name] for item in fields(TrainerState)})
        # Perhaps the run ended early at this step, and was killed before it wrote final/.
        self.stopped_early = self._out_of_patience() and self.state.global_step < self.total_steps
        say(f"resume: {checkpoint.folder}, step {self.state.global_step} of {self.total_steps}")
        here = checkpoint.folder.parent.resolve() == self.run.output_dir.resolve()
        log: dict[str, Any] = state["log"]
        return log if here else log | {"position": 0}

    def _next_row(self) -> int:
        """Place in the stream of rows after the steps that are done."""
        steps = [step for epoch in self.steps[: self.state.epoch + 1] for step in epoch]
        done = sum(len(epoch) for epoch in self.steps[: self.state.epoch]) + self.state.done
        return steps[done - 1][-1][1] if done and steps[done - 1] else 0

    def _take_up(self, state: dict[str, Any]) -> None:
        """Cut the rest of the epoch into steps of another number of processes."""
        epoch, before, now_ = state["epoch"], state["processes"], self.processes.size
        if state["done"]:
            # Steps that are done keep their places, so that steps and epochs are counted as before.
            self.steps[epoch] = [[] for _ in range(state["done"])] + self._epoch_steps(epoch, state["row"])
        self.total_steps = state["global_step"] + sum(len(steps) for steps in self.steps[epoch:]) - state["done"]
        say(
            f"resume: {before} processes before and {now_} now, at the same row; a step has {now_}/{before} of the "
            f"rows it had, and the learning rate follows the new number of steps ({self.total_steps})"
        )

    def _batches(self, epoch: int, done: int) -> Iterator[list[Batch]]:
        """The optimizer steps of an epoch after the first `done`, each as its micro-batches."""
        options, steps = self.options, self.steps[epoch][done:]
        bounds = [bound for step in steps for bound in step]
        part = (0, 1) if options.gather_negatives else (self.processes.rank, self.processes.size)
        sampling = SamplingSettings(neg_nums=options.neg_nums, pos_nums=options.pos_nums, seed=options.seed)
        data = Batches(self.run.data.at(epoch), self.run.data.order, bounds, sampling, part)
        # A separate generator, because the loader draws a seed from it, and a resumed epoch would draw it again.
        loader = iter(DataLoader(data, None, num_workers=options.num_workers, generator=torch.Generator()))
        for step in steps:
            yield [next(loader) for _ in step]

    def _epoch_steps(self, epoch: int, first: int | None = None) -> list[list[tuple[int, int]]]:
        options = self.options
        return steps_of_epoch(
            rows=len(self.run.data.order),
            batch_size=options.batch_size * self.processes.size,
            accumulation=options.gradient_accumulation_steps,
            epoch=epoch,
            steps_per_epoch=options.steps_per_epoch,
            first=first,
            least=2 if options.gather_negatives else 2 * self.processes.size,
        )

    def _save(self, name: str, state: dict[str, Any] | None = None) -> None:
        run = self.run
        rows = [[row["epoch"], _shown(row["avg_loss"]), f"{row['epoch_duration']:.0f}"] for row in self.log.epochs]
        results = tabulate(rows, ["epoch", "mean loss", "seconds"], "github", disable_numparse=True)
        encoder = run.objective.encoder
        # With sharded weights all processes help to gather them, and only the main process gets them.
        weights = gather_full(encoder.backbone.state_dict(), self.processes.main) if encoder.sharded else None
        add_state = partial(write_state, parameters=encoder.weights(), state=state or {}, full_weights=weights)
        if self.processes.main:
            claim_files(run.output_dir, name)
            save_model(
                encoder,
                run.output_dir / name,
                settings=run.record.settings,
                probes=run.record.probes,
                results=results,
                weights=weights,
                add_files=add_state if state else None,
                overwrite=True,
            )
            best = self.validation.best_step if self.validation and self.validation.best else None
            prune(run.output_dir, self.options.save_total_limit, best)
        self.processes.barrier()

    def _track(self, row: dict[str, Any]) -> None:
        names = ("loss", "accuracy", "learning_rate", "grad_norm", "tokens_per_second", "padding_share")
        values = {f"train/{name}": row[name] for name in names if row[name] is not None}
        self.trackers.log(values, step=row["global_step"])

    def _metrics(self, summary: dict[str, Any]) -> dict[str, Any]:
        names = ("loss", "accuracy", "tokens_per_second", "peak_memory_bytes")
        return {name: self.state.last[name] for name in names} | summary


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
