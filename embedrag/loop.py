"""The training loop, top to bottom.

An optimizer step is a list of micro-batches; the loss of a step is the mean over all its queries, so accumulation does
not change it. Schedule, logs and checkpoints count optimizer steps.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from tabulate import tabulate
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from embedrag.budget import halve_budget, is_out_of_memory, longest_text
from embedrag.cached import random_state, set_random_state
from embedrag.checkpoint import clear_leftovers, clear_output_dir, save_model
from embedrag.config import MergeOptions, TrainOptions
from embedrag.device import peak_memory_bytes
from embedrag.errors import RunError, StoppedError
from embedrag.files import write_atomic
from embedrag.launch import launch, wanted_processes
from embedrag.logs import RunLog, now, say
from embedrag.optim import build_optimizer, cosine_schedule, warmup_steps
from embedrag.prepare import Run, prepare
from embedrag.processes import Processes, leave
from embedrag.resume import engine_state, is_complete
from embedrag.sampling import Batch, make_batch, rows_between, steps_of_epoch
from embedrag.signals import StopSignals
from embedrag.state import Checkpoint, checkpoints, forget_later, prune, read_tensors, restore_weights
from embedrag.tokens import TokenStore


def train(options: TrainOptions) -> int:
    """Fine-tune as the options say and leave the promised files in `--output_dir`.

    Returns:
        Exit code 0.

    Raises:
        UserError: the user can mend it; nothing was written.
        RunError: the run went wrong; earlier checkpoints are whole.
    """
    if options.resume == "auto" and is_complete(Path(options.output_dir, options.run_name or ""), options.epochs):
        say(f"resume: the run in {options.output_dir} is complete")
        return 0
    if (count := wanted_processes(options)) > 1:
        return launch(options, count)
    try:
        run = prepare(options)
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


def _make_room(run: Run) -> None:
    if run.checkpoint is None or run.checkpoint.folder.parent.resolve() != run.output_dir.resolve():
        clear_output_dir(run.output_dir)
    elif later := forget_later(run.output_dir, run.checkpoint):
        say(f"resume: {', '.join(later)} keep their model, but the run goes on from {run.checkpoint.folder.name}")
    run.output_dir.mkdir(parents=True, exist_ok=True)
    clear_leftovers(run.output_dir)


def _merge(adapter: Path, base: str, trust_remote_code: bool) -> None:
    from embedrag.merge import run

    run(
        MergeOptions(
            base_model_path=base,
            lora_adapter_path=str(adapter),
            output_path=str(adapter.with_name("merged")),
            trust_remote_code=trust_remote_code,
        )
    )


class Batches(Dataset[Batch]):
    """The micro-batches of one epoch, by number; assembled where they are asked for (here or in a worker)."""

    def __init__(
        self,
        store: TokenStore,
        bounds: list[tuple[int, int]],
        neg_nums: int,
        seed: int,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Keep what `make_batch` needs; `bounds` are positions of the row stream, `part` is (number, of how many)."""
        self.store, self.bounds, self.neg_nums, self.seed, self.part = store, bounds, neg_nums, seed, part

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: int) -> Batch:
        picked = list(rows_between(*self.bounds[index], len(self.store), self.seed))
        number, parts = self.part
        picked = picked[len(picked) * number // parts : len(picked) * (number + 1) // parts]
        return make_batch(self.store, picked, self.neg_nums, self.seed)


class Trainer:
    """State of a run while it goes."""

    def __init__(self, run: Run, stop: StopSignals) -> None:
        """Build optimizer, schedule, trackers and logs around a prepared run; go on where its checkpoint stands."""
        options = run.options
        self.run, self.options, self.stop = run, options, stop
        self.processes = run.processes
        # Those that work on one batch; without gathering each process has rows, negatives and a loss of its own.
        self.team = run.processes if options.gather_negatives else Processes()
        self.steps = [self._epoch_steps(epoch) for epoch in range(options.epochs)]
        self.total_steps = sum(len(steps) for steps in self.steps)
        self.accelerator = Accelerator(
            cpu=run.device.type == "cpu",
            # The encoder casts by itself; accelerate adds the loss scaler that float16 needs.
            mixed_precision="fp16" if run.dtype == torch.float16 else "no",
            log_with=_trackers(options.log_with),
            project_config=ProjectConfiguration(str(run.output_dir), logging_dir=str(run.output_dir / "runs")),
        )
        optimizer = build_optimizer(options.optimizer, run.step, options.lr or 0.0, options.weight_decay)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.warmup = warmup_steps(self.total_steps, options.warmup_proportion)
        self.schedule = cosine_schedule(optimizer, self.total_steps, self.warmup)
        self.parameters = [parameter for parameter in run.step.parameters() if parameter.requires_grad]
        self.global_step = self.epoch = self.done = self.skipped = 0
        self.losses: list[float | None] = []
        self.epoch_seconds = 0.0
        self.last: dict[str, Any] = {}
        state = read_tensors(run.checkpoint) if run.checkpoint else None
        earlier = self._restore(run.checkpoint, state) if run.checkpoint and state else None
        folder = run.output_dir if self.processes.main else None
        self.log = RunLog(folder, options.model_dump(), run.model_info, earlier)
        self.accelerator.init_trackers(
            options.run_name or "train",
            config=_flat(options),
            init_kwargs={"tensorboard": {"purge_step": self.global_step + 1}} if earlier else {},
        )
        if state:
            # Last of all, so that nothing draws in between.
            states = state["random"]
            if self.processes.rank < len(states):
                set_random_state(states[self.processes.rank], run.device)
            else:
                torch.manual_seed(options.seed + self.processes.rank + self.global_step)
        elif self.processes.rank:
            torch.manual_seed(options.seed + self.processes.rank)  # other masks of dropout for other texts

    def train(self) -> None:
        """Run all epochs; whatever happens, the logs are closed."""
        options = self.options
        say(f"training: {options.epochs} epochs, {self.total_steps} optimizer steps, output in {self.run.output_dir}")
        completed = False
        bar = tqdm(
            total=self.total_steps,
            initial=self.global_step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
            disable=not self.processes.main,
        )
        try:
            while self.epoch < options.epochs:
                self._epoch(bar)
            self._save("final")
            completed = True
        finally:
            bar.close()
            summary = self.log.finish(completed)
            self.accelerator.end_training()
        if options.save_metrics and self.processes.main:
            write_atomic(self.run.output_dir / "metrics.json", json.dumps(self._metrics(summary), indent=2))
        seconds, final = summary["total_training_time"], self.run.output_dir / "final"
        skipped = f", {self.skipped} of {self.total_steps} steps were skipped" if self.skipped else ""
        loss = "none" if summary["final_loss"] is None else f"{summary['final_loss']:.4f}"
        say(f"done: loss {loss} after {seconds:.0f} s{skipped}; {final}")

    def _epoch(self, bar: tqdm[Any]) -> None:
        """What is left of the current epoch.

        Raises:
            StoppedError: when a signal asked for it; the state is saved.
        """
        options = self.options
        start = time.monotonic() - self.epoch_seconds
        steps = len(self.steps[self.epoch])
        for batches in self._batches(self.epoch, self.done):
            row = {"epoch": self.epoch + 1, "step": self.done + 1, "global_step": self.global_step + 1}
            row |= self._optimizer_step(batches)
            self.global_step += 1
            self.done += 1
            self.log.step(row)
            self._track(row)
            self.losses.append(row["loss"])
            bar.set_postfix(loss=_shown(row["loss"]), acc=_shown(row["accuracy"]), refresh=False)
            bar.update()
            self.last = row
            self.epoch_seconds = time.monotonic() - start
            if self.done < steps:
                self._save_or_stop()
        finite = [loss for loss in self.losses if loss is not None]
        self.log.epoch(
            {
                "epoch": self.epoch + 1,
                "avg_loss": sum(finite) / len(finite) if finite else None,
                "total_loss": sum(finite),
                "num_steps": len(self.losses),
                "epoch_duration": self.epoch_seconds,
                "learning_rate": self.last["learning_rate"],
                "timestamp": now(),
            }
        )
        self.epoch, self.done, self.losses, self.epoch_seconds = self.epoch + 1, 0, [], 0.0
        if options.save_on_epoch_end and self.epoch % options.save_on_epoch_end == 0:
            self._save(f"checkpoint-epoch-{self.epoch}", self._state())
            self._save_or_stop(saved=f"checkpoint-epoch-{self.epoch}")
        else:
            self._save_or_stop()

    def _save_or_stop(self, saved: str | None = None) -> None:
        """Between two steps: save the state if it is time, and stop if a signal asked for it.

        Args:
            saved: the checkpoint that was just written, if one was.
        """
        every = self.options.save_steps
        stop = self.processes.any(self.stop.name is not None) and self.epoch < self.options.epochs
        if saved is None and (stop or every and self.global_step % every == 0):
            saved = f"checkpoint-step-{self.global_step}"
            self._save(saved, self._state())
        if stop:
            raise StoppedError(
                f"stopped by {self.stop.name or 'a signal'} after step {self.global_step} of {self.total_steps}; "
                f"{saved} is whole, the same command with --resume auto goes on"
            )

    def _state(self) -> dict[str, Any]:
        """Everything that `_restore` takes back."""
        scaler = self.accelerator.scaler
        return {
            "global_step": self.global_step,
            "epoch": self.epoch,
            "done": self.done,
            "skipped": self.skipped,
            "processes": self.processes.size,
            "row": self._next_row(),
            "losses": self.losses,
            "epoch_seconds": self.epoch_seconds,
            "last": self.last,
            "log": self.log.state(),
            "options": self.run.asked,
            "data": self.run.store.checksum,
            "engine": engine_state(self.run.step.encoder),
            "schedule": self.schedule.last_epoch,
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": scaler.state_dict() if scaler else None,
            "random": self.processes.gather(random_state(self.run.device)),
        }

    def _restore(self, checkpoint: Checkpoint, state: dict[str, Any]) -> dict[str, Any]:
        """Take back weights, optimizer, schedule and place; returns where the log stood."""
        restore_weights(checkpoint, state["weights"], self.run.step.encoder.backbone)
        # Settings such as the rate are those of this run.
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state["optimizer"]})
        if state["processes"] != self.processes.size:
            self._take_up(state)
        for group, rate in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] = rate
        self.schedule = cosine_schedule(self.optimizer.optimizer, self.total_steps, self.warmup, state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for name in ("global_step", "epoch", "done", "skipped", "losses", "epoch_seconds", "last"):
            setattr(self, name, state[name])
        say(f"resume: {checkpoint.folder}, step {self.global_step} of {self.total_steps}")
        here = checkpoint.folder.parent.resolve() == self.run.output_dir.resolve()
        log: dict[str, Any] = state["log"]
        return log if here else log | {"position": 0}

    def _next_row(self) -> int:
        """Place in the row stream behind the steps that are done."""
        steps = [step for epoch in self.steps[: self.epoch + 1] for step in epoch]
        behind = sum(len(epoch) for epoch in self.steps[: self.epoch]) + self.done
        return steps[behind - 1][-1][1] if behind and steps[behind - 1] else 0

    def _take_up(self, state: dict[str, Any]) -> None:
        """Cut what is left of the epoch into steps of another number of processes."""
        epoch, before, now_ = state["epoch"], state["processes"], self.processes.size
        if state["done"]:
            # Those that are done keep their places, so that steps and epochs are counted as ever.
            self.steps[epoch] = [[] for _ in range(state["done"])] + self._epoch_steps(epoch, state["row"])
        self.total_steps = state["global_step"] + sum(len(steps) for steps in self.steps[epoch:]) - state["done"]
        say(
            f"resume: {before} processes before, {now_} from here on, at the same row; a step has {now_}/{before} of "
            f"the rows it had, and the rate follows the new number of steps ({self.total_steps})"
        )

    def _optimizer_step(self, batches: list[Batch]) -> dict[str, Any]:
        """One optimizer step over micro-batches; returns its log row.

        Raises:
            RunError: when a loss or the gradient is not finite; the weights are then untouched.
        """
        start = time.monotonic()
        rate = float(self.schedule.get_last_lr()[0])
        outputs = self._gradients(batches)
        self.processes.sum_gradients(self.parameters)
        limit = self.options.max_grad_norm or float("inf")
        norm = float(self.accelerator.clip_grad_norm_(self.parameters, limit))
        finite = self._check_finite(batches, outputs, norm)
        if finite:
            self.optimizer.step()
        if not finite or not self.optimizer.step_was_skipped:
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self._row(batches, outputs, norm, rate, start) | ({} if finite else {"skipped": True})

    def _gradients(self, batches: list[Batch]) -> list[dict[str, Tensor]]:
        """Forward and backward of a step; when memory runs out, the same again with half the token budget.

        Raises:
            RunError: when memory runs out with the smallest budget.
        """
        state = random_state(self.run.device)
        while True:
            try:
                return self._backward(batches)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Out of the except block, for the error holds the tensors of the failed try.
            self.optimizer.zero_grad(set_to_none=True)
            set_random_state(state, self.run.device)
            encoder = self.run.step.encoder
            largest = max(encoder.work(batch.tokens)[0] for batch in batches)
            if not halve_budget(encoder, largest, longest_text(self.run.store)[1]):
                raise RunError(
                    f"memory ran out in step {self.global_step + 1}, though only one text's activations were held at "
                    f"once; the weights are as they were before it{self._kept()}. Try --finetune_type qlora, "
                    "--gradient_checkpointing, or a smaller --passage_max_len"
                )
            if self.run.device.type == "cuda":
                torch.cuda.empty_cache()
            say(
                f"memory ran out in step {self.global_step + 1}; it is repeated, and from now on the graphs of "
                f"{encoder.token_budget:,} tokens are held at once"
            )

    def _backward(self, batches: list[Batch]) -> list[dict[str, Tensor]]:
        queries = self._total(sum(len(batch.labels) for batch in batches))
        step = self.run.step.train()
        return [
            step.backward(batch.to(self.run.device), 1 / queries, self.accelerator.backward, self.team)
            for batch in batches
        ]

    def _total(self, value: float) -> float:
        """Sum over the processes, where each has a batch of its own."""
        return value if self.options.gather_negatives else sum(self.processes.gather(value))

    def _row(
        self, batches: list[Batch], outputs: list[dict[str, Tensor]], norm: float, rate: float, start: float
    ) -> dict[str, Any]:
        encoder, total = self.run.step.encoder, self._total
        queries = total(sum(len(batch.labels) for batch in batches))
        tokens = total(sum(len(batch.tokens.input_ids) for batch in batches))
        work = [encoder.work(batch.tokens.select(self.run.step.share(batch, self.team))) for batch in batches]
        computed, again = (sum(column) for column in zip(*self._of_all(work), strict=True))
        candidates = sum(len(batch.labels) * (len(batch.hard) - 1) - len(batch.excluded) for batch in batches)
        seconds = time.monotonic() - start
        return {
            "loss": _finite(total(sum(output["loss"].sum().item() for output in outputs)) / queries),
            "learning_rate": rate,
            "step_duration": seconds,
            "timestamp": now(),
            "accuracy": total(sum(output["correct"].sum().item() for output in outputs)) / queries,
            "grad_norm": _finite(norm),
            "tokens": tokens,
            "tokens_per_second": tokens / seconds,
            "padding_share": 1 - tokens / computed,
            "recomputed_share": again / computed,
            "own_negatives_per_query": total(sum(int(batch.negatives.sum()) for batch in batches)) / queries,
            "negatives_per_query": total(candidates) / queries,
            "masked_pairs": total(sum(len(batch.excluded) for batch in batches)),
            "peak_memory_bytes": peak_memory_bytes(self.run.device),
        }

    def _of_all(self, work: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return [pair for part in self.processes.gather(work) for pair in part]

    def _check_finite(self, batches: list[Batch], outputs: list[dict[str, Tensor]], norm: float) -> bool:
        """Whether losses and gradient are finite; where not, `--on_nonfinite` says what happens.

        Raises:
            RunError: naming the rows, when the run should stop.
        """
        # Under float16 an infinite gradient is the loss scaler's business: it skips the step and scales less.
        gradient_ok = self.run.dtype == torch.float16 or math.isfinite(norm)
        losses = torch.cat([output["loss"] for output in outputs]).cpu()
        rows = torch.cat([batch.rows for batch in batches])
        if not self.options.gather_negatives:
            losses, rows = (torch.cat(self.processes.gather(values)) for values in (losses, rows))
        if gradient_ok and bool(torch.isfinite(losses).all()):
            return True
        bad = rows[~torch.isfinite(losses)] if not torch.isfinite(losses).all() else rows
        places = ", ".join(self.run.store.place(int(row)) for row in bad[:8]) + (" …" if len(bad) > 8 else "")
        what = "gradient" if torch.isfinite(losses).all() else "loss"
        if self.options.on_nonfinite == "skip":
            self.skipped += 1
            say(f"the {what} is not finite in step {self.global_step + 1} (rows {places}); the step is skipped")
            return False
        raise RunError(
            f"the {what} is not finite in step {self.global_step + 1} (rows {places}); the run was stopped before the "
            f"weights changed{self._kept()}. Try a smaller --lr, a larger --temperature, --dtype float32, or "
            "--on_nonfinite skip"
        )

    def _kept(self) -> str:
        """What of the run can be had, for messages."""
        saved = checkpoints(self.run.output_dir)
        return f", the last checkpoint is {saved[0].folder}" if saved else ", no checkpoint had been written yet"

    def _batches(self, epoch: int, done: int) -> Iterator[list[Batch]]:
        """The optimizer steps of an epoch behind the first `done`, each as its micro-batches."""
        options, steps = self.options, self.steps[epoch][done:]
        bounds = [bound for step in steps for bound in step]
        part = (0, 1) if options.gather_negatives else (self.processes.rank, self.processes.size)
        data = Batches(self.run.store, bounds, options.neg_nums, options.seed, part)
        # A generator of its own, for the loader draws a seed, and a resumed epoch would draw it again.
        loader = iter(DataLoader(data, None, num_workers=options.num_workers, generator=torch.Generator()))
        for step in steps:
            yield [next(loader) for _ in step]

    def _epoch_steps(self, epoch: int, first: int | None = None) -> list[list[tuple[int, int]]]:
        options = self.options
        return steps_of_epoch(
            len(self.run.store),
            options.batch_size * self.processes.size,
            options.gradient_accumulation_steps,
            epoch,
            options.steps_per_epoch,
            first,
            least=2 if options.gather_negatives else 2 * self.processes.size,
        )

    def _save(self, name: str, state: dict[str, Any] | None = None) -> None:
        run = self.run
        rows = [[row["epoch"], _shown(row["avg_loss"]), f"{row['epoch_duration']:.0f}"] for row in self.log.epochs]
        results = tabulate(rows, ["epoch", "mean loss", "seconds"], "github", disable_numparse=True)
        base = self.options.model_name_or_path
        if self.processes.main:
            save_model(run.step.encoder, base, run.settings, run.probes, results, run.output_dir / name, state)
            prune(run.output_dir, self.options.save_total_limit)
        self.processes.barrier()

    def _track(self, row: dict[str, Any]) -> None:
        names = ("loss", "accuracy", "learning_rate", "grad_norm", "tokens_per_second", "padding_share")
        values = {f"train/{name}": row[name] for name in names if row[name] is not None}
        self.accelerator.log(values, step=row["global_step"])

    def _metrics(self, summary: dict[str, Any]) -> dict[str, Any]:
        names = ("loss", "accuracy", "tokens_per_second", "peak_memory_bytes")
        return {name: self.last[name] for name in names} | summary


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _trackers(name: str) -> list[str]:
    if name == "all":
        return ["tensorboard", "wandb"] if importlib.util.find_spec("wandb") else ["tensorboard"]
    return [name]


def _flat(options: TrainOptions) -> dict[str, Any]:
    """Options as TensorBoard takes them: numbers, texts and truth values."""
    return {
        name: value if isinstance(value, (int, float, str, bool)) else str(value)
        for name, value in options.model_dump().items()
    }
