"""EmbedRAG as users run it: options -> preflight -> setup -> Trainer. Knobs are TrainOptions (`token_budget`, ...)."""

from __future__ import annotations

import json
import sys

from benchmarks.contestants.common import Meter, Task, load_adapter
from embedrag.runtime.stop_signals import StopSignals
from embedrag.training.config.options import TrainOptions
from embedrag.training.preflight import preflight
from embedrag.training.setup import setup
from embedrag.training.trainer import Trainer


def main(task_path: str, result_path: str) -> None:
    """Train as the task says."""
    task = Task.read(task_path)
    meter = Meter(task)
    settings = {
        "model_name_or_path": task.model,
        "finetune_type": "lora" if task.adapter else "full",
        "lora_r": task.lora["r"],
        "lora_alpha": task.lora["alpha"],
        "lora_dropout": task.lora["dropout"],
        "train_dataset": [task.rows],
        "cache_dir": f"{task.work_dir}/cache",
        "output_dir": f"{task.work_dir}/run",
        "query_max_len": task.max_len,
        "passage_max_len": task.max_len,
        "neg_nums": task.negatives,
        "candidates": task.candidates,
        "batch_size": task.batch_size,
        "epochs": 1,
        "temperature": task.temperature,
        "lr": task.lr,
        "weight_decay": task.weight_decay,
        "warmup_proportion": task.warmup_proportion,
        "max_grad_norm": task.max_grad_norm,
        "save_on_epoch_end": 0,
        "seed": task.seed,
        "device": "cpu",
        "dtype": "float32",
        "local_files_only": True,
    }
    run = setup(preflight(TrainOptions(**(settings | task.knobs))))
    run.output_dir.mkdir(parents=True)
    if task.adapter:
        load_adapter(run.objective, task.adapter)
    meter.watch(run.objective)
    with StopSignals() as stop:
        Trainer(run, stop).train()
    logs = json.loads((run.output_dir / "detailed_training_logs.json").read_text(encoding="utf-8"))["step_logs"]
    if any(row["masked_pairs"] for row in logs):
        raise SystemExit("the data has equal texts, so the others would see other negatives")
    meter.write([row["loss"] for row in logs], result_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
