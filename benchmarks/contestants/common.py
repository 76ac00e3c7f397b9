"""What all contestants share: the task, the meter, the initial adapter. Needs torch and the standard library only.

Everything is measured from outside, at the same two places in every program: where token ids enter the model's token
embedding, and where `Optimizer.step` ends. The time of a step is the time between two ends, so it holds all that a
program does: reading, tokenising and padding as well as forward, backward, clipping and logging.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

GEMM_TOKENS = 4096
GEMM_REPEATS = 5


@dataclass(frozen=True)
class Task:
    """What a contestant has to do; the same for all but `knobs`.

    Attributes:
        model: folder of the model, with sentence-transformers files.
        pooling: `mean` or `last_token`.
        rows: JSONL of {query, pos, neg} rows, as EmbedRAG reads it.
        ordered: the same rows in the order in which they are trained.
        adapter: initial LoRA weights; None for a full fine-tune.
        lora: r, alpha, dropout and targets of the adapters.
        batch_size: rows of a step.
        steps: steps of the schedule.
        stop: steps that are run.
        candidates: what a query is scored against: `all` passages of the batch, or its positive and `hard` negatives.
        negatives: hard negatives of a row.
        max_len: tokens of the longest text that must not be cut.
        lr: peak learning rate.
        temperature: the cosine is divided by it.
        weight_decay: on matrices.
        max_grad_norm: gradients are clipped to it.
        warmup_proportion: share of the steps in which the rate rises.
        seed: of order and dropout.
        linears: (out, in) of the backbone's linear layers, for the calibration.
        pad_id: token that fills up.
        knobs: this contestant's own settings.
        started: time at which its process was started, seconds since 1970.
        work_dir: folder for its files.
    """

    model: str
    pooling: str
    rows: str
    ordered: str
    adapter: str | None
    lora: dict[str, Any]
    batch_size: int
    steps: int
    stop: int
    candidates: str
    negatives: int
    max_len: int
    lr: float
    temperature: float
    weight_decay: float
    max_grad_norm: float
    warmup_proportion: float
    seed: int
    linears: list[tuple[int, int]]
    pad_id: int
    knobs: dict[str, Any]
    started: float
    work_dir: str

    @classmethod
    def read(cls, path: str) -> Task:
        """From a JSON file."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def ordered_rows(self) -> list[dict[str, Any]]:
        """The rows in the order in which they are trained."""
        return [json.loads(line) for line in Path(self.ordered).read_text(encoding="utf-8").splitlines()]

    def lora_config(self) -> Any:
        """Settings of the adapters for peft."""
        from peft import LoraConfig

        r, alpha, dropout = self.lora["r"], self.lora["alpha"], self.lora["dropout"]
        return LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=self.lora["targets"])


class Meter:
    """Counts tokens, time and memory of a training run.

    A token is counted as computed where a graph is recorded; a further forward without one (GradCache's first pass)
    is counted apart, as repeated. So padding and repetition are two figures.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.loaded = 0
        self.counts = {"real": 0, "computed": 0, "repeated": 0}
        self.ends: list[dict[str, float]] = []

    def watch(self, model: nn.Module) -> None:
        """Start measuring; the model is loaded and its adapters are in place.

        The process's peak is set back to what is resident now, so that neither loading nor tokenising counts.
        """
        embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        max(embeddings, key=lambda module: module.num_embeddings).register_forward_pre_hook(self._tokens)
        register_optimizer_step_post_hook(self._step_end)
        with contextlib.suppress(OSError):  # where it may not be set back, loading counts for everyone
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self.loaded = memory("VmHWM")

    def write(self, losses: list[float], path: str) -> None:
        """Calibrate, and write everything down.

        Args:
            losses: of each step that was run.
            path: JSON file.
        """
        if not len(losses) == len(self.ends) == self.task.stop:
            raise SystemExit(f"{len(losses)} losses and {len(self.ends)} steps instead of {self.task.stop}")
        result = {"losses": losses, "ends": self.ends, "loaded_bytes": self.loaded, "gflops": self._best_gemm()}
        result |= {"threads": torch.get_num_threads()}
        Path(path).write_text(json.dumps(result), encoding="utf-8")

    def _tokens(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        (ids,) = args
        if torch.is_grad_enabled():
            self.counts["computed"] += ids.numel()
            self.counts["real"] += int((ids != self.task.pad_id).sum())
        else:
            self.counts["repeated"] += ids.numel()

    def _step_end(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        times = os.times()
        moment = {"clock": time.perf_counter(), "cpu": times.user + times.system, "peak_bytes": memory("VmHWM")}
        self.ends.append(moment | self.counts | {"since_start": time.time() - self.task.started})

    def _best_gemm(self) -> float:
        """GFLOP/s of the fastest float32 matrix product of the model's shapes, in this very process."""
        best = 0.0
        for out, into in {(out, into) for out, into in self.task.linears}:
            x, weight = torch.randn(GEMM_TOKENS, into), torch.randn(out, into)
            for _ in range(GEMM_REPEATS):
                start = time.perf_counter()
                x @ weight.T
                best = max(best, 2e-9 * GEMM_TOKENS * out * into / (time.perf_counter() - start))
        return best


def memory(name: str) -> int:
    """Bytes of a line of this process's status, such as VmHWM, the most that was resident."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def load_adapter(model: nn.Module, path: str) -> None:
    """Give the trainable weights of a model with fresh adapters the values of a file.

    Raises:
        SystemExit: when the model trains other weights than the file has.
    """
    values = torch.load(path, weights_only=True)
    trainable = {adapter_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    if trainable.keys() != values.keys():
        raise SystemExit(f"other adapters than expected: {sorted(trainable.keys() ^ values.keys())[:4]}")
    for name, parameter in trainable.items():
        parameter.data.copy_(values[name])


def adapter_name(name: str) -> str:
    """Name of an adapter weight without the wrappers of the program that made it.

    >>> adapter_name("base_model.model.layers.0.mlp.up_proj.lora_A.default.weight")
    'layers.0.mlp.up_proj.lora_A.default.weight'
    """
    for part in ("encoder.layer.", "layers."):
        if part in name:
            return part + name.split(part, 1)[1]
    return name
