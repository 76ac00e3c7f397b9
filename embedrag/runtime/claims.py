"""Which files in a folder were made by a run of ours.

A run shares its folder with files of other people, and their names may be those of ours: `runs/` is TensorBoard's
usual folder, `metrics.json` is DVC's usual file. So a name says nothing about who wrote a file. A run writes every name
into a marker before it makes the file, and only what the marker names is ever removed or replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from embedrag import __version__
from embedrag.runtime.files import write_atomic

MARKER = ".embedrag-run.json"
FORMAT = 1


def claimed(folder: Path) -> set[str] | None:
    """What the marker of a folder names, as paths below the folder; None without a marker that can be read."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return {name for name in marker["names"] if _is_below(name)} if marker["format"] == FORMAT else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def claim(folder: Path, *names: str, also: Iterable[str] = ()) -> None:
    """Write names into the marker of a folder, before files of these names are made.

    Names of files that are gone are dropped: another program may use them from now on.

    Args:
        folder: of the run; it exists.
        *names: what is about to be made, as paths below the folder.
        also: names that are known to be ours without a marker, in a folder of an earlier version.

    Raises:
        RunError: when the marker can't be written.
    """
    before = claimed(folder)
    kept = {name for name in (also if before is None else before) if _exists(folder / name)} | set(names)
    if kept != before:
        marker = {"format": FORMAT, "version": __version__, "names": sorted(kept)}
        write_atomic(folder / MARKER, json.dumps(marker, indent=1, ensure_ascii=False))


def _is_below(name: object) -> bool:
    """Whether a name of a marker can only be of a file below its folder."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    return bool(parts) and parts[0] != "/" and ".." not in parts


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()
