"""Files and folders written whole or not at all.

Everything goes to a temporary name beside the target, is flushed to the disk, and renamed: a crash at any instant
leaves what was there before (a folder that was being replaced may then have another name; `remove_leftover` gives it
back its own).
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from safetensors import SafetensorError

from embedrag.errors import RunError, UserError

if TYPE_CHECKING:
    import numpy as np


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and vanishes when it does not.

    Raises:
        RunError: when the disk refuses (full, read-only); `target` is then as it was.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
        temporary.chmod(0o755)
    except OSError as error:
        raise RunError(f"{target}: can't be written ({error.strerror})") from None
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            path.chmod(0o755 if path.is_dir() else 0o644)  # some libraries write files that only their owner may read
            _flush(path)
        old = temporary.with_name(f"{temporary.name}.old")
        if target.exists():
            target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        _flush(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{target}: not written ({reason}); what was there before is whole") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftover(path: Path) -> None:
    """Remove what a killed `atomic_folder` left; the folder it was replacing comes back, if it has no successor."""
    target = path.with_name(path.name[1:].rsplit(".tmp-", 1)[0])
    if path.suffix == ".old" and not target.exists():
        path.rename(target)
    else:
        shutil.rmtree(path)


@contextmanager
def atomic_file(target: Path) -> Iterator[TextIO]:
    """A UTF-8 file that becomes `target` when the block ends well, and vanishes when it does not.

    Raises:
        RunError: when the disk refuses; `target` is then as it was.
    """
    with _temporary(target) as temporary:
        # Half a surrogate pair is no UTF-8; what is written for it is what JSON writes for it.
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            yield file


def write_vectors(target: Path, blocks: Iterable[np.ndarray], shape: tuple[int, int], dtype: str = "<f4") -> None:
    """Write an .npy file from blocks of rows; it appears when it is whole.

    Written and not mapped, for a full disk would end the program where a mapped page finds no place.

    Raises:
        RunError: when the disk refuses; `target` is then as it was.
    """
    import numpy as np

    with _temporary(target) as temporary, temporary.open("wb") as file:
        header = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype).data)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A file of a name that nobody else has; flushed and renamed when the block ends well, removed in any case."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.tmp-", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise RunError(f"{target}: can't be written ({error.strerror or error})") from None
    temporary = Path(name)
    try:
        temporary.chmod(0o644)
        yield temporary
        _flush(temporary)
        temporary.replace(target)
    except OSError as error:
        raise RunError(f"{target}: not written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a small file by rename."""
    with atomic_file(path) as file:
        file.write(text + "\n")


def check_targets(targets: dict[str, str | None], sources: Iterable[str | None], overwrite: bool) -> None:
    """Refuse to write over what is read, over what is there, into folders that are read, and where nobody may write.

    Args:
        targets: flag -> file that will be written.
        sources: files and folders that are read.
        overwrite: what is there may be replaced.

    Raises:
        UserError: with all problems together.
    """
    read = [path for path in (Path(name).expanduser() for name in sources if name) if path.exists()]
    problems: list[str] = []
    seen: dict[Path, str] = {}
    for flag, name in targets.items():
        if not name:
            continue
        path = Path(name).expanduser()
        if other := seen.get(path.resolve()):
            problems.append(f"{flag} {name}: is the file that {other} writes")
        elif any(path.exists() and source.samefile(path) for source in read):
            problems.append(f"{flag} {name}: is read by this command; name another file")
        elif any(source.is_dir() and source.resolve() in path.resolve().parents for source in read):
            problems.append(f"{flag} {name}: lies in a folder that is read; name another place")
        elif path.is_dir():
            problems.append(f"{flag} {name}: a folder; name a file")
        elif path.exists() and not overwrite:
            problems.append(f"{flag} {name}: exists; name another file, or replace it with --overwrite")
        elif any(parent.is_file() for parent in path.parents):
            problems.append(f"{flag} {name}: no folder can be made there; name another place")
        elif not os.access(folder := next(parent for parent in path.absolute().parents if parent.exists()), os.W_OK):
            problems.append(f"{flag} {name}: {folder} can't be written; name another place")
        seen[path.resolve()] = flag
    if problems:
        raise UserError("\n".join(problems))


def check_folder(flag: str, output: Path, overwrite: bool, marker: str, kind: str) -> None:
    """An output folder must be new, empty, or (with --overwrite) one of its kind; nothing else is ever removed.

    Args:
        flag: that named it.
        output: the folder.
        overwrite: one of its kind may be replaced.
        marker: file by which the kind is known.
        kind: its name, in the plural.

    Raises:
        UserError: with the remedy.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{flag} {output}: exists; name another folder, or replace it with --overwrite")
    if not (output / marker).is_file():
        raise UserError(f"{flag} {output}: --overwrite replaces {kind} only, and this is none")


def overlap(a: Path, b: Path) -> bool:
    """Whether one folder is the other, or lies in it."""
    x, y = a.resolve(), b.resolve()
    return x == y or x in y.parents or y in x.parents


def write_json(path: Path, data: Any) -> None:
    """Write JSON into a folder that is itself still temporary; makes the folder above it."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSONL, by rename."""
    write_atomic(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
