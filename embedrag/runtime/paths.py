"""Folders that this program uses on this machine, and paths that other people wrote into files of a model."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path, PurePosixPath

FOLDERS = ("outputs", "output", "out", "runs", "models", "checkpoints", "data", "datasets")  # no owner on a hub


def cache_folder(named: str | None) -> Path:
    """The folder for what can be computed again.

    Args:
        named: what the caller asks for; without it, $EMBEDRAG_CACHE or a folder in the user's home counts.
    """
    return Path(named or os.environ.get("EMBEDRAG_CACHE") or "~/.cache/embedrag").expanduser()


def public_name(name: str) -> str:
    r"""The name of a model or a file without the folders of this machine, which may show the name of its user.

    >>> [public_name(name) for name in ("/home/me/out/final", r"C:\Users\me\final", "~/data.jsonl:2", "outputs/final/")]
    ['final', 'final', 'data.jsonl:2', 'final']
    >>> public_name("BAAI/bge-m3"), public_name("(in memory)")
    ('BAAI/bge-m3', '(in memory)')
    """
    parts = [part for part in re.split(r"[\\/]", name) if part not in ("", ".", "..", "~")]
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(?:[:@]\S+)?", name) and not Path(name.partition(":")[0]).exists():
        first, _, _ = name.partition("/")
        return name if first not in FOLDERS else parts[-1]
    return parts[-1] if parts else Path(name).expanduser().resolve().name


def is_inner_path(name: object) -> bool:
    """Whether a path that stands in a file of a model names something in the model's folder.

    >>> is_inner_path("1_Pooling/config.json"), is_inner_path("../secret.txt"), is_inner_path("/etc/passwd")
    (True, False, False)
    """
    if not isinstance(name, str) or "\0" in name or "\\" in name or ":" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def belongs_to(path: Path, root: Path) -> bool:
    """Whether a file is a regular file of a model folder when its links are followed.

    The hub's cache holds a model as `snapshots/<revision>/<file>`, and these files are links into the folder `blobs`
    beside `snapshots`. Such a link does not leave the model.

    Args:
        path: a file, or a link to one.
        root: the model folder.
    """
    file, home = path.resolve(), root.resolve()
    stores = [parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots"]
    return file.is_file() and any(place in file.parents for place in (home, *stores))


def copy_code(root: Path, target: Path) -> None:
    """Copy the Python files of a model folder. A link that leads out of the folder is not followed."""
    for path in sorted(root.glob("*.py")):
        if belongs_to(path, root):
            shutil.copyfile(path, target / path.name)
