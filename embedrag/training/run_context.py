"""Everything that is decided before the first step of a run and does not change afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from embedrag.data.retrieval_dataset import RetrievalDataset
from embedrag.runtime.distributed import ProcessGroup
from embedrag.training.config.options import TrainOptions
from embedrag.training.data import TrainingData
from embedrag.training.objective import ContrastiveObjective
from embedrag.training.state.checkpoint import Checkpoint
from embedrag.training.state.run_record import RunRecord


@dataclass(frozen=True)
class RunContext:
    """Everything that `setup` hands to the trainer.

    Attributes:
        options: every setting, filled in.
        output_dir: folder of the run.
        processes: this process among those that train together.
        device: the device that computes.
        dtype: precision of the computation.
        data: the rows to train on.
        evaluation: what the model is scored on during the training, if anything.
        objective: the model and its loss.
        checkpoint: the checkpoint that the run goes on from, if it does.
        record: what the run writes about itself.
    """

    options: TrainOptions
    output_dir: Path
    processes: ProcessGroup
    device: torch.device
    dtype: torch.dtype
    data: TrainingData
    evaluation: RetrievalDataset | None
    objective: ContrastiveObjective
    checkpoint: Checkpoint | None
    record: RunRecord
