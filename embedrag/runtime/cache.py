"""Folders that are kept between runs because what they hold can be computed again: tokens of data, vectors of a corpus.

A kept folder has a file `checksums.json`: the size of each file, and a checksum (CRC-32: against mistakes, not attacks)
of each of its blocks. When a folder is opened, all sizes are compared, and up to `SAMPLE` blocks of each file are read:
all blocks of a file up to 64 MiB, of a larger one the first, the last and others drawn at random. So opening takes the
same time however large the files are, and over many starts all blocks are read. `EMBEDRAG_CACHE_CHECK=full` reads all
of them at once. A folder that is damaged is named and made again; nothing of it is used.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import random
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from embedrag.errors import RunError, UserError
from embedrag.runtime.console import say
from embedrag.runtime.disk import not_writable
from embedrag.runtime.files import atomic_folder

T = TypeVar("T")
SUMS = "checksums.json"
FORMAT = 1
BLOCK = 1 << 22  # bytes
SAMPLE = 16  # blocks of a file that are read when it is opened
RETRIES = 20
CHECK = "EMBEDRAG_CACHE_CHECK"
# What opening a damaged file can raise; JSON, NumPy and memory maps.
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError)


def open_kept(cache: Path, name: str, open_: Callable[[Path], T]) -> T | None:
    """Open a kept folder if it is in the cache and whole.

    Args:
        cache: folder of everything that is kept.
        name: of the kept folder.
        open_: opens it. It raises ValueError when the content is not what is wanted.

    Returns:
        What `open_` gave. None when nothing can be read there, or when it is damaged; a line then says so.
    """
    folder = cache / name
    try:
        if not folder.exists() or not os.access(folder, os.R_OK | os.X_OK):
            return None
        if not _is_trusted(cache, folder):
            say(f"cache: {folder} is not used, because it belongs to another user")
            return None
        reason = next(damaged(folder), "")
        if not reason:
            return open_(folder)
    except DAMAGE as error:
        reason = f"{type(error).__name__}: {error}"
    say(f"cache: {folder} is damaged ({reason}); it is made again")
    return None


def keep(cache: Path, name: str, make: Callable[[Path], object], open_: Callable[[Path], T]) -> T:
    """Make a folder that is kept in the cache, and open it; an earlier one of that name is replaced.

    Where nothing can be kept, the folder is made in a temporary place and removed when the program ends.

    Args:
        cache: folder of everything that is kept.
        name: of the kept folder.
        make: writes the files into an empty folder.
        open_: opens the folder.

    Raises:
        UserError: the cache can't be a folder.
        RunError: the disk can't be written.
    """
    place = _place(cache, name)
    try:
        if place.is_symlink() or place.is_file():  # no folder of ours, and the name is one that only we use
            place.unlink()
        with atomic_folder(place) as folder:
            make(folder)
            write_sums(folder)
    except RunError as error:
        raise RunError(
            f"{error}; name a folder with more room for the cache (`cache_dir`, or $EMBEDRAG_CACHE)"
        ) from None
    for _ in range(RETRIES):
        with contextlib.suppress(FileNotFoundError):  # another process is just replacing it by the same
            return open_(place)
        time.sleep(0.1)
    return open_(place)


def write_sums(folder: Path) -> None:
    """Write the size and the checksums of all files of a folder; nothing is written into it afterwards."""
    files = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            sums = [zlib.crc32(block) for block in iter(lambda file=file: file.read(BLOCK), b"")]  # type: ignore[misc]
        files[path.name] = {"bytes": path.stat().st_size, "blocks": sums}
    text = json.dumps({"format": FORMAT, "block": BLOCK, "files": files})
    (folder / SUMS).write_text(text, encoding="utf-8")


def damaged(folder: Path) -> Iterator[str]:
    """What is wrong with a kept folder, file by file; nothing when it is as it was made.

    Raises:
        One of DAMAGE: when the checksums can't be read.
    """
    if not (folder / SUMS).is_file():
        yield f"it has no {SUMS}; earlier versions wrote none"
        return
    sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
    if (sums["format"], sums["block"]) != (FORMAT, BLOCK):
        yield f"{SUMS} is of another version"
        return
    for name, entry in sums["files"].items():
        path, size, blocks = folder / Path(name).name, entry["bytes"], entry["blocks"]
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != size or len(blocks) != -(-size // BLOCK):
            yield f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        else:
            with path.open("rb") as file:
                for number in _sample(len(blocks)):
                    file.seek(number * BLOCK)
                    if zlib.crc32(file.read(BLOCK)) != blocks[number]:
                        yield f"the checksum of {name} differs in block {number + 1} of {len(blocks)}"
                        break


def _sample(count: int) -> list[int]:
    """Numbers of the blocks of a file that are read."""
    if count <= SAMPLE or os.environ.get(CHECK) == "full":
        return list(range(count))
    drawn = random.Random().sample(range(1, count - 1), SAMPLE - 2)  # the random state of the run is not touched
    return sorted([0, *drawn, count - 1])


def _is_trusted(cache: Path, folder: Path) -> bool:
    """Whether everything there is of this user, of root, or of the owner of the cache.

    Others who may write into the cache could put there what they like.
    """
    known = {0, os.geteuid(), cache.stat().st_uid}
    try:
        return all(path.lstat().st_uid in known for path in (folder, *(folder.iterdir() if folder.is_dir() else ())))
    except PermissionError:  # what can't be read can't be trusted, unless it is our own
        return folder.lstat().st_uid == os.geteuid()


def unusable(cache: Path) -> str:
    """Why nothing can be kept in a folder, which is made if it is not there; empty when something can.

    Raises:
        UserError: it can't be a folder.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return not_writable(cache)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{error.strerror}; name a folder that can be written", "cache_dir", cache) from None
    except OSError as error:
        return error.strerror or str(error)


def say_unusable(cache: Path, reason: str) -> None:
    """Say that the run goes on without keeping anything."""
    say(
        f"cache: {cache} can't be written ({reason}), so nothing is kept for the next start; a temporary folder is "
        "used. Name another folder with `cache_dir`, or in $EMBEDRAG_CACHE"
    )


def _place(cache: Path, name: str) -> Path:
    """Where a folder is made: in the cache, or in a temporary folder when the cache can't be written."""
    reason, folder = unusable(cache), cache / name
    if not reason and (folder.exists() or folder.is_symlink()) and not _is_trusted(cache, folder):
        reason = f"{name} belongs to another user"
    if not reason:
        return folder
    try:
        temporary = Path(tempfile.mkdtemp(prefix="embedrag-"))
    except OSError as error:
        raise RunError(f"{cache}: can't be written ({reason}), and no temporary folder either ({error})") from None
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    say_unusable(cache, reason)
    return temporary / name
