"""The folder of a run: which files in it a run of ours made, and how an earlier run is removed.

The marker in the folder names them, see `embedrag.runtime.claims`. Earlier versions wrote no marker; in a folder of
theirs, a file counts as ours when its name and its content are those that they wrote.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from embedrag.errors import RunError, UserError
from embedrag.models.artifacts import (
    BEST_STEP,
    EVALUATION,
    LEFTOVERS,
    LOSSES,
    MERGE_CONFIG,
    METRICS,
    MODEL_FOLDERS,
    RUN_LOG,
    SUMMARY,
    TENSORBOARD,
    TRAINING_CONFIG,
)
from embedrag.runtime.claims import claim, claimed
from embedrag.runtime.disk import disk_error, not_writable
from embedrag.runtime.files import remove_leftover

HELD_SECONDS = 8  # how long a run waits for the helpers of a killed one
CHECKPOINTS = ("checkpoint-epoch-*", "checkpoint-step-*", f"{BEST_STEP}*")
ALWAYS = ("final", *CHECKPOINTS, RUN_LOG, LOSSES, SUMMARY)  # what every run writes
# What is in a log file of ours: a test of its JSON.
CONTENT: dict[str, Callable[[Any], bool]] = {
    LOSSES: lambda data: all(set(row) == {"epoch", "loss"} for row in data),
    SUMMARY: lambda data: "training_completed" in data,
    METRICS: lambda data: {"total_training_time", "tokens_per_second"} <= set(data),
    EVALUATION[0]: lambda data: {"model", "data", "queries", "passages", "metric"} <= set(data),
}


def check_output_dir(
    folder: Path, overwrite: bool, only_logs: bool = False, writes: Iterable[str] = ALWAYS, source: Path | None = None
) -> None:
    """Refuse a folder that can't be written, that holds another run, or that holds files of others in the way.

    Args:
        folder: of the run.
        overwrite: the earlier run may be removed.
        only_logs: an earlier run may be removed when it has only logs and no model, as after an early kill.
        writes: names and patterns of what the run will write.
        source: the checkpoint in this folder from which the run goes on; it may be a copy of another run's.

    Raises:
        UserError: naming the remedy.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError("a file of that name exists; name a folder", "output_dir", folder)
    own = own_files(folder)
    found = {path for pattern in writes for path in folder.glob(pattern)}
    foreign = sorted(path.name for path in found if path.name not in own and path != source)
    if foreign:
        names = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise UserError(
            f"holds {names}, which this run would write, and which no run of EmbedRAG wrote there; name another "
            "folder, or move them to another place",
            "output_dir",
            folder,
        )
    if not overwrite and any(not only_logs or name.startswith(MODEL_FOLDERS) for name in own):
        raise UserError(
            "holds another run; name another folder, go on with that run (`resume=auto`), or replace it (`overwrite`)",
            "output_dir",
            folder,
        )
    parent = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    reason = not_writable(parent) if parent.is_dir() else "it is a file"
    if reason:
        raise UserError(f"{parent} can't be written ({reason}); name another folder", "output_dir", folder)


def check_sources(folder: Path, sources: list[str]) -> None:
    """Refuse a base model or data in a folder that `overwrite` would remove.

    Raises:
        UserError: naming it.
    """
    doomed = [(folder / name).resolve() for name in own_files(folder)]
    for source in filter(None, sources):
        path = Path(source).expanduser().resolve()
        if any(path == old or old in path.parents for old in doomed):
            raise UserError(
                f"{source} lies in the run that would be replaced; name another folder", "output_dir", folder
            )


