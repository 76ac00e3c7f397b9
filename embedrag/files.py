"""Files and folders written whole or not at all.

Everything goes to a temporary name beside the target, is flushed to the disk, and renamed: a crash at any instant
leaves what was there before.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError

from embedrag.errors import RunError


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


@contextmanager
def atomic_file(target: Path) -> Iterator[TextIO]:
    """A UTF-8 file that becomes `target` when the block ends well, and vanishes when it does not.

    Raises:
        RunError: when the disk refuses; `target` is then as it was.
    """
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        _flush(temporary)
        temporary.replace(target)
    except OSError as error:
        raise RunError(f"{target}: not written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a small file by rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    _flush(temporary)
    temporary.replace(path)


def write_json(path: Path, data: Any) -> None:
    """Write JSON into a folder that is itself still temporary; makes the folder above it."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSONL, by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
