"""Files and folders are whole or as they were, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embedrag.errors import RunError, UserError
from embedrag.runtime.files import (
    atomic_folder,
    check_targets,
    remove_leftover,
    write_atomic,
    write_lines,
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


def test_others_may_read_what_a_library_wrote_for_its_owner_alone(target) -> None:
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir(mode=0o700)
        (folder / "sub" / "weights").write_text("1")
        (folder / "sub" / "weights").chmod(0o600)
    assert [(target / name).stat().st_mode & 0o777 for name in ("sub", "sub/weights")] == [0o755, 0o644]


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


def test_full_disk_is_told_and_leaves_what_was_there(target) -> None:
    before, existed = tree(target), target.exists()
    with pytest.raises(RunError, match="final: not written .No space left") as caught, atomic_folder(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 1
    assert tree(target) == before
    assert [path.name for path in target.parent.iterdir()] == ["final"] * existed


def test_parent_that_can_not_be_made_is_told(tmp_path: Path) -> None:
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
    with pytest.raises(RunError, match="what was there before is whole"), atomic_folder(target) as folder:
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


def test_run_error_is_a_user_error_with_another_exit_code() -> None:
    assert issubclass(RunError, UserError)
    assert (RunError("x").exit_code, UserError("x").exit_code) == (1, 2)


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
    source = str(tmp_path / "in.jsonl")
    for name, overwrite, message in (
        ("in.jsonl", True, "is read by this command"),
        ("there.json", False, "exists; name another file"),
        ("folder", True, "a folder; name a file"),
        ("in.jsonl/x", True, "no folder can be made there"),
    ):
        with pytest.raises(UserError, match=message):
            check_targets({"--output": str(tmp_path / name)}, [source, None, "no such file"], overwrite)
    with pytest.raises(UserError, match="lies in a folder that is read"):
        check_targets({"--output": str(tmp_path / "folder" / "x")}, [str(tmp_path / "folder")], False)
    with pytest.raises(UserError, match="is the file that --output writes"):
        check_targets({"--output": str(tmp_path / "a"), "--html": str(tmp_path / "a")}, [], False)
    check_targets({"--output": str(tmp_path / "there.json"), "--html": None}, [source], True)


def test_place_where_nobody_may_write_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = {"--output": str(tmp_path / "new" / "deep" / "x.jsonl")}
    check_targets(target, [], False)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write everywhere
    with pytest.raises(UserError, match=f"--output .*x.jsonl: {tmp_path} can't be written; name another place"):
        check_targets(target, [], True)


def test_rows_are_written_one_a_line_into_a_new_folder(tmp_path: Path) -> None:
    rows = [{"query": "개\u2028\n"}, {"pos": ["a", "b"]}]
    write_lines(tmp_path / "new" / "rows.jsonl", (row for row in rows))
    lines = (tmp_path / "new" / "rows.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows and lines[-1] == ""
