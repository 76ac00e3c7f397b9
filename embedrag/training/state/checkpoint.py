"""Checkpoints: everything that a run needs to continue as if it had never stopped. No pickle; files have checksums.

A checkpoint folder is a model folder with `training_state/` in it: `state.json` (numbers and names), and
`state.safetensors` (optimizer, random generators, and weights that the model's own files do not hold bit for bit).
`checksums.json` names every file of the folder; it is written last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from embedrag.errors import UserError
from embedrag.models.artifacts import BEST_STEP, STATE_CHECKSUMS, STATE_FOLDER, STATE_JSON, STATE_TENSORS
from embedrag.runtime.claims import claim
from embedrag.runtime.files import write_json
from embedrag.runtime.fsdp import local_shard
from embedrag.training.state.run_folder import own_files

FORMAT = 1
BLOCK = 1 << 22


@dataclass(frozen=True)
class Checkpoint:
    """A folder from which a run can go on, and the content of its `state.json`."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state["global_step"])


def write_state(
    folder: Path,
    parameters: dict[str, nn.Parameter],
    state: dict[str, Any],
    full_weights: dict[str, Tensor] | None = None,
) -> None:
    """Add the state to a model folder while it is still temporary.

    Args:
        folder: holds the model's own files.
        parameters: of the model, by name; those that are trained are saved.
        state: everything else to be restored: nested dicts and lists of JSON values and tensors.
        full_weights: weights by name, when this process holds only a shard of them.
    """
    trained = {
        name: full_weights[name] if full_weights else parameter.detach()
        for name, parameter in parameters.items()
        if parameter.requires_grad
    }
    held = _held_as_they_are(folder, trained)
    weights = {name: parameter for name, parameter in trained.items() if name not in held}
    tensors: dict[str, Tensor] = {}
    tree = _without_tensors({**state, "format": FORMAT, "weights": weights}, "", tensors, {})
    write_json(folder / STATE_JSON, tree)
    save_file(tensors, folder / STATE_TENSORS)
    sums = {str(path.relative_to(folder)): _fingerprint(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    write_json(folder / STATE_CHECKSUMS, sums)


def read_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state with its tensors."""
    tree: dict[str, Any] = _with_tensors(checkpoint.state, load_file(checkpoint.folder / STATE_TENSORS))
    return tree


@torch.no_grad()
def restore_weights(checkpoint: Checkpoint, weights: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> None:
    """Restore the trained weights among `parameters`; `weights` are those that the model's own files do not hold.

    Raises:
        UserError: when the model has other weights than the one that was saved.
    """
    files = _model_tensors(checkpoint.folder)
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            continue
        if name in weights:
            saved = weights[name]
        elif name in files:
            with safe_open(files[name], framework="pt") as file:
                saved = file.get_tensor(name)
        else:
            raise UserError(f"has no {name}; it was saved by another kind of model", "resume", checkpoint.folder)
        if saved.shape != parameter.shape:
            shapes = f"{list(saved.shape)}, and the model here has {list(parameter.shape)}"
            raise UserError(f"{name} has shape {shapes}", "resume", checkpoint.folder)
        parameter.copy_(local_shard(parameter, saved))


def checkpoints(folder: Path) -> list[Checkpoint]:
    """All checkpoints from which a run could go on, newest first; unreadable ones are left out."""
    found = []
    for path in _state_folders(folder):
        with contextlib.suppress(UserError):
            found.append(_read(path))
    return sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True)


def open_checkpoint(resume: str | None, output_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The checkpoint that `resume` names, checked against its checksums; and lines about checkpoints that were skipped.

    Raises:
        UserError: when it is damaged or not there; the message names the one before it.
    """
    if resume is None:
        return None, []
    if resume != "auto":
        return _open_named(Path(resume).expanduser()), []
    readable = checkpoints(output_dir)
    lost = set(_state_folders(output_dir)) - {candidate.folder for candidate in readable}
    lines = [f"resume: {folder} is damaged ({STATE_JSON} can't be read) and is skipped" for folder in sorted(lost)]
    for candidate in readable:
        problems = damage(candidate.folder)
        if not problems:
            return candidate, lines
        lines.append(f"resume: {candidate.folder} is damaged ({problems[0]}); the one before it is used")
    return None, lines


def damage(folder: Path) -> list[str]:
    """Which files of a checkpoint are not as they were written."""
    try:
        sums = json.loads((folder / STATE_CHECKSUMS).read_text(encoding="utf-8"))
        sums = {str(name): (int(size), str(digest)) for name, (size, digest) in sums.items()}
        _read(folder)
    except (OSError, ValueError, TypeError, AttributeError, UserError) as error:
        return [f"{STATE_CHECKSUMS} or {STATE_JSON}: {type(error).__name__}"]
    problems = []
    for name, (size, digest) in sums.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name}, named in {STATE_CHECKSUMS}, is missing")
        elif path.stat().st_size != size:
            problems.append(f"{name} has {path.stat().st_size:,} bytes instead of {size:,}")
        elif _fingerprint(path)[1] != digest:
            problems.append(f"the checksum of {name} is not the one in {STATE_CHECKSUMS}")
    return problems


def prune(folder: Path, limit: int, best_step: int | None = None) -> None:
    """Keep the newest `limit` states: older step checkpoints are removed, older epochs keep their model.

    A best model is removed when no checkpoint refers to it, except the one of `best_step`. Folders that somebody
    copied here stay as they are.
    """
    own = own_files(folder)
    found = [item for item in checkpoints(folder) if item.folder.name in own]
    for old in found[limit:]:
        _remove(old.folder if old.folder.name.startswith("checkpoint-step-") else old.folder / STATE_FOLDER)
    steps = {(item.state.get("monitor") or {}).get("best_step") for item in found[:limit]} | {best_step}
    for path in _best_models(folder, own):
        if path.name not in {f"{BEST_STEP}{step}" for step in steps}:
            _remove(path)
    claim(folder)


def forget_later(folder: Path, checkpoint: Checkpoint) -> list[str]:
    """Remove the state (not the model) of newer checkpoints, because the run that goes on here will differ from them.

    Returns:
        Their names. Otherwise `auto` could later take one of them for the newest checkpoint of this run.
    """
    own = own_files(folder)
    later = [item.folder for item in checkpoints(folder) if item.step > checkpoint.step and item.folder.name in own]
    for path in later:
        _remove(path / STATE_FOLDER)
    for path in _best_models(folder, own):
        if int(path.name.removeprefix(BEST_STEP)) > checkpoint.step:
            _remove(path)
    return [path.name for path in later]


def _best_models(folder: Path, own: set[str]) -> list[Path]:
    """The best models so far, by step number, in the folder of a run."""
    return [path for path in folder.glob(f"{BEST_STEP}*") if path.name in own]


def _state_folders(folder: Path) -> list[Path]:
    return [path for path in folder.glob("checkpoint-*") if (path / STATE_FOLDER).is_dir()]


def _remove(path: Path) -> None:
    """Remove a folder. If the process is killed meanwhile, nothing that looks complete is left."""
    doomed = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
    path.rename(doomed / path.name)
    shutil.rmtree(doomed)


def _open_named(folder: Path) -> Checkpoint:
    if not (folder / STATE_FOLDER).is_dir():
        near = [str(item.folder) for item in checkpoints(folder)] or [str(i.folder) for i in checkpoints(folder.parent)]
        hint = f"; there is {near[0]}" if near else "; name a checkpoint-… folder that holds training_state/"
        raise UserError(f"a run can't go on from this folder, it is not a checkpoint{hint}", "resume", folder)
    if problems := damage(folder):
        others = [item for item in checkpoints(folder.parent) if item.folder.resolve() != folder.resolve()]
        whole = next((item for item in others if not damage(item.folder)), None)
        advice = f"`resume={whole.folder}` (step {whole.step}) is complete" if whole else "there is no other one"
        raise UserError(f"damaged: {'; '.join(problems)}; {advice}", "resume", folder)
    return _read(folder)


def _read(folder: Path) -> Checkpoint:
    try:
        state = json.loads((folder / STATE_JSON).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{STATE_JSON} can't be read ({error})", "resume", folder) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError("was written by another version of EmbedRAG", "resume", folder)
    return Checkpoint(folder, state)


def _fingerprint(path: Path) -> tuple[int, str]:
    """Bytes and SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return path.stat().st_size, digest.hexdigest()


def _model_tensors(folder: Path) -> dict[str, Path]:
    """File of each tensor of the model's own files."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _held_as_they_are(folder: Path, trained: dict[str, Tensor]) -> set[str]:
    """Names of trained weights that the model's own files hold bit for bit (an adapter's have other names there)."""
    held = set()
    for name, path in _model_tensors(folder).items():
        if name in trained:
            with safe_open(path, framework="pt") as file:
                saved = file.get_tensor(name)
            weight = trained[name].cpu()
            if saved.dtype == weight.dtype and torch.equal(saved, weight):
                held.add(name)
    return held


def _without_tensors(value: Any, path: str, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]) -> Any:
    """The tree with a name in the place of each tensor. A tensor that occurs twice is saved once."""
    if isinstance(value, Tensor):
        key = (value.data_ptr(), value.shape, value.dtype) if value.numel() else (path,)
        if key not in seen:
            seen[key] = path
            tensors[path] = value.detach().contiguous()
        return {"$tensor": seen[key]}
    if isinstance(value, dict):
        items = [[key, _without_tensors(item, f"{path}/{key}", tensors, seen)] for key, item in value.items()]
        # Keys of JSON objects are texts; the keys of an optimizer's state are numbers.
        return dict(items) if all(isinstance(key, str) for key in value) else {"$items": items}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, f"{path}/{number}", tensors, seen) for number, item in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        items = value["$items"] if "$items" in value else value.items()
        return {key: _with_tensors(item, tensors) for key, item in items}
    return [_with_tensors(item, tensors) for item in value] if isinstance(value, list) else value