def start_run(folder: Path) -> None:
    """Remove an earlier run from its folder, and nothing else; then mark the folder as one of a run.

    Raises:
        RunError: when the folder can't be made or changed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        names = own_files(folder)
        for name in sorted(names):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for place in sorted({place for name in names for place in Path(name).parents}, reverse=True):
            if place.parts:
                with contextlib.suppress(OSError):  # it holds files of others
                    (folder / place).rmdir()
    except OSError as error:
        raise RunError(f"{folder}: can't be written ({disk_error(error, folder)})") from None
    claim(folder)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder of a run, so that two runs at once do not remove each other's files; makes the folder.

    The hold ends with the process, however it ends. Helpers of a killed run may keep it for a few seconds.

    Raises:
        UserError: another run holds it.
        RunError: the folder can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise RunError(f"{folder}: can't be written ({disk_error(error, folder)})") from None
    try:
        for tries in range(HELD_SECONDS, -1, -1):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not tries:
                    reason = "another run is writing into this folder; wait for its end, or name another folder"
                    raise UserError(reason, "output_dir", folder) from None
                time.sleep(1)
            except OSError:  # a disk without locks
                break
        yield
    finally:
        os.close(handle)


def go_on(folder: Path) -> None:
    """Mark a folder in which a run goes on; it may be of an earlier version."""
    clear_leftovers(folder)
    claim(folder, also=own_files(folder))


def claim_files(folder: Path, *names: str) -> None:
    """Say that the run is about to make or replace files of its own.

    Raises:
        RunError: when there is such a file already, and no run made it.
    """
    own = own_files(folder)
    for name in names:
        if name not in own and (folder / name).exists():
            raise RunError(
                f"{folder / name}: no run of EmbedRAG wrote it, so it is not replaced; move it to another place, and "
                "go on with `resume=auto`"
            )
    claim(folder, *names)


def claim_trackers(folder: Path, before: set[Path]) -> None:
    """Say which files of trackers are the run's own: those that were not there before the trackers started."""
    claim(folder, *(path.relative_to(folder).as_posix() for path in tracker_files(folder) - before))


def tracker_files(folder: Path) -> set[Path]:
    """All files of trackers in the folder of a run, also those of others."""
    return {path for path in (folder / TENSORBOARD).rglob("*") if path.is_file()}


def clear_leftovers(folder: Path) -> None:
    """Remove half-written files of a killed run, and restore the files that it was replacing."""
    for path in [path for pattern in LEFTOVERS for path in folder.glob(pattern)]:
        remove_leftover(path)


def own_files(folder: Path) -> set[str]:
    """Files and folders that are there and that a run of ours made, as paths below its folder."""
    names = claimed(folder)
    if names is None:
        return _recognised(folder)
    return {name for name in names if _is_there(folder / name)}


def _is_there(path: Path) -> bool:
    """Whether a claimed file is there. A folder is a model's; it appears whole, so its settings are in it."""
    return _is_model(path) if path.is_dir() else path.exists() or path.is_symlink()


def _is_model(path: Path) -> bool:
    return any((path / name).is_file() for name in (TRAINING_CONFIG, MERGE_CONFIG))


def _recognised(folder: Path) -> set[str]:
    """The files of a run of an earlier version, by their content."""
    models = {path.name for pattern in ("final", *CHECKPOINTS) for path in folder.glob(pattern) if _is_model(path)}
    if not _begins(folder / RUN_LOG, '{"training_args": '):
        return models
    files = {RUN_LOG} | {name for name, is_ours in CONTENT.items() if _holds(folder / name, is_ours)}
    if EVALUATION[0] in files and (folder / EVALUATION[1]).is_file():
        files.add(EVALUATION[1])
    if (folder / "merged" / MERGE_CONFIG).is_file():
        files.add("merged")
    events = [path for path in tracker_files(folder) if "tfevents" in path.name and _is_ours(path)]
    settings = [path for event in events for path in event.parent.glob("*/hparams.yml") if _is_ours(path)]
    return models | files | {path.relative_to(folder).as_posix() for path in events + settings}


def _begins(path: Path, text: str) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(text)) == text.encode()
    except OSError:
        return False


def _holds(path: Path, is_ours: Callable[[Any], bool]) -> bool:
    try:
        return is_ours(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return False


def _is_ours(path: Path) -> bool:
    """Whether a file of TensorBoard is of a training of ours: it has our settings, or figures that only we log."""
    try:
        with path.open("rb") as file:
            start = file.read(1 << 20)
    except OSError:
        return False
    return b"train/padding_share" in start or (b"model_name_or_path" in start and b"finetune_type" in start)
