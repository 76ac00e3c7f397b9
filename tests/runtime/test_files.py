"""Files and folders are whole or as they were, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from embedrag.errors import RunError, UserError
from embedrag.runtime.files import (
    atomic_file,
    atomic_folder,
    check_folder,
    check_targets,
    remove_leftover,
    write_atomic,
    write_json,
    write_lines,
    write_npy,
    write_vectors,
)


@pytest.fixture(params=[False, True], ids=["new", "replaces"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder name beside nothing else; where an older folder is to be replaced it holds `old.txt`."""
    path = tmp_path / "run" / "final"
    if request.param:
        path.mkdir(parents=True)
        (path / "old.txt").write_text("old")
    return path


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def test_block_that_ends_well_gives_the_new_folder_and_nothing_else(target) -> None:
    with atomic_folder(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "new.txt").write_text("new")
        inode = folder.stat().st_ino
    assert target.stat().st_ino == inode, "renamed, not copied"
    assert tree(target.parent) == {"final/deep/new.txt": "new"}
    assert [path.name for path in target.parent.iterdir()] == ["final"]


@pytest.fixture(params=[0o022, 0o077, 0o027], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_and_folders_have_the_rights_of_the_umask(tmp_path: Path, umask: int) -> None:
    """Also those that a library wrote for their owner only, or for everybody."""
    with atomic_folder(tmp_path / "new" / "model") as folder:
        (folder / "sub").mkdir(mode=0o700)
        for name, mode in (("sub/private", 0o600), ("public", 0o666)):
            (folder / name).write_text("1")
            (folder / name).chmod(mode)
    write_atomic(tmp_path / "report.json", "{}")
    write_vectors(tmp_path / "v.npy", [np.zeros((2, 3), np.float32)], (2, 3))
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_folder_keeps_the_group_of_a_shared_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o2755)
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "sub").mkdir(mode=0o700)
    assert all(path.stat().st_mode & stat.S_ISGID for path in (tmp_path / "model", tmp_path / "model" / "sub"))


def test_target_is_untouched_while_the_block_runs(target) -> None:
    before = tree(target)
    with atomic_folder(target) as folder:
        (folder / "new.txt").write_text("new")
        assert tree(target) == before
        assert folder.parent == target.parent and folder.name.startswith(".")


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, RunError])
def test_failure_in_the_block_leaves_what_was_there_and_passes_on(failure, target) -> None:
    before, existed = tree(target), target.exists()
    with pytest.raises(failure, match="halfway"), atomic_folder(target) as folder:
        (folder / "new.txt").write_text("new")
        raise failure("halfway")
    assert tree(target) == before and target.exists() == existed
    assert [path.name for path in target.parent.iterdir()] == ["final"] * existed


FULL = "No space left on device (os error 28)"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        Exception(FULL),
        SafetensorError(f"Error while serializing: I/O error: {FULL}"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device")]),
    ],
    ids=["Python", "tokenizers", "safetensors", "shutil"],
)
def test_full_disk_is_reported_and_earlier_files_stay(target, error) -> None:
    before, existed = tree(target), target.exists()
    words = r"final: not written \(No space left on device; it has [\d,.]+ MiB free, and more is needed\); what was"
    with pytest.raises(RunError, match=words) as caught, atomic_folder(target):
        raise error
    assert caught.value.exit_code == 1
    assert tree(target) == before
    assert [path.name for path in target.parent.iterdir()] == ["final"] * existed


@pytest.mark.parametrize(
    "number", [errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ENAMETOOLONG, errno.EFBIG]
)
def test_other_errors_of_the_disk_are_told_in_its_words(number: int, tmp_path: Path) -> None:
    for error in (OSError(number, os.strerror(number)), Exception(f"(os error {number})")):
        with pytest.raises(RunError, match=re.escape(f"m: not written ({os.strerror(number)}); what was there before")):
            with atomic_folder(tmp_path / "m"):
                raise error
    with pytest.raises(RunError, match="can't be written .File name too long"):
        write_atomic(tmp_path / ("x" * 300), "")


def _save_tensors(path: Path) -> None:
    save_file({"a": np.zeros(5000, np.float32)}, path)


def _save_tokenizer(path: Path) -> None:
    Tokenizer(models.WordLevel({f"word{n}": n for n in range(2000)}, "word0")).save(str(path))


