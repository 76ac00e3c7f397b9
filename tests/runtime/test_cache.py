"""What is kept between runs is checked when it is opened, and made again when it is damaged."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from embedrag.errors import RunError, UserError
from embedrag.runtime import cache as module
from embedrag.runtime.cache import keep, open_kept


def make(folder: Path) -> None:
    (folder / "data").write_bytes(bytes(range(256)) * 4)


def read(folder: Path) -> bytes:
    return (folder / "data").read_bytes()


GOOD = bytes(range(256)) * 4


def use(cache: Path, name: str = "kept-1") -> tuple[bytes, bool]:
    found = open_kept(cache, name, read)
    return (keep(cache, name, make, read), False) if found is None else (found, True)


def test_second_use_finds_it(tmp_path: Path) -> None:
    assert [use(tmp_path / "deep" / "cache") for _ in range(2)] == [(GOOD, False), (GOOD, True)]
    assert [path.name for path in (tmp_path / "deep" / "cache").iterdir()] == ["kept-1"]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,024 bytes are 256 blocks."""
    monkeypatch.setattr(module, "BLOCK", 4)


def test_large_file_is_sampled_and_all_of_it_read_on_request(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in (0, 1, 15, 16, 17, 256, 10_000):
        drawn = module._sample(count)
        assert len(drawn) == min(count, 16) and {0, count - 1} <= {*drawn, *([0, -1] * (count == 0))}
        assert drawn == sorted(set(drawn)) and (not drawn or drawn[-1] < count)
    use(tmp_path)
    path = tmp_path / "kept-1" / "data"
    path.write_bytes(GOOD[:500] + b"x" + GOOD[501:])
    monkeypatch.setattr(module, "_sample", lambda count: [0, 255])
    assert next(module.damaged(path.parent), "") == "", "not in the sample"
    monkeypatch.undo()
    monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setenv("EMBEDRAG_CACHE_CHECK", "full")
    assert list(module.damaged(path.parent)) == ["the checksum of data differs in block 126 of 256"]
    monkeypatch.delenv("EMBEDRAG_CACHE_CHECK")
    found = sum(next(module.damaged(path.parent), "") != "" for _ in range(200))
    assert 0 < found < 100, "the sample differs from start to start"


def test_sampling_does_not_touch_the_random_state(tmp_path: Path, small_blocks: None) -> None:
    import random

    before = random.getstate()
    assert [use(tmp_path)[1] for _ in range(2)] == [False, True]
    assert random.getstate() == before


@pytest.mark.parametrize(
    "sums",
    [
        "",
        "[]",
        "{",
        "null",
        "{}",
        '{"format": 1}',
        '{"format": 2, "block": 4194304, "files": {}}',
        '{"format": 1, "block": 4, "files": {}}',
        '{"format": 1, "block": 4194304, "files": []}',
        '{"format": 1, "block": 4194304, "files": {"data": {}}}',
        '{"format": 1, "block": 4194304, "files": {"data": {"bytes": 1024, "blocks": []}}}',
        '{"format": 1, "block": 4194304, "files": {"data": {"bytes": "x", "blocks": [1]}}}',
        '{"format": 1, "block": 4194304, "files": {"data": {"bytes": 1024, "blocks": 7}}}',
        '{"format": 1, "block": 4194304, "files": {"date": {"bytes": 1024, "blocks": [1]}}}',
    ],
)
def test_damaged_checksums_are_damage(sums: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    use(tmp_path)
    (tmp_path / "kept-1" / "checksums.json").write_text(sums)
    assert use(tmp_path) == (GOOD, False) and use(tmp_path) == (GOOD, True)
    assert "kept-1 is damaged (" in capsys.readouterr().out


PLACES: dict[str, Callable[[Path], object]] = {
    "a file": lambda path: path.write_text("x"),
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "an empty folder": lambda path: path.mkdir(),
    "a folder without rights": lambda path: path.mkdir(0o000),
}


@pytest.mark.parametrize("kind", PLACES)
def test_something_else_in_its_place_is_replaced(kind: str, tmp_path: Path) -> None:
    PLACES[kind](tmp_path / "kept-1")
    assert use(tmp_path) == (GOOD, False) and use(tmp_path) == (GOOD, True)


def test_folder_of_another_user_is_neither_used_nor_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever may write into a shared cache could put there what they like."""
    use(tmp_path)
    planted = tmp_path / "kept-1" / "data"
    try:
        os.chown(planted, 12345, -1)
    except PermissionError:
        pytest.skip("only root may give files away")
    inode = planted.stat().st_ino
    assert use(tmp_path) == (GOOD, False)
    said = capsys.readouterr().out
    assert "belongs to another user" in said and "nothing is kept for the next start" in said
    assert planted.stat().st_ino == inode
    os.chown(tmp_path, 12345, -1)  # the owner of the whole cache is trusted: `cache_dir` named it
    assert use(tmp_path) == (GOOD, True)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_cache_that_can_not_be_written_is_said_and_a_temporary_folder_is_used(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(dir: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("embedrag.runtime.disk.tempfile.TemporaryFile", refuse)
    assert use(tmp_path / "cache") == (GOOD, False)
    said = capsys.readouterr().out
    assert f"cache: {tmp_path}/cache can't be written ({os.strerror(number)})" in said and "`cache_dir`" in said
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_any_place_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*rest: object, **more: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("embedrag.runtime.disk.tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("embedrag.runtime.cache.tempfile.mkdtemp", refuse)
    with pytest.raises(RunError, match=r"can't be written \(.*\), and no temporary folder either \(.*No usable"):
        use(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="`cache_dir=.*file`: File exists; name a folder that can be written"):
        keep(tmp_path / "file", "kept-1", make, read)


def test_many_that_make_and_damage_it_at_once_get_what_was_made(tmp_path: Path) -> None:
    """Each finds a whole folder or makes one; none meets half of another's."""
    results: list[object] = []

    def work(number: int) -> None:
        for turn in range(12):
            try:
                results.append(use(tmp_path)[0])
            except BaseException as error:
                results.append(error)
            if (number + turn) % 3 == 0:
                try:
                    os.truncate(tmp_path / "kept-1" / "data", 7)
                except OSError:
                    pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [result for result in results if not (isinstance(result, bytes) and result in (GOOD, GOOD[:7]))]
    assert not wrong, wrong[:3]
    use(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept-1"]
