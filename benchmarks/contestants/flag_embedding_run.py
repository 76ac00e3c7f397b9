"""FlagEmbedding through its own runners: their data set, collator, model and trainer.

Only what makes the work equal is not their default: the order of the rows, optimizer, schedule, pooling, no files; and
BERTs get LoRA too, for which they have no option. Knobs: `sub_batch_size`, texts of one forward pass (-1: all).
"""

from __future__ import annotations

import sys
from typing import Any

from FlagEmbedding.finetune.embedder.decoder_only.base import (  # type: ignore[import-not-found, unused-ignore]
    DecoderOnlyEmbedderModelArguments,
    DecoderOnlyEmbedderRunner,
)
from FlagEmbedding.finetune.embedder.encoder_only.base import (  # type: ignore[import-not-found, unused-ignore]
    EncoderOnlyEmbedderDataArguments,
    EncoderOnlyEmbedderModelArguments,
    EncoderOnlyEmbedderRunner,
    EncoderOnlyEmbedderTrainer,
    EncoderOnlyEmbedderTrainingArguments,
)
from peft import get_peft_model

from benchmarks.contestants.common import Meter, Task, load_adapter
from embedrag.training.optimizer import build_optimizer, cosine_schedule, warmup_steps


class RecordingTrainer(EncoderOnlyEmbedderTrainer):  # type: ignore[misc, unused-ignore]
    """The trainer, writing down each loss; the one for decoders differs in its name only."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss of a batch."""
        loss = super().compute_loss(*args, **kwargs)
        self.losses = [*getattr(self, "losses", []), float(loss)]
        return loss


def runner(kind: Any, task: Task, model_arguments: Any) -> Any:
    """One of the library's runners, with the given adapters and our optimizer."""

    class Runner(kind):  # type: ignore[misc]
        def load_tokenizer_and_model(self) -> tuple[Any, Any]:
            tokenizer, model = super().load_tokenizer_and_model()
            if task.adapter:
                model.model = get_peft_model(model.model, task.lora_config())
                load_adapter(model, task.adapter)
            return tokenizer, model

        def load_trainer(self) -> Any:
            optimizer = build_optimizer("adamw", self.model, task.lr, task.weight_decay)
            schedule = cosine_schedule(optimizer, task.steps, warmup_steps(task.steps, task.warmup_proportion))
            return RecordingTrainer(
                model=self.model,
                args=self.training_args,
                train_dataset=self.train_dataset,
                data_collator=self.data_collator,
                processing_class=self.tokenizer,
                optimizers=(optimizer, schedule),
            )

    data = EncoderOnlyEmbedderDataArguments(
        train_data=[task.ordered],
        cache_path=f"{task.work_dir}/cache",
        train_group_size=1 + task.negatives,
        query_max_len=task.max_len,
        passage_max_len=task.max_len,
    )
    training = EncoderOnlyEmbedderTrainingArguments(
        output_dir=f"{task.work_dir}/run",
        num_train_epochs=1,
        per_device_train_batch_size=task.batch_size,
        max_grad_norm=task.max_grad_norm,
        temperature=task.temperature,
        sentence_pooling_method=task.pooling,
        normalize_embeddings=True,
        train_sampling_strategy="sequential",
        seed=task.seed,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        **task.knobs,
    )
    return Runner(model_arguments, data, training)


def main(task_path: str, result_path: str) -> None:
    """Train as the task says."""
    task = Task.read(task_path)
    meter = Meter(task)
    if task.pooling == "last_token":
        arguments = DecoderOnlyEmbedderModelArguments(model_name_or_path=task.model, use_lora=False)  # added above
        run = runner(DecoderOnlyEmbedderRunner, task, arguments)
    else:
        run = runner(EncoderOnlyEmbedderRunner, task, EncoderOnlyEmbedderModelArguments(model_name_or_path=task.model))
    meter.watch(run.model)
    run.trainer.train()
    meter.write(run.trainer.losses, result_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
