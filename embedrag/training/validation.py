"""Evaluations during a training: the base first, then the model at intervals. The best model is kept."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedrag.data.retrieval_dataset import RetrievalDataset
from embedrag.evaluation.evaluator import Scores, score
from embedrag.evaluation.result import Evaluation
from embedrag.models.encoder import Encoder
from embedrag.runtime.console import now, say
from embedrag.runtime.distributed import ProcessGroup

CUTOFFS = (1, 5, 10, 100)


class Validation:
    """Scores of the base and of the best model so far.

    Attributes:
        base: scores before the first step.
        best: the best scores after the first step.
        best_step: the optimizer step of these scores.
        since_best: number of evaluations since then.
        last_step: the optimizer step of the newest evaluation.
    """

    base: Scores | None = None
    best: Scores | None = None
    best_step = 0
    since_best = 0
    last_step = -1

    def __init__(self, data: RetrievalDataset, metric: str) -> None:
        """Keep what is needed to measure.

        Args:
            data: queries and passages.
            metric: decides what is best, for example `ndcg@10`.
        """
        self.data, self.metric = data, metric
        self.cutoffs = sorted({*CUTOFFS, int(metric.split("@")[1])})

    def measure(self, encoder: Encoder, processes: ProcessGroup, step: int, epoch: int) -> tuple[dict[str, Any], bool]:
        """Score the current model.

        Args:
            encoder: the model; its mode and the random state are left as they are.
            processes: they share the encoding.
            step: optimizer steps done.
            epoch: the current one, from 1; 0 before the first.

        Returns:
            A row for the log, and whether this is the best model so far. The base does not count.
        """
        start = time.monotonic()
        found = score(encoder, self.data, self.cutoffs, "evaluation", processes=processes)
        row: dict[str, Any] = {"epoch": epoch, "global_step": step, **found.summary()}
        row |= {"seconds": time.monotonic() - start, "timestamp": now()}
        self.last_step = step
        if step == 0:
            self.base = found
            return row, False
        # The main process decides, because the others may differ in the last bit, and all must save and stop together.
        better = processes.gather(self.best is None or self.value(found) > self.value(self.best))[0]
        if better:
            self.best, self.best_step, self.since_best = found, step, 0
        else:
            self.since_best += 1
        return row, better

    def conclude(self, folder: Path, base: str, data: str) -> None:
        """Say whether the best model beats the base, and write the report into the folder of the run.

        Args:
            folder: holds logs and final/.
            base: name of the base.
            data: name of the evaluation set.
        """
        if not self.best:
            return
        evaluation = Evaluation.of(
            self.data, self.metric, self.best, self.base, model=str(folder / "final"), data=data, baseline=base
        )
        evaluation.write(folder)
        say(f"evaluation: final/ is the model after step {self.best_step}")
        for line in evaluation.lines():
            say(line)

    def value(self, scores: Scores) -> float:
        """The value of the metric that decides."""
        return float(scores.metrics[self.metric].mean())

    def state(self) -> dict[str, Any]:
        """Everything that `restore` takes back."""
        return {
            "base": _packed(self.base),
            "best": _packed(self.best),
            "best_step": self.best_step,
            "since_best": self.since_best,
            "last_step": self.last_step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.base, self.best = _unpacked(state["base"]), _unpacked(state["best"])
        self.best_step, self.since_best, self.last_step = state["best_step"], state["since_best"], state["last_step"]


def _packed(scores: Scores | None) -> dict[str, Any] | None:
    """The scores with tensors instead of arrays, for a checkpoint."""
    if scores is None:
        return None
    values = {field.name: getattr(scores, field.name) for field in fields(Scores)}
    values["metrics"] = {name: torch.from_numpy(array) for name, array in scores.metrics.items()}
    return {
        name: torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


def _unpacked(state: dict[str, Any] | None) -> Scores | None:
    if state is None:
        return None
    values: dict[str, Any] = {n: value.numpy() if isinstance(value, Tensor) else value for n, value in state.items()}
    values["metrics"] = {name: value.numpy() for name, value in state["metrics"].items()}
    values["places"] = [(int(query), int(passage)) for query, passage in state["places"]]
    return Scores(**values)