@pytest.mark.parametrize(
    "save",
    [
        _save_tensors,
        _save_tokenizer,
        lambda path: path.write_text("x" * 20_000),
        lambda path: write_json(path, ["x" * 20_000]),
        lambda path: write_rows_of(path, 5000),
    ],
    ids=["safetensors", "tokenizers", "text", "JSON", "vectors"],
)
@pytest.mark.parametrize("room", [0, 1, 100, 4096, 8192, 16_000])
def test_a_write_that_fails_at_any_byte_leaves_what_was_there(save: Any, room: int, tmp_path: Path) -> None:
    """The limit on the size of files is met by every library, as a full disk is."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "old").write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(RunError, match="not written .File too large"), atomic_folder(tmp_path / "m") as folder:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
            save(folder / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert tree(tmp_path) == {"m/old": "old"}


def write_rows_of(path: Path, count: int) -> None:
    with path.open("wb") as file:
        write_npy(file, [np.zeros((count, 1), np.float32)], (count, 1))


def test_disk_without_a_free_inode_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 9000, 9000, 9000, 100, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(
        RunError, match="No space left on device; it can hold no further file, because no inode is free"
    ):
        with atomic_folder(tmp_path / "m"):
            raise OSError(errno.ENOSPC, "")


def test_any_error_while_the_disk_is_full_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime writes a part of a file without an error, and then can't read it."""
    full = os.statvfs_result((4096, 4096, 9000, 0, 0, 100, 50, 50, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(
        RunError, match="m: not written .No space left on device; it has 0.0 MiB free, and more is need"
    ):
        with atomic_folder(tmp_path / "m"):
            raise ValueError("Wire format was corrupt")
    with pytest.raises(UserError, match="a mistake"), atomic_folder(tmp_path / "m"):
        raise UserError("a mistake")


def test_error_that_is_not_of_the_disk_passes_on(tmp_path: Path) -> None:
    for error in (ValueError("x"), UserError("the base can't be read (os error 2)")):
        with pytest.raises(type(error), match=re.escape(str(error))), atomic_folder(tmp_path / "m"):
            raise error


def test_parent_that_can_not_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="can't be written"), atomic_folder(tmp_path / "file" / "final"):
        pytest.fail("the block must not start")
    assert tree(tmp_path) == {"file": "in the way"}


def test_rename_that_fails_at_the_end_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, real = tmp_path / "final", Path.rename
    target.mkdir()
    (target / "old.txt").write_text("old")

    def rename(self: Path, other: Path) -> Path:
        if other == target and (self / "new.txt").exists():
            raise OSError(errno.EIO, "Input/output error")
        return real(self, other)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(RunError, match="what was there before is unchanged"), atomic_folder(target) as folder:
        (folder / "new.txt").write_text("new")
    assert tree(tmp_path) == {"final/old.txt": "old"}


@pytest.mark.parametrize("successor", [True, False])
def test_folder_that_a_killed_process_was_replacing_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, successor: bool
) -> None:
    target = tmp_path / "final"
    target.mkdir()
    (target / "old.txt").write_text("old")

    real = Path.rename

    def rename(self: Path, other: Path) -> Path:
        if self != target:
            raise SystemExit  # killed between the two
        return real(self, other)

    # Nothing of what would clean up is done by a process that is killed.
    monkeypatch.setattr("embedrag.runtime.files.shutil.rmtree", lambda *_, **__: None)
    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(SystemExit), atomic_folder(target) as folder:
        (folder / "new.txt").write_text("new")
    monkeypatch.undo()
    assert not target.exists()
    if successor:
        target.mkdir()
        (target / "next.txt").write_text("next")
    for path in list(tmp_path.glob(".final.tmp-*")):
        remove_leftover(path)
    assert tree(tmp_path) == ({"final/next.txt": "next"} if successor else {"final/old.txt": "old"})


def test_small_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    for text in ("[1, 2, 3]", "개"):
        write_atomic(path, text)
        assert path.read_text(encoding="utf-8") == text + "\n"
    assert list(tmp_path.iterdir()) == [path]


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_small_file_that_can_not_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.json"
    write_atomic(path, "old")
    monkeypatch.setattr("embedrag.runtime.files._flush", full)
    with pytest.raises(RunError, match="No space left"):
        write_atomic(path, "new")
    assert tree(tmp_path) == {"metrics.json": "old\n"}


