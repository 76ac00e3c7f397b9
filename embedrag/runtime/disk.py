"""What the disk says: why something could not be written, and how much room is left."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path

from embedrag.errors import EmbedRagError

# How libraries in Rust write an error of the disk into their messages (safetensors, tokenizers), and of `shutil`.
OS_ERROR = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
# Bytes of a name and of a path on the disks of Linux and macOS, less the names of the files inside a folder; and what
# the name of a temporary file or folder has besides that of the whole one.
NAME_MAX, PATH_MAX, TEMPORARY = 255, 3800, 24


def disk_error(error: Exception, place: Path | None) -> str:
    """What the disk says in an error of any library; empty for another kind of error.

    Args:
        error: an OSError, or an error of safetensors or tokenizers about a file.
        place: a path on that disk, which does not have to exist; None: a device or a pipe.
    """
    if isinstance(error, EmbedRagError):
        return ""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := OS_ERROR.search(str(error))):
        number = int(found[1] or found[2])
    if number is None:
        return str(error) if isinstance(error, OSError) else ""
    reason = os.strerror(number)
    return f"{reason}; {_room(place)}" if place and number == errno.ENOSPC else reason


def is_full(path: Path) -> bool:
    """Whether the disk of a path has not one free block."""
    try:
        return os.statvfs(path).f_bavail == 0
    except OSError:
        return False


def _room(place: Path) -> str:
    """How much room the disk of a path has, in words."""
    try:
        disk = os.statvfs(next(path for path in (place, *place.absolute().parents) if path.exists()))
    except (OSError, StopIteration):
        return "free some room there"
    if disk.f_files and not disk.f_favail:
        return "it can hold no further file, because no inode is free"
    return f"it has {disk.f_bavail * disk.f_frsize / 2**20:,.1f} MiB free, and more is needed"


def not_writable(folder: Path) -> str:
    """Why no file can be made in a folder that exists; empty when one can. A file is tried; it never has a name."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def too_long(path: Path) -> bool:
    """Whether no file or folder can be written under this name, because a part of it or all of it is too long.

    A disk says so by itself only when the folders above exist, and not about the temporary name of the file.

    >>> too_long(Path("out") / ("x" * 250)), too_long(Path("out") / ("x" * 200)), too_long(Path("out/" * 2000))
    (True, False, True)
    """
    whole = path.absolute()
    sizes = [len(os.fsencode(part)) for part in whole.parts]
    return max(*sizes, sizes[-1] + TEMPORARY) > NAME_MAX or len(os.fsencode(whole)) > PATH_MAX
