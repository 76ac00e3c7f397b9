"""The folder of a run: what may be in it before the run, and how an earlier run is removed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from embedrag.errors import UserError
from embedrag.models.artifacts import LEFTOVERS, MODEL_FOLDERS, RUN_FILES
from embedrag.runtime.files import remove_leftover


def check_output_dir(folder: Path, overwrite: bool, only_logs: bool = False) -> None:
    """Refuse a folder that can't be written or that holds another run.

    Args:
        folder: of the run.
        overwrite: the earlier run may be removed.
        only_logs: an earlier run may be removed when it has only logs and no model, as after an early kill.

    Raises:
        UserError: naming the remedy.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError("a file of that name exists; name a folder", "output_dir", folder)
    in_the_way = [path for path in run_files(folder) if not only_logs or path.name.startswith(MODEL_FOLDERS)]
    if in_the_way and not overwrite:
        raise UserError(
            "holds another run; name another folder, go on with that run (`resume=auto`), or replace it (`overwrite`)",
            "output_dir",
            folder,
        )
    parent = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{parent} can't be written; name another folder", "output_dir", folder)


def check_sources(folder: Path, sources: list[str]) -> None:
    """Refuse a base model or data in a folder that `overwrite` would remove.

    Raises:
        UserError: naming it.
    """
    doomed = [path.resolve() for path in run_files(folder)]
    for source in filter(None, sources):
        path = Path(source).expanduser().resolve()
        if any(path == old or old in path.parents for old in doomed):
            raise UserError(
                f"{source} lies in the run that would be replaced; name another folder", "output_dir", folder
            )


def clear_output_dir(folder: Path) -> None:
    """Remove an earlier run, and nothing else, from its folder."""
    clear_leftovers(folder)
    for path in run_files(folder):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def clear_leftovers(folder: Path) -> None:
    """Remove half-written files of a killed run, and restore the files that it was replacing."""
    for path in [path for pattern in LEFTOVERS for path in folder.glob(pattern)]:
        remove_leftover(path)


def run_files(folder: Path) -> list[Path]:
    """Files and folders that an earlier run left in a folder."""
    return [path for pattern in RUN_FILES for path in sorted(folder.glob(pattern))]
