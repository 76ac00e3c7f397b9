"""Files and folders are whole or as they were, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from embedrag.errors import RunError, UserError
from embedrag.files import atomic_folder, write_atomic, write_lines


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


def test_run_error_is_a_user_error_with_another_exit_code() -> None:
    assert issubclass(RunError, UserError)
    assert (RunError("x").exit_code, UserError("x").exit_code) == (1, 2)


def test_small_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    for text in ("[1, 2, 3]", "개"):
        write_atomic(path, text)
        assert path.read_text(encoding="utf-8") == text + "\n"
    assert list(tmp_path.iterdir()) == [path]


def test_small_file_that_can_not_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "metrics.json", Path.write_text
    write_atomic(path, "old")

    def half(self: Path, text: str, **settings: str) -> int:
        real(self, text[:1], **settings)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises((OSError, RunError)):
        write_atomic(path, "new")
    assert path.read_text() == "old\n"


def test_rows_are_written_one_a_line_into_a_new_folder(tmp_path: Path) -> None:
    rows = [{"query": "개\u2028\n"}, {"pos": ["a", "b"]}]
    write_lines(tmp_path / "new" / "rows.jsonl", (row for row in rows))
    lines = (tmp_path / "new" / "rows.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows and lines[-1] == ""
