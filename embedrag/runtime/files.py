"""Files and folders that are written whole or not at all.

Everything is written under a temporary name beside the target, flushed to the disk, and then renamed. A crash at any
moment leaves what was there before. (A folder that was being replaced may then have another name; `remove_leftover`
gives it back its own.)

A symlink is followed: its target is what is written. A device or a pipe (`/dev/null`, `/dev/stdout`, a FIFO) can't be
replaced without being lost, so it is written in place.

New files and folders have the modes that the user's umask gives to any new file or folder.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from embedrag.errors import EmbedRagError, RunError, UserError, raise_all
from embedrag.runtime.disk import disk_error, is_full, not_writable, too_long

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and is removed when it does not.

    Raises:
        RunError: when the disk can't be written (full, read-only); `target` is then unchanged.
    """
    try:
        place = _real_path(target)
        if place.exists() and not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary, _ = _made_beside(place, Path.mkdir)
    except OSError as error:
        raise RunError(f"{target}: can't be written ({disk_error(error, target)})") from None
    try:
        yield temporary
        _settle(temporary)
        old = _swap(temporary, place)
        _flush(place.parent)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        full = not isinstance(error, EmbedRagError) and is_full(temporary)
        shutil.rmtree(temporary, ignore_errors=True)  # first, so that it does not count as room that is taken
        reason = disk_error(error, place.parent)
        if full and not reason:  # some libraries write a part of a file without an error, and fail when they read it
            reason = disk_error(OSError(errno.ENOSPC, ""), place.parent)
        if not reason:
            raise
        raise RunError(f"{target}: not written ({reason}); what was there before is unchanged") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, place: Path) -> Path:
    """Rename a folder; returns the path where the folder that it replaces is now, if there was one."""
    old = temporary.with_name(f"{temporary.name}.old")
    while True:
        with suppress(FileNotFoundError):
            place.rename(old)
        try:
            temporary.rename(place)
            return old
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                if old.exists():
                    old.rename(place)
                raise
            shutil.rmtree(old, ignore_errors=True)  # another process has put a folder there meanwhile


def _made_beside(place: Path, make: Callable[[Path], T]) -> tuple[Path, T]:
    """A new hidden path beside another one, and what `make` returned for it."""
    while True:
        path = place.with_name(f".{place.name}.tmp-{secrets.token_hex(4)}")
        with suppress(FileExistsError):
            return path, make(path)


def _settle(folder: Path) -> None:
    """Give everything in a new folder the folder's own rights, and flush it to the disk."""
    mode = stat.S_IMODE(folder.stat().st_mode)  # by the umask of the user; some libraries write files that are private
    for path in [*folder.rglob("*"), folder]:
        path.chmod(mode if path.is_dir() else mode & 0o666)
        _flush(path)


def remove_leftover(path: Path) -> None:
    """Remove what a killed `atomic_folder` or `atomic_file` left.

    A folder that was being replaced comes back if no new one is there.
    """
    target = path.with_name(path.name[1:].rsplit(".tmp-", 1)[0])
    if path.suffix == ".old" and not target.exists():
        path.rename(target)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def atomic_file(target: Path) -> Iterator[IO[str]]:
    """A UTF-8 file that becomes `target` when the block ends well, and is removed when it does not.

    Raises:
        RunError: when the disk can't be written; `target` is then unchanged.
    """
    # UTF-8 has no form for half a surrogate pair; it is written as JSON writes it.
    with _opened(target, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        yield file


def write_vectors(target: Path, blocks: Iterable[np.ndarray], shape: tuple[int, int], dtype: str = "<f4") -> None:
    """Write an .npy file from blocks of rows; it appears when it is whole.

    The file is written, not memory-mapped: on a full disk, writing to a mapped page would kill the program.

    Args:
        target: the file.
        blocks: arrays [rows, …]; all rows together are `shape`.
        shape: of the whole array, [n, …].
        dtype: of the stored numbers, as NumPy writes it.

    Raises:
        RunError: when the disk can't be written; `target` is then unchanged.
    """
    with _opened(target, "wb") as file:
        write_npy(file, blocks, shape, dtype)


def write_npy(file: IO[bytes], blocks: Iterable[np.ndarray], shape: tuple[int, ...], dtype: str = "<f4") -> None:
    """The content of an .npy file; NumPy's own function does not say why it could not be written."""
    import numpy as np

    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype).data)


