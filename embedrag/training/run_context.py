"""What is settled before the first step and stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from embedrag.data.retrieval_dataset import RetrievalDataset
from embedrag.runtime.distributed import ProcessGroup
from embedrag.training.config.options import TrainOptions
from embedrag.training.data import TrainingData
from embedrag.training.objective import ContrastiveStep
from embedrag.training.state.checkpoint import Checkpoint


@dataclass(frozen=True)
class RunContext:
    """Everything the loop works with.

    Attributes:
        options: every setting, filled in.
        output_dir: folder of the run.
        data: the rows to train on.
        step: model and loss.
        device: where it computes.
        dtype: precision of the computation.
        model_info: block of that name in the logs.
        settings: content of training_config.json.
        probes: (role, text) pairs that a merge is proved with.
        asked: the settings as they were asked for, before models and machine filled them in.
        checkpoint: what the run goes on from.
        processes: this process among those that train together.
        evaluation: what the model is scored on meanwhile.
    """

    options: TrainOptions
    output_dir: Path
    data: TrainingData
    step: ContrastiveStep
    device: torch.device
    dtype: torch.dtype
    model_info: dict[str, Any]
    settings: dict[str, Any]
    probes: list[tuple[str, str]]
    asked: dict[str, Any]
    checkpoint: Checkpoint | None
    processes: ProcessGroup
    evaluation: RetrievalDataset | None