def test_vectors_are_an_npy_file_that_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that write the same file at once do not meet."""
    path, values = tmp_path / "new" / "v.npy", np.arange(12, dtype=np.float32).reshape(4, 3)

    def blocks(nested: bool) -> Iterator[np.ndarray]:
        yield values[:1]
        if nested:
            write_vectors(path, blocks(nested=False), (4, 3))
        yield values[1:].astype(np.float64)

    write_vectors(path, blocks(nested=True), (4, 3))
    assert np.array_equal(np.load(path, mmap_mode="r"), values)
    monkeypatch.setattr("embedrag.runtime.files._flush", full)
    with pytest.raises(RunError, match="No space left"):
        write_vectors(path, [values[:2] + 1], (4, 3))
    assert [file.name for file in path.parent.iterdir()] == ["v.npy"] and np.array_equal(np.load(path), values)


def test_half_a_surrogate_pair_is_written_as_json_writes_it(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [{"a": "x \ud800 é"}])
    assert json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8")) == {"a": "x \ud800 é"}


def test_files_that_are_read_or_there_are_not_written(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("x")
    (tmp_path / "there.json").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("in.jsonl")
    (tmp_path / "circle").symlink_to("circle")
    source = str(tmp_path / "in.jsonl")
    for name, overwrite, message in (
        ("in.jsonl", True, "is read by this command"),
        ("link", True, "is read by this command"),
        ("there.json", False, "exists; name another file, or replace it with `overwrite`"),
        ("folder", True, "is a folder; name a file"),
        ("in.jsonl/x", True, "no folder can be made there"),
        ("circle", True, "Too many levels of symbolic links; name another place"),
    ):
        with pytest.raises(UserError, match=re.escape(f"`output={tmp_path / name}`: {message}")):
            check_targets({"output": str(tmp_path / name)}, [source, None, "no such file"], overwrite)
    with pytest.raises(UserError, match="lies in a folder that is read"):
        check_targets({"output": str(tmp_path / "folder" / "x")}, [str(tmp_path / "folder")], False)
    with pytest.raises(UserError, match="`html=.*`: is the file that `output` writes"):
        check_targets({"output": str(tmp_path / "a"), "html": str(tmp_path / "a")}, [], False)
    check_targets({"output": str(tmp_path / "there.json"), "html": None}, [source], True)


def test_all_outputs_that_can_not_be_written_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("x")
    (tmp_path / "test.jsonl").write_text("x")
    files = [tmp_path / "train.jsonl", tmp_path / "new.jsonl", tmp_path / "test.jsonl"]
    with pytest.raises(UserError) as caught:
        check_targets({"output_dir": files}, [], False)
    assert [(problem.argument, problem.value) for problem in caught.value.problems] == [
        ("output_dir", files[0]),
        ("output_dir", files[2]),
    ]


def test_place_where_nobody_may_write_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = {"output": str(tmp_path / "new" / "deep" / "x.jsonl")}
    check_targets(target, [], False)
    assert list(tmp_path.iterdir()) == [], "the file that is tried leaves nothing"

    def refuse(dir: Path) -> None:  # root may write everywhere
        raise OSError(errno.EROFS if dir == tmp_path else errno.EIO, "Read-only file system")

    monkeypatch.setattr("embedrag.runtime.disk.tempfile.TemporaryFile", refuse)
    words = f"`output=.*x.jsonl`: {tmp_path} can't be written .Read-only file system.; name another place"
    with pytest.raises(UserError, match=words):
        check_targets(target, [], True)
    (tmp_path / "link").symlink_to(tmp_path / "new" / "x.jsonl")  # what counts is the folder of its target
    with pytest.raises(UserError, match=f"`output=.*link`: {tmp_path} can't be written"):
        check_targets({"output": str(tmp_path / "link")}, [], True)


def write_text(target: Path) -> None:
    write_atomic(target, "new")


def write_rows(target: Path) -> None:
    write_vectors(target, [np.zeros((2, 3), np.float32)], (2, 3))


@pytest.mark.parametrize("write", [write_text, write_rows])
@pytest.mark.parametrize("before", ["old", None], ids=["file", "dangling"])
def test_a_symlink_stays_and_its_target_is_written(tmp_path: Path, write: Any, before: str | None) -> None:
    (tmp_path / "links").mkdir()
    link, target = tmp_path / "links" / "link", tmp_path / "elsewhere" / "file"
    (tmp_path / "links" / "between").symlink_to(target)
    link.symlink_to("between")
    if before:
        target.parent.mkdir()
        target.write_text(before)
        inode = target.stat().st_ino
    check_targets({"output": str(link)}, [], overwrite=before is not None)
    write(link)
    assert link.is_symlink() and link.readlink() == Path("between")
    assert target.is_file() and not target.is_symlink() and target.read_bytes() != b"old"
    assert not before or target.stat().st_ino != inode, "renamed, so that it is whole or as it was"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["between", "elsewhere", "file", "link", "links"]


def test_a_write_that_fails_leaves_the_target_of_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(RunError, match="link: not written .No space left"), atomic_file(tmp_path / "link") as file:
        file.write("new")
        full(tmp_path)
    assert (tmp_path / "link").is_symlink() and tree(tmp_path) == {"file": "old", "link": "old"}


def test_symlinks_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(RunError, match="circle: can't be written .Too many levels"):
        write_atomic(tmp_path / "circle", "new")
    with pytest.raises(RunError, match="circle: can't be written .Too many levels"), atomic_folder(tmp_path / "circle"):
        pytest.fail("the block must not start")
    assert [path.is_symlink() for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("existed", [True, False], ids=["folder", "dangling"])
def test_a_symlink_to_a_folder_stays_and_its_target_is_written(tmp_path: Path, existed: bool) -> None:
    link, target = tmp_path / "link", tmp_path / "disk" / "model"
    link.symlink_to(target)
    if existed:
        target.mkdir(parents=True)
        (target / "old.txt").write_text("old")
    with atomic_folder(link) as folder:
        (folder / "new.txt").write_text("new")
        assert folder.parent == target.parent, "on the disk that the symlink names"
    assert link.is_symlink() and link.readlink() == target
    assert tree(target.parent) == {"model/new.txt": "new"}


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(RunError, match="file: can't be written .Not a directory"), atomic_folder(tmp_path / "file"):
        pytest.fail("the block must not start")
    assert tree(tmp_path) == {"file": "old"}


def test_a_pipe_is_written_in_place_and_needs_no_overwrite(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_targets({"output": str(pipe), "html": str(pipe)}, [], overwrite=False)
    for write, content in ((write_text, b"new\n"), (write_rows, b"\x93NUMPY")):
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            write(pipe)
            assert os.read(reader, 4096).startswith(content)
        finally:
            os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and list(tmp_path.iterdir()) == [pipe]


def test_a_full_device_is_an_error_and_stays_a_device(full_device: Path) -> None:
    link = full_device.with_name("link")
    link.symlink_to(full_device)
    for path in (full_device, link):
        check_targets({"output": str(path)}, [], overwrite=False)
        for write in (write_text, write_rows):
            with pytest.raises(RunError, match=f"{path.name}: not written .No space left"):
                write(path)
    assert full_device.is_char_device() and link.is_symlink()
    assert sorted(path.name for path in full_device.parent.iterdir()) == ["full", "link"]


PRINT_AND_WRITE = """
from pathlib import Path
from embedrag.runtime.files import check_targets, write_atomic
print("first", flush=False)
check_targets({"output": "/dev/stdout"}, [], False)
write_atomic(Path("/dev/stdout"), "second")
print("third")
"""


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_standard_output_gets_its_lines_in_order(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "out"
    with file.open("w") as out:
        target = out if kind == "file" else subprocess.PIPE
        ended = subprocess.run([sys.executable, "-c", PRINT_AND_WRITE], stdout=target, text=True, check=True)
    assert (file.read_text() if kind == "file" else ended.stdout) == "first\nsecond\nthird\n"
    assert list(tmp_path.iterdir()) == [file]


def test_an_output_folder_of_another_kind_is_kept(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        check_folder("output", tmp_path / name, False, "merge_config.json", "merged models")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="`output=.*deeper`: no folder can be made there; name another place"):
        check_folder("output", tmp_path / "file" / "new" / "deeper", True, "merge_config.json", "merged models")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("x")
    with pytest.raises(UserError, match="`output=.*photos`: exists; name another folder, or replace it with `over"):
        check_folder("output", tmp_path / "photos", False, "merge_config.json", "merged models")
    with pytest.raises(
        UserError, match="`overwrite` replaces only merged models, and this folder has no merge_config.json"
    ):
        check_folder("output", tmp_path / "photos", True, "merge_config.json", "merged models")
    (tmp_path / "photos" / "merge_config.json").write_text("{}")
    check_folder("output", tmp_path / "photos", True, "merge_config.json", "merged models")


def test_rows_are_written_one_a_line_into_a_new_folder(tmp_path: Path) -> None:
    rows = [{"query": "개\u2028\n"}, {"pos": ["a", "b"]}]
    write_lines(tmp_path / "new" / "rows.jsonl", (row for row in rows))
    lines = (tmp_path / "new" / "rows.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows and lines[-1] == ""
