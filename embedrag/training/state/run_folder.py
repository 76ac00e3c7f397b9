"""The folder of a run: what may be there before, and the models that are written into it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from embedrag.errors import UserError
from embedrag.models.backbone import quiet
from embedrag.models.encoder import Encoder
from embedrag.models.equivalence import PROBES
from embedrag.models.load import SETTINGS
from embedrag.models.lora_init import subtract_start
from embedrag.models.model_card import write_card
from embedrag.runtime.files import atomic_folder, remove_leftover, write_json
from embedrag.training.state.checkpoint import write_state

LEFTOVERS = (  # of a save or a removal that was killed
    ".final.tmp-*",
    ".merged.tmp-*",
    ".checkpoint-epoch-*.tmp-*",
    ".checkpoint-step-*.tmp-*",
    ".best-step-*.tmp-*",
    "checkpoint-epoch-*/.training_state.tmp-*",
    "checkpoint-step-*/.training_state.tmp-*",
)
RUN_FILES = (
    "final",
    "merged",
    "checkpoint-epoch-*",
    "checkpoint-step-*",
    "best-step-*",
    "evaluation.json",
    "evaluation.html",
    "detailed_training_logs.json",
    "training_losses.json",
    "training_summary_report.json",
    "metrics.json",
    "runs",
    *LEFTOVERS,
)
MODELS = ("final", "merged", "checkpoint-", "best-step-")


def save_model(
    encoder: Encoder,
    base: str,
    settings: dict[str, Any],
    probes: list[tuple[str, str]],
    results: str,
    target: Path,
    state: dict[str, Any] | None = None,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write the trained model (full) or adapter (LoRA, QLoRA) with tokenizer, contract and settings.

    Args:
        encoder: what was trained.
        base: name of the base model.
        settings: every setting of the run, for training_config.json.
        probes: (role, text) pairs of the training data, which a merge is proved with.
        results: figures for the model card, as Markdown.
        target: folder that appears when all is written.
        state: what a run needs to go on from here; left out: a model and no more.
        weights: of the backbone by name, where this process holds but a part of them.
    """
    with atomic_folder(target) as folder:
        # peft would ask the hub whether the vocabulary grew; it never does here.
        extra = {"save_embedding_layers": False} if hasattr(encoder.backbone, "peft_config") else {}
        with quiet():
            encoder.backbone.save_pretrained(folder, state_dict=weights, **extra)  # type: ignore[operator]
        if start := getattr(encoder.backbone, "adapter_start", None):
            subtract_start(folder, start)
        encoder.tokenizer.save(folder)
        encoder.contract.write(folder, encoder.dimension)
        write_json(folder / SETTINGS, settings)
        write_json(folder / PROBES, probes)
        write_card(folder, base, settings, results=results)
        if state is not None:
            write_state(folder, encoder.backbone, state, weights)


def check_output_dir(folder: Path, overwrite: bool, only_logs: bool = False) -> None:
    """Refuse a folder that can't be written or that holds another run.

    Args:
        folder: of the run.
        overwrite: what is there may be removed.
        only_logs: it may be removed when it is logs and no model, as a run leaves that was killed early.

    Raises:
        UserError: naming the remedy.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder}: a file of that name exists; name a folder")
    in_the_way = [path for path in run_files(folder) if not only_logs or path.name.startswith(MODELS)]
    if in_the_way and not overwrite:
        raise UserError(
            f"--output_dir {folder}: holds another run; name another folder, go on with it (--resume auto), "
            "or replace it (--overwrite)"
        )
    parent = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"--output_dir {folder}: {parent} can't be written; name another folder")


def check_sources(folder: Path, sources: list[str]) -> None:
    """Refuse a base or data inside what `--overwrite` would remove.

    Raises:
        UserError: naming it.
    """
    doomed = [path.resolve() for path in run_files(folder)]
    for source in filter(None, sources):
        path = Path(source).expanduser().resolve()
        if any(path == old or old in path.parents for old in doomed):
            raise UserError(
                f"--output_dir {folder}: {source} lies in the run that would be replaced; name another folder"
            )


def clear_output_dir(folder: Path) -> None:
    """Remove an earlier run (and nothing else) from its folder."""
    clear_leftovers(folder)
    for path in run_files(folder):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed run had begun to write, and bring back what it was replacing."""
    for path in [path for pattern in LEFTOVERS for path in folder.glob(pattern)]:
        remove_leftover(path)


def run_files(folder: Path) -> list[Path]:
    """What an earlier run left in a folder."""
    return [path for pattern in RUN_FILES for path in sorted(folder.glob(pattern))]