@contextmanager
def _opened(target: Path, mode: str, **settings: Any) -> Iterator[IO[Any]]:
    """A file that is open for writing: a new one that becomes `target` at the end, or a device or pipe itself."""
    temporary: Path | None = None
    try:
        if written_in_place(target):
            if sys.stdout:
                sys.stdout.flush()  # lines that were printed before come first
            number = _descriptor(target)
            file = target.open(mode, **settings) if number is None else os.fdopen(os.dup(number), mode, **settings)
        else:
            place = _real_path(target)
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary, handle = _made_beside(place, lambda path: os.open(path, _NEW, 0o666))
            file = os.fdopen(handle, mode, **settings)
    except OSError as error:
        raise RunError(f"{target}: can't be written ({disk_error(error, target)})") from None
    try:
        with file:
            yield file
        if temporary:
            _flush(temporary)
            temporary.replace(place)
    except BrokenPipeError:  # whoever read it has ended, for example `head`
        raise
    except OSError as error:
        if temporary:
            temporary.unlink(missing_ok=True)  # first, so that it does not count as room that is taken
        raise RunError(f"{target}: not written ({disk_error(error, temporary and place)})") from None
    finally:
        if temporary:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _real_path(target: Path) -> Path:
    """The path with its symlinks followed; the file at the end does not have to exist.

    Raises:
        OSError: when symlinks lead in a circle.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        target.stat()
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def written_in_place(target: Path) -> bool:
    """Whether it is a device, a pipe, or an open file of this process (`/dev/stdout`)."""
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    return _descriptor(target) is not None or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _descriptor(path: Path) -> int | None:
    """The number N of `/dev/fd/N`, or of a link to it such as `/dev/stdout`; None for other paths.

    On Linux, opening such a name opens its file a second time, from its beginning.
    """
    for _ in range(40):  # as many links as Linux follows
        if os.path.realpath(path.parent) == f"/proc/{os.getpid()}/fd" and path.name.isdigit():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / path.readlink()
    return None


def is_standard_output(path: Path) -> bool:
    """Whether a path is this process's own standard output, such as `/dev/stdout`.

    >>> is_standard_output(Path("a prompt that is longer than a name of a file may be " * 9))
    False
    """
    try:
        return _descriptor(path) == 1
    except (OSError, ValueError):  # too long, or with a NUL character
        return False


def no_file(path: Path) -> str:
    """Why a path is no file that can be read twice; empty when it is one."""
    if path.is_file():
        return ""
    if path.exists() and not path.is_dir():
        return "is a pipe or a device, and it is read twice; write it to a file first"
    return "no such file"


def write_atomic(path: Path, text: str) -> None:
    """Write a small file by rename."""
    with atomic_file(path) as file:
        file.write(text + "\n")


def check_targets(
    targets: Mapping[str, str | Path | Iterable[Path] | None], sources: Iterable[str | None], overwrite: bool
) -> None:
    """Refuse outputs that would harm something, and outputs that can't be written, before any work is done.

    A file that is read is never overwritten. Another file that exists is overwritten only with `overwrite`. Nothing is
    written into a folder that is read.

    Args:
        targets: name of the argument -> the file that will be written, several files, or None.
        sources: files and folders that are read.
        overwrite: files that exist may be replaced.

    Raises:
        UserError: with all problems together.
    """
    read = [path for path in (Path(name).expanduser() for name in sources if name) if path.exists()]
    problems: list[UserError] = []
    seen: dict[str, str] = {}
    for argument, value in targets.items():
        for name in [value] if isinstance(value, (str, Path)) else value or ():
            if reason := _refusal(Path(name).expanduser(), read, seen, overwrite):
                problems.append(UserError(reason, argument, name))
            seen[os.path.realpath(Path(name).expanduser())] = argument
    raise_all(problems)


def _refusal(path: Path, read: list[Path], seen: dict[str, str], overwrite: bool) -> str:
    """Why a file must not or can't be written; empty when it can."""
    if too_long(path):
        return "this name is too long for the disk; name another place"
    try:
        if written_in_place(path):
            return "" if os.access(path, os.W_OK) else "can't be written; name another place"
        path = _real_path(path)
        if other := seen.get(os.path.realpath(path)):
            return f"is the file that `{other}` writes"
        if path.exists() and any(source.samefile(path) for source in read):
            return "is read by this command; name another file"
    except OSError as error:
        return f"{error.strerror}; name another place"
    if any(source.is_dir() and source.resolve() in path.resolve().parents for source in read):
        return "lies in a folder that is read; name another place"
    if path.is_dir():
        return "is a folder; name a file"
    if path.exists() and not overwrite:
        return "exists; name another file, or replace it with `overwrite`"
    if any(parent.is_file() for parent in path.parents):
        return "no folder can be made there; name another place"
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return f"{folder} can't be written ({reason}); name another place" if (reason := not_writable(folder)) else ""


def check_folder(argument: str, output: Path, overwrite: bool, marker: str, kind: str) -> None:
    """Refuse an output folder that exists and is not empty, unless `overwrite` may replace it.

    Only folders of the same kind are replaced. Nothing else is ever removed.

    Args:
        argument: what the caller calls the folder, for messages.
        output: the folder.
        overwrite: a folder of the same kind may be replaced.
        marker: a file that every folder of this kind has.
        kind: the name of the kind, in the plural.

    Raises:
        UserError: with the remedy.
    """
    if too_long(output):
        raise UserError("this name is too long for the disk; name another place", argument, output)
    if any(parent.is_file() for parent in output.parents):
        raise UserError("no folder can be made there; name another place", argument, output)
    if reason := not_writable(folder := next(parent for parent in output.absolute().parents if parent.exists())):
        raise UserError(f"{folder} can't be written ({reason}); name another place", argument, output)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise UserError("exists; name another folder, or replace it with `overwrite`", argument, output)
    if not (output / marker).is_file():
        raise UserError(f"`overwrite` replaces only {kind}, and this folder has no {marker}", argument, output)


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
