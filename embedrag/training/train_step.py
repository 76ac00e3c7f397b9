"""One optimizer step: micro-batches -> gradients -> new weights -> a row of the log."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from embedrag.data.collator import Batch
from embedrag.errors import RunError, is_out_of_memory
from embedrag.runtime.console import now, say
from embedrag.runtime.device import peak_memory_bytes
from embedrag.runtime.distributed import ProcessGroup, SharedOutOfMemoryError
from embedrag.runtime.fsdp import gather_full, local_shard
from embedrag.runtime.random_state import random_state, set_random_state
from embedrag.training.memory import longest_text
from embedrag.training.optimizer import build_optimizer, cosine_schedule, temperature_at, warmup_steps
from embedrag.training.run_context import RunContext
from embedrag.training.state.checkpoint import checkpoints


@dataclass(frozen=True)
class StepOutcome:
    """What happened to the gradient of a step.

    Attributes:
        finite: losses and gradient are finite.
        overflowed: float16 could not hold the gradient. The weights stay as they were, and from now on the loss is
            scaled by a smaller factor.
    """

    finite: bool
    overflowed: bool = False

    @property
    def applied(self) -> bool:
        """Whether the weights changed."""
        return self.finite and not self.overflowed

    @property
    def counted(self) -> bool:
        """Whether the learning rate goes on: after a skipped step it does, after an overflow it does not."""
        return self.applied or not self.finite


class TrainStep:
    """Optimizer, schedules and loss scaling; `step` trains on the micro-batches of one optimizer step.

    Attributes:
        skipped: number of steps with a loss or gradient that was not finite.
    """

    def __init__(self, run: RunContext, accelerator: Accelerator, total_steps: int) -> None:
        """Build optimizer and schedule.

        Args:
            run: model, data and settings.
            accelerator: scales the loss for float16.
            total_steps: of the schedule.
        """
        options = run.options
        self.run, self.accelerator, self.total_steps = run, accelerator, total_steps
        self.objective = run.objective
        self.parameters = [parameter for parameter in run.objective.parameters() if parameter.requires_grad]
        self.optimizer = accelerator.prepare(
            build_optimizer(
                options.optimizer, run.objective, options.lr or 0.0, options.weight_decay, options.lora_plus_ratio
            )
        )
        self.skipped = 0
        # The processes that work on one batch. Without gathering, each process has its own rows, negatives and loss.
        self._team = run.processes if options.gather_negatives else ProcessGroup()
        self._start_schedule(0)

    def _start_schedule(self, done: int) -> None:
        warmup = warmup_steps(self.total_steps, self.run.options.warmup_proportion)
        self.schedule = cosine_schedule(self.optimizer.optimizer, self.total_steps, warmup, done)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` takes back. Sharded state is gathered, and returned in the main process only."""
        scaler = self.accelerator.scaler
        return {
            "schedule": self.schedule.last_epoch,
            "optimizer": gather_full(self.optimizer.state_dict()["state"], keep=self.run.processes.main),
            "scaler": scaler.state_dict() if scaler else None,
            "skipped": self.skipped,
        }

    def restore(self, state: dict[str, Any], total_steps: int) -> None:
        """Continue from what `state` returned. Settings, such as the learning rate, are those of this run.

        Args:
            state: of the optimizer, schedule and scaler.
            total_steps: of the schedule, including the steps that are done.
        """
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        kept = {
            number: {
                name: local_shard(parameters[number], value) if isinstance(value, Tensor) else value
                for name, value in values.items()
            }
            for number, values in state["optimizer"].items()
        }
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": kept})
        for group, rate in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] = rate
        self.total_steps, self.skipped = total_steps, state["skipped"]
        self._start_schedule(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def step(self, batches: list[Batch], number: int) -> dict[str, Any]:
        """Train on the micro-batches of one optimizer step.

        Args:
            batches: of the step; the loss is the mean over all their queries.
            number: of the step, for the temperature and for messages.

        Returns:
            The row of the log.

        Raises:
            RunError: when a loss or the gradient is not finite, or memory runs out; the weights are then unchanged.
        """
        start, options = time.monotonic(), self.run.options
        rate = float(self.schedule.get_last_lr()[0])
        temperature = temperature_at(number, self.total_steps, options.temperature, options.temperature_end)
        self.objective.set_temperature(temperature)
        outputs = self._gradients(batches, number)
        self.run.processes.all_reduce_gradients(self.parameters)
        limit = options.max_grad_norm or float("inf")
        norm = float(gather_full(self.accelerator.clip_grad_norm_(self.parameters, limit)))
        outcome = self._apply(self._check_finite(batches, outputs, norm, number))
        if outcome.counted:
            self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        row = self._row(batches, outputs, norm) | {"learning_rate": rate, "step_duration": time.monotonic() - start}
        row["tokens_per_second"] = row["tokens"] / row["step_duration"]
        return row if outcome.finite else row | {"skipped": True}

    def _apply(self, finite: bool) -> StepOutcome:
        """Change the weights, when the gradient is finite."""
        scaler = self.accelerator.scaler
        before = scaler.get_scale() if scaler else 0.0
        if finite:
            self.optimizer.step()
        elif scaler:
            scaler.update()  # the gradient was unscaled already, and must not be unscaled twice
        return StepOutcome(finite, overflowed=bool(scaler) and scaler.get_scale() < before)

    def _gradients(self, batches: list[Batch], number: int) -> list[dict[str, Tensor]]:
        """Forward and backward of a step; when memory runs out, the same again with half the token budget.

        Raises:
            RunError: when memory runs out with the smallest budget.
        """
        state = random_state(self.run.device)
        queries = self._total(sum(len(batch.query_index) for batch in batches))
        cache, alone = self.objective.grad_cache, self._team.size == 1
        while True:
            try:
                return self._backward(batches, queries)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.objective.encoder.sharded or not (alone or isinstance(error, SharedOutOfMemoryError)):
                    raise self._too_large(
                        number, "the other processes wait in the middle of the step, so it is not repeated"
                    ) from error
            # Outside of the except block, because the error holds the tensors of the failed try.
            self.optimizer.zero_grad(set_to_none=True)
            set_random_state(state, self.run.device)
            largest = max(self._team.gather(max(computed for computed, _ in self._work(batches))))
            smaller = cache.budget.halved(largest, longest_text(self.run.data.store)[1])
            if smaller is None:
                raise self._too_large(number, "although the graph of only one text was held at once")
            chunks = (
                " in smaller chunks, so the last digits may differ from those of a run with more memory"
                if (smaller.chunk or 0) < min(cache.budget.chunk or largest, self.objective.encoder.chunk_tokens)
                else ""
            )
            cache.budget = smaller
            if self.run.device.type == "cuda":
                torch.cuda.empty_cache()
            say(
                f"memory ran out in step {number}; the step is repeated, and from now on the graphs of "
                f"{smaller.tokens:,} tokens are held at once{chunks}"
            )

    def _too_large(self, number: int, why: str) -> RunError:
        return RunError(
            f"memory ran out in step {number}, {why}; the weights are as they were before it{self._kept()}. Try a "
            "smaller `token_budget`, `gradient_checkpointing`, a smaller `passage_max_len`, or `finetune_type=qlora`"
        )

    def _backward(self, batches: list[Batch], queries: float) -> list[dict[str, Tensor]]:
        objective = self.objective.train()
        return [
            objective.backward(batch.to(self.run.device), 1 / queries, self.accelerator.backward, self._team)
            for batch in batches
        ]

    def _total(self, value: float) -> float:
        """Sum over the processes, when each has a batch of its own."""
        return value if self.run.options.gather_negatives else sum(self.run.processes.gather(value))

    def _row(self, batches: list[Batch], outputs: list[dict[str, Tensor]], norm: float) -> dict[str, Any]:
        total = self._total
        queries, pairs = (
            total(sum(len(getattr(batch, name)) for batch in batches)) for name in ("query_index", "labels")
        )
        tokens = total(sum(len(batch.tokens.input_ids) for batch in batches))
        work = [pair for part in self.run.processes.gather(self._work(batches)) for pair in part]
        computed, again = (sum(column) for column in zip(*work, strict=True))
        candidates = sum(len(batch.labels) * (len(batch.passage_index) - 1) - len(batch.excluded) for batch in batches)
        return {
            "loss": _finite(total(sum(output["loss"].sum().item() for output in outputs)) / queries),
            "timestamp": now(),
            "accuracy": total(sum(output["correct"].sum().item() for output in outputs)) / queries,
            "grad_norm": _finite(norm),
            "tokens": tokens,
            "padding_share": 1 - tokens / computed,
            "recomputed_share": again / computed,
            "own_negatives_per_query": total(sum(int(batch.negatives.sum()) for batch in batches)) / queries,
            "negatives_per_query": total(candidates) / pairs,
            "masked_pairs": total(sum(len(batch.excluded) for batch in batches)),
            "peak_memory_bytes": peak_memory_bytes(self.run.device),
        }

    def _work(self, batches: list[Batch]) -> list[tuple[int, int]]:
        """For each batch, what this process computes of it (`GradCache.work`)."""
        objective = self.objective
        shares = (batch.tokens.select(objective.share(batch, self._team)) for batch in batches)
        return [objective.grad_cache.work(tokens) for tokens in shares]

    def _check_finite(self, batches: list[Batch], outputs: list[dict[str, Tensor]], norm: float, number: int) -> bool:
        """Whether losses and gradient are finite; if not, `on_nonfinite` decides what happens.

        Raises:
            RunError: naming the rows, when the run should stop.
        """
        # With float16 the loss scaler handles an infinite gradient: it skips the step and scales less.
        gradient_ok = self.run.dtype == torch.float16 or math.isfinite(norm)
        losses = torch.cat([output["loss"] for output in outputs]).cpu()
        rows = torch.cat([batch.rows for batch in batches])
        if not self.run.options.gather_negatives:
            losses, rows = (torch.cat(self.run.processes.gather(values)) for values in (losses, rows))
        if gradient_ok and bool(torch.isfinite(losses).all()):
            return True
        bad = rows[~torch.isfinite(losses)] if not torch.isfinite(losses).all() else rows
        places = ", ".join(self.run.data.store.place(int(row)) for row in bad[:8]) + (" …" if len(bad) > 8 else "")
        what = "gradient" if torch.isfinite(losses).all() else "loss"
        if self.run.options.on_nonfinite == "skip":
            self.skipped += 1
            say(f"the {what} is not finite in step {number} (rows {places}); the step is skipped")
            return False
        raise RunError(
            f"the {what} is not finite in step {number} (rows {places}); the run was stopped before the "
            f"weights changed{self._kept()}. Try a smaller `lr`, a larger `temperature`, `dtype=float32`, or "
            "`on_nonfinite=skip`"
        )

    def _kept(self) -> str:
        """The newest checkpoint, for messages."""
        saved = checkpoints(self.run.output_dir)
        return f", the last checkpoint is {saved[0].folder}" if saved else ", no checkpoint had been written yet"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
