"""sentence-transformers as users run it: SentenceTransformerTrainer with a MultipleNegativesRankingLoss.

Only what makes the work equal is not its default: the order of the rows, optimizer, schedule, loss scale, no files.

Knobs: `cached` (the loss with GradCache; `mini_batch_size` or `mini_batch_num_tokens` go with it), `separate_columns`
(the plain loss without merging the columns of passages, so each is padded to its own longest text),
`attn_implementation`, `dataloader_num_workers`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.losses.merged_forward import column_merging_disabled
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor
from torch.utils.data import SequentialSampler

from benchmarks.contestants.common import Meter, Task, load_adapter
from datasets import Dataset
from embedrag.training.optimizer import build_optimizer, cosine_schedule, warmup_steps

CACHED = ("mini_batch_size", "mini_batch_num_tokens")


class SeparateColumns(MultipleNegativesRankingLoss):
    """One forward pass a column, which the library offers for columns of unlike width."""

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The loss of the batch."""
        with column_merging_disabled():
            return super().forward(sentence_features, labels)


class RecordingTrainer(SentenceTransformerTrainer):
    """The trainer, writing down each loss."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch."""
        loss: Any = super().compute_loss(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), float(loss)]
        return loss


def in_order(dataset: Dataset, **settings: Any) -> DefaultBatchSampler:
    """Batches of the rows as they stand."""
    return DefaultBatchSampler(SequentialSampler(dataset), **settings)


def main(task_path: str, result_path: str) -> None:
    """Train as the task says."""
    task = Task.read(task_path)
    meter = Meter(task)
    knobs = dict(task.knobs)
    attention = {name: knobs.pop(name) for name in ("attn_implementation",) if name in knobs}
    model = SentenceTransformer(task.model, device="cpu", local_files_only=True, model_kwargs=attention)
    model.max_seq_length = task.max_len
    if task.adapter:
        model.add_adapter(task.lora_config())
        load_adapter(model, task.adapter)
    columns = [{"anchor": row["query"], "positive": row["pos"][0]} | negatives(row) for row in task.ordered_rows()]
    optimizer = build_optimizer("adamw", model, task.lr, task.weight_decay)
    schedule = cosine_schedule(optimizer, task.steps, warmup_steps(task.steps, task.warmup_proportion))
    loss = make_loss(model, 1 / task.temperature, knobs)
    trainer = RecordingTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=f"{task.work_dir}/run",
            num_train_epochs=1,
            per_device_train_batch_size=task.batch_size,
            max_grad_norm=task.max_grad_norm,
            batch_sampler=in_order,
            seed=task.seed,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            **knobs,
        ),
        train_dataset=Dataset.from_list(columns),
        loss=loss,
        optimizers=(optimizer, schedule),
    )
    meter.watch(model)
    trainer.train()
    meter.write(trainer.losses, result_path)


def negatives(row: dict[str, Any]) -> dict[str, str]:
    """The row's own negatives, a column each."""
    return {f"negative_{number}": text for number, text in enumerate(row["neg"], 1)}


def make_loss(model: SentenceTransformer, scale: float, knobs: dict[str, Any]) -> torch.nn.Module:
    """The loss that the knobs ask for; takes its own out of them."""
    own = {name: knobs.pop(name) for name in CACHED if name in knobs}
    if knobs.pop("cached", False):
        return CachedMultipleNegativesRankingLoss(model, scale=scale, **own)
    kind = SeparateColumns if knobs.pop("separate_columns", False) else MultipleNegativesRankingLoss
    return kind(model, scale=scale)


if __name__ == "__main__":
    main(*sys.argv[1:])
