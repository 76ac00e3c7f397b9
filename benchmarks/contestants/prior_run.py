"""The earlier method of this project, written anew: pad every text to its longest allowed length, one forward a column.

A query is scored against its own positive and all hard negatives of the batch (EmbedRAG's `candidates: hard`).
Knobs: `query_max_len` and `passage_max_len`, to which texts are padded.
"""

from __future__ import annotations

import sys

import torch
from peft import get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, set_seed

from benchmarks.contestants.common import Meter, Task, load_adapter
from embedrag.training.optimizer import build_optimizer, cosine_schedule, warmup_steps


def main(task_path: str, result_path: str) -> None:
    """Train as the task says."""
    task = Task.read(task_path)
    meter = Meter(task)
    set_seed(task.seed)
    tokenizer = AutoTokenizer.from_pretrained(task.model, local_files_only=True)
    model = AutoModel.from_pretrained(task.model, dtype=torch.float32, local_files_only=True)
    if task.adapter:
        model = get_peft_model(model, task.lora_config())
        load_adapter(model, task.adapter)
    optimizer = build_optimizer("adamw", model, task.lr, task.weight_decay)
    schedule = cosine_schedule(optimizer, task.steps, warmup_steps(task.steps, task.warmup_proportion))

    def embed(texts: list[str], side: str) -> Tensor:
        width = task.knobs[f"{side}_max_len"]
        batch = tokenizer(texts, padding="max_length", truncation=True, max_length=width, return_tensors="pt")
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"]
        if task.pooling == "mean":
            pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        else:
            pooled = hidden[torch.arange(len(texts)), mask.sum(1) - 1]
        return F.normalize(pooled, dim=-1)

    rows, losses = task.ordered_rows(), []
    model.train()
    meter.watch(model)
    for step in range(task.stop):
        batch = rows[step * task.batch_size : (step + 1) * task.batch_size]
        queries = embed([row["query"] for row in batch], "query")
        positives = embed([row["pos"][0] for row in batch], "passage")
        hard = torch.cat([embed([row["neg"][i] for row in batch], "passage") for i in range(task.negatives)])
        scores = torch.cat([(queries * positives).sum(1, keepdim=True), queries @ hard.T], 1) / task.temperature
        loss = F.cross_entropy(scores, torch.zeros(len(batch), dtype=torch.long))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], task.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    meter.write(losses, result_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
